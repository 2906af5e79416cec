"""The stream's promises that need no storage: exact, elastic, editable, fair, pure, audited."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xylem.data.allocation import Allocation
from xylem.data.errors import DataError
from xylem.data.ledger import SHARE_TOTAL, Ledger, LedgerEntry, integer_shares, ledger_from_json
from xylem.data.order import Order, fingerprint
from xylem.data.permutation import Passes, permute, permute_many, unpermute

TOKENS = {
    "germanic": {"deu_Latn": 900_000, "eng_Latn": 2_000_000, "nld_Latn": 40_000},
    "bantu": {"swh_Latn": 60_000, "zul_Latn": 9_000},
    "turkic": {"tur_Latn": 30_000},
    "isolate": {"eus_Latn": 2_000},
}
LENGTHS = {code: n // 100 for sizes in TOKENS.values() for code, n in sizes.items()}


def entry(slots: int = 5, from_step: int = 0, tokens=TOKENS) -> LedgerEntry:
    families = {family: sum(sizes.values()) for family, sizes in tokens.items()}
    return LedgerEntry(
        from_step=from_step,
        slots=slots,
        families=integer_shares({f: n ** (1 / 2.0) for f, n in families.items()}),
        languages={
            family: integer_shares({c: n ** (1 / 1.5) for c, n in sizes.items()})
            for family, sizes in tokens.items()
        },
        sources={code: {code: SHARE_TOTAL} for sizes in tokens.values() for code in sizes},
        manifest_hash="m",
    )


def ledger(*entries: LedgerEntry) -> Ledger:
    return Ledger(seed=7, sequence_length=100, slot_sequences=3, entries=entries or (entry(),))


def ids(order: Order, steps: range) -> list[tuple[str, int, int]]:
    return [
        (s.source, s.epoch, s.position)
        for step in steps
        for slot in order.step(step)
        for s in slot.sequences
    ]


def power_law(languages: int, exponent: float) -> list[int]:
    return list(
        integer_shares({f"l{i:04d}": (i + 1) ** -exponent for i in range(languages)}).values()
    )


@pytest.mark.parametrize("slots", [1, 7, 64, 1024])
def test_fair_within_one_unit_at_every_step_for_200_power_law_languages(slots: int) -> None:
    allocation = Allocation(power_law(200, 1.5), slots)
    before = allocation.counts(0)
    for step in range(1, 1500):
        counts = allocation.counts(step)
        target = step * slots * allocation.shares / SHARE_TOTAL
        assert counts.sum() == step * slots
        assert (counts >= before).all(), "a count fell"
        assert np.abs(counts - target).max() < 1
        before = counts


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40),
    units=st.integers(1, 50),
)
def test_fair_for_any_weights(weights: list[float], units: int) -> None:
    shares = integer_shares({f"{i:03d}": w for i, w in enumerate(weights)})
    allocation = Allocation(list(shares.values()), units)
    before = allocation.counts(0)
    for step in range(1, 120):
        counts = allocation.counts(step)
        exact = [step * units * share for share in shares.values()]
        assert counts.sum() == step * units and (counts >= before).all()
        assert all(
            abs(int(c) * SHARE_TOTAL - e) < SHARE_TOTAL for c, e in zip(counts, exact, strict=True)
        )
        before = counts


def test_counts_far_away_equal_counts_reached_step_by_step() -> None:
    units = SHARE_TOTAL // 8  # a period of 8 steps, so that whole cycles are skipped
    walked, jumped = Allocation(power_law(9, 1.0), units), Allocation(power_law(9, 1.0), units)
    for step in range(60):
        reached = walked.counts(step)
    assert (jumped.counts(59) == reached).all()
    small = Allocation(power_law(9, 1.0), 5)
    far = small.counts(5000)
    fresh = Allocation(power_law(9, 1.0), 5)
    fresh.remember(5000, far.tolist())
    assert (fresh.counts(5003) == small.counts(5003)).all()


def test_remember_refuses_counts_of_another_step() -> None:
    with pytest.raises(ValueError, match="cannot be those after 4 steps"):
        Allocation(power_law(3, 1.0), 5).remember(4, [1, 2, 3])


def test_language_fair_within_one_sequence_of_its_family() -> None:
    mixture = ledger()
    order = Order(mixture, LENGTHS)
    for step in (1, 10, 333, 1000):
        cursors = order.cursors(step)
        for languages in mixture.entries[0].languages.values():
            read = sum(cursors[code] for code in languages)
            for code, share in languages.items():
                assert abs(cursors[code] - read * share / SHARE_TOTAL) < 1


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 5000), key=st.binary(min_size=48, max_size=64))
def test_permute_is_a_permutation(size: int, key: bytes) -> None:
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 3000), key=st.binary(min_size=48, max_size=64))
def test_unpermute_is_permute_backwards(size: int, key: bytes) -> None:
    positions = np.array([permute(i, size, key) for i in range(size)])
    assert unpermute(positions, size, key).tolist() == list(range(size))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), length=st.integers(2, 60), epochs=st.integers(1, 3))
def test_passes_leave_out_the_bad_positions_alone(
    data: st.DataObject, length: int, epochs: int
) -> None:
    bad = data.draw(st.sets(st.integers(0, length - 1), max_size=length - 1))
    begin = (data.draw(st.integers(0, 5)), data.draw(st.integers(0, length - 1)))
    passes = Passes(3, "x", length, begin=begin, bad=np.array(sorted(bad), np.int64))
    whole = Passes(3, "x", length, begin=begin)
    expected = [r for r in map(whole.read, range(length * epochs)) if r[1] not in bad]
    assert [passes.read(n) for n in range(len(expected))] == expected


def test_shuffled_anew_each_epoch() -> None:
    n = LENGTHS["swh_Latn"]
    reads = Passes(7, "swh_Latn", n)
    first = [reads.read(i)[1] for i in range(n)]
    second = [reads.read(n + i)[1] for i in range(n)]
    assert sorted(first) == sorted(second) == list(range(n))
    assert first != second
    assert abs(np.corrcoef(np.arange(n), first)[0, 1]) < 0.15
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


def test_exact_every_sequence_is_read_once_an_epoch() -> None:
    order = Order(ledger(), LENGTHS)
    read = [i for i in ids(order, range(400)) if i[0] == "eus_Latn"]
    whole = len(read) // LENGTHS["eus_Latn"]
    assert whole >= 2
    for epoch in range(whole):
        positions = [p for _, e, p in read if e == epoch]
        assert sorted(positions) == list(range(LENGTHS["eus_Latn"]))


def test_exact_after_a_resume_at_any_step_and_a_second_one() -> None:
    uninterrupted = ids(Order(ledger(), LENGTHS), range(60))
    order, resumed = Order(ledger(), LENGTHS), []
    for first, last in ((0, 13), (13, 14), (14, 41), (41, 60)):
        state = json.loads(json.dumps(order.state(first)))
        order = Order(ledger(), LENGTHS)
        order.restore(state)
        resumed += ids(order, range(first, last))
    assert resumed == uninterrupted


def test_restore_refuses_the_state_of_another_mixture() -> None:
    state = Order(ledger(entry(slots=5)), LENGTHS).state(10)
    other = replace(entry(slots=5), manifest_hash="n")
    with pytest.raises(ValueError, match="not that of this ledger"):
        Order(ledger(other), LENGTHS).restore(state)


def test_pure_a_slot_holds_one_family_and_slots_are_sorted_by_family() -> None:
    order = Order(ledger(), LENGTHS)
    for step in range(50):
        slots = order.step(step)
        assert [s.number for s in slots] == list(range(5))
        assert [s.family for s in slots] == sorted(s.family for s in slots)
        for slot in slots:
            assert len(slot.sequences) == 3
            assert all(s.source in TOKENS[slot.family] for s in slot.sequences)
        assert {f: n for f, n in order.slot_counts(step).items() if n} == {
            f: sum(s.family == f for s in slots) for f in {s.family for s in slots}
        }


def test_editable_an_edit_keeps_every_cursor() -> None:
    without_bantu = {f: s for f, s in TOKENS.items() if f != "bantu"}
    more = {**TOKENS, "turkic": {"tur_Latn": 30_000, "kaz_Cyrl": 8_000}}
    edited = (
        ledger()
        .edit(entry(slots=4, from_step=20, tokens=without_bantu), current_step=11)
        .edit(entry(slots=6, from_step=50, tokens=more), current_step=30)
    )
    order = Order(edited, {**LENGTHS, "kaz_Cyrl": 80})
    read: dict[str, list[tuple[int, int]]] = {}
    for code, epoch, position in ids(order, range(90)):
        read.setdefault(code, []).append((epoch, position))
    assert "kaz_Cyrl" in read
    for code, sequences in read.items():
        reads = Passes(7, code, order.epoch_length[code])
        expected = [reads.read(i) for i in range(len(sequences))]
        assert sorted(sequences) == sorted(expected), f"{code} repeats or skips"
        assert order.cursors(90)[code] == len(sequences)
    before = ids(Order(ledger(), LENGTHS), range(20))
    assert ids(order, range(20)) == before


def test_an_edit_of_the_past_is_refused() -> None:
    with pytest.raises(DataError, match="would edit the past: the run is at step 30"):
        ledger().edit(entry(from_step=20), current_step=30)
    twice = ledger().edit(entry(from_step=50), current_step=0)
    with pytest.raises(DataError, match="comes not after the last decision"):
        twice.edit(entry(from_step=40), current_step=0)


def test_audited_the_first_thousand_ids_are_golden() -> None:
    assert fingerprint(Order(ledger(), LENGTHS)) == GOLDEN
    assert fingerprint(Order(replace(ledger(), seed=8), LENGTHS)) != GOLDEN


def test_ledger_survives_json_and_refuses_another_order_version() -> None:
    text = ledger().to_json()
    assert ledger_from_json(text) == ledger() and ledger_from_json(text).hash == ledger().hash
    with pytest.raises(DataError, match="order version 99"):
        ledger_from_json(text.replace('"order_version":2', '"order_version":99'))


def test_a_field_at_its_default_is_not_in_the_ledgers_text() -> None:
    told = json.loads(ledger().to_json())["entries"][0]
    assert set(told) == {
        "from_step", "slots", "families", "languages", "sources", "manifest_hash"
    }  # fmt: skip
    edited = ledger(replace(entry(), reason="why", edited=True))
    assert {"reason", "edited"} < set(json.loads(edited.to_json())["entries"][0])
    assert ledger_from_json(edited.to_json()) == edited


def test_integer_shares_sum_and_leave_nobody_out() -> None:
    shares = integer_shares({"big": 1.0, "rare": 1e-12})
    assert sum(shares.values()) == SHARE_TOTAL and shares["rare"] == 1


GOLDEN = "c44e7b8b0add9dd089c11a5f3c3e657b7b3c21f48568beadd5cdc57bf6e82a0a"


@settings(max_examples=50, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(1, 100_000), min_size=1, max_size=30))
def test_permute_many_is_permute_for_each(data: st.DataObject, sizes: list[int]) -> None:
    indexes = [data.draw(st.integers(0, size - 1)) for size in sizes]
    keys = [bytes([i % 256]) * 48 for i in range(len(sizes))]
    one_by_one = [permute(*each) for each in zip(indexes, sizes, keys, strict=True)]
    assert permute_many(indexes, sizes, keys) == one_by_one


def test_counts_a_little_behind_the_newest_are_near() -> None:
    allocation, steps = Allocation(power_law(50, 1.0), 5), []
    expected = Allocation(power_law(50, 1.0), 5).counts(2_900)
    allocation.counts(3_000)
    advance = allocation._advance
    allocation._advance = lambda step, before: (steps.append(step), advance(step, before))[1]
    assert (allocation.counts(2_900) == expected).all()
    assert len(steps) < 16, "from a count remembered closely, not from the last anchor"


def test_counts_are_reached_from_the_nearest_known_step() -> None:
    fresh, steps = Allocation(power_law(50, 1.0), 5), []
    known = Allocation(power_law(50, 1.0), 5).counts(900)
    fresh.remember(900, known.tolist())
    advance = fresh._advance
    fresh._advance = lambda step, before: (steps.append(step), advance(step, before))[1]
    fresh.counts(903)
    assert steps == [901, 902, 903]
