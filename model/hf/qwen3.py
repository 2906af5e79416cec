"""A trunk and one family's experts as a plain dense Qwen3, and back again.

Two SwiGLU in parallel are one SwiGLU with concatenated hidden units, and a hidden unit of zeros
adds nothing (silu(0) * 0 = 0), so layers of unequal width are padded to the widest. Everything
else is renaming and cutting fused matrices apart. Shapes: D model, F hidden units, V vocabulary.
Read next: `gate.py`, which proves an export; docs/EXPORT.md.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..config import ModelConfig
from ..decoder import Decoder, parameter_family
from ..errors import ModelError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
EXPORT_KEY = "xylem"
"""Key of config.json under which an export says where it comes from; marks a folder as ours."""

_SAME = (
    ("attention_norm.weight", "input_layernorm.weight"),
    ("attention.q_norm.weight", "self_attn.q_norm.weight"),
    ("attention.k_norm.weight", "self_attn.k_norm.weight"),
    ("attention.out.weight", "self_attn.o_proj.weight"),
    ("feed_forward_norm.weight", "post_attention_layernorm.weight"),
)
"""Tensors of a layer that are the same here and there: our name, Qwen3's."""


def dense_width(config: ModelConfig) -> int:
    """Hidden units of the dense model: the widest layer's trunk and expert together."""
    return max(layer.trunk_width + layer.expert_width for layer in config.layers)


def dense_config(
    config: ModelConfig, *, bos_id: int, eos_id: int, pad_id: int, max_positions: int
) -> dict[str, Any]:
    """The config.json of plain transformers' `Qwen3ForCausalLM`.

    Args:
        config: the decoder's.
        bos_id, eos_id, pad_id: the tokenizer's special tokens.
        max_positions: longest sequence the model was trained on, in tokens.
    """
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": dense_width(config),
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": max_positions,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_eps,
        "use_cache": True,
        "tie_word_embeddings": config.tied_embeddings,
        # transformers 5 reads rope_parameters; 4 and most engines read rope_theta.
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "dtype": "float32",
    }


def check_family(decoder: Decoder, family: str) -> None:
    """Raises ModelError when no dense model equals a decoder on text of that family."""
    if family not in decoder.families:
        raise ModelError(
            f"family {family!r} is not in this model; it has {', '.join(decoder.families)}"
        )
    for number, layer in enumerate(decoder.config.layers):
        if layer.expert_width and layer.router != "family":
            raise ModelError(
                f"layer {number} has router={layer.router}, which chooses experts token by token: "
                "no dense model equals it; only layers with router=family can be exported"
            )
        if layer.expert_width and decoder.config.routing.gate:
            raise ModelError(
                f"layer {number} has model.routing.gate=true, which weighs trunk and experts token "
                "by token: no dense model equals it; train without the gate to export"
            )


def unmasked(config: ModelConfig) -> ModelConfig:
    """The config of the decoder that `family_state_dict` is of: without EOM and FOM."""
    return replace(config, routing=replace(config.routing, expert_masking=0.0, output_masking=0.0))


