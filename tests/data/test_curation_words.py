"""Words are cut alike in every script, and n-grams are hashed by their words alone."""

import random

import numpy as np
import pytest

from xylem.data.curation.words import WordHashes, normalised, words


def grams(text: str, n: int, **settings: bool) -> list[int]:
    return WordHashes(words(text), **settings).windows(n).hashes.tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yesu Kristo, alikuwa mzawa!", ["yesu", "kristo", "alikuwa", "mzawa"]),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा"]),
        ("起初,神创造", ["起", "初", "神", "创", "造"]),
        ("ชื่อ", ["ชื่", "อ"]),
        ("カード", ["カ", "ー", "ド"]),
        ("བོད་སྐད་", ["བོད", "སྐད"]),
        ("谷歌 Google 在 2024", ["谷", "歌", "google", "在", "2024"]),
        ("…!? \n", []),
        ("", []),
    ],
)
def test_units_of_each_script(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_what_looks_equal_is_equal() -> None:
    assert words("Cafe\u0301 ＡＢＣ co\u00adop می\u200cخواهم") == words("café abc coop میخواهم")
    assert normalised("  A\u00a0b\n\tC ") == "a b c"
    assert normalised("STRASSE") == normalised("straße")


def test_an_ngram_is_worth_n_words_in_every_script() -> None:
    assert WordHashes(words("a b c d e f")).windows(5).ends.tolist() == [5, 6]
    assert WordHashes(words("起初神创造天地起初神创")).windows(5).ends.tolist() == [10, 11]
    assert WordHashes(words("ก" * 21)).windows(5).ends.tolist() == [20, 21]
    mixed = WordHashes(words("a 起初 b ก" + "ก" * 3))
    assert mixed.worth == 4
    assert mixed.windows(3).ends.tolist() == [4, 8]
    assert mixed.windows(5).ends.tolist() == []


def test_equal_windows_have_equal_hashes_wherever_they_stand() -> None:
    draw = random.Random(0)
    units = [draw.choice("abcdefgh起初神ก") for _ in range(3000)]
    hashes = WordHashes(units)
    windows = hashes.windows(4)
    seen: dict[int, tuple[str, ...]] = {}
    for start, (end, value) in enumerate(
        zip(windows.ends.tolist(), windows.hashes.tolist(), strict=True)
    ):
        gram = tuple(units[start:end])
        assert seen.setdefault(value, gram) == gram
        assert WordHashes(units[start:end]).whole() == value
    assert len(set(seen.values())) == len(seen) > 2000


def test_hashes_do_not_change_between_versions() -> None:
    assert grams("to be or not to be", 5) == [5462206881095928982, 9967205605581425729]


def test_numbers_are_one_word_only_if_asked() -> None:
    assert grams("page 1 of 20", 4) != grams("page 7 of 31", 4)
    assert grams("page 1 of 20", 4, digits=False) == grams("page 7 of 31", 4, digits=False)
    assert grams("page 1 of 20", 4, digits=False) != grams("page one of 20", 4, digits=False)


def test_a_text_without_words_has_no_windows() -> None:
    empty = WordHashes([])
    assert empty.worth == 0
    assert empty.windows(1).hashes.dtype == np.uint64
    assert not len(empty.windows(1).hashes)
