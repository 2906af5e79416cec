"""The training loop: one visible path from a config to a trained, saved, evaluated model.

Per step: the order says which families have a slot; each process runs its micro-batches; gradients
are added up; the whole model's norm is clipped; optimisers move what has a gradient. A signal or a
file in `triggers/` ends the run after the step, saved. Its parts come from `assembly.py`.
Read next: `engines/torch.py`.
"""

import json
import math
import time
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..data.packing import IGNORED
from ..data.stream import MicroBatch, StepBatch
from ..model.attention import attention_choice
from ..model.decoder import DecoderExtras
from ..model.noise import row_keys
from ..model.objectives import next_token_loss
from ..model.routers import FamilySegment
from .assembly import Trainer, start
from .checkpoint import CheckpointWriter, RunState
from .config import RunConfig
from .console import say
from .engines.torch import TorchEngine
from .errors import Preempted
from .evaluation import heldout_sums
from .leaving import EXIT, SAVE, Leaving
from .metrics import LanguageSums, Meter, MetricsLog, console_line, language_rows
from .optimizer import clip_gradients, gradient_norm
from .profiling import Profile, part
from .routing import StepRouting
from .routing_telemetry import RoutingTelemetry
from .run_folder import run_lock
from .samples import family_samples


def pretrain(config: RunConfig) -> None:
    """Starts or resumes a run and trains it to its last step.

    Raises:
        Preempted: a signal or trigger asked it to leave; it has saved.
    """
    engine = TorchEngine(config.engine)
    try:
        fit(start(config, engine))
    finally:
        engine.close()


def fit(trainer: Trainer) -> None:
    """The loop."""
    config, engine, stream = trainer.config, trainer.engine, trainer.stream
    steps = config.run.steps
    parameters = list(trainer.decoder.parameters())
    meter = Meter(config, engine, stream)
    routing = StepRouting(trainer.decoder, engine)
    telemetry = RoutingTelemetry(trainer)
    request: str | None = None
    with ExitStack() as closing:
        # Closed in reverse: signals are heard until the last checkpoint is on disk everywhere.
        leave = Leaving(trainer.folder, engine)
        closing.callback(leave.restore)
        log = writer = None
        if engine.leader:
            closing.enter_context(run_lock(trainer.folder))
            log = MetricsLog(trainer.folder, config.logging, resumed_at=trainer.step)
            closing.callback(log.close)
            log.write("start", trainer.step, start_row(trainer, meter))
            writer = CheckpointWriter(
                trainer.folder,
                keep=config.checkpoint.keep,
                keep_every=config.checkpoint.keep_every,
                resumed_at=trainer.step,
            )
            closing.callback(writer.close)
        closing.callback(stream.close)
        profile = Profile(trainer.decoder, trainer.folder, config.debug.profile * engine.leader,
                          steps - trainer.step, engine.device)  # fmt: skip
        closing.callback(profile.close)
        while trainer.step < steps:
            started = time.perf_counter()
            with part("data wait"):
                batch = stream.read(0) if config.debug.overfit else stream.batch(trainer.step)
            tokens = run_micro_batches(trainer, batch, meter.sums, routing, telemetry)
            routing.gather(trainer.step)
            engine.reduce_gradients(trainer.decoder, routing.touched(batch.families))
            norm = gradient_norm(parameters)
            check_norm(norm.item(), trainer.step)
            clip_gradients(parameters, norm, config.optim.clip_norm)
            rate = trainer.optimizers.step(trainer.step)
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
                row |= {"learning_rate": rate, "gradient_norm": norm.item()}
                row |= {"tokens_seen": trainer.tokens_seen} | telemetry.row()
                if log:
                    log.write("train", trainer.step, row)
                    say(console_line(trainer.step, steps, row))
            if save and writer:
                writer.save(trainer.decoder, trainer.optimizers, run_state(trainer, meter))
            if leaving:
                break
            telemetry.write(log, done=done)
            every = config.evaluation.every
            if done or (every and trainer.step % every == 0):
                evaluate_in_loop(trainer, log)
            every = config.logging.samples_every
            if log and every and (done or trainer.step % every == 0):
                write_samples(trainer)
        if writer:
            writer.wait()
        # A process that leaves early would take the others' save with it.
        engine.barrier()
    if trainer.step < steps:
        raise Preempted(trainer.step, request or EXIT)


