"""Where the time goes between the storage and a step, and what to do where a step waits for it.

What reads needs no instruments: the seconds in which a thread neither ran nor stood in line for a
core are those in which it waited for the storage.
"""

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Literal, NamedTuple

import torch

Limit = Literal["decode", "views", "storage"]

WORTH_TELLING = 0.1  # of a step, waiting for data

# Steps that no advice is taken from: workers start, and their first images come with the latency
# of a whole chunk. And the seconds of steps that it is taken from: one that ends sooner needs none.
UNTYPICAL_STEPS = 10
TYPICAL_SECONDS = 10.0


class Reading(NamedTuple):
    """Seconds of reading some images. decode: running, or in line for a core. storage: the rest."""

    decode: float
    storage: float


class Moment(NamedTuple):
    """The clocks of this thread, in seconds: of the wall, of running, and of waiting for a core."""

    wall: float
    running: float
    in_line: float

    @classmethod
    def now(cls) -> "Moment":
        return cls(time.perf_counter(), time.thread_time(), _in_line())

    def since(self) -> Reading:
        """What the thread has done since then."""
        wall, running, in_line = (b - a for a, b in zip(self, Moment.now(), strict=True))
        storage = max(0.0, wall - running - in_line)
        return Reading(wall - storage, storage)


def _in_line() -> float:
    """Seconds that this thread could have run and had no core. 0 where the system does not say."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) * 1e-9
    except (OSError, ValueError, IndexError):
        return 0.0


@dataclass(frozen=True)
class Spent:
    """Seconds of some steps.

    stalled: the device had no batch to go on with. waited: of the main process, for images to be
    read. views: to compute them, beside the step on CUDA. decode, storage: of all processes that
    read, which may well be more than has passed.
    """

    stalled: float = 0.0
    waited: float = 0.0
    views: float = 0.0
    decode: float = 0.0
    storage: float = 0.0

    def share(self, busy: float) -> float:
        """Of so many seconds, the share in which the device had no batch, in [0, 1]."""
        return min(1.0, self.stalled / busy) if busy > 0 else 0.0

    def limit(self, busy: float) -> Limit | None:
        """What made the steps wait, where that is more than WORTH_TELLING of `busy` seconds.

        Images that were read in time leave only their views. Of those that were not, whatever took
        those who read longer is the limit.
        """
        if self.share(busy) <= WORTH_TELLING:
            return None
        if self.waited < self.stalled / 2:
            return "views"
        return "storage" if self.storage > self.decode else "decode"

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


Event = torch.cuda.Event


class Meter:
    """What the loader measures and the journal reads. On CUDA by events, which nobody waits for."""

    def __init__(self, device: torch.device, workers: int = 0):
        self.workers = workers
        self._device = device
        self._seconds = {"stalled": 0.0, "waited": 0.0, "views": 0.0, "decode": 0.0, "storage": 0.0}
        self._pending: deque[tuple[str, Event, Event]] = deque()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """From a step's end to the next one's batch, as the device sees it."""
        with self._on_device("stalled"):
            yield

    @contextmanager
    def views(self) -> Iterator[None]:
        with self._on_device("views"):
            yield

    @contextmanager
    def waited(self) -> Iterator[None]:
        """Until the next images are there."""
        start = time.perf_counter()
        yield
        self._seconds["waited"] += time.perf_counter() - start

    def read(self, reading: Reading) -> None:
        self._seconds["decode"] += reading.decode
        self._seconds["storage"] += reading.storage

    def take(self) -> Spent:
        """What came together since the last time."""
        self._collect()
        spent = Spent(**self._seconds)
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return spent

    @contextmanager
    def _on_device(self, what: str) -> Iterator[None]:
        if self._device.type != "cuda":
            start = time.perf_counter()
            yield
            self._seconds[what] += time.perf_counter() - start
            return
        self._collect()
        start_event, end_event = Event(enable_timing=True), Event(enable_timing=True)
        start_event.record(torch.cuda.current_stream(self._device))
        yield
        end_event.record(torch.cuda.current_stream(self._device))
        self._pending.append((what, start_event, end_event))

    def _collect(self) -> None:
        """Reads the events that the device has passed."""
        while self._pending and self._pending[0][2].query():
            what, start, end = self._pending.popleft()
            self._seconds[what] += start.elapsed_time(end) / 1000


class Adviser:
    """Says once in a run what would make it faster, when that is known well enough."""

    def __init__(self, device: torch.device, workers: int):
        self._device, self._workers = device, workers
        self._steps, self._busy, self._spent = 0, 0.0, Spent()
        self._done = False

    def after(self, steps: int, busy: float, spent: Spent) -> str | None:
        """Args: the steps taken since the last call, their seconds, and what those went into."""
        self._steps += steps
        if self._done or self._steps <= UNTYPICAL_STEPS:
            return None
        self._busy, self._spent = self._busy + busy, self._spent + spent
        limit = self._spent.limit(self._busy)
        if limit is None or self._busy < TYPICAL_SECONDS:
            return None
        self._done = True
        share = self._spent.share(self._busy)
        advice = advise(limit, self._device.type == "cuda", self._workers)
        return f"note: {share:.0%} of a step is waiting for data, limited by {limit}: {advice}"


def advise(limit: Limit, on_cuda: bool, workers: int) -> str:
    """What to change. `workers` processes read, or the main one where there are none."""
    if limit == "views":
        return "use fewer or smaller views" + ("" if on_cuda else ", more cores, or a GPU")
    if limit == "storage":
        return (
            f"more --workers (now {workers}) wait at the same time; `vitrail pack` makes the "
            "images few large files; or bring them nearer"
        )
    free = _cores() - 1 - workers
    if free > 0:
        return f"use more --workers (now {workers}; this machine has {_cores()} cores)"
    return "`vitrail pack` makes the images smaller, once and for all; or use more cores"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
