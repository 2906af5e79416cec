"""The two comparing tools: losses of two runs, evaluations of two runs."""

import json
from pathlib import Path

import pytest

from xylem.scripts.compare_evaluations import comparison, read_evaluation
from xylem.scripts.loss_compare import compare, losses
from xylem.train.errors import UserError


def test_the_largest_relative_difference_and_its_step_are_found() -> None:
    assert compare([1.0, 2.0, 4.0], [1.0, 2.2, 4.0]) == (pytest.approx(0.2 / 2.2), 2)
    assert compare([1.0, 2.0], [1.0, 2.0])[0] == 0.0
    with pytest.raises(UserError, match="2 losses against 1"):
        compare([1.0, 2.0], [1.0])


def test_losses_are_read_from_runs_and_from_files(tmp_path: Path) -> None:
    rows = [{"kind": "start", "step": 0}, {"kind": "train", "step": 1, "loss": 2.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "golden.txt").write_text("2.5\n")
    assert losses(tmp_path) == losses(tmp_path / "golden.txt") == [2.5]
    with pytest.raises(UserError, match="neither a run folder"):
        losses(tmp_path / "nothing")


def test_evaluations_are_compared_language_by_language(tmp_path: Path) -> None:
    def evaluation(**bpb: float) -> dict[str, object]:
        return {"languages": {c: {"bpb": v, "family": "f", "tokens": 9} for c, v in bpb.items()}}

    lines = comparison(evaluation(a=1.0, b=2.0), evaluation(a=1.5, b=1.0), ("x", "y"))
    assert "| a | f | 1.000 | 1.500 | -0.500 |" in lines
    assert "| **mean of 2** | | **1.500** | **1.250** | **+0.250** |" in lines
    assert lines[-1] == "x has fewer bits per byte in 1 of 2 languages."
    with pytest.raises(UserError, match=r"different held-out tokens \(b\)"):
        comparison(evaluation(a=1.0), evaluation(a=1.0, b=2.0), ("x", "y"))
    with pytest.raises(UserError, match="has not been evaluated"):
        read_evaluation(tmp_path)
