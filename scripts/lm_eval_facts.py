"""Asks an exported model about facts through lm_eval, offline: a multiple-choice task a language.

`python -m xylem.scripts.lm_eval_facts MODEL --facts FACTS.jsonl --out FOLDER` writes the tasks
(YAML and JSONL), facts stated in a language apart from those held out from it, runs
`lm_eval --model hf` on them, and prints the accuracies beside chance. lm_eval is in the extra
`test`. The same questions without lm_eval: `xylem evaluate --facts`.
"""

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from xylem.train.console import ERR, OUT, say
from xylem.train.errors import EXIT_FAILURE, EXIT_MISTAKE, MISTAKES, UserError
from xylem.train.evaluation import read_facts

from .generate import stored_prompts

SPLITS = {False: "stated", True: "held_out"}
"""Name of a split by the question's `held_out`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactsTask:
    """One lm_eval task: questions of a language, all stated in it or all held out from it."""

    name: str
    """The task's name in lm_eval."""
    language: str
    """Language code."""
    split: str
    """`stated` or `held_out`."""
    questions: int
    """How many questions."""
    chance: float
    """Accuracy of guessing: the mean of one over the number of choices."""


class LmEvalFailure(RuntimeError):
    """lm_eval ended with an error. The message holds the end of its log."""


