"""Of documents that are there twice in a language one is kept, with a count of all."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

from xylem.data.curation.config import CurationConfig, MinHashConfig
from xylem.data.curation.duplicates import EXACT, NEAR, exact_stage, keep_key, minhash_stages
from xylem.data.curation.execution import run_stage
from xylem.data.curation.language_files import LanguageFile, read_stage, write_stage
from xylem.data.curation.minhash import CLUSTER_SIZE, Signatures, expected_recall, shingles

Texts = Mapping[str, Sequence[tuple[str, str]]]
"""Language -> (id, text)."""
Stage = Callable[..., None]
SCRIPTS = {
    "swh_Latn": "abcdefghijklm",
    "zho_Hans": "起初神创造天地是空虚混",
    "tha_Thai": "กขคงจฉชซญดตถ",
}


def run_here(
    name: str, pipeline: list[Any], tasks: int, config: CurationConfig, work: Path
) -> None:
    """Runs a stage's tasks in this process, last task first."""
    for rank in reversed(range(tasks)):
        documents = None
        for step in pipeline:
            documents = step(documents, rank, tasks)


def put(folder: Path, texts: Texts, files: int = 1) -> Path:
    for language, rows in texts.items():
        for number in range(files):
            documents = [Document(id=i, text=t) for i, t in rows[number::files]]
            file = LanguageFile(language=language, number=number, path=folder)
            write_stage(documents, folder, file)
    return folder


def got(folder: Path) -> dict[tuple[str, str, str], int]:
    """(language, id, text) -> what the document stands for."""
    return {
        (path.parent.name, document.id, document.text): document.metadata.get(CLUSTER_SIZE, 1)
        for path in folder.glob("*/*")
        for document in read_stage(path)
    }


def kept_ids(folder: Path) -> Counter[str]:
    return Counter(f"{language}:{i}" for language, i, _ in got(folder))


def dropped(work: Path, stage: str) -> dict[str, dict[str, list[int]]]:
    total: dict[str, dict[str, list[int]]] = {}
    for path in (work / "dropped" / stage).glob("*.json"):
        for language, reasons in json.loads(path.read_text()).items():
            for reason, counts in reasons.items():
                old = total.setdefault(language, {}).get(reason, [0, 0])
                total[language][reason] = [a + b for a, b in zip(old, counts, strict=True)]
    return total


def curate(stage: Stage, root: Path, texts: Texts, files: int = 1, **settings: Any) -> Path:
    config = CurationConfig(**{"tasks": 2, **settings})
    stage(config, put(root / "read", texts, files), root / "out", run_here)
    return root / "out"


def words_of(code: str, seed: str, count: int) -> list[str]:
    draw = random.Random(f"{code}/{seed}")
    return ["".join(draw.choices(SCRIPTS[code], k=4)) for _ in range(count)]


def edited(words: Sequence[str], rate: float, seed: int) -> list[str]:
    """Every `rate`-th word, evenly, is another one."""
    draw = random.Random(seed)
    out = list(words)
    for place in draw.sample(range(len(out)), round(rate * len(out))):
        out[place] = out[place][::-1] + out[place][:1]
    return out


# Exact duplicates


def test_of_equal_texts_one_is_kept_and_knows_how_many_there_were(tmp_path: Path) -> None:
    rows = [
        ("a", "Habari za leo"),
        ("b", "nyingine"),
        ("c", "Habari  ZA\nleo "),
        ("d", "Habari za leo"),
    ]
    out = curate(exact_stage, tmp_path, {"swh_Latn": rows})
    assert sorted(got(out).values()) == [1, 3]
    keys = {i: keep_key(Document(id=i, text=t), 0) for i, t in rows if i != "b"}
    assert set(kept_ids(out)) == {"swh_Latn:b", f"swh_Latn:{min(keys, key=lambda i: keys[i])}"}
    gone = sum(len(t.encode()) for i, t in rows if f"swh_Latn:{i}" not in kept_ids(out))
    assert dropped(tmp_path, "out") == {"swh_Latn": {EXACT: [2, gone]}}


def test_numbers_and_punctuation_make_texts_different(tmp_path: Path) -> None:
    rows = [("a", "page 1"), ("b", "page 2"), ("c", "page 1?")]
    assert len(kept_ids(curate(exact_stage, tmp_path, {"swh_Latn": rows}))) == 3


