"""What routers do, told in metrics: on the batch, and on the same sentences in every language.

On the batch, sums by language are kept on each process and added up once a row, so that every
number is that of the global batch. Rows of kind `train` hold scalars by layer under `routing`; rows
of kind `routing` hold tables too, as lists, which metrics.jsonl keeps and the sinks do not see.
Shapes: B rows of a batch, L languages, S sentences, E experts, F families, C columns.
Read next: `parallel_sentences.py`, `report_routing.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..model.decoder import Decoder, DecoderExtras
from ..model.divergence import routing_divergence
from ..model.routers import FamilyRouter, TokenRouter
from .assembly import Trainer
from .console import say
from .engines.processes import Processes
from .metrics import MetricsLog
from .parallel_sentences import ParallelSentences, open_sentences

Table = dict[str, Any]

COVERED = 0.8
"""An expert's languages are counted until they make up this share of its choices."""
TAG_READERS = ("prior", "hybrid")
"""Routers that choose otherwise without a tag, in evaluation too."""
TOKENS, HEAD_RIGHT, FIRST = 0, 1, 2
"""Columns of the sums before those of the layers."""


@dataclass(frozen=True, slots=True)
class LayerColumns:
    """Where a layer's numbers stand in a row of sums."""

    name: str
    """`layer_N`, from 0."""
    router: TokenRouter | None
    """Knows groups and targets, but has no rows; None where there is but a gate."""
    gated: bool
    experts: slice
    """A column an expert."""
    entropy: int
    gate: int


class RoutingSums:
    """Statistics of token routers and gates, summed by language or by another index of rows."""

    def __init__(
        self, decoder: Decoder, rows: int, device: torch.device,
        of: Literal["experts_BE", "probabilities_BE"] = "experts_BE",
    ) -> None:  # fmt: skip
        """
        Args:
            rows: how many rows there are to sum into.
            of: what is summed for each expert: choices, or the full softmax.
        """
        self.of = of
        # The other stages of a pipeline see the same tokens.
        self.counts = decoder.sharing.part.first
        self.layers: dict[int, LayerColumns] = {}
        at, gated = FIRST, decoder.config.routing.gate
        for number, router in measured_layers(decoder):
            stop = at + (0 if router is None else len(router.groups_E))
            self.layers[number] = LayerColumns(
                f"layer_{number}", router, gated, slice(at, stop), stop, stop + 1
            )
            at = stop + 2
        self.has_head = decoder.family_head is not None
        self.values_LC = torch.zeros(rows, at, dtype=torch.float64, device=device)

    @torch.no_grad()
    def rows(self, extras: DecoderExtras, rows: int, positions: int) -> Tensor:
        """A batch's numbers, row by row: [B, C]; zeros for layers that are not here."""
        row_BC = torch.zeros(
            rows, self.values_LC.shape[1], dtype=torch.float64, device=self.values_LC.device
        )
        row_BC[:, TOKENS] = positions * self.counts
        if extras.head_right is not None:
            row_BC[:, HEAD_RIGHT] = extras.head_right.double()
        for number, left in extras.layers.items():
            layer = self.layers[number]
            if left.statistics is not None:
                row_BC[:, layer.experts] = getattr(left.statistics, self.of).double()
                row_BC[:, layer.entropy] = left.statistics.entropy_B.double()
            if left.gate_B is not None:
                row_BC[:, layer.gate] = left.gate_B.double()
        return row_BC

    def add(self, index_B: Tensor, row_BC: Tensor) -> None:
        """Adds them to the rows that `index_B` names."""
        self.values_LC.index_add_(0, index_B.to(self.values_LC.device), row_BC)

    def take(self, engine: Processes) -> Tensor:
        """The sums of all processes, on the CPU; begins anew."""
        summed_LC = engine.sum(self.values_LC).cpu()
        self.values_LC = torch.zeros_like(self.values_LC)
        return summed_LC


def measured_layers(decoder: Decoder) -> Iterator[tuple[int, TokenRouter | None]]:
    """The layers with a token router or a gate, those on other stages of a pipeline too."""
    routing = decoder.config.routing
    for number, plan in enumerate(decoder.config.layers):
        if not plan.expert_width:
            continue
        if plan.router != "family":
            yield number, TokenRouter(0, decoder.families, plan.router, routing)
        elif routing.gate:
            yield number, None


def max_violation(load_E: Tensor, target_E: Tensor) -> float:
    """MaxVio = max_e load_e / target_e - 1 (Wang et al. 2024, arXiv 2408.15664).

    Args:
        load_E: choices of each expert.
        target_E: what is wanted of each, in any unit; an expert that should have none is left out.
    """
    wanted = target_E > 0
    share_E, target_E = load_E / load_E.sum().clamp_min(1), target_E / target_E.sum()
    return float((share_E[wanted] / target_E[wanted]).max()) - 1


