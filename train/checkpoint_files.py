"""What a checkpoint's folder is made of: names of files, their seals, and `state.json`.

Read next: `checkpoint.py`, which reads one; `checkpoint_writer.py`, which writes one.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.ledger import Ledger, ledger_from_json
from ..model.decoder import parameter_family
from .errors import UserError
from .pieces import Piece

FORMAT = 1
"""Version of the checkpoint's layout."""


class DamagedCheckpoint(RuntimeError):
    """A checkpoint's file is missing or is not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a run needs beside weights and optimiser state."""

    step: int
    """Steps made."""
    ledger: Ledger
    """The mixture's decisions."""
    stream: dict[str, Any]
    """The order's integers."""
    order_fingerprint: str
    """sha256 over the first sequence ids of the run."""
    tokens_seen: int
    """Tokens trained on."""
    seconds: float
    """Time spent training."""
    origin: str = "auto"
    """What `checkpoint.resume` said when the run was begun."""
    files: tuple[str, ...] = ()
    """The tensor files written beside this state."""


def read_state(folder: Path) -> RunState:
    """A checkpoint's run state.

    Raises:
        UserError: written in another format.
        DamagedCheckpoint: the file is damaged.
    """
    check_seal(folder / "state.json")
    fields = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if fields.pop("format") != FORMAT:
        raise UserError(f"{folder} was written in another checkpoint format than {FORMAT}")
    ledger = ledger_from_json(json.dumps(fields.pop("ledger")))
    return RunState(ledger=ledger, files=tuple(fields.pop("files")), **fields)


def state_json(state: RunState) -> str:
    """A run state as `state.json` holds it."""
    return json.dumps(
        {
            "format": FORMAT,
            "step": state.step,
            "ledger": json.loads(state.ledger.to_json()),
            "stream": state.stream,
            "order_fingerprint": state.order_fingerprint,
            "tokens_seen": state.tokens_seen,
            "seconds": state.seconds,
            "origin": state.origin,
            "files": sorted(state.files),
        },
        indent=1,
    )


def file_name(kind: str, family: str | None) -> str:
    """The file of some kind of tensors of a family, or of the trunk."""
    return f"{kind}{'trunk' if family is None else f'family-{family}'}.safetensors"


def piece_file(piece: Piece) -> str:
    """The file that a piece belongs into."""
    if piece.kind == "rng":
        return "rng.safetensors"
    return file_name(piece.kind, parameter_family(piece.name.partition("/")[0]))


def steps_kept(root: Path) -> list[int]:
    """The steps of the whole checkpoints in a run's folder of them, in order."""
    return sorted(int(p.name[5:]) for p in root.glob("step-*") if p.name[5:].isdigit())


def seal(file: Path) -> None:
    """Writes a file's sha256 beside it, both to the disk."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    with file.with_name(file.name + ".sha256").open("w", encoding="utf-8") as written:
        written.write(digest + "\n")
        written.flush()
        os.fsync(written.fileno())


def check_seal(file: Path) -> None:
    """Compares a file with the sha256 beside it.

    Raises:
        DamagedCheckpoint: one of the two is missing, or they differ.
    """
    beside = file.with_name(file.name + ".sha256")
    if not file.exists() or not beside.exists():
        raise DamagedCheckpoint(
            f"{file} or its .sha256 is missing; resume from an older checkpoint"
        )
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != beside.read_text(encoding="utf-8").strip():
        raise DamagedCheckpoint(
            f"{file} is not what was written (sha256 differs): resume from another checkpoint "
            "with checkpoint.resume=PATH, evaluate or export another with --step"
        )
