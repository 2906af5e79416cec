"""What does the user see of a long command? A live bar on a terminal, a line a stage elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def stage_progress(console: Console, title: str, total: int | None) -> Iterator["StageProgress"]:
    """A stage's bar; `total` is in bytes, None where nothing can be counted."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    if not console.is_terminal:
        say(console, f"{title} …")
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        yield StageProgress(progress, title, total)


class StageProgress:
    """Bytes done, and what is at work."""

    def __init__(self, progress: Progress, title: str, total: int | None) -> None:
        self._progress, self._title = progress, title
        self._task = progress.add_task(title, total=total)

    def label(self, what: str) -> None:
        """Names what is at work."""
        self._progress.update(self._task, description=f"{self._title} {what}")

    def advance(self, amount: int) -> None:
        """So many bytes more are done."""
        self._progress.advance(self._task, amount)


def say(console: Console, line: str) -> None:
    """Prints a line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
