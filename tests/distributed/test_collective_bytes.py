"""Every collective is counted once, by kind, whoever calls it; two processes over gloo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xylem.train.collective_bytes import wire_share

from ..conftest import environment


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, dict[str, int]]]]:
    folder = tmp_path_factory.mktemp("collectives")
    script = str(Path(__file__).with_name("collective_parts.py"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launcher, script, str(folder)], env=environment(), check=True, timeout=120)
    return [json.loads((folder / f"rank-{rank}").read_text()) for rank in range(2)]


def test_calls_of_torch_distributed_are_counted_by_kind(counts) -> None:  # type: ignore[no-untyped-def]
    for rank in range(2):
        assert counts[rank]["plain"]["put in"] == {
            "all_reduce": 32, "all_gather": 64, "reduce_scatter": 32, "all_to_all": 32 + 16,
            "send": 32, "broadcast": 32,
        }  # fmt: skip
        assert counts[rank]["plain"]["sent"] == {
            "all_reduce": 32, "all_gather": 64, "reduce_scatter": 16, "all_to_all": 16 + 8,
            "send": 32, "broadcast": 32,
        }  # fmt: skip


def test_the_backward_pass_and_functional_collectives_are_counted(counts) -> None:  # type: ignore[no-untyped-def]
    assert counts[0]["backward"]["put in"] == {"all_reduce": 12 + 20}


def test_fsdp_is_counted(counts) -> None:  # type: ignore[no-untyped-def]
    half = 4 * (16 * 16 + 16) // 2  # of one layer, which the other process lacks
    # The first layer is gathered again in the backward pass, the root stays.
    assert counts[0]["fsdp"]["put in"] == {"all_gather": 3 * half, "reduce_scatter": 4 * half}


def test_dtensor_is_counted(counts) -> None:  # type: ignore[no-untyped-def]
    assert counts[0]["rows"]["put in"] == {"all_reduce": 4 * 2 * 16}


def test_names_and_counts_are_told_from_data(counts) -> None:  # type: ignore[no-untyped-def]
    assert counts[0]["control"]["put in"] == {} and counts[0]["control"]["calls"] >= 3


def test_a_group_of_one_sends_nothing(counts) -> None:  # type: ignore[no-untyped-def]
    assert counts[0]["alone"]["sent"] == {} and counts[0]["world"]["total"] == 0


def test_a_ring_sends_what_the_others_lack() -> None:
    assert wire_share("all_reduce", 4) == pytest.approx(1.5)
    assert wire_share("all_gather", 4) == 3
    assert wire_share("reduce_scatter", 4) == pytest.approx(0.75)
    assert wire_share("all_to_all", 4) == pytest.approx(0.75)
    assert wire_share("all_reduce", 1) == 0
