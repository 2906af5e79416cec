"""ZeRO 1, 2 and 3 over two processes: losses, norms, weights and state of one process alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ..conftest import Command, Prepared, environment, run_settings, train_losses
from .deepspeed_parts import RESUMED, RUNS

pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")

SETTINGS = (
    "model.tied_embeddings=true",
    "optim.clip_norm=1.0",
    "optim.warmup_steps=5",
    "optim.learning_rate=0.003",
    "checkpoint.every=10",
)


@pytest.fixture(scope="module")
def runs(prepared: Prepared, xylem: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs: `alone` is one process of engine=torch."""
    root = tmp_path_factory.mktemp("deepspeed")
    settings = run_settings(prepared, root, "alone", *SETTINGS)
    done = xylem("pretrain", *settings)
    assert done.returncode == 0, done.stderr
    script = str(Path(__file__).with_name("deepspeed_parts.py"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launched = subprocess.run(
        [*launcher, script, str(root), *settings],
        env=environment(OMP_WAIT_POLICY="PASSIVE"),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert launched.returncode == 0, launched.stdout + launched.stderr
    (root / "out").write_text(launched.stdout)
    (root / "err").write_text(launched.stderr)
    return root


def rows(run: Path, kind: str, key: str) -> list[float]:
    from xylem.train.metrics import read_metrics

    return [row[key] for row in read_metrics(run, kind)]


@pytest.mark.parametrize("name", RUNS)
def test_zero_gives_one_process_losses_and_norms(name: str, runs: Path) -> None:
    assert len(train_losses(runs / "alone")) == 20
    assert train_losses(runs / name) == pytest.approx(train_losses(runs / "alone"), rel=1e-5)
    norms, expected = (rows(runs / run, "train", "gradient_norm") for run in (name, "alone"))
    assert norms == pytest.approx(expected, rel=1e-4)
    assert max(expected) > 1.0 > min(expected), "clipping must bite, and not always"
    heldout, expected = (rows(runs / run, "heldout", "mean_bpb") for run in (name, "alone"))
    assert heldout == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", [*RUNS, *sorted(RESUMED.keys() - {"resumed-bf16"})])
def test_zero_writes_one_process_checkpoint(name: str, runs: Path) -> None:
    """Every weight and every state of AdamW under its canonical name, in the same files."""
    written = runs / "alone" / "checkpoints" / "step-20"
    files = {file.name for file in written.glob("*.safetensors")} - {"rng.safetensors"}
    theirs = {file.name for file in (runs / name / "checkpoints" / "step-20").glob("*.safetensors")}
    assert theirs - {"rng.safetensors"} == files
    steps: set[float] = set()
    for file in files:
        expected = load_file(written / file)
        found = load_file(runs / name / "checkpoints" / "step-20" / file)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert found[key].shape == tensor.shape, key
            difference = (found[key] - tensor).abs().max().item()
            scale = tensor.abs().max().item()
            assert difference <= 1e-5 * max(scale, 1.0 if "/" not in key else 0.0) + 1e-9, key
            if key.endswith("/step"):
                assert found[key].item() == tensor.item(), key
                steps.add(tensor.item())
    assert len(steps) > 1, "some family must miss a step"


@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_of_one_process_goes_on_under_zero(name: str, runs: Path) -> None:
    rest = rows(runs / name, "train", "loss")
    near = 1e-2 if name == "resumed-bf16" else 1e-5
    assert rest == pytest.approx(train_losses(runs / "alone")[10:], rel=near)
    assert (rest != pytest.approx(train_losses(runs / "alone")[10:], rel=1e-5)) == (near == 1e-2)


@pytest.mark.parametrize("name", RUNS)
def test_every_element_is_one_process_and_families_are_their_hosts(name: str, runs: Path) -> None:
    """So that ZeRO reduces a family's gradients only where it is hosted."""
    from xylem.model.decoder import parameter_family

    told = [json.loads((runs / f"held-{name}-{rank}").read_text()) for rank in range(2)]
    apart = {f for f in told[0]["hosted"] + told[1]["hosted"]} - (
        set(told[0]["hosted"]) & set(told[1]["hosted"])
    )
    assert bool(apart) == ("family-2" in name), "some family must have one host alone"
    ranges: dict[str, list[tuple[int, int]]] = {}
    for of_rank in told:
        for parameter, start, stop in of_rank["held"]:
            family = parameter_family(parameter)
            assert family is None or family in of_rank["hosted"], parameter
            ranges.setdefault(parameter, []).append((start, stop))
    written = runs / name / "checkpoints" / "step-20"
    shapes = {
        key: tensor.numel()
        for file in written.glob("[ft]*.safetensors")
        for key, tensor in load_file(file).items()
    }
    assert ranges.keys() == shapes.keys()
    for parameter, held in ranges.items():
        starts, stops = zip(*sorted(held), strict=True)
        assert (0, *stops) == (*starts, shapes[parameter]), parameter


def test_a_gradient_that_is_no_number_is_refused_by_all_and_moves_nothing(runs: Path) -> None:
    for rank in range(2):
        said = (runs / f"nan-{rank}").read_text()
        assert said.startswith("FloatingPointError: the gradient's norm is nan at step 7"), said


def test_a_checkpoint_of_two_processes_goes_on_under_one(
    runs: Path, prepared: Prepared, xylem: Command
) -> None:
    more = ("engine=deepspeed", "engine.zero.stage=3", "engine.zero.persistent_elements=100")
    middle = f"checkpoint.resume={runs / 'zero-1-family-2' / 'checkpoints' / 'step-10'}"
    done = xylem("pretrain", *run_settings(prepared, runs, "one", *SETTINGS, *more, middle))
    assert done.returncode == 0, done.stdout + done.stderr
    rest = rows(runs / "one", "train", "loss")
    assert rest == pytest.approx(train_losses(runs / "alone")[10:], rel=1e-5)


def test_deepspeed_config_is_in_the_run_folder_and_shown(runs: Path) -> None:
    written = json.loads((runs / "zero-2" / "deepspeed.json").read_text())
    assert written["zero_optimization"]["stage"] == 2
    assert written["zero_optimization"]["reduce_bucket_size"] == 5000
    assert written["gradient_clipping"] == 1.0
    assert json.dumps(written) in (runs / "out").read_text()


def test_deepspeed_is_quiet(runs: Path) -> None:
    for said in ((runs / "out").read_text(), (runs / "err").read_text()):
        assert "[WARNING]" not in said and "[INFO]" not in said and "FutureWarning" not in said


def test_a_checkpoint_without_latest_does_not_start_anew(
    runs: Path, prepared: Prepared, xylem: Command
) -> None:
    """DeepSpeed's own loading returns quietly there, and trains from the first step again."""
    (runs / "zero-1" / "checkpoints" / "latest").unlink()
    more = ("engine=deepspeed", "engine.zero.stage=1")
    settings = run_settings(prepared, runs, "zero-1", *SETTINGS, *more)
    done = xylem("pretrain", *settings)
    assert "resumed at step 20" in done.stdout, done.stdout + done.stderr
    missing = runs / "zero-1" / "checkpoints" / "step-11"
    settings = run_settings(
        prepared, runs, "other", *SETTINGS, *more, f"checkpoint.resume={missing}"
    )
    done = xylem("pretrain", *settings)
    assert done.returncode != 0 and "is no checkpoint" in done.stderr
