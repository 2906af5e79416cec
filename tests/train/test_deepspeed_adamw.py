"""AdamW over flat partitions of many parameters: PyTorch's steps, and rest for what rests."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from xylem.train.engines.deepspeed.adamw import MOMENTS, PartitionedAdamW
from xylem.train.engines.deepspeed.partitions import Held
from xylem.train.optimizer import OptimConfig

CONFIG = OptimConfig(weight_decay=0.1, learning_rate=0.01)
LINE = (
    Held(name="trunk", start=2, stop=6, at=0),  # the rest of it is another process's
    Held(name="norm", start=0, stop=3, at=4),
    Held(name="family", start=0, stop=5, at=7),  # followed by padding
)


def a_partition() -> tuple[Tensor, PartitionedAdamW]:
    torch.manual_seed(0)
    partition = torch.randn(14).requires_grad_()
    optimizer = PartitionedAdamW([{"params": [partition]}], CONFIG, {"norm"}, {"norm"})
    optimizer.take([(partition, LINE)])
    return partition, optimizer


def one_step(
    partition: Tensor, optimizer: PartitionedAdamW, gradient: Tensor, moves: Callable[[str], bool]
) -> None:
    partition.grad, optimizer.moves = gradient.clone(), moves
    optimizer.step()


def test_each_range_is_stepped_as_pytorch_steps_a_parameter() -> None:
    partition, optimizer = a_partition()
    optimizer.limited = frozenset()
    alone = {held.name: held.of(partition.detach()).clone().requires_grad_() for held in LINE}
    groups = [
        {"params": [alone[name]], "weight_decay": 0.0 if name == "norm" else 0.1} for name in alone
    ]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(CONFIG.beta1, CONFIG.beta2), eps=CONFIG.eps)
    for step in range(6):
        gradient = torch.randn(14)
        moved = {"trunk", "norm"} | ({"family"} if step % 3 == 0 else set())
        for held in LINE:
            alone[held.name].grad = held.of(gradient).clone() if held.name in moved else None
        theirs.step()
        one_step(partition, optimizer, gradient, moved.__contains__)
    for held in LINE:
        torch.testing.assert_close(held.of(partition.detach()), alone[held.name].detach())
        for key in MOMENTS:
            ours = held.of(optimizer.moments(partition)[key])
            torch.testing.assert_close(ours, theirs.state[alone[held.name]][key])
    assert {name: step.item() for name, step in optimizer.steps.items()} == {
        "trunk": 6, "norm": 6, "family": 2,
    }  # fmt: skip


def test_what_a_step_does_not_move_keeps_weights_and_state_to_the_bit() -> None:
    partition, optimizer = a_partition()
    one_step(partition, optimizer, torch.randn(14), lambda name: True)
    family = LINE[2]
    kept = [partition.detach(), *(optimizer.moments(partition)[key] for key in MOMENTS)]
    before = [family.of(tensor).clone() for tensor in kept]
    for _ in range(3):
        # Zeros would decay momentum and weights; what others left in the buffer would move them.
        one_step(partition, optimizer, torch.randn(14), lambda name: name != "family")
    assert all(torch.equal(family.of(t), b) for t, b in zip(kept, before, strict=True))
    assert optimizer.steps["family"].item() == 1 and optimizer.steps["trunk"].item() == 4


def test_padding_is_never_touched() -> None:
    partition, optimizer = a_partition()
    before = partition.detach()[12:].clone()
    one_step(partition, optimizer, torch.randn(14), lambda name: True)
    assert torch.equal(partition.detach()[12:], before)


@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_what_is_limited_stays_at_zero_or_below(direction: float) -> None:
    partition, optimizer = a_partition()
    with torch.no_grad():
        LINE[1].of(partition).fill_(-1e-4)
    one_step(partition, optimizer, torch.full((14,), direction), lambda name: True)
    limited = LINE[1].of(partition.detach())
    assert (limited == 0.0).all() if direction < 0 else (limited < -1e-4).all()
