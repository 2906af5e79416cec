"""Run by test_pipeline.py on each of two processes: FOLDER; writes what each compared."""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from xylem.data.order import SequenceId, Slot
from xylem.data.packing import IGNORED
from xylem.data.stream import MicroBatch
from xylem.model.collectives import Sharing
from xylem.model.config import LayerPlan, ModelConfig, RoutingConfig
from xylem.model.decoder import Decoder, build_decoder
from xylem.model.layout import Layout
from xylem.model.objectives import next_token_loss
from xylem.model.part import part_of
from xylem.model.routers import FamilySegment
from xylem.train.compose import compose_config
from xylem.train.config import EngineConfig
from xylem.train.engines.pipeline import Pipeline, _AlternatingStage
from xylem.train.engines.processes import Processes
from xylem.train.metrics import LanguageSums
from xylem.train.micro_batches import StepWork
from xylem.train.routing import StepRouting
from xylem.train.routing_telemetry import RoutingSums
from xylem.train.stages import Stages, chosen_stages

FAMILIES = ("alpha", "beta")
CODES = ("aaa_Latn", "bbb_Latn")
ROWS, T, VOCABULARY = 2, 12, 61
MODEL = ModelConfig(
    vocab_size=VOCABULARY, hidden_size=16, heads=2, kv_heads=1, head_dim=8, init_std=0.2,
    layer_plan=(
        LayerPlan(trunk_width=16, expert_width=8),
        LayerPlan(trunk_width=24, expert_width=8, router="topk"),
        LayerPlan(trunk_width=16),
        LayerPlan(trunk_width=16, expert_width=8, router="topk"),
    ),
    routing=RoutingConfig(shared_experts=1, balance="bias", sequence_loss=0.5, gate=True),
)  # fmt: skip


def micro_batches(count: int) -> list[MicroBatch]:
    """The same on every process; families take turns."""
    draw = torch.Generator().manual_seed(count)
    batches = []
    for number in range(count):
        tokens = torch.randint(0, VOCABULARY, (ROWS, T + 1), generator=draw)
        targets = tokens[:, 1:].clone()
        targets[0, number % T] = IGNORED
        family = number % 2
        slot = Slot(number, FAMILIES[family], (SequenceId("", 0, 0),) * ROWS)
        batches.append(
            MicroBatch(
                inputs_BT=tokens[:, :-1], targets_BT=targets,
                documents_BT=(torch.arange(T) > 5).long().expand(ROWS, T),
                languages_B=torch.full((ROWS,), family),
                segments=((FAMILIES[family], 0, ROWS),), slots=(slot,),
            )
        )  # fmt: skip
    return batches


class Counted:
    """A step's work over a decoder, and all that it counts."""

    def __init__(self, decoder: Decoder, processes: Processes, count: int) -> None:
        device = torch.device("cpu")
        self.sums = LanguageSums(CODES, device)
        self.routing = StepRouting(decoder, processes, lambda counts: counts)
        self.telemetry = RoutingSums(decoder, len(CODES), device)
        self.work = StepWork(
            micro_batches(count), keyed=(3, 1), predicted=count * (ROWS * T - 1),
            size=count * ROWS * T, z_weight=0.01, token_bytes=torch.ones(VOCABULARY).long(),
            sums=self.sums, counters=(self.routing.add, self._add), autocast=nullcontext,
        )  # fmt: skip

    def _add(self, languages_B: Tensor, extras: Any, positions: int) -> None:
        row_BC = self.telemetry.rows(extras, len(languages_B), positions)
        self.telemetry.add(languages_B, row_BC)


def gradients(decoder: Decoder) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}


def far(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-9))


