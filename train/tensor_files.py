"""safetensors files that many processes write and read at once, each its own bytes.

A file's header says where each tensor lies, so that a process can write its pieces to their places
without gathering anything, and read no more than its own. Read next: `checkpoint.py`.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..model.part import View, runs
from .pieces import Piece

NAMES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The dtypes that are written, as the format calls them."""
DTYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Of its first byte in the file."""
    end: int


def make_file(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """A file of the right size with its header, and nothing else yet.

    Args:
        tensors: name -> (dtype, shape).
    """
    header: dict[str, object] = {}
    at = 0
    # The widest first, as safetensors sorts, so that each begins at a multiple of its width.
    widest_first = sorted(tensors.items(), key=lambda item: (-_width(item[1][0]), item[0]))
    for name, (dtype, shape) in widest_first:
        size = prod(shape) * _width(dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        # Blocks are taken now: a full disk is found here and not in the middle.
        if at:
            os.posix_fallocate(file.fileno(), 0, 8 + len(text) + at)


def read_header(path: Path) -> dict[str, Entry]:
    """Name -> where its tensor lies.

    Raises:
        ValueError: it is no safetensors file.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            raise ValueError(f"{path} is no safetensors file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: Entry(
            told["dtype"],
            tuple(told["shape"]),
            8 + length + told["data_offsets"][0],
            8 + length + told["data_offsets"][1],
        )
        for name, told in header.items()
    }


def write_pieces(path: Path, pieces: Iterable[Piece]) -> None:
    """Writes pieces to their places in a file that `make_file` made; other bytes stay."""
    entries = read_header(path)
    with path.open("r+b", buffering=0) as file:
        for piece in pieces:
            entry = entries[piece.name]
            width = _width(entry.dtype)
            data = _bytes(piece.tensor)
            at = 0
            for offset, length in runs(piece.shape, piece.view, piece.start, piece.stop):
                _write_all(
                    file.fileno(), data[at : at + length * width], entry.begin + offset * width
                )
                at += length * width
            assert at == len(data), f"{piece.name}: {at} bytes in the view, {len(data)} given"
        os.fsync(file.fileno())  # of what this machine wrote, none but it can say when it is there


def read_piece(path: Path, entry: Entry, view: View, start: int, stop: int) -> Tensor:
    """Flat elements [start, stop) of a tensor's view, on the CPU."""
    width = _width(entry.dtype)
    data = bytearray((stop - start) * width)
    into, at = memoryview(data), 0
    with path.open("rb", buffering=0) as file:
        for offset, length in runs(entry.shape, view, start, stop):
            part = into[at : at + length * width]
            _read_all(file.fileno(), part, entry.begin + offset * width)
            at += length * width
    dtype = DTYPES[entry.dtype]
    return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _width(dtype: str) -> int:
    return DTYPES[dtype].itemsize


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _read_all(file: int, into: memoryview, offset: int) -> None:
    while into:
        read = os.preadv(file, [into], offset)
        if not read:
            raise OSError("the file ends before its tensors do")
        into, offset = into[read:], offset + read