@torch.no_grad()
def dense_state_dict(decoder: Decoder, family: str) -> dict[str, Tensor]:
    """Qwen3's tensors for the trunk with one family's experts.

    Returns:
        Copies, in the decoder's dtype; gate and up [F, D], down [D, F] with F = `dense_width`.
    Raises:
        ModelError: the decoder has no such family, or routes by token.
    """
    config, ours = decoder.config, family_state_dict(decoder, family)
    width = dense_width(config)
    head_rows = [config.heads * config.head_dim, *2 * [config.kv_heads * config.head_dim]]
    dense = {
        "model.embed_tokens.weight": ours["embed.weight"].clone(),
        "model.norm.weight": ours["final_norm.weight"].clone(),
    }
    if not config.tied_embeddings:
        dense["lm_head.weight"] = ours["head.weight"].clone()
    for i in range(len(config.layers)):
        here, there = f"layers.{i}", f"model.layers.{i}"
        for our_name, their_name in _SAME:
            dense[f"{there}.{their_name}"] = ours[f"{here}.{our_name}"].clone()
        qkv = ours[f"{here}.attention.qkv.weight"].split(head_rows)
        for letter, rows in zip("qkv", qkv, strict=True):
            dense[f"{there}.self_attn.{letter}_proj.weight"] = rows.clone()
        swiglus = [f"{here}.feed_forward.trunk"]
        expert = f"{here}.feed_forward.experts.{family}"
        if f"{expert}.down.weight" in ours:
            swiglus.append(expert)
        gate_ups = [ours[f"{name}.gate_up.weight"].chunk(2) for name in swiglus]
        downs = [ours[f"{name}.down.weight"] for name in swiglus]
        gate_FD = torch.cat([gate for gate, _ in gate_ups])
        up_FD = torch.cat([up for _, up in gate_ups])
        down_DF = torch.cat(downs, dim=1)
        lacking = width - down_DF.shape[1]
        pad = torch.nn.functional.pad
        dense[f"{there}.mlp.gate_proj.weight"] = pad(gate_FD, (0, 0, 0, lacking))
        dense[f"{there}.mlp.up_proj.weight"] = pad(up_FD, (0, 0, 0, lacking))
        dense[f"{there}.mlp.down_proj.weight"] = pad(down_DF, (0, lacking)).contiguous()
    return dense


def split_state_dict(
    dense: Mapping[str, Tensor], config: ModelConfig, family: str
) -> dict[str, Tensor]:
    """The inverse of `dense_state_dict`: the tensors of `family_state_dict`.

    Raises:
        ModelError: a tensor is missing, unknown or of another shape, or the padding is not zero.
    """
    rest = dict(dense)
    D, K = config.hidden_size, config.head_dim

    def take(name: str, *shape: int) -> Tensor:
        if name not in rest:
            raise ModelError(f"dense checkpoint lacks {name}; is it an export of this model?")
        tensor = rest.pop(name)
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"dense checkpoint's {name} is {list(tensor.shape)}, this model needs {list(shape)}"
            )
        return tensor

    def unpadded(tensor: Tensor, name: str, width: int, dim: int) -> Tensor:
        kept = tensor.narrow(dim, 0, width)
        padding = tensor.narrow(dim, width, tensor.shape[dim] - width)
        if padding.count_nonzero():
            raise ModelError(f"dense checkpoint's {name} is not zero beyond hidden unit {width}")
        return kept

    ours = {
        "embed.weight": take("model.embed_tokens.weight", config.vocab_size, D),
        "final_norm.weight": take("model.norm.weight", D),
    }
    if not config.tied_embeddings:
        ours["head.weight"] = take("lm_head.weight", config.vocab_size, D)
    width = dense_width(config)
    sizes: dict[str, tuple[int, ...]] = {
        "attention_norm.weight": (D,),
        "attention.q_norm.weight": (K,),
        "attention.k_norm.weight": (K,),
        "attention.out.weight": (D, config.heads * K),
        "feed_forward_norm.weight": (D,),
    }
    for i, layer in enumerate(config.layers):
        here, there = f"layers.{i}", f"model.layers.{i}"
        for our_name, their_name in _SAME:
            ours[f"{here}.{our_name}"] = take(f"{there}.{their_name}", *sizes[our_name])
        rows = {"q": config.heads * K, "k": config.kv_heads * K, "v": config.kv_heads * K}
        ours[f"{here}.attention.qkv.weight"] = torch.cat(
            [take(f"{there}.self_attn.{letter}_proj.weight", n, D) for letter, n in rows.items()]
        )
        used = layer.trunk_width + layer.expert_width
        gate_FD, up_FD = (
            unpadded(take(f"{there}.mlp.{name}.weight", width, D), f"{there}.mlp.{name}", used, 0)
            for name in ("gate_proj", "up_proj")
        )
        down = f"{there}.mlp.down_proj"
        down_DF = unpadded(take(f"{down}.weight", D, width), down, used, 1)
        parts = {"trunk": slice(0, layer.trunk_width)}
        if layer.expert_width:
            parts[f"experts.{family}"] = slice(layer.trunk_width, used)
        for part, units in parts.items():
            block = f"{here}.feed_forward.{part}"
            ours[f"{block}.gate_up.weight"] = torch.cat([gate_FD[units], up_FD[units]])
            ours[f"{block}.down.weight"] = down_DF[:, units].contiguous()
    if rest:
        raise ModelError(f"dense checkpoint holds {min(rest)}, which this model does not have")
    return ours


