"""Checkpoints: one canonical thing, whatever ran the step.

A folder `step-N` holds the trunk and each family in safetensors files of their own, weights and
optimiser state apart, `state.json` (step, ledger, stream, what was seen) and the RNG. Every file
has its sha256 beside it, so that a family's files can be added or taken out without touching
another byte, and a flipped bit is found on load. This file reads them, each process what it needs.
Read next: `checkpoint_writer.py`.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..model.decoder import parameter_family, saved_tensors
from ..model.part import View
from .checkpoint_files import (
    DamagedCheckpoint,
    RunState,
    check_seal,
    file_name,
    read_state,
    steps_kept,
)
from .checkpoint_writer import CheckpointWriter
from .errors import UserError
from .pieces import OPTIMIZER, WEIGHTS, whole_piece
from .tensor_files import Entry, read_header, read_piece

__all__ = [
    "CheckpointReader",
    "CheckpointWriter",
    "DamagedCheckpoint",
    "RunState",
    "latest_checkpoint",
    "load_rng",
    "load_weights",
    "nearest_state",
    "read_state",
    "read_tensors",
]


class CheckpointReader:
    """A checkpoint's tensors, read piece by piece."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written = frozenset(read_state(folder).files)
        # A family's files may have been added or taken out since.
        self.files = frozenset(path.name for path in folder.glob("*.safetensors"))
        self._headers: dict[str, dict[str, Entry]] = {}

    def verify(self, *, rank: int = 0, world: int = 1, optimizer: bool = True) -> None:
        """Checks the files that are there against their sha256; each process some.

        Args:
            optimizer: whether optimiser state is going to be read too.
        Raises:
            DamagedCheckpoint: a file is not what was written.
        """
        needed = sorted(f for f in self.files if optimizer or not f.startswith(OPTIMIZER))
        for file in needed[rank::world]:
            check_seal(self.folder / file)

    def entries(self, file: str) -> dict[str, Entry]:
        """What a file holds; nothing where there is none."""
        if file not in self._headers:
            present = file in self.files
            self._headers[file] = read_header(self.folder / file) if present else {}
        return self._headers[file]

    def check_complete(self, *, optimizer: bool = True) -> None:
        """Whether every file that was written is still there.

        Args:
            optimizer: whether those of the optimiser's state are asked for too.
        Raises:
            DamagedCheckpoint: one is not; names it.
        """
        for file in sorted(self.written - frozenset(self.files)):
            if optimizer or not file.startswith(OPTIMIZER):
                raise DamagedCheckpoint(
                    f"{self.folder / file} is missing, which was written with the others: put it "
                    "back, or take another checkpoint"
                )

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Whether the weights are those of a model, and its families' files are all there.

        Args:
            shapes: of the model, by canonical name.
        Raises:
            DamagedCheckpoint: a file that was written is missing.
            UserError: they are not; names what differs, and the nearest names.
        """
        families = {parameter_family(name) for name in shapes}
        saved: dict[str, tuple[int, ...]] = {}
        for family in families:
            for kind in (WEIGHTS, OPTIMIZER):
                file = file_name(kind, family)
                if file in self.written and file not in self.files:
                    raise DamagedCheckpoint(
                        f"{self.folder / file} is missing; resume from an older checkpoint"
                    )
            held = self.entries(file_name(WEIGHTS, family))
            saved |= {name: entry.shape for name, entry in held.items()}
        missing, unknown = shapes.keys() - saved.keys(), saved.keys() - shapes.keys()
        told = [f"missing {name}{_nearest(name, saved.keys())}" for name in sorted(missing)]
        told += [f"unknown {name}{_nearest(name, shapes.keys())}" for name in sorted(unknown)]
        told += [
            f"{name} is {saved[name]}, the model has {shapes[name]}"
            for name in sorted(shapes.keys() & saved.keys())
            if saved[name] != shapes[name]
        ]
        if told:
            raise UserError(
                f"{self.folder} is a checkpoint of another model ({len(told)} differences): "
                f"{'; '.join(told[:3])}; use the config it was trained with"
            )

    def read(
        self, kind: str, name: str, shape: tuple[int, ...], view: View, start: int, stop: int
    ) -> Tensor | None:
        """A piece's values, flat; None where there is no such tensor."""
        file = file_name(kind, parameter_family(name.partition("/")[0]))
        entry = self.entries(file).get(name)
        if entry is None:
            return None
        if entry.shape != shape:
            raise UserError(
                f"{self.folder / file} holds {name} of shape {entry.shape}, the model needs {shape}"
            )
        return read_piece(self.folder / file, entry, view, start, stop)


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (nearest: {close[0]})" if close else ""


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that `latest` names, or the newest where that file is lost; None without any.

    Raises:
        DamagedCheckpoint: `latest` names a folder that is gone.
    """
    pointer = run / "checkpoints" / "latest"
    if not pointer.exists():
        steps = steps_kept(pointer.parent)
        return pointer.parent / f"step-{steps[-1]}" if steps else None
    name = pointer.read_text(encoding="utf-8").strip()
    folder = pointer.parent / name
    if not name or not folder.is_dir():
        raise DamagedCheckpoint(
            f"{pointer} names {name or 'nothing'}, which does not exist: resume another with "
            "checkpoint.resume=PATH"
        )
    return folder


def nearest_state(run: Path, step: int) -> RunState | None:
    """The state of a run's last checkpoint at or before a step; None without any."""
    root = run / "checkpoints"
    before = [kept for kept in steps_kept(root) if kept <= step]
    return read_state(root / f"step-{before[-1]}") if before else None


def load_weights(folder: Path, model: nn.Module) -> None:
    """Fills a whole model from a checkpoint.

    Raises:
        DamagedCheckpoint: a file is missing or damaged.
        UserError: the checkpoint is of another model.
    """
    tensors = saved_tensors(model)
    reader = CheckpointReader(folder)
    reader.verify(optimizer=False)
    reader.check({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    with torch.no_grad():
        for name, tensor in tensors.items():
            piece = whole_piece(WEIGHTS, name, tensor)
            values = reader.read(WEIGHTS, name, piece.shape, piece.view, 0, piece.stop)
            assert values is not None
            tensor.copy_(values.view_as(tensor))


def load_rng(folder: Path) -> None:
    """Restores PyTorch's random state."""
    torch.set_rng_state(read_tensors(folder / "rng.safetensors")["torch_cpu"])


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A safetensors file, checked against the sha256 beside it."""
    check_seal(file)
    return load_file(file)
