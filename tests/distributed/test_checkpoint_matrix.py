"""One checkpoint for all layouts: saved by any, loaded by any other, bit for bit.

Weights and optimiser state are compared value by value with the saved files, and the run goes on
with the losses and the data that it would have had.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xylem.train.checkpoint_files import read_state
from xylem.train.checkpoint_tools import verify_checkpoint
from xylem.train.metrics import read_metrics
from xylem.train.tensor_files import read_header

from ..conftest import Command, Prepared, environment, run_settings
from .checkpoint_matrix_parts import (
    FAMILY_EXPERTS,
    LAYOUTS,
    SAVED,
    STEPS,
    missing,
    model_of,
    step_folder,
)

SETTINGS = (
    f"run.steps={STEPS}",
    f"checkpoint.every={SAVED}",
    "checkpoint.keep=3",
    "optim.warmup_steps=2",
    "evaluation.tokens_per_language=64",
)
ALONE = {model: f"alone {index}" for index, model in enumerate({s[0]: 0 for s in LAYOUTS.values()})}
"""The run of one process of each model."""


@pytest.fixture(scope="module")
def runs(prepared: Prepared, xylem: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs."""
    root = tmp_path_factory.mktemp("matrix")
    settings = [*run_settings(prepared, root, "none"), *SETTINGS]
    for model, name in ALONE.items():
        done = xylem("pretrain", *settings, model, f"run.name={name}")
        assert done.returncode == 0, done.stderr
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launched = subprocess.run(
        [*launcher, "-m", "tests.distributed.checkpoint_matrix_parts", str(root), *settings],
        cwd=Path(__file__).parents[2],
        env=environment(OMP_WAIT_POLICY="PASSIVE", TORCHDYNAMO_DISABLE="1"),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert launched.returncode == 0, launched.stdout[-3000:] + launched.stderr[-5000:]
    return root


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if missing(name):
        pytest.skip(f"the package {missing(name)} is not installed")
    return name


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run, "train")]


def test_every_layout_writes_the_files_of_one_process(layout: str, runs: Path) -> None:
    alone = step_folder(runs, ALONE[model_of(layout)])
    written = step_folder(runs, layout)
    for file in alone.glob("*.safetensors"):
        assert read_header(written / file.name) == read_header(file), file.name
    assert {path.name for path in written.iterdir()} == {path.name for path in alone.iterdir()}
    assert [r.damage for r in verify_checkpoint(written) if r.damage] == []
    expected = losses(runs / ALONE[model_of(layout)])
    assert losses(runs / layout) == pytest.approx(expected, rel=1e-5)


def test_every_layout_holds_what_any_other_saved_bit_for_bit(layout: str, runs: Path) -> None:
    for rank in range(2):
        found = json.loads((runs / f"found-{rank}.json").read_text())[layout]
        others = {o for o in LAYOUTS if model_of(o) == model_of(layout) and not missing(o)}
        assert found.keys() == others
        assert {saved: names[:3] for saved, names in found.items() if names} == {}


def test_a_run_goes_on_in_another_layout(layout: str, runs: Path) -> None:
    """With the losses and the stream that it would have had."""
    alone = runs / ALONE[model_of(layout)]
    assert losses(runs / f"resumed {layout}") == pytest.approx(losses(alone)[SAVED:], rel=1e-5)
    here, there = (
        read_state(step_folder(runs, run, STEPS)) for run in (f"resumed {layout}", alone.name)
    )
    assert (here.stream, here.tokens_seen) == (there.stream, there.tokens_seen)
    assert here.ledger == there.ledger


@pytest.mark.parametrize("model", list(ALONE), ids=["family experts", "token experts"])
def test_one_process_goes_on_from_two(
    model: str, prepared: Prepared, xylem: Command, runs: Path, tmp_path: Path
) -> None:
    saved = "family and shard" if model == FAMILY_EXPERTS else "expert"
    settings = [*run_settings(prepared, tmp_path, "run"), *SETTINGS, model]
    done = xylem("pretrain", *settings, f"checkpoint.resume={step_folder(runs, saved)}")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(runs / ALONE[model])[SAVED:], rel=1e-5)
