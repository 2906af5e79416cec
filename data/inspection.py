"""What does a step's batch hold? Its sequences as text, with document borders, or token by token.

The whole global batch is read, so that what is shown does not depend on the number of processes.
Read next: `stream.py`, which makes the same batch for training.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .errors import DataError
from .order import SequenceId
from .packing import IGNORED
from .stream import Stream
from .tokenizer import Tokenizer

BORDER = "┃"
"""Stands wherever a document begins or ends."""
CHARACTERS = 400
"""How much of a sequence's text is shown unless all is asked for."""
_BORDER_STYLE, _CUT_STYLE, _IGNORED_STYLE = "bold magenta", "dim", "dim"
_VISIBLE: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(32)},
    **dict.fromkeys(range(0x7F, 0xA0), 0xFFFD),
    ord("\n"): "↵",
}
"""Control characters as pictures: text of a corpus must not steer the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedDocument:
    """The part of a document that lies in one sequence."""

    text: str
    """What its tokens say; a character cut by the sequence's border shows as U+FFFD."""
    pieces: tuple[str, ...]
    """Its tokens' surfaces, specials included."""
    predicted: tuple[bool, ...]
    """For each token, whether the one after it is a target."""
    begins: bool
    """Whether the document's beginning lies here; else it came from the sequence before."""
    ends: bool
    """Whether its end lies here; else it goes on in the next sequence of its language."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedSequence:
    """One row of the batch."""

    language: str
    """Language code."""
    source: str
    """Which of the language's lines of tokens."""
    epoch: int
    """How often the source had been read through before."""
    position: int
    """Which sequence of the source's token line it is."""
    documents: tuple[InspectedDocument, ...]
    """The documents, or parts of them, from left to right."""
    tokens: int
    """Tokens of the sequence, T."""
    predicted: int
    """Targets among them that count in the loss."""
    padding: int
    """Tokens that pad; packing leaves none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedSlot:
    """Sequences of one family that run together."""

    number: int
    """Its place in the step."""
    family: str
    """The family whose experts it trains."""
    sequences: tuple[InspectedSequence, ...]
    """Its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedStep:
    """What was read of a step."""

    step: int
    """Counted from 0."""
    slots: tuple[InspectedSlot, ...]
    """The slots that were asked for."""
    slots_in_step: int
    """How many the step has."""


def inspect_step(
    stream: Stream, tokenizer: Tokenizer, step: int, *, slots: int | None = None
) -> InspectedStep:
    """Reads and decodes the global batch of a step.

    Args:
        step: counted from 0.
        slots: how many slots from the step's first on; None takes all.
    Raises:
        DataError: a step below 0, or fewer slots than 1.
        DamagedShard: a shard is not what the manifest says.
    """
    if step < 0:
        raise DataError(f"--step={step}: steps are counted from 0")
    if slots is not None and slots < 1:
        raise DataError(f"--slots={slots}: at least 1, or leave it out to see all")
    ordered = stream.order.step(step)
    return InspectedStep(
        step=step,
        slots=tuple(
            InspectedSlot(
                number=slot.number,
                family=slot.family,
                sequences=tuple(_sequence(stream, tokenizer, s) for s in slot.sequences),
            )
            for slot in ordered[:slots]
        ),
        slots_in_step=len(ordered),
    )


def _sequence(stream: Stream, tokenizer: Tokenizer, which: SequenceId) -> InspectedSequence:
    packed = stream.sequences([which])
    inputs, targets, rows = packed.inputs[0], packed.targets[0], packed.documents[0]
    predicted = targets != IGNORED
    starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 1))
    documents = []
    for start, stop in pairwise([*starts.tolist(), len(inputs)]):
        ids = inputs[start:stop]
        documents.append(
            InspectedDocument(
                text=tokenizer.decode(ids),
                pieces=tuple(tokenizer.pieces[i] for i in ids.tolist()),
                predicted=tuple(predicted[start:stop].tolist()),
                begins=bool(ids[0] == tokenizer.bos_id),
                ends=bool(ids[-1] == tokenizer.eos_id),
            )
        )
    return InspectedSequence(
        language=stream.manifest.sources[which.source].language,
        source=which.source,
        epoch=which.epoch,
        position=which.position,
        documents=tuple(documents),
        tokens=len(inputs),
        predicted=int(predicted.sum()),
        padding=int((inputs == tokenizer.pad_id).sum()),
    )


