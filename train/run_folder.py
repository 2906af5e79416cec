"""The run folder: everything about one run, enough to resume, audit and export it.

config.yaml (resolved), plan.txt, environment.json, metrics.jsonl, checkpoints/, samples/,
evaluation.json, report.html, triggers/ (touch `save` or `exit`). Read next: `checkpoint.py`.
"""

import fcntl
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..data.ledger import Ledger
from ..data.manifest import Manifest
from ..data.prepare import load_prepared
from ..data.shards import write_atomically
from ..data.storage import Storage, open_storage
from ..data.tokenizer import Tokenizer
from ..model.decoder import Decoder, build_decoder
from .checkpoint import latest_checkpoint, load_weights, read_state
from .compose import flatten, from_yaml, to_yaml
from .config import RunConfig
from .errors import UserError

MAY_CHANGE = ("run.steps", "run.root", "engine.", "checkpoint.", "logging.", "evaluation.",
              "cluster.", "debug.", "model.attention", "data.prepared", "data.corpus",
              "data.storage.", "optim.learning_rate", "optim.muon_learning_rate",
              "optim.clip_norm")  # fmt: skip
"""Settings that a resumed run may change; any other difference is another run."""


def run_folder(config: RunConfig) -> Path:
    """Where a run lives."""
    return Path(config.run.root) / config.run.name


def open_folder(config: RunConfig) -> Path:
    """The run's folder, made or checked, with its config and environment written.

    Raises:
        UserError: the folder belongs to a run of another config.
    """
    folder = run_folder(config)
    written = folder / "config.yaml"
    if written.exists():
        before, now = flatten(from_yaml(written)), flatten(config)
        differing = sorted(
            key
            for key in before.keys() | now.keys()
            if before.get(key) != now.get(key) and not key.startswith(MAY_CHANGE)
        )
        if differing:
            shown = ", ".join(f"{k}={now.get(k)!r} (was {before.get(k)!r})" for k in differing[:3])
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise UserError(
                f"{folder} holds a run of another config: {shown}{more}; give this run another "
                "run.name, or restore the setting"
            )
    elif latest_checkpoint(folder) is not None:
        raise UserError(
            f"{folder} holds checkpoints but no config.yaml, so whose they are is unknown: restore "
            "it, or give this run another run.name"
        )
    for part in ("checkpoints", "samples", "triggers"):
        try:
            (folder / part).mkdir(parents=True, exist_ok=True)
        except (NotADirectoryError, FileExistsError):
            raise UserError(f"{folder / part} cannot be a folder: a file is in its way") from None
    write_atomically(written, to_yaml(config).encode())
    environment = json.dumps(describe_environment(), indent=1)
    write_atomically(folder / "environment.json", environment.encode())
    return folder


class RunIsTraining(UserError):
    """Another process holds the run folder."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds a run folder, made if there is none, for one writer.

    Raises:
        RunIsTraining: another process trains this run.
        UserError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): give run.root a folder of your own"
        ) from error
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunIsTraining(
                f"{folder}: another process trains this run; wait for it, or give this one "
                "another run.name"
            ) from None
        yield


def describe_environment() -> dict[str, Any]:
    """Versions, machine, and the code's commit with what differs from it."""

    def git(*arguments: str) -> str:
        root = Path(__file__).resolve().parent.parent
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip() if answer.returncode == 0 else ""

    names = ("xylem", "torch", "numpy", "sentencepiece", "transformers", "safetensors")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names},
        "machine": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "cuda_device": cuda,
        "git_commit": git("rev-parse", "HEAD"),
        "git_diff": git("diff", "HEAD"),
    }


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run opened for reading: its model, ready to be evaluated or exported."""

    folder: Path
    config: RunConfig
    storage: Storage
    manifest: Manifest
    tokenizer: Tokenizer
    ledger: Ledger
    decoder: Decoder
    step: int
    checkpoint: Path


def open_run(folder: Path, step: int | None = None) -> OpenRun:
    """Loads a run's checkpoint (the newest, or that of a step) into an fp32 decoder on the CPU.

    Raises:
        UserError: no run, or no such checkpoint, in the folder.
    """
    config = read_config(folder)
    if step is None:
        checkpoint = latest_checkpoint(folder)
    else:
        checkpoint = folder / "checkpoints" / f"step-{step}"
    if checkpoint is None or not checkpoint.is_dir():
        kept = ", ".join(sorted(p.name for p in (folder / "checkpoints").glob("step-*")))
        raise UserError(
            f"{folder} has no checkpoint {'yet' if step is None else f'of step {step}'}; "
            f"it keeps: {kept or 'none'}"
        )
    storage = open_storage(config.data.prepared, config.data.storage)
    manifest, tokenizer = load_prepared(storage)
    state = read_state(checkpoint)
    # The run's own backend may want another device or precision than what reads it now.
    config = replace(config, model=replace(config.model, attention="auto"))
    decoder = build_decoder(config.model, manifest.families, seed=config.run.seed)
    load_weights(checkpoint, decoder)
    decoder.eval()
    return OpenRun(
        folder, config, storage, manifest, tokenizer, state.ledger, decoder, state.step, checkpoint
    )


def read_config(folder: Path) -> RunConfig:
    """The config of a run folder.

    Raises:
        UserError: the folder is none.
    """
    if not (folder / "config.yaml").exists():
        raise UserError(
            f"{folder} is no run folder: it has no config.yaml; a run folder is what "
            "`xylem pretrain` writes, runs/NAME"
        )
    return from_yaml(folder / "config.yaml")
