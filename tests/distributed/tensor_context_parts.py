"""Run by test_tensor_context.py: four processes that share sequences, against each one alone.

FOLDER takes from each a JSON object: layout -> case -> how far it is from one process. The layouts
of two processes run side by side. Everything that can be is in float64, so that what is left is no
rounding but a mistake; routers, gates and the family head count in float32.
"""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from xylem.data.order import Slot
from xylem.data.packing import IGNORED
from xylem.data.stream import MicroBatch
from xylem.model import collectives, objectives
from xylem.model.collectives import Sharing
from xylem.model.config import LayerPlan, ModelConfig, RouterName, RoutingConfig
from xylem.model.decoder import (
    Decoder,
    DecoderExtras,
    build_decoder,
    canonical_views,
    saved_tensors,
)
from xylem.model.layout import Layout
from xylem.model.objectives import next_token_loss
from xylem.model.part import ParallelGroups, part_of
from xylem.train.metrics import LanguageSums
from xylem.train.micro_batches import StepWork

FAMILIES = ("alpha", "beta", "gamma")
T, V = 16, 97
SETTINGS: dict[str, Any] = {"expert_masking": 0.3, "output_masking": 0.3}
LOSSES: dict[str, Any] = {"sequence_loss": 0.3, "global_loss": 0.2, "z_loss": 0.1}


def model(router: RouterName, *, tied: bool = True, **routing: Any) -> ModelConfig:
    """Three layers of unequal widths, and a vocabulary that no even number divides."""
    return ModelConfig(
        vocab_size=V, hidden_size=24, heads=4, kv_heads=2, head_dim=8, init_std=0.3,
        tied_embeddings=tied, routing=RoutingConfig(**routing),
        layer_plan=(
            LayerPlan(trunk_width=20, expert_width=6, router=router),
            LayerPlan(trunk_width=28),
            LayerPlan(trunk_width=10, expert_width=14, router=router),
        ),
    )  # fmt: skip


CASES: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "family": (model("family", **SETTINGS), {}),
    "untied": (model("family", tied=False), {}),
    "recompute": (model("family", tied=False), {"recompute": 1}),
    "gate": (model("family", gate=True, gate_dropout=0.3), {}),
    "prior": (model("prior", tag_dropout=0.5, shared_experts=1, **SETTINGS, **LOSSES), {}),
    "topk": (model("topk", balance="quantile", gate=True, **SETTINGS, **LOSSES), {"recompute": 2}),
    "hybrid": (model("hybrid", **LOSSES), {}),
    "domain": (model("domain", shared_experts=1, **LOSSES), {}),
    "bf16": (model("family"), {"half": True}),
}


def micro_batch(number: int) -> MicroBatch:
    """Four rows of two families, with the border of a document within each piece of the context."""
    tokens = torch.randint(0, V, (4, T + 1), generator=torch.Generator().manual_seed(number))
    places_T = torch.arange(T)
    documents_BT = ((places_T >= 3).long() + (places_T >= 9 + number)).expand(4, T)
    targets_BT = tokens[:, 1:].clone()
    targets_BT[:, [2, 8 + number]] = IGNORED
    slots = tuple(Slot(2 * number + i, FAMILIES[2 * i], ((0, 0), (0, 0))) for i in range(2))  # type: ignore[arg-type]
    segments = (("alpha", 0, 2), ("gamma", 2, 4))
    languages_B = torch.tensor([0, 0, 1, 2])
    return MicroBatch(tokens[:, :-1], targets_BT, documents_BT, languages_B, segments, slots)


