"""Proof of loss: compares the training losses of two runs, step by step.

    python -m xylem.scripts.loss_compare runs/before runs/after [--tolerance 0]
    python -m xylem.scripts.loss_compare runs/debug --write losses.txt

A side is a run folder, or a text file with one loss a line. Exit code 1 where a step differs by
more than the relative tolerance, 2 where a side cannot be read.
"""

import argparse
import sys
from pathlib import Path

from ..train.errors import UserError
from ..train.metrics import read_metrics


def losses(side: Path) -> list[float]:
    """The losses of a run folder or of a text file.

    Raises:
        UserError: neither is there.
    """
    if (side / "metrics.jsonl").exists():
        return [row["loss"] for row in read_metrics(side, "train")]
    if side.is_file():
        return [float(line) for line in side.read_text(encoding="utf-8").split()]
    raise UserError(f"{side} is neither a run folder with metrics.jsonl nor a file of losses")


def compare(one: list[float], other: list[float]) -> tuple[float, int]:
    """The largest relative difference and its step, counted from 1.

    Raises:
        UserError: the sides have different numbers of steps.
    """
    if len(one) != len(other) or not one:
        raise UserError(f"{len(one)} losses against {len(other)}: compare runs of equal length")
    differences = [abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in zip(one, other, strict=True)]
    worst = max(range(len(differences)), key=differences.__getitem__)
    return differences[worst], worst + 1


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative (default 0)")
    parser.add_argument("--write", type=Path, help="write the first side's losses there")
    arguments = parser.parse_args()
    try:
        one = losses(arguments.one)
        if arguments.write:
            text = "".join(f"{value!r}\n" for value in one)
            arguments.write.write_text(text, encoding="utf-8")
        if arguments.other is None:
            return
        worst, step = compare(one, losses(arguments.other))
    except UserError as mistake:
        print(f"loss_compare: {mistake}", file=sys.stderr)
        sys.exit(2)
    told = f"{len(one)} steps, largest relative difference {worst:.2e} at step {step}"
    print(told if worst else f"{len(one)} steps, all equal")
    sys.exit(int(worst > arguments.tolerance))


if __name__ == "__main__":
    main()
