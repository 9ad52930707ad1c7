"""Measures the time between the storage and a step, and gives advice if steps wait for data.

Reading code needs no instruments: the seconds in which a thread neither ran nor queued for a core
are those in which it waited for the storage.
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

REPORTED_SHARE = 0.1  # of a step spent waiting for data, above which there is advice

# First steps that are left out: workers start, and their first images have the latency of a chunk.
UNTYPICAL_STEPS = 10
TYPICAL_SECONDS = 10.0  # of steps before there is advice: a run that ends sooner needs none


class Reading(NamedTuple):
    """Seconds of reading some images.

    Attributes:
        decode: running, or queueing for a core.
        storage: the rest.
    """

    decode: float
    storage: float


class Moment(NamedTuple):
    """The clocks of this thread, in seconds.

    Attributes:
        wall: of the wall.
        running: on a core.
        in_line: queueing for a core; 0 if the system does not report it.
    """

    wall: float
    running: float
    in_line: float

    @classmethod
    def now(cls) -> "Moment":
        """Reads the clocks."""
        return cls(time.perf_counter(), time.thread_time(), _in_line())

    def since(self) -> Reading:
        """Returns how the thread has spent the time since this moment."""
        wall, running, in_line = (b - a for a, b in zip(self, Moment.now(), strict=True))
        storage = max(0.0, wall - running - in_line)
        return Reading(wall - storage, storage)


def _in_line() -> float:
    """Returns the seconds that this thread has queued for a core; 0 if that is not reported."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) * 1e-9
    except (OSError, ValueError, IndexError):
        return 0.0


@dataclass(frozen=True)
class Spent:
    """Seconds of some steps.

    Attributes:
        stalled: in which the device had no batch to go on with.
        waited: in which the main process waited for images to be read.
        views: of computing views, on CUDA beside the step.
        decode: of decoding, summed over all reading processes, so possibly more than has passed.
        storage: of waiting for the storage, summed likewise.
    """

    stalled: float = 0.0
    waited: float = 0.0
    views: float = 0.0
    decode: float = 0.0
    storage: float = 0.0

    def share(self, busy: float) -> float:
        """Returns the share of `busy` seconds in which the device had no batch, in [0, 1]."""
        return min(1.0, self.stalled / busy) if busy > 0 else 0.0

    def limit(self, busy: float) -> Limit | None:
        """Returns what made the steps wait, or None up to REPORTED_SHARE of `busy` seconds.

        If images were read in time, only their views remain. If they were not, the limit is the
        part of reading that took longer.
        """
        if self.share(busy) <= REPORTED_SHARE:
            return None
        if self.waited < self.stalled / 2:
            return "views"
        return "storage" if self.storage > self.decode else "decode"

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


Event = torch.cuda.Event


class Meter:
    """Measures the loader for the log; on CUDA by events, which the host does not wait for.

    Args:
        device: of the steps.
        workers: number of processes that read.
    """

    def __init__(self, device: torch.device, workers: int = 0):
        self.workers = workers
        self._device = device
        self._seconds = {"stalled": 0.0, "waited": 0.0, "views": 0.0, "decode": 0.0, "storage": 0.0}
        self._pending: deque[tuple[str, Event, Event]] = deque()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Measures the time from a step's end to the next one's batch, on the device."""
        with self._on_device("stalled"):
            yield

    @contextmanager
    def views(self) -> Iterator[None]:
        """Measures the computing of views, on the device."""
        with self._on_device("views"):
            yield

    @contextmanager
    def waited(self) -> Iterator[None]:
        """Measures the wait for the next images."""
        start = time.perf_counter()
        yield
        self._seconds["waited"] += time.perf_counter() - start

    def read(self, reading: Reading) -> None:
        """Adds the seconds of reading some images."""
        self._seconds["decode"] += reading.decode
        self._seconds["storage"] += reading.storage

    def take(self) -> Spent:
        """Returns the seconds measured since the last call."""
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
    """Advises once in a run how to make it faster, once enough is measured.

    Args:
        device: of the steps.
        workers: number of processes that read.
    """

    def __init__(self, device: torch.device, workers: int):
        self._device, self._workers = device, workers
        self._steps, self._busy, self._spent = 0, 0.0, Spent()
        self._done = False

    def after(self, steps: int, busy: float, spent: Spent) -> str | None:
        """Returns a line of advice, or None.

        Args:
            steps: number of steps since the last call.
            busy: their seconds.
            spent: how these were spent.
        """
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
    """Returns what to change; `workers` processes read, or the main one if that is 0."""
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
