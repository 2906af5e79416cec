"""Arithmetic of a layout's plan: parts as the engines cut them, groups, links, time."""

import dataclasses

import pytest

from xylem.model.config import LayerPlan, ModelConfig, RoutingConfig
from xylem.model.decoder import build_decoder
from xylem.model.layout import Layout
from xylem.model.part import local_shape, parameter_view, part_of
from xylem.train.hardware import hardware_named
from xylem.train.layout_memory import in_flight
from xylem.train.layout_parts import Inventory, Work, hosts, rank_classes
from xylem.train.layout_plan import everywhere, plan_layout
from xylem.train.layout_tables import numbers
from xylem.train.layout_time import collective_seconds
from xylem.train.layout_traffic import Traffic, group_of
from xylem.train.stages import planned_stages

FAMILIES = ("alpha", "beta", "gamma")


def model(router: str = "family", tied: bool = True) -> ModelConfig:
    return ModelConfig(
        vocab_size=64, hidden_size=32, heads=4, kv_heads=2, head_dim=8, tied_embeddings=tied,
        layer_plan=(
            LayerPlan(trunk_width=64, expert_width=32, router=router),  # type: ignore[arg-type]
            LayerPlan(repeat=2, trunk_width=48),
            LayerPlan(trunk_width=64, expert_width=16),
        ),
        routing=RoutingConfig(),
    )  # fmt: skip


