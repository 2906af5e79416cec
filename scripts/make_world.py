"""Writes the embedded corpus: `python -m xylem.scripts.make_world OUT`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from xylem.data.errors import DataError
from xylem.data.world.render import WorldSummary, build_world


def table(summary: WorldSummary) -> Table:
    """What was written, a row a language."""
    shown = Table(title=f"{summary.facts} facts, {summary.held_out_pairs} held-out pairs")
    for heading in ("language", "name", "family", "script"):
        shown.add_column(heading)
    for heading in ("documents", "kB", "facts", "held out"):
        shown.add_column(heading, justify="right")
    for each in summary.languages:
        shown.add_row(
            each.code,
            each.name,
            each.family,
            each.script,
            str(each.documents),
            f"{each.bytes / 1000:.0f}",
            str(each.facts),
            str(each.held_out),
        )
    shown.add_section()
    shown.add_row(
        str(len(summary.languages)),
        "",
        str(len({each.family for each in summary.languages})),
        str(len({each.script for each in summary.languages})),
        str(sum(each.documents for each in summary.languages)),
        f"{sum(each.bytes for each in summary.languages) / 1000:.0f}",
        "",
        str(summary.held_out_pairs),
    )
    return shown


def main(arguments: list[str] | None = None) -> int:
    """Writes the corpus and prints the table; 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="make_world", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heldout-share", type=float, default=0.1)
    parser.add_argument("--size", type=float, default=1.0, help="factor on the amount of text")
    chosen = parser.parse_args(arguments)
    errors = Console(stderr=True)
    try:
        with Progress(console=errors, disable=not errors.is_terminal) as progress:
            task = progress.add_task("writing the world", total=None)
            summary = build_world(
                chosen.out,
                seed=chosen.seed,
                heldout_share=chosen.heldout_share,
                size=chosen.size,
                progress=lambda code, done, total: progress.update(
                    task, description=code, completed=done, total=total
                ),
            )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(table(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
