"""The training loop: one visible path from a config to a trained, saved, evaluated model.

Per step: the order says which families have a slot; each process runs its micro-batches; gradients
are added up; the whole model's norm is clipped; optimisers move what has a gradient. A signal or a
file in `triggers/` ends the run after the step, saved. Its parts come from `assembly.py`.
Read next: `engines/torch.py`.
"""

import json
import time
from contextlib import ExitStack
from typing import Any

import torch

from ..data.packing import IGNORED
from ..data.stream import StepBatch
from ..model.attention import attention_choice
from .assembly import Trainer, start
from .checkpoint import CheckpointWriter, RunState
from .config import RunConfig
from .console import say
from .engines.choice import open_engine
from .errors import Preempted
from .evaluation import heldout_sums
from .leaving import EXIT, SAVE, Leaving
from .metrics import LanguageSums, Meter, MetricsLog, console_line, language_rows
from .micro_batches import StepWork
from .profiling import Profile, part
from .routing import StepRouting
from .routing_telemetry import RoutingTelemetry
from .samples import family_samples


def pretrain(config: RunConfig) -> None:
    """Starts or resumes a run and trains it to its last step.

    Raises:
        Preempted: a signal or trigger asked it to leave; it has saved.
    """
    engine = open_engine(config)
    try:
        fit(start(config, engine))
    except Exception as failure:
        # After a failed collective, to part in order may wait for ever for those who are gone.
        if engine.processes.world == 1 or isinstance(failure, Preempted):
            engine.processes.close()
        raise
    engine.processes.close()


def fit(trainer: Trainer) -> None:
    """The loop."""
    config, engine, stream = trainer.config, trainer.engine, trainer.stream
    processes, steps = trainer.processes, config.run.steps
    meter = Meter(config, processes, stream)
    routing = StepRouting(trainer.decoder, processes, engine.layer_sum)
    telemetry = RoutingTelemetry(trainer)
    request: str | None = None
    with ExitStack() as closing:
        # Closed in reverse: signals are heard until the last checkpoint is on disk everywhere.
        leave = Leaving(trainer.folder, processes)
        closing.callback(leave.restore)
        log = None
        closing.enter_context(trainer.lock)
        if processes.leader:
            log = MetricsLog(trainer.folder, config.logging, resumed_at=trainer.step)
            closing.callback(log.close)
            log.write("start", trainer.step, start_row(trainer, meter))
        writer = closing.enter_context(CheckpointWriter(
            trainer.folder, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every,
            resumed_at=trainer.step, rank=processes.rank, world=processes.world,
            timeout_minutes=config.engine.timeout_minutes, nonce=processes.nonce,
        ))  # fmt: skip
        closing.callback(stream.close)
        profile = Profile(trainer.decoder, trainer.folder, config.debug.profile * processes.leader,
                          steps - trainer.step, processes.device)  # fmt: skip
        closing.callback(profile.close)
        while trainer.step < steps:
            started = time.perf_counter()
            with part("data wait"):
                batch = stream.read(0) if config.debug.overfit else stream.batch(trainer.step)
            tokens = run_micro_batches(trainer, batch, meter.sums, routing, telemetry)
            routing.gather(trainer.step)
            result = engine.update(trainer.step, routing.touched(batch.families))
            routing.move()
            trainer.step += 1
            trainer.tokens_seen += tokens
            meter.add(time.perf_counter() - started, tokens)
            profile.step()

            done, request = trainer.step == steps, leave.request()
            leaving = request not in (None, SAVE) and not done
            save = done or request or trainer.step % config.checkpoint.every == 0
            if save or trainer.step % config.logging.every == 0:
                row = meter.row(trainer.manifest, steps - trainer.step)
                row |= {"learning_rate": result.rate, "gradient_norm": result.norm}
                row |= {"tokens_seen": trainer.tokens_seen} | telemetry.row()
                if log:
                    log.write("train", trainer.step, row)
                    say(console_line(trainer.step, steps, row))
            if save:
                writer.save(engine.pieces(), run_state(trainer, meter))
            if leaving:
                break
            telemetry.write(log, done=done)
            every = config.evaluation.every
            if done or (every and trainer.step % every == 0):
                evaluate_in_loop(trainer, log)
            every = config.logging.samples_every
            if log and every and (done or trainer.step % every == 0):
                write_samples(trainer)
        writer.wait()
        # A process that leaves early would take the others' save with it.
        processes.barrier()
    if trainer.step < steps:
        raise Preempted(trainer.step, request or EXIT)


