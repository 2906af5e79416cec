"""What a run measures and how it tells: sums per language, throughput, JSONL rows, console lines.

Losses are sums over tokens, added over micro-batches and processes before anything is divided, so
that every number is that of the global batch. Read next: `loop.py`.
"""

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil
import torch
from torch import Tensor

from ..data.manifest import Manifest
from ..data.shards import write_atomically
from ..data.stream import Stream
from ..model.accounting import training_flops_per_token
from .config import LoggingConfig, RunConfig
from .engines.processes import Processes
from .errors import UserError

LN2 = math.log(2)


class LanguageSums:
    """Negative log-likelihood, tokens and UTF-8 bytes of targets, summed by language."""

    def __init__(self, languages: Sequence[str], device: torch.device) -> None:
        self.languages = tuple(languages)
        self.values = torch.zeros(len(languages), 3, dtype=torch.float64, device=device)

    def add(self, languages_B: Tensor, nll_BT: Tensor, kept_BT: Tensor, bytes_BT: Tensor) -> None:
        """Adds a micro-batch's rows to their languages."""
        rows_B3 = torch.stack([nll_BT.double().sum(1), kept_BT.sum(1), bytes_BT.sum(1)], dim=1)
        self.values.index_add_(0, languages_B.to(self.values.device), rows_B3.double())

    def by_language(self) -> dict[str, tuple[float, float, float]]:
        """Language -> (nll, tokens, bytes), of those that occurred."""
        rows = self.values.tolist()
        return {
            code: (row[0], row[1], row[2])
            for code, row in zip(self.languages, rows, strict=True)
            if row[1]
        }


def language_rows(
    sums: Mapping[str, tuple[float, float, float]],
) -> dict[str, dict[str, float]]:
    """Loss (nats a token) and bits per UTF-8 byte, by name."""
    return {
        name: {"loss": nll / tokens, "bpb": nll / LN2 / max(1.0, size), "tokens": tokens}
        for name, (nll, tokens, size) in sums.items()
    }


def family_sums(
    sums: Mapping[str, tuple[float, float, float]], family_of: Mapping[str, str]
) -> dict[str, tuple[float, float, float]]:
    """The same sums by family."""
    result: dict[str, tuple[float, float, float]] = {}
    for code, row in sums.items():
        held = result.get(family_of[code], (0.0, 0.0, 0.0))
        result[family_of[code]] = (held[0] + row[0], held[1] + row[1], held[2] + row[2])
    return result


class Sink(Protocol):
    """Somewhere scalars go."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes one step's scalars."""

    def close(self) -> None:
        """Flushes."""


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "logging.tensorboard=true needs TensorBoard: pip install 'xylem[tensorboard]'"
            ) from error
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, folder: Path, mode: Literal["online", "offline"]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"logging.wandb={mode} needs Weights & Biases: pip install 'xylem[wandb]'"
            ) from error
        path = folder / "wandb_id"  # two people's runs of one name are two runs
        if not path.exists():
            path.write_text(uuid.uuid4().hex, encoding="utf-8")
        self.run: Any = wandb.init(
            project="xylem", name=folder.name, id=path.read_text(encoding="utf-8"),
            dir=str(folder), mode=mode, resume="allow", settings=wandb.Settings(silent=True),
        )  # fmt: skip

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log(dict(scalars), step=step)

    def close(self) -> None:
        self.run.finish()


class MetricsLog:
    """metrics.jsonl, and the optional sinks beside it."""

    def __init__(self, folder: Path, config: LoggingConfig, *, resumed_at: int) -> None:
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            _drop_rows_after(self.path, resumed_at)
        self.file = self.path.open("a", encoding="utf-8")
        self.sinks: list[Sink] = []
        if config.tensorboard:
            self.sinks.append(_TensorBoard(folder))
        if config.wandb != "off":
            self.sinks.append(_WandB(folder, config.wandb))

    def write(self, kind: str, step: int, row: Mapping[str, Any]) -> None:
        """One JSON line; its scalars, nested ones too, go to the sinks as kind/name."""
        self.file.write(json.dumps({"kind": kind, "step": step, **row}) + "\n")
        self.file.flush()
        scalars = dict(_scalars(kind, row))
        for sink in self.sinks:
            sink.write(step, scalars)

    def close(self) -> None:
        """Closes file and sinks."""
        self.file.close()
        for sink in self.sinks:
            sink.close()


