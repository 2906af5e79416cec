"""A goal is met, missed, or was not measured; the last line says so in JSON."""

import io
import json

import pytest
from rich.console import Console

from xylem.scripts.goals import Goal, print_goals


def test_a_goal_is_met_from_its_side_only_and_never_unmeasured() -> None:
    assert Goal("a", 2.0, 2.0, "s").met and not Goal("a", 2.1, 2.0, "s").met
    assert Goal("a", 2.0, 2.0, "s", at_least=True).met
    assert not Goal("a", 1.9, 2.0, "s", at_least=True).met
    assert not Goal("a", None, 2.0, "s").met


def test_the_last_line_is_json_and_the_table_says_what_was_not_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = io.StringIO()
    goals = [Goal("speed", 3.0, 2.0, "x", at_least=True), Goal("memory", None, 1.0, "GB")]
    print_goals(goals, Console(file=table, width=100), as_json=True)
    assert "not measured" in table.getvalue()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "speed": {"value": 3.0, "goal": 2.0, "met": True, "unit": "x"},
        "memory": {"value": None, "goal": 1.0, "met": False, "unit": "GB"},
    }
