"""What a benchmark was to reach, and what it reached: one table, one line of JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Goal:
    """A number that a benchmark is held to."""

    name: str
    value: float | None
    """What was measured; None where it was not."""
    goal: float
    unit: str
    at_least: bool = False
    """Whether more is better; else less is."""

    @property
    def met(self) -> bool:
        """Whether it was measured and reached."""
        if self.value is None:
            return False
        return self.value >= self.goal if self.at_least else self.value <= self.goal


def print_goals(goals: Sequence[Goal], console: Console, *, as_json: bool) -> None:
    """Prints a table, and with `as_json` one JSON object as the last line of standard output."""
    table = Table(title="goals", title_justify="left")
    for name in ("goal", "measured", "wanted", "met"):
        table.add_column(name, justify="left" if name == "goal" else "right")
    for goal in goals:
        measured = "not measured" if goal.value is None else f"{goal.value:,.4g} {goal.unit}"
        sign = "≥" if goal.at_least else "≤"
        told = "yes" if goal.met else "no"
        table.add_row(goal.name, measured, f"{sign} {goal.goal:g} {goal.unit}", told)
    console.print(table)
    if as_json:
        rows = {
            goal.name: {
                "value": goal.value,
                "goal": goal.goal,
                "met": goal.met,
                "unit": goal.unit,
            }
            for goal in goals
        }
        print(json.dumps(rows, ensure_ascii=False))
