"""The verb `export`: every family of a run as a plain dense Qwen3 folder, proved equal.

A folder holds the model, the tokenizer, the generation config, `gate.json` (what the gate
measured), `prompts.json` (a real beginning in each language) and the model card. It takes its name
only after the gate has passed. Read next: `model/hf/gate.py`, docs/EXPORT.md.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

from .. import __version__
from ..data.hf_tokenizer import export_hf_tokenizer
from ..data.languages import language
from ..data.manifest import LanguageEntry
from ..data.storage import Storage
from ..data.token_line import Int64, TokenLine
from ..data.tokenizer import Tokenizer
from ..model.hf.card import CardFacts, CardLanguage, model_card
from ..model.hf.gate import WANTED_TOKENS, run_gate
from ..model.hf.gate_report import Check, GateReport
from ..model.hf.qwen3 import family_state_dict, staged_folder, weights_sha256, write_model
from .compose import to_yaml
from .console import progress, say
from .errors import UserError
from .run_folder import OpenRun, open_run

TOKENIZER_DOCUMENTS = 20
"""Documents a language on which the exported tokenizer is held against ours."""
PROMPT_CHARACTERS = 32
"""A stored prompt is at most so long, and at most half of its document's first line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """One exported family."""

    family: str
    """The family."""
    folder: Path
    """The Hugging Face folder."""
    languages: tuple[str, ...]
    """Codes of the family's languages."""
    gate: GateReport
    """What the gate measured; it passed."""


def export_run(
    run: Path,
    *,
    step: int | None = None,
    families: Sequence[str] | None = None,
    out: Path | None = None,
) -> list[ExportResult]:
    """Exports families of a run's checkpoint, each through the gate.

    Args:
        run: the run folder.
        step: which checkpoint; None takes the newest.
        families: which families; None takes all.
        out: folder of the family folders; None takes RUN/export/step-N.
    Raises:
        UserError: no such run, checkpoint or family.
        ModelError: a folder in the way that is no export of ours, or too little text for the gate.
        GateFailure: an export is not the model it was made from; its folder is not left behind.
    """
    opened = open_run(run, step)
    chosen = _chosen(families, opened.decoder.families)
    out = out or opened.folder / "export" / f"step-{opened.step}"
    bits = bits_per_byte(opened)
    results = []
    with progress("export families as dense Qwen3", len(chosen)) as advance:
        for family in chosen:
            result = _export_family(opened, family, out / family, bits)
            differences = {check.name: check.value for check in result.gate.checks}
            say(
                f"export {family}: {_counted(len(result.languages))}, gate passed "
                f"(max |Δlogit| {differences['fp32_logits_text']:.1e} of spread "
                f"{result.gate.spread:.2g}) → {result.folder}"
            )
            results.append(result)
            advance()
    return results


def _counted(languages: int) -> str:
    return f"{languages} language{'' if languages == 1 else 's'}"


def bits_per_byte(opened: OpenRun) -> dict[str, float]:
    """Language code -> bits per byte, if the run's evaluation.json is of this very step."""
    path = opened.folder / "evaluation.json"
    if not path.exists():
        return {}
    evaluation = json.loads(path.read_text(encoding="utf-8"))
    if evaluation.get("step") != opened.step:
        return {}
    return {code: float(row["bpb"]) for code, row in evaluation["languages"].items()}


def _chosen(families: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    for name in families or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"family {name!r} is not in this run: {meant}choose from {', '.join(known)}"
            )
    return [name for name in known if not families or name in families]


def _export_family(
    opened: OpenRun, family: str, folder: Path, bits: dict[str, float]
) -> ExportResult:
    manifest, tokenizer = opened.manifest, opened.tokenizer
    storage = opened.storage
    entries = [entry for entry in manifest.languages.values() if entry.family == family]
    positions = opened.config.data.sequence_length
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    failed = folder.with_name(f"{folder.name}.gate-failed.json")
    with staged_folder(folder) as staging:
        origin = provenance(opened, family)
        parameters = write_model(
            opened.decoder, family, staging, **ids, max_positions=positions, provenance=origin
        )
        export_hf_tokenizer(tokenizer, staging, model_max_length=positions)
        gate = run_gate(opened.decoder, family, staging, gate_documents(storage, entries), **ids)
        told = _tokenizer_check(tokenizer, staging, storage, entries)
        gate = replace(gate, checks=(*gate.checks, told))
        if gate.failed:
            _write_json(failed, gate.to_json())
        gate.require()
        languages = [language(entry.code) for entry in entries]
        facts = CardFacts(
            run=opened.config.run.name,
            family=family,
            families=opened.decoder.families,
            languages=tuple(
                CardLanguage(
                    code=known.code,
                    name=known.name,
                    endonym=known.endonym,
                    train_tokens=entry.train_tokens,
                    bits_per_byte=bits.get(known.code),
                )
                for known, entry in zip(languages, entries, strict=True)
            ),
            parameters=parameters,
            positions=positions,
            gate=gate,
            provenance=origin,
        )
        prompts = [
            {"language": entry.code, "prompt": _prompt(tokenizer, storage, entry)}
            for entry in entries
        ]
        _write_json(staging / "gate.json", gate.to_json())
        _write_json(staging / "prompts.json", {"family": family, "prompts": prompts})
        (staging / "README.md").write_text(model_card(facts), encoding="utf-8")
    failed.unlink(missing_ok=True)
    return ExportResult(
        family=family,
        folder=folder,
        languages=tuple(entry.code for entry in entries),
        gate=gate,
    )


