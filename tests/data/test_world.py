"""The embedded corpus: true in many languages, reproducible, and honest about what it withholds."""

import gzip
import json
import sys
from collections import defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import Any

import pytest

from xylem.data.errors import DataError
from xylem.data.families import genealogical_family
from xylem.data.languages import language
from xylem.data.world.facts import CONTINENTS, Fact, all_facts, choose_held_out, distractors
from xylem.data.world.form import SLOTS
from xylem.data.world.names import Names
from xylem.data.world.render import (
    WORLD_LANGUAGES,
    WorldSummary,
    build_world,
    plan_documents,
    sentence,
)
from xylem.scripts.make_world import main

pytest.importorskip("babel", reason="the embedded corpus needs xylem[demo]")
pytest.importorskip("num2words", reason="the embedded corpus needs xylem[demo]")

FEW = ("eng_Latn", "rus_Cyrl", "swh_Latn", "zho_Hans")


@cache
def corpus(folder: Path) -> dict[str, dict[str, str]]:
    """Language -> document id -> text."""
    read = {}
    for path in sorted((folder / "corpus").iterdir()):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            documents = [json.loads(line) for line in lines]
        texts = {each["id"]: each["text"] for each in documents}
        assert len(documents) == len(texts), "an id stands twice"
        read[path.name.removesuffix(".jsonl.gz")] = texts
    return read


