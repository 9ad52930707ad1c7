"""How far a pass over images is, for the person watching: a bar, or lines where there is none."""

import time
from types import TracebackType

from rich import progress as rich_progress
from rich.console import Console

PLAIN_SECONDS = 10.0  # between two lines where there is no terminal
MB = 10**6


def bar(console: Console, *before: rich_progress.ProgressColumn) -> rich_progress.Progress:
    """How much is done, of how much, a `status`, and the time left; nothing without a terminal."""
    return rich_progress.Progress(
        *before,
        rich_progress.BarColumn(bar_width=24),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[status]}"),
        rich_progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class Progress:
    """Args: name: of the pass. total: images. done: those that were done before."""

    def __init__(self, name: str, total: int, done: int = 0):
        self._name, self._total, self._first = name, total, done
        self._began = self._spoken = time.monotonic()
        self._console = Console(stderr=True)
        self._bar = bar(self._console, rich_progress.TextColumn("{task.description}"))
        self._task = self._bar.add_task(name, total=total, completed=done, status="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def at(self, done: int, bad: int, size: int | None = None) -> None:
        """done: images. bad: of them. size: bytes written, where anything is."""
        now = time.monotonic()
        speed = (done - self._first) / max(now - self._began, 1e-3)
        parts = [f"{speed:.0f} images/s"]
        parts += [] if size is None else [f"{size / MB:,.1f} MB"]
        status = " · ".join(parts + ([f"{bad} bad"] if bad else []))
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, status=status)
        elif now - self._spoken > PLAIN_SECONDS:
            self._spoken = now
            line = f"{self._name} {done:,}/{self._total:,} {status}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
