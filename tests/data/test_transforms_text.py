"""What interleaving, code switching and romanisation do to a text, letter by letter."""

import random
import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xylem.data.errors import DataError
from xylem.data.sources import Document
from xylem.data.transforms.code_switch import (
    build_automaton,
    derive_switched,
    load_dictionary,
    occurrences,
)
from xylem.data.transforms.interleave import LONGEST, MINIMUM_WINDOW, SEPARATOR, interleave
from xylem.data.transforms.romanize import derive_romanized, load_uroman, romanize

# Interleaving

LATIN = list("abcdefg")
HINDI = ["कि", "न्द", "म", "ड़ी", "रू", "त"]


def written(letters: list[str], seed: int) -> str:
    """Words of these letters, with blanks of all kinds between; some texts lack spaces or lines."""
    chosen = random.Random(seed)
    blanks = chosen.choice([[" "], ["\n"], [" ", "\n"], [" ", " ", " ", ". ", "\n", "\n\n"]])
    longest = chosen.choice([3, 12, 200])
    words = (
        "".join(chosen.choices(letters, k=chosen.randint(1, longest))) + chosen.choice(blanks)
        for _ in range(chosen.randint(1, 250))
    )
    return "".join(words).rstrip()


english_texts = st.integers(0, 2**32).map(lambda seed: written(LATIN, seed))
hindi_texts = st.integers(0, 2**32).map(lambda seed: written(HINDI, seed))


def is_hindi(text: str) -> bool:
    return any("ऀ" <= letter <= "ॿ" for letter in text)


def runs(text: str) -> list[str]:
    """A derived text cut where its language changes, with the blanks at the end of a run."""
    found: list[str] = []
    for piece in re.findall(r"[^\s]+\s*", text):
        if found and (is_hindi(found[-1]) == is_hindi(piece) or piece.strip() == "."):
            found[-1] += piece
        else:
            found.append(piece)
    return found


def letters_of(texts: list[str]) -> str:
    return re.sub(r"\s", "", "".join(texts))


@settings(deadline=None)
@given(english_texts, hindi_texts, st.integers(MINIMUM_WINDOW, 3000))
def test_two_neighbouring_chunks_fit_the_window_and_languages_alternate(
    english: str, hindi: str, window: int
) -> None:
    found = runs(interleave(english, hindi, window_bytes=window))
    assert is_hindi(found[1]) != is_hindi(found[0])
    assert not is_hindi(found[0])
    for one, two in pairwise(found):
        assert len((one + two).encode()) <= window


@settings(deadline=None)
@given(english_texts, hindi_texts, st.integers(MINIMUM_WINDOW, 3000))
def test_no_letter_is_lost_moved_or_parted_from_its_marks(
    english: str, hindi: str, window: int
) -> None:
    chunks = runs(interleave(english, hindi, window_bytes=window))
    sizes = sorted(len(text.encode()) for text in (english, hindi))
    for language, text in ((chunks[0::2], english), (chunks[1::2], hindi)):
        kept, whole = letters_of(language), letters_of([text])
        if LONGEST * sizes[0] >= sizes[1]:
            assert kept == whole
        assert whole.startswith(kept)
    assert not any(unicodedata.category(chunk[0]).startswith("M") for chunk in chunks)


def test_what_fits_the_window_is_not_cut() -> None:
    found = interleave(" one\n\ntwo\n", "moja\nmbili", window_bytes=256)
    assert found == f"one\n\ntwo{SEPARATOR}moja\nmbili"


def test_chunks_are_whole_lines_where_lines_are_short() -> None:
    english = [f"line {n:03d} of the english text" for n in range(200)]
    swahili = [f"mstari {n:03d} wa matini" for n in range(200)]
    found = interleave("\n".join(english), "\n".join(swahili), window_bytes=1024).split("\n\n")
    assert len(found) > 10
    assert [line for chunk in found[0::2] for line in chunk.split("\n")] == english
    assert [line for chunk in found[1::2] for line in chunk.split("\n")] == swahili


def test_chunks_that_follow_each_other_come_from_the_same_place() -> None:
    english = "\n".join(f"{n} the english line is longer than the other" for n in range(300))
    swahili = "\n".join(f"{n} mstari" for n in range(300))
    found = interleave(english, swahili, window_bytes=1024).split("\n\n")
    for one, two in zip(found[0::2], found[1::2], strict=True):
        assert abs(int(one.split()[0]) - int(two.split()[0])) <= 6


