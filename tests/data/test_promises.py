"""The ten promises of the stream, over 200 languages of power-law sizes in 40 families.

Each test is named after its promise (docs/DATA.md); the processes' side of 1 and 2 is also held by
tests/train/test_resume.py and tests/distributed/.
"""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xylem.data.errors import DamagedShard, DataError
from xylem.data.ledger import SHARE_TOTAL, Ledger, ledger_from_json
from xylem.data.manifest import LanguageEntry, Manifest, Source
from xylem.data.mixture import (
    Capped,
    Horizon,
    MixtureConfig,
    StageConfig,
    decide,
    decide_ledger,
)
from xylem.data.order import Order, SequenceId, fingerprint
from xylem.data.seen import ids_of, seen
from xylem.data.shards import EncodedDocument, ShardSet, write_shards
from xylem.data.storage import LocalStorage
from xylem.data.stream import Stream, build_order
from xylem.data.token_line import TokenLine

LANGUAGES, FAMILIES, T, K, SLOTS, STEPS = 200, 40, 16, 2, 8, 300
PER_LANGUAGE = 64
VOCABULARY = 8 + LANGUAGES * PER_LANGUAGE
BOS, EOS = 2, 3


def code_of(number: int) -> str:
    return f"l{number:03d}_Latn"


def family_of(number: int) -> str:
    return f"family_{number % FAMILIES:02d}"


def write_line(folder: Path, subfolder: str, number: int, tokens: int) -> ShardSet:
    """A line of about so many tokens that tell their language."""
    low = 8 + number * PER_LANGUAGE

    def documents() -> Iterator[EncodedDocument]:
        written = document = 0
        while written < tokens:
            length = 5 + (number * 7 + document * 13) % 40
            body = low + (np.arange(length) * 5 + document) % PER_LANGUAGE
            yield EncodedDocument(
                id=f"{subfolder}/{document}",
                tokens=np.concatenate([[BOS], body, [EOS]]).astype(np.uint32),
                text_bytes=3 * length,
            )
            written, document = written + length + 2, document + 1

    return write_shards(
        folder, subfolder, documents(), language=code_of(number), vocab_size=VOCABULARY,
        shard_tokens=1500,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class World:
    folder: Path
    manifest: Manifest


def make_world(folder: Path) -> World:
    entries = {}
    for number in range(LANGUAGES):
        code = code_of(number)
        size = int(20_000 * (number + 1) ** -1.1) + 60
        lines = {code: write_line(folder, f"train/{code}", number, size)}
        if number in (0, 3, 50):  # languages with more than one source
            name = f"{code}@books"
            lines[name] = write_line(folder, f"sets/books/{code}", number, 400)
        sources = tuple(
            Source(name=name, language=code, languages=(code,), shards=shards)
            for name, shards in lines.items()
        )
        none = write_shards(
            folder, f"heldout/{code}", (), language=code, vocab_size=VOCABULARY, shard_tokens=10
        )
        entries[code] = LanguageEntry(
            code=code, family=family_of(number), sources=sources, heldout=none
        )
    manifest = Manifest(
        tokenizer_sha256="", vocab_size=VOCABULARY, bos_id=BOS, eos_id=EOS, languages=entries,
        families=tuple(sorted({e.family for e in entries.values()})), seed=0,
    )  # fmt: skip
    return World(folder, manifest)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def first(world: World, mixture: MixtureConfig | None = None, steps: int = STEPS) -> Ledger:
    return decide_ledger(
        mixture or MixtureConfig(), world.manifest, steps=steps, seed=5, slots=SLOTS,
        slot_sequences=K, sequence_length=T,
    )  # fmt: skip


def edit(
    world: World, ledger: Ledger, step: int, mixture: MixtureConfig, now: int = 0, **more: object
) -> Ledger:
    horizon = Horizon(from_step=step, until_step=STEPS, last_step=STEPS)
    entry, _ = decide(
        mixture, world.manifest, horizon, slots=SLOTS, slot_sequences=K, sequence_length=T, **more
    )
    return ledger.edit(entry, current_step=now)


def ids(order: Order, steps: range) -> list[SequenceId]:
    return [s for step in steps for slot in order.step(step) for s in slot.sequences]


@settings(max_examples=25, deadline=None)
@given(kills=st.lists(st.integers(1, 119), min_size=1, max_size=4, unique=True))
def test_promise_1_exact_after_a_kill_at_any_step_and_again(world: World, kills: list[int]) -> None:
    stages = (StageConfig(from_step=40, family_temperature=1.0),)
    ledger = first(world, MixtureConfig(stages=stages))
    uninterrupted = ids(build_order(ledger, world.manifest), range(120))
    order, resumed = build_order(ledger, world.manifest), []
    borders = [0, *sorted(kills), 120]
    for begin, end in zip(borders, borders[1:], strict=False):
        state = json.loads(json.dumps(order.state(begin)))
        order = build_order(ledger_from_json(ledger.to_json()), world.manifest)
        order.restore(state)
        resumed += ids(order, range(begin, end))
    assert resumed == uninterrupted


def test_promise_1_exact_at_the_end_of_an_epoch(world: World) -> None:
    ledger = first(world, MixtureConfig(language_temperature=float("inf")))
    order = build_order(ledger, world.manifest)
    smallest = code_of(LANGUAGES - 1)
    length = order.epoch_length[smallest]
    read = [s for s in ids(order, range(STEPS)) if s.source == smallest]
    assert len(read) > 2 * length, "the language must go through several epochs"
    turn = next(t for t in range(STEPS) if order.cursors(t)[smallest] == length)
    resumed = build_order(ledger, world.manifest)
    resumed.restore(order.state(turn))
    assert ids(resumed, range(turn, turn + 50)) == ids(order, range(turn, turn + 50))
    for epoch in range(2):
        assert sorted(s.position for s in read if s.epoch == epoch) == list(range(length))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("processes", "micro_slots"), [(1, 1), (1, 8), (2, 2), (4, 1)])