@pytest.mark.parametrize("stage", [exact_stage, minhash_stages])
def test_a_translation_is_no_duplicate_even_with_equal_id_and_text(
    tmp_path: Path, stage: Stage
) -> None:
    text = " ".join(words_of("swh_Latn", "x", 50))
    rows = [("bible/JHN.3", text), ("bible/JHN.3", text)]
    out = curate(stage, tmp_path, {"swh_Latn": rows, "zul_Latn": rows[:1]})
    assert kept_ids(out) == {"swh_Latn:bible/JHN.3": 1, "zul_Latn:bible/JHN.3": 1}
    assert sorted(got(out).values()) == [1, 2]


@pytest.mark.parametrize("stage", [exact_stage, minhash_stages])
def test_an_empty_file_and_documents_without_words_pass(tmp_path: Path, stage: Stage) -> None:
    folder = put(tmp_path / "read", {"swh_Latn": [("a", "…"), ("b", "!?")]})
    write_stage([], folder, LanguageFile(language="zul_Latn", number=0, path=folder))
    stage(CurationConfig(), folder, tmp_path / "out", run_here)
    assert kept_ids(tmp_path / "out") == {"swh_Latn:a": 1, "swh_Latn:b": 1}


# Near-duplicates


@pytest.mark.parametrize("code", SCRIPTS)
def test_near_duplicates_are_found_in_every_script(tmp_path: Path, code: str) -> None:
    joiner = " " if code == "swh_Latn" else ""
    rows = []
    for number in range(20):
        words = words_of(code, str(number), 200)
        rows.append((f"{number}", joiner.join(words)))
        rows.append((f"{number}/copy", joiner.join(edited(words, 0.01, number))))
    out = curate(minhash_stages, tmp_path, {code: rows})
    kept = kept_ids(out)
    assert len(kept) == 20
    assert set(got(out).values()) == {2}
    assert all(kept[f"{code}:{n}"] + kept[f"{code}:{n}/copy"] == 1 for n in range(20))
    assert dropped(tmp_path, "out")[code][NEAR][0] == 20


def test_unlike_documents_are_kept(tmp_path: Path) -> None:
    rows = [(str(n), " ".join(words_of("swh_Latn", str(n), 100))) for n in range(100)]
    rows += [("short", "abc"), ("short too", "abc")]
    out = curate(minhash_stages, tmp_path, {"swh_Latn": rows})
    assert len(kept_ids(out)) == 102
    assert set(got(out).values()) == {1}


def test_pages_that_differ_in_numbers_alone_are_near_duplicates(tmp_path: Path) -> None:
    rows = [
        (str(n), f"mwaka {n} ulikuwa na siku {n * 7} za mvua na {n + 3} za jua") for n in range(9)
    ]
    assert list(got(curate(minhash_stages, tmp_path, {"swh_Latn": rows})).values()) == [9]


def test_a_cluster_counts_the_exact_copies_of_its_members(tmp_path: Path) -> None:
    words = words_of("swh_Latn", "x", 200)
    other = " ".join(edited(words, 0.01, 0))
    rows = [(f"a{n}", " ".join(words)) for n in range(4)] + [(f"b{n}", other) for n in range(3)]
    rows += [("c", "kitu kingine kabisa hapa leo asubuhi")] * 2
    config = CurationConfig(tasks=2)
    put(tmp_path / "read", {"swh_Latn": rows}, files=3)
    exact_stage(config, tmp_path / "read", tmp_path / "exact", run_here)
    minhash_stages(config, tmp_path / "exact", tmp_path / "out", run_here)
    assert sorted(got(tmp_path / "out").values()) == [2, 7]


def test_every_kept_document_knows_its_cluster_whichever_file_it_stands_in(tmp_path: Path) -> None:
    """datatrove's filter forgets the sizes of files that lose no document."""
    text = " ".join(words_of("swh_Latn", "x", 100))
    for order in itertools.permutations("abc"):
        root = tmp_path / "".join(order)
        out = curate(minhash_stages, root, {"swh_Latn": [(i, text) for i in order]}, files=3)
        assert list(got(out).values()) == [3]


def test_documents_without_a_duplicate_stand_for_themselves(tmp_path: Path) -> None:
    text = " ".join(words_of("swh_Latn", "x", 100))
    rows = [("a", text), ("b", "peke yake hapa duniani leo na kesho"), ("c", text)]
    sizes = {
        i: size
        for (_, i, _), size in got(curate(minhash_stages, tmp_path, {"swh_Latn": rows})).items()
    }
    assert sizes.pop("b") == 1
    assert list(sizes.values()) == [2]


