"""What engine=megatron refuses, and that its CPU shim stays where it belongs."""

import ast
import importlib.metadata
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xylem.model.config import LayerPlan, ModelConfig, RoutingConfig
from xylem.model.layout import Layout
from xylem.train.engines.megatron.checks import check_model, check_packages, check_run
from xylem.train.engines.megatron.config import MegatronConfig, check_installed
from xylem.train.errors import UserError

from .. import megatron_on_cpu
from . import megatron_cases as cases

ROOT = Path(__file__).resolve().parents[2]
ALONE = Layout(data=1)


def refusal(model: ModelConfig, layout: Layout, **settings: bool) -> str:
    """What is said about a model in a layout."""
    with pytest.raises(UserError) as refused:
        check_model(model, layout, MegatronConfig(**settings), "distributed")
    return str(refused.value)


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.17.0")
    with pytest.raises(UserError, match=r"for megatron-core 0\.16\.1, and 0\.17\.0 is installed"):
        check_installed()


def test_a_missing_megatron_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=r"pip install 'xylem\[megatron\]', or set engine=torch"):
        check_installed()


def test_zero_without_deepspeed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    config = cases.run_config(cases.model(), ALONE, 20, optimizer="zero")
    with pytest.raises(UserError, match=r"engine.optimizer=zero needs DeepSpeed, .*\[deepspeed\]"):
        check_packages(config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_without_cuda_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.16.1")
    with pytest.raises(UserError, match="engine=megatron needs CUDA: .* set engine=torch"):
        check_installed()


def test_token_routers_are_refused() -> None:
    routed = ModelConfig(
        vocab_size=96, hidden_size=32, heads=4, kv_heads=2, head_dim=8,
        layer_plan=(LayerPlan(trunk_width=64, expert_width=16, router="topk"),),
    )  # fmt: skip
    told = refusal(routed, ALONE)
    assert "engine=megatron has no router=topk" in told and "engine=torch" in told


def test_gates_and_masks_are_refused() -> None:
    masked = replace(cases.model(), routing=RoutingConfig(output_masking=0.1))
    assert "cannot do model.routing.output_masking=0.1" in refusal(masked, ALONE)


@pytest.mark.parametrize("name", ["family", "expert"])
def test_layouts_that_place_experts_are_refused(name: str) -> None:
    layout = Layout(**{"data": 2, name: 2})
    assert f"engine.layout.{name}=2 has no meaning there" in refusal(cases.model(), layout)


def test_a_vocabulary_that_tensor_ranks_cannot_share_equally_is_refused() -> None:
    uneven = replace(cases.model(), vocab_size=97)
    assert "the next is 98" in refusal(uneven, Layout(data=1, tensor=2))


def test_overlap_without_what_it_overlaps_is_refused() -> None:
    told = refusal(cases.model(), ALONE, overlap_p2p_comm=True)
    assert "overlap_p2p_comm=true needs the interleaved schedule" in told
    with pytest.raises(UserError, match="overlap_param_gather=true needs"):
        MegatronConfig(overlap_param_gather=True)
    with pytest.raises(UserError, match="bucket_size=10 has no effect"):
        MegatronConfig(bucket_size=10)


def test_megatrons_overlap_flags_are_refused_under_zero() -> None:
    settings = MegatronConfig(overlap_grad_reduce=True)
    with pytest.raises(UserError, match="belongs to Megatron's own optimiser"):
        check_model(cases.model(), ALONE, settings, "zero")


def test_what_the_engine_cannot_run_is_refused() -> None:
    config = cases.run_config(cases.model(), ALONE, 20)
    check_run(config, ALONE)
    for name, value, told in (
        ("compile", True, "engine.compile=true cannot run"),
        ("recompute", 2, r"computes every layer again \(1\) or none"),
    ):
        engine = type(config.engine)(**{**vars(config.engine), name: value})
        changed = type(config)(**{**vars(config), "engine": engine})
        with pytest.raises(UserError, match=told):
            check_run(changed, ALONE)
    optim = replace(config.optim, name="muon")
    with pytest.raises(UserError, match="optim.name=muon cannot run with engine=megatron"):
        check_run(type(config)(**{**vars(config), "optim": optim}), ALONE)


def test_interleaving_needs_whole_groups_of_micro_batches() -> None:
    layout = Layout(data=1, pipeline=3, virtual=2)
    with pytest.raises(UserError, match="in groups of engine.layout.pipeline=3, and .* has 4"):
        check_run(cases.run_config(cases.model(), layout, 20), layout)


def test_the_shim_refuses_a_machine_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="this machine has CUDA"):
        megatron_on_cpu.install()


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused there already")
def test_the_shim_refuses_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.16.2")
    with pytest.raises(RuntimeError, match=r"for megatron-core 0\.16\.1, this is 0\.16\.2"):
        megatron_on_cpu.install()


def test_the_package_never_imports_the_shim() -> None:
    for room in ("model", "data", "train"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    assert "megatron_on_cpu" not in ast.unparse(node), file


def test_the_baseline_gives_every_rank_as_many_experts() -> None:
    pytest.importorskip("megatron", reason="the extra `megatron` is not installed")
    from xylem.scripts.megatron_moe_arm import MegatronMoeArm

    arm = object.__new__(MegatronMoeArm)
    arm.layout = Layout(data=3, expert=3)
    with pytest.raises(UserError, match="expert=3 does not divide the 4 families"):
        arm.check(cases.run_config(cases.model(), arm.layout, 20), cases.FAMILIES)
