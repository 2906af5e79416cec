"""Which layers each piece of a pipeline runs: the contiguous split whose dearest piece is cheapest.

A run measures its layers where one process runs them whole, a plan counts their products.
Checkpoints know nothing of it. Read next: `engines/pipeline.py`.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf

import torch
from torch import Tensor

from ..model.accounting import layer_flops_per_token
from ..model.collectives import Sharing
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..model.layout import Layout
from ..model.objectives import next_token_loss
from ..model.part import Part
from ..model.routers import FamilySegment
from .config import RunConfig
from .console import say
from .engines.processes import Processes

Stages = tuple[tuple[int, ...], ...]
"""Layer numbers of each piece of the pipeline."""

MEASURED = 0.15
"""Seconds that each sort of layer is measured, at most, once it has run three times."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a micro-batch costs, in any one unit."""

    layers: tuple[float, ...]
    first: float
    """Of the embedding."""
    last: float
    """Of the final norm, the head and its loss."""


def split_layers(
    costs: Sequence[float], first_cost: float, last_cost: float, pieces: int
) -> Stages:
    """Contiguous pieces, one layer each at least, whose dearest costs least.

    Of several such splits the one whose pieces are most alike (least sum of squares).

    Args:
        costs: of each layer.
        first_cost, last_cost: what the first and last piece do beside their layers.
        pieces: how many; no more than layers.
    """
    L = len(costs)
    before = [0.0, *accumulate(costs)]

    def cost(piece: int, start: int, stop: int) -> float:
        more = first_cost * (piece == 0) + last_cost * (piece == pieces - 1)
        return before[stop] - before[start] + more

    def best(worth: Callable[[float, float], float]) -> tuple[float, list[int]]:
        """The least of what `worth` makes of the pieces before and the next, and its cuts."""
        worths, cuts = [0.0] + [inf] * L, [[0] for _ in range(L + 1)]
        for piece in range(pieces):
            # Of layers 0 to stop, cut so that each piece so far has one at least.
            found = [
                min(
                    ((worth(worths[start], cost(piece, start, stop)), start)
                     for start in range(piece, stop)),
                    default=(inf, 0),
                )
                for stop in range(L + 1)
            ]  # fmt: skip
            cuts = [[*cuts[start], stop] for stop, (_, start) in enumerate(found)]
            worths = [value for value, _ in found]
        return worths[L], cuts[L]

    dearest, _ = best(max)
    _, cuts = best(lambda sofar, more: sofar + more**2 if more <= dearest else inf)
    return tuple(tuple(range(start, stop)) for start, stop in pairwise(cuts))


def cut_stages(sizes: Sequence[int]) -> Stages:
    """Layer numbers of pieces of so many layers."""
    bounds = [0, *accumulate(sizes)]
    return tuple(tuple(range(start, stop)) for start, stop in pairwise(bounds))


def counted_costs(config: ModelConfig, families: Sequence[str], sequence_length: int) -> Costs:
    """Products of a token; looking up an embedding is none."""
    layers = [
        layer_flops_per_token(config, layer, families, sequence_length) for layer in config.layers
    ]
    return Costs(tuple(map(float, layers)), 0.0, 2.0 * config.hidden_size * config.vocab_size)


def planned_stages(
    config: ModelConfig, families: Sequence[str], layout: Layout, sequence_length: int
) -> Stages:
    """The pieces by `engine.layout.stages`, or by counted products."""
    if layout.stages:
        return cut_stages(layout.stages)
    costs = counted_costs(config, families, sequence_length)
    return split_layers(costs.layers, costs.first, costs.last, layout.pipeline * layout.virtual)


def chosen_stages(
    config: RunConfig, families: Sequence[str], layout: Layout, processes: Processes
) -> Stages:
    """The pieces of a run, the same on every process.

    Where one process runs layers whole the leader measures them; where they are shared out, their
    products are counted.
    """
    whole = layout.tensor == layout.context == layout.expert == 1
    if layout.pipeline == 1 or layout.stages or not whole:
        stages = planned_stages(config.model, families, layout, config.data.sequence_length)
        how = "by engine.layout.stages" if layout.stages else "by products"
    else:
        told = ""
        if processes.leader:
            costs = measured_costs(config, families, processes)
            told = json.dumps([costs.layers, costs.first, costs.last])
        layers, first, last = json.loads(processes.leader_says(told))
        stages = split_layers(layers, first, last, layout.pipeline * layout.virtual)
        how = "by measured cost"
    if processes.leader and layout.pipeline > 1:
        sizes = ", ".join(str(len(stage)) for stage in stages)
        say(f"pipeline: pieces of {sizes} layers {how}")
    return stages


def measured_costs(config: RunConfig, families: Sequence[str], processes: Processes) -> Costs:
    """Seconds of forward and backward over a micro-batch, of each layer and of both ends.

    Each sort of layer is made once, with random weights and one family's experts.
    """
    model, device = config.model, processes.device
    rows, T = config.engine.micro_slots * config.data.slot_sequences, config.data.sequence_length
    every = config.engine.recompute
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        tokens_BT = torch.randint(0, model.vocab_size, (rows, T), device=device)
        batch = _Batch(tokens_BT, (FamilySegment(families[0], 0, rows),))

        def measure(layers: tuple[int, ...], *, first: bool = False, last: bool = False) -> float:
            part = Part(layers=layers, first=first, last=last, families=frozenset(families[:1]))
            with torch.device(device):
                decoder = Decoder(model, families, Sharing(part))
            for parameter in decoder.parameters():
                torch.nn.init.normal_(parameter, std=model.init_std)
            decoder.recompute = every
            return _seconds(lambda: batch.run(decoder, processes), device)

        by_sort: dict[object, float] = {}
        layers = []
        for number, plan in enumerate(model.layers):
            sort = plan, bool(every) and number % every == 0
            if sort not in by_sort:
                by_sort[sort] = measure((number,))
            layers.append(by_sort[sort])
        return Costs(tuple(layers), measure((), first=True), measure((), last=True))


@dataclass(frozen=True, slots=True)
class _Batch:
    """A micro-batch to measure with."""

    tokens_BT: Tensor
    segments: tuple[FamilySegment, ...]

    def run(self, decoder: Decoder, processes: Processes) -> None:
        """Forward and backward through a part of a decoder."""
        hidden_BTD, part = None, decoder.sharing.part
        if not part.first:
            shape = *self.tokens_BT.shape, decoder.config.hidden_size
            hidden_BTD = torch.ones(shape, device=self.tokens_BT.device, requires_grad=True)
        documents_BT = torch.zeros_like(self.tokens_BT)
        with processes.autocast():
            out_BTD = decoder(self.tokens_BT, documents_BT, self.segments, hidden_BTD=hidden_BTD)
            if part.last and decoder.final_norm is not None:
                out_BTD = decoder.final_norm(out_BTD)
                weight_VD = decoder.head_weight_VD
                out_BTD, _ = next_token_loss(out_BTD, weight_VD, self.tokens_BT)
        out_BTD.sum().backward()


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """The least time of a few runs after the first."""

    def timed() -> float:
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    timed()
    times = [timed() for _ in range(2)]
    while sum(times) < MEASURED and len(times) < 10:
        times.append(timed())
    return min(times)