# The same result however it is computed


def planted(languages: int = 3, documents: int = 12) -> Texts:
    texts: dict[str, list[tuple[str, str]]] = {}
    for language in range(languages):
        rows = []
        for number in range(documents):
            words = words_of("swh_Latn", f"{language}/{number}", 60)
            rows += [
                (f"{number}/{copy}", " ".join(edited(words, copy / 60, copy))) for copy in range(4)
            ]
            rows.append((f"{number}/same", " ".join(words)))
        texts[f"x{'abc'[language]}a_Latn"] = rows
    return texts


@pytest.mark.parametrize("stage", [exact_stage, minhash_stages])
def test_tasks_do_not_enter_the_result(tmp_path: Path, stage: Stage) -> None:
    texts = planted()
    one = curate(stage, tmp_path / "1", texts, files=3, tasks=1)
    many = curate(stage, tmp_path / "7", texts, files=3, tasks=7)
    files = sorted(path.relative_to(one) for path in one.glob("*/*"))
    assert files == sorted(path.relative_to(many) for path in many.glob("*/*"))
    assert all((one / file).read_bytes() == (many / file).read_bytes() for file in files)
    assert dropped(tmp_path / "1", "out") == dropped(tmp_path / "7", "out")
    assert max(got(one).values()) > 1


@pytest.mark.parametrize("stage", [exact_stage, minhash_stages])
def test_neither_files_nor_their_order_decide_what_is_kept(tmp_path: Path, stage: Stage) -> None:
    texts = planted()
    turned = {language: rows[::-1] for language, rows in texts.items()}
    assert got(curate(stage, tmp_path / "a", texts)) == got(
        curate(stage, tmp_path / "b", turned, files=4)
    )


def test_the_seed_decides_what_is_kept(tmp_path: Path) -> None:
    a, b = (
        set(got(curate(exact_stage, tmp_path / str(n), planted(), minhash=MinHashConfig(seed=n))))
        for n in (0, 1)
    )
    assert len(a) == len(b)
    assert a != b


def test_stages_run_in_processes_of_a_datatrove_executor(tmp_path: Path) -> None:
    texts = planted(languages=2, documents=3)
    expected = got(curate(minhash_stages, tmp_path / "here", texts))
    work = tmp_path / "executor"
    put(work / "read", texts)
    minhash_stages(CurationConfig(tasks=2, workers=2), work / "read", work / "out", run_stage)
    assert got(work / "out") == expected


def test_a_completed_stage_is_not_run_again(tmp_path: Path) -> None:
    config = CurationConfig(tasks=2)
    put(tmp_path / "read", planted(languages=2, documents=2))
    exact_stage(config, tmp_path / "read", tmp_path / "out", run_stage)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*")}
    exact_stage(config, tmp_path / "read", tmp_path / "out", run_stage)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*")}


# The mathematics


def test_signatures_are_those_of_datatrove(tmp_path: Path) -> None:
    signatures = Signatures(tmp_path, MinHashConfig())
    for size in (1, 1024, 3000):
        column = np.random.default_rng(size).integers(0, 2**64, (size, 1), np.uint64)
        assert signatures.get_signature(column) == MinhashDedupSignature.get_signature(
            signatures, column
        )


def test_pairs_meet_as_often_as_the_formula_says(tmp_path: Path) -> None:
    config = MinHashConfig()
    signatures = Signatures(tmp_path, config)
    met = expected = 0.0
    for number in range(150):
        words = words_of("swh_Latn", str(number), 150)
        pair = [shingles(" ".join(w), config) for w in (words, edited(words, 0.05, number))]
        similarity = len(np.intersect1d(*pair)) / len(np.union1d(*pair))
        first, second = (signatures.get_signature(s.reshape(-1, 1)) for s in pair)
        met += any(a == b for a, b in zip(first, second, strict=True))
        expected += expected_recall(similarity, config)
    assert 0.2 < expected / 150 < 0.9
    assert abs(met - expected) < 4 * 150**0.5 / 2


def test_the_recall_of_the_recipe() -> None:
    config = MinHashConfig()
    assert expected_recall(0.8, config) == pytest.approx(0.924, abs=1e-3)
    assert expected_recall(1.0, config) == 1.0
    assert expected_recall(0.0, config) == 0.0
