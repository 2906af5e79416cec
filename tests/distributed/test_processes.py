"""Several processes over gloo: losses, norms, weights and evaluations of one process."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from ..conftest import Command, Prepared, run_settings, train_losses


def results(run: Path) -> tuple[list[float], list[float], dict[str, float]]:
    from xylem.train.metrics import read_metrics

    heldout = read_metrics(run, "heldout")[-1]["languages"]
    norms = [row["gradient_norm"] for row in read_metrics(run, "train")]
    return train_losses(run), norms, {code: row["bpb"] for code, row in heldout.items()}


@pytest.fixture(scope="module")
def alone(prepared: Prepared, xylem: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("alone")
    done = xylem("pretrain", *run_settings(prepared, root, "run"))
    assert done.returncode == 0, done.stderr
    return root / "run"


@pytest.mark.parametrize(
    ("processes", "more"),
    [(2, ()), (4, ()), (2, ("engine.micro_slots=2",)), (1, ("engine.micro_slots=4",))],
)
def test_any_number_of_processes_and_any_accumulation_give_one_process_losses(
    processes: int,
    more: tuple[str, ...],
    prepared: Prepared,
    xylem: Command,
    alone: Path,
    tmp_path: Path,
) -> None:
    settings = run_settings(prepared, tmp_path, "run", *more)
    done = xylem("pretrain", *settings, processes=processes)
    assert done.returncode == 0, done.stderr
    losses, norms, heldout = results(alone)
    other_losses, other_norms, other_heldout = results(tmp_path / "run")
    assert other_losses == pytest.approx(losses, rel=1e-6)
    assert other_norms == pytest.approx(norms, rel=1e-4)
    assert other_heldout == pytest.approx(heldout, rel=1e-5)
    for file in (alone / "checkpoints" / "step-20").glob("*.safetensors"):
        if file.name == "rng.safetensors":
            continue
        theirs = load_file(tmp_path / "run" / "checkpoints" / "step-20" / file.name)
        for name, tensor in load_file(file).items():
            difference = (tensor - theirs[name]).abs().max().item()
            assert difference <= 1e-4, (name, difference)


def test_slots_that_do_not_cut_into_equal_pieces_are_refused(
    prepared: Prepared, xylem: Command, tmp_path: Path
) -> None:
    done = xylem("pretrain", *run_settings(prepared, tmp_path, "run"), processes=3)
    assert done.returncode != 0
    assert "data.slots_per_step=4 is not a multiple of 3 processes" in done.stderr
    assert "take 3 or 6" in done.stderr


def test_losses_are_the_golden_ones(alone: Path) -> None:
    """Golden losses of the debug model; a change that moves them says by how much, and why."""
    golden = Path(__file__).parent.parent / "golden" / "debug_losses.txt"
    expected = [float(line) for line in golden.read_text().split()]
    assert train_losses(alone) == pytest.approx(expected, rel=1e-5)