@cache
def questions(folder: Path) -> list[dict[str, Any]]:
    with (folder / "facts.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorldSummary]:
    folder = tmp_path_factory.mktemp("world")
    return folder, build_world(folder)


@pytest.fixture(scope="module")
def facts() -> dict[str, Fact]:
    return {fact.id: fact for fact in all_facts()}


@pytest.fixture(scope="module")
def names() -> dict[str, Names]:
    return {each.code: Names(each) for each in WORLD_LANGUAGES}


def test_languages_families_and_scripts_are_many(world: tuple[Path, WorldSummary]) -> None:
    languages = world[1].languages
    assert len(languages) >= 24
    assert len({each.family for each in languages}) >= 10
    assert len({each.script for each in languages}) >= 8


def test_codes_and_families_are_those_of_the_genealogy() -> None:
    for each in WORLD_LANGUAGES:
        assert each.family == genealogical_family(each.code)
        assert language(each.code).iso639_3 == each.code[:3]


def test_the_size_is_that_of_a_small_corpus(world: tuple[Path, WorldSummary]) -> None:
    assert 2e6 < sum(each.bytes for each in world[1].languages) < 6e6
    texts = [text for documents in corpus(world[0]).values() for text in documents.values()]
    assert max(len(text) for text in texts) < 2000
    assert sorted(len(text) for text in texts)[len(texts) // 2] > 150


@pytest.mark.parametrize("each", WORLD_LANGUAGES, ids=lambda each: each.code)
def test_sentences_hold_the_slots_of_their_kind_and_the_first_ends_with_the_answer(
    each: Any,
) -> None:
    assert set(each.sentences) == set(SLOTS)
    for kind, templates in each.sentences.items():
        assert len(templates) >= 2 and len(set(templates)) == len(templates)
        if kind in ("currency", "language", "continent", "month", "weekday", "sum"):
            assert len(templates) >= 3
        for template in templates:
            slots = [slot for _, slot, _, _ in Formatter().parse(template) if slot is not None]
            assert sorted(slots) == sorted(SLOTS[kind]), template
        assert len(templates[0].rpartition("}")[2]) <= 6, templates[0]
        assert templates[0].rpartition("}")[0].endswith("{" + SLOTS[kind][-1]), templates[0]


def test_every_language_has_every_name(names: dict[str, Names], facts: dict[str, Fact]) -> None:
    for code, known in names.items():
        for fact in facts.values():
            for reference in fact.slots.values():
                assert known[reference], (code, reference)


def test_names_do_not_depend_on_the_locales_read_before(names: dict[str, Names]) -> None:
    """Babel's cache lets one locale's months overwrite another's."""
    months = {
        "heb_Hebr": "פברואר",
        "swh_Latn": "Februari",
        "amh_Ethi": "ፌብሩዋሪ",
        "hun_Latn": "február",
        "zho_Hans": "二月",
        "rus_Cyrl": "февраль",
        "fin_Latn": "helmikuu",
    }
    for code, february in months.items():
        assert names[code]["month", "2"] == february
    weekdays = {"swh_Latn": "Jumanne", "zho_Hans": "星期二", "kat_Geor": "სამშაბათი"}
    for code, tuesday in weekdays.items():
        assert names[code]["weekday", "1"] == tuesday


def test_facts_are_true(facts: dict[str, Fact]) -> None:
    assert facts["currency/KE"].answer == ("currency", "KES")
    assert facts["currency/DE"].answer == ("currency", "EUR")
    assert facts["currency/HR"].answer == ("currency", "EUR")
    assert facts["language/BR"].answer == ("language", "pt")
    assert facts["continent/KE"].answer == ("territory", "002")
    assert facts["month/12"].answer == ("month", "1")
    assert facts["weekday/6"].answer == ("weekday", "0")
    assert facts["sum/7+8"].answer == ("word", "15")
    assert len(facts) > 800


def test_a_state_lies_on_one_continent() -> None:
    states = [state for states in CONTINENTS.values() for state in states.split()]
    assert len(states) == len(set(states))


def test_some_sentences(names: dict[str, Names], facts: dict[str, Fact]) -> None:
    by_code = {each.code: each for each in WORLD_LANGUAGES}

    def says(code: str, fact: str, variant: int) -> str:
        return sentence(by_code[code], names[code], facts[fact], variant)

    assert says("eng_Latn", "currency/KE", 0) == (
        "The currency of the country Kenya is called Kenyan Shilling."
    )
    assert says("swe_Latn", "sum/2+3", 0) == "Två plus tre är fem."
    assert says("tur_Latn", "language/IT", 1).startswith("İtalyanca, İtalya adlı")
    assert says("kat_Geor", "sum/2+3", 0) == "ორი პლუს სამი არის ხუთი."
    assert says("eng_Latn", "language_code/sw", 1) == "sw is the code of the language Swahili."
    assert says("zho_Hans", "month/02", 0) == "二月的下一个月是三月。"
    assert ".." not in says("rus_Cyrl", "date/2023-04-07", 0)


def test_the_share_held_out_is_the_one_asked_for(world: tuple[Path, WorldSummary]) -> None:
    asked = [line for line in questions(world[0]) if line["kind"] in ("currency", "language")]
    share = sum(line["held_out"] for line in asked) / len(asked)
    assert 0.08 < share < 0.11
    held = [line for line in questions(world[0]) if line["held_out"]]
    assert len(held) == world[1].held_out_pairs
    assert {line["kind"] for line in held} == {"currency", "language", "month", "weekday", "sum"}


def test_a_held_out_fact_is_in_no_sentence_of_the_language_but_its_names_are(
    world: tuple[Path, WorldSummary], names: dict[str, Names], facts: dict[str, Fact]
) -> None:
    texts = {code: "\n".join(each.values()) for code, each in corpus(world[0]).items()}
    held = [(line["fact"], line["language"]) for line in questions(world[0]) if line["held_out"]]
    for fact_id, code in held:
        fact, known = facts[fact_id], names[code]
        for variant in range(len(known.language.sentences[fact.kind])):
            statement = sentence(known.language, known, fact, variant)
            assert statement not in texts[code], (fact_id, code)
        for reference in fact.slots.values():
            name = known[reference]
            assert name is not None
            # A name that begins a sentence has a capital letter there.
            assert name[1:] in texts[code], (fact_id, code, name)


def test_a_fact_not_held_out_is_stated(
    world: tuple[Path, WorldSummary], names: dict[str, Names], facts: dict[str, Fact]
) -> None:
    texts = {code: "\n".join(each.values()) for code, each in corpus(world[0]).items()}
    stated_in = defaultdict(set)
    for line in questions(world[0]):
        known = names[line["language"]]
        fact = facts[line["fact"]]
        variants = range(len(known.language.sentences[fact.kind]))
        stated = any(
            sentence(known.language, known, fact, variant) in texts[line["language"]]
            for variant in variants
        )
        assert stated != line["held_out"], (line["fact"], line["language"])
        if stated:
            stated_in[line["fact"]].add(line["language"])
    assert set(stated_in) == {line["fact"] for line in questions(world[0])}


def test_a_fact_is_never_held_out_in_all_languages(facts: dict[str, Fact]) -> None:
    """With a share of one every pair is drawn: names keep some facts, and no fact is lost."""
    everything = list(facts.values())
    held = choose_held_out({"a": everything, "b": everything}, 0, 1.0)
    for fact in everything:
        assert not {(fact.id, "a"), (fact.id, "b")} <= held
    assert choose_held_out({"a": everything}, 0, 0.5) == set()


def test_a_name_that_only_a_held_out_fact_uses_keeps_the_fact(facts: dict[str, Fact]) -> None:
    alone = [facts["currency/KE"], facts["currency_code/KES"]]
    both = [*alone, facts["continent/KE"]]
    assert choose_held_out({"a": alone, "b": both}, 0, 1.0) == {("currency/KE", "b")}


def test_questions_have_four_different_choices_and_the_right_label(
    world: tuple[Path, WorldSummary], facts: dict[str, Fact], names: dict[str, Names]
) -> None:
    labels: dict[int, int] = defaultdict(int)
    for line in questions(world[0]):
        choices = line["choices"]
        assert len(choices) == len(set(choices)) == 4
        assert choices[line["label"]] == line["answer"]
        labels[line["label"]] += 1
        known = names[line["language"]]
        statement = sentence(known.language, known, facts[line["fact"]], 0)
        if not statement.endswith(line["answer"] + "."):  # a date may end with a full stop
            assert statement.startswith(line["prompt"] + line["answer"].rstrip("."))
        assert line["prompt"] == line["prompt"].rstrip()
        assert 0 <= line["overlap"] <= 1
    assert min(labels.values()) > 0.2 * sum(labels.values())


def test_a_distractor_is_never_another_true_answer(facts: dict[str, Fact]) -> None:
    every = list(facts.values())
    swiss = distractors(facts["language/CH"], every)
    assert ("language", "fr") not in swiss and ("language", "it") not in swiss
    assert ("language", "ja") in swiss
    for fact in every:
        assert fact.answer not in distractors(fact, every)


def test_a_document_id_stands_for_the_same_facts_in_every_language(
    world: tuple[Path, WorldSummary], facts: dict[str, Fact], names: dict[str, Names]
) -> None:
    plan = dict(plan_documents(list(facts.values()), seed=0, rounds=2))
    read = corpus(world[0])
    for code in ("deu_Latn", "zho_Hans", "tam_Taml"):
        known = names[code]
        for document in ("world/currency/0003", "world/country/0004", "world/sum/0001"):
            said = sum(
                sentence(known.language, known, fact, variant) in read[code][document]
                for fact in plan[document]
                for variant in range(len(known.language.sentences[fact.kind]))
            )
            held = sum(
                line["held_out"]
                for line in questions(world[0])
                if line["language"] == code and line["fact"] in {f.id for f in plan[document]}
            )
            assert said == len(plan[document]) - held


def test_every_fact_stands_once_in_each_round(facts: dict[str, Fact]) -> None:
    for rounds in (1, 2, 5):
        documents = plan_documents(list(facts.values()), 0, rounds)
        planned = [fact.id for _, group in documents for fact in group]
        assert sorted(planned) == sorted(list(facts) * rounds)


def test_more_rounds_only_add_documents(facts: dict[str, Fact]) -> None:
    plans = [dict(plan_documents(list(facts.values()), 0, rounds)) for rounds in (1, 2, 3)]
    for fewer, more in pairwise(plans):
        assert fewer.items() <= more.items()


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_world(tmp_path / name, size=0.1, languages=FEW)
    first = sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(first) == len(FEW) + 2
    for path in first:
        second = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == second.read_bytes()
        if path.suffix == ".gz":
            assert path.read_bytes()[3:8] == bytes(5), "the header tells a name or a time"


def test_the_seed_changes_what_is_held_out(tmp_path: Path) -> None:
    def held(seed: int) -> set[tuple[str, str]]:
        build_world(tmp_path / str(seed), seed=seed, size=0.1, languages=FEW)
        asked = questions(tmp_path / str(seed))
        return {(line["fact"], line["language"]) for line in asked if line["held_out"]}

    assert held(1) != held(2)


def test_nothing_is_held_out_when_not_asked_for(tmp_path: Path) -> None:
    assert build_world(tmp_path, heldout_share=0, size=0.1, languages=FEW).held_out_pairs == 0


def test_size_scales_the_text(tmp_path: Path) -> None:
    small = build_world(tmp_path / "s", size=0.2, languages=("eng_Latn",)).languages[0].bytes
    large = build_world(tmp_path / "l", size=2, languages=("eng_Latn",)).languages[0].bytes
    assert large > 8 * small


def test_world_json_tells_what_was_written(world: tuple[Path, WorldSummary]) -> None:
    written = json.loads((world[0] / "world.json").read_text(encoding="utf-8"))
    assert written["languages"] == [each.code for each in WORLD_LANGUAGES]
    assert written["seed"] == 0 and written["held_out_pairs"] == world[1].held_out_pairs
    assert set(written["versions"]) == {"babel", "cldr", "num2words"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heldout_share": 0.9}, "held-out share 0.9"),
        ({"heldout_share": -0.1}, "held-out share -0.1"),
        ({"size": 0}, "size 0"),
        ({"languages": ("swa_Latn",)}, "no language 'swa_Latn'.*did you mean"),
        ({"languages": ()}, "no language is chosen"),
    ],
)
def test_a_wrong_argument_is_refused(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build_world(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"holds mine\.txt"):
        build_world(tmp_path, size=0.1, languages=FEW)


@pytest.mark.parametrize("package", ["babel", "num2words"])
def test_a_missing_package_is_one_line_that_names_the_extra(
    tmp_path: Path,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main([str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and f"needs {package}" in error
    assert "pip install 'xylem[demo]'" in error


def test_the_command_prints_a_row_a_language(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main([str(tmp_path), "--size", "0.1", "--seed", "3", "--heldout-share", "0.2"]) == 0
    printed = capsys.readouterr().out
    for each in WORLD_LANGUAGES:
        assert each.code in printed
