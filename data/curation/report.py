"""What did curation read, drop and keep, for each language, and why?

`report.json` holds all numbers, `report.md` the same for people, and the terminal shows a table of
the languages that lost most. Read next: `docs/CURATION.md`, which explains each reason.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..shards import write_atomically

REPORT_JSON, REPORT_MD = "report.json", "report.md"
LANGUAGE_REASON = "language"
_ROWS = 30
"""Languages shown on the terminal; the files hold all."""
_REASONS = 3
"""Reasons shown for a language on the terminal."""


@dataclass(slots=True, kw_only=True)
class LanguageReport:
    """One language's documents and bytes of text."""

    read: list[int] = field(default_factory=lambda: [0, 0])
    """Documents and bytes that were read."""
    no_verdict: int = 0
    """Documents that the language model could not judge, as it does not know the language."""
    dropped: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """Stage -> reason -> documents and bytes."""
    kept: list[int] = field(default_factory=lambda: [0, 0])
    """Documents and bytes of the clean corpus."""
    copies: int = 0
    """Documents of the clean corpus, each as often as it counts."""

    def lost(self) -> list[int]:
        """Documents and bytes dropped by all stages."""
        pairs = [pair for reasons in self.dropped.values() for pair in reasons.values()]
        return [sum(each) for each in zip(*pairs, strict=True)] if pairs else [0, 0]

    def reasons(self) -> list[tuple[str, int]]:
        """Reasons and their documents, the most frequent first."""
        found = [(r, pair[0]) for each in self.dropped.values() for r, pair in each.items()]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def collect(work: Path, stages: Iterable[str]) -> dict[str, LanguageReport]:
    """Adds up what every task of every stage counted.

    Raises RuntimeError: what was read is not what was dropped and kept, so a count is wrong.
    """
    languages: dict[str, LanguageReport] = {}
    for counts in _read_all(work / "read"):
        for code, of in counts.items():
            language = languages.setdefault(code, LanguageReport())
            _add(language.read, (of["documents"], of["bytes"]))
            language.no_verdict += of.get("no verdict", 0)
    for stage in stages:
        for counts in _read_all(work / "dropped" / stage):
            for code, reasons in counts.items():
                into = languages.setdefault(code, LanguageReport()).dropped.setdefault(stage, {})
                for reason, pair in reasons.items():
                    _add(into.setdefault(reason, [0, 0]), pair)
    for counts in _read_all(work / "written"):
        for code, (documents, bytes_, copies) in counts.items():
            language = languages.setdefault(code, LanguageReport())
            _add(language.kept, (documents, bytes_))
            language.copies += copies
    for code, language in languages.items():
        if language.read != [a + b for a, b in zip(language.lost(), language.kept, strict=True)]:
            raise RuntimeError(
                f"curation of {code}: read {language.read}, dropped {language.lost()} and kept "
                f"{language.kept} documents and bytes do not add up"
            )
    return dict(sorted(languages.items()))


def warnings(languages: Mapping[str, LanguageReport]) -> list[str]:
    """What a user should look at before training on the result."""
    found = []
    for code, language in languages.items():
        rejected = dict(language.reasons()).get(LANGUAGE_REASON, 0)
        if rejected * 2 > language.read[0]:
            found.append(
                f"{code}: the language model rejected {rejected} of {language.read[0]} documents: "
                "wrong labels, or a model that does not know the language well (then set "
                f"curation.quality.languages.{code}.language_score=0)"
            )
        elif not language.kept[0] and code != "und":
            found.append(f"{code}: nothing was kept, so the clean corpus does not hold it")
    return found


def save(folder: Path, languages: Mapping[str, LanguageReport], facts: Mapping[str, Any]) -> None:
    """Writes `report.json` and `report.md`; `facts` is what else they say of the run."""
    whole = {
        "total": asdict(_total(languages)),
        "warnings": warnings(languages),
        "languages": {code: asdict(language) for code, language in languages.items()},
        **facts,
    }
    data = json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True)
    write_atomically(folder / REPORT_JSON, data.encode() + b"\n")
    write_atomically(folder / REPORT_MD, _markdown(languages, facts).encode())


def show(console: Console, languages: Mapping[str, LanguageReport]) -> None:
    """Prints the languages that lost most of their text, the total, and the warnings."""
    table = Table(title="curation")
    table.add_column("language")
    for name in ("documents", "kept", "MB", "kept MB"):
        table.add_column(name, justify="right")
    table.add_column("dropped for")
    order = sorted(languages, key=lambda code: (-_lost_share(languages[code]), code))
    for code in order[:_ROWS]:
        table.add_row(*_cells(code, languages[code], _REASONS))
    if len(order) > _ROWS:
        table.add_row(f"… {len(order) - _ROWS} more")
    table.add_section()
    table.add_row(*_cells("total", _total(languages), _REASONS))
    console.print(table)
    for warning in warnings(languages):
        console.print(warning, markup=False, highlight=False, soft_wrap=True)


def _markdown(languages: Mapping[str, LanguageReport], facts: Mapping[str, Any]) -> str:
    lines = ["# Curation", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if isinstance(value, str)]
    lines += [f"- **{warning}**" for warning in warnings(languages)]
    lines += ["", "| language | documents | kept | MB | kept MB | dropped for |"]
    lines += ["|---|---:|---:|---:|---:|---|"]
    for code, language in [*languages.items(), ("**total**", _total(languages))]:
        lines.append("| " + " | ".join(_cells(code, language, None)) + " |")
    unjudged = [code for code, language in languages.items() if language.no_verdict]
    if unjudged:
        lines += ["", f"Not known to the language model, only their script was checked: "
                      f"{', '.join(unjudged)}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _cells(name: str, language: LanguageReport, most: int | None) -> list[str]:
    reasons = language.reasons()
    shown = ", ".join(f"{reason} {documents:,}" for reason, documents in reasons[:most])
    rest = len(reasons) - len(reasons[:most])
    (documents, bytes_), (kept, kept_bytes) = language.read, language.kept
    numbers = [f"{documents:,}", f"{kept:,}", f"{bytes_ / 1e6:.1f}", f"{kept_bytes / 1e6:.1f}"]
    return [name, *numbers, shown + (f" and {rest} more" if rest else "")]


def _total(languages: Mapping[str, LanguageReport]) -> LanguageReport:
    total = LanguageReport()
    for language in languages.values():
        _add(total.read, language.read)
        _add(total.kept, language.kept)
        total.no_verdict += language.no_verdict
        total.copies += language.copies
        for stage, reasons in language.dropped.items():
            for reason, pair in reasons.items():
                _add(total.dropped.setdefault(stage, {}).setdefault(reason, [0, 0]), pair)
    return total


def _lost_share(language: LanguageReport) -> float:
    return language.lost()[1] / max(language.read[1], 1)


def _add(into: list[int], pair: Iterable[int]) -> None:
    into[:] = [a + b for a, b in zip(into, pair, strict=True)]


def _read_all(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
