"""The tokenizer benchmark divides the text as it says, and judges by what was measured."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest

from xylem.data.parity import is_development
from xylem.data.tokenizer_report import Fairness
from xylem.scripts.bench_tokenizer import (
    HELDOUT_SHARE,
    Measured,
    drawn,
    goals_of,
    part_of,
    read_corpus,
    table_of,
)

FAIRNESS = Fairness(
    languages=109, gini=0.2, worst_premium=6.0, premium_95=3.0, worst_language="chr_Cher",
    least_bytes_per_token=1.0, bytes_per_token=3.0, byte_fallback=0.05,
)  # fmt: skip


def measured(name: str, vocabulary: int, heldout: float = 3.0, **known: float) -> Measured:
    return Measured(
        name=name, vocabulary=vocabulary, seconds=1.0,
        known=dataclasses.replace(FAIRNESS, **known),  # type: ignore[arg-type]
        all=FAIRNESS, heldout=dataclasses.replace(FAIRNESS, bytes_per_token=heldout),
    )  # fmt: skip


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))


def test_learning_comparing_and_judging_share_no_document(tmp_path: Path) -> None:
    data = tmp_path / "data"
    rows = [{"id": f"d/{i}", "text": f"text number {i} "} for i in range(400)]
    write(data / "corpora" / "fin_Latn.jsonl.gz", rows)
    write(data / "corpora_small" / "swh_Latn.jsonl.gz", rows[:40])
    declaration = [
        {"lang": code, "id": "udhr/01", "text": "a b c"} for code in ("fin_Latn", "que_Latn")
    ]
    write(data / "parallel" / "udhr.jsonl.gz", declaration)
    corpus = read_corpus(tmp_path, 10**6)
    parts = (
        set(corpus.sample["fin_Latn"]),
        set(corpus.development["fin_Latn"].values()),
        set(corpus.heldout["fin_Latn"].values()),
    )
    assert sum(map(len, parts)) == len(set.union(*parts)) and all(parts)
    assert all(is_development(each) for each in corpus.development["swh_Latn"])
    assert set(corpus.known) == {"fin_Latn"} and set(corpus.all) == {"fin_Latn", "que_Latn"}


def test_equal_ids_belong_together() -> None:
    parts = [part_of(f"d/{i}") for i in range(4000)]
    assert abs(parts.count("held out") / 4000 - HELDOUT_SHARE) < 0.01
    assert abs(parts.count("compare") / 4000 - 0.19) < 0.03


def test_a_sample_is_cut_at_its_budget() -> None:
    texts = {"a": "ä" * 10, "b": "ö" * 10}
    assert sum(len(text.encode()) for text in drawn(texts, 25)) == 24
    assert sorted(drawn(texts, 99)) == sorted(texts.values())


def test_goals_are_the_worst_over_the_vocabularies() -> None:
    rows = [
        measured("plain", 8), measured("fair", 8, 2.94, gini=0.1, worst_premium=3.0),
        measured("plain", 16), measured("fair", 16, 3.3, gini=0.16, least_bytes_per_token=1.5),
        measured("other", 16, 1.0, gini=0.9),
    ]  # fmt: skip
    goals = {goal.name: goal for goal in goals_of(rows, "fair", "plain")}
    assert goals["gini_against_plain"].value == pytest.approx(0.8)
    assert goals["worst_premium_against_plain"].value == pytest.approx(1.0)
    assert not goals["worst_premium_against_plain"].met
    assert goals["heldout_compression_loss"].value == pytest.approx(2.0)
    assert goals["least_bytes_per_token_against_plain"].value == pytest.approx(1.0)
    assert goals["languages"].met
    assert table_of(rows, "all").row_count == 5


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="corpora: no such text: set XYLEM_SHARED"):
        read_corpus(tmp_path, 1)