def work(**changes: object) -> Work:
    asked = Work(
        model=model(), families=FAMILIES, sequence_length=16, slot_sequences=2, slots=24,
        precision="fp32", device="cpu",
    )  # fmt: skip
    return dataclasses.replace(asked, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("router", ["family", "topk"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "layout",
    [
        Layout(data=2, family=3),
        Layout(data=2, family=3, tensor=2),
        Layout(data=1, family=3, pipeline=2, tensor=2),
        Layout(data=2, family=3, pipeline=2, virtual=2, context=2),
    ],
)
def test_every_rank_holds_what_the_engines_cut_for_it(
    layout: Layout, router: str, tied: bool
) -> None:
    config = model(router, tied)
    pieces = [frozenset({"alpha"}), frozenset({"alpha", "beta"}), frozenset({"gamma"})]
    hosted = [piece for piece in pieces for _ in range(layout.data)]
    stages = planned_stages(config, FAMILIES, layout, 16)
    decoder = build_decoder(config, FAMILIES, seed=0, device="meta")
    inventory, seen = Inventory(config, FAMILIES), []
    for each in rank_classes(layout, pieces, stages):
        held = inventory.held(each.part)
        for rank in each.ranks(layout):
            seen.append(rank)
            part = part_of(layout, layout.place(rank), stages=stages, hosted=hosted)
            expected = {}
            for name, parameter in decoder.named_parameters():
                view = parameter_view(name, parameter.shape, part, config, FAMILIES)
                if view is not None:
                    expected[name] = local_shape(view)
            sizes = {name: shape[0] for name, shape in expected.items()}
            assert dict(zip(held.names.tolist(), held.rows.tolist(), strict=True)) == sizes
            total = sum(parameter_elements(shape) for shape in expected.values())
            assert held.elements.sum() == total
    assert sorted(seen) == list(range(layout.world))


def parameter_elements(shape: tuple[int, ...]) -> int:
    size = 1
    for each in shape:
        size *= each
    return size


def test_a_familys_gradient_is_added_up_over_its_hosts_alone() -> None:
    layout = Layout(data=2, family=3)
    pieces = [frozenset({"alpha"}), frozenset({"alpha", "beta"}), frozenset({"gamma"})]
    assert hosts(layout, pieces, FAMILIES).tolist() == [4, 2, 2]
    plan = plan_layout(work(), layout, lambda _: pieces, hardware_named("h100"), node=6)
    middle = plan.classes[1].traffic
    expert = 4 * 3 * 32 * (32 + 16)
    sent = {t.group.size: t.bytes for t in middle if t.what == "family gradients"}
    assert sent == {4: expert, 2: expert}
    # A step in which a family has no slot moves nothing of it.
    quiet = plan_layout(
        work(), layout, lambda _: pieces, hardware_named("h100"), node=6, present=["beta"]
    )
    assert [t.group.size for t in quiet.classes[1].traffic if t.what == "family gradients"] == [2]
    assert not [t for t in quiet.classes[0].traffic if t.what == "family gradients"]


def test_rings_leave_a_node_once_and_all_to_all_for_every_peer_elsewhere() -> None:
    group = group_of(16, 1, 8)
    assert (group.size, group.together) == (16, 8) and group_of(16, 8, 8).together == 1
    assert group_of(4, 4, 8).together == 2
    ring = Traffic(kind="all_reduce", what="gradients", group=group, bytes=1600, calls=1)
    assert ring.wire == pytest.approx(3000) and ring.across == pytest.approx(375)
    spread = dataclasses.replace(ring, kind="all_to_all")
    assert spread.wire == pytest.approx(1500) and spread.across == pytest.approx(800)
    inside = dataclasses.replace(ring, group=group_of(8, 1, 8))
    assert inside.across == 0


def test_experts_exchange_counts_rows_and_weights() -> None:
    routed = work(model=model("topk"), recompute=1)
    layout = Layout(data=4, expert=4)

    def calls(asked: Work) -> int:
        plan = plan_layout(asked, layout, everywhere(asked), hardware_named("h100"), node=8)
        (exchanged,) = (t for t in plan.slowest.traffic if t.what == "experts")
        return exchanged.calls

    # Of six micro-batches through one routed layer: four forward, three backward.
    assert calls(dataclasses.replace(routed, recompute=0)) == 6 * 7
    assert calls(routed) == 6 * (7 + 4)


def test_a_collective_takes_the_slower_of_its_links() -> None:
    h100 = hardware_named("h100")
    large = Traffic(
        kind="all_reduce", what="gradients", group=group_of(16, 8, 8), bytes=10**10, calls=1
    )
    alone = collective_seconds(large, h100)
    together = collective_seconds(dataclasses.replace(large, group=group_of(16, 1, 8)), h100)
    assert alone == pytest.approx(large.wire / 50e9 / 0.8, rel=1e-3)
    assert together == pytest.approx(large.wire / 400e9 / 0.8, rel=1e-2)
    assert collective_seconds(dataclasses.replace(large, group=group_of(1, 1, 8)), h100) == 0


def test_the_first_stage_of_a_pipeline_waits_for_the_most() -> None:
    layout = Layout(data=1, pipeline=4)
    assert [in_flight(layout, stage, 8) for stage in range(4)] == [4, 3, 2, 1]
    # Fewer than stages are filled in before any is drained.
    assert [in_flight(layout, stage, 2) for stage in range(4)] == [2, 2, 2, 2]
    assert in_flight(dataclasses.replace(layout, virtual=2), 0, 8) == pytest.approx(5.5)


def test_more_micro_batches_shrink_the_bubble_and_recomputation_adds_work() -> None:
    layout, h100 = Layout(data=1, pipeline=2), hardware_named("h100")

    def time(**changes: object):  # type: ignore[no-untyped-def]
        asked = work(**changes)
        return plan_layout(asked, layout, everywhere(asked), h100, node=8).slowest.time

    assert time(micro_slots=1).bubble < time(micro_slots=4).bubble < time(micro_slots=12).bubble
    assert time(recompute=1).compute > time().compute * 1.2
    assert time().total > time().compute


def test_sharding_divides_the_trunks_states_and_leaves_the_experts() -> None:
    layout, h100 = Layout(data=4), hardware_named("h100")

    def memory(shard: str):  # type: ignore[no-untyped-def]
        asked = work(shard=shard)
        return plan_layout(asked, layout, everywhere(asked), h100, node=8).fullest.memory

    experts = 4 * 3 * 3 * 32 * (32 + 16)
    whole, cut = memory("none"), memory("full")
    assert cut.parameters - experts == pytest.approx((whole.parameters - experts) / 4, rel=0.01)
    assert cut.optimiser == 2 * cut.parameters


def test_zero_cuts_states_then_gradients_then_weights_over_the_holders() -> None:
    layout, h100 = Layout(data=4), hardware_named("h100")
    plans = []
    for zero in range(4):
        asked = work(zero=zero)
        plans.append(plan_layout(asked, layout, everywhere(asked), h100, node=8).fullest.memory)
    whole = plans[0].parameters
    for zero, memory in enumerate(plans):
        cut = [memory.optimiser / 2, memory.gradients, memory.parameters]
        for stage, size in enumerate(cut, start=1):
            assert size == pytest.approx(whole / 4 if zero >= stage else whole, rel=0.02)


def test_ranks_are_told_as_runs() -> None:
    assert numbers([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert numbers(range(0, 40, 2)).endswith("… (20 in all)")
