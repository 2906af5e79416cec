"""The sentences that routing is compared on: the same in every language, cut into batches.

A row of a batch is one sentence, and a batch's rows have one length, so that there is no padding
whose routing would count. Read next: `routing_telemetry.py`, which runs the model on them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from ..data.parallel_text import Texts, parallel_texts
from ..model.routers import FamilySegment
from .assembly import Trainer
from .console import say
from .errors import MISTAKES, UserError

ENOUGH = 0.5
"""A language takes part that has this share of the pivot's sentences."""
SHOWN = 6
"""Languages that a message names."""


@dataclass(frozen=True, slots=True)
class ParallelSentences:
    """Token ids of the same sentences in several languages."""

    pivot: str
    """The language that the others are compared with."""
    languages: tuple[str, ...]
    """Codes, the pivot among them, in sorted order."""
    families: tuple[str, ...]
    """The family of each."""
    ids: tuple[str, ...]
    """What the sentences are called."""
    tokens: tuple[tuple[tuple[int, ...], ...], ...]
    """[language][sentence]: the begin token and the sentence, cut to a sequence's length."""

    def batches(
        self, rows: int, *, tagged: bool
    ) -> Iterator[tuple[Tensor, Tensor, list[FamilySegment]]]:
        """All sentences of all languages.

        Args:
            rows: at most so many together.
            tagged: whether the model is told a row's family.
        Yields:
            index_B (language times sentences plus sentence), tokens_BT, segments.
        """
        count = len(self.ids)
        order = sorted(
            range(len(self.languages) * count),
            key=lambda i: (len(self._row(i)), self.families[i // count], i),
        )
        for _, group in groupby(order, key=lambda i: len(self._row(i))):
            equal = list(group)
            for first in range(0, len(equal), rows):
                part = equal[first : first + rows]
                names = [self.families[i // count] if tagged else "" for i in part]
                tokens_BT = torch.tensor([self._row(i) for i in part])
                yield torch.tensor(part), tokens_BT, segments_of(names)

    def _row(self, index: int) -> tuple[int, ...]:
        language, sentence = divmod(index, len(self.ids))
        return self.tokens[language][sentence]


def segments_of(families: Sequence[str]) -> list[FamilySegment]:
    """The family of each row, written as segments."""
    segments, row = [], 0
    for family, run in groupby(families):
        stop = row + len(list(run))
        segments.append(FamilySegment(family, row, stop))
        row = stop
    return segments


def choose_sentences(
    texts: Texts, codes: Sequence[str], pivot: str, limit: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The languages of a run that have parallel text, and the ids that all of them share.

    A language with less than half of the pivot's ids is left out: it would take them from all. An
    empty text is none.

    Args:
        texts: language code -> id -> text.
        codes: the run's languages.
        limit: at most so many ids, the pivot's first.
    Returns:
        Codes in sorted order, ids.
    Raises:
        UserError: the pivot or every other language is missing, or no id is shared by all.
    """
    if pivot not in codes:
        raise UserError(
            f"logging.pivot={pivot} is no language of the run: set it to one of {_some(codes)}"
        )
    found = tuple(sorted(code for code in codes if texts.get(code)))
    if not found:
        raise UserError(
            f"logging.parallel_sentences has no language of the run: it has {_some(sorted(texts))},"
            f" the run {_some(codes)}; both must spell them alike, as swh_Latn"
        )
    if pivot not in found:
        raise UserError(
            f"logging.pivot={pivot} has no sentence in logging.parallel_sentences: set it to one "
            f"of {_some(found)}"
        )
    texts = {code: {i: t for i, t in texts[code].items() if t.strip()} for code in found}
    held = {code: len(texts[code].keys() & texts[pivot].keys()) for code in found}
    kept = tuple(code for code in found if held[code] >= ENOUGH * held[pivot])
    if len(kept) == 1:
        others = ", ".join(f"{code} {held[code]}" for code in found if code != pivot)
        raise UserError(
            f"logging.parallel_sentences: no other language of the run has half of the "
            f"{held[pivot]} ids of {pivot} ({others or 'none has any text'}): equal ids must mean "
            "the same sentence; give a file with more of the run's languages"
        )
    shared = [i for i in texts[pivot] if all(i in texts[code] for code in kept)]
    if not shared:
        fewest = min(kept, key=lambda code: held[code])
        raise UserError(
            f"logging.parallel_sentences: no id is shared by all {len(kept)} languages of the run "
            f"({fewest} has {held[fewest]} of the {held[pivot]} of {pivot}): equal ids must mean "
            "the same sentence; give every language the same, or take the language out of the file"
        )
    return kept, tuple(shared[:limit])


def open_sentences(trainer: Trainer) -> ParallelSentences:
    """The sentences of `logging.parallel_sentences`, read by the leader and told to all processes.

    Raises:
        UserError: they do not fit the run; the same on every process.
    """
    config, engine = trainer.config.logging, trainer.processes
    told = refusal = ""
    if engine.leader:
        try:
            texts = parallel_texts(Path(config.parallel_sentences or ""))
            told = _encode(trainer, texts)
        except MISTAKES as mistake:
            refusal = str(mistake)
    refusal = engine.leader_says(refusal)
    if refusal:
        raise UserError(refusal)
    codes, ids, tokens = json.loads(engine.leader_says(told))
    return ParallelSentences(
        pivot=config.pivot,
        languages=tuple(codes),
        families=tuple(trainer.manifest.languages[code].family for code in codes),
        ids=tuple(ids),
        tokens=tuple(tuple(tuple(row) for row in language) for language in tokens),
    )


def _encode(trainer: Trainer, texts: Mapping[str, Mapping[str, str]]) -> str:
    config, tokenizer = trainer.config.logging, trainer.tokenizer
    codes = sorted(trainer.manifest.languages)
    found, ids = choose_sentences(texts, codes, config.pivot, config.parallel_limit)
    T = trainer.config.data.sequence_length
    tokens = [
        [
            [tokenizer.bos_id, *row][:T]
            for row in tokenizer.encode_batch([texts[code][i] for i in ids], threads=1)
        ]
        for code in found
    ]
    missing = [code for code in codes if code not in found]
    say(
        f"routing is compared on {len(ids)} parallel sentences in {len(found)} languages with "
        f"{config.pivot}" + (f"; the file lacks most of {_some(missing)}" if missing else "")
    )
    return json.dumps([found, ids, tokens])


def _some(codes: Sequence[str]) -> str:
    more = f" and {len(codes) - SHOWN} more" if len(codes) > SHOWN else ""
    return ", ".join(codes[:SHOWN]) + more
