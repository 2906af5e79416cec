"""The benchmark of curation counts what was planted, reached and found as its words say."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from xylem.scripts.bench_curation import Score, precision, score
from xylem.scripts.planted_corpus import (
    CLEAN,
    COPY,
    CUT,
    EDITS,
    OTHER_SCRIPT,
    SAME_SCRIPT,
    Planted,
    plant,
)

LANGUAGES = ("swh_Latn", "zul_Latn", "zho_Hans")
ALPHABETS = {
    "swh_Latn": "abkimnuwaz",
    "zul_Latn": "deghklnqsz",
    "zho_Hans": "起初神创造天地是空虚混",
}


def shared_folder(root: Path) -> Path:
    for code in LANGUAGES:
        letters = ALPHABETS[code]
        joiner = "" if code == "zho_Hans" else " "
        for kind, count, size in (("corpora", 30, 250), ("eval/sib200", 4, 20)):
            path = root / "data" / kind / f"{code}.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            with gzip.open(path, "wt", encoding="utf-8") as file:
                for row in range(count):
                    words = [
                        "".join(
                            letters[(row * 7 + n * k + k * k) % len(letters)] for k in (1, 2, 3)
                        )
                        + letters[(n * n + row) % len(letters)]
                        for n in range(size)
                    ]
                    text = joiner.join(words)
                    file.write(json.dumps({"id": f"{kind}/{row}", "text": text}) + "\n")
    path = root / "data" / "parallel" / "udhr.jsonl.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt") as file:
        file.write("")
    return root


@pytest.fixture
def planted(tmp_path: Path) -> list[Planted]:
    return plant(shared_folder(tmp_path / "shared"), tmp_path / "raw", LANGUAGES, 26, 3, seed=0)


def test_what_is_planted_is_in_the_corpus(tmp_path: Path, planted: list[Planted]) -> None:
    for code in LANGUAGES:
        with gzip.open(tmp_path / "raw" / f"{code}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = {row["id"]: row["text"] for row in map(json.loads, file)}
        assert rows == {row.id: row.text for row in planted if row.language == code}


def test_every_kind_is_planted_in_every_language(planted: list[Planted]) -> None:
    for code in LANGUAGES:
        kinds = [row.kind for row in planted if row.language == code]
        assert all(kinds.count(kind) == 3 for kind in (COPY, *EDITS, CUT, OTHER_SCRIPT))
        assert kinds.count(SAME_SCRIPT) == (0 if code == "zho_Hans" else 3)
        assert kinds.count("SIB-200 leak") == 3
        assert CLEAN in kinds


def test_a_duplicate_is_as_unlike_its_original_as_its_kind_says(planted: list[Planted]) -> None:
    texts = {(row.language, row.id): row.text for row in planted}
    for row in planted:
        original = texts.get((row.language, row.original), "")
        if row.kind == COPY:
            assert row.text == original
            assert row.expected == 1
        elif row.kind == CUT:
            assert original.startswith(row.text)
            assert 0.85 < len(row.text) / len(original) < 0.95
        elif row.kind in EDITS and row.language != "zho_Hans":
            pairs = list(zip(row.text.split(), original.split(), strict=True))
            changed = sum(a != b for a, b in pairs) / len(pairs)
            assert changed == pytest.approx(EDITS[row.kind], abs=0.005)
        else:
            assert not row.original or row.language == "zho_Hans"


def test_a_wrong_language_is_told(planted: list[Planted]) -> None:
    scripts = {SAME_SCRIPT: True, OTHER_SCRIPT: False}
    for row in planted:
        if row.kind in scripts:
            same = row.language.split("_")[1] == row.written_in.split("_")[1]
            assert row.written_in != row.language
            assert same == scripts[row.kind]
            assert set(row.text) <= {*ALPHABETS[row.written_in], " "}


def test_the_same_seed_plants_the_same(tmp_path: Path, planted: list[Planted]) -> None:
    again = plant(tmp_path / "shared", tmp_path / "again", LANGUAGES, 26, 3, seed=0)
    other = plant(tmp_path / "shared", tmp_path / "other", LANGUAGES, 26, 3, seed=1)
    assert again == planted
    assert other != planted


def test_a_pair_is_found_when_one_of_it_is_left() -> None:
    pair = Planted(kind=COPY, language="swh_Latn", id="a/copy", text="", original="a", expected=0.9)
    other = replace(pair, id="b/copy", original="b", language="zul_Latn")
    left = {("swh_Latn", "a"), ("zul_Latn", "b"), ("zul_Latn", "b/copy")}
    found = score(COPY, [pair, other], [pair, other], left)
    assert (found.planted, found.reached, found.found, found.recall) == (2, 2, 1, 0.5)
    assert found.worst == "zul_Latn 0.00"
    assert found.expected == pytest.approx(0.9)
    assert score(COPY, [pair], [], left).recall is None


def test_the_goal_of_a_share_is_what_chance_hardly_undercuts() -> None:
    one = Score(kind="", planted=100, reached=100, found=0, expected=0.5, by_language={})
    assert 0.33 < one.least < 0.37
    assert replace(one, expected=1.0).least == 1
    assert replace(one, expected=0.0).least == 0


def test_precision_is_the_planted_share_of_what_was_dropped() -> None:
    dropped = {("swh_Latn", "a"), ("swh_Latn", "b"), ("zul_Latn", "a")}
    right = {("swh_Latn", "a"), ("zul_Latn", "a"), ("zul_Latn", "c")}
    found = precision("x", dropped, right)
    assert found.value == pytest.approx(2 / 3)
    assert found.by_language == {"swh_Latn": (1, 2), "zul_Latn": (1, 1)}
    assert precision("x", set(), right).value is None
