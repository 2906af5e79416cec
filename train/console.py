"""What commands say to people: plain lines on standard output, progress on standard error."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

OUT = Console(soft_wrap=True, highlight=False)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)

LINE_SECONDS = 5.0
"""Seconds between progress lines where standard error is no terminal."""


def say(line: str) -> None:
    """One line on standard output, at once."""
    print(line, flush=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error, or a line now and then where that is no terminal.

    Yields:
        What to call when one of the `total` parts is done.
    """
    if ERR.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        with Progress(*columns, TimeRemainingColumn(), console=ERR) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)
        return
    done, spoken = 0, time.monotonic()
    ERR.print(f"{title}: {total} to do")

    def advance() -> None:
        nonlocal done, spoken
        done += 1
        if time.monotonic() - spoken > LINE_SECONDS:
            spoken = time.monotonic()
            ERR.print(f"{title}: {done} of {total}")

    yield advance