def provenance(opened: OpenRun, family: str) -> dict[str, Any]:
    """Where an export's weights come from: hashes and versions, no time and no path.

    Equal runs give equal provenance, on any machine.
    """
    files = ("trunk.safetensors", f"family-{family}.safetensors")
    seals = {name: opened.checkpoint / f"{name}.sha256" for name in files}
    return {
        "run": opened.config.run.name,
        "step": opened.step,
        "checkpoint_sha256": {
            name: seal.read_text(encoding="utf-8").strip()
            for name, seal in seals.items()
            if seal.exists()  # a family without experts has no file
        },
        "weights_sha256": weights_sha256(family_state_dict(opened.decoder, family)),
        "manifest_hash": opened.manifest.hash,
        "ledger_sha256": _sha256(opened.ledger.to_json()),
        "tokenizer_sha256": opened.tokenizer.sha256,
        "config_sha256": _sha256(to_yaml(opened.config)),
        "xylem_version": __version__,
        "torch_version": metadata.version("torch"),
        "transformers_version": metadata.version("transformers"),
    }


def gate_documents(storage: Storage, entries: Sequence[LanguageEntry]) -> list[Int64]:
    """Documents for the gate, from every language in turn: held-out ones, then training ones.

    Training documents are used only where too little is held out; the gate compares two models on
    the same text, so that having been trained on it does not matter.
    """
    # A share for each language, so that a family of many languages is tested on all of them.
    share = max(32, math.ceil(WANTED_TOKENS / len(entries)))
    documents: list[Int64] = []
    total = 0
    for split in ("heldout", "train"):
        lines = [_documents(storage, entry, split) for entry in entries]
        for document in _in_turn(lines):
            if total >= WANTED_TOKENS and len(documents) >= len(entries):
                return documents
            documents.append(document[:share])
            total += len(documents[-1])
    return documents


def _documents(storage: Storage, entry: LanguageEntry, split: str) -> Iterator[Int64]:
    shards = entry.heldout if split == "heldout" else entry.sources[0].shards
    line = TokenLine(storage, shards)
    for start, stop in pairwise(line.document_bounds().tolist()):
        yield line.read(start, stop)


def _in_turn(lines: Sequence[Iterator[Int64]]) -> Iterator[Int64]:
    """One document of each line, then the next of each, until all have ended."""
    open_lines = list(lines)
    while open_lines:
        still = []
        for line in open_lines:
            document = next(line, None)
            if document is not None:
                still.append(line)
                yield document
        open_lines = still


def _tokenizer_check(
    tokenizer: Tokenizer, folder: Path, storage: Storage, entries: Sequence[LanguageEntry]
) -> Check:
    """The folder's tokenizer, as transformers loads it, against ours on the family's own text."""
    from transformers import AutoTokenizer

    # Without a limit, as a document longer than the model's would be warned about.
    exported = AutoTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=10**9)
    special = (
        (exported.bos_token_id, tokenizer.bos_id),
        (exported.eos_token_id, tokenizer.eos_id),
        (exported.pad_token_id, tokenizer.pad_id),
        (exported.unk_token_id, tokenizer.unk_id),
    )
    differing = sum(found != ours for found, ours in special)
    for entry in entries:
        documents = chain(
            _documents(storage, entry, "heldout"), _documents(storage, entry, "train")
        )
        for document in islice(documents, TOKENIZER_DOCUMENTS):
            text = tokenizer.decode(document)
            ids = exported(text).input_ids
            same = ids == [tokenizer.bos_id, *tokenizer.encode(text)]
            same = same and exported.decode(ids, skip_special_tokens=True) == text
            differing += not same
    return Check(
        name="tokenizer",
        meaning="special ids and documents of the family on which the exported tokenizer differs",
        value=differing,
        bound=0,
    )


def _prompt(tokenizer: Tokenizer, storage: Storage, entry: LanguageEntry) -> str:
    """The first words of a document, held out if there is one; empty if the language has none."""
    documents = chain(_documents(storage, entry, "heldout"), _documents(storage, entry, "train"))
    texts = (tokenizer.decode(document).strip() for document in islice(documents, 8))
    text = next((text for text in texts if text), "")
    line = text.splitlines()[0] if text else ""
    beginning = line[: min(PROMPT_CHARACTERS, math.ceil(len(line) / 2))]
    whole, space, _ = beginning.rpartition(" ")
    return (whole if space else beginning).strip()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