def read_metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of one kind, in order; a line cut by a crash is passed over."""
    rows = []
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["kind"] == kind:
            rows.append(row)
    return rows


def _drop_rows_after(path: Path, step: int) -> None:
    """Steps that a crash undid are told once: their rows go before the run repeats them."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            continue
    write_atomically(path, "".join(f"{line}\n" for line in kept).encode())


def _scalars(prefix: str, row: Mapping[str, Any]) -> Any:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _scalars(f"{prefix}/{key}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{key}", float(value)


def memory_gib(device: torch.device) -> float:
    """Peak memory of the device, or the process's resident memory on a CPU, GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30


class Meter:
    """What is measured between two metric rows: losses, throughput, memory, waiting."""

    def __init__(self, config: RunConfig, processes: Processes, stream: Stream) -> None:
        self.processes, self.stream = processes, stream
        self.flops_per_token = training_flops_per_token(
            config.model, stream.manifest.families, config.data.sequence_length
        )
        self.peak, self.peak_from = processes.peak_flops()
        self.training_seconds = 0.0
        self._begin()

    def _begin(self) -> None:
        self.sums = LanguageSums(self.stream.languages, self.processes.device)
        self._steps, self._tokens, self._seconds = 0, 0, 0.0
        self._waited = self.stream.wait_seconds

    def add(self, seconds: float, tokens: int) -> None:
        """One step's time and its global batch's tokens; saves and evaluations do not count."""
        self.training_seconds += seconds
        self._seconds += seconds
        self._tokens += tokens
        self._steps += 1

    def row(self, manifest: Manifest, steps_left: int) -> dict[str, Any]:
        """The row since the last one, of all processes; begins the next."""
        self.processes.sum(self.sums.values)
        by_language = self.sums.by_language()
        family_of = {code: entry.family for code, entry in manifest.languages.items()}
        nll, tokens, size = (sum(row[i] for row in by_language.values()) for i in range(3))
        seconds = max(1e-9, self._seconds)
        speed, step_seconds = self._tokens / seconds, seconds / max(1, self._steps)
        row = {
            "loss": nll / tokens,
            "bpb": nll / LN2 / max(1.0, size),
            "families": language_rows(family_sums(by_language, family_of)),
            "languages": language_rows(by_language),
            "tokens_per_second": speed,
            "mfu": speed * self.flops_per_token / (self.peak * self.processes.world),
            "memory_gib": memory_gib(self.processes.device),
            "data_wait_share": min(1.0, (self.stream.wait_seconds - self._waited) / seconds),
            "step_seconds": step_seconds,
            "eta_seconds": step_seconds * steps_left,
        }
        if self.stream.storage.counts.requests:
            # This process's, since the run was started; a local folder counts nothing.
            row["storage"] = asdict(self.stream.storage.counts)
        self._begin()
        return row


def console_line(step: int, steps: int, row: Mapping[str, Any]) -> str:
    """The line for people: loss, the three languages with most bits per byte, speed, time left."""
    worst = sorted(row["languages"].items(), key=lambda item: -item[1]["bpb"])[:3]
    told = " ".join(f"{code[:3]} {value['bpb']:.2f}" for code, value in worst)
    eta = row["eta_seconds"]
    hours, minutes, seconds = eta // 3600, eta % 3600 // 60, eta % 60
    left = f"{hours:.0f}h{minutes:02.0f}" if hours else f"{minutes:.0f}m{seconds:02.0f}"
    return (
        f"step {step}/{steps}  loss {row['loss']:.3f}  bpb {row['bpb']:.3f} (worst {told})  "
        f"lr {row['learning_rate']:.2g}  gnorm {row['gradient_norm']:.2f}  "
        f"{row['tokens_per_second'] / 1000:.1f}k tok/s  mfu {row['mfu']:.0%}  "
        f"mem {row['memory_gib']:.1f}G  data {row['data_wait_share']:.0%}  eta {left}"
    )
