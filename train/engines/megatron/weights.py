"""Where Megatron's parameters lie in the canonical ones: names and views, both ways.

A local parameter holds ranges of one canonical tensor (`model/part.py`), which is enough to load
it, to save it and to hold its optimiser state. Megatron's own order of attention's rows, query
heads of a group and then its key and value, is just another order of ranges.
Read next: `optimizer.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor, nn

from ....model.collectives import Sharing
from ....model.config import ModelConfig
from ....model.decoder import build_decoder, canonical_shapes
from ....model.part import Part, Range, View, local_shape, parameter_view, take
from .model import FamilyGPT

LAYER_NAMES = {
    "input_layernorm": "attention_norm",
    "self_attention.linear_qkv": "attention.qkv",
    "self_attention.linear_proj": "attention.out",
    "self_attention.q_layernorm": "attention.q_norm",
    "self_attention.k_layernorm": "attention.k_norm",
    "pre_mlp_layernorm": "feed_forward_norm",
}
OUTER_NAMES = {
    "embedding.word_embeddings.weight": "embed.weight",
    "decoder.final_layernorm.weight": "final_norm.weight",
    "output_layer.weight": "head.weight",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A parameter that is here, and what it holds."""

    name: str
    """Canonical name."""
    shape: tuple[int, ...]
    """Canonical shape."""
    view: View
    """What of it, in the local order."""
    parameter: nn.Parameter
    cut: bool
    """Whether the tensor ranks hold different pieces; else they hold the same."""
    copy: bool
    """The last stage's copy of tied embeddings, which belongs to the first."""
    partial: bool
    """Whether the tensor ranks' gradients of it are parts of a sum."""


def canonical_name(name: str, numbers: Sequence[int], tied: bool) -> str:
    """The canonical name of a chunk's parameter.

    Args:
        name: in the chunk.
        numbers: its layers' numbers.
    """
    if name in OUTER_NAMES:
        return "embed.weight" if tied and name.startswith("output") else OUTER_NAMES[name]
    _, _, local, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    if module.startswith("mlp."):
        module = "feed_forward." + module.removeprefix("mlp.")
    return f"layers.{numbers[int(local)]}.{LAYER_NAMES.get(module, module)}.{kind}"


def attention_rows(config: ModelConfig, tensor: Range, *, local: bool = False) -> tuple[Range, ...]:
    """Rows of qkv in Megatron's order: group by group its queries, key and value.

    Args:
        tensor: (index, size) of this process among the tensor ranks.
        local: of the rows that one rank holds in canonical order, instead of all rows.
    """
    index, of = tensor
    H, G, K = config.heads, config.kv_heads, config.head_dim
    if local:
        H, G, index, of = H // of, G // of, 0, 1
    each, rows = H // G, []
    for group in range(index * G // of, (index + 1) * G // of):
        key, value = H + group, H + G + group
        for first, stop in ((group * each, (group + 1) * each), (key, key + 1), (value, value + 1)):
            rows.append((first * K, stop * K))
    return tuple(rows)


def held_parameters(
    chunks: Sequence[FamilyGPT], config: ModelConfig, families: Sequence[str], part: Part,
    renamed: Callable[[str], str] = str,
) -> list[Held]:  # fmt: skip
    """Every parameter of this process's chunks; marks them for Megatron as cut or not.

    Args:
        renamed: a chunk's own name of a parameter -> as `FamilyGPT` calls it.
    """
    shapes, held = canonical_shapes(config, families), []
    for chunk in chunks:
        numbers = [layer.layer_number - 1 for layer in chunk.decoder.layers]
        for local, parameter in chunk.named_parameters():
            if not parameter.requires_grad:
                continue
            name = canonical_name(renamed(local), numbers, config.tied_embeddings)
            view = parameter_view(name, shapes[name], part, config, families)
            if view is not None and name.endswith("attention.qkv.weight"):
                view = (attention_rows(config, part.tensor), *view[1:])
            if view is None or local_shape(view) != tuple(parameter.shape):
                raise AssertionError(f"{local} is {tuple(parameter.shape)}, {name} here {view}")
            dimensions = [d for d, ranges in enumerate(view)
                          if sum(b - a for a, b in ranges) != shapes[name][d]]  # fmt: skip
            if not hasattr(parameter, "tensor_model_parallel"):
                cut = dimensions[0] if dimensions else -1
                set_tensor_model_parallel_attributes(parameter, bool(dimensions), cut, 1)
            held.append(Held(
                name=name, shape=shapes[name], view=view, parameter=parameter,
                cut=bool(dimensions), copy=bool(getattr(parameter, "shared", False)),
                partial=bool(getattr(parameter, "sequence_parallel", False)),
            ))  # fmt: skip
    return held


@torch.no_grad()
def fill(held: Iterable[Held], values: Callable[[Held], Tensor | None]) -> None:
    """Writes values into the parameters.

    Args:
        values: what of the canonical tensor is here, flat or in the local shape; None leaves it.
    """
    for one in held:
        value = values(one)
        if value is not None:
            one.parameter.copy_(value.view(one.parameter.shape))


def by_parameter(held: Iterable[Held]) -> dict[nn.Parameter, Held]:
    """The same, found by parameter."""
    return {one.parameter: one for one in held}


def attribute(parameter: nn.Parameter, name: str, value: Any) -> None:
    """Sets what Megatron or DeepSpeed reads off a parameter."""
    setattr(cast(Any, parameter), name, value)


def initial_values(
    model: ModelConfig, families: Sequence[str], part: Part, seed: int
) -> dict[str, Tensor]:
    """Canonical name -> first values of what is here, in Megatron's local order."""
    decoder = build_decoder(model, families, seed=seed, sharing=Sharing(part))
    values = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
    heads: Range = (0, part.tensor[1])
    local = attention_rows(model, heads, local=True)
    for name, value in values.items():
        if name.endswith("attention.qkv.weight"):
            values[name] = take(value, (local, ((0, value.shape[1]),)))
    return values
