"""Documents that hold evaluation texts are dropped and listed, in every language and script."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document

from xylem.data.curation.config import CurationConfig, DecontaminationConfig
from xylem.data.curation.contamination import HIT_LIST, decontamination_stage
from xylem.data.curation.evaluation_index import (
    SHORTEST,
    EvaluationIndex,
    EvaluationText,
    Match,
    Matcher,
    evaluation_files,
    read_evaluation,
)
from xylem.data.curation.language_files import LanguageFile, read_stage, write_stage
from xylem.data.errors import DataError

LETTERS = {"swh_Latn": "abkimnuwaz", "zho_Hans": "起初神创造天地是空虚混", "tha_Thai": "กขคงจฉชซ"}
JOINER = {"swh_Latn": " "}


def run_here(
    name: str, pipeline: list[Any], tasks: int, config: CurationConfig, work: Path
) -> None:
    """Runs a stage's tasks in this process, last task first."""
    for rank in reversed(range(tasks)):
        documents = None
        for step in pipeline:
            documents = step(documents, rank, tasks)


def text_worth(code: str, words: int, seed: object = 0) -> list[str]:
    """Made-up units worth so many words."""
    draw = random.Random(f"{code}/{seed}")
    if code == "zho_Hans":
        return draw.choices(LETTERS[code], k=2 * words)
    if code == "tha_Thai":
        return draw.choices(LETTERS[code], k=4 * words)
    return ["".join(draw.choices(LETTERS[code], k=6)) for _ in range(words)]


def joined(code: str, units: list[str]) -> str:
    return JOINER.get(code, "").join(units)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def settings(*sources: Path, **more: Any) -> DecontaminationConfig:
    return DecontaminationConfig(sources=tuple(map(str, sources)), **more)


def matcher(*sources: Path, **more: Any) -> Matcher:
    config = settings(*sources, **more)
    return Matcher(EvaluationIndex.build(config, evaluation_files(config)))


def found(matches: list[Match]) -> list[tuple[str, str, str]]:
    return [(match.text.file, match.text.id, match.text.field) for match in matches]


# What is found


@pytest.mark.parametrize("code", LETTERS)
def test_an_ngram_of_an_evaluation_text_is_found_in_every_script(tmp_path: Path, code: str) -> None:
    units = text_worth(code, 30)
    find = matcher(write_rows(tmp_path / "e.jsonl.gz", [{"id": 1, "text": joined(code, units)}]))
    before, after = [*text_worth(code, 40, "a"), " x "], [" x ", *text_worth(code, 40, "b")]
    worth = {"swh_Latn": 1, "zho_Hans": 2, "tha_Thai": 4}[code]
    leaked = units[5 * worth : 18 * worth]
    assert found(find.matches(joined(code, before + leaked + after), code)) == [
        ("e.jsonl.gz", "1", "text")
    ]
    assert find.matches(joined(code, before + leaked[1:] + after), code) == []
    assert find.matches(joined(code, before + after), code) == []


def test_what_is_compared_is_words_without_case_punctuation_and_line_ends(tmp_path: Path) -> None:
    text = "Every human being is born free, and equal in dignity and rights everywhere."
    find = matcher(write_rows(tmp_path / "e.jsonl.gz", [{"id": "a", "text": text}]))
    (match,) = find.matches("X " + text.upper().replace(" ", "\n").replace(",", " —") + " Y", "")
    assert match.words.startswith("every human being is born free and equal in dignity and")


def test_numbers_tell_evaluation_texts_apart(tmp_path: Path) -> None:
    text = "Anna has {} apples and gives {} of them to her brother Tom today"
    find = matcher(write_rows(tmp_path / "e.jsonl.gz", [{"id": 1, "text": text.format(5, 2)}]))
    assert find.matches(text.format(5, 2), "eng_Latn")
    assert not find.matches(text.format(7, 3), "eng_Latn")


@pytest.mark.parametrize("code", LETTERS)
def test_a_short_text_is_found_whole_only(tmp_path: Path, code: str) -> None:
    units = text_worth(code, 10)
    find = matcher(write_rows(tmp_path / "e.jsonl.gz", [{"id": 1, "text": joined(code, units)}]))
    before, after = [*text_worth(code, 40, "a"), " x "], [" x ", *text_worth(code, 40, "b")]
    assert find.matches(joined(code, before + units + after), code)
    assert find.matches(joined(code, before + units), code)
    assert not find.matches(joined(code, before + units[:-1]), code)
    assert not find.matches(joined(code, before + units[:-1] + after), code)
    assert not find.matches(joined(code, before + units[1:] + after), code)