@pytest.mark.parametrize("swap", [False, True])
def test_a_text_that_outgrows_the_other_is_cut(swap: bool) -> None:
    texts = ("word " * 4000, "moja mbili") if swap else ("moja mbili", "word " * 4000)
    found = interleave(*texts, window_bytes=256)
    assert "moja mbili" in found
    kept = len(found) - len("moja mbili" + SEPARATOR)
    assert 0.8 * LONGEST * 10 < kept <= LONGEST * 10


@pytest.mark.parametrize(
    ("better", "worse"), [("\n\n", "\n"), ("\n", ". "), (". ", " "), ("。", " "), (" ", "x")]
)
def test_a_far_paragraph_is_preferred_to_a_near_line_and_so_down_to_words(
    better: str, worse: str
) -> None:
    text = "a" * 460 + better + "b" * 35 + worse + "c" * 500
    chunks = interleave(text, "я" * 500, window_bytes=1500).split(SEPARATOR)
    assert chunks[0] == ("a" * 460 + better).strip()
    assert chunks[2] == "b" * 35 + worse + "c" * 500


def test_a_heap_of_marks_after_a_border_repeats_nothing() -> None:
    text = "a" * 12 + "。" + "\u0301" * 7 + "a" * 13
    found = interleave(text, "z" * 8 * 42, window_bytes=256)
    assert letters_of([found.replace("z", "")]) == text


# Code switching


def switched(
    text: str,
    dictionary: dict[str, tuple[str, ...]],
    *,
    share: float = 1.0,
    ignore_case: bool = False,
    document_id: str = "d",
) -> str:
    found = derive_switched(
        "s",
        [Document(id=document_id, text=text)],
        dictionary=dictionary,
        share=share,
        ignore_case=ignore_case,
        seed=0,
    )
    return "".join(document.text for document in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the water, the fire.", "the MAJI, the MOTO."),
        ("waterfall underwater water's", ""),
        ("hot water bottle", "hot MAJI bottle"),
        ("hot water", "CHAI"),
        ("hot waters", ""),
        ("water hot water water", "MAJI CHAI MAJI"),
        ("Water", ""),
    ],
)
def test_whole_words_are_replaced_the_longest_term_first(text: str, expected: str) -> None:
    terms = {"water": "MAJI", "fire": "MOTO", "hot water": "CHAI", "hot water bottle of": "x"}
    dictionary = {term: (replacement,) for term, replacement in terms.items()}
    if text == "hot water bottle":
        del dictionary["hot water"]
    assert switched(text, dictionary) == expected


@pytest.mark.parametrize(
    ("text", "term", "expected"),
    [
        ("我在北京工作", "北京", "我在X工作"),
        ("ฉันชอบแมวมาก", "แมว", "ฉันชอบXมาก"),
        ("ខ្ញុំស្រលាញ់ឆ្មា", "ឆ្មា", "ខ្ញុំស្រលាញ់X"),
        ("हिन्दी में", "हिन्द", ""),
        ("हिन्दी में", "हिन्दी", "X में"),
        ("서울에서", "서울", ""),
        ("ประเทศ", "ประเท", "Xศ"),
        ("กี่", "ก", ""),
    ],
)
def test_scripts_without_spaces_need_no_word_border_and_marks_stay_with_their_letter(
    text: str, term: str, expected: str
) -> None:
    assert switched(text, {term: ("X",)}) == expected


def test_case_is_ignored_on_request_whatever_a_letters_length() -> None:
    dictionary = {"water": ("maji",), "ὀδός": ("njia",)}
    assert switched("İ WATER Water", dictionary, ignore_case=True) == "İ maji maji"


def test_a_term_written_in_capitals_is_found_when_case_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "words.tsv"
    path.write_text("NAIROBI\tNairobi\nnairobi\tEneo\n")
    assert load_dictionary(str(path), ignore_case=True) == {"nairobi": ("Nairobi", "Eneo")}
    assert set(load_dictionary(str(path), ignore_case=False)) == {"NAIROBI", "nairobi"}


def test_lines_of_one_term_add_up_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "words.tsv"
    path.write_bytes(b"\xef\xbb\xbfa b\tx\ty\r\n\r\nc\tz\r\na b\ty\tw\r\n")
    found = load_dictionary(str(path), ignore_case=False)
    assert found == {"a b": ("x", "y", "w"), "c": ("z",)}


def test_a_missing_dictionary_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone.tsv: no such file: write one, each line a term"):
        load_dictionary(str(tmp_path / "gone.tsv"), ignore_case=False)


