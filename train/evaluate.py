"""The verb `evaluate`: a checkpoint's bits per byte and fact accuracy, into evaluation.json."""

import json
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ..data.shards import write_atomically
from .config import EngineConfig
from .console import OUT, progress, say
from .engines.processes import Processes
from .evaluation import fact_accuracy, heldout_sums, read_facts, whole_scoring
from .metrics import family_sums, language_rows
from .run_folder import open_run


def evaluate_run(folder: Path, *, step: int | None, facts: Path | None) -> dict[str, Any]:
    """Evaluates a run's checkpoint on all held-out documents and, where there is one, a facts file.

    Args:
        folder: the run.
        step: which checkpoint; None takes the newest.
        facts: a facts.jsonl; None takes the run's evaluation.facts.
    Returns:
        What was written to evaluation.json.
    """
    run = open_run(folder, step)
    asked = facts or (Path(run.config.evaluation.facts) if run.config.evaluation.facts else None)
    questions = read_facts(asked) if asked else []
    processes = Processes(EngineConfig(precision=run.config.engine.precision))
    run.decoder.to(processes.device)
    codes = sorted(run.manifest.languages)
    with progress("bits per byte on held-out documents", len(codes)) as advance:
        sums = heldout_sums(
            whole_scoring(run.decoder, processes),
            run.storage,
            run.manifest,
            torch.from_numpy(run.tokenizer.token_bytes).long().to(processes.device),
            sequence_length=run.config.data.sequence_length,
            rows=run.config.evaluation.rows,
            tokens_per_language=None,
            advance=lambda code: advance(),
        )
    family_of = {code: entry.family for code, entry in run.manifest.languages.items()}
    result: dict[str, Any] = {
        "step": run.step,
        "checkpoint": run.checkpoint.name,
        "languages": {
            code: {**row, "family": family_of[code]} for code, row in language_rows(sums).items()
        },
        "families": language_rows(family_sums(sums, family_of)),
    }
    if questions:
        with progress("multiple-choice questions about facts", len(codes)) as advance:
            result["facts"], result["fact_kinds"] = fact_accuracy(
                run.decoder,
                run.manifest,
                run.tokenizer,
                questions,
                autocast=processes.autocast,
                per_language=run.config.evaluation.facts_per_language or None,
                advance=lambda code: advance(),
            )
    path = folder / "evaluation.json"
    write_atomically(path, json.dumps(result, indent=1, ensure_ascii=False).encode())
    _print(result)
    say(f"wrote {path}")
    return result


def _print(result: dict[str, Any]) -> None:
    table = Table(title=f"held out, step {result['step']}", title_justify="left")
    table.add_column("language")
    table.add_column("family")
    for name in ("bits per byte", "loss", "facts stated", "facts held out", "chance"):
        table.add_column(name, justify="right")
    for code, row in result["languages"].items():
        facts = result.get("facts", {}).get(code, {})
        stated, held_out = facts.get("stated"), facts.get("held_out")
        known = stated or held_out
        table.add_row(
            code,
            row["family"],
            f"{row['bpb']:.3f}",
            f"{row['loss']:.3f}",
            f"{stated['accuracy']:.0%} of {stated['questions']}" if stated else "",
            f"{held_out['accuracy']:.0%} of {held_out['questions']}" if held_out else "",
            f"{known['chance']:.0%}" if known else "",
        )
    OUT.print(table)
    if "fact_kinds" not in result:
        return
    kinds = Table(title="facts by kind", title_justify="left")
    kinds.add_column("kind")
    for name in ("stated", "held out", "chance"):
        kinds.add_column(name, justify="right")
    for kind, sorts in result["fact_kinds"].items():
        stated, held_out = sorts.get("stated"), sorts.get("held_out")
        kinds.add_row(
            kind,
            f"{stated['accuracy']:.0%} of {stated['questions']}" if stated else "",
            f"{held_out['accuracy']:.0%} of {held_out['questions']}" if held_out else "",
            f"{(stated or held_out)['chance']:.0%}",
        )
    OUT.print(kinds)