def test_two_short_texts_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    units = text_worth("swh_Latn", 12)
    rows = [{"id": n, "text": " ".join(units[:n])} for n in (9, 10, 12)]
    rows.append({"id": 11, "text": " ".join([*units[:10], "lingine"])})
    find = matcher(write_rows(tmp_path / "e.jsonl.gz", rows))
    assert {i for _, i, _ in found(find.matches(" ".join(units[:11]), ""))} == {"9", "10"}
    assert {i for _, i, _ in found(find.matches(" ".join(units), ""))} == {"9", "10", "12"}


def test_everyday_language_is_not_looked_for_and_counted(tmp_path: Path) -> None:
    sizes = (1, SHORTEST - 1, SHORTEST)
    rows = [{"id": n, "text": " ".join(text_worth("swh_Latn", n))} for n in sizes]
    config = settings(write_rows(tmp_path / "e.jsonl.gz", rows))
    index = EvaluationIndex.build(config, evaluation_files(config))
    assert index.ignored == 2
    assert not Matcher(index).matches(" ".join(text_worth("swh_Latn", SHORTEST - 1)), "")


def test_smaller_ngrams_find_smaller_texts(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "e.jsonl.gz", [{"id": 1, "text": "leo ni siku njema sana"}])
    assert matcher(file, ngrams=3).matches("ndiyo, leo ni siku ya kazi", "swh_Latn")
    assert not matcher(file).matches("leo ni siku njema sana", "swh_Latn")


# In which evaluation texts


def test_texts_are_looked_for_whatever_the_languages_labels_say(tmp_path: Path) -> None:
    text = " ".join(text_worth("swh_Latn", 20))
    write_rows(tmp_path / "sib" / "swh_Latn.jsonl.gz", [{"id": 1, "text": text}])
    assert matcher(tmp_path / "sib").matches(text, "eng_Latn")


def test_a_text_copied_across_labels_counts_for_the_documents_language(tmp_path: Path) -> None:
    text = " ".join(text_worth("swh_Latn", 20))
    for code in ("acm_Arab", "arb_Arab", "ars_Arab"):
        write_rows(tmp_path / "sib" / f"{code}.jsonl.gz", [{"id": 1, "text": text}])
    find = matcher(tmp_path / "sib")
    for language, expected in (("arb_Arab", "arb_Arab"), ("ary_Arab", "acm_Arab")):
        assert found(find.matches(text, language)) == [(f"sib/{expected}.jsonl.gz", "1", "text")]


def test_the_language_is_the_rows_else_the_files(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "x"}, {"id": 2, "text": "y", "lang": "fra_Latn"}]
    file = write_rows(tmp_path / "task.deu_Latn.jsonl.gz", rows)
    texts = [text for text, _ in read_evaluation("task.deu_Latn.jsonl.gz", file, settings(file))]
    assert [text.language for text in texts] == ["deu_Latn", "fra_Latn"]


def test_every_evaluation_text_of_a_document_is_listed_once(tmp_path: Path) -> None:
    texts = [" ".join(text_worth("swh_Latn", 30, n)) for n in range(3)]
    rows = [{"id": n, "premise": text, "choices": [text, "b"]} for n, text in enumerate(texts)]
    file = write_rows(tmp_path / "e.jsonl.gz", rows)
    find = matcher(file, fields=("premise",))
    document = " ".join([texts[2], "kati", texts[0], texts[0]])
    assert [i for _, i, _ in found(find.matches(document, ""))] == ["2", "0"]


def test_fields_that_hold_lists_are_read(tmp_path: Path) -> None:
    text = " ".join(text_worth("swh_Latn", 14))
    file = write_rows(tmp_path / "e.jsonl.gz", [{"premise": "p", "choices": ["short", text]}])
    matches = matcher(file, fields=("premise", "choices")).matches(text, "")
    assert found(matches) == [("e.jsonl.gz", "e.jsonl.gz:1", "choices")]


def test_an_index_that_was_saved_finds_the_same(tmp_path: Path) -> None:
    rows = [{"id": n, "text": " ".join(text_worth("swh_Latn", 8 + n, n))} for n in range(12)]
    config = settings(write_rows(tmp_path / "e.jsonl.gz", rows))
    index = EvaluationIndex.build(config, evaluation_files(config))
    index.save(tmp_path / "index")
    document = " . ".join(str(row["text"]) for row in rows[::2])
    again = Matcher(EvaluationIndex.load(tmp_path / "index")).matches(document, "")
    assert again == Matcher(index).matches(document, "")
    assert len(again) == 6


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("eval/sib200/swh_Latn.jsonl.gz", "sib200"),
        ("udhr.jsonl.gz", "udhr"),
        ("swh_Latn.jsonl", "swh_Latn"),
        ("eval/task.swh_Latn.jsonl", "task"),
    ],
)
def test_the_set_of_an_evaluation_text(file: str, name: str) -> None:
    assert EvaluationText(file=file, id="1", field="text", language="").set == name


