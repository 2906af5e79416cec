"""Bits per UTF-8 byte on held-out documents, and multiple-choice questions about facts.

Documents are scored whole: each begins a row's piece with its begin token and sees nothing but
itself; one longer than a row is cut into pieces of T tokens, each predicting from its own start
(stride T). Rows are dealt out to the processes, and sums are added, so that the result does not
depend on their number. Read next: `report.py`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.manifest import Manifest
from ..data.packing import IGNORED
from ..data.storage import Storage
from ..data.token_line import TokenLine
from ..data.tokenizer import Tokenizer
from ..model.decoder import Decoder
from ..model.objectives import next_token_loss
from ..model.routers import FamilySegment
from .engines.processes import Processes
from .errors import UserError
from .metrics import LanguageSums

Accuracies = dict[str, dict[str, float]]
""""stated" | "held_out" -> accuracy, questions, chance."""

Row = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def evaluation_rows(
    line: TokenLine, sequence_length: int, pad_id: int, limit: int | None
) -> Iterator[Row]:
    """Rows (inputs, targets, documents) of T positions that hold a language's documents whole.

    Args:
        line: held-out documents.
        sequence_length: T.
        pad_id: fills what is left of a row; never predicted, never seen.
        limit: stop after so many tokens, at a document's end; None reads all.
    """
    T = sequence_length
    pieces: list[NDArray[np.int64]] = []
    room = T
    bounds = line.document_bounds()
    for start, stop in pairwise(bounds.tolist()):
        if limit is not None and start >= limit:
            break
        tokens = line.read(start, stop)
        for at in range(0, len(tokens) - 1, T):
            piece = tokens[at : at + T + 1]
            if len(piece) - 1 > room:
                yield _row(pieces, T, pad_id)
                pieces, room = [], T
            pieces.append(piece)
            room -= len(piece) - 1
    if pieces:
        yield _row(pieces, T, pad_id)


def _row(pieces: Sequence[NDArray[np.int64]], T: int, pad_id: int) -> Row:
    inputs = np.full(T, pad_id, dtype=np.int64)
    targets = np.full(T, IGNORED, dtype=np.int64)
    documents = np.full(T, -1, dtype=np.int64)
    at = 0
    for number, piece in enumerate(pieces):
        end = at + len(piece) - 1
        inputs[at:end], targets[at:end], documents[at:end] = piece[:-1], piece[1:], number
        at = end
    return inputs, targets, documents


Score = Callable[[Tensor, Tensor, Tensor, Sequence[FamilySegment]], Tensor]
"""(inputs_BT, targets_BT, documents_BT, segments) -> nll_BT, zeros where another counts them."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """Who scores which rows."""

    score: Score
    processes: Processes
    index: int
    """This process's data index."""
    hosted: Sequence[frozenset[str]]
    """Families that each data index can score."""
    together: bool
    """Whether all data indices must score equally often, as each needs the others' weights."""
    counts: bool
    """Whether this process counts the tokens that it scores, or another of its data index does."""


def whole_scoring(decoder: Decoder, processes: Processes) -> Scoring:
    """A whole decoder on every process."""

    @torch.no_grad()
    def score(
        inputs_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor,
        segments: Sequence[FamilySegment],
    ) -> Tensor:  # fmt: skip
        decoder.eval()
        with processes.autocast():
            hidden = decoder(inputs_BT, documents_BT, segments)
            _, nll_BT = next_token_loss(hidden, decoder.head_weight_VD, targets_BT)
        return nll_BT

    hosted = [frozenset(decoder.families)] * processes.world
    return Scoring(score, processes, processes.rank, hosted, together=False, counts=True)


