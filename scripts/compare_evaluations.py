"""Two evaluated runs side by side: bits per byte of every language, as a Markdown table.

    python -m xylem.scripts.compare_evaluations runs/real_text runs/real_text_dense

Bits per byte compare within a language only. Both runs must have been evaluated
(`xylem evaluate RUN`) on the same held-out documents.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..train.errors import UserError


def read_evaluation(run: Path) -> dict[str, Any]:
    """A run's evaluation.json.

    Raises:
        UserError: it has none yet.
    """
    path = run / "evaluation.json"
    if not path.exists():
        raise UserError(f"{run} has not been evaluated: run `xylem evaluate {run}` first")
    evaluation: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return evaluation


def comparison(one: dict[str, Any], other: dict[str, Any], names: tuple[str, str]) -> list[str]:
    """Lines of the table, by family, and the means below it.

    Raises:
        UserError: the runs were evaluated on different text.
    """
    a, b = one["languages"], other["languages"]
    differing = sorted(
        code
        for code in a.keys() | b.keys()
        if a.get(code, {}).get("tokens") != b.get(code, {}).get("tokens")
    )
    if differing:
        raise UserError(
            f"the runs were evaluated on different held-out tokens ({', '.join(differing[:3])}): "
            "compare runs over one prepared folder"
        )
    lines = [
        f"| language | family | {names[0]} | {names[1]} | difference |",
        "|---|---|---:|---:|---:|",
    ]
    for code in sorted(a, key=lambda c: (a[c]["family"], c)):
        x, y = a[code]["bpb"], b[code]["bpb"]
        lines.append(f"| {code} | {a[code]['family']} | {x:.3f} | {y:.3f} | {x - y:+.3f} |")
    x, y = (sum(row["bpb"] for row in side.values()) / len(side) for side in (a, b))
    better = sum(a[code]["bpb"] < b[code]["bpb"] for code in a)
    lines.append(f"| **mean of {len(a)}** | | **{x:.3f}** | **{y:.3f}** | **{x - y:+.3f}** |")
    lines += ["", f"{names[0]} has fewer bits per byte in {better} of {len(a)} languages."]
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("one", type=Path, help="run folder")
    parser.add_argument("other", type=Path, help="run folder")
    arguments = parser.parse_args()
    sides = arguments.one, arguments.other
    try:
        names = sides[0].name, sides[1].name
        lines = comparison(read_evaluation(sides[0]), read_evaluation(sides[1]), names)
    except UserError as mistake:
        print(f"compare_evaluations: {mistake}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
