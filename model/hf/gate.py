"""Is an exported folder the same model? The checks an export must pass, and what they measured.

The folder is loaded by plain transformers and held against the native decoder: weights bit for
bit, logits and greedy generation in fp32, and the extra noise of bf16. Why each bound is what it
is: docs/EXPORT.md. Shapes: R rows, T positions, V vocabulary.
Read next: `gate_report.py`, `card.py`.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..decoder import Decoder
from ..errors import ModelError
from ..norms import RMSNorm
from ..routers import FamilySegment
from .gate_report import Check, GateReport
from .qwen3 import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    check_family,
    family_state_dict,
    split_state_dict,
    unmasked,
)

MINIMUM_TOKENS = 512
"""Real tokens of the family that the logits are compared on, at least."""
WANTED_TOKENS = 2048
"""Real tokens that are used when there are so many."""
LOGIT_BOUND = 1e-4
"""Largest fp32 difference of a logit; relative to the logits' spread where that is below 1."""
TOP1_BOUND = 0.999
"""Share of positions whose most likely token is the same in fp32."""
BF16_KL_FACTOR = 1.1
"""How much more noise the export may have in bf16 than the native decoder has."""
BF16_KL_FLOOR = 1e-7
"""Nats a token below which a difference in bf16 noise is not held against an export."""
BF16_KL_ERRORS = 2
"""Standard errors of the noise's difference that are granted to chance."""
BF16_TOP1_SLACK = 0.03
"""How much less often the bf16 export may agree with fp32 than the bf16 native does."""
_ROW, _RANDOM_ROW = 256, 512
_PROMPT_LENGTHS = (3, 5, 8, 12)
_NEW_TOKENS = 16