def check_norm(norm: float, step: int) -> None:
    """Stops before a gradient that is no number reaches the weights.

    Raises:
        FloatingPointError: it is infinite or NaN.
    """
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the gradient's norm is {norm} at step {step + 1}: resume the last checkpoint with a "
            "lower optim.learning_rate, or with debug.anomaly=true to find the operation"
        )


def run_micro_batches(
    trainer: Trainer, batch: StepBatch, sums: LanguageSums, routing: StepRouting,
    telemetry: RoutingTelemetry,
) -> int:  # fmt: skip
    """Forward and backward over this process's share of a step.

    Losses are divided by the tokens of the whole global batch (those of prediction by the predicted
    ones, those of routers by all), so that a gradient means the same wherever it was made.

    Returns:
        The global batch's tokens, ignored targets included.
    """
    config, engine, decoder = trainer.config, trainer.engine, trainer.decoder
    kept = sum(int((m.targets_BT != IGNORED).sum()) for m in batch.micro_batches)
    size = sum(m.inputs_BT.numel() for m in batch.micro_batches)
    totals = engine.sum(torch.tensor([kept, size], dtype=torch.float64, device=engine.device))
    predicted, size = int(totals[0]), int(totals[1])
    with torch.autograd.set_detect_anomaly(config.debug.anomaly, check_nan=True):
        for micro in batch.micro_batches:
            inputs, targets, documents = (
                t.to(engine.device, non_blocking=True)
                for t in (micro.inputs_BT, micro.targets_BT, micro.documents_BT)
            )
            segments = [FamilySegment(*segment) for segment in micro.segments]
            extras = DecoderExtras()
            keys = row_keys(config.run.seed, trainer.step, global_rows(micro).to(engine.device))
            with engine.autocast():
                hidden = decoder(inputs, documents, segments, keys_B=keys, extras=extras)
                with part("loss"):
                    loss, nll_BT = next_token_loss(
                        hidden, decoder.head_weight_VD, targets, z_weight=config.optim.z_loss
                    )
            loss = loss / predicted
            if extras.auxiliary is not None:
                loss = loss + extras.auxiliary / size
            loss.backward()
            routing.add(extras, inputs.shape[1])
            telemetry.add(micro.languages_B, extras, inputs.shape[1])
            predicted_BT = targets != IGNORED
            sums.add(
                micro.languages_B,
                nll_BT,
                predicted_BT,
                trainer.token_bytes[targets.clamp_min(0)] * predicted_BT,
            )
    return size


def global_rows(micro: MicroBatch) -> Tensor:
    """Each row's place among those of the global batch, int64."""
    return torch.tensor(
        [slot.number * len(slot.sequences) + i
         for slot in micro.slots for i in range(len(slot.sequences))]
    )  # fmt: skip


def start_row(trainer: Trainer, meter: Meter) -> dict[str, Any]:
    """What every start of a run writes down, so that its history can be read off."""
    environment = json.loads((trainer.folder / "environment.json").read_text(encoding="utf-8"))
    with trainer.engine.autocast():
        attention = attention_choice(trainer.config.model, trainer.engine.device, torch.float32)
    return {
        "precision": trainer.engine.precision,
        "processes": trainer.engine.world,
        "device": trainer.engine.device.type,
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
        trainer.decoder, trainer.engine, trainer.storage, trainer.manifest,
        trainer.token_bytes, sequence_length=config.data.sequence_length,
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
    with trainer.engine.autocast():
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
