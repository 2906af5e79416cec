"""Searches for a layout: only legal ones, ranked, and a refusal that says what would fit."""

import dataclasses
import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from xylem.data.errors import DataError
from xylem.data.manifest import Manifest
from xylem.model.config import LayerPlan, ModelConfig
from xylem.model.layout import Layout, check_layout
from xylem.train.compose import compose_config
from xylem.train.errors import UserError
from xylem.train.hardware import hardware_named
from xylem.train.layout_parts import Work
from xylem.train.layout_plan import Hosting, LayoutPlan, plan_layout
from xylem.train.layout_search import (
    Cluster,
    check_fits,
    cluster_words,
    engine_check,
    legal_layouts,
    parse_cluster,
    print_proposals,
    search,
    settings_of,
)

from ..conftest import Command, Prepared, run_settings

FAMILIES = ("alpha", "beta", "gamma", "delta")


def work(hidden: int = 512, slots: int = 32) -> Work:
    model = ModelConfig(
        vocab_size=1024, hidden_size=hidden, heads=8, kv_heads=4, head_dim=64,
        layer_plan=(LayerPlan(repeat=4, trunk_width=1024, expert_width=512),),
    )  # fmt: skip
    return Work(model=model, families=FAMILIES, sequence_length=256, slot_sequences=1, slots=slots)


def one_family_a_piece(layout: Layout) -> Sequence[frozenset[str]]:
    each = len(FAMILIES) // layout.family if layout.family <= 4 else 1
    return [frozenset(FAMILIES[i * each : (i + 1) * each]) for i in range(layout.family)]


def cluster(nodes: int = 2, **more: float) -> Cluster:
    hardware = dataclasses.replace(hardware_named("h100"), **more)  # type: ignore[arg-type]
    return Cluster(nodes=nodes, processes_per_node=8, hardware=hardware, name="h100")


def test_every_proposal_is_a_legal_layout_of_the_whole_cluster() -> None:
    asked = work()
    layouts = list(legal_layouts(asked, cluster()))
    assert len(layouts) == len(set(layouts)) > 20
    for layout in layouts:
        check_layout(asked.model, FAMILIES, layout, asked.sequence_length)
        assert layout.world == 16 and asked.slots % layout.readers == 0
        assert layout.resolved(16) == layout
    assert {layout.tensor for layout in layouts} == {1, 2, 4}  # four heads of keys
    assert {layout.family for layout in layouts} == {1, 2, 4}


def test_what_fits_is_ranked_by_predicted_time() -> None:
    found = search(work(), cluster(), one_family_a_piece)
    seconds = [plan.step_seconds for plan in found.fitting]
    assert seconds == sorted(seconds) and len(seconds) == found.considered
    console = Console(file=io.StringIO(), width=200)
    print_proposals(found, cluster(), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 nodes of 8 h100" in text and str(found.fitting[0].layout) in text
    assert "not measured" in text and " ".join(settings_of(found.fitting[0])) in text


def test_the_search_sees_what_the_whole_plan_sees() -> None:
    asked, where = work(), cluster()
    for plan in search(asked, where, one_family_a_piece).fitting[::50]:
        whole = plan_layout(plan.work, plan.layout, one_family_a_piece, where.hardware, node=8)
        assert plan.fullest.memory.peak == whole.fullest.memory.peak
        assert plan.step_seconds == pytest.approx(whole.step_seconds)


def proposed(*settings: str) -> list[LayoutPlan]:
    """What is proposed to a config's engine."""
    data = ("data=default", "data.prepared=nowhere", "data.corpus=nowhere", "run.name=searched")
    config = compose_config((*data, "data.slots_per_step=32", *settings))
    config = dataclasses.replace(config, model=work().model)
    check = engine_check(config, FAMILIES)
    return list(search(work(), cluster(), one_family_a_piece, check).fitting)


def test_only_what_the_engine_can_run_is_proposed() -> None:
    def largest(plans: list[LayoutPlan], *names: str) -> set[int]:
        return {max(getattr(plan.layout, name) for plan in plans) for name in names}

    def shards(plans: list[LayoutPlan]) -> set[str]:
        return {plan.work.shard for plan in plans}

    muon = proposed("optim=muon")
    assert largest(muon, "tensor") == {1} and shards(muon) == {"none"}
    assert min(largest(muon, "family", "context", "pipeline")) > 1
    zero = proposed("engine=deepspeed")
    assert largest(zero, "tensor", "context", "pipeline", "expert") == {1}
    assert largest(zero, "family") == {4} and shards(zero) == {"none"}
    megatron = proposed("engine=megatron")
    assert largest(megatron, "family", "expert") == {1} and largest(megatron, "tensor") == {4}
    assert any(plan.work.shard == "full" and plan.layout.pipeline > 1 for plan in proposed())


def test_a_search_that_the_engine_refuses_altogether_says_why() -> None:
    offloaded = ("engine.zero.offload=nvme", "engine.zero.nvme_path=/local/disk")
    with pytest.raises(UserError, match="engine.zero.offload=nvme cannot run yet"):
        proposed("engine=deepspeed", "engine.zero.stage=3", *offloaded)


def test_a_refusal_names_the_smallest_that_would_fit() -> None:
    where = cluster(memory_gib=0.01)
    found = search(work(), where, one_family_a_piece)
    assert not found.fitting
    with pytest.raises(UserError) as refused:
        check_fits(found, where)
    said = str(refused.value)
    assert f"none of {found.considered} layouts fits h100, which has 0.01 GiB" in said
    assert str(found.smallest.layout) in said and "take more nodes" in said


def test_processes_that_no_slots_can_be_cut_for_are_refused() -> None:
    with pytest.raises(UserError, match="no layout of 56 processes is legal for .*slots_per_step="):
        search(work(slots=3), cluster(nodes=7), one_family_a_piece)


def test_more_hosts_cost_memory_and_save_nothing() -> None:
    asked, where = work(), cluster()

    def memory(hosting: Hosting) -> int:
        layout = Layout(data=4, family=4)
        return plan_layout(asked, layout, hosting, where.hardware, node=8).fullest.memory.peak

    everywhere = memory(lambda layout: [frozenset(FAMILIES)] * layout.family)
    assert everywhere > memory(one_family_a_piece)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nodes"], "--search nodes=: must be a whole number of at least 1"),
        (["nodes=0"], "--search nodes=0: must be a whole number of at least 1"),
        (["nodes=many"], "--search nodes=many: must be a whole number"),
        (["hardware=h1000"], "cluster.hardware='h1000' is not in .* did you mean h100"),
        (["processes_per_node=-1"], "processes_per_node=-1: must be a whole number"),
    ],
)
def test_a_wrong_cluster_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_cluster(words, "h100", 8)