def heldout_sums(
    scoring: Scoring,
    storage: Storage,
    manifest: Manifest,
    token_bytes: Tensor,
    *,
    sequence_length: int,
    rows: int,
    tokens_per_language: int | None,
    advance: Any = None,
) -> dict[str, tuple[float, float, float]]:
    """Language -> (nll, tokens, bytes) over its held-out documents.

    Args:
        token_bytes: UTF-8 bytes of each token [V].
        rows: rows run together.
        tokens_per_language: how much of each language to read; None reads all.
        advance: called with a language's code when it is done.
    """
    codes = sorted(manifest.languages)
    device = scoring.processes.device
    sums = LanguageSums(codes, device)
    for index, code in enumerate(codes):
        entry = manifest.languages[code]
        line = TokenLine(storage, entry.heldout)
        held = list(evaluation_rows(line, sequence_length, 0, tokens_per_language))
        hosts = [d for d, names in enumerate(scoring.hosted) if entry.family in names]
        # Few rows are still spread over all who can score them.
        size = max(1, min(rows, -(-len(held) // max(1, len(hosts)))))
        batches = [held[at : at + size] for at in range(0, len(held), size)]
        for first in range(0, len(batches), max(1, len(hosts))):
            mine = first + hosts.index(scoring.index) if scoring.index in hosts else len(batches)
            if mine < len(batches):
                inputs, targets, documents = (
                    torch.from_numpy(np.stack([row[i] for row in batches[mine]])).to(device)
                    for i in range(3)
                )
                segments = (FamilySegment(entry.family, 0, len(inputs)),)
                nll_BT = scoring.score(inputs, targets, documents, segments)
                kept = (targets != IGNORED) & scoring.counts
                sizes = token_bytes[targets.clamp_min(0)] * kept
                sums.add(torch.full((len(inputs),), index), nll_BT, kept, sizes)
            elif scoring.together:
                nothing = torch.zeros(1, sequence_length, dtype=torch.int64, device=device)
                family = min(scoring.hosted[scoring.index])
                scoring.score(nothing, nothing, nothing, (FamilySegment(family, 0, 1),))
        if advance is not None:
            advance(code)
    scoring.processes.sum(sums.values)
    return sums.by_language()


def read_facts(path: Path) -> list[dict[str, Any]]:
    """Multiple-choice questions, one JSON object a line.

    Raises:
        UserError: the file is missing or a line is no question.
    """
    if not path.exists():
        raise UserError(f"evaluation.facts={path} does not exist: write it, or set it to null")
    facts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            fact = json.loads(line)
            whole = fact["language"] and fact["prompt"] and "held_out" in fact
            whole = whole and len(fact["choices"]) > 1 and 0 <= fact["label"] < len(fact["choices"])
        except (json.JSONDecodeError, KeyError, TypeError):
            whole = False
        if not whole:
            raise UserError(
                f"{path}:{number} is no question: it needs language, prompt, two or more choices, "
                "label (the place of the right one, from 0), held_out"
            )
        facts.append(fact)
    if not facts:
        raise UserError(f"{path} holds no question: write some, or set evaluation.facts=null")
    return facts


@torch.no_grad()
def fact_accuracy(
    decoder: Decoder,
    manifest: Manifest,
    tokenizer: Tokenizer,
    facts: Sequence[dict[str, Any]],
    *,
    autocast: Any,
    rows: int = 64,
    per_language: int | None = None,
    advance: Any = None,
) -> tuple[dict[str, Accuracies], dict[str, Accuracies]]:
    """Accuracy on multiple-choice questions, apart for facts stated in a language and held out.

    A choice's score is the log-likelihood of what follows the tokens that all choices share,
    divided by its UTF-8 bytes. Chance is one over the number of choices.

    Args:
        rows: sequences run together.
        per_language: at most so many questions of each sort and language, spread over them evenly;
            None asks all.
    Returns:
        By language and by kind of fact: {"stated" | "held_out" -> accuracy, questions, chance}.
    """
    tallies: dict[str, dict[str, list[tuple[bool, float]]]] = {}
    by_language: dict[str, list[dict[str, Any]]] = {}
    for fact in facts:
        if fact["language"] in manifest.languages:
            by_language.setdefault(fact["language"], []).append(fact)
    kinds: dict[str, dict[str, list[tuple[bool, float]]]] = {}
    for code, questions in sorted(by_language.items()):
        family = manifest.languages[code].family
        for sort in ("held_out", "stated"):
            asked = [q for q in questions if q["held_out"] == (sort == "held_out")]
            if per_language is not None:
                asked = asked[:: max(1, -(-len(asked) // per_language))]
            scored = _scores(decoder, tokenizer, family, asked, rows, autocast)
            for question, scores in zip(asked, scored, strict=True):
                right = int(np.argmax(scores)) == question["label"]
                answer = (right, 1 / len(question["choices"]))
                tallies.setdefault(code, {}).setdefault(sort, []).append(answer)
                kind = str(question.get("kind", "fact"))
                kinds.setdefault(kind, {}).setdefault(sort, []).append(answer)
        if advance is not None:
            advance(code)
    return _accuracies(tallies), _accuracies(kinds)


def _accuracies(
    tallies: dict[str, dict[str, list[tuple[bool, float]]]],
) -> dict[str, Accuracies]:
    return {
        name: {
            sort: {
                "accuracy": sum(right for right, _ in answers) / len(answers),
                "questions": len(answers),
                "chance": sum(chance for _, chance in answers) / len(answers),
            }
            for sort, answers in sorts.items()
        }
        for name, sorts in sorted(tallies.items())
    }


def _scores(
    decoder: Decoder,
    tokenizer: Tokenizer,
    family: str,
    questions: Sequence[dict[str, Any]],
    rows: int,
    autocast: Any,
) -> list[list[float]]:
    """Each question's choices' scores, `rows` sequences at a time, sorted by length to pad less."""
    cases = []
    for number, question in enumerate(questions):
        texts = [question["prompt"] + choice for choice in question["choices"]]
        ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
        shared = 1
        while shared < min(map(len, ids)) - 1 and len({row[shared] for row in ids}) == 1:
            shared += 1
        for place, (row, choice) in enumerate(zip(ids, question["choices"], strict=True)):
            cases.append((len(row), number, place, shared, row, len(choice.encode())))
    cases.sort(key=lambda case: case[:3])
    scores = [[0.0] * len(question["choices"]) for question in questions]
    device = decoder.head_weight_VD.device
    for first in range(0, len(cases), rows):
        part = cases[first : first + rows]
        tokens = torch.full((len(part), part[-1][0]), tokenizer.pad_id)
        targets = torch.full_like(tokens, IGNORED)
        for i, (length, _, _, shared, row, _) in enumerate(part):
            tokens[i, :length] = torch.tensor(row)
            targets[i, shared - 1 : length - 1] = torch.tensor(row[shared:])
        tokens, targets = tokens.to(device), targets.to(device)
        with autocast():
            hidden = decoder(
                tokens, torch.zeros_like(tokens), (FamilySegment(family, 0, len(part)),)
            )
            _, nll_BT = next_token_loss(hidden, decoder.head_weight_VD, targets)
        for (_, number, place, _, _, size), nll in zip(part, nll_BT.sum(1).tolist(), strict=True):
            scores[number][place] = -nll / max(1, size)
    return scores
