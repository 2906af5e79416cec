"""Layouts: how many processes, who stands where, and which models they cannot cut."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xylem.model.config import LayerPlan, ModelConfig, RoutingConfig
from xylem.model.errors import ModelError
from xylem.model.layout import Layout, check_layout

FAMILIES = ("alpha", "beta", "gamma")
SIZES = st.integers(1, 4)


def model(**changes: Any) -> ModelConfig:
    """Four layers that two or four processes can cut in every way."""
    settings: dict[str, Any] = {
        "vocab_size": 97, "hidden_size": 32, "heads": 8, "kv_heads": 4, "head_dim": 8,
        "layer_plan": (LayerPlan(repeat=4, trunk_width=48, expert_width=16),),
    }  # fmt: skip
    return ModelConfig(**(settings | changes))


def routed(router: str, **routing: Any) -> ModelConfig:
    plan = (LayerPlan(repeat=4, trunk_width=48, expert_width=16, router=router),)  # type: ignore[arg-type]
    return model(layer_plan=plan, routing=RoutingConfig(**routing))


@given(st.tuples(SIZES, SIZES, SIZES, SIZES, SIZES))
def test_every_rank_has_a_place_of_its_own(sizes: tuple[int, ...]) -> None:
    names = ("data", "family", "tensor", "context", "pipeline")
    named: dict[str, Any] = dict(zip(names, sizes, strict=True))
    layout = Layout(**named)
    places = [layout.place(rank) for rank in range(layout.world)]
    assert len(set(places)) == layout.world
    for rank, place in enumerate(places):
        there = layout.rank(
            data=place.data, tensor=place.tensor, context=place.context, pipeline=place.pipeline
        )
        assert there == rank


def test_those_that_talk_most_are_neighbours() -> None:
    layout = Layout(data=2, tensor=2, context=2, pipeline=2)
    places = [layout.place(rank) for rank in (0, 1, 2, 4, 8)]
    moved = [(p.tensor, p.context, p.data, p.pipeline) for p in places]
    assert moved == [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]


def test_neighbours_by_data_share_out_token_routers_experts() -> None:
    layout = Layout(data=4, tensor=2, expert=2)
    assert [layout.place(rank).expert for rank in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_data_is_what_the_other_sizes_leave() -> None:
    assert Layout(tensor=2, pipeline=2).resolved(16).data == 4
    assert Layout(family=4).resolved(4) == Layout(data=1, family=4)


def test_a_layout_is_told_by_its_sizes() -> None:
    told = str(Layout(data=2, tensor=2, pipeline=2, virtual=2))
    assert told == "data 2 x tensor 2 x pipeline 2, virtual 2"
    assert str(Layout(data=1)) == "one process"


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"tensor": 0}, "engine.layout.tensor=0 must be at least 1"),
        ({"expert": -1}, "engine.layout.expert=-1 must be at least 1"),
        ({"data": -1}, "engine.layout.data=-1 must be at least 1, or 0 for the rest"),
        ({"virtual": 2}, "engine.layout.virtual=2 has no effect without a pipeline: set "
         "engine.layout.pipeline=2 or more, or engine.layout.virtual=1"),
        ({"pipeline": 2, "stages": (1, 0)}, "engine.layout.stages=[1, 0] must be 2 numbers of "
         "layers, 1 at least, for pipeline=2 x virtual=1; leave it out to split by cost"),
    ],
    ids=["no process", "less than none", "negative data", "chunks without a pipeline",
         "an empty stage"],
)  # fmt: skip
def test_sizes_that_mean_nothing_are_refused(sizes: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError) as refusal:
        Layout(**sizes)
    assert str(refusal.value) == told


@pytest.mark.parametrize(
    ("layout", "world", "told"),
    [
        (Layout(tensor=2, pipeline=2), 6, "engine.layout tensor=2 x pipeline=2 needs a multiple of "
         "4 processes, and there are 6: start 4 or 8, or change the layout"),
        (Layout(family=4), 2, "engine.layout family=4 needs a multiple of 4 processes, and there "
         "are 2: start 4, or change the layout"),
        (Layout(data=2, context=2), 2, "engine.layout data=2 x context=2 needs 4 processes, and "
         "there are 2: start 4, or change the layout"),
        (Layout(expert=4), 6, "engine.layout.expert=4 does not divide the 6 processes that read "
         "different slots (data x family): take 3"),
    ],
    ids=["no multiple", "too few", "all sizes given", "experts"],
)  # fmt: skip
def test_a_number_of_processes_that_no_layout_fits(layout: Layout, world: int, told: str) -> None:
    with pytest.raises(ModelError) as refusal:
        layout.resolved(world)
    assert str(refusal.value) == told


UNEVEN = (LayerPlan(trunk_width=48, expert_width=16), LayerPlan(trunk_width=48, expert_width=6))


@pytest.mark.parametrize(
    ("config", "layout", "T", "told"),
    [
        (model(), Layout(data=1, tensor=3), 24, "engine.layout.tensor=3 cannot cut "
         "model.kv_heads=4: every process takes whole heads; take 2"),
        (model(layer_plan=UNEVEN), Layout(data=1, tensor=4), 32, "engine.layout.tensor=4 cannot "
         "cut expert_width=6 of layer 1: it must be a multiple; take 2"),
        (model(vocab_size=3), Layout(data=1, tensor=4), 32, "engine.layout.tensor=4 is more than "
         "model.vocab_size"),
        (model(), Layout(data=1, tensor=2, context=2), 36, "engine.layout.tensor=2 and context=2 "
         "cut sequences into 8 equal pieces, and data.sequence_length=36 is no multiple of that: "
         "take 40"),
        (model(), Layout(data=1, tensor=4), 33, "engine.layout.tensor=4 and context=1 cut "
         "sequences into 4 equal pieces, and data.sequence_length=33 is no multiple of that: "
         "take 36"),
        (model(), Layout(data=1, pipeline=3, virtual=2), 32, "engine.layout.pipeline=3 x virtual=2 "
         "is more than the 4 layers: every piece holds one at least"),
        (model(), Layout(data=1, pipeline=2, stages=(2, 1)), 32, "engine.layout.stages=[2, 1] has "
         "3 layers, the model 4: their sum must be that"),
        (routed("topk"), Layout(data=1, family=2), 32, "engine.layout.family=2 has no effect: no "
         "layer has router=family; set engine.layout.family=1 (expert=2 shares out token "
         "routers')"),
        (model(), Layout(data=1, family=4), 32, "engine.layout.family=4 is more than the 3 "
         "families: take family=3 or fewer; what repeats them is engine.layout.data"),
        (model(), Layout(data=2, expert=2), 32, "engine.layout.expert=2 has no effect: no layer "
         "has a token router; set engine.layout.expert=1 (family=N shares out family experts)"),
        (routed("topk"), Layout(data=8, expert=8), 32, "engine.layout.expert=8 is more than the 6 "
         "experts of a layer"),
        (routed("topk", gate=True), Layout(data=2, expert=2), 32, "engine.layout.expert=2 cannot "
         "run with model.routing.gate=true, whose budgets stay with each family's experts: set "
         "engine.layout.expert=1"),
        (routed("prior"), Layout(data=1, pipeline=2), 32, "engine.layout.pipeline=2 cannot run "
         "with router=prior, which reads the embeddings in every layer: set "
         "engine.layout.pipeline=1"),
        (model(attention="flex"), Layout(data=1, context=2), 32, "model.attention=flex cannot run "
         "with engine.layout.context=2, whose queries see other processes' keys: set "
         "model.attention=auto"),
    ],
    ids=["heads", "widths", "vocabulary", "positions", "positions without context", "stages",
         "layers of stages",
         "family without its router", "families", "expert without a router", "experts",
         "expert and gate", "pipeline and prior", "attention"],
)  # fmt: skip
def test_a_model_that_a_layout_cannot_cut(
    config: ModelConfig, layout: Layout, T: int, told: str
) -> None:
    with pytest.raises(ModelError) as refusal:
        check_layout(config, FAMILIES, layout, T)
    assert str(refusal.value) == told


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (model(), Layout(data=2, family=3, tensor=4, context=2, pipeline=2, virtual=2)),
        (routed("prior"), Layout(data=6, tensor=2, context=4, expert=6)),
        (model(vocab_size=4), Layout(data=1, tensor=4)),
    ],
    ids=["family", "prior", "a token each"],
)
def test_what_a_layout_can_cut_is_let_pass(config: ModelConfig, layout: Layout) -> None:
    check_layout(config, FAMILIES, layout, 32)
