"""Megatron-core's layers, schedules and optimisers against the canonical decoder, over gloo.

One launch of processes runs many layouts one after the other (`megatron_parts.py`); each test reads
what its own gave. Fixes of errors that no loss curve shows are taken out in turn, and seen to fail.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ..conftest import environment

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("megatron") is None, reason="needs megatron-core"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU shim is for machines without"),
]

ON_TWO = {
    "tensor": "tensor=2",
    "pipeline": "pipeline=2",
    "data": "steps=5",
    "context": "context=2,steps=5",
    "uneven micro-batches": "pipeline=2,together=3,steps=5",
    "virtual": "pipeline=2,virtual=2,steps=5",
    "untied": "tensor=2,tied=false,steps=5",
    "recompute": "tensor=2,recompute=1,steps=5",
    "overlap": "overlap_grad_reduce=true,overlap_param_gather=true,bucket_size=500,steps=5",
    "experts of Megatron, all-to-all": "expert=2,dispatcher=alltoall",
    "experts of Megatron, all-gather": "expert=2,dispatcher=allgather,steps=5",
    "zero": "optimizer=zero",
    "zero tensor": "tensor=2,optimizer=zero,steps=5",
    "zero pipeline": "pipeline=2,optimizer=zero,steps=5",
    "zero context": "context=2,optimizer=zero,steps=5",
    "without division": "steps=5,without=division",
    "without qk norms": "tensor=2,optimizer=zero,steps=5,without=qk_norms",
    "without layer norms": "tensor=2,optimizer=zero,steps=5,without=layer_norms",
    "without ends": "pipeline=2,optimizer=zero,steps=5,without=ends",
    "without sum": "optimizer=zero,steps=5,without=sum",
    "half": "tensor=2,precision=bf16,steps=5",
    "half zero": "optimizer=zero,precision=bf16,steps=5",
    "resumed tensor": "kind=resumed,tensor=2",
    "resumed pipeline": "kind=resumed,pipeline=2",
    "resumed zero": "kind=resumed,optimizer=zero",
    "resharded": "kind=resharded,tensor=2",
    "resharded without halves": "kind=resharded,tensor=2,without=halves",
    "rare": "kind=rare",
    "rare zero": "kind=rare,optimizer=zero",
    "rare, all moved": "kind=rare,moves_all=true",
    "scored tensor": "kind=scored,tensor=2",
    "scored pipeline": "kind=scored,pipeline=2",
    "scored context": "kind=scored,context=2",
    "told": "kind=told",
    "told without copy": "kind=told,without=copy",
}
ON_FOUR = {
    "tensor pipeline": "tensor=2,pipeline=2",
    "tensor data": "tensor=2",
    "tensor context": "tensor=2,context=2,steps=5",
    "zero tensor pipeline": "tensor=2,pipeline=2,optimizer=zero,steps=5",
    "zero tensor data": "tensor=2,optimizer=zero,steps=5",
}
Results = dict[str, Any]


def launch(cases: dict[str, str], processes: int, folder: Path) -> Results:
    """What the cases gave on so many processes."""
    module = "tests.distributed.megatron_parts"
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    wanted = [f"{name}:{case}" for name, case in cases.items()]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", module, str(folder), *wanted],
        cwd=Path(__file__).resolve().parents[2],
        env=environment(TORCHDYNAMO_DISABLE="1"), capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    results: Results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What two processes gave."""
    return launch(ON_TWO, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def on_four(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What four gave."""
    return launch(ON_FOUR, 4, tmp_path_factory.mktemp("four"))


def apart(results: Results, name: str, first: int = 0) -> tuple[float, float]:
    """Largest relative differences of losses and gradient norms from the plain course's."""
    plain = results["plain_untied" if name == "untied" else "plain"]
    given = results[name]
    return tuple(
        max(
            abs(a - b) / b
            for a, b in zip(given[kind], plain[kind][first : first + len(given[kind])], strict=True)
        )
        for kind in ("losses", "norms")
    )  # type: ignore[return-value]


def check_parity(results: Results, name: str) -> None:
    """Losses and norms, and at the end weights and Adam's state, are the plain course's."""
    loss, norm = apart(results, name)
    assert loss < 1e-5 and norm < 1e-5
    assert results[name]["weights"] < 1e-5 and results[name]["state"] < 1e-5


@pytest.mark.parametrize("name", [
    "tensor", "pipeline", "data", "context", "virtual", "uneven micro-batches", "untied",
    "recompute", "overlap",
    "experts of Megatron, all-to-all", "experts of Megatron, all-gather",
    "zero", "zero tensor", "zero pipeline", "zero context",
])  # fmt: skip
def test_two_processes_repeat_the_course_of_the_canonical_decoder(
    on_two: Results, name: str
) -> None:
    check_parity(on_two, name)


@pytest.mark.parametrize("name", list(ON_FOUR))
def test_four_processes_repeat_the_course_of_the_canonical_decoder(
    on_four: Results, name: str
) -> None:
    check_parity(on_four, name)


@pytest.mark.parametrize("name", ["half", "half zero"])
def test_bf16_stays_near_the_course_in_float32(on_two: Results, name: str) -> None:
    loss, norm = apart(on_two, name)
    assert loss < 2e-3 and norm < 2e-2


@pytest.mark.parametrize("name", ["resumed tensor", "resumed pipeline", "resumed zero"])
def test_a_plain_checkpoint_is_taken_over_and_goes_on_equally(on_two: Results, name: str) -> None:
    assert on_two[name]["held"] == 0  # weights and Adam's state, every element written once
    loss, norm = apart(on_two, name, first=10)
    assert loss < 1e-5 and norm < 1e-5


@pytest.mark.parametrize("name", ["rare", "rare zero"])
def test_a_family_without_a_slot_keeps_weights_and_state_to_the_bit(
    on_two: Results, name: str
) -> None:
    assert on_two[name]["idle"] == 0 < on_two[name]["used"]
    assert on_two["rare, all moved"]["idle"] > 0  # zeros for gradients would move it


@pytest.mark.parametrize("name", ["scored tensor", "scored pipeline", "scored context"])
def test_held_out_losses_are_the_canonical_decoders(on_two: Results, name: str) -> None:
    assert on_two[name]["nll"] < 1e-5


# Errors that run, and that no loss curve shows.


def test_zero_adds_up_query_and_key_norms_over_tensor_ranks(on_two: Results) -> None:
    assert apart(on_two, "without qk norms")[1] > 1e-5
    assert on_two["without qk norms"]["weights"] > 1e-4


def test_zero_adds_up_sequence_parallel_norms_over_tensor_ranks(on_two: Results) -> None:
    assert apart(on_two, "without layer norms")[1] > 1e-5
    assert on_two["without layer norms"]["weights"] > 1e-4


def test_zero_adds_up_tied_embeddings_over_both_ends_of_the_pipeline(on_two: Results) -> None:
    assert apart(on_two, "without ends")[1] > 1e-2


def test_zero_sums_gradients_once_a_step_under_megatrons_schedule(on_two: Results) -> None:
    assert apart(on_two, "without sum")[1] > 0.4


def test_megatron_divides_no_gradient_by_micro_batches_or_ranks(on_two: Results) -> None:
    assert apart(on_two, "without division")[1] > 0.4


def test_gate_and_up_survive_from_two_tensor_ranks_to_one(on_two: Results) -> None:
    expected = on_two["plain"]["losses"][5]
    assert abs(on_two["resharded"]["loss"] - expected) < 1e-5 * expected
    assert abs(on_two["resharded without halves"]["loss"] - expected) > 1e-3 * expected


def test_a_told_loss_is_not_what_megatron_divides_in_its_place(on_two: Results) -> None:
    assert on_two["told"]["told"] == on_two["told"]["made"]
    assert on_two["told without copy"]["told"] != on_two["told without copy"]["made"]