def test_the_share_decides_how_many_occurrences_are_replaced() -> None:
    text = " ".join(["water"] * 2000)
    for share in (0.1, 0.5, 0.9):
        count = switched(text, {"water": ("maji",)}, share=share).count("maji")
        assert abs(count / 2000 - share) < 0.04
    assert switched(text, {"water": ("maji",)}, share=1.0).count("maji") == 2000


def test_every_replacement_of_a_term_is_used() -> None:
    found = switched(" ".join(["water"] * 300), {"water": ("maji", "vesi", "uisce")})
    for each in ("maji", "vesi", "uisce"):
        assert 60 < found.split().count(each) < 140


def test_a_document_without_any_term_is_left_out() -> None:
    documents = [Document(id="a", text="a stone"), Document(id="b", text="a fire")]
    found = derive_switched(
        "s", documents, dictionary={"fire": ("moto",)}, share=1.0, ignore_case=False, seed=0
    )
    assert list(found) == [Document(id="b#s", text="a moto")]


def test_a_new_term_does_not_change_what_happens_to_the_others() -> None:
    text = " ".join(random.Random(0).choices(["water", "fire", "stone"], k=400))
    before = switched(text, {"water": ("maji",), "fire": ("moto",)}, share=0.5).split()
    after = switched(
        text, {"water": ("maji",), "fire": ("moto",), "stone": ("jiwe",)}, share=0.5
    ).split()
    assert [word.replace("jiwe", "stone") for word in after] == before
    assert "jiwe" in after


def test_documents_of_equal_text_are_switched_at_places_of_their_own() -> None:
    text, dictionary = " ".join(["water"] * 64), {"water": ("maji",)}
    one, two = (switched(text, dictionary, share=0.5, document_id=each) for each in "ab")
    assert one != two


terms = st.lists(st.text("ab ", min_size=1, max_size=5).map(str.strip), min_size=1, max_size=8)


@settings(deadline=None)
@given(terms.map(lambda found: [t for t in found if t] or ["a"]), st.text("ab c", max_size=60))
def test_occurrences_are_those_that_a_slow_search_finds(found: list[str], text: str) -> None:
    expected, place = [], 0
    padded = f" {text} "
    while place < len(text):
        ends = [
            place + len(term)
            for term in found
            if text.startswith(term, place)
            and not (padded[place].isalpha() and padded[place + 1].isalpha())
            and not (
                padded[place + len(term)].isalpha() and padded[place + len(term) + 1].isalpha()
            )
        ]
        if ends:
            expected.append((place, max(ends)))
        place = max([*ends, place + 1])
    assert list(occurrences(text, build_automaton(found))) == expected


# Romanisation


@pytest.mark.parametrize(
    ("text", "iso639_3", "expected"),
    [
        ("नमस्ते दुनिया", "hin", "namaste duniyaa"),
        ("서울", "kor", "seoul"),
        ("Αθήνα\n\n  και πόλη\t१२", "ell", "Athena\n\n  kai pole\t12"),
        ("plain ASCII, 3.14\n(kept)", "hin", "plain ASCII, 3.14\n(kept)"),
    ],
)
def test_text_is_written_in_latin_letters_and_lines_are_kept(
    text: str, iso639_3: str, expected: str
) -> None:
    assert romanize(text, iso639_3) == expected


@pytest.mark.parametrize(
    ("line", "iso639_3"),
    [
        ("東京、大阪、 CocoaPods， 京都。", "jpn"),
        ("ዕድሜ፡ ሳር፣ ጾታ፡ ቀላይ", "amh"),
        ("وَقَالَ ٱللهُ: «لِيَكُنْ نُورٌ»، فَكَانَ نُورٌ.", "arb"),
        ("ភាសាខ្មែរជាភាសា", "khm"),
    ],
)
def test_romanising_word_by_word_gives_what_the_whole_line_gives(line: str, iso639_3: str) -> None:
    whole = load_uroman().romanize_string(line, lcode=iso639_3)
    assert romanize(line, iso639_3) == whole != line


def test_a_long_stretch_without_blanks_is_romanised_in_parts() -> None:
    text = "ຄນ" * 1000 + " " + "नि" * 800
    found = romanize(text, "lao")
    assert found.startswith("khon") or found.startswith("khn")
    assert found.endswith("ni" * 800)


def test_documents_that_romanisation_leaves_as_they_are_are_left_out() -> None:
    documents = [
        Document(id="a", text="plain"),
        Document(id="b", text="घर"),
        Document(id="c", text="\u200b"),
    ]
    assert list(derive_romanized("r", documents, language="hin_Deva")) == [
        Document(id="b#r", text="ghar")
    ]
