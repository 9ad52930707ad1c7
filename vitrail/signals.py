"""Signals: how a process ends when SIGINT or SIGTERM comes, at whatever moment.

The first signal lets a run that has taken a step finish what it does and save. Where there is
nothing to save, it raises `Interrupted` in the main thread, which unwinds at once. A second signal
ends the process now. A thread sees to that, since Python delivers signals to the main thread only,
and only between two of its instructions: a backward pass is one of them.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

from vitrail.atomic import remove_temporaries

T = TypeVar("T")

NUMBERS = (signal.SIGINT, signal.SIGTERM)

# Seconds that the main thread has to unwind after a first signal, when there is nothing to save.
PATIENCE = 5.0

# Seconds in which torchrun passes on a signal that the terminal has sent to every process already.
PASSED_ON = 5.0

SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


class Interrupted(KeyboardInterrupt):
    """A signal ends what the main thread does; nothing of it has to be saved."""


class Watch:
    """Handles the signals of this process.

    Attributes:
        first: number of the first signal; None before it.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self._came = 0.0
        self._saves = False  # what the main thread does ends by itself, with all of it saved
        self._gives_up = False  # but this part of it can be given up
        self._held = 0
        self._raise_later = False

    @property
    def stopping(self) -> bool:
        """Whether a signal has come."""
        return self.first is not None

    def save_first(self) -> None:
        """From here on the caller checks `stopping`, saves and ends when the first signal comes."""
        self._saves = True

    def until_stopped(self, items: Iterable[T], alone: bool) -> Iterator[T]:
        """Yields the items; after `save_first`, a signal while one is awaited ends the iteration.

        Args:
            items: the items, each of which may take for ever.
            alone: whether no other process waits for what is done with the next item.
        """
        iterator = iter(items)
        while True:
            self._gives_up = alone
            try:
                if alone and self._saves and self.stopping:
                    return
                item = next(iterator)
            except StopIteration:
                return
            except Interrupted:
                if not self._saves:
                    raise
                return
            finally:
                self._gives_up = False
            yield item

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Raises nothing within, but at the end, if a signal has come meanwhile."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self._raise_later and not self._held:
            self._raise_later = False
            raise Interrupted

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal in the main thread.

        Raises:
            Interrupted: unless what it does is saved first.
        """
        again = self.first is not None
        if again and self.is_passed_on():
            return
        if not again:
            self.first, self._came = number, time.monotonic()
        if self._saves and not self._gives_up and not again:
            return
        if self._held:
            self._raise_later = True
            return
        raise Interrupted

    def is_passed_on(self) -> bool:
        """Returns whether a signal of this moment is the first one, passed on by torchrun."""
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        return several and time.monotonic() - self._came < PASSED_ON

    @property
    def ends_by_itself(self) -> bool:
        """Whether the main thread saves, and ends, without being interrupted."""
        return self._saves


_current: Watch | None = None


def stopping() -> bool:
    """Returns whether a signal has come that ends what this process does."""
    return _current is not None and _current.stopping


@contextmanager
def hold() -> Iterator[None]:
    """Keeps `Interrupted` from being raised within; it is raised at the end.

    For a few lines that leave a process or a file behind if they are done by half.
    """
    if _current is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    with _current.hold():
        yield


@contextmanager
def watching(whole_process: bool = False) -> Iterator[Watch]:
    """Handles SIGINT and SIGTERM within; inside another `watching`, that one goes on.

    Args:
        whole_process: the process has no other purpose. A second signal then ends it whatever the
            main thread does, and at the end of the block signals get their default action.
    """
    global _current
    if _current is not None:
        yield _current
        return
    watch = Watch()
    if threading.current_thread() is not threading.main_thread():
        yield watch  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, watch.on_signal) for number in NUMBERS}
    _current = watch
    try:
        if whole_process:
            with _second_signal_ends(watch):
                yield watch
        else:
            yield watch
    finally:
        _current = None
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if whole_process else handler)


@contextmanager
def _second_signal_ends(watch: Watch) -> Iterator[None]:
    """Starts a thread that sees every signal as it comes, and ends the process at the second."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=_see, args=(reading, watch), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)


def _see(reading: int, watch: Watch) -> None:
    count = 0
    while number := os.read(reading, 1):
        if number[0] not in NUMBERS:
            continue
        count += 1
        if count == 1:
            sys.unraisablehook = lambda _: None  # an interrupted __del__ is no news
            if not watch.ends_by_itself:
                end = threading.Timer(PATIENCE, _end_now, (number[0],))
                end.daemon = True
                end.start()
        elif not watch.is_passed_on():
            _end_now(number[0])
    os.close(reading)


def _end_now(number: int) -> None:
    """Ends the process. Its workers are killed by the system, or find that it is gone."""
    remove_temporaries()
    if os.isatty(2):
        with suppress(OSError):
            os.write(2, SHOW_CURSOR)
    os._exit(128 + number)