def test_a_file_of_one_language_is_named_with_its_folder(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "sib200" / "swh_Latn.jsonl.gz", [{"text": "x"}])
    other = write_rows(tmp_path / "udhr.jsonl.gz", [{"text": "x"}])
    names = [name for name, _ in evaluation_files(settings(one, other))]
    assert names == ["sib200/swh_Latn.jsonl.gz", "udhr.jsonl.gz"]


# The stage


def stage(root: Path, tasks: int = 3) -> Path:
    leak = [" ".join(text_worth("swh_Latn", 20, n)) for n in range(4)]
    write_rows(
        root / "eval" / "swh_Latn.jsonl.gz", [{"id": n, "text": t} for n, t in enumerate(leak)]
    )
    for number, (language, count) in enumerate((("swh_Latn", 9), ("zul_Latn", 5), ("swh_Latn", 4))):
        documents = []
        for n in range(count):
            text = " ".join(text_worth("swh_Latn", 50, f"{number}/{n}"))
            documents.append(
                Document(id=f"{number}/{n}", text=f"{text} {leak[n]}" if n < 2 else text)
            )
        file = LanguageFile(language=language, number=number, path=root)
        write_stage(documents, root / "work" / "in", file)
    config = CurationConfig(tasks=tasks, decontaminate=settings(root / "eval"))
    decontamination_stage(config, root / "work" / "in", root / "work" / "clean", run_here)
    return root / "work"


def test_documents_with_evaluation_texts_are_dropped_listed_and_counted(tmp_path: Path) -> None:
    work = stage(tmp_path)
    kept = [d.id for path in sorted((work / "clean").glob("*/*")) for d in read_stage(path)]
    expected = [f"0/{n}" for n in range(2, 9)] + ["2/2", "2/3"] + [f"1/{n}" for n in range(2, 5)]
    assert kept == expected
    hits = [json.loads(line) for line in (work / HIT_LIST).read_text().splitlines()]
    assert [(hit["language"], hit["document"], hit["id"]) for hit in hits] == [
        *(("swh_Latn", f"{f}/{n}", str(n)) for f in (0, 2) for n in (0, 1)),
        *(("zul_Latn", f"1/{n}", str(n)) for n in (0, 1)),
    ]
    first = text_worth("swh_Latn", 20, 0)
    assert hits[0] | {"matched": ""} == {
        "document": "0/0",
        "language": "swh_Latn",
        "file": "eval/swh_Latn.jsonl.gz",
        "id": "0",
        "field": "text",
        "matched": "",
    }
    assert hits[0]["matched"] == " ".join(first[:13])
    counts = [json.loads(p.read_text()) for p in (work / "dropped" / "clean").glob("*.json")]
    documents = [c.get("swh_Latn", {}).get("evaluation text: eval", [0])[0] for c in counts]
    assert sum(documents) == 4


def test_tasks_do_not_enter_the_result(tmp_path: Path) -> None:
    one, many = stage(tmp_path / "1", tasks=1), stage(tmp_path / "5", tasks=5)
    names = [*sorted(p.relative_to(one) for p in one.rglob("clean/*/*")), Path(HIT_LIST)]
    assert len(names) == 4
    assert all((one / name).read_bytes() == (many / name).read_bytes() for name in names)


# A user's mistakes


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    config = CurationConfig(decontaminate=settings(tmp_path / "none"))
    with pytest.raises(DataError, match=r"sources: .*none: no such file or folder"):
        decontamination_stage(config, tmp_path, tmp_path / "out", run_here)


def test_a_folder_without_evaluation_files(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(DataError, match=r"no \.jsonl.* in this folder"):
        evaluation_files(settings(tmp_path))


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("x")
    with pytest.raises(DataError, match=r"test.csv: evaluation texts are read from \.jsonl"):
        evaluation_files(settings(tmp_path / "test.csv"))


def test_a_file_with_none_of_the_fields(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "e.jsonl.gz", [{"sentence": "x"}])
    with pytest.raises(DataError, match=r"none of the fields text, .*are sentence\): name those"):
        matcher(file)


def test_a_line_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text('{"text": "x"}\n[1]\n')
    with pytest.raises(DataError, match=r"e.jsonl: line 2: not a JSON object"):
        matcher(tmp_path / "e.jsonl")
    (tmp_path / "e.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"e.jsonl: line 1: not a JSON object"):
        matcher(tmp_path / "e.jsonl")