def write_tasks(
    facts: Sequence[Mapping[str, Any]],
    languages: Sequence[str],
    folder: Path,
    *,
    limit: int | None = None,
) -> list[FactsTask]:
    """Writes a task for every language and split that has questions.

    A choice follows its prompt without a delimiter, as the questions are written.

    Args:
        facts: questions, with language, prompt, choices, label, held_out.
        languages: whose questions to ask.
        folder: where the YAML and JSONL files go.
        limit: at most so many questions a task, drawn by a fixed seed.
    Raises:
        UserError: no question is in any of the languages.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in [*folder.glob("xylem_facts_*.yaml"), *folder.glob("xylem_facts_*.jsonl")]:
        stale.unlink()
    tasks = []
    for code in languages:
        for held_out, split in SPLITS.items():
            asked = [f for f in facts if f["language"] == code and bool(f["held_out"]) == held_out]
            if limit is not None and len(asked) > limit:
                asked = random.Random(0).sample(asked, limit)
            if not asked:
                continue
            name = f"xylem_facts_{code}_{split}"
            lines = (
                json.dumps({key: f[key] for key in ("prompt", "choices", "label")}) for f in asked
            )
            data = folder / f"{name}.jsonl"
            data.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            (folder / f"{name}.yaml").write_text(_task_yaml(name, data), encoding="utf-8")
            chance = sum(1 / len(f["choices"]) for f in asked) / len(asked)
            tasks.append(
                FactsTask(
                    name=name, language=code, split=split, questions=len(asked), chance=chance
                )
            )
    if not tasks:
        known = sorted({str(fact["language"]) for fact in facts})
        raise UserError(
            f"no question in {', '.join(languages)}: the facts are in {', '.join(known) or 'none'}"
        )
    return tasks


def _task_yaml(name: str, data: Path) -> str:
    # Bare field names: lm_eval then takes the values as they are, without a template.
    return "\n".join(
        [
            f"task: {name}",
            "dataset_path: json",
            "dataset_kwargs:",
            "  data_files:",
            f"    test: {json.dumps(str(data.resolve()))}",
            "test_split: test",
            "output_type: multiple_choice",
            "doc_to_text: prompt",
            "doc_to_choice: choices",
            "doc_to_target: label",
            'target_delimiter: ""',
            "metric_list:",
            "- metric: acc",
            "- metric: acc_norm",
            "metadata:",
            "  version: 1",
            "",
        ]
    )


def run_lm_eval(
    model: Path, tasks: Sequence[FactsTask], folder: Path, out: Path, *, batch_size: int
) -> dict[str, Any]:
    """Runs `lm_eval --model hf` on the tasks of a folder, offline, and returns its results by task.

    Raises:
        UserError: lm_eval is not installed, or cannot take the model's path.
        LmEvalFailure: it ended with an error.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm_eval is not installed: pip install 'xylem[test]'")
    if "," in str(model.resolve()):
        raise UserError(f"{model}: lm_eval cuts its arguments at commas: use a path without one")
    before = set(out.rglob("results_*.json"))
    command = [sys.executable, "-m", "lm_eval", "--model", "hf"]
    command += ["--model_args", f"pretrained={model.resolve()},dtype=float32"]
    command += ["--tasks", ",".join(task.name for task in tasks)]
    command += ["--include_path", str(folder), "--device", "cpu"]
    command += ["--batch_size", str(batch_size), "--output_path", str(out)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    # The data sets' cache too stays inside the output: nothing is left in the user's home.
    environment = os.environ | offline | {"HF_DATASETS_CACHE": str((out / "cache").resolve())}
    log = out / "lm_eval.log"
    say(f"lm_eval on {model}: {len(tasks)} tasks, log in {log} ...")
    with log.open("w", encoding="utf-8") as stream, ERR.status("lm_eval"):
        ended = subprocess.run(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False
        )
    written = sorted(set(out.rglob("results_*.json")) - before)
    if ended.returncode or not written:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise LmEvalFailure(f"lm_eval ended with code {ended.returncode}; {log} ends:\n{tail}")
    results: dict[str, Any] = json.loads(written[-1].read_text(encoding="utf-8"))["results"]
    return results


def accuracies(tasks: Sequence[FactsTask], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a task, and one a split over all its languages, weighted by questions."""
    rows = [
        asdict(task)
        | {
            "acc": float(results[task.name]["acc,none"]),
            "acc_norm": float(results[task.name]["acc_norm,none"]),
        }
        for task in tasks
    ]
    totals = []
    for split in SPLITS.values():
        parts = [row for row in rows if row["split"] == split]
        questions = sum(row["questions"] for row in parts)
        if parts:
            means = {
                key: sum(row[key] * row["questions"] for row in parts) / questions
                for key in ("chance", "acc", "acc_norm")
            }
            name = f"xylem_facts_{split}"
            totals.append(
                {"name": name, "language": "all", "split": split, "questions": questions} | means
            )
    return rows + totals


def print_accuracies(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of accuracies beside chance."""
    table = Table(title=title, title_justify="left")
    for column in ("language", "facts", "questions", "accuracy", "length-normalised", "chance"):
        right = column not in ("language", "facts")
        table.add_column(column, justify="right" if right else "left")
    for row in rows:
        shares = (f"{row[key]:.1%}" for key in ("acc", "acc_norm", "chance"))
        facts = str(row["split"]).replace("_", " ")
        table.add_row(str(row["language"]), facts, str(row["questions"]), *shares)
    OUT.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the tasks, runs lm_eval, prints the table; exits with 2 for a mistake."""
    grammar = argparse.ArgumentParser(prog="lm_eval_facts", description=__doc__)
    grammar.add_argument("model", type=Path, metavar="MODEL", help="an exported folder")
    grammar.add_argument("--facts", type=Path, required=True, help="facts.jsonl")
    grammar.add_argument("--out", type=Path, required=True, help="folder for tasks and results")
    grammar.add_argument("--languages", nargs="*", help="codes (those of the exported family)")
    grammar.add_argument("--limit", type=int, help="questions a language and split (all)")
    grammar.add_argument("--batch-size", type=int, default=16, help="sequences at once (16)")
    given = grammar.parse_args(argv)
    try:
        if not (given.model / "config.json").exists():
            raise UserError(
                f"{given.model} is no exported model (no config.json): give a family's folder of "
                "`xylem export`"
            )
        for option, value in (("--limit", given.limit), ("--batch-size", given.batch_size)):
            if value is not None and value < 1:
                raise UserError(f"{option} {value} must be at least 1")
        languages = given.languages or [code for code, _ in stored_prompts(given.model)]
        task_folder = given.out / "tasks"
        tasks = write_tasks(read_facts(given.facts), languages, task_folder, limit=given.limit)
        results = run_lm_eval(
            given.model, tasks, task_folder, given.out, batch_size=given.batch_size
        )
    except MISTAKES as mistake:
        print(f"lm_eval_facts: {mistake}", file=sys.stderr)
        sys.exit(EXIT_MISTAKE)
    except LmEvalFailure as failure:
        print(f"lm_eval_facts: {failure}", file=sys.stderr)
        sys.exit(EXIT_FAILURE)
    rows = accuracies(tasks, results)
    table = given.out / "accuracies.json"
    table.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print_accuracies(f"facts asked of {given.model.name} by lm_eval", rows)
    say(f"wrote {table}")


if __name__ == "__main__":
    main()