def languages_covering(choices_LE: Tensor, share: float = COVERED) -> Tensor:
    """How many languages, the largest first, make up a share of each expert's choices; int64 [E].

    0 where it had none. NLLB logs the median of this over experts as `median_prefix_count`.
    """
    total_E = choices_LE.sum(0)
    sorted_LE = choices_LE.sort(0, descending=True).values
    short_LE = sorted_LE.cumsum(0) < share * total_E
    return torch.where(total_E > 0, short_LE.sum(0) + 1, 0)


def batch_scalars(sums: RoutingSums, values_LC: Tensor, families_L: Tensor) -> Table:
    """What a `train` row says: numbers by layer.

    Args:
        sums: says what the columns are.
        values_LC: sums by language, of all processes.
        families_L: the family of each language, as an index.
    """
    row: dict[str, Any] = {}
    tokens_L = values_LC[:, TOKENS]
    tokens = float(tokens_L.sum())
    dropped = 0.0

    def put(key: str, layer: LayerColumns, value: float) -> None:
        row.setdefault(key, {})[layer.name] = value

    for layer in sums.layers.values():
        if layer.router is not None:
            choices_LE = values_LC[:, layer.experts]
            load_E = choices_LE.sum(0)
            target_LE = layer.router.targets_BE(families_L.to(layer.router.groups_E.device))
            target_E = (tokens_L[:, None] * target_LE.cpu().double()).sum(0)
            covering_E = languages_covering(choices_LE)
            put("entropy", layer, float(values_LC[:, layer.entropy].sum()) / tokens)
            put("max_vio", layer, max_violation(load_E, target_E))
            put("max_vio_uniform", layer, max_violation(load_E, torch.ones_like(load_E)))
            put("languages_per_expert", layer, float(covering_E[covering_E > 0].double().median()))
            put("experts_without_tokens", layer, int((load_E == 0).sum()))
            dropped += tokens * layer.router.config.top_k - float(load_E.sum())
        if layer.gated:
            put("gate", layer, float(values_LC[:, layer.gate].sum()) / tokens)
    if any(layer.router is not None for layer in sums.layers.values()):
        row["dropped"] = int(dropped)
    if sums.has_head:
        row["head_accuracy"] = float(values_LC[:, HEAD_RIGHT].sum()) / tokens
    return row


def batch_tables(
    sums: RoutingSums, values_LC: Tensor, codes: Sequence[str], family_of: Mapping[str, str]
) -> Table:
    """What a `routing` row says of the batches: loads by family, and numbers by language.

    Args:
        sums: says what the columns are.
        values_LC: sums by language, of all processes.
        codes: the languages.
        family_of: the family of each.
    """
    tokens_L = values_LC[:, TOKENS]
    members: dict[str, list[int]] = {}
    for index, code in enumerate(codes):
        if tokens_L[index]:
            members.setdefault(family_of[code], []).append(index)
    table: dict[str, Any] = {"languages": list(codes), "tokens": [int(t) for t in tokens_L]}
    if sums.has_head:
        table["head_accuracy"] = _means(values_LC[:, HEAD_RIGHT], tokens_L)
    for layer in sums.layers.values():
        if layer.router is not None:
            choices_LE = values_LC[:, layer.experts]
            table["groups"] = _groups(layer.router)
            by_family = {f: choices_LE[rows].sum(0) for f, rows in sorted(members.items())}
            parts: dict[str, Any] = {
                "load": {f: _rounded(load_E / load_E.sum()) for f, load_E in by_family.items()},
                "languages_covering": languages_covering(choices_LE).tolist(),
                "languages_reaching": (choices_LE > 0).sum(0).tolist(),
                "entropy": _means(values_LC[:, layer.entropy], tokens_L),
            }
            for key, value in parts.items():
                table.setdefault(key, {})[layer.name] = value
        if layer.gated:
            gates = _means(values_LC[:, layer.gate], tokens_L)
            table.setdefault("gate", {})[layer.name] = gates
    return table


def parallel_tables(
    decoder: Decoder, engine: Processes, sentences: ParallelSentences, rows: int
) -> Table:
    """What a `routing` row says of parallel sentences, with the families' tags and without.

    Without a tag, `prior` goes by its head's guess alone, so that the difference is the tag's own
    effect. Only models with a router that reads tags, and without family routers, are run without.
    """
    table: dict[str, Any] = {
        "pivot": sentences.pivot,
        "languages": list(sentences.languages),
        "sentences": len(sentences.ids),
        "tokens": [sum(map(len, language)) for language in sentences.tokens],
        "with_tag": _parallel_table(decoder, engine, sentences, rows, tagged=True),
    }
    routers = [layer.feed_forward.router for layer in decoder.layers]
    if any(isinstance(r, TokenRouter) and r.name in TAG_READERS for r in routers) and not any(
        isinstance(r, FamilyRouter) for r in routers
    ):
        table["without_tag"] = _parallel_table(decoder, engine, sentences, rows, tagged=False)
    return table


