"""Keyed noise: uniform, unrelated between rows, steps and purposes, alike on any cut."""

import math

import pytest
import torch

from xylem.model.noise import mix, row_keys, uniform

MASK = (1 << 64) - 1


def draw(rows: int = 64, count: int = 512, *, seed: int = 3, step: int = 7, purpose: str = "a"):  # type: ignore[no-untyped-def]
    return uniform(row_keys(seed, step, torch.arange(rows)), purpose, count)


def test_mix_is_splitmix64s_finaliser() -> None:
    def finaliser(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
        return value ^ (value >> 31)

    values = [0, 1, 2, -1, 1 << 62, -(1 << 63), 0x9E3779B97F4A7C15 - (1 << 64)]
    mixed = [int(v) & MASK for v in mix(torch.tensor(values))]
    assert mixed == [finaliser(value & MASK) for value in values]


@pytest.mark.parametrize("step", [0, 1, 12345])
def test_numbers_are_uniform(step: int) -> None:
    values = draw(step=step).flatten().double().sort().values
    n = len(values)
    assert values[0] >= 0 and values[-1] < 1
    above = (torch.arange(1, n + 1) / n - values).max()
    below = (values - torch.arange(n) / n).max()
    assert max(above, below) * math.sqrt(n) < 1.63  # Kolmogorov and Smirnov, 1 %


def test_bits_beyond_the_first_are_uniform_too() -> None:
    bits = (draw() * 2**24).long()
    for place in range(24):
        ones = ((bits >> place) & 1).double().mean().item()
        assert abs(ones - 0.5) < 3.3 * 0.5 / math.sqrt(bits.numel()), place


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Pearson's, times sqrt(n): about normal where there is none."""
    pair = torch.stack([one.flatten(), other.flatten()]).double()
    return float(torch.corrcoef(pair)[0, 1]) * math.sqrt(one.numel())


@pytest.mark.parametrize(
    "other",
    [
        draw(seed=4),
        draw(step=8),
        draw(purpose="b"),
        draw().roll(1, 0),  # the row before
        draw().roll(1, 1),  # the place before
    ],
    ids=["seed", "step", "purpose", "row", "place"],
)
def test_another_seed_step_purpose_row_or_place_is_unrelated(other: torch.Tensor) -> None:
    assert not torch.equal(draw(), other)
    assert abs(correlation(draw(), other)) < 3.3


def test_no_two_rows_of_many_steps_share_a_key() -> None:
    keys = torch.cat([row_keys(1, step, torch.arange(2000)) for step in range(20)])
    assert len(keys.unique()) == len(keys)


def test_a_row_draws_the_same_however_the_batch_is_cut() -> None:
    whole = draw()
    keys = row_keys(3, 7, torch.arange(64))
    parts = [uniform(part, "a", 512) for part in keys.split([1, 5, 58])]
    assert torch.equal(torch.cat(parts), whole)
    elsewhere = row_keys(3, 7, torch.tensor([9, 2]))
    assert torch.equal(uniform(elsewhere, "a", 512), whole[[9, 2]])
    assert torch.equal(uniform(keys, "a", 40), whole[:, :40])
