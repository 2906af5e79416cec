"""The first stage: every raw document is judged by itself, and kept or dropped for one reason.

In this order: the script of its letters, the language model, the rules on running text. A language
that the model does not know gets no verdict from it, only from its script; such documents are
counted. Each raw file becomes one file a language, of the same number, so that the result does not
depend on tasks. This file needs datatrove. Read next: `quality.py`, `language_id.py`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datatrove.data import Document

from ..errors import DataError
from ..shards import write_atomically
from ..sources import ReadCounts
from .config import CurationConfig, LanguageThresholds
from .language_files import COPIES, Dropped, LanguageFile, share, write_stage
from .language_id import LanguageIdentifier, load_identifier
from .quality import QualityFilters, thresholds_of
from .reading import UNLABELLED, RawCorpus, RawFile, read_raw
from .scripts_of_text import script_share

STAGE = "filter"
SCRIPT, LANGUAGE = "script", "language"
UNIDENTIFIED = "unidentified"
EMPTY, MALFORMED = "empty", "malformed"
READ, BYTES, NO_VERDICT = "documents", "bytes", "no verdict"


class Judge:
    """All that is needed to judge documents, made once a task."""

    def __init__(self, config: CurationConfig) -> None:
        self._config = config
        self._languages: dict[str, tuple[LanguageThresholds, QualityFilters]] = {}
        settings = config.language_id
        self._model: LanguageIdentifier | None = None
        if settings.enabled:
            self._model = load_identifier(settings)

    def judged_by_model(self, code: str) -> bool:
        """Whether the model knows a language."""
        return self._model is not None and code in self._model.known

    def language_of(self, text: str) -> str | None:
        """The language of a text without a label; None where the model is not sure enough."""
        assert self._model is not None, "raw_files and curate refuse und/ without a model"
        for code, probability in self._model.identify(text):
            thresholds, _ = self._of(code)
            agreement = script_share(text, code.split("_")[1])
            if agreement is not None and agreement < thresholds.script_share:
                continue
            least = max(thresholds.language_score, self._config.language_id.unlabelled_score)
            return code if probability >= least else None
        return None

    def reason(self, code: str, text: str) -> str | None:
        """Why a document of a language is dropped, None if it is kept."""
        thresholds, filters = self._of(code)
        agreement = script_share(text, code.split("_")[1])
        if agreement is not None and agreement < thresholds.script_share:
            return SCRIPT
        if self._model is not None and code in self._model.known:
            probability = dict(self._model.identify(text)).get(code, 0.0)
            if probability < thresholds.language_score:
                return LANGUAGE
        return filters.reason(text) if self._config.quality.enabled else None

    def _of(self, code: str) -> tuple[Any, QualityFilters]:
        if code not in self._languages:
            with_scores = bool(self._config.language_id.model)
            thresholds = thresholds_of(code, self._config.quality, with_scores=with_scores)
            self._languages[code] = thresholds, QualityFilters(code, thresholds)
        return self._languages[code]


@dataclass(frozen=True)
class FilterStep:
    """A datatrove step: reads, judges and writes its task's share of the raw files."""

    raw: RawCorpus
    config: CurationConfig
    files: tuple[RawFile, ...]
    output: Path
    languages: tuple[str, ...]
    """With some, documents without a label that turn out to be in others are dropped."""

    def __call__(self, documents: object, rank: int, world_size: int) -> None:
        work, dropped = self.output.parent, Dropped()
        counts: dict[str, Counter[str]] = {}
        units = share(list(enumerate(self.files)), rank, world_size)
        for number, file in units:
            kept = self._kept(file, dropped, counts)
            if file.language != UNLABELLED:
                self._write(kept, file.language, number)
                continue
            by_language: dict[str, list[Document]] = {}
            for document in kept:
                by_language.setdefault(document.metadata["language"], []).append(document)
            for code, its in sorted(by_language.items()):
                self._write(iter(its), code, number)
        dropped.save(work, STAGE, rank)
        path = work / "read" / f"{rank:05d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(counts, sort_keys=True).encode())

    def _write(self, documents: Iterator[Document], code: str, number: int) -> None:
        file = LanguageFile(language=code, number=number, path=self.files[number].path)
        write_stage(documents, self.output, file)

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.config)

    def _kept(
        self, file: RawFile, dropped: Dropped, counts: dict[str, Counter[str]]
    ) -> Iterator[Document]:
        read = ReadCounts()
        for document in read_raw(file, self.raw, read):
            code: str | None = file.language
            if code == UNLABELLED:
                code = self._judge.language_of(document.text)
                if code is None or (self.languages and code not in self.languages):
                    _count(counts, UNLABELLED, document.text)
                    dropped.add(UNLABELLED, UNIDENTIFIED, document.text)
                    continue
            assert code is not None
            _count(counts, code, document.text)
            if not self._judge.judged_by_model(code):
                counts[code][NO_VERDICT] += 1
            reason = self._judge.reason(code, document.text)
            if reason is not None:
                dropped.add(code, reason, document.text)
                continue
            metadata: dict[str, Any] = {"language": code}
            if document.copies > 1:
                metadata[COPIES] = document.copies
            yield Document(text=document.text, id=document.id, metadata=metadata)
        for reason, number in ((EMPTY, read.empty), (MALFORMED, read.bad)):
            for _ in range(number):
                _count(counts, file.language, "")
                dropped.add(file.language, reason, "")


def _count(counts: dict[str, Counter[str]], code: str, text: str) -> None:
    of = counts.setdefault(code, Counter())
    of[READ] += 1
    of[BYTES] += len(text.encode())


def check_model(config: CurationConfig, files: list[RawFile]) -> None:
    """Loads the language model once before any task does; raises DataError."""
    unlabelled = [file for file in files if file.language == UNLABELLED]
    if unlabelled and not config.language_id.enabled:
        raise DataError(
            f"{unlabelled[0].path}: has no language, and curation.language_id.enabled=false: name "
            "it by its language's code, or let the model say it"
        )
    if config.language_id.enabled:
        load_identifier(config.language_id)
