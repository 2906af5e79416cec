"""What became of a run, on one page: `report.html`, which opens offline and prints.

Everything is read from the run folder, and all of it is optional: a run killed at its tenth step
has a report too. What cannot be read is told at the top of the page and costs its own part only.
Words, layout and colours are in `report_template.html`; read next: `report_charts.py`.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import numpy as np

from ..data.languages import language
from ..data.manifest import MANIFEST_NAME, Manifest
from ..data.packing import sequences_in
from ..data.shards import write_atomically
from ..data.storage import open_storage
from ..model.accounting import ParameterCounts, count_parameters
from .checkpoint import RunState, latest_checkpoint, read_state
from .compose import from_yaml
from .config import RunConfig
from .console import ERR
from .errors import UserError
from .metrics import LN2, read_metrics
from .report_charts import draw_charts, numbers, smoothing_window
from .report_routing import draw_routing

T = TypeVar("T")
Row = dict[str, Any]

EARLIER_SAMPLES = 6
"""Steps whose samples are shown beside the newest."""
_SAMPLE = re.compile(
    r"^\[(\w+), (\w+)\] (.*?)(?=^\[\w+, [a-z]{3}_[A-Z][a-z]{3}\] |\Z)", re.M | re.S
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageRow:
    """A language's line in the table; what is not known is None."""

    code: str
    """Language code."""
    name: str
    """English name, or the code."""
    endonym: str
    """Name in the language itself, where it is another than the English."""
    family: str
    """The family whose experts it uses, or nothing."""
    held: int | None
    """Tokens of its training shards."""
    read: float | None
    """Tokens that the run has read."""
    epochs: float | None
    """How often the run has read them."""
    training_bpb: float | None
    """Bits per byte in training, over the last tenth of the steps."""
    heldout_bpb: float | None
    """Bits per byte on held-out documents."""
    heldout_tokens: float | None
    """Predicted tokens of those documents."""


def write_report(run: Path) -> Path:
    """Writes a run's `report.html`, whole or not at all.

    Raises:
        UserError: the folder is no run's.
        OSError: it cannot be written.
    """
    if not (run / "config.yaml").exists() and not (run / "metrics.jsonl").exists():
        raise UserError(
            f"{run} is no run folder: it has neither config.yaml nor metrics.jsonl; a run folder "
            "is what `xylem pretrain` writes, runs/NAME"
        )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": _count, "fixed": _fixed, "percent": _percent, "duration": _duration,
        "plural": _plural, "when": _when, "bcp47": lambda code: str(code).replace("_", "-"),
    }  # fmt: skip
    template = resources.files(__package__).joinpath("report_template.html")
    page = environment.from_string(template.read_text(encoding="utf-8")).render(_gather(run))
    path = run / "report.html"
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def _gather(run: Path) -> dict[str, Any]:
    problems: list[str] = []

    def part(name: str, read: Callable[[], T]) -> T | None:
        # Half a run must still have a report, so whatever is wrong with a file costs its part only.
        try:
            return read()
        except Exception as error:
            told = " ".join(str(error).split())
            problems.append(f"{name}: {type(error).__name__}: {told[:300]}")
            return None

    train = part("metrics.jsonl", lambda: read_metrics(run, "train")) or []
    heldout = part("metrics.jsonl", lambda: read_metrics(run, "heldout")) or []
    tables = part("metrics.jsonl", lambda: read_metrics(run, "routing")) or []
    config = part("config.yaml", lambda: _if_there(run / "config.yaml", from_yaml))
    manifest = part("prepared folder", lambda: _manifest(config))
    state = part("newest checkpoint", lambda: _newest_state(run))
    evaluation = part("evaluation.json", lambda: _json(run / "evaluation.json")) or {}
    family_of = part("families", lambda: _family_of(manifest, evaluation)) or {}
    measured = part("held-out results", lambda: _heldout(heldout, evaluation))
    languages = part(
        "languages", lambda: _language_rows(train, measured, manifest, state, family_of)
    )
    parameters = part("parameters", lambda: _parameters(config, manifest, train))
    plan = part("plan.txt", lambda: _text(run / "plan.txt")) or ""
    starts = part("metrics.jsonl", lambda: read_metrics(run, "start")) or []
    return {
        "name": run.resolve().name,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "config": config,
        "config_text": part("config.yaml", lambda: _text(run / "config.yaml")),
        "plan": plan,
        "environment": part("environment.json", lambda: _json(run / "environment.json")) or {},
        "precision": starts[-1]["precision"] if starts else "",
        "starts": starts,
        "parameters": parameters,
        "manifest": manifest,
        "last": train[-1] if train else None,
        "seconds": part("training time", lambda: _training_seconds(train)),
        "typical": part("throughput", lambda: _typical(train)) or {},
        "rows": part("metrics.jsonl", lambda: _contiguity(train)),
        "charts": part("charts", lambda: draw_charts(train, heldout, family_of)),
        "smoothed_over": smoothing_window(len(train)),
        "routing": part("routing", lambda: draw_routing(train, tables, family_of)),
        "languages": languages,
        "titles": {row.code: row.name for row in languages or []},
        "families": part(
            "families", lambda: _family_rows(train, measured, languages or [], parameters)
        ),
        "heldout": measured,
        "read_at": state.step if state else None,
        "facts": part("facts", lambda: _facts(evaluation, family_of)),
        "samples": part("samples", lambda: _samples(run)),
        "gates": part("export gates", lambda: _gates(run)),
        "checkpoints": part("checkpoints", lambda: _checkpoints(run)),
        "problems": problems,
    }