def run_gate(
    decoder: Decoder,
    family: str,
    folder: Path,
    documents: Sequence[Sequence[int] | np.ndarray[Any, Any]],
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    seed: int = 0,
) -> GateReport:
    """Holds an exported folder against the decoder it came from.

    Args:
        decoder: the native decoder, fp32, on the CPU.
        documents: token ids of real documents of the family, each with its begin and end token;
            together at least 512 tokens.
        seed: of the random ids.
    Raises:
        ModelError: too few real tokens, or no such family; nothing is raised for a failed check.
    """
    check_family(decoder, family)
    settings = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    positions = int(settings["max_position_embeddings"])
    real_RT = _rows(documents, min(positions, _ROW), family)
    generator = torch.Generator().manual_seed(seed)
    random_RT = torch.randint(
        decoder.config.vocab_size, (2, min(positions, _RANDOM_ROW)), generator=generator
    )
    special = {"bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id}
    with _exact_matmul(), torch.no_grad():
        checks = [_round_trip(decoder, family, folder), _special_ids(folder, special)]
        export, unmatched = _load(folder, torch.float32)
        checks.append(
            Check(
                name="loaded_tensors",
                meaning="tensors that transformers found missing, unknown or of a wrong shape",
                value=unmatched,
                bound=0,
            )
        )
        comparison = _Comparison(family, decoder, export, folder)
        for row_T in real_RT:
            comparison.add(row_T)
        bound = LOGIT_BOUND * min(1.0, comparison.spread)
        random_difference = 0.0
        for row_T in random_RT:
            random_difference = _worse(
                random_difference,
                _difference(_native_logits(decoder, row_T, family), _logits(export, row_T)),
            )
        checks += comparison.checks(bound)
        checks.append(
            Check(
                name="fp32_logits_random",
                meaning="max |logit difference| on random ids, fp32",
                value=random_difference,
                bound=bound,
            )
        )
        checks += _generation(decoder, family, export, documents, eos_id, pad_id, bound)
    return GateReport(
        family=family,
        real_tokens=real_RT.numel(),
        random_tokens=random_RT.numel(),
        spread=comparison.spread,
        other_family_difference=comparison.other_family,
        checks=tuple(checks),
    )


def bf16_checks(
    *,
    kl_export: float,
    kl_native: float,
    standard_error: float,
    top1_export: float,
    top1_native: float,
) -> list[Check]:
    """The bounds of bf16: noise of the export against noise of the native decoder.

    Args:
        kl_export, kl_native: KL(fp32 || bf16), nats a token.
        standard_error: of their difference, from its spread over tokens.
        top1_export, top1_native: share of positions whose most likely token is that of fp32.
    """
    return [
        Check(
            name="bf16_kl",
            meaning=f"KL(fp32 || bf16 export) in nats a token; the native's is {kl_native:.4g}",
            value=kl_export,
            bound=BF16_KL_FACTOR * kl_native + max(BF16_KL_FLOOR, BF16_KL_ERRORS * standard_error),
        ),
        Check(
            name="bf16_top1",
            meaning="share of positions where the bf16 export's most likely token is that of fp32",
            value=top1_export,
            bound=top1_native - BF16_TOP1_SLACK,
            at_least=True,
        ),
    ]


class _Comparison:
    """Running comparison over rows, so that no more than one row's logits are held."""

    def __init__(self, family: str, decoder: Decoder, export: nn.Module, folder: Path) -> None:
        self.family, self.decoder, self.export = family, decoder, export
        self.native_bf16 = _native_bf16(decoder, family)
        self.export_bf16, _ = _load(folder, torch.bfloat16)
        others = [name for name in decoder.families if name != family]
        self.other = others[0] if others else None
        self.other_family: float | None = None
        self.rows = 0
        self.difference = 0.0
        self.sums: dict[str, float] = {}
        self.kl_export: list[Tensor] = []
        self.kl_native: list[Tensor] = []

    def add(self, row_T: Tensor) -> None:
        """Compares one row of real tokens."""
        native_TV = _native_logits(self.decoder, row_T, self.family)
        export_TV = _logits(self.export, row_T)
        noisy_native_TV = _native_logits(self.native_bf16, row_T, self.family)
        noisy_export_TV = _logits(self.export_bf16, row_T)
        best_T = native_TV.argmax(-1)
        self.difference = _worse(self.difference, _difference(native_TV, export_TV))
        for name, value in (
            ("spread", native_TV.std(-1).mean()),
            ("top1", (export_TV.argmax(-1) == best_T).double().mean()),
            ("top1_export", (noisy_export_TV.argmax(-1) == best_T).double().mean()),
            ("top1_native", (noisy_native_TV.argmax(-1) == best_T).double().mean()),
        ):
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.kl_export.append(_kl(native_TV, noisy_export_TV))
        self.kl_native.append(_kl(native_TV, noisy_native_TV))
        if self.rows == 0 and self.other is not None:
            other_TV = _native_logits(self.decoder, row_T, self.other)
            self.other_family = _difference(native_TV, other_TV)
        self.rows += 1

    @property
    def spread(self) -> float:
        """Standard deviation of the native logits over the vocabulary, mean over positions."""
        return self.sums["spread"] / self.rows

    def checks(self, bound: float) -> list[Check]:
        """What all rows together say."""
        mean = {name: total / self.rows for name, total in self.sums.items()}
        kl_export_N, kl_native_N = torch.cat(self.kl_export), torch.cat(self.kl_native)
        error = (kl_export_N - kl_native_N).std() / math.sqrt(len(kl_export_N))
        return [
            Check(
                name="fp32_logits_text",
                meaning="max |logit difference| on real text, fp32",
                value=self.difference,
                bound=bound,
            ),
            Check(
                name="fp32_top1",
                meaning="share of positions with the same most likely token, fp32",
                value=mean["top1"],
                bound=TOP1_BOUND,
                at_least=True,
            ),
            *bf16_checks(
                kl_export=float(kl_export_N.mean()),
                kl_native=float(kl_native_N.mean()),
                standard_error=float(error),
                top1_export=mean["top1_export"],
                top1_native=mean["top1_native"],
            ),
        ]


def _rows(
    documents: Sequence[Sequence[int] | np.ndarray[Any, Any]], length: int, family: str
) -> Tensor:
    """Documents laid end to end and cut into rows [R, T] of equal length."""
    needed = math.ceil(MINIMUM_TOKENS / length) * length
    line = torch.cat(
        [torch.zeros(0, dtype=torch.long)]
        + [torch.from_numpy(np.asarray(document, dtype=np.int64)) for document in documents]
    )
    if len(line) < needed:
        raise ModelError(
            f"the export gate of family {family} got {len(line)} real tokens; it needs {needed}: "
            "give it more documents of the family"
        )
    rows = min(len(line) // length, math.ceil(WANTED_TOKENS / length))
    return line[: rows * length].view(rows, length)


def _round_trip(decoder: Decoder, family: str, folder: Path) -> Check:
    """Weights read back from disk and cut apart again, against the decoder's, bit for bit."""
    ours = family_state_dict(decoder, family)
    try:
        back = split_state_dict(load_file(folder / WEIGHTS_NAME), decoder.config, family)
        differing = sum(not _same_bits(ours[name], back[name]) for name in ours)
        differing += len(back.keys() - ours.keys())
    except (ModelError, SafetensorError, KeyError):
        differing = len(ours)
    return Check(
        name="weights_round_trip",
        meaning=f"tensors of {len(ours)} that do not come back bit for bit",
        value=differing,
        bound=0,
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _special_ids(folder: Path, wanted: Mapping[str, int]) -> Check:
    wrong = 0
    for name in (CONFIG_NAME, "generation_config.json"):
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        wrong += sum(found.get(key) != value for key, value in wanted.items())
    return Check(
        name="special_ids",
        meaning="special ids of config.json and generation_config.json unlike the tokenizer's",
        value=wrong,
        bound=0,
    )


def _generation(
    decoder: Decoder,
    family: str,
    export: Any,
    documents: Sequence[Sequence[int] | np.ndarray[Any, Any]],
    eos_id: int,
    pad_id: int,
    bound: float,
) -> list[Check]:
    """Greedy continuations by transformers against the native decoder's, which has no cache."""
    count = _NEW_TOKENS
    beginnings = [
        [int(token) for token in documents[i % len(documents)]][:-1][:length]
        for i, length in enumerate(_PROMPT_LENGTHS)
    ]
    shortest = min(len(prompt) for prompt in beginnings)

    def continuations(prompts: list[list[int]]) -> list[list[int]]:
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[pad_id] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        out = export.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count
        )
        return [row[longest:].tolist() for row in out]

    def differing(prompts: list[list[int]], answers: list[list[int]]) -> int:
        plain = [_greedy(decoder, family, prompt, count, eos_id) for prompt in prompts]
        # Two tokens within the logits' own bound of each other are a tie that either may win.
        return sum(
            _diverges(tokens, margins, answer, 2 * bound)
            for (tokens, margins), answer in zip(plain, answers, strict=True)
        )

    equal = [prompt[:shortest] for prompt in beginnings]
    found = {
        "cached": differing(beginnings, [continuations([p])[0] for p in beginnings]),
        "left_padded": differing(beginnings, continuations(beginnings)),
        "batched": differing(equal, continuations(equal)),
    }
    return [
        Check(
            name=f"generation_{name}",
            meaning=f"greedy continuations of {len(beginnings)} that differ from the native ones",
            value=value,
            bound=0,
        )
        for name, value in found.items()
    ]


def _greedy(
    decoder: Decoder, family: str, prompt: list[int], count: int, eos_id: int
) -> tuple[list[int], list[float]]:
    """The native continuation without a cache, never ending early, and each choice's margin."""
    ids, margins = list(prompt), []
    for _ in range(count):
        logits_V = _native_logits(decoder, torch.tensor(ids), family)[-1]
        logits_V[eos_id] = -torch.inf
        best = logits_V.topk(2)
        margins.append(float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(prompt) :], margins


def _diverges(plain: list[int], margins: list[float], answer: list[int], tie: float) -> bool:
    for token, margin, other in zip(plain, margins, answer, strict=False):
        if token != other:
            return margin > tie
    return len(plain) != len(answer)


class _RoundingNorm(nn.Module):
    """RMSNorm that rounds before its weight is applied, as Qwen3's does and PyTorch's does not."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def _native_bf16(decoder: Decoder, family: str) -> Decoder:
    """The decoder in bf16, with this family only, and norms that round where Qwen3's do.

    With PyTorch's norm, the ratio of noises measures transformers' norm (1.04-1.15 seen), not the
    export; with the same rounding it is 1 within its standard error.
    """
    with torch.device("meta"):
        native = Decoder(unmasked(decoder.config), [family])
    tensors = family_state_dict(decoder, family)
    native.load_state_dict(
        {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, assign=True
    )
    replaced = 0
    for module in list(native.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, RMSNorm):
                setattr(module, name, _RoundingNorm(child))
                replaced += 1
    assert replaced == 4 * len(decoder.config.layers) + 1, "a norm of the decoder was missed"
    return native.eval()


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, int]:
    """The folder as transformers loads it, and how many tensors did not fit."""
    import transformers
    from transformers.utils import logging

    auto_model: Any = transformers.AutoModelForCausalLM
    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        model, info = auto_model.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, local_files_only=True
        )
    finally:
        if shown:
            bars.enable_progress_bar()
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return model.eval(), sum(len(info[kind]) for kind in kinds)


def _native_logits(decoder: Decoder, row_T: Tensor, family: str) -> Tensor:
    tokens_1T = row_T[None]
    segments = [FamilySegment(family, 0, 1)]
    return decoder.logits(tokens_1T, torch.zeros_like(tokens_1T), segments)[0].float()


def _logits(model: nn.Module, row_T: Tensor) -> Tensor:
    return model(row_T[None]).logits[0].float()


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _worse(a: float, b: float) -> float:
    """The larger, or the NaN: max() would lose one."""
    return b if math.isnan(b) or b > a else a


def _kl(reference_TV: Tensor, other_TV: Tensor) -> Tensor:
    """KL(reference || other) at each position [T], nats, in double precision."""
    p, q = (logits.double().log_softmax(-1) for logits in (reference_TV, other_TV))
    return (p.exp() * (p - q)).sum(-1)


@contextmanager
def _exact_matmul() -> Iterator[None]:
    """Full fp32 products, whatever training had allowed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
