"""Other formats of a checkpoint: weights alone, and PyTorch's distributed checkpoint.

Engines and layouts all read and write the one canonical format, so what is left to convert is what
other programs read. Read next: `checkpoint.py`.
"""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ..data.shards import sync_folder
from .checkpoint import CheckpointReader
from .checkpoint_files import piece_file, seal
from .checkpoint_tools import checkpoint_folder, tensors_of
from .errors import UserError
from .pieces import OPTIMIZER, WEIGHTS, Piece, whole_piece
from .tensor_files import NAMES, make_file, write_pieces

FORMATS = ("weights", "dcp", "checkpoint")
"""What --to takes."""
PREFIXES = {"model.": WEIGHTS, "optimizer.": OPTIMIZER, "rng.": "rng"}
"""How keys of a distributed checkpoint begin, and the kind of tensors they are."""
STATE = "state"
"""The key of `state.json`'s text in a distributed checkpoint."""


def convert(source: Path, target: Path, to: str, dtype: str = "fp32") -> Path:
    """Writes a checkpoint in another format.

    Args:
        source: a checkpoint, a run (its newest), or for to=checkpoint a folder of PyTorch's
            distributed checkpoint that --to dcp wrote.
        target: the folder to write; it must not hold anything.
        to: `weights` (no optimiser state), `dcp`, or `checkpoint`.
        dtype: of weights, `fp32` or `bf16`.
    Returns:
        The folder that was read.
    Raises:
        UserError: the source is no such thing, or the target is taken.
        DamagedCheckpoint: a file of the source is not what was written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already: choose another folder")
    if dtype != "fp32" and to != "weights":
        raise UserError(
            f"--dtype={dtype} has no effect with --to={to}, which keeps every bit: leave it out, "
            "or take --to=weights"
        )
    if to == "checkpoint":
        if not (source / ".metadata").exists():
            raise UserError(
                f"{source} is no distributed checkpoint of PyTorch: it has no .metadata; "
                "--to=checkpoint reads what --to=dcp wrote"
            )
        pieces, state = from_dcp(source)
        with staged(target) as staging:
            write_folder(staging, pieces)
            (staging / "state.json").write_text(state, encoding="utf-8")
            seal(staging / "state.json")
        return source
    folder = checkpoint_folder(source)
    reader = CheckpointReader(folder)
    reader.verify(optimizer=to != "weights")
    reader.check_complete(optimizer=to != "weights")
    with staged(target) as staging:
        if to == "dcp":
            to_dcp(reader, staging)
        else:
            kept = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
            for file in sorted(reader.files):
                if not file.startswith((OPTIMIZER, "rng")):
                    weights = tensors_of(folder / file, reader.entries(file))
                    # One file at a time: a model may be larger than memory.
                    write_folder(
                        staging, [whole_piece(WEIGHTS, n, tensor.to(kept)) for n, tensor in weights]
                    )
    return folder


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder that takes its name when the block ends well, and is gone when it does not."""
    staging = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror}): choose another folder"
        ) from error
    try:
        yield staging
        sync_folder(staging)
        if target.exists():
            target.rmdir()
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def write_folder(folder: Path, pieces: list[Piece]) -> None:
    """Writes whole tensors into the files they belong into, sealed."""
    files: dict[str, list[Piece]] = {}
    for piece in pieces:
        files.setdefault(piece_file(piece), []).append(piece)
    for file, held in files.items():
        make_file(folder / file, {p.name: (NAMES[p.tensor.dtype], p.shape) for p in held})
        write_pieces(folder / file, held)
        seal(folder / file)


def to_dcp(reader: CheckpointReader, target: Path) -> None:
    """Writes a checkpoint as a distributed one, every tensor whole and every bit kept."""
    held: dict[str, Tensor | str] = {STATE: (reader.folder / "state.json").read_text("utf-8")}
    for file in sorted(reader.files):
        kind = next(k for k in ("rng", OPTIMIZER, WEIGHTS) if file.startswith(k))
        prefix = next(prefix for prefix, of in PREFIXES.items() if of == kind)
        for name, tensor in tensors_of(reader.folder / file, reader.entries(file)):
            held[prefix + name] = tensor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process writes it alone
        save(held, checkpoint_id=target, no_dist=True)


def from_dcp(source: Path) -> tuple[list[Piece], str]:
    """What --to=dcp wrote: its tensors, and the text of `state.json`.

    Raises:
        UserError: it holds something else.
    """
    listed = FileSystemReader(source).read_metadata().state_dict_metadata
    held: dict[str, Tensor | str] = {}
    for key, told in listed.items():
        known = key == STATE or key.startswith(tuple(PREFIXES))
        if not known or isinstance(told, BytesStorageMetadata) != (key == STATE):
            raise UserError(
                f"{source} holds {key}, which --to=dcp does not write: its keys are {STATE} and "
                f"those that begin with {', '.join(PREFIXES)}"
            )
        if isinstance(told, TensorStorageMetadata):
            held[key] = torch.empty(told.size, dtype=told.properties.dtype)
        else:
            held[key] = ""
    if STATE not in held:
        raise UserError(f"{source} has no {STATE}: it was not written by --to=dcp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process reads it alone
        load(held, checkpoint_id=source, no_dist=True)
    pieces = []
    for key, value in held.items():
        if isinstance(value, Tensor):
            prefix = key.partition(".")[0] + "."
            name = key.removeprefix(prefix)
            pieces.append(whole_piece(PREFIXES[prefix], name, value))
    return pieces, str(held[STATE])
