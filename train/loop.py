"""The training loop: one visible path from a config to a trained, saved, evaluated model.

Per step: the order says which families have a slot; each process runs its micro-batches; gradients
are added up; the whole model's norm is clipped; optimisers move what has a gradient. A signal or a
file in `triggers/` ends the run after the step, saved. Its parts come from `assembly.py`.
Read next: `engines/torch.py`.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from ..data.manifest import Manifest
from ..data.packing import IGNORED
from ..data.stream import MicroBatch
from ..model.accounting import training_flops_per_token
from ..model.objectives import next_token_loss
from ..model.routers import FamilySegment
from .assembly import Trainer, start
from .checkpoint import (
    CheckpointWriter,
    RunState,
)
from .config import RunConfig
from .console import say
from .engines.torch import TorchEngine
from .errors import Preempted
from .evaluation import heldout_sums
from .leaving import Leaving
from .metrics import (
    LN2,
    Clock,
    LanguageSums,
    MetricsLog,
    console_line,
    family_sums,
    language_rows,
    memory_gib,
)
from .optimizer import clip_gradients, gradient_norm
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
    flops_per_token = training_flops_per_token(config.model, config.data.sequence_length)
    peak, _ = engine.peak_flops()
    log = writer = None
    if engine.leader:
        log = MetricsLog(trainer.folder, config.logging, resumed_at=trainer.step)
        writer = CheckpointWriter(
            trainer.folder, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every
        )
        log.write("start", trainer.step, start_row(trainer))
    leave = Leaving(trainer.folder)
    clock, saved_at, request = Clock(), trainer.step, None
    sums = LanguageSums(stream.languages, engine.device)
    try:
        while trainer.step < steps:
            started = time.perf_counter()
            number = 0 if config.debug.overfit else trainer.step
            batch = stream.read(0) if config.debug.overfit else stream.batch(number)
            tokens = run_micro_batches(trainer, batch, sums)
            slots = stream.order.slot_counts(number)
            engine.reduce_gradients(trainer.decoder, [f for f, n in slots.items() if n])
            norm = gradient_norm(parameters)
            if not math.isfinite(norm.item()):
                raise FloatingPointError(
                    f"the gradient's norm is {norm.item()} at step {trainer.step}: the last "
                    f"checkpoint is that of step {saved_at}; resume it with a lower "
                    "optim.learning_rate, or with debug.anomaly=true to find the operation"
                )
            clip_gradients(parameters, norm, config.optim.clip_norm)
            rate = trainer.optimizers.step(trainer.step)
            trainer.step += 1
            trainer.tokens_seen += tokens
            clock.add(time.perf_counter() - started, tokens)
            if trainer.step % config.logging.every == 0 or trainer.step == steps:
                engine.sum(sums.values)
                speed, step_seconds, waited = clock.read(stream.wait_seconds)
                row = {
                    **loss_rows(sums, trainer.manifest),
                    "learning_rate": rate,
                    "gradient_norm": norm.item(),
                    "tokens_seen": trainer.tokens_seen,
                    "tokens_per_second": speed,
                    "mfu": speed * flops_per_token / (peak * engine.world),
                    "memory_gib": memory_gib(engine.device),
                    "data_wait_share": waited,
                    "step_seconds": step_seconds,
                    "eta_seconds": step_seconds * (steps - trainer.step),
                }
                sums = LanguageSums(stream.languages, engine.device)
                if log:
                    log.write("train", trainer.step, row)
                    say(console_line(trainer.step, steps, row))
            done, request = trainer.step == steps, leave.request(engine)
            every = config.evaluation.every
            if done or (every and trainer.step % every == 0):
                evaluate_in_loop(trainer, log)
            every = config.logging.samples_every
            if log and every and (done or trainer.step % every == 0):
                write_samples(trainer)
            if done or request or trainer.step % config.checkpoint.every == 0:
                if writer:
                    writer.save(trainer.decoder, trainer.optimizers, run_state(trainer, clock))
                saved_at = trainer.step
            if request and request != "save" and not done:
                break
    finally:
        leave.restore()
        stream.close()
        if writer:
            writer.close()
        if log:
            log.close()
    # A process that leaves early would take the others' save with it.
    engine.barrier()
    if trainer.step < steps:
        raise Preempted(trainer.step, request or "triggers/exit")


def run_micro_batches(trainer: Trainer, batch: list[MicroBatch], sums: LanguageSums) -> int:
    """Forward and backward over this process's share of a step.

    Losses are divided by the predicted tokens of the whole global batch, so that a gradient means
    the same wherever it was made.

    Returns:
        The global batch's tokens, ignored targets included.
    """
    config, engine, decoder = trainer.config, trainer.engine, trainer.decoder
    kept = sum(int((m.targets_BT != IGNORED).sum()) for m in batch)
    size = sum(m.inputs_BT.numel() for m in batch)
    totals = engine.sum(torch.tensor([kept, size], dtype=torch.float64, device=engine.device))
    predicted, size = int(totals[0]), int(totals[1])
    with torch.autograd.set_detect_anomaly(config.debug.anomaly, check_nan=True):
        for micro in batch:
            inputs, targets, documents = (
                t.to(engine.device, non_blocking=True)
                for t in (micro.inputs_BT, micro.targets_BT, micro.documents_BT)
            )
            segments = [FamilySegment(*segment) for segment in micro.segments]
            with engine.autocast():
                hidden = decoder(inputs, documents, segments)
                loss, nll_BT = next_token_loss(
                    hidden, decoder.head_weight_VD, targets, z_weight=config.optim.z_loss
                )
            (loss / predicted).backward()
            predicted_BT = targets != IGNORED
            sums.add(
                micro.languages_B,
                nll_BT,
                predicted_BT,
                trainer.token_bytes[targets.clamp_min(0)] * predicted_BT,
            )
    return size


def loss_rows(sums: LanguageSums, manifest: Manifest) -> dict[str, Any]:
    """Loss and bits per byte: of all, by family, by language."""
    by_language = sums.by_language()
    family_of = {code: entry.family for code, entry in manifest.languages.items()}
    nll, tokens, size = (sum(row[i] for row in by_language.values()) for i in range(3))
    return {
        "loss": nll / tokens,
        "bpb": nll / LN2 / max(1.0, size),
        "families": language_rows(family_sums(by_language, family_of)),
        "languages": language_rows(by_language),
    }


def start_row(trainer: Trainer) -> dict[str, Any]:
    """What every start of a run writes down, so that its history can be read off."""
    environment = json.loads((trainer.folder / "environment.json").read_text(encoding="utf-8"))
    return {
        "precision": trainer.engine.precision,
        "processes": trainer.engine.world,
        "device": trainer.engine.device.type,
        "commit": environment["git_commit"],
        "time": environment["written"],
    }


def evaluate_in_loop(trainer: Trainer, log: MetricsLog | None) -> None:
    """Bits per byte on held-out documents, told and logged."""
    config = trainer.config
    by_language = heldout_sums(
        trainer.decoder, trainer.engine, Path(config.data.prepared), trainer.manifest,
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
    samples = family_samples(
        trainer.decoder, Path(trainer.config.data.prepared), trainer.manifest, trainer.tokenizer,
        tokens=trainer.config.logging.sample_tokens, seed=trainer.config.run.seed + trainer.step,
    )  # fmt: skip
    trainer.decoder.train()
    text = "".join(
        f"[{s['family']}, {s['language']}] {s['prompt']} >>> {s['text']}\n\n" for s in samples
    )
    path = trainer.folder / "samples" / f"step-{trainer.step}.txt"
    path.write_text(text, encoding="utf-8")


def run_state(trainer: Trainer, clock: Clock) -> RunState:
    """What the checkpoint of this moment says beside tensors."""
    return RunState(
        step=trainer.step,
        ledger=trainer.ledger,
        stream=trainer.stream.order.state(trainer.step),
        order_fingerprint=trainer.order_fingerprint,
        tokens_seen=trainer.tokens_seen,
        seconds=trainer.seconds_before + clock.training,
    )
