"""What commands say to people: plain lines on standard output, progress on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

OUT = Console(soft_wrap=True, highlight=False)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)


def say(line: str) -> None:
    """One line on standard output, at once."""
    print(line, flush=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on standard error; a title line where that is no terminal."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=ERR,
        disable=not ERR.is_terminal,
    )
    if not ERR.is_terminal:
        say(f"{title} ({total}) ...")
    with bar:
        yield bar, bar.add_task(title, total=total)
