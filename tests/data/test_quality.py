"""The rules on running text: words of any script, FineWeb-2's thresholds, and which rule drops."""

import gzip
import json
from pathlib import Path

import pytest

from xylem.data.curation.config import LanguageThresholds, QualityConfig
from xylem.data.errors import DataError

pytest.importorskip("datatrove", reason="needs the extra curation")
from xylem.data.curation.quality import (
    NO_WORDS,
    RECIPE,
    QualityFilters,
    Words,
    check_languages,
    thresholds_of,
)
from xylem.data.curation.setting_files import config_file

CORPORA = Path(__file__).resolve().parents[3] / "shared" / "data" / "corpora"
TEXT = (
    "the of and bird river stone window garden music letter winter bread orange ladder mirror "
    "cloud silver pencil forest button candle hammer island jacket kettle lemon marble needle "
    "oyster pepper quilt rabbit saddle ticket umbrella velvet walnut yellow zebra anchor basket "
    "copper dragon engine feather guitar helmet insect jungle kitten lantern magnet napkin ocean "
    "pillow quarry ribbon shovel tunnel valley wagon"
)


def filters(code: str = "eng_Latn", **thresholds: object) -> QualityFilters:
    config = QualityConfig(default=LanguageThresholds(**thresholds))  # type: ignore[arg-type]
    return QualityFilters(code, thresholds_of(code, config, with_scores=False))


@pytest.mark.parametrize(
    ("script", "text", "words"),
    [
        ("Latn", "l’ami, well-known (x2)…", ["l’ami", ",", "well-known", "(", "x2", ")…"]),
        ("Deva", "हिन्दी में।", ["हिन्दी", "में", "।"]),
        ("Hans", "我有3个GPU。", ["我", "有", "3", "个", "GPU", "。"]),
        ("Jpan", "東京タワー", ["東", "京", "タ", "ワ", "ー"]),
        ("Thai", "น้ำ ดี", ["น้", "ำ", "ดี"]),
        ("Hang", "한국 사람", ["한국", "사람"]),
    ],
)
def test_words_are_cut_by_script_alone(script: str, text: str, words: list[str]) -> None:
    assert Words(script).word_tokenize(text) == words


def test_running_text_is_kept() -> None:
    assert filters().reason(TEXT) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" ".join(TEXT.split()[:45]), "gopher_short_doc"),
        ("!!! ... ---", NO_WORDS),
        (" \n ", NO_WORDS),
        ("\n".join([TEXT, *["Home | Contact"] * 3]), "dup_line_frac"),
        (f"{TEXT} {'bird river ' * 40}", "top_2_gram"),
        (f"{TEXT} {TEXT.replace('the', 'a')}", "duplicated_5_n_grams"),
        (TEXT.replace(" ", "\n"), "list_ratio"),
        (TEXT.replace(" ", " # "), "gopher_too_many_hashes"),
        ("\n".join(f"- {TEXT[i * 60 : i * 60 + 60]}" for i in range(7)),
         "gopher_too_many_bullets"),
        ("\n".join(f"{TEXT[i * 60 : i * 60 + 60]} …" for i in range(7)),
         "gopher_too_many_end_ellipsis"),
        (" ".join(f"{word} {number}.{number} +" for number, word in enumerate(TEXT.split())),
         "gopher_below_alpha_threshold"),
    ],
)  # fmt: skip
def test_each_rule_drops_what_it_is_there_for(text: str, reason: str) -> None:
    assert filters().reason(text) == reason


