"""Which documents hold evaluation texts? They are dropped, and each finding is listed.

A document that shares one n-gram with an evaluation text, or holds a short one whole, goes: part of
a leaked page is mostly the rest of the leak. `contamination.jsonl` in the work folder has a line
for each document and evaluation text found in it, by language and document id: `document`,
`language`, `file`, `id`, `field`, `matched` (the words shared). Read next: `evaluation_index.py`,
which says what is found and what is too short to be.
"""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datatrove.data import Document

from .config import CurationConfig, DecontaminationConfig
from .duplicates import RunStage
from .evaluation_index import EvaluationIndex, Matcher, evaluation_files
from .language_files import Dropped, LanguageFile, language_files, read_stage, share, write_stage

HIT_LIST = "contamination.jsonl"
_REASON = "evaluation text: {}"


def decontamination_stage(
    config: CurationConfig, input_folder: Path, output_folder: Path, run: RunStage
) -> None:
    """Drops the documents that hold evaluation texts, and writes the hit list.

    Three runs: the index of all evaluation texts, the files without documents that hold one, the
    list. Raises DataError (evaluation files that are missing, or hold none of the fields).
    """
    work, name = output_folder.parent, output_folder.name
    settings = config.decontaminate
    evaluation_files(settings)
    index, hits = work / f"{name}-index", work / f"{name}-hits"
    run(f"{name}-index", [partial(_build_index, settings, index)], 1, config, work)
    step = partial(_drop_contaminated, input_folder, index, hits, output_folder)
    run(name, [step], config.tasks, config, work)
    run(f"{name}-hits", [partial(_list_hits, hits, work / HIT_LIST)], 1, config, work)


def _build_index(
    settings: DecontaminationConfig, folder: Path, documents: None, rank: int, world_size: int
) -> None:
    EvaluationIndex.build(settings, evaluation_files(settings)).save(folder)


def _drop_contaminated(
    folder: Path,
    index: Path,
    hits: Path,
    output: Path,
    documents: None,
    rank: int,
    world_size: int,
) -> None:
    dropped = Dropped()
    matcher = Matcher(EvaluationIndex.load(index))
    for file in share(language_files(folder), rank, world_size):
        found: list[dict[str, Any]] = []
        clean = _clean(read_stage(file.path), file, matcher, found, dropped)
        write_stage(clean, output, file)
        path = hits / file.language / f"{file.number:05d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(hit, ensure_ascii=False) + "\n" for hit in found)
        path.write_text("".join(lines), encoding="utf-8")
    dropped.save(output.parent, output.name, rank)


def _clean(
    documents: Iterable[Document],
    file: LanguageFile,
    matcher: Matcher,
    found: list[dict[str, Any]],
    dropped: Dropped,
) -> Iterator[Document]:
    for document in documents:
        matches = matcher.matches(document.text, file.language)
        if not matches:
            yield document
            continue
        reason = _REASON.format(matches[0].text.set)
        dropped.add(file.language, reason, document.text)
        for match in matches:
            text = match.text
            found.append(
                {
                    "document": document.id,
                    "language": file.language,
                    "file": text.file,
                    "id": text.id,
                    "field": text.field,
                    "matched": match.words,
                }
            )


def _list_hits(hits: Path, hit_list: Path, documents: None, rank: int, world_size: int) -> None:
    """One list of what all tasks found, in an order that does not depend on them."""
    lines: list[tuple[str, str, str]] = []
    for path in sorted(hits.glob("*/*.jsonl")):
        with open(path, encoding="utf-8") as file:
            for line in file:
                hit = json.loads(line)
                lines.append((hit["language"], hit["document"], line))
    partial_list = hit_list.with_name(hit_list.name + ".tmp")
    partial_list.write_text("".join(line for _, _, line in sorted(lines)), encoding="utf-8")
    partial_list.replace(hit_list)