def test_promise_2_elastic(world: World, processes: int, micro_slots: int, threads: int) -> None:
    ledger = first(world)
    reference = Stream(world.folder, world.manifest, ledger, micro_slots=SLOTS)
    ranks = [
        Stream(
            world.folder,
            world.manifest,
            ledger,
            rank=rank,
            world=processes,
            micro_slots=micro_slots,
            threads=threads,
            read_ahead=rank,
        )
        for rank in range(processes)
    ]
    for step in (0, 1, 2, 250):
        (whole,) = reference.read(step).micro_batches
        batches = [rank.batch(step) for rank in ranks]
        parts = [micro for batch in batches for micro in batch.micro_batches]
        for name in ("inputs_BT", "targets_BT", "documents_BT", "languages_B"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
        assert len({batch.families for batch in batches}) == 1
        assert len({json.dumps(rank.order.state(step)) for rank in ranks}) == 1
    for each in (reference, *ranks):
        each.close()


DROPPED = st.fixed_dictionaries(
    {},
    optional={
        "languages": st.sampled_from([{}, {code_of(0): 0.0}, {code_of(41): 0.0, code_of(3): 0.9}]),
        "sources": st.sampled_from([{}, {f"{code_of(3)}@books": 0.0}, {code_of(0): 0.25}]),
        "families": st.sampled_from([{}, {family_of(7): 0.0}, {family_of(2): 0.5}]),
        "family_temperature": st.sampled_from([1.0, 3.0, float("inf")]),
    },
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(edits=st.lists(st.tuples(st.integers(1, 40), DROPPED), min_size=1, max_size=3))
def test_promise_3_editable_without_a_repeat_or_a_skip(
    world: World, edits: list[tuple[int, dict[str, object]]]
) -> None:
    original = first(world)
    ledger, step = original, 0
    for gap, changes in edits:
        step += gap
        ledger = edit(world, ledger, step, MixtureConfig(**changes), now=step)
    order = build_order(ledger, world.manifest)
    read: dict[str, list[SequenceId]] = {}
    for sequence in ids(order, range(160)):
        read.setdefault(sequence.source, []).append(sequence)
    cursors = order.cursors(160)
    for source, sequences in read.items():
        length = order.epoch_length[source]
        assert cursors[source] == len(sequences)
        by_epoch = Counter(s.epoch for s in sequences)
        assert sorted(by_epoch) == list(range(len(by_epoch)))
        assert all(n == length for epoch, n in by_epoch.items() if epoch + 1 < len(by_epoch))
        assert len(set(sequences)) == len(sequences), f"{source} repeats"
    # What came before the first edit is untouched.
    before = range(edits[0][0])
    assert ids(order, before) == ids(build_order(original, world.manifest), before)
    # A resume under the edited ledger goes on from the state saved under the old one.
    resumed = build_order(ledger, world.manifest)
    resumed.restore(build_order(original, world.manifest).state(edits[0][0]))
    after = range(edits[0][0], edits[0][0] + 20)
    assert ids(resumed, after) == ids(order, after)


def test_promise_3_an_edit_of_the_past_is_refused(world: World) -> None:
    with pytest.raises(DataError, match="would edit the past: the run is at step 30"):
        edit(world, first(world), 20, MixtureConfig(), now=30)
    edited = edit(world, first(world), 50, MixtureConfig(), now=30)
    with pytest.raises(DataError, match="comes not after the last decision"):
        edit(world, edited, 50, MixtureConfig(), now=30)
    state = build_order(first(world), world.manifest).state(20)
    past = dataclasses.replace(
        edited, entries=tuple(dataclasses.replace(e, slots=e.slots * 2) for e in edited.entries)
    )
    with pytest.raises(ValueError, match="not that of this ledger"):
        build_order(past, world.manifest).restore(state)


@pytest.mark.parametrize("family_temperature", [1.0, 2.0])
def test_promise_4_fair_at_every_step(world: World, family_temperature: float) -> None:
    mixture = MixtureConfig(family_temperature=family_temperature)
    ledger = first(world, mixture)
    order = build_order(ledger, world.manifest)
    (entry,) = ledger.entries
    slots, read = Counter[str](), Counter[str]()
    for step in range(STEPS):
        given = order.step(step)
        assert [slot.number for slot in given] == list(range(SLOTS))
        for slot in given:
            slots[slot.family] += 1
            read.update(s.source for s in slot.sequences)
        for family, share in entry.families.items():
            assert abs(slots[family] * SHARE_TOTAL - (step + 1) * SLOTS * share) < SHARE_TOTAL
            for code, part in entry.languages[family].items():
                of_language = sum(read[source] for source in entry.sources[code])
                assert abs(of_language * SHARE_TOTAL - slots[family] * K * part) < SHARE_TOTAL
                for source, piece in entry.sources[code].items():
                    assert abs(read[source] * SHARE_TOTAL - of_language * piece) < SHARE_TOTAL
    targets = ledger.targets(STEPS)
    assert sum(targets.values()) == pytest.approx(STEPS * SLOTS * K)
    for source, target in targets.items():
        assert abs(read[source] - target) < K + 2
    rare = [code_of(n) for n in range(150, 200)]
    assert sum(read[code] for code in rare) > 0.8 * sum(targets[code] for code in rare) > 10


def test_promise_5_pure(world: World) -> None:
    stream = Stream(world.folder, world.manifest, first(world), micro_slots=2)
    for step in range(0, STEPS, 10):
        for micro in stream.read(step).micro_batches:
            for family, begin, end in micro.segments:
                for row in range(begin, end):
                    tokens = micro.inputs_BT[row]
                    words = tokens[tokens >= 8]
                    numbers = set(((words - 8) // PER_LANGUAGE).tolist())
                    declared = stream.languages[int(micro.languages_B[row])]
                    assert {code_of(n) for n in numbers} == {declared}
                    assert {family_of(n) for n in numbers} == {family}
    stream.close()


@settings(max_examples=15, deadline=None)
@given(
    max_epochs=st.sampled_from([1.5, 2.0, 4.0]),
    steps=st.integers(100, 250),
    temperature=st.sampled_from([1.0, 2.0, float("inf")]),
    change=st.sampled_from([0, 60]),
)
def test_promise_6_capped_and_the_rest_goes_to_others(
    world: World, max_epochs: float, steps: int, temperature: float, change: int
) -> None:
    stages = (StageConfig(from_step=change, language_temperature=3.0),) if change else ()
    mixture = MixtureConfig(
        family_temperature=temperature, max_epochs=max_epochs, languages=FEW, stages=stages
    )
    told: list[Capped] = []
    ledger = decide_ledger(
        mixture, world.manifest, steps=steps, seed=5, slots=SLOTS, slot_sequences=K,
        sequence_length=T, warn=told.append,
    )  # fmt: skip
    order = build_order(ledger, world.manifest)
    cursors = order.cursors(steps)
    assert sum(cursors.values()) == steps * SLOTS * K, "a cap never makes a step short"
    uncapped = dataclasses.replace(mixture, max_epochs=None)
    free = build_order(first(world, uncapped, steps), world.manifest).cursors(steps)
    held = {capped.language for capped in told}
    for code, entry in world.manifest.languages.items():
        length = sum(order.epoch_length[s.name] for s in entry.sources)
        read = sum(cursors.get(s.name, 0) for s in entry.sources)
        assert read <= max_epochs * length, code
        if sum(free.get(s.name, 0) for s in entry.sources) > max_epochs * length:
            assert code in held, f"{code} was held back without a word"
    if temperature == float("inf") and max_epochs == 1.5:
        assert held and len(held) < 40


def test_promise_6_caps_that_leave_too_little_are_refused(world: World) -> None:
    with pytest.raises(DataError, match=r"max_epochs=0\.5 allows .* sequences .* which read"):
        first(world, MixtureConfig(max_epochs=0.5, languages=FEW), steps=100_000)
    with pytest.raises(DataError, match="too little for a share of"):
        first(world, MixtureConfig(max_epochs=0.1))


FEW = {code_of(n): 0.0 for n in range(40, LANGUAGES)}


def test_promise_7_shuffled_anew_each_epoch(world: World) -> None:
    order = Order(first(world), {**build_order(first(world), world.manifest).epoch_length})
    big = dict.fromkeys(order.epoch_length, 20_000)
    order = Order(first(world), big)
    passes = [order._reads(0, code_of(0)).read(n) for n in range(60_000)]
    epochs = [np.array([p for e, p in passes if e == epoch]) for epoch in range(3)]
    places = np.arange(20_000)
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), places)
        # Rank correlation of independent orders has standard deviation 1/sqrt(n) = 0.007.
        assert abs(np.corrcoef(places, epoch)[0, 1]) < 0.03
        assert abs(np.corrcoef(epoch[:-1], epoch[1:])[0, 1]) < 0.03
        # A stretch of 200 reads spreads over 20 parts of the line as independent draws would.
        spread = np.stack(
            [np.bincount(part // 1000, minlength=20) for part in epoch.reshape(100, 200)]
        )
        chi2 = ((spread - 10.0) ** 2 / 10.0).sum(axis=1)
        assert 17 < chi2.mean() < 21, "19 degrees of freedom"
    assert abs(np.corrcoef(epochs[0], epochs[1])[0, 1]) < 0.03
    other = Order(dataclasses.replace(first(world), seed=6), big)
    assert [other._reads(0, code_of(0)).read(n) for n in range(50)] != passes[:50]


def test_promise_8_whole_a_flipped_byte_names_the_shard(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(world.folder, folder)
    line = TokenLine(folder, world.manifest.sources[code_of(0)].shards)
    shard = folder / line.shards[1].path
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1  # among the first block's tokens
    shard.write_bytes(data)
    stream = Stream(folder, world.manifest, first(world))
    with pytest.raises(DamagedShard, match=str(line.shards[1].path)):
        for step in range(STEPS):
            stream.batch(step)
    stream.close()


def test_promise_8_whole_a_quarantine_is_seen_by_every_rank_and_loses_nothing_else(
    world: World,
) -> None:
    code = code_of(0)
    line = TokenLine(world.folder, world.manifest.sources[code].shards)
    bounds = line.shard_bounds()
    span = (int(bounds[1]), int(bounds[2]))
    shut = {code: {line.shards[1].path: span}}
    ledger = edit(
        world, first(world), 60, MixtureConfig(families={family_of(0): 0.9}), now=60,
        quarantine=shut,
    )  # fmt: skip
    order = build_order(ledger, world.manifest)
    length = order.epoch_length[code]
    bad = {p for p in range(length) if p * T + T >= span[0] and p * T < span[1]}
    assert 0 < len(bad) < length
    read = [s for s in ids(order, range(1400)) if s.source == code]
    before = [s for s in ids(order, range(60)) if s.source == code]
    assert read[: len(before)] == before
    after = read[len(before) :]
    assert not {s.position for s in after} & bad
    good = set(range(length)) - bad
    first_epoch = {s.position for s in read if s.epoch == 0}
    assert first_epoch == good | {s.position for s in before}, "nothing else is lost or repeated"
    assert {s.position for s in read if s.epoch == 1} == good
    assert max(s.epoch for s in read) >= 2
    assert max(Counter((s.epoch, s.position) for s in read).values()) == 1
    assert order.readable(60, code) == len(good)
    resumed = build_order(ledger, world.manifest)
    resumed.restore(json.loads(json.dumps(order.state(700))))
    assert ids(resumed, range(700, 760)) == ids(order, range(700, 760))
    streams = [
        Stream(world.folder, world.manifest, ledger, rank=rank, world=2) for rank in range(2)
    ]
    slots = [m.slots for s in streams for m in s.read(1000).micro_batches]
    assert [s for group in slots for slot in group for s in slot.sequences] == ids(
        order, range(1000, 1001)
    )
    for stream in streams:
        stream.close()


def test_promise_8_a_quarantine_of_everything_is_refused(world: World) -> None:
    code = code_of(0)
    tokens = world.manifest.sources[code].shards.tokens
    shut = {code: {"all": (0, tokens)}}
    ledger = edit(world, first(world), 60, MixtureConfig(), quarantine=shut)
    with pytest.raises(DataError, match=f"leaves nothing of {code}"):
        build_order(ledger, world.manifest)


def test_promise_9_audited_seen_equals_what_was_read(world: World) -> None:
    ledger = edit(world, first(world), 70, MixtureConfig(family_temperature=1.0))
    order = build_order(ledger, world.manifest)
    for step in (0, 1, 69, 70, 71, 200):
        read = Counter(s.source for s in ids(order, range(step)))
        rows = {row.source: row for row in seen(order, world.manifest, step)}
        assert rows.keys() == world.manifest.sources.keys()
        for source, row in rows.items():
            assert row.sequences == read[source] and row.tokens == read[source] * T
            assert (
                row.epochs * order.epoch_length[source]
                + round(row.share_of_epoch * order.epoch_length[source])
                == row.sequences
            )
    source = code_of(120)
    walked = [s for s in ids(order, range(200)) if s.source == source]
    assert list(ids_of(order, source, 0, 200)) == walked
    times = Counter(s.position for s in walked)
    for position in range(order.epoch_length[source]):
        assert order.times_read(200, source, position) == times[position]
    with pytest.raises(DataError, match="--seen=-1: steps are counted from 0"):
        seen(order, world.manifest, -1)


def test_promise_9_the_first_thousand_ids_are_golden(world: World) -> None:
    assert fingerprint(build_order(first(world), world.manifest)) == GOLDEN


class Untouched(LocalStorage):
    """A folder that counts what is read of it."""

    reads: ClassVar[Counter[str]] = Counter()

    def read(self, path: str) -> bytes:
        self.reads[path] += 1
        return super().read(path)


def test_promise_10_instant_nothing_is_read_before_the_first_batch(world: World) -> None:
    Untouched.reads.clear()
    stream = Stream(Untouched(world.folder), world.manifest, first(world))
    stream.order.restore(build_order(first(world), world.manifest).state(100))
    assert not Untouched.reads
    batch = stream.read(100)
    codes = {s.source for m in batch.micro_batches for slot in m.slots for s in slot.sequences}
    tables = {path for path in Untouched.reads if path.endswith(".jsonl")}
    assert tables == {world.manifest.sources[code].shards.table for code in codes}
    assert sum(Untouched.reads.values()) <= 2 * SLOTS * K * 2, "a table and an index a sequence"
    stream.close()


GOLDEN = "e23f496dc970b6f7ad86dfb9263427e52c6e7930be97f91dcaff6b0cd2257e63"