@pytest.mark.parametrize(
    ("thresholds", "reason"),
    [
        ({"line_punct_thr": 0.5}, "line_punct_ratio"),
        ({"min_doc_words": 100}, "gopher_short_doc"),
        ({"max_doc_words": 40}, "gopher_long_doc"),
        ({"min_avg_word_length": 9.0}, "gopher_below_avg_threshold"),
        ({"max_avg_word_length": 4.0}, "gopher_above_avg_threshold"),
        ({"max_non_alpha_words_ratio": 1.1}, "gopher_below_alpha_threshold"),
        ({"stopwords": ("el", "la", "the")}, "gopher_enough_stop_words"),
        ({"stopwords": ("the", "of"), "min_stop_words": 2}, None),
        ({"top_n_grams": ((2, 0.01),)}, "top_2_gram"),
        ({"new_line_ratio": -1.0}, "list_ratio"),
    ],
)
def test_each_threshold_is_in_effect(thresholds: dict[str, object], reason: str | None) -> None:
    assert filters(**thresholds).reason(TEXT) == reason


def test_thresholds_of_a_language_win_over_its_file_over_the_default_over_the_recipe(
    tmp_path: Path,
) -> None:
    (tmp_path / "swh_Latn.yml").write_text(
        "language_score: 0.3\nnew_line_ratio: 0.167\nmax_avg_word_length: 9\n"
        "stopwords:\n- ya\n- na\ntop_n_grams:\n- - 2\n  - 0.396\n"
    )
    config = QualityConfig(
        fineweb2_configs=str(tmp_path),
        default=LanguageThresholds(new_line_ratio=0.5, min_doc_words=10),
        languages={"swh_Latn": LanguageThresholds(max_avg_word_length=8)},
    )
    found = thresholds_of("swh_Latn", config, with_scores=True)
    assert found.max_avg_word_length == 8
    assert (found.new_line_ratio, found.stopwords) == (0.167, ("ya", "na"))
    assert found.top_n_grams == ((2, 0.396),) and found.language_score == 0.3
    assert found.min_doc_words == 10
    assert found.dup_n_grams == RECIPE.dup_n_grams
    assert thresholds_of("swh_Latn", config, with_scores=False).language_score == 0.1
    assert thresholds_of("eng_Latn", config, with_scores=True).new_line_ratio == 0.5


def test_files_of_fineweb2_are_found_under_its_own_codes(tmp_path: Path) -> None:
    (tmp_path / "cmn_Hani.yml").write_text("new_line_ratio: 0.178\n")
    config = QualityConfig(fineweb2_configs=str(tmp_path))
    assert config_file("zho_Hant", config) == tmp_path / "cmn_Hani.yml"
    assert config_file("eng_Latn", config) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "no YAML"),
        ("- 1", "is no threshold"),
        ("short_line_thr: 1", "'short_line_thr' is no threshold of FineWeb-2's"),
    ],
)
def test_file_that_is_none_of_fineweb2s_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "eng_Latn.yml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        thresholds_of("eng_Latn", QualityConfig(fineweb2_configs=str(tmp_path)), with_scores=True)
    assert "\n" not in str(caught.value)


def test_folder_without_files_of_fineweb2_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no files such as swh_Latn\.yml"):
        check_languages(QualityConfig(fineweb2_configs=str(tmp_path)), ["eng_Latn"])


def test_script_without_spaces_is_judged_as_one_with_spaces() -> None:
    letters = "".join(chr(0x4E00 + 7 * n) for n in range(120))
    assert filters("zho_Hans").reason(letters) is None
    assert filters("zho_Hans").reason(letters[:99]) == "gopher_short_doc", "99 letters: 49 words"
    twice = letters + "，" + letters
    assert str(filters("zho_Hans").reason(twice)).startswith("duplicated_10")


@pytest.mark.skipif(not CORPORA.is_dir(), reason="needs ../shared/data/corpora")
@pytest.mark.parametrize("code", ["swh_Latn", "zho_Hans", "hin_Deva", "khm_Khmr", "arb_Arab"])
def test_clean_text_of_real_corpora_is_kept(code: str) -> None:
    with gzip.open(CORPORA / f"{code}.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(120), file, strict=False)][::6]
    judge = filters(code)
    reasons = [judge.reason(text[:8000]) for text in texts if len(text) > 500]
    assert len(reasons) > 3 and sum(reason is None for reason in reasons) / len(reasons) >= 0.85
