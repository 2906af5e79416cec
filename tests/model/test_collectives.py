"""Who has which positions and tokens; what travels is tested in tests/distributed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xylem.model.collectives import Sharing, attach_loss, context_positions
from xylem.model.part import Part

CPU = torch.device("cpu")


def shared(*, tensor: tuple[int, int] = (0, 1), context: tuple[int, int] = (0, 1)) -> Sharing:
    return Sharing(Part(layers=(), families=frozenset(), tensor=tensor, context=context))


@given(st.integers(1, 5), st.integers(1, 4))
def test_each_position_is_on_one_process_and_work_is_equal(of: int, length: int) -> None:
    T = 2 * of * length
    pieces = [context_positions(T, index, of, CPU) for index in range(of)]
    assert sorted(torch.cat(pieces).tolist()) == list(range(T))
    # A position sees those up to itself: all processes' sums are equal.
    assert len({int((piece + 1).sum()) for piece in pieces}) == 1


@given(st.integers(2, 5), st.integers(1, 4))
def test_places_undo_the_order_of_the_context(of: int, length: int) -> None:
    T = 2 * of * length
    sharing = shared(context=(0, of))
    order, places = sharing.all_positions(T, CPU), sharing.places(T, CPU)
    assert order is not None and places is not None
    assert order[places].tolist() == list(range(T))


def test_a_process_takes_its_positions_of_whole_sequences() -> None:
    x_BT = torch.arange(16).view(2, 8)
    assert shared(context=(1, 2)).here(x_BT).tolist() == [[2, 3, 4, 5], [10, 11, 12, 13]]


def test_alone_nothing_changes() -> None:
    x_BTD, alone = torch.randn(2, 4, 3), Sharing()
    for passed in (
        alone.enter(x_BTD), alone.leave(x_BTD), alone.over_context(x_BTD), alone.in_order(x_BTD),
        alone.here(x_BTD), alone.sum_over_context(x_BTD),
    ):  # fmt: skip
        assert passed is x_BTD
    assert alone.positions(4, CPU) is None and alone.places(4, CPU) is None


@pytest.mark.parametrize(("index", "rows", "here"), [(0, 48, (0, 48)), (1, 49, (48, 97))])
def test_an_odd_vocabulary_is_shared_to_the_last_token(
    index: int, rows: int, here: tuple[int, int]
) -> None:
    sharing = shared(tensor=(index, 2))
    sharing = Sharing(sharing.part, vocab_size=97)
    assert sharing.rows_here(rows) == (here, 97)
    with pytest.raises(AssertionError, match="50 of 97 tokens"):
        sharing.rows_here(50)


def test_a_vocabulary_of_unknown_size_is_shared_evenly() -> None:
    assert shared(tensor=(2, 4)).rows_here(5) == ((10, 15), 20)


def test_an_attached_loss_is_differentiated_with_weight_one() -> None:
    x, weight = torch.randn(3, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    (attach_loss(x, weight.square()) * torch.tensor([1.0, 0.0, 5.0])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 0.0, 5.0]
    assert weight.grad is not None and weight.grad.item() == 4.0
