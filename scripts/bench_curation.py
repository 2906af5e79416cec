"""What does curation find of what is wrong with a corpus, and what does it drop that is right?

    python -m xylem.scripts.bench_curation [--quick] [--json] [--work FOLDER]

`planted_corpus.py` plants near-duplicates, wrong languages and evaluation leaks in real text of 31
languages (8 with --quick); the whole of `data.curation.pipeline.curate` runs over it, with its
default settings; and what is left at each stage is compared with what was planted. The recall of a
kind is over the planted documents that reached its stage, its precision over all that the stage
dropped. Text comes from the shared folder (XYLEM_SHARED, else ../shared).
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import comb, floor
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from ..data.config import DataConfig
from ..data.curation.config import CurationConfig, DecontaminationConfig
from ..data.curation.contamination import HIT_LIST
from ..data.curation.filtering import LANGUAGE, SCRIPT, Judge
from ..data.curation.pipeline import curate
from ..data.sources import discover, read_documents
from .goals import Goal, print_goals
from .planted_corpus import (
    COPY,
    CUT,
    EDITS,
    LANGUAGES,
    LEAKS,
    OTHER_SCRIPT,
    SAME_SCRIPT,
    SHORT_LEAK,
    Planted,
    evaluation_sources,
    plant,
)

NEAR = (COPY, *EDITS, CUT)
HELD = (COPY, *tuple(EDITS)[:2], CUT)
"""Of these something is expected: the recipe is not made to find the others."""
Key = tuple[str, str]
"""Language and id of a document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How much of one kind was found."""

    kind: str
    planted: int
    """How many there are; of wrong languages, those under labels that the model knows."""
    reached: int
    """Those that no earlier stage had dropped."""
    found: int
    expected: float
    """The share that the method should find."""
    by_language: dict[str, tuple[int, int]]
    """Language -> (found, reached)."""

    @property
    def recall(self) -> float | None:
        """Found as a share of those that reached the stage."""
        return self.found / self.reached if self.reached else None

    @property
    def least(self) -> float:
        """The share below which chance takes one run in a thousand, if `expected` is right."""
        total, probability = 0.0, min(self.expected, 1.0)
        for found in range(self.reached + 1):
            ways = comb(self.reached, found)
            total += ways * probability**found * (1 - probability) ** (self.reached - found)
            if total > 0.001:
                return found / self.reached
        return 1.0

    @property
    def worst(self) -> str:
        """The language with the smallest share found."""
        shares = {code: found / reached for code, (found, reached) in self.by_language.items()}
        code = min(shares, key=lambda code: shares[code], default="")
        return f"{code} {shares[code]:.2f}" if code else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How much of what a stage dropped was wrong."""

    name: str
    dropped: int
    right: int
    by_language: dict[str, tuple[int, int]]
    """Language -> (right, dropped)."""

    @property
    def value(self) -> float | None:
        """The share of dropped documents that were planted."""
        return self.right / self.dropped if self.dropped else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was left after each stage of a run."""

    planted: Sequence[Planted]
    reasons: dict[Key, str | None]
    """Why the first stage drops a document; None if it does not."""
    single: set[Key]
    """After both kinds of deduplication."""
    final: set[Key]
    seconds: float
    """CPU time of the whole curation."""
    judge: Judge

    @property
    def filtered(self) -> set[Key]:
        """After the first stage."""
        return {key for key, reason in self.reasons.items() if reason is None}


def run(shared: Path, folder: Path, *, quick: bool, console: Console) -> Outcome:
    """Plants a corpus in a folder and curates it."""
    codes = LANGUAGES[:8] if quick else LANGUAGES
    documents, each = (120, 6) if quick else (320, 16)
    rows = plant(shared, folder / "raw", codes, documents, each, seed=0)
    size = sum(len(row.text.encode()) for row in rows)
    console.print(f"{len(rows):,} documents of {len(codes)} languages, {size / 1e6:.1f} MB")
    data = DataConfig(corpus=str(folder / "raw"), prepared=str(folder / "prepared"))
    sources = evaluation_sources(shared, codes, folder if quick else None)
    config = CurationConfig(enabled=True, decontaminate=DecontaminationConfig(sources=sources))
    started = time.process_time()
    clean = curate(data, config, folder=folder / "clean", console=console)
    seconds = time.process_time() - started
    files = [(code, path) for code, paths in discover(clean).items() for path in paths]
    final = {(code, document.id) for code, path in files for document in read_documents(path)}
    hit_list = clean.with_name(clean.name + ".work") / HIT_LIST
    hits = [json.loads(line) for line in hit_list.read_text().splitlines()]
    single = final | {(hit["language"], hit["document"]) for hit in hits}
    # Why the first stage dropped a document is asked again of the same rules.
    judge = Judge(config)
    gone = [row for row in rows if (row.language, row.id) not in single]
    return Outcome(
        planted=rows,
        reasons=dict.fromkeys(single)
        | {(row.language, row.id): judge.reason(row.language, row.text) for row in gone},
        single=single,
        final=final,
        seconds=seconds,
        judge=judge,
    )


def score(kind: str, rows: Sequence[Planted], reached: Sequence[Planted], left: set[Key]) -> Score:
    """The score of one kind: a duplicate is found when only one of the pair is left."""
    by_language: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in reached:
        keys = {(row.language, row.id), (row.language, row.original or row.id)}
        by_language[row.language][0] += not keys <= left
        by_language[row.language][1] += 1
    return Score(
        kind=kind,
        planted=len(rows),
        reached=len(reached),
        found=sum(found for found, _ in by_language.values()),
        expected=fmean(row.expected for row in reached) if reached else 0.0,
        by_language={code: (found, count) for code, (found, count) in by_language.items()},
    )


def scores(outcome: Outcome) -> list[Score]:
    """The score of every kind."""
    found, filtered = [], outcome.filtered
    by_kind: dict[str, list[Planted]] = defaultdict(list)
    for row in outcome.planted:
        by_kind[row.kind].append(row)
    for kind in NEAR:
        rows = by_kind[kind]
        reached = [
            row
            for row in rows
            if {(row.language, row.id), (row.language, row.original)} <= filtered
        ]
        found.append(score(kind, rows, reached, outcome.single))
    for kind in (*LEAKS, SHORT_LEAK):
        rows = by_kind[kind]
        reached = [row for row in rows if (row.language, row.id) in outcome.single]
        found.append(score(kind, rows, reached, outcome.final))
    for kind in (SAME_SCRIPT, OTHER_SCRIPT):
        known = [r for r in by_kind[kind] if outcome.judge.judged_by_model(r.language)]
        unknown = [r for r in by_kind[kind] if not outcome.judge.judged_by_model(r.language)]
        found.append(score(kind, known, known, filtered))
        found.append(score(f"{kind}, label not known", unknown, unknown, filtered))
    return found


def precisions(outcome: Outcome) -> list[Precision]:
    """What each stage dropped, and how much of it was planted for it."""
    rows = {(row.language, row.id): row for row in outcome.planted}
    pairs = {key for key, row in rows.items() if row.original}
    pairs |= {(row.language, row.original) for row in outcome.planted if row.original}
    wrong = {key for key, row in rows.items() if row.written_in}
    leaks = {key for key, row in rows.items() if row.kind in (*LEAKS, SHORT_LEAK)}
    by_language = {key for key, why in outcome.reasons.items() if why in (SCRIPT, LANGUAGE)}
    return [
        precision("duplicates", outcome.filtered - outcome.single, pairs),
        precision("evaluation texts", outcome.single - outcome.final, leaks),
        precision("language and script", by_language, wrong),
    ]


def precision(name: str, dropped: Collection[Key], right: set[Key]) -> Precision:
    """The precision of one stage."""
    by_language: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for key in dropped:
        by_language[key[0]][0] += key in right
        by_language[key[0]][1] += 1
    return Precision(
        name=name,
        dropped=len(dropped),
        right=sum(hits for hits, _ in by_language.values()),
        by_language={code: (hits, count) for code, (hits, count) in by_language.items()},
    )


def print_tables(
    found: Sequence[Score], stages: Sequence[Precision], outcome: Outcome, console: Console
) -> None:
    """What was found of what was planted, and what else was dropped."""
    table = Table(title="planted and found", title_justify="left")
    for name in ("kind", "planted", "reached", "found", "recall", "expected", "worst language"):
        table.add_column(name, justify="left" if name in ("kind", "worst language") else "right")
    for one in found:
        recall = "" if one.recall is None else f"{one.recall:.3f}"
        expected = f"{one.expected:.3f}" if one.kind in NEAR else ""
        counts = (str(one.planted), str(one.reached), str(one.found))
        table.add_row(one.kind, *counts, recall, expected, one.worst)
    console.print(table)
    table = Table(title="dropped", title_justify="left")
    for name in ("by", "dropped", "planted", "precision", "worst language"):
        table.add_column(name, justify="left" if name in ("by", "worst language") else "right")
    for stage in stages:
        shares = {code: hits / count for code, (hits, count) in stage.by_language.items()}
        code = min(shares, key=lambda code: shares[code], default="")
        worst = f"{code} {shares[code]:.2f}" if code else ""
        value = "" if stage.value is None else f"{stage.value:.3f}"
        table.add_row(stage.name, str(stage.dropped), str(stage.right), value, worst)
    console.print(table)
    right = [row for row in outcome.planted if not row.written_in]
    kept = fmean(outcome.reasons[row.language, row.id] is None for row in right)
    speed = len(outcome.planted) / outcome.seconds
    console.print(f"right language and kept by all filters: {kept:.3f}")
    console.print(f"{speed:.0f} documents per CPU second: all stages, and the evaluation index")


def goals(found: Sequence[Score], stages: Sequence[Precision], outcome: Outcome) -> list[Goal]:
    """What the numbers are held to."""
    by_kind = {one.kind: one for one in found}
    held = []
    for kind in HELD:
        one = by_kind[kind]
        name = f"duplicates found: {kind}"
        held.append(Goal(name, one.recall, floor(one.least * 1e4) / 1e4, "of pairs", at_least=True))
    for kind in LEAKS:
        name = f"leaks found: {kind}"
        held.append(Goal(name, by_kind[kind].recall, 0.95, "of documents", at_least=True))
    for kind, least in ((SAME_SCRIPT, 0.9), (OTHER_SCRIPT, 0.99)):
        one = by_kind[kind]
        held.append(Goal(f"found: {one.kind}", one.recall, least, "of documents", at_least=True))
    for stage, least in zip(stages, (0.99, 0.99, 0.9), strict=True):
        name = f"precision: {stage.name}"
        held.append(Goal(name, stage.value, least, "of dropped", at_least=True))
    speed = len(outcome.planted) / outcome.seconds
    held.append(Goal("speed", speed, 50.0, "documents per CPU second", at_least=True))
    return held


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 languages, 120 passages of each")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--work", type=Path, help="a new folder to keep what was made in")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    shared = Path(os.environ.get("XYLEM_SHARED") or "../shared").resolve()
    if not (shared / "data" / "corpora").is_dir():
        parser.error(f"{shared}: no data/corpora in it: set XYLEM_SHARED to the shared folder")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        outcome = run(shared, folder, quick=arguments.quick, console=console)
        found, stages = scores(outcome), precisions(outcome)
    print_tables(found, stages, outcome, console)
    print_goals(goals(found, stages, outcome), console, as_json=arguments.json)


if __name__ == "__main__":
    main()
