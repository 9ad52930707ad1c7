"""How long a step waits for data, and for what: on the terminal, in metrics.jsonl."""

import json

import pytest
import torch

from vitrail.data.loading import wait_time as timing_module
from vitrail.data.loading.feed import Feed
from vitrail.data.loading.wait_time import Adviser, Meter, Reading, Spent
from vitrail.distributed.ranks import Ranks
from vitrail.train import log as log_module
from vitrail.train.log import Log

CPU = torch.device("cpu")
RANKS = Ranks(0, 0, 1, CPU)


class Images(Feed[None]):
    """A feed whose meter is driven by the test."""

    unit = "images"
    units_per_step = 8

    def __init__(self, meter: Meter):
        self.meter = meter
        self._adviser = Adviser(CPU, meter.workers)

    def batches(self, start, stop, order=None):
        raise AssertionError("the test makes its own batches")

    def advise(self, steps: int, busy: float, spent: Spent) -> str | None:
        return self._adviser.after(steps, busy, spent)


class Clock:
    """time.perf_counter and time.monotonic, moved by hand."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(log_module, "time", found)
    monkeypatch.setattr(timing_module, "time", found)
    return found


def steps(clock: Clock, meter: Meter, count: int, waited: float, views: float):
    """Batches that came late, each made of images that were slow to decode."""
    for _ in range(count):
        with meter.stalled():
            with meter.waited():
                clock.now += waited
            with meter.views():
                clock.now += views
            meter.read(Reading(decode=3 * waited, storage=waited))
        yield None


def rows_of(tmp_path, clock, step: float, **late: float) -> list[dict]:
    count = 40
    meter = Meter(CPU, workers=2)
    with Log(tmp_path, RANKS, 0, count, Images(meter)) as log:
        for number, _ in enumerate(log.timed(steps(clock, meter, count, **late))):
            clock.now += step
            log.record({"step": number}, {"loss": torch.tensor(1.0)})
            if number % 2:
                log.write(log.flush())
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_the_wait_is_a_share_of_the_step_and_its_cause_is_named_once(tmp_path, clock, capfd):
    rows = rows_of(tmp_path, clock, waited=0.3, views=0.1, step=0.6)
    assert [row["data_wait"] for row in rows] == pytest.approx([0.4] * 40)
    assert {row["limited_by"] for row in rows} == {"decode"}
    err = capfd.readouterr().err
    assert err.count("note: 40% of a step is waiting for data, limited by decode: ") == 1
    assert "40% waiting (decode)" in err


def test_views_are_told_from_reading(tmp_path, clock, capfd):
    rows = rows_of(tmp_path, clock, waited=0.0, views=0.3, step=0.7)
    assert {row["limited_by"] for row in rows} == {"views"}
    assert "limited by views" in capfd.readouterr().err


def test_a_run_that_hardly_waits_says_nothing(tmp_path, clock, capfd):
    rows = rows_of(tmp_path, clock, waited=0.01, views=0.02, step=0.97)
    assert not any("limited_by" in row for row in rows)
    assert "limited" not in capfd.readouterr().err