def stepped(decoder: Decoder, half: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a step of two micro-batches leaves: gradients by name, and sums that processes add."""
    sums = LanguageSums("abc", torch.device("cpu"))
    left: dict[str, Tensor] = {}

    def count(languages_B: Tensor, extras: DecoderExtras, positions: int) -> None:
        told: dict[str, Tensor | None] = {"head": extras.head_right}
        told["positions"] = torch.tensor([positions])
        for number, layer in extras.layers.items():
            told[f"gate {number}"] = layer.gate_B
            if layer.statistics is not None:
                told[f"choices {number}"] = layer.statistics.experts_BE
                told[f"softmax {number}"] = layer.statistics.probabilities_BE
                told[f"quantiles {number}"] = layer.statistics.quantile_EQ
        for name, value in told.items():
            if value is not None:
                left[name] = left.get(name, torch.zeros(())) + value.double()

    def cast() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()

    work = StepWork(
        [micro_batch(0), micro_batch(1)], keyed=(7, 3), predicted=113, size=128, z_weight=0.05,
        token_bytes=torch.arange(V) % 5, sums=sums, counters=[count], autocast=cast,
    )  # fmt: skip
    sharing, losses = decoder.sharing, torch.zeros((), dtype=torch.float64)
    for index in range(work.count):
        hidden = work.forward(decoder, index)
        loss = work.loss(hidden, decoder.head_weight_VD, index, sharing)
        loss.backward()
        losses += loss.detach()
    gradients = {n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}
    first = sharing.part.tensor[0] == 0
    if not first:
        assert not left and not sums.values.any(), "one of a tensor group counts"
    left["languages"], left["loss"] = sums.values, losses * first
    with torch.no_grad():
        micro = work.micro(0)
        hidden = decoder(micro.inputs_BT, micro.documents_BT, micro.segments)
        here_BT = sharing.here(micro.targets_BT)
        told_loss, _ = next_token_loss(hidden, decoder.head_weight_VD, here_BT, sharing=sharing)
    left["evaluated"] = told_loss.double() * first
    return gradients, left


def built(config: ModelConfig, settings: dict[str, Any], sharing: Sharing | None) -> Decoder:
    """A decoder whose state of balance is not at its first zeros."""
    decoder = build_decoder(config, FAMILIES, seed=5, sharing=sharing)
    decoder.recompute = settings.get("recompute", 0)
    for name, tensor in saved_tensors(decoder).items():
        with torch.no_grad():
            if name.endswith(".load"):
                tensor.copy_(torch.linspace(0.5, 1.5, len(tensor)))
            elif name.endswith(".budget_pull"):
                tensor.fill_(-1.0 if "beta" in name else 1.0)
            elif name.endswith(".bias"):
                tensor.fill_(-0.1)
    if settings.get("half"):
        return decoder
    decoder.double()
    for layer in decoder.layers:
        if layer.feed_forward.gate is not None:
            layer.feed_forward.gate.float()  # which multiplies in float32
    return decoder


def scattered(tensor: Tensor, shape: tuple[int, ...], view: Any) -> Tensor:
    """A local tensor at its place among zeros."""
    whole = torch.zeros(shape, dtype=torch.float64)
    grids = [torch.cat([torch.arange(a, b) for a, b in ranges]) for ranges in view]
    whole[torch.meshgrid(*grids, indexing="ij")] = tensor.double()
    return whole


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))


def decoder_case(name: str, sharing: Sharing, group: dist.ProcessGroup) -> dict[str, float]:
    """The relative distance of the worst gradient and of the worst sum."""
    config, settings = CASES[name]
    half = settings.get("half", False)
    wanted_gradients, wanted_sums = stepped(built(config, settings, None), half)
    decoder = built(config, settings, sharing)
    gradients, sums = stepped(decoder, half)
    views = canonical_views(decoder)
    distances = {"gradient": 0.0, "sum": 0.0}
    for key, parameter in decoder.named_parameters():
        shape, view = views[key]
        whole = scattered(gradients.get(key, torch.zeros_like(parameter)), shape, view)
        dist.all_reduce(whole, group=group)
        wanted = wanted_gradients.get(key)
        wanted = torch.zeros(shape) if wanted is None else wanted
        distances["gradient"] = max(distances["gradient"], apart(whole, wanted.double()))
    for key, wanted in wanted_sums.items():
        total = sums.get(key, torch.zeros_like(wanted)).double()
        dist.all_reduce(total, group=group)
        distances["sum"] = max(distances["sum"], apart(total, wanted.double()))
    return distances


def loss_case(sharing: Sharing, rows: int, block: int) -> dict[str, float]:
    """The vocabulary-parallel loss alone, cut into chunks of some rows and blocks."""
    group = sharing.groups.tensor
    assert group is not None
    index, of = sharing.part.tensor
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hidden, head = draw(2, 6, 5), 30 * draw(11, 5)
    targets = torch.tensor([[0, 5, 10, IGNORED, 4, 6], [1, 2, 3, 7, 8, 9]])
    kept = objectives.CHUNK_VALUES, objectives.CHUNK_ROWS, objectives.BLOCK_VALUES
    whole_h, whole_w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    loss, nll = next_token_loss(whole_h, whole_w, targets, z_weight=0.3)
    wanted = torch.autograd.grad(loss * 0.5, (whole_h, whole_w))
    sharing = replace(sharing, vocab_size=11)
    (start, stop), _ = sharing.rows_here(-(-11 // of) if index else 11 // of)
    mine = slice(index * 6 // of, (index + 1) * 6 // of)
    h = hidden[:, mine].clone().requires_grad_()
    w = head[start:stop].clone().requires_grad_()
    objectives.CHUNK_VALUES, objectives.CHUNK_ROWS = rows * 6, {"cpu": 1}
    objectives.BLOCK_VALUES = {"cpu": block * 6}
    try:
        ours, our_nll = next_token_loss(h, w, targets, z_weight=0.3, sharing=sharing)
    finally:
        objectives.CHUNK_VALUES, objectives.CHUNK_ROWS, objectives.BLOCK_VALUES = kept
    d_h, d_w = torch.autograd.grad(ours * 0.5, (h, w))
    both = collectives.gather_dim(our_nll.detach()[None].contiguous(), 0, group)
    return {
        "loss": max(apart(ours.detach(), loss.detach()), apart(our_nll, nll)),
        "hidden": apart(d_h, wanted[0][:, mine]),
        "head": apart(d_w, wanted[1][start:stop]),
        "ranks": float((both[0] - both[1]).abs().max()),
    }


def collective_cases(sharing: Sharing, group: dist.ProcessGroup) -> dict[str, float]:
    """Each collective and its derivative, against the same written for all processes at once."""
    index, of = dist.get_rank(group), dist.get_world_size(group)
    generator = torch.Generator().manual_seed(2)
    every = torch.randn(of, 2, 4, 3, generator=generator, dtype=torch.float64)

    def all_gathered(all_x: Tensor) -> list[Tensor]:
        return [torch.cat(all_x.unbind(), 1)] * of

    def all_scattered(all_x: Tensor) -> list[Tensor]:
        return list(all_x.sum(0).chunk(of, 1))

    def all_ordered(all_x: Tensor) -> list[Tensor]:
        # Ranks count tensor first: their stretches one after the other are the context's order.
        order = sharing.all_positions(4 * of, all_x.device)
        gathered = torch.cat(all_x.unbind(), 1)
        whole = torch.empty_like(gathered)
        whole[:, slice(None) if order is None else order] = gathered
        return [whole] * of

    kinds: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], list[Tensor]]]] = {
        "in_order": (sharing.in_order, all_ordered)
    }
    if sharing.groups.tensor is group:
        kinds |= {"enter": (sharing.enter, all_gathered), "leave": (sharing.leave, all_scattered)}
    elif sharing.groups.context is group:
        kinds |= {"over_context": (sharing.over_context, all_gathered)}
        summed = sharing.sum_over_context(torch.tensor([1 + index]))
        assert summed.tolist() == [of * (of + 1) // 2]
    distances: dict[str, float] = {}
    for name, (run, written) in kinds.items():
        mine, all_x = every[index].clone().requires_grad_(), every.clone().requires_grad_()
        pulls = [
            torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in written(every)
        ]
        wanted = written(all_x)
        y = run(mine)
        d_x = torch.autograd.grad((y * pulls[index]).sum(), mine)[0]
        total = sum((w * pull).sum() for w, pull in zip(wanted, pulls, strict=True))
        (d_all,) = torch.autograd.grad(total, all_x)  # type: ignore[arg-type]
        distances[name] = apart(y.detach(), wanted[index].detach())
        distances[f"{name}'s derivative"] = apart(d_x, d_all[index])
    return distances


def run(rank: int, folder: Path) -> None:
    """One of the four processes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
    for ranks in ((0, 1), (2, 3), (0, 2), (1, 3), (0, 1, 2, 3)):
        made = dist.new_group(list(ranks))
        assert made is not None
        groups[ranks] = made
    told: dict[str, dict[str, Any]] = {}
    pairs = (Layout(data=1, tensor=2), Layout(data=1, context=2))
    for ranks, layout in (
        ((0, 1) if rank < 2 else (2, 3), pairs[rank // 2]),
        ((0, 1, 2, 3), Layout(data=1, tensor=2, context=2)),
    ):
        place = layout.place(rank - ranks[0])
        neighbours = [r for r in ranks if layout.place(r - ranks[0]).context == place.context]
        across = [r for r in ranks if layout.place(r - ranks[0]).tensor == place.tensor]
        sharing = Sharing(
            part_of(layout, place, stages=[(0, 1, 2)], hosted=[FAMILIES]),
            ParallelGroups(
                tensor=groups[tuple(neighbours)] if layout.tensor > 1 else None,
                context=groups[tuple(across)] if layout.context > 1 else None,
            ),
        )
        here = told[str(layout)] = {c: decoder_case(c, sharing, groups[ranks]) for c in CASES}
        here["collectives"] = collective_cases(sharing, groups[ranks])
        if layout == pairs[0]:
            for rows, block in ((1, 1), (5, 2), (100, 100)):
                here[f"loss in chunks of {rows}"] = loss_case(sharing, rows, block)
    (folder / f"rank-{rank}.json").write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    # Forked, as four starts of Python would take longer than all that they do.
    start_processes(run, (Path(sys.argv[1]),), nprocs=4, start_method="fork")
