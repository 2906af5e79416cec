"""What a process holds of each canonical tensor: views, and where their elements lie."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xylem.model.collectives import Sharing
from xylem.model.config import LayerPlan, ModelConfig, RoutingConfig
from xylem.model.decoder import build_decoder, canonical_shapes, canonical_views, saved_tensors
from xylem.model.layout import Layout
from xylem.model.part import (
    Part,
    Range,
    View,
    experts_here,
    local_shape,
    parameter_view,
    part_of,
    runs,
    share,
    shares,
    take,
    whole,
)

FAMILIES = ("alpha", "beta", "gamma")


def model(*, tied: bool = True, gate: bool = True) -> ModelConfig:
    """A layer of every kind, unequal families, and a vocabulary that no two share evenly."""
    return ModelConfig(
        vocab_size=97, hidden_size=24, heads=4, kv_heads=2, head_dim=8, tied_embeddings=tied,
        layer_plan=(
            LayerPlan(trunk_width=20, expert_width=6),
            LayerPlan(trunk_width=28, expert_width=4, router="prior"),
            LayerPlan(trunk_width=10),
            LayerPlan(trunk_width=12, expert_width=8, router="domain"),
        ),
        routing=RoutingConfig(gate=gate, shared_experts=1, family_experts={"beta": 3}),
    )  # fmt: skip


def parts(config: ModelConfig, layout: Layout) -> Iterator[Part]:
    """What each rank holds, with two families on even data indices and one on odd ones."""
    pieces = layout.pipeline
    stages = [tuple(range(i * 4 // pieces, (i + 1) * 4 // pieces)) for i in range(pieces)]
    hosted = [FAMILIES[:2] if d % 2 == 0 else FAMILIES[2:] for d in range(layout.readers)]
    for rank in range(layout.world):
        yield part_of(layout, layout.place(rank), stages=stages, hosted=hosted)


def numbered(shape: Sequence[int]) -> torch.Tensor:
    """Every element is its own place in the flat tensor."""
    return torch.arange(int(torch.tensor(shape).prod())).view(tuple(shape))


@st.composite
def cut_tensors(draw: st.DrawFn) -> tuple[tuple[int, ...], View]:
    """A shape of one to three dimensions, and some ranges of each in their order."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    view = []
    for size in shape:
        borders = sorted(draw(st.lists(st.integers(0, size), max_size=4)))
        ranges = [(a, b) for a, b in zip(borders[::2], borders[1::2], strict=False) if b > a]
        view.append(tuple(ranges) or ((0, size),))
    return shape, tuple(view)


@given(cut_tensors(), st.data())
def test_runs_say_where_any_stretch_of_a_local_tensor_lies(
    cut: tuple[tuple[int, ...], View], data: st.DataObject
) -> None:
    shape, view = cut
    canonical = numbered(shape)
    held = take(canonical, view)
    assert held.shape == local_shape(view)
    start = data.draw(st.integers(0, held.numel()))
    stop = data.draw(st.integers(start, held.numel()))
    flat = [i for offset, length in runs(shape, view, start, stop)
            for i in range(offset, offset + length)]  # fmt: skip
    assert flat == held.flatten()[start:stop].tolist()
    assert all(length > 0 for _, length in runs(shape, view, start, stop))


def test_a_scalar_is_one_run() -> None:
    assert list(runs((), (), 0, 1)) == [(0, 1)]
    assert list(runs((), (), 0, 0)) == []


def test_an_uncut_tensor_is_one_run() -> None:
    assert list(runs((3, 4), (((0, 3),), ((0, 4),)), 2, 11)) == [(2, 9)]


@given(st.integers(0, 200), st.integers(1, 9))
def test_shares_cover_a_size_and_are_nearly_equal(size: int, of: int) -> None:
    ranges = [share(size, index, of) for index in range(of)]
    assert [i for a, b in ranges for i in range(a, b)] == list(range(size))
    assert max(b - a for a, b in ranges) - min(b - a for a, b in ranges) <= 1


def test_shares_of_blocks_take_the_same_of_each() -> None:
    assert shares((8, 4, 4), 1, 2) == ((4, 8), (10, 12), (14, 16))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(1, 4))
def test_experts_are_shared_out_by_number_through_the_groups(sizes: list[int], of: int) -> None:
    held: list[tuple[int, int]] = []
    for index in range(of):
        part = Part(layers=(), families=frozenset(), expert=(index, of))
        here = experts_here(sizes, part)
        held += [(g, i) for g, (a, b) in enumerate(here) for i in range(a, b)]
    assert held == [(g, i) for g, size in enumerate(sizes) for i in range(size)]