@torch.no_grad()
def _parallel_table(
    decoder: Decoder, engine: Processes, sentences: ParallelSentences, rows: int, *, tagged: bool
) -> Table:
    L, S = len(sentences.languages), len(sentences.ids)
    sums = RoutingSums(decoder, L * S, engine.device, of="probabilities_BE")
    was_training = decoder.training
    decoder.eval()
    for number, (index_B, tokens_BT, segments) in enumerate(sentences.batches(rows, tagged=tagged)):
        if number % engine.world != engine.rank:
            continue
        tokens_BT = tokens_BT.to(engine.device)
        extras = DecoderExtras()
        with engine.autocast():
            decoder(tokens_BT, torch.zeros_like(tokens_BT), segments, extras=extras)
        sums.add(index_B, sums.rows(extras, *tokens_BT.shape))
    decoder.train(was_training)
    values_LSC = sums.take(engine).view(L, S, -1)
    tokens_L = values_LSC[..., TOKENS].sum(1)
    pivot = sentences.languages.index(sentences.pivot)
    others = [i for i in range(L) if i != pivot]
    table: dict[str, Any] = {"by_language": {}}

    def put(key: str, layer: LayerColumns, values_L: Tensor) -> None:
        table.setdefault(key, {})[layer.name] = float(values_L[others].mean())
        table["by_language"].setdefault(key, {})[layer.name] = _rounded(values_L)

    for layer in sums.layers.values():
        if layer.router is not None:
            q_LSE = values_LSC[..., layer.experts]
            put("divergence", layer, routing_divergence(q_LSE[pivot], q_LSE).mean(1))
            put("entropy", layer, values_LSC[..., layer.entropy].sum(1) / tokens_L)
        if layer.gated:
            put("gate", layer, values_LSC[..., layer.gate].sum(1) / tokens_L)
    return table


class RoutingTelemetry:
    """The loop's part: adds up micro-batches, gives a row its scalars, writes tables when due."""

    def __init__(self, trainer: Trainer) -> None:
        """
        Raises:
            UserError: the parallel sentences do not fit the run.
        """
        config, decoder, engine = trainer.config.logging, trainer.decoder, trainer.processes
        self.trainer = trainer
        self.codes = trainer.stream.languages
        self.family_of = {code: e.family for code, e in trainer.manifest.languages.items()}
        number = {name: i for i, name in enumerate(decoder.families)}
        self.families_L = torch.tensor([number[self.family_of[code]] for code in self.codes])
        self.since_row = RoutingSums(decoder, len(self.codes), engine.device)
        self.since_table = RoutingSums(decoder, len(self.codes), engine.device)
        self.table_from = trainer.step
        self.sentences: ParallelSentences | None = None
        if config.parallel_sentences and self.since_row.layers:
            self.sentences = open_sentences(trainer)
        elif config.parallel_sentences and engine.leader:
            say(
                f"logging.parallel_sentences={config.parallel_sentences} finds nothing to measure: "
                "this model's experts follow from the family alone (router=family, no gate)"
            )

    def add(self, languages_B: Tensor, extras: DecoderExtras, positions: int) -> None:
        """Adds a micro-batch of so many positions a row."""
        if self.since_row.layers:
            row_BC = self.since_row.rows(extras, len(languages_B), positions)
            self.since_row.add(languages_B, row_BC)
            self.since_table.add(languages_B, row_BC)

    def row(self) -> Table:
        """What a `train` row says about the steps since the last one; nothing without routers."""
        if not self.since_row.layers:
            return {}
        summed_LC = self.since_row.take(self.trainer.processes)
        return {"routing": batch_scalars(self.since_row, summed_LC, self.families_L)}

    def write(self, log: MetricsLog | None, *, done: bool) -> None:
        """Writes a `routing` row where one is due: every so many steps, and after the last."""
        trainer, every = self.trainer, self.trainer.config.logging.routing_every
        if not self.since_row.layers or not (done or (every and trainer.step % every == 0)):
            return
        summed_LC = self.since_table.take(trainer.processes)
        row: dict[str, Any] = {
            "steps": trainer.step - self.table_from,
            "batch": batch_tables(self.since_table, summed_LC, self.codes, self.family_of),
        }
        self.table_from = trainer.step
        if self.sentences is not None:
            rows = trainer.config.evaluation.rows
            row["parallel"] = parallel_tables(
                trainer.decoder, trainer.processes, self.sentences, rows
            )
        if log:
            log.write("routing", trainer.step, row)


def _groups(router: TokenRouter) -> list[tuple[str, int]]:
    """Owner and size of each group of experts, in their order; "" owns the shared ones."""
    names = [*router.families, ""]
    return [(n, s) for n, s in zip(names, router.group_sizes, strict=True) if s]


def _means(sums_L: Tensor, tokens_L: Tensor) -> list[float | None]:
    return [
        float(f"{s / t:.5g}") if t else None
        for s, t in zip(sums_L.tolist(), tokens_L.tolist(), strict=True)
    ]


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