def print_step(
    console: Console, shown: InspectedStep, *, full: bool = False, tokens: bool = False
) -> None:
    """Prints every sequence, then a summary.

    Args:
        full: whole texts, lines broken where the text breaks them.
        tokens: token by token instead of running text; bytes are written `<0x0A>`, a space `▁`.
    """
    for slot in shown.slots:
        console.print(Text(f"slot {slot.number}  {slot.family}", style="bold"))
        for sequence in slot.sequences:
            console.print(
                Text.assemble(
                    "  ",
                    (sequence.source, "bold cyan"),
                    f"  epoch {sequence.epoch}, position {sequence.position}: "
                    f"{_counted(len(sequence.documents), 'document')}, {sequence.tokens:,} tokens, "
                    f"{sequence.predicted:,} predicted",
                )
            )
            console.print(_pieces(sequence, full) if tokens else _text(sequence, full))
            console.print()
    _print_summary(console, shown)


def _text(sequence: InspectedSequence, full: bool) -> Text:
    line, left = Text(), None if full else CHARACTERS
    for document in sequence.documents:
        text = document.text.translate(_VISIBLE)
        if full:
            text = text.replace("↵", "↵\n")
        _open(line, document)
        line.append(text if left is None else text[:left])
        if left is not None:
            left -= len(text)
            if left < 0:
                _rest(line, sum(len(d.text) for d in sequence.documents) - CHARACTERS, "character")
                return line
        _close(line, document)
    return line


def _pieces(sequence: InspectedSequence, full: bool) -> Text:
    line, left = Text(), None if full else CHARACTERS // 4
    for document in sequence.documents:
        _open(line, document)
        for piece, predicted in zip(document.pieces, document.predicted, strict=True):
            if left == 0:
                _rest(line, sequence.tokens - CHARACTERS // 4, "token")
                return line
            line.append(piece.translate(_VISIBLE), None if predicted else _IGNORED_STYLE)
            line.append(" ")
            left = None if left is None else left - 1
        _close(line, document)
    return line


def _open(line: Text, document: InspectedDocument) -> None:
    line.append(BORDER, _BORDER_STYLE) if document.begins else line.append("… ", _CUT_STYLE)


def _close(line: Text, document: InspectedDocument) -> None:
    line.append(BORDER, _BORDER_STYLE) if document.ends else line.append(" …", _CUT_STYLE)


def _rest(line: Text, count: int, what: str) -> None:
    line.append(f" … {_counted(count, what)} more (--full shows all)", _CUT_STYLE)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _print_summary(console: Console, shown: InspectedStep) -> None:
    of = "" if len(shown.slots) == shown.slots_in_step else f" of {shown.slots_in_step}"
    table = Table(title=f"step {shown.step}: {len(shown.slots)}{of} slots", title_justify="left")
    table.add_column("family")
    table.add_column("slots", justify="right")
    table.add_column("sequences by language")
    for name in ("documents", "tokens", "predicted", "padding"):
        table.add_column(name, justify="right")
    families = Counter(slot.family for slot in shown.slots)
    for family, count in families.items():
        rows = list(_rows(shown, family))
        languages = Counter(row.language for row in rows)
        told = ", ".join(f"{code} {n}" for code, n in sorted(languages.items()))
        table.add_row(family, f"{count}", told, *_totals(rows))
    if len(families) > 1:
        table.add_section()
        rows = list(_rows(shown, None))
        codes = len({row.language for row in rows})
        told = f"{_counted(len(rows), 'sequence')} of {_counted(codes, 'language')}"
        table.add_row("all", f"{len(shown.slots)}", told, *_totals(rows), style="bold")
    console.print(table)


def _rows(shown: InspectedStep, family: str | None) -> Iterator[InspectedSequence]:
    for slot in shown.slots:
        if family is None or slot.family == family:
            yield from slot.sequences


def _totals(rows: list[InspectedSequence]) -> Iterator[str]:
    yield f"{sum(len(row.documents) for row in rows):,}"
    yield f"{sum(row.tokens for row in rows):,}"
    yield f"{sum(row.predicted for row in rows):,}"
    padding = sum(row.padding for row in rows)
    yield f"{padding:,}" if padding else "none"
