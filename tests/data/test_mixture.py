"""Deciding a mixture: temperatures, fixed shares, caps, stages, and what is refused."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xylem.data.errors import DataError
from xylem.data.ledger import SHARE_TOTAL, Ledger, LedgerEntry
from xylem.data.manifest import LanguageEntry, Manifest, Source
from xylem.data.mixture import (
    Capped,
    Horizon,
    MixtureConfig,
    StageConfig,
    decide,
    decide_ledger,
    epoch_lengths,
)
from xylem.data.order import Order
from xylem.data.repetition import DECAY, effective_tokens
from xylem.data.shards import ShardSet

T, K, SLOTS = 10, 4, 6
SIZES = {
    "germanic": {"deu_Latn": {"deu_Latn": 90_000}, "eng_Latn": {"eng_Latn": 360_000}},
    "bantu": {
        "swh_Latn": {"swh_Latn": 8_000, "swh_Latn@books": 2_000},
        "zul_Latn": {"zul_Latn": 2_500},
    },
    "basque": {"eus_Latn": {"eus_Latn": 40_000, "eus_Latn.x3": 1_000}},
}


def manifest(sizes: dict[str, dict[str, dict[str, int]]] = SIZES) -> Manifest:
    def line(tokens: int) -> ShardSet:
        return ShardSet(
            table="t", sha256="", shards=1, bytes=tokens, documents=1, tokens=tokens,
            text_bytes=tokens,
        )  # fmt: skip

    languages = {}
    for family, members in sizes.items():
        for code, sources in members.items():
            made = tuple(
                Source(
                    name=name, language=code, languages=(code,), shards=line(n),
                    copies=int(name.rpartition(".x")[2]) if ".x" in name else 1,
                )
                for name, n in sources.items()
            )  # fmt: skip
            languages[code] = LanguageEntry(code=code, family=family, sources=made, heldout=line(0))
    return Manifest(
        tokenizer_sha256="", vocab_size=10, bos_id=2, eos_id=3, languages=languages,
        families=tuple(sorted(sizes)), seed=0,
    )  # fmt: skip


def entry_of(steps: int = 100, **settings: object) -> tuple[LedgerEntry, list[Capped]]:
    return decide(
        MixtureConfig(**settings), manifest(),
        Horizon(from_step=0, until_step=steps, last_step=steps),
        slots=SLOTS, slot_sequences=K, sequence_length=T,
    )  # fmt: skip


def shares(parts: dict[str, int]) -> dict[str, float]:
    assert sum(parts.values()) == SHARE_TOTAL
    return {name: part / SHARE_TOTAL for name, part in parts.items()}


def test_temperature_1_is_proportional_and_infinity_equal() -> None:
    entry, _ = entry_of(family_temperature=1.0, language_temperature=1.0)
    family = shares(entry.families)
    total = 450_000 + 12_500 + 43_000
    assert family["germanic"] == pytest.approx(450_000 / total, abs=1e-6)
    assert family["basque"] == pytest.approx(43_000 / total, abs=1e-6), "copies count"
    assert shares(entry.languages["germanic"])["eng_Latn"] == pytest.approx(0.8, abs=1e-6)
    equal, _ = entry_of(family_temperature=math.inf, language_temperature=math.inf)
    assert shares(equal.families) == pytest.approx(dict.fromkeys(SIZES, 1 / 3), abs=1e-6)
    assert shares(equal.languages["bantu"])["zul_Latn"] == pytest.approx(0.5, abs=1e-6)


def test_a_languages_sources_share_by_tokens_and_copies() -> None:
    entry, _ = entry_of()
    assert shares(entry.sources["swh_Latn"]) == pytest.approx(
        {"swh_Latn": 0.8, "swh_Latn@books": 0.2}, abs=1e-6
    )
    assert shares(entry.sources["eus_Latn"])["eus_Latn.x3"] == pytest.approx(3 / 43, abs=1e-6)


def test_fixed_shares_stand_and_the_others_share_the_rest() -> None:
    entry, _ = entry_of(
        families={"basque": 0.5}, languages={"swh_Latn": 0.1}, sources={"swh_Latn@books": 0.9},
        family_temperature=1.0,
    )  # fmt: skip
    family = shares(entry.families)
    assert family["basque"] == pytest.approx(0.5, abs=1e-6)
    assert family["germanic"] / family["bantu"] == pytest.approx(450_000 / 12_500, rel=1e-3)
    assert shares(entry.languages["bantu"])["swh_Latn"] == pytest.approx(0.1, abs=1e-6)
    assert shares(entry.sources["swh_Latn"])["swh_Latn@books"] == pytest.approx(0.9, abs=1e-6)


def test_a_share_of_0_leaves_out() -> None:
    entry, _ = entry_of(
        families={"germanic": 0.0}, languages={"zul_Latn": 0.0}, sources={"swh_Latn": 0.0}
    )
    assert sorted(entry.families) == ["bantu", "basque"]
    assert entry.languages["bantu"] == {"swh_Latn": SHARE_TOTAL}
    assert entry.sources["swh_Latn"] == {"swh_Latn@books": SHARE_TOTAL}
    assert "deu_Latn" not in entry.sources


def unimax(sizes: dict[str, float], budget: float, epochs: float) -> dict[str, float]:
    """UniMax as its paper states it, over languages without families."""
    left, given = budget, {}
    names = sorted(sizes, key=lambda n: sizes[n])
    for i, name in enumerate(names):
        given[name] = min(left / (len(names) - i), epochs * sizes[name])
        left -= given[name]
    return given


def test_equal_temperature_with_a_cap_is_unimax() -> None:
    sizes = {"deu_Latn": 4001, "swh_Latn": 40_001, "eus_Latn": 400_001}
    one = {f: {c: {c: n}} for f, (c, n) in zip("abc", sizes.items(), strict=True)}
    steps, k, slots = 5000, 1, 12
    entry, held = decide(
        MixtureConfig(family_temperature=math.inf, max_epochs=2.0), manifest(one),
        Horizon(from_step=0, until_step=steps, last_step=steps),
        slots=slots, slot_sequences=k, sequence_length=T,
    )  # fmt: skip
    expected = unimax({"a": 400, "b": 4000, "c": 40_000}, steps * slots, 2.0)
    for family, share in shares(entry.families).items():
        assert share * steps * slots == pytest.approx(expected[family], abs=8), family
    assert {(c.language, round(c.capped_epochs, 1)) for c in held} == {
        ("deu_Latn", 2.0), ("swh_Latn", 2.0)
    }  # fmt: skip
    assert all(c.wanted_epochs > c.capped_epochs for c in held)


def test_stages_become_entries_and_inherit_what_they_leave_out() -> None:
    mixture = MixtureConfig(
        family_temperature=1.0,
        stages=(
            StageConfig(from_step=10, families={"basque": 0.5}),
            StageConfig(from_step=20, family_temperature=math.inf),
        ),
    )
    ledger = decide_ledger(
        mixture, manifest(), steps=30, seed=0, slots=SLOTS, slot_sequences=K, sequence_length=T
    )
    assert [entry.from_step for entry in ledger.entries] == [0, 10, 20]
    assert shares(ledger.entries[1].families)["basque"] == pytest.approx(0.5, abs=1e-6)
    last = shares(ledger.entries[2].families)
    assert last == pytest.approx({"basque": 0.5, "bantu": 0.25, "germanic": 0.25}, abs=1e-6)
    assert ledger.entries[2].settings["families"] == {"basque": 0.5}
    targets = ledger.targets(30)
    basque = sum(targets[name] for name in ("eus_Latn", "eus_Latn.x3"))
    first = shares(ledger.entries[0].families)["basque"]
    assert basque == pytest.approx(10 * SLOTS * K * (first + 0.5 + 0.5), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"families": {"germanik": 0.5}}, "families.germanik: .* did you mean germanic"),
        ({"languages": {"eng_Lat": 0.5}}, "languages.eng_Lat: .* did you mean eng_Latn"),
        ({"sources": {"nix": 0.5}}, "sources.nix: the prepared folder has none; known: "),
        ({"families": {"bantu": 0.7, "basque": 0.7}}, "fixed shares of the families sum to 1.4"),
        ({"families": {"bantu": 0.5, "basque": 0.5}}, "leave nothing for germanic: lower them"),
        ({"families": dict.fromkeys(SIZES, 0.0)}, "leaves no language to read"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(DataError, match=told):
        entry_of(**settings)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: MixtureConfig(families={"a": 1.5}), "data.mixture.families.a=1.5 must be between"),
        (lambda: MixtureConfig(family_temperature=0.0), "family_temperature=0.0 must be at least"),
        (lambda: StageConfig(from_step=0), "data.mixture.stages.from_step=0 must be at least 1"),
        (
            lambda: MixtureConfig(stages=(StageConfig(from_step=9), StageConfig(from_step=5))),
            r"begin at steps \[9, 5\]: list them in rising order",
        ),
    ],
)
def test_settings_that_are_wrong_without_the_data(make, told: str) -> None:
    with pytest.raises(DataError, match=told):
        make()


def test_a_stage_after_the_runs_end_is_refused() -> None:
    mixture = MixtureConfig(stages=(StageConfig(from_step=30),))
    with pytest.raises(DataError, match="a stage from step 30 begins after .* run.steps=30"):
        decide_ledger(
            mixture, manifest(), steps=30, seed=0, slots=SLOTS, slot_sequences=K, sequence_length=T
        )


def test_a_language_shorter_than_a_sequence_is_refused_by_name() -> None:
    short = {**SIZES, "uralic": {"fin_Latn": {"fin_Latn": 9}}}
    with pytest.raises(DataError, match="fin_Latn has 9 training tokens, less than one sequence"):
        decide(
            MixtureConfig(), manifest(short), Horizon(from_step=0, until_step=9, last_step=9),
            slots=SLOTS, slot_sequences=K, sequence_length=T,
        )  # fmt: skip


def test_repetition_is_worth_less_and_less() -> None:
    assert effective_tokens(50, 100) == 50 and effective_tokens(100, 100) == 100
    # ATLAS's S: U [1 + (1 - exp(-λ (D/U - 1))) / λ].
    four = 100 * (1 + (1 - math.exp(-DECAY * 3)) / DECAY)
    assert effective_tokens(400, 100) == pytest.approx(four)
    worths = [effective_tokens(100 * n, 100) for n in range(1, 60)]
    gains = [b - a for a, b in zip(worths, worths[1:], strict=False)]
    assert all(0 < later < earlier < 100 for earlier, later in zip(gains, gains[1:], strict=False))
    assert effective_tokens(1e12, 100) == pytest.approx(100 * (1 + 1 / DECAY))
    assert effective_tokens(400, 100, decay=1.0) < four
    assert effective_tokens(0, 0) == 0


def test_ledger_before_a_step_ignores_what_comes_later() -> None:
    mixture = MixtureConfig(stages=(StageConfig(from_step=10, family_temperature=1.0),))

    def ledger(chosen: MixtureConfig) -> Ledger:
        return decide_ledger(
            chosen, manifest(), steps=30, seed=0, slots=SLOTS, slot_sequences=K, sequence_length=T
        )

    assert ledger(mixture).before(10) == ledger(MixtureConfig()).before(10)
    assert ledger(mixture).before(11) != ledger(MixtureConfig()).before(11)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(3000, 60_000), min_size=2, max_size=8),
    k=st.sampled_from([1, 4, 64]),
    slots=st.sampled_from([1, 5]),
    steps=st.integers(20, 90),
    max_epochs=st.floats(1.0, 40.0),
    temperature=st.sampled_from([1.0, math.inf]),
)
def test_no_language_is_ever_read_more_often_than_its_cap(
    sizes: list[int], k: int, slots: int, steps: int, max_epochs: float, temperature: float
) -> None:
    made = {f"f{i % 3}": {} for i in range(len(sizes))}
    for i, size in enumerate(sizes):
        made[f"f{i % 3}"][f"l{i}"] = {f"l{i}": size, f"l{i}@more": 2000}
    try:
        ledger = decide_ledger(
            MixtureConfig(
                family_temperature=temperature, language_temperature=3.0, max_epochs=max_epochs
            ),
            manifest(made), steps=steps, seed=0, slots=slots, slot_sequences=k, sequence_length=T,
        )  # fmt: skip
    except DataError as refused:
        assert "max_epochs" in str(refused)
        return
    order = Order(ledger, epoch_lengths(manifest(made), T))
    cursors = order.cursors(steps)
    for i in range(len(sizes)):
        names = (f"l{i}", f"l{i}@more")
        length = sum(order.epoch_length[name] for name in names)
        assert sum(cursors[name] for name in names) <= max_epochs * length


def test_a_cap_counts_only_what_is_not_in_quarantine() -> None:
    shut = {"deu_Latn": {"a.tar": (0, 60_000)}}

    def epochs_of_german(**more: object) -> float:
        entry, _ = decide(
            MixtureConfig(
                max_epochs=1.0, families={"germanic": 0.9}, languages={"deu_Latn": 0.7},
                sources={"swh_Latn@books": 0.0},
            ),
            manifest(), Horizon(from_step=0, until_step=700, last_step=700),
            slots=SLOTS, slot_sequences=K, sequence_length=T, **more,
        )  # fmt: skip
        part = entry.families["germanic"] * entry.languages["germanic"]["deu_Latn"]
        return part / SHARE_TOTAL**2 * 700 * SLOTS * K

    assert 8900 < epochs_of_german() <= 9000
    assert 2900 < epochs_of_german(quarantine=shut) <= 3000


def test_a_quarantine_of_a_source_that_is_not_read_is_dropped() -> None:
    shut = {"deu_Latn": {"a.tar": (0, 90_000)}}
    entry, _ = decide(
        MixtureConfig(sources={"deu_Latn": 0.0}), manifest(),
        Horizon(from_step=0, until_step=9, last_step=9),
        slots=SLOTS, slot_sequences=K, sequence_length=T, quarantine=shut,
    )  # fmt: skip
    assert "deu_Latn" not in entry.sources and not entry.quarantine


def test_fixed_shares_of_all_there_is_must_sum_to_1() -> None:
    with pytest.raises(DataError, match="shares of the languages of basque sum to 0.2 and leave"):
        entry_of(languages={"eus_Latn": 0.2})
    entry_of(families={"germanic": 0.2, "bantu": 0.3, "basque": 0.5})