def compared(processes: Processes, model: ModelConfig, stages: Stages, count: int) -> Any:
    """How far a pipeline is from the whole decoder on one process, and what both counted."""
    whole = build_decoder(model, FAMILIES, seed=5)
    alone = Counted(whole, processes, count)
    for index in range(count):
        hidden = alone.work.forward(whole, index)
        alone.work.loss(hidden, whole.head_weight_VD, index, whole.sharing).backward()
    wanted = gradients(whole)

    layout = Layout(pipeline=2, virtual=len(stages) // 2).resolved(2)
    part = part_of(layout, layout.place(processes.rank), stages=stages, hosted=[set(FAMILIES)])
    decoder = build_decoder(model, FAMILIES, seed=5, sharing=Sharing(part))
    pipeline = Pipeline(
        decoder, stages, layout=layout, group=dist.group.WORLD, processes=processes, rows=ROWS,
        sequence_length=T, sharded=False,
    )  # fmt: skip
    far_off = 0.0
    for _ in range(2):  # a second step finds nothing of the first
        decoder.zero_grad()
        here = Counted(decoder, processes, count)
        pipeline.forward_backward(here.work)
        found = gradients(decoder)
        if model.tied_embeddings:
            dist.all_reduce(found["embed.weight"])
        far_off = max([far_off] + [far(found[name], wanted[name]) for name in found])
    held = {name for name, _ in decoder.named_parameters()} & wanted.keys()
    for values in (here.sums.values, here.telemetry.values_LC):
        processes.sum(values)
    choices = here.routing.choices_FE
    return {
        "gradients": far_off,
        "none missing": found.keys() == held and len(held) > 0,
        "losses": far(here.sums.values, alone.sums.values),
        "telemetry": far(here.telemetry.values_LC, alone.telemetry.values_LC),
        "tokens": bool(here.routing.tokens_F.equal(alone.routing.tokens_F)),
        "choices": all(choices[n].equal(alone.routing.choices_FE[n]) for n in choices),
        "score": scored(pipeline, whole),
        "buffers": buffers(pipeline),
    }


def buffers(pipeline: Pipeline) -> int | None:
    """Distinct tensors that a 1F1B stage receives into."""
    stage = getattr(pipeline._schedule, "_stage", None)
    if stage is None:
        return None
    every = [*stage.args_recv_info.values(), *stage.grad_recv_info.values()]
    return len({id(i.buffer) for infos in every for i in infos if i.buffer is not None})


def turns(micro_batches: int) -> list[list[int]]:
    """The buffer, by number, that each stage of four receives each micro-batch's input into."""
    like = torch.empty(1, 2, device="meta", requires_grad=True)
    taken = []
    for index in range(1, 4):
        stage = _AlternatingStage(
            torch.nn.Identity(), index, 4, torch.device("cpu"), input_args=like, output_args=like
        )
        stage._stage_meta = stage._user_meta
        stage._setup_forward_recv_info(micro_batches, True)
        buffers = [id(stage.args_recv_info[n][0].buffer) for n in range(micro_batches)]
        taken.append([buffers.index(each) for each in buffers])
    return taken


@torch.no_grad()
def scored(pipeline: Pipeline, whole: Decoder) -> float | None:
    """How far scores of other shapes than the micro-batch's are from the whole decoder's."""
    far_off = None
    for rows, length in ((1, 7), (3, 20)):
        tokens = torch.arange(rows * length).view(rows, length) % VOCABULARY
        documents, segments = torch.zeros_like(tokens), (FamilySegment("beta", 0, rows),)
        nll = pipeline.score(tokens, tokens.roll(-1, 1), documents, segments)
        if pipeline.decoder.sharing.part.last:
            hidden = whole(tokens, documents, segments)
            wanted = next_token_loss(hidden, whole.head_weight_VD, tokens.roll(-1, 1))[1]
            far_off = max(far_off or 0.0, far(nll, wanted))
        else:
            assert not nll.numel()
    return far_off


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    processes = Processes(EngineConfig(threads=1, timeout_minutes=1.0, precision="fp32"))
    untied = replace(MODEL, tied_embeddings=False)
    cut, four = ((0,), (1, 2, 3)), ((0,), (1,), (2,), (3,))
    told: dict[str, Any] = {
        "1f1b": compared(processes, MODEL, cut, 5),
        "two": compared(processes, MODEL, cut, 2),
        "fewer": compared(processes, MODEL, cut, 1),
        "untied": compared(processes, untied, cut, 3),
        "interleaved": compared(processes, MODEL, four, 4),
    }
    settings = (
        "data=default",
        "data.prepared=none",
        "data.corpus=none",
        "data.tokenizer.vocab_size=400",
    )
    config = compose_config((*settings, "run.name=stages"))
    layout = Layout(pipeline=2).resolved(2)
    told["turns"] = turns(5)
    told["stages"] = chosen_stages(config, FAMILIES, layout, processes)
    (folder / f"rank-{processes.rank}.json").write_text(json.dumps(told))
    processes.barrier()
    processes.close()