def test_a_cluster_takes_what_is_not_named_from_the_hardware() -> None:
    assert parse_cluster(["nodes=3", "hardware=gh200"], "h100", 8).world == 12
    assert parse_cluster(["nodes=3"], "h100", 2).world == 6
    assert (
        parse_cluster(["nodes=3", "hardware=gh200", "processes_per_node=2"], "h100", 8).world == 6
    )


def test_a_clusters_words_without_a_search_are_refused() -> None:
    assert cluster_words(["nodes=2", "run.steps=1"], True) == (["nodes=2"], ["run.steps=1"])
    with pytest.raises(
        UserError, match=r"nodes=2 describes a cluster for --search; .*cluster.nodes"
    ):
        cluster_words(["nodes=2", "run.steps=1"], False)


def test_the_verb_searches_and_plans(prepared: Prepared, xylem: Command, tmp_path) -> None:  # type: ignore[no-untyped-def]
    settings = run_settings(prepared, tmp_path, "run", "run.steps=4", "model=debug")
    done = xylem("plan", *settings, "--search", "nodes=1", "hardware=cpu")
    assert done.returncode == 0, done.stderr
    assert "1 node of 2 cpu" in done.stdout and "settings of the first, for" in done.stdout
    done = xylem("plan", *settings, "cluster.processes_per_node=2", "engine.layout.family=2")
    assert done.returncode == 0, done.stderr
    assert "who holds what (family 2)" in done.stdout and "predicted step on cpu" in done.stdout


def test_a_layout_that_cannot_be_is_refused_by_the_plan(prepared: Prepared) -> None:
    from xylem.model.errors import ModelError
    from xylem.train.plan import make_plan

    manifest = Manifest.load(prepared.folder)
    for settings, error, message in (
        (["engine.layout.tensor=3", "cluster.processes_per_node=3"], ModelError, "cannot cut"),
        (["engine.layout.pipeline=2"], ModelError, "needs a multiple of 2 processes"),
        (["engine.micro_slots=3"], DataError, "is not a multiple of 1 processes"),
        (["cluster.hardware=tpu"], UserError, "cluster.hardware='tpu' is not in"),
        (["optim=muon", "engine.shard=full"], UserError, "orthogonalises whole matrices"),
        (
            ["engine=deepspeed", "engine.layout.tensor=2", "cluster.processes_per_node=2"],
            UserError,
            "tensor=2 cannot run with engine.name=deepspeed",
        ),
        (
            ["engine=megatron", "engine.layout.family=2", "cluster.processes_per_node=2"],
            UserError,
            "family=2 has no meaning there",
        ),
        (
            [
                "engine.layout.pipeline=2",
                "engine.layout.virtual=2",
                "cluster.processes_per_node=2",
                "data.slots_per_step=3",
                "model.layer_plan=[{repeat: 4, trunk_width: 64}]",
            ],
            UserError,
            "engine.layout.virtual=2 runs micro-batches 2 at a time",
        ),
    ):
        config = compose_config([*prepared.settings, "model=debug", *settings])
        with pytest.raises(error, match=message):
            make_plan(config, manifest)
