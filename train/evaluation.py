"""Bits per UTF-8 byte on held-out documents, and multiple-choice questions about facts.

Documents are scored whole: each begins a row's piece with its begin token and sees nothing but
itself; one longer than a row is cut into pieces of T tokens, each predicting from its own start
(stride T). Rows are dealt out to the processes, and sums are added, so that the result does not
depend on their number. Read next: `report.py`.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.manifest import Manifest
from ..data.packing import IGNORED
from ..data.shards import TokenLine
from ..data.tokenizer import Tokenizer
from ..model.decoder import Decoder
from ..model.objectives import next_token_loss
from ..model.routers import FamilySegment
from .engines.torch import TorchEngine
from .errors import UserError
from .metrics import LanguageSums

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


@torch.no_grad()
def heldout_sums(
    decoder: Decoder,
    engine: TorchEngine,
    prepared: Path,
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
    sums = LanguageSums(codes, engine.device)
    was_training = decoder.training
    decoder.eval()
    for index, code in enumerate(codes):
        entry = manifest.languages[code]
        line = TokenLine(prepared, entry.heldout)
        mine = [
            row
            for i, row in enumerate(evaluation_rows(line, sequence_length, 0, tokens_per_language))
            if i % engine.world == engine.rank
        ]
        for first in range(0, len(mine), rows):
            part = mine[first : first + rows]
            inputs, targets, documents = (
                torch.from_numpy(np.stack([row[i] for row in part])).to(engine.device)
                for i in range(3)
            )
            segments = (FamilySegment(entry.family, 0, len(part)),)
            with engine.autocast():
                hidden = decoder(inputs, documents, segments)
                _, nll_BT = next_token_loss(hidden, decoder.head_weight_VD, targets)
            kept = targets != IGNORED
            sizes = token_bytes[targets.clamp_min(0)] * kept
            sums.add(torch.full((len(part),), index), nll_BT, kept, sizes)
        if advance is not None:
            advance(code)
    engine.sum(sums.values)
    decoder.train(was_training)
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
            fact["language"], fact["prompt"], fact["choices"], fact["label"], fact["held_out"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}:{number} is no question ({error!r}): it needs language, prompt, choices, "
                "label, held_out"
            ) from error
        facts.append(fact)
    return facts


@torch.no_grad()
def fact_accuracy(
    decoder: Decoder,
    manifest: Manifest,
    tokenizer: Tokenizer,
    facts: Sequence[dict[str, Any]],
    *,
    autocast: Any,
    advance: Any = None,
    limit_per_language: int | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy by language, apart for facts stated in it and facts held out from it.

    A choice's score is the log-likelihood of what follows the tokens that all choices share,
    divided by its UTF-8 bytes. Chance is one over the number of choices.

    Returns:
        language -> {"stated" | "held_out" -> {"accuracy", "questions", "chance"}}.
    """
    by_language: dict[str, list[dict[str, Any]]] = {}
    for fact in facts:
        if fact["language"] in manifest.languages:
            by_language.setdefault(fact["language"], []).append(fact)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for code, questions in sorted(by_language.items()):
        family = manifest.languages[code].family
        tallies = {"stated": [0, 0, 0.0], "held_out": [0, 0, 0.0]}
        # Held-out questions first: they are the fewer, and the ones asked for.
        ordered = sorted(questions, key=lambda q: not q["held_out"])[:limit_per_language]
        for question in ordered:
            with autocast():
                scores = _choice_scores(decoder, tokenizer, family, question)
            tally = tallies["held_out" if question["held_out"] else "stated"]
            tally[0] += int(int(np.argmax(scores)) == question["label"])
            tally[1] += 1
            tally[2] += 1 / len(question["choices"])
        results[code] = {
            name: {"accuracy": right / n, "questions": n, "chance": chance / n}
            for name, (right, n, chance) in tallies.items()
            if n
        }
        if advance is not None:
            advance(code)
    return results


def _choice_scores(
    decoder: Decoder, tokenizer: Tokenizer, family: str, question: dict[str, Any]
) -> list[float]:
    texts = [question["prompt"] + choice for choice in question["choices"]]
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    shared = 1
    while shared < min(map(len, ids)) and len({row[shared] for row in ids}) == 1:
        shared += 1
    longest = max(map(len, ids))
    tokens = torch.tensor([row + [tokenizer.pad_id] * (longest - len(row)) for row in ids])
    targets = torch.full_like(tokens, IGNORED)
    for i, row in enumerate(ids):
        targets[i, shared - 1 : len(row) - 1] = torch.tensor(row[shared:])
    device = decoder.embed.weight.device
    tokens, targets = tokens.to(device), targets.to(device)
    hidden = decoder(tokens, torch.zeros_like(tokens), (FamilySegment(family, 0, len(ids)),))
    _, nll_BT = next_token_loss(hidden, decoder.head_weight_VD, targets)
    return [
        -value / max(1, len(choice.encode()))
        for value, choice in zip(nll_BT.sum(1).tolist(), question["choices"], strict=True)
    ]
