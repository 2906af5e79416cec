"""Codes name languages; what is no code is refused with a suggestion."""

import csv
import dataclasses
import os
from pathlib import Path

import pytest

from xylem.data.errors import DataError
from xylem.data.languages import MEMBERS, NODE_OF_MACROLANGUAGE, language

SHARED = Path(os.environ.get("XYLEM_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))


@pytest.fixture(scope="module")
def data_languages() -> list[dict[str, str]]:
    table = SHARED / "data" / "lang" / "data_languages.tsv"
    if not table.exists():
        pytest.skip(f"no language table at {table}")
    with table.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def test_swahili() -> None:
    swahili = language("swh_Latn")
    assert (swahili.code, swahili.iso639_3, swahili.script) == ("swh_Latn", "swh", "Latn")
    assert (swahili.name, swahili.endonym) == ("Swahili", "Kiswahili")
    assert swahili.genealogy[:2] == ("Atlantic-Congo", "Volta-Congo")
    assert swahili.genealogy[-1] == "Swahili"


def test_a_language_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        language("swh_Latn").name = "x"  # type: ignore[misc]


def test_every_code_of_the_shared_data_is_a_language(data_languages: list[dict[str, str]]) -> None:
    for row in data_languages:
        found = language(row["code"])
        assert found.script == row["script"]
        assert found.genealogy, row["code"]


def test_the_branch_of_indo_european_agrees_with_glottologs_own_path(
    data_languages: list[dict[str, str]],
) -> None:
    branches = {
        "germ1287": "Germanic",
        "ital1284": "Italic",
        "celt1248": "Celtic",
        "balt1263": "Balto-Slavic",
        "indo1320": "Indo-Iranian",
        "grae1234": "Graeco-Phrygian",
        "alba1267": "Albanian",
        "arme1241": "Armenic",
    }
    seen = set()
    for row in data_languages:
        path = row["path"].split("/")
        if path[0] == "indo1319":
            seen.add(path[2])
            assert language(row["code"]).genealogy[2] == branches[path[2]], row["code"]
    assert seen == set(branches)


@pytest.mark.parametrize(
    ("code", "suggestion"),
    [
        ("swa_Latn", "swh_Latn"),
        ("sw", "swh_Latn"),
        ("swh", "swh_Latn"),
        ("swh_latn", "swh_Latn"),
        ("swh-Latn", "swh_Latn"),
        ("SWH_Latn", "swh_Latn"),
        ("swahili", "swh_Latn"),
        ("zho_Han", "zho_Hans"),
        ("zho_Han", "zho_Hant"),
        ("zh", "zho_Hans"),
        ("de_Latn", "deu_Latn"),
        ("fre_Latn", "fra_Latn"),
        ("deu_Latm", "deu_Latn"),
        ("ara_Arab", "arb_Arab"),
        ("nor_Latn", "nob_Latn"),
        ("nor_Latn", "nno_Latn"),
        ("nep_Deva", "npi_Deva"),
        ("xqz_Latn", "xtz_Latn"),
    ],
)
def test_a_wrong_code_is_refused_with_a_suggestion(code: str, suggestion: str) -> None:
    with pytest.raises(DataError) as error:
        language(code)
    text = str(error.value)
    assert text.startswith(f"language code {code!r}: ")
    assert "did you mean" in text and suggestion in text.split("did you mean")[1]
    assert "\n" not in text


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("", "not of the form xxx_Yyyy"),
        ("corpus", "not of the form xxx_Yyyy"),
        ("deu_LATN", "not of the form xxx_Yyyy"),
        ("qqq_Latn", "no language has the ISO 639-3 code 'qqq'"),
        ("und_Latn", "no language has the ISO 639-3 code 'und'"),
        ("deu_Xqqq", "no script has the ISO 15924 code 'Xqqq'"),
        ("uzb_Latn", "is a macrolanguage"),
    ],
)
def test_a_wrong_code_is_refused_with_the_rule(code: str, rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        language(code)


def test_every_suggestion_for_a_macrolanguage_is_a_language() -> None:
    for macrolanguage, members in MEMBERS.items():
        with pytest.raises(DataError, match="did you mean"):
            language(f"{macrolanguage}_Latn")
        for member in members:
            assert language(f"{member}_Latn").genealogy


def test_macrolanguages_that_corpora_use_have_a_genealogy() -> None:
    assert not set(MEMBERS) & set(NODE_OF_MACROLANGUAGE)
    for macrolanguage in [*NODE_OF_MACROLANGUAGE, "din", "ful", "kln", "aka", "san"]:
        assert len(language(f"{macrolanguage}_Latn").genealogy) >= 2
    assert language("zho_Hans").genealogy == ("Sino-Tibetan", "Sinitic", "Chinese")
    assert language("que_Latn").genealogy[0] == "Quechuan"


def test_a_script_the_language_is_not_known_in_is_accepted() -> None:
    assert language("swh_Cyrl").script == "Cyrl"
    assert language("eng_Zyyy").name == "English"


def test_an_isolate_is_its_whole_genealogy() -> None:
    assert language("eus_Latn").genealogy == ("Basque",)


def test_a_retired_code_with_one_successor_is_a_language() -> None:
    assert language("ajp_Arab").genealogy[:2] == ("Afro-Asiatic", "Semitic")


def test_an_unplaced_language_has_no_genealogy() -> None:
    assert language("nwx_Deva").genealogy == ()