LAYOUTS = {
    "one process": Layout(data=1),
    "data": Layout(data=2),
    "tensor": Layout(data=2, tensor=2),
    "pipeline": Layout(data=2, pipeline=2),
    "expert": Layout(data=4, expert=4),
    "all": Layout(data=2, family=2, tensor=2, context=2, pipeline=2, expert=2),
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_element_is_held_and_its_copies_are_equal_pieces(layout: Layout, tied: bool) -> None:
    config = model(tied=tied, gate=layout.expert == 1)  # both together are refused
    for name, shape in canonical_shapes(config, FAMILIES).items():
        views = [parameter_view(name, shape, p, config, FAMILIES) for p in parts(config, layout)]
        distinct = {view for view in views if view is not None}
        held = sorted(
            i for view in distinct for i in take(numbered(shape), view).flatten().tolist()
        )
        # A single reader hosts two families of three here.
        unhosted = layout.readers == 1 and name.startswith("layers.0.feed_forward.experts.gamma")
        wanted = [] if unhosted else list(range(int(torch.tensor(shape).prod())))
        assert held == wanted, name


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_part_is_built_as_its_views_say_and_begins_as_the_whole(layout: Layout) -> None:
    config = model(tied=False, gate=layout.expert == 1)
    canonical = saved_tensors(build_decoder(config, FAMILIES, seed=3))
    for part in dict.fromkeys(parts(config, layout)):
        decoder = build_decoder(config, FAMILIES, seed=3, sharing=Sharing(part))
        held, views = saved_tensors(decoder), canonical_views(decoder)
        assert held.keys() == views.keys()
        for name, tensor in held.items():
            shape, view = views[name]
            assert shape == canonical[name].shape
            assert torch.equal(tensor, take(canonical[name], view)), name


@pytest.mark.parametrize("context", [(0, 1), (1, 2)], ids=["alone", "context"])
def test_the_whole_and_what_shares_only_sequences_hold_everything(context: Range) -> None:
    config = model()
    part = replace(whole(config, FAMILIES), context=context)
    for name, shape in canonical_shapes(config, FAMILIES).items():
        view = parameter_view(name, shape, part, config, FAMILIES)
        assert view is not None, name
        assert torch.equal(take(numbered(shape), view), numbered(shape)), name


def ranges_of(name: str, dimension: int, **place: Range) -> tuple[Range, ...]:
    config = model(tied=False)
    part = Part(layers=(0, 1, 2, 3), families=frozenset(FAMILIES), **place)  # type: ignore[arg-type]
    view = parameter_view(name, canonical_shapes(config, FAMILIES)[name], part, config, FAMILIES)
    assert view is not None
    return view[dimension]


def test_tensor_parallelism_cuts_products_by_whole_heads_and_matching_units() -> None:
    second = {"tensor": (1, 2)}
    assert ranges_of("layers.0.attention.qkv.weight", 0, **second) == (
        (16, 32), (40, 48), (56, 64),
    )  # fmt: skip
    assert ranges_of("layers.0.attention.out.weight", 1, **second) == ((16, 32),)
    assert ranges_of("layers.0.feed_forward.trunk.gate_up.weight", 0, **second) == (
        (10, 20), (30, 40),
    )  # fmt: skip
    assert ranges_of("layers.0.feed_forward.trunk.down.weight", 1, **second) == ((10, 20),)
    assert ranges_of("layers.1.feed_forward.experts.beta.gate_up", 1, **second) == ((2, 4), (6, 8))
    assert ranges_of("layers.1.feed_forward.shared_experts.down", 2, **second) == ((2, 4),)
    assert ranges_of("embed.weight", 0, **second) == ((48, 97),)
    assert ranges_of("head.weight", 0, **second) == ((48, 97),)


def test_norms_routers_and_gates_are_whole_on_every_tensor_rank() -> None:
    for name in (
        "layers.0.attention.q_norm.weight", "layers.0.attention_norm.weight", "final_norm.weight",
        "layers.0.feed_forward.gate.weight", "family_head.rows.alpha",
        "layers.1.feed_forward.router.experts.beta.weight",
    ):  # fmt: skip
        size = canonical_shapes(model(tied=False), FAMILIES)[name][0]
        assert ranges_of(name, 0, tensor=(1, 2)) == ((0, size),), name
