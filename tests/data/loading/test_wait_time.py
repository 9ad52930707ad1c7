"""The limit of a run, from the clocks of the threads that read."""

import time

import pytest
import torch
from torch import Tensor

from vitrail.data.loading import wait_time
from vitrail.data.loading.loader import Loader
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.loading.wait_time import Adviser, Meter, Moment, Reading, Spent, advise
from vitrail.data.sources.memory import MemorySource
from vitrail.data.views.plan import RandomResizedCrop

CPU = torch.device("cpu")
BUSY = 10.0
SMALL = RandomResizedCrop(4, mean=(0.5,), std=(0.5,)).plan()


class Slow(MemorySource):
    """Grey images, each of which takes given seconds of waiting and of working to read."""

    def __init__(self, waiting: float = 0.0, working: float = 0.0):
        images = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
        super().__init__("slow", images, torch.zeros(64, dtype=torch.long), ["one"], None)
        self._costs = waiting, working

    def pixels(self) -> Tensor | None:
        return None

    def read(self, index, detail=None):
        waiting, working = self._costs
        time.sleep(waiting)
        stop = time.thread_time() + working
        while time.thread_time() < stop:
            pass
        return super().read(index, detail)


class Clock:
    """The clocks of the module, moved by hand: no test measures the processor."""

    def __init__(self):
        self.wall = self.running = 0.0

    def perf_counter(self) -> float:
        return self.wall

    def thread_time(self) -> float:
        return self.running

    def wait(self, seconds: float) -> None:
        self.wall += seconds

    def work(self, seconds: float) -> None:
        self.wall += seconds
        self.running += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(wait_time, "time", clock)
    monkeypatch.setattr(wait_time, "_in_line", lambda: 0.0)
    return clock


class Clocked(Slow):
    """The same images; the seconds pass on a clock that is moved by hand."""

    def __init__(self, clock: Clock, waiting: float, working: float):
        super().__init__(waiting, working)
        self._clock = clock

    def read(self, index, detail=None):
        self._clock.wait(self._costs[0])
        self._clock.work(self._costs[1])
        return MemorySource.read(self, index, detail)


def loader_of(source, workers: int) -> Loader:
    quarantine = Quarantine(None, len(source))
    return Loader(
        source, SMALL, batch_size=8, seed=0, device="cpu", workers=workers, quarantine=quarantine
    )


def of_steps(source, workers: int, step: float = 0.0, steps: int = 8) -> tuple[Spent, float]:
    """Returns the waits of steps of given seconds, but the first two, and their total seconds."""
    loader = loader_of(source, workers)
    start = 0.0
    for number, _ in enumerate(loader.steps(0, steps)):
        if number == 1:
            loader.meter.take()
            start = time.perf_counter()
        time.sleep(step)
    return loader.meter.take(), time.perf_counter() - start


@pytest.mark.parametrize(
    ("reading", "views", "limit"),
    [((0.01, 0.0), 0.05, "storage"), ((0.0, 0.01), 0.05, "decode"), ((0.0, 0.01), 0.09, "views")],
)
def test_the_limit_is_named(clock, monkeypatch, reading, views, limit):
    """Eight images a step are read in 0.08 s of a clock that only they and their views move."""
    add = Loader._add

    def slow_add(self, made, draws, images):
        with self.meter.views():
            clock.work(views)
        add(self, made, draws, images)

    monkeypatch.setattr(Loader, "_add", slow_add)
    loader = loader_of(Clocked(clock, *reading), workers=0)
    for _ in loader.steps(0, 5):
        pass
    spent = loader.meter.take()
    waiting, working = (5 * 8 * seconds for seconds in reading)
    assert (spent.storage, spent.decode) == pytest.approx((waiting, working), abs=1e-9)
    assert (spent.waited, spent.views) == pytest.approx((0.4, 5 * views))
    assert spent.stalled == pytest.approx(spent.waited + spent.views)
    assert spent.limit(clock.wall) == limit


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("costs", [(0.002, 0.0), (0.0, 0.002)])
def test_the_seconds_of_every_reader_arrive(workers, costs):
    """Real clocks are at least as long as the readers sleep and work; only that is promised."""
    spent, _ = of_steps(Slow(*costs), workers)
    assert spent.storage >= 0.99 * 6 * 8 * costs[0]
    assert spent.decode >= 0.99 * 6 * 8 * costs[1]


