"""The verb `checkpoint`: whether a checkpoint is whole, what two differ in, other formats of it.

One canonical format serves all engines and layouts, so nothing is converted between those.
Read next: `checkpoint.py`, `checkpoint_conversion.py`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isnan, prod
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from ..model.decoder import canonical_shapes, parameter_family
from .checkpoint import CheckpointReader, latest_checkpoint
from .checkpoint_files import DamagedCheckpoint, check_seal, file_name, read_state
from .compose import from_yaml
from .console import OUT, say
from .errors import UserError
from .pieces import OPTIMIZER, WEIGHTS
from .tensor_files import DTYPES, Entry, read_header, read_piece

STATES = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})
"""What is held of a parameter that was moved: AdamW's, Muon's."""


def checkpoint_folder(path: Path) -> Path:
    """A checkpoint's folder; of a run, its newest.

    Raises:
        UserError: it is neither.
    """
    if (path / "state.json").exists():
        return path
    found = latest_checkpoint(path) if (path / "checkpoints").is_dir() else None
    if found is None:
        raise UserError(
            f"{path} is no checkpoint and no run with one: give a folder "
            "runs/NAME/checkpoints/step-N, or runs/NAME for its newest"
        )
    return found


@dataclass(slots=True)
class FileReport:
    """What is found in one file of a checkpoint."""

    name: str
    tensors: int = 0
    bytes: int = 0
    damage: list[str] = field(default_factory=list)


def tensors_of(path: Path, entries: dict[str, Entry]) -> Iterator[tuple[str, Tensor]]:
    """A file's tensors, one at a time."""
    for name, entry in entries.items():
        view = tuple(((0, size),) for size in entry.shape)
        values = read_piece(path, entry, view, 0, prod(entry.shape))
        yield name, values.view(entry.shape)


def verify_checkpoint(folder: Path) -> list[FileReport]:
    """Reads every byte of a checkpoint: seals, headers, finite values, whole optimiser state.

    Returns:
        A report of each file, damaged or not.
    """
    reports = {"state.json": FileReport("state.json", 0, (folder / "state.json").stat().st_size)}
    try:
        written = set(read_state(folder).files)
    except (DamagedCheckpoint, UserError, ValueError, KeyError, TypeError) as damage:
        reports["state.json"].damage.append(str(damage))
        written = set()
    present = {path.name for path in folder.glob("*.safetensors")}
    headers: dict[str, dict[str, Entry]] = {}
    for name in sorted(written | present):
        report = reports[name] = FileReport(name)
        if name not in present:
            report.damage.append("is missing (taken out by hand, or lost)")
            continue
        report.bytes = (folder / name).stat().st_size
        try:
            headers[name] = read_header(folder / name)
            report.tensors = len(headers[name])
            _check_values(folder / name, headers[name], report)
            check_seal(folder / name)
        except DamagedCheckpoint as damage:
            report.damage.append(str(damage).removeprefix(f"{folder / name} ").split(":")[0])
        except (OSError, ValueError, KeyError, TypeError) as damage:
            report.damage.append(f"cannot be read ({damage})")
    for needed in ("trunk.safetensors", "rng.safetensors"):
        if needed not in reports:
            reports[needed] = FileReport(needed, damage=["is missing"])
    for name in headers:
        if not name.startswith("rng"):
            _check_names(name, headers, reports[name])
    _check_model(folder, headers, reports)
    return list(reports.values())


def _check_model(
    folder: Path, headers: dict[str, dict[str, Entry]], reports: dict[str, FileReport]
) -> None:
    """Whether every parameter of the run's model is there; without its config nobody knows."""
    config = folder.parent.parent / "config.yaml"
    if not config.exists():
        return
    begin, end = file_name(WEIGHTS, "/").split("/")
    families = [n[len(begin) : -len(end)] for n in reports if n.startswith(begin)]
    shapes = canonical_shapes(from_yaml(config).model, families)
    for name, shape in shapes.items():
        file = file_name(WEIGHTS, parameter_family(name))
        entry = headers.get(file, {}).get(name)
        if file in headers and (entry is None or entry.shape != shape):
            found = f"has shape {entry.shape}" if entry else "is missing"
            reports[file].damage.append(f"{name} {found}, the run's model has {shape}")


def _check_values(path: Path, entries: dict[str, Entry], report: FileReport) -> None:
    end = max((entry.end for entry in entries.values()), default=0)
    if entries and end != report.bytes:
        report.damage.append(f"has {report.bytes:,} bytes, its header says {end:,}")
        return
    for name, entry in entries.items():
        if prod(entry.shape) * DTYPES[entry.dtype].itemsize != entry.end - entry.begin:
            report.damage.append(f"{name} has other bytes than its shape {entry.shape} needs")
            return
    for name, tensor in tensors_of(path, entries):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            report.damage.append(f"{name} holds infinities or NaN")


def _check_names(file: str, headers: dict[str, dict[str, Entry]], report: FileReport) -> None:
    """Whether tensors are in the file of their family, and optimiser state is whole."""
    kind = OPTIMIZER if file.startswith(OPTIMIZER) else WEIGHTS
    held: dict[str, set[str]] = {}
    for name, entry in headers[file].items():
        parameter, _, state = name.partition("/")
        family = parameter_family(parameter)
        if file_name(kind, family) != file:
            report.damage.append(f"{name} belongs into {file_name(kind, family)}")
        if not kind:
            continue
        held.setdefault(parameter, set()).add(state)
        weights = headers.get(file_name(WEIGHTS, family), {})
        if parameter not in weights:
            report.damage.append(f"{name}: there is no such parameter")
        elif state != "step" and entry.shape != weights[parameter].shape:
            report.damage.append(
                f"{name} has shape {entry.shape}, its parameter {weights[parameter].shape}"
            )
    for parameter, states in held.items():
        if states not in STATES:
            nearest = min(STATES, key=lambda whole: len(whole ^ states))
            report.damage.append(
                f"{parameter} has {', '.join(sorted(states))} of its optimiser state, "
                f"not {', '.join(sorted(nearest))}"
            )