def run_micro_batches(
    trainer: Trainer, batch: StepBatch, sums: LanguageSums, routing: StepRouting,
    telemetry: RoutingTelemetry,
) -> int:  # fmt: skip
    """Forward and backward over this process's share of a step.

    Returns:
        The global batch's tokens, ignored targets included.
    """
    config, engine, place = trainer.config, trainer.engine, trainer.engine.place
    kept = sum(int((m.targets_BT != IGNORED).sum()) for m in batch.micro_batches)
    size = sum(m.inputs_BT.numel() for m in batch.micro_batches)
    # Of the processes that read the same slots one counts them.
    counts = not (place.tensor or place.context or place.pipeline)
    told = torch.tensor([kept * counts, size * counts], dtype=torch.float64)
    totals = trainer.processes.sum(told.to(trainer.processes.device))
    predicted, size = int(totals[0]), int(totals[1])
    work = StepWork(
        batch.micro_batches, keyed=(config.run.seed, trainer.step), predicted=predicted, size=size,
        z_weight=config.optim.z_loss, token_bytes=trainer.token_bytes, sums=sums,
        counters=(routing.add, telemetry.add), autocast=trainer.processes.autocast,
    )  # fmt: skip
    with torch.autograd.set_detect_anomaly(config.debug.anomaly, check_nan=True):
        engine.forward_backward(work)
    return size


def start_row(trainer: Trainer, meter: Meter) -> dict[str, Any]:
    """What every start of a run writes down, so that its history can be read off."""
    environment = json.loads((trainer.folder / "environment.json").read_text(encoding="utf-8"))
    with trainer.processes.autocast():
        attention = attention_choice(trainer.config.model, trainer.processes.device, torch.float32)
    return {
        "precision": trainer.processes.precision,
        "engine": trainer.config.engine.name,
        "layout": str(trainer.engine.layout),
        "processes": trainer.processes.world,
        "device": trainer.processes.device.type,
        "attention": str(attention),
        "peak_tflops": meter.peak / 1e12,
        "peak_from": meter.peak_from,
        "commit": environment["git_commit"],
        "time": environment["written"],
    }


def evaluate_in_loop(trainer: Trainer, log: MetricsLog | None) -> None:
    """Bits per byte on held-out documents, told and logged."""
    config = trainer.config
    by_language = heldout_sums(
        trainer.scoring, trainer.storage, trainer.manifest, trainer.token_bytes,
        sequence_length=config.data.sequence_length,
        rows=config.evaluation.rows, tokens_per_language=config.evaluation.tokens_per_language,
    )  # fmt: skip
    rows = language_rows(by_language)
    if log and rows:
        mean = sum(row["bpb"] for row in rows.values()) / len(rows)
        log.write("heldout", trainer.step, {"mean_bpb": mean, "languages": rows})
        best, worst = (
            min(rows, key=lambda c: rows[c]["bpb"]),
            max(rows, key=lambda c: rows[c]["bpb"]),
        )
        say(
            f"held out at step {trainer.step}: mean bpb {mean:.3f} over {len(rows)} languages, "
            f"best {best} {rows[best]['bpb']:.3f}, worst {worst} {rows[worst]['bpb']:.3f}"
        )


def write_samples(trainer: Trainer) -> None:
    """One sample a family into samples/."""
    trainer.decoder.eval()
    with trainer.processes.autocast():
        samples = family_samples(
            trainer.decoder, trainer.storage, trainer.manifest, trainer.tokenizer,
            tokens=trainer.config.logging.sample_tokens,
            seed=trainer.config.run.seed + trainer.step,
        )  # fmt: skip
    trainer.decoder.train()
    text = "".join(
        f"[{s['family']}, {s['language']}] {s['prompt']} >>> {s['text']}\n\n" for s in samples
    )
    path = trainer.folder / "samples" / f"step-{trainer.step}.txt"
    path.write_text(text, encoding="utf-8")


def run_state(trainer: Trainer, meter: Meter) -> RunState:
    """What the checkpoint of this moment says beside tensors."""
    return RunState(
        step=trainer.step,
        ledger=trainer.ledger,
        stream=trainer.stream.order.state(trainer.step),
        order_fingerprint=trainer.order_fingerprint,
        tokens_seen=trainer.tokens_seen,
        seconds=trainer.seconds_before + meter.training_seconds,
        origin=trainer.origin,
    )
