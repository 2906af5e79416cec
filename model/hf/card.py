"""The model card of an exported family: what it is, how exact it is, where it comes from.

Everything in it is passed in; nothing is measured or looked up here. Read next: train/export.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .gate_report import GateReport


@dataclass(frozen=True, slots=True, kw_only=True)
class CardLanguage:
    """One language of the family, as the card shows it."""

    code: str
    """Language code, `swh_Latn`."""
    name: str
    """English name."""
    endonym: str
    """Name in the language itself."""
    train_tokens: int
    """Tokens of the training split (the pool, not how often they were seen)."""
    bits_per_byte: float | None
    """On held-out documents, bits a UTF-8 byte; None if the run was not evaluated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a model card tells."""

    run: str
    """Name of the run."""
    family: str
    """The exported family."""
    families: tuple[str, ...]
    """All families of the run's model."""
    languages: tuple[CardLanguage, ...]
    """Languages of the family."""
    parameters: int
    """Parameters of the exported model, with padding."""
    positions: int
    """Longest sequence of the training, in tokens."""
    gate: GateReport
    """What the export's gate measured."""
    provenance: Mapping[str, Any]
    """Source of the weights: step, hashes, versions."""


def model_card(facts: CardFacts) -> str:
    """The README.md of an exported folder: YAML front matter and Markdown."""
    names = _spoken([language.name for language in facts.languages])
    return "\n".join(
        [
            *_front_matter(facts),
            f"# {facts.run}: {facts.family}",
            "",
            f"A pretrained (base) language model for {names}. It is one family of the run "
            f"`{facts.run}`, a family-modular model trained with Xylem: the trunk that all its "
            f"{len(facts.families)} families share, joined with the experts of the family "
            f"`{facts.family}` into one dense Qwen3 of {facts.parameters:,} parameters. It loads "
            "with plain `transformers`, without remote code.",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
            "```",
            "",
            "`prompts.json` holds a short real prompt for each language.",
            "",
            "## Languages",
            "",
            *_language_table(facts.languages),
            "",
            "Bits per byte are over held-out documents and are comparable within a language only.",
            "",
            "## How exact the export is",
            "",
            f"Measured by the export itself on {facts.gate.real_tokens} tokens of real text of the "
            f"family and {facts.gate.random_tokens} random ids (`gate.json`); the native logits "
            f"spread by {facts.gate.spread:.3g}{_other_family(facts.gate)}.",
            "",
            *_gate_table(facts.gate),
            "",
            "## Intended use and limits",
            "",
            "For research on multilingual pretraining: measuring, comparing, further training. "
            "It has not been instruction-tuned, aligned or filtered for safety, and should not be "
            "used as it is with people who rely on its answers. It states facts it cannot know, "
            "and repeats what its corpus holds, biases included.",
            "",
            f"- It was trained on sequences of at most {facts.positions} tokens; beyond that it is "
            "untested.",
            "- It is meant for the languages above. The tokenizer covers the other languages of "
            "the run, but their experts are not in this folder.",
            "- Exactness says that this folder is the trained model, not that the model is good.",
            "",
            "## Source",
            "",
            *_source_table(facts.provenance),
            "",
        ]
    )


def _front_matter(facts: CardFacts) -> list[str]:
    codes = sorted({language.code.split("_")[0] for language in facts.languages})
    # Quoted, since YAML reads a bare `no` as false.
    return [
        "---",
        "language:",
        *(f"- {json.dumps(code)}" for code in codes),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- xylem",
        "- multilingual",
        "- family-modular",
        f"- {json.dumps(facts.family)}",
        "---",
        "",
    ]


def _language_table(languages: Sequence[CardLanguage]) -> list[str]:
    rows = [
        "| code | language | endonym | training tokens | bits per byte |",
        "|---|---|---|--:|--:|",
    ]
    for each in languages:
        bits = "not measured" if each.bits_per_byte is None else f"{each.bits_per_byte:.3f}"
        rows.append(
            f"| {each.code} | {_cell(each.name)} | {_cell(each.endonym)} | {each.train_tokens:,} "
            f"| {bits} |"
        )
    return rows


def _gate_table(gate: GateReport) -> list[str]:
    rows = ["| check | measured | bound | passed | meaning |", "|---|--:|--:|---|---|"]
    for check in gate.checks:
        sign = "≥" if check.at_least else "≤"
        rows.append(
            f"| {check.name} | {check.value:.3g} | {sign} {check.bound:.3g} | "
            f"{'yes' if check.passed else '**no**'} | {_cell(check.meaning)} |"
        )
    return rows


def _source_table(provenance: Mapping[str, Any]) -> list[str]:
    rows = ["| | |", "|---|---|"]
    for name, value in provenance.items():
        shown = (
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        )
        rows.append(f"| {name.replace('_', ' ')} | {_cell(str(shown))} |")
    return rows


def _other_family(gate: GateReport) -> str:
    if gate.other_family_difference is None:
        return ""
    return f", and another family's experts would change them by {gate.other_family_difference:.3g}"


def _spoken(names: Sequence[str]) -> str:
    if len(names) > 8:
        return f"{', '.join(names[:7])} and {len(names) - 7} more languages"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _cell(text: str) -> str:
    """Text that cannot end a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")