def print_verified(path: Path) -> bool:
    """Verifies a checkpoint, says what was found, and whether it is whole."""
    folder = checkpoint_folder(path)
    reports = verify_checkpoint(folder)
    table = Table(title=str(folder), title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("tensors", justify="right")
    table.add_column("bytes", justify="right")
    table.add_column("found", overflow="fold")
    for report in reports:
        found = "; ".join(report.damage[:3]) or "whole"
        if len(report.damage) > 3:
            found += f"; and {len(report.damage) - 3} more"
        table.add_row(report.name, f"{report.tensors:,}", f"{report.bytes:,}", found)
    OUT.print(table)
    damaged = [report for report in reports if report.damage]
    for report in damaged:
        say(f"{folder / report.name}: {report.damage[0]}")
    if not damaged:
        say(f"{folder}: whole, {sum(r.bytes for r in reports):,} bytes in {len(reports)} files")
    return not damaged


@dataclass(slots=True)
class GroupDifference:
    """How far two checkpoints' tensors of one file differ."""

    equal: int = 0
    moved: int = 0
    largest: float = 0.0
    """Largest |difference| of an element."""
    where: str = ""
    told: list[str] = field(default_factory=list)
    """Tensors that one lacks, or that have another shape or dtype."""

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        return bool(self.moved or self.told)


def diff_checkpoints(one: Path, other: Path) -> dict[str, GroupDifference]:
    """What two checkpoints differ in, by file; numbers that are NaN in both are equal.

    Args:
        one, other: checkpoint folders.
    Raises:
        DamagedCheckpoint: a file of one of them is not what was written.
    """
    for folder in (one, other):
        CheckpointReader(folder).verify()
    names = {path.name for folder in (one, other) for path in folder.glob("*.safetensors")}
    result: dict[str, GroupDifference] = {}
    for file in sorted(names):
        group = result[file] = GroupDifference()
        mine, theirs = (
            read_header(folder / file) if (folder / file).exists() else {}
            for folder in (one, other)
        )
        for name in sorted(mine.keys() | theirs.keys()):
            if name not in theirs or name not in mine:
                group.told.append(f"{name} is only in {one if name in mine else other}")
            elif (mine[name].shape, mine[name].dtype) != (theirs[name].shape, theirs[name].dtype):
                told = (f"{e.dtype} {list(e.shape)}" for e in (mine[name], theirs[name]))
                group.told.append(f"{name} is {' and '.join(told)}")
        common = {n: e for n, e in mine.items() if n in theirs and theirs[n].shape == e.shape}
        pairs = zip(
            tensors_of(one / file, common),
            tensors_of(other / file, {name: theirs[name] for name in common}),
            strict=True,
        )
        for (name, a), (_, b) in pairs:
            difference = _largest_difference(a, b)
            if difference is None:
                group.equal += 1
                continue
            group.moved += 1
            # NaN, where only one of them is: more than any number.
            within = difference <= group.largest or isnan(group.largest)
            if not within or not group.where:
                group.largest, group.where = difference, name
    return result


def _largest_difference(a: Tensor, b: Tensor) -> float | None:
    """The largest |difference| of two tensors' elements; None where they are equal."""
    if torch.equal(a, b):
        return None
    wide_a, wide_b = a.double(), b.double()
    same = (wide_a == wide_b) | (wide_a.isnan() & wide_b.isnan())
    if a.dtype == b.dtype and a.is_floating_point() and bool(same.all()):
        return None
    return (wide_a - wide_b).abs().masked_fill(same, 0.0).max().item()


def diff_states(one: Path, other: Path) -> list[str]:
    """What two checkpoints' `state.json` differ in, a line each."""
    a, b = (json.loads((folder / "state.json").read_text("utf-8")) for folder in (one, other))
    told = []
    for key in sorted((a.keys() | b.keys()) - {"files", "seconds"}):
        mine, theirs = a.get(key), b.get(key)
        if mine == theirs:
            continue
        if isinstance(mine, dict) and isinstance(theirs, dict):
            keys = [k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k)]
            told.append(f"{key} differs in {', '.join(sorted(keys))}")
        else:
            told.append(f"{key} is {mine} and {theirs}")
    return told


def print_difference(one: Path, other: Path) -> bool:
    """Says what two checkpoints differ in, and whether they are equal."""
    one, other = checkpoint_folder(one), checkpoint_folder(other)
    groups, states = diff_checkpoints(one, other), diff_states(one, other)
    table = Table(title=f"{one} and {other}", title_justify="left")
    table.add_column("file", overflow="fold")
    for name in ("equal", "different", "largest difference"):
        table.add_column(name, justify="right")
    table.add_column("of", overflow="fold")
    for file, group in groups.items():
        largest = f"{group.largest:.3g}" if group.moved else ""
        table.add_row(file, str(group.equal), str(group.moved), largest, group.where)
    OUT.print(table)
    for file, group in groups.items():
        for line in group.told[:5]:
            say(f"{file}: {line}")
        if len(group.told) > 5:
            say(f"{file}: and {len(group.told) - 5} more of these")
    for line in states:
        say(f"state.json: {line}")
    equal = not states and not any(group.differs for group in groups.values())
    say("equal" if equal else "different")
    return equal
