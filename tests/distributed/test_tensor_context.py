"""Tensor and context parallelism give one process's losses, counts and gradients, to rounding."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import environment

LAYOUTS = ("tensor 2", "context 2", "tensor 2 x context 2")
EXACT = ("family", "untied", "recompute")
SINGLE = ("gate", "prior", "topk", "hybrid", "domain")
"""Cases of which some part counts in float32."""

Distances = dict[tuple[str, str, str], float]


@pytest.fixture(scope="module")
def distances(tmp_path_factory: pytest.TempPathFactory) -> Distances:
    """(layout, case, what) -> the worst distance of four processes from one."""
    folder = tmp_path_factory.mktemp("tensor_context")
    script = str(Path(__file__).with_name("tensor_context_parts.py"))
    subprocess.run([sys.executable, script, str(folder)], env=environment(), check=True)
    worst: Distances = {}
    for rank in range(4):
        told = json.loads((folder / f"rank-{rank}.json").read_text())
        for layout, cases in told.items():
            for case, values in cases.items():
                for what, distance in values.items():
                    key = layout, case, what
                    worst[key] = max(worst.get(key, 0.0), distance)
    return worst


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", EXACT)
def test_family_experts_are_exact_in_double_precision(
    distances: Distances, layout: str, case: str
) -> None:
    assert distances[layout, case, "gradient"] < 1e-12
    assert distances[layout, case, "sum"] < 1e-12


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", SINGLE)
def test_routers_gates_masks_and_their_losses_are_exact_to_single_precision(
    distances: Distances, layout: str, case: str
) -> None:
    assert distances[layout, case, "gradient"] < 2e-6
    assert distances[layout, case, "sum"] < 2e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision_is_as_close_as_its_rounding(distances: Distances, layout: str) -> None:
    assert distances[layout, "bf16", "gradient"] < 0.1
    assert distances[layout, "bf16", "sum"] < 2e-3


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_a_shared_vocabularys_loss_is_that_of_the_whole(distances: Distances, rows: int) -> None:
    for what in ("loss", "hidden", "head"):
        assert distances["tensor 2", f"loss in chunks of {rows}", what] < 1e-13
    # Bit for bit, so that no process stops where the other goes on.
    assert distances["tensor 2", f"loss in chunks of {rows}", "ranks"] == 0


@pytest.mark.parametrize(
    ("layout", "name"),
    [("tensor 2", "enter"), ("tensor 2", "leave"), ("tensor 2", "in_order"),
     ("context 2", "over_context"), ("context 2", "in_order"),
     ("tensor 2 x context 2", "in_order")],
)  # fmt: skip
def test_collectives_and_their_derivatives(distances: Distances, layout: str, name: str) -> None:
    assert distances[layout, "collectives", name] < 1e-14
    assert distances[layout, "collectives", f"{name}'s derivative"] < 1e-14