def family_state_dict(decoder: Decoder, family: str) -> dict[str, Tensor]:
    """The decoder's tensors of the trunk and one family, by canonical name.

    EOM and FOM leave a constant share of an expert's output in evaluation; it is in `down` here, so
    that these tensors are those of a decoder with the config `unmasked`.

    Raises:
        ModelError: the decoder has no such family, or routes by token.
    """
    check_family(decoder, family)
    routing = decoder.config.routing
    left = (1 - routing.expert_masking) * (1 - routing.output_masking)
    return {
        name: tensor * left
        if left != 1 and ".experts." in name and name.endswith(".down.weight")
        else tensor
        for name, tensor in decoder.state_dict().items()
        if parameter_family(name) in (None, family)
    }


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and bytes in sorted order; equal weights give equal hashes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_model(
    decoder: Decoder,
    family: str,
    folder: Path,
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    max_positions: int,
    provenance: Mapping[str, Any],
) -> int:
    """Writes config.json, generation_config.json and model.safetensors into an existing folder.

    `provenance` (JSON) goes into config.json under `xylem`, beside the family. Returns the number
    of parameters, with padding.
    """
    config = dense_config(
        decoder.config, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id, max_positions=max_positions
    )
    config[EXPORT_KEY] = {"family": family} | dict(provenance)
    generation = {
        "_from_model_config": False,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "do_sample": False,
    }
    dense = dense_state_dict(decoder, family)
    save_file(dense, folder / WEIGHTS_NAME, {"format": "pt"})
    (folder / WEIGHTS_NAME).chmod(folder.stat().st_mode & 0o666)  # made for its owner alone
    for name, content in ((CONFIG_NAME, config), ("generation_config.json", generation)):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    return sum(tensor.numel() for tensor in dense.values())


def is_export(folder: Path) -> bool:
    """Whether a folder is one that an export wrote."""
    try:
        content = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and EXPORT_KEY in content


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its final name only when the block ends well.

    An earlier export of the same name is replaced; what the block left is removed if it fails.

    Raises:
        ModelError: the folder holds something that is no export.
        OSError: the disk is full or the place cannot be written.
    """
    occupied = (
        folder.is_symlink() or folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    )
    if occupied and not is_export(folder):
        raise ModelError(f"{folder} is there and is no export of Xylem: choose another folder")
    staging, old = (folder.with_name(f"{folder.name}.xylem-{kind}") for kind in ("partial", "old"))
    if old.is_dir() and not folder.exists():  # killed between the two renames below
        old.rename(folder)
    for leftover in (staging, old):
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in staging.iterdir():
            _sync(path)
        _sync(staging)
        if folder.is_dir() and not folder.is_symlink():
            folder.rename(old)
        elif occupied:
            folder.unlink()
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_folder(
    decoder: Decoder,
    family: str,
    folder: Path,
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    max_positions: int,
    provenance: Mapping[str, Any],
) -> None:
    """Writes a family's dense model (without tokenizer) as a folder, whole or not at all.

    Raises:
        ModelError: no such family, or the folder holds something that is no export.
        OSError: the disk is full or the place cannot be written.
    """
    check_family(decoder, family)
    with staged_folder(folder) as staging:
        write_model(
            decoder,
            family,
            staging,
            bos_id=bos_id,
            eos_id=eos_id,
            pad_id=pad_id,
            max_positions=max_positions,
            provenance=provenance,
        )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