@pytest.mark.parametrize("costs", [(0.002, 0.0), (0.0, 0.001)])
def test_nothing_is_waited_for_where_the_step_is_slower(costs):
    """A busy machine may make one try wait, but not every one."""

    def waits(workers: int) -> bool:
        spent, busy = of_steps(Slow(*costs), workers, step=0.06)
        return spent.waited > 0.1 * busy

    assert not all(waits(2) for _ in range(5))


def test_of_a_source_in_memory_only_views_take_time():
    images, labels = torch.zeros(64, 1, 8, 8, dtype=torch.uint8), torch.zeros(64, dtype=torch.long)
    source = MemorySource("here", images, labels, ["one"], None)
    spent, _ = of_steps(source, 2)
    assert (spent.waited, spent.decode, spent.storage) == (0, 0, 0)
    assert 0 < spent.views <= spent.stalled
    assert spent.limit(spent.stalled) == "views"


def test_a_thread_that_sleeps_waits_and_one_that_counts_runs():
    start = Moment.now()
    time.sleep(0.05)
    assert start.since().storage >= 0.045
    start = Moment.now()
    while time.thread_time() < start.running + 0.05:
        pass
    assert start.since().decode >= 0.045


def test_the_seconds_on_a_core_or_queueing_for_one_are_decoding(clock, monkeypatch):
    start = Moment.now()
    clock.wait(3.0)
    clock.work(2.0)
    assert start.since() == Reading(decode=2.0, storage=3.0)
    monkeypatch.setattr(wait_time, "_in_line", lambda: 1.0)
    assert start.since() == Reading(decode=3.0, storage=2.0)


@pytest.mark.parametrize(
    ("spent", "limit"),
    [
        (Spent(stalled=0.9, waited=0.9, decode=9.0), None),  # below a tenth
        (Spent(stalled=1.1, waited=0.2, views=0.9, decode=9.0), "views"),
        (Spent(stalled=1.1, waited=0.9, views=0.2, decode=5.0, storage=4.0), "decode"),
        (Spent(stalled=1.1, waited=0.9, views=0.2, decode=4.0, storage=5.0), "storage"),
    ],
)
def test_limits(spent, limit):
    assert spent.limit(BUSY) == limit


def test_a_meter_is_emptied():
    meter = Meter(CPU)
    meter.read(Reading(decode=1.0, storage=2.0))
    meter.read(Reading(decode=0.5, storage=0.0))
    with meter.stalled(), meter.views():
        time.sleep(0.002)
    spent = meter.take()
    assert (spent.decode, spent.storage, spent.waited) == (1.5, 2.0, 0.0)
    assert spent.stalled >= spent.views >= 0.002
    assert meter.take() == Spent()


def test_advice_is_given_once_and_not_on_the_first_steps():
    adviser = Adviser(CPU, workers=3)
    slow = Spent(stalled=3.0, waited=3.0, storage=9.0)
    assert adviser.after(wait_time.UNTYPICAL_STEPS, 50.0, slow) is None
    assert adviser.after(1, 6.0, slow) is None, "too short to know"
    advice = adviser.after(1, 6.0, slow)
    assert advice.startswith("note: 50% of a step is waiting for data, limited by storage: ")
    assert "--workers (now 3)" in advice
    assert "vitrail pack" in advice
    assert adviser.after(1, 6.0, slow) is None


def test_no_advice_where_nothing_is_waited_for():
    adviser = Adviser(CPU, workers=3)
    assert all(adviser.after(100, 50.0, Spent(stalled=2.0, waited=2.0)) is None for _ in range(5))


def test_more_workers_are_advised_while_cores_are_free(monkeypatch):
    monkeypatch.setattr(wait_time, "_cores", lambda: 4)
    assert "more --workers (now 2; this machine has 4 cores)" in advise("decode", False, 2)
    assert "more --workers" not in advise("decode", False, 3)
    assert "vitrail pack" in advise("decode", False, 3)
    assert "GPU" in advise("views", False, 2)
    assert "GPU" not in advise("views", True, 2)


def test_without_the_system_s_word_on_it_waiting_for_a_core_is_not_counted(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(wait_time, "open", missing, raising=False)
    assert Moment.now().in_line == 0.0
