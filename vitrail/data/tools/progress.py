"""The progress of a pass over images: a bar on a terminal, else a line now and then."""

import time
from types import TracebackType

from rich import progress as rich_progress
from rich.console import Console

PLAIN_SECONDS = 10.0  # between two lines, without a terminal
MB = 10**6


def bar(console: Console, *before: rich_progress.ProgressColumn) -> rich_progress.Progress:
    """Returns a bar with the number done, the total, a `status` and the time left.

    Args:
        console: where it is drawn; without a terminal nothing is.
        before: columns before the bar.
    """
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
    """Shows the progress of a pass over images on stderr, as a context manager.

    Args:
        name: of the pass.
        total: number of images.
        done: number of images that were done before.
    """

    def __init__(self, name: str, total: int, done: int = 0):
        self._name, self._total, self._first = name, total, done
        self._began = self._printed = time.monotonic()
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
        """Shows the state of the pass.

        Args:
            done: number of images done, bad ones included.
            bad: number of bad images.
            size: bytes written, if any.
        """
        now = time.monotonic()
        speed = (done - self._first) / max(now - self._began, 1e-3)
        parts = [f"{speed:.0f} images/s"]
        parts += [] if size is None else [f"{size / MB:,.1f} MB"]
        status = " · ".join(parts + ([f"{bad} bad"] if bad else []))
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, status=status)
        elif now - self._printed > PLAIN_SECONDS:
            self._printed = now
            line = f"{self._name} {done:,}/{self._total:,} {status}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
