"""Signals: a run saves and stops, other commands stop, a second signal ends the process."""

import multiprocessing
import os
import random
import signal
import time

import pytest

from benchmarks import signals as campaign
from tests.cli import shell
from tests.cli.shell import make_photos, pretrain
from tests.cli.test_stops import checkpoints, interrupt_when
from vitrail import signals
from vitrail.backbones.skeleton import SkeletonBackbone

_RGB = "--channels 3 --objective.views.mean .5 .5 .5 --objective.views.std .3 .3 .3"
RGB = _RGB.split()


def test_a_stopped_worker_does_not_keep_a_run_from_saving(tmp_path):
    run, photos = tmp_path / "run", make_photos(tmp_path / "photos")

    def stopped() -> bool:
        taken = (run / "metrics.jsonl").exists() and shell.read_lines(run / "metrics.jsonl")
        children = multiprocessing.active_children()
        if not taken or not children:
            return False
        for child in children:
            os.kill(child.pid, signal.SIGSTOP)
        time.sleep(0.5)  # the step ends, and the next batch is awaited
        return True

    thread = interrupt_when(stopped, signal.SIGTERM)
    words = ["--data", f"folder:{photos}", *RGB, "--workers", 1, "--checkpoint-every", 10**6]
    code, _, err = pretrain(run, *words, "--steps", 100_000)
    thread.join()
    assert code == 0, err
    [saved] = checkpoints(run)
    taken = int(saved.removeprefix("step-"))
    assert f"stopped; {taken} of 100000 steps are saved" in err
    assert len(shell.read_lines(run / "metrics.jsonl")) == taken
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_first_step_stops_at_once(tmp_path, monkeypatch, number):
    forward = SkeletonBackbone.encode
    calls = []

    def slow(self, *arguments):
        calls.append(time.monotonic())
        if len(calls) == 1:
            os.kill(os.getpid(), number)
        return forward(self, *arguments)

    monkeypatch.setattr(SkeletonBackbone, "encode", slow)
    code, _, err = pretrain(tmp_path / "run", "--steps", 3)
    assert code == 128 + number
    assert len(calls) == 1
    assert "stopped before a step was taken" in err
    assert "Traceback" not in err
    assert checkpoints(tmp_path / "run") == []
    monkeypatch.undo()
    assert shell.vitrail("resume", tmp_path / "run").code == 0


def test_nothing_is_raised_within_a_hold():
    done = []

    def signalled() -> None:
        with signals.watching(), signals.hold():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(1)

    with pytest.raises(signals.Interrupted):
        signalled()
    assert done == [1]
    assert not signals.stopping()


def test_a_second_signal_in_a_library_interrupts_what_saves():
    came = []

    def signalled() -> None:
        with signals.watching() as watch:
            watch.save_first()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
                os.kill(os.getpid(), number)
                came.append(number)

    with pytest.raises(signals.Interrupted):
        signalled()
    assert came == [signal.SIGTERM]


def test_torchrun_passes_on_a_signal_that_came_already(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with signals.watching() as watch:
        watch.save_first()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.first == signal.SIGINT


def test_handlers_are_those_of_before_at_the_end():
    before = [signal.getsignal(number) for number in signals.NUMBERS]
    with signals.watching(), signals.watching():
        assert [signal.getsignal(number) for number in signals.NUMBERS] != before
    assert [signal.getsignal(number) for number in signals.NUMBERS] == before


QUICK = ("pretrain", "stats", "pack")


def test_a_campaign_of_signals(tmp_path, slow):
    seconds = campaign.prepare(tmp_path, () if slow else QUICK)
    randomness = random.Random(12)
    wrong = []
    for i in range(220 if slow else 8):
        trial = campaign.draw(seconds, randomness)
        out = tmp_path / str(i)
        out.mkdir()
        _, complaint = campaign.attempt(trial, tmp_path, out)
        if complaint:
            wrong.append(f"{trial}: {complaint}")
    assert not wrong