# Reading


def _if_there(path: Path, read: Callable[[Path], T]) -> T | None:
    return read(path) if path.exists() else None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _json(path: Path) -> Row:
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(value, dict):
        raise ValueError(f"holds a {type(value).__name__}, not an object")
    return value


def _manifest(config: RunConfig | None) -> Manifest | None:
    if config is None:
        return None
    storage = open_storage(config.data.prepared, config.data.storage)
    try:
        storage.read(MANIFEST_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Manifest.load(storage)


def _newest_state(run: Path) -> RunState | None:
    folder = latest_checkpoint(run)
    return read_state(folder) if folder else None


def _family_of(manifest: Manifest | None, evaluation: Row) -> dict[str, str]:
    known = {code: row["family"] for code, row in evaluation.get("languages", {}).items()}
    if manifest:
        known |= {code: entry.family for code, entry in manifest.languages.items()}
    return known


def _parameters(
    config: RunConfig | None, manifest: Manifest | None, train: Sequence[Row]
) -> ParameterCounts | None:
    trained = sorted({name for row in train for name in row["families"]})
    names = manifest.families if manifest else trained
    return count_parameters(config.model, names) if config and names else None


def _names(code: str) -> tuple[str, str]:
    """(English name, endonym) of a language; its code where the names are not to be had."""
    try:
        with ERR.status("names of languages"):  # the first takes seconds
            found = language(code)
    except Exception:  # a report without names is better than none
        return code, ""
    return found.name, found.endonym if found.endonym != found.name else ""


def _training_seconds(train: Sequence[Row]) -> float | None:
    before, seconds = 0, 0.0
    for row in train:
        seconds += row["step_seconds"] * (row["step"] - before)
        before = row["step"]
    return seconds if train else None


def _typical(train: Sequence[Row]) -> dict[str, float]:
    """Medians over the rows, and the peak of memory."""
    keys = ("tokens_per_second", "mfu", "data_wait_share", "memory_gib", "gradient_norm")
    found = {key: numbers(train, key)[1] for key in keys}
    middle = {key: float(np.median(values)) for key, values in found.items() if values}
    return middle | ({"memory_gib": max(found["memory_gib"])} if found["memory_gib"] else {})


def _contiguity(train: Sequence[Row]) -> Row | None:
    """Whether every row is there once: a resumed run tells no step twice and leaves none out."""
    if not train:
        return None
    steps = [int(row["step"]) for row in train]
    distances = Counter(b - a for a, b in pairwise(steps[:-1]))
    usual = distances.most_common(1)[0][0] if distances else 1
    breaks = [(a, b) for a, b in pairwise(steps) if b - a > usual or b <= a]
    return {"first": steps[0], "last": steps[-1], "count": len(steps), "every": usual,
            "breaks": breaks}  # fmt: skip


def _pooled_bpb(rows: Iterable[Mapping[str, float]]) -> float | None:
    """Bits over bytes of several rows; a row's bytes follow from its loss, tokens and bpb."""
    bits = size = 0.0
    for row in rows:
        row_bits = row["loss"] * row["tokens"] / LN2
        if row["bpb"] > 0:
            bits, size = bits + row_bits, size + row_bits / row["bpb"]
    return bits / size if size else None


def _heldout(heldout: Sequence[Row], evaluation: Row) -> Row | None:
    """Held-out results by language: those of `evaluate` if there are any, else training's last."""
    if evaluation.get("languages"):
        rows, step, whole = evaluation["languages"], evaluation.get("step"), True
    elif heldout:
        rows, step, whole = heldout[-1]["languages"], heldout[-1]["step"], False
    else:
        return None
    bpb = {code: row["bpb"] for code, row in rows.items()}
    return {"step": step, "whole": whole, "languages": rows, "mean": sum(bpb.values()) / len(bpb),
            "best": min(bpb, key=lambda c: bpb[c]), "worst": max(bpb, key=lambda c: bpb[c]),
            "bpb": bpb}  # fmt: skip


def _last_tenth(train: Sequence[Row]) -> list[Row]:
    return [row for row in train if row["step"] > 0.9 * train[-1]["step"]]


def _language_rows(
    train: Sequence[Row],
    measured: Row | None,
    manifest: Manifest | None,
    state: RunState | None,
    family_of: Mapping[str, str],
) -> list[LanguageRow]:
    latest = _last_tenth(train)
    scored = measured["languages"] if measured else {}
    codes = {code for row in train for code in row["languages"]} | set(scored) | set(family_of)
    rows = []
    for code in sorted(codes):
        name, endonym = _names(code)
        entry = manifest.languages.get(code) if manifest else None
        seen = [row["languages"][code] for row in train if code in row["languages"]]
        read: float | None = sum(row["tokens"] for row in seen) if train else None
        epochs = read / entry.train_tokens if read is not None and entry else None
        if state:
            length = state.ledger.sequence_length
            cursors = state.stream["cursors"]
            names = {name for e in state.ledger.entries for name in e.sources.get(code, {})}
            sequences = sum(cursors.get(name, 0) for name in names)
            read = sequences * length
            if entry:
                held = sum(sequences_in(source.shards.tokens, length) for source in entry.sources)
                epochs = sequences / max(1, held)
        score = scored.get(code, {})
        recent = [row["languages"][code] for row in latest if code in row["languages"]]
        rows.append(
            LanguageRow(
                code=code,
                name=name,
                endonym=endonym,
                family=family_of.get(code, ""),
                held=entry.train_tokens if entry else None,
                read=read,
                epochs=epochs,
                training_bpb=_pooled_bpb(recent),
                heldout_bpb=score.get("bpb"),
                heldout_tokens=score.get("tokens"),
            )
        )
    return rows


def _family_rows(
    train: Sequence[Row],
    measured: Row | None,
    languages: Sequence[LanguageRow],
    parameters: ParameterCounts | None,
) -> list[Row]:
    latest = _last_tenth(train)
    scored = measured["languages"] if measured else {}
    names = {name for row in train for name in row["families"]}
    rows = []
    for name in sorted(names | {row.family for row in languages if row.family}):
        members = [row for row in languages if row.family == name]
        read = [row.read for row in members if row.read is not None]
        recent = [row["families"][name] for row in latest if name in row["families"]]
        rows.append({
            "name": name,
            "languages": [row.code for row in members],
            "parameters": parameters.families.get(name) if parameters else None,
            "read": sum(read) if read else None,
            "training_bpb": _pooled_bpb(recent),
            "heldout_bpb": _pooled_bpb(scored[r.code] for r in members if r.code in scored),
        })  # fmt: skip
    return rows


def _facts(evaluation: Row, family_of: Mapping[str, str]) -> dict[str, list[Row]]:
    """Accuracy on stated and on held-out facts: of all questions, by family, by language."""
    by_language: dict[str, Row] = evaluation.get("facts") or {}
    if not by_language:
        return {}
    groups: dict[str, list[Row]] = {}
    for code, row in by_language.items():
        groups.setdefault(family_of.get(code, "unknown"), []).append(row)
    return {
        "all": [_fact_row("all languages", list(by_language.values()))],
        "families": [_fact_row(name, rows) for name, rows in sorted(groups.items())],
        "languages": [
            _fact_row(_names(code)[0], [row])
            | {"code": code, "family": family_of.get(code, "")}
            for code, row in sorted(by_language.items())
        ],
    }  # fmt: skip


def _fact_row(name: str, rows: Sequence[Row]) -> Row:
    result: Row = {"name": name}
    for kind in ("stated", "held_out"):
        found = [row[kind] for row in rows if row.get(kind)]
        total = sum(row["questions"] for row in found)
        result[kind] = {
            "questions": total,
            "accuracy": sum(row["accuracy"] * row["questions"] for row in found) / total,
            "chance": sum(row["chance"] * row["questions"] for row in found) / total,
        } if total else None  # fmt: skip
    return result


def _samples(run: Path) -> list[Row]:
    """Per family the newest sample and some earlier ones, newest first."""
    files = {int(p.stem[5:]): p for p in (run / "samples").glob("step-*.txt")
             if p.stem[5:].isdigit()}  # fmt: skip
    steps = sorted(files, reverse=True)
    if len(steps) > EARLIER_SAMPLES + 1:
        picked = np.linspace(0, len(steps) - 1, EARLIER_SAMPLES + 1).round().astype(int)
        steps = [steps[i] for i in picked]
    by_family: dict[str, list[Row]] = {}
    for step in steps:
        for family, code, body in _SAMPLE.findall(_text(files[step])):
            prompt, _, text = body.partition(" >>> ")
            sample = {"step": step, "code": code, "prompt": prompt.strip("\n"),
                      "text": text.rstrip("\n")}  # fmt: skip
            by_family.setdefault(family, []).append(sample)
    return [
        {"family": family, "newest": samples[0], "earlier": samples[1:],
         "language": _names(samples[0]["code"])[0]}
        for family, samples in sorted(by_family.items())
    ]  # fmt: skip


def _gates(run: Path) -> list[Row]:
    return [
        {"checkpoint": path.parent.parent.name, "folder": path.parent.name, **_json(path)}
        for path in sorted(run.glob("export/*/*/gate.json"))
    ]


def _checkpoints(run: Path) -> list[Row]:
    root = run / "checkpoints"
    newest = _text(root / "latest").strip()
    rows = []
    for folder in root.glob("step-*"):
        if not folder.name[5:].isdigit():
            continue
        files = [file.stat() for file in folder.iterdir()]
        rows.append({
            "step": int(folder.name[5:]),
            "newest": folder.name == newest,
            "size": sum(file.st_size for file in files),
            "saved": datetime.fromtimestamp(folder.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M"),
        })  # fmt: skip
    return sorted(rows, key=lambda row: int(row["step"]))


# Writing numbers


def _count(value: float | None) -> str:
    if value is None:
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}\u00a0{unit}"
    return f"{value:,.0f}"


def _fixed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _when(value: object) -> str:
    return str(value).replace("T", " ").replace("+00:00", " UTC")


def _plural(count: int, word: str, words: str = "") -> str:
    return f"{count:,} {word if count == 1 else words or word + 's'}"
