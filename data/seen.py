"""What had a run read by a step? Answered by arithmetic, without training or reading shards."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from .errors import DataError
from .manifest import Manifest
from .order import Order, SequenceId
from .stream import Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the steps before a step read of one source."""

    source: str
    """The source's name."""
    language: str
    """The language it counts for."""
    sequences: int
    """Sequences read, repeats included."""
    tokens: int
    """Tokens read, repeats included."""
    text_bytes: float
    """UTF-8 bytes of text read: exact for whole epochs, the source's mean for a part of one."""
    epochs: int
    """Whole epochs."""
    share_of_epoch: float
    """Part of the epoch under way."""


def seen(order: Order, manifest: Manifest, step: int) -> list[Seen]:
    """What the steps before `step` read, of every source that the ledger knows.

    Raises:
        DataError: a step below 0.
    """
    check_step(step)
    T = order.ledger.sequence_length
    cursors = order.cursors(step)
    known = {name for e in order.ledger.entries for of in e.sources.values() for name in of}
    rows = []
    for name, source in sorted(manifest.sources.items()):
        if name not in known:
            continue
        tokens = cursors.get(name, 0) * T
        epoch, index = order.position_of(step, name) if order.epoch_length[name] else (0, 0)
        rows.append(
            Seen(
                source=name,
                language=source.language,
                sequences=cursors.get(name, 0),
                tokens=tokens,
                text_bytes=tokens * source.shards.text_bytes / max(1, source.shards.tokens),
                epochs=epoch,
                share_of_epoch=index / max(1, order.epoch_length[name]),
            )
        )
    return rows


def ids_of(order: Order, source: str, first_step: int, last_step: int) -> Iterator[SequenceId]:
    """The sequences of a source that steps [first_step, last_step) read, in order."""
    for step in range(first_step, last_step):
        for slot in order.step(step):
            yield from (s for s in slot.sequences if s.source == source)


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSeen:
    """How often a document had been read."""

    source: str
    """The source that holds it."""
    sequences: int
    """Sequences that hold a part of it."""
    times: tuple[int, ...]
    """How often each of them was read."""


def document_seen(stream: Stream, step: int, document: str) -> list[DocumentSeen]:
    """How often the steps before `step` read a document, in every source that holds its id.

    Raises:
        DataError: no training source holds it.
    """
    check_step(step)
    order = stream.order
    T = order.ledger.sequence_length
    found = []
    for name, line in sorted(stream.lines.items()):
        ids = line.document_ids()
        bounds = line.document_bounds()
        for number in [n for n, each in enumerate(ids) if each == document]:
            first, stop = int(bounds[number]), int(bounds[number + 1])
            positions = range(first // T, min(order.epoch_length[name], -(-stop // T)))
            times = tuple(order.times_read(step, name, position) for position in positions)
            found.append(DocumentSeen(source=name, sequences=len(times), times=times))
    if not found:
        raise DataError(
            f"--document={document}: no training source holds that id; it may be held out, or "
            "written in another way"
        )
    return found


def print_document(console: Console, step: int, document: str, found: list[DocumentSeen]) -> None:
    """How often a document was read, one line a source."""
    for each in found:
        least, most = min(each.times, default=0), max(each.times, default=0)
        told = f"{least} times" if least == most else f"{least} to {most} times"
        parts = f"{each.sequences} sequence{'' if each.sequences == 1 else 's'}"
        console.print(
            f"{document} in {each.source}: read {told} before step {step:,} (it lies in {parts})",
            markup=False,
            highlight=False,
        )


def check_step(step: int) -> None:
    """Raises DataError for a step below 0."""
    if step < 0:
        raise DataError(f"--seen={step}: steps are counted from 0")


def print_seen(console: Console, step: int, rows: list[Seen]) -> None:
    """What was read, as a table."""
    table = Table(title=f"read before step {step:,}", title_justify="left")
    table.add_column("source")
    table.add_column("language")
    for name in ("sequences", "tokens", "text MB", "epochs"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.source,
            row.language,
            f"{row.sequences:,}",
            f"{row.tokens:,}",
            f"{row.text_bytes / 1e6:,.2f}",
            f"{row.epochs + row.share_of_epoch:.3f}",
        )
    table.add_section()
    table.add_row(
        "all",
        f"{len({row.language for row in rows})}",
        f"{sum(row.sequences for row in rows):,}",
        f"{sum(row.tokens for row in rows):,}",
        f"{sum(row.text_bytes for row in rows) / 1e6:,.2f}",
        "",
        style="bold",
    )
    console.print(table)
