"""A run that stops early says where, why and how to go on, and keeps what it has."""

import os
import signal
import threading
import time
from pathlib import Path

from tests.cli import shell
from tests.cli.shell import Outcome, assert_refused, pretrain, vitrail

EXPLODE = ["--optim.lr", "1e30", "--optim.warmup-epochs", 0, "--optim.clip", 0]  # is not per 256


def refusal(outcome: Outcome) -> Outcome:
    """Returns the outcome without the lines of the steps before."""
    return outcome._replace(err=outcome.err[outcome.err.index("vitrail: error") :])


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("*"))


def test_a_loss_that_is_not_finite(tmp_path):
    run = tmp_path / "run"
    outcome = pretrain(run, *EXPLODE, "--steps", 9, "--checkpoint-every", 1)
    assert outcome.code == 1
    words = ["not finite", "learning rate", "Try half the --optim.lr", "--optim.warmup-epochs"]
    saved = checkpoints(run)[-1]
    steps = int(saved.removeprefix("step-"))
    words += [f"step {steps}: ", f"Kept: {steps} of 9 steps", saved, "start a new run"]
    assert_refused(refusal(outcome), *words)
    *good, broken = shell.read_lines(run / "metrics.jsonl")  # the page shows where it stopped
    assert len(good) == steps
    assert broken["loss"] is None
    assert_refused(refusal(vitrail("resume", run)), *words)  # the same steps end the same way
    assert checkpoints(run)[-1] == saved


def test_not_finite_before_anything_was_saved(tmp_path):
    outcome = pretrain(tmp_path / "run", *EXPLODE, "--steps", 9, "--checkpoint-every", 9)
    assert_refused(refusal(outcome), "not finite", "No step was saved yet")


def interrupt_when(condition, number: int = signal.SIGINT) -> threading.Thread:
    def wait() -> None:
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_an_interrupt_saves_and_ends_well(tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    metrics = run / "metrics.jsonl"
    thread = interrupt_when(lambda: metrics.exists() and metrics.stat().st_size > 0)
    code, _, err = pretrain(run, "--steps", 24, "--checkpoint-every", 1000)
    thread.join()
    assert code == 0
    saved = int(checkpoints(run)[-1].removeprefix("step-"))
    assert 1 <= saved < 24
    assert f"stopped; {saved} of 24 steps are saved" in err
    assert f"vitrail resume {run}" in err
    assert len(shell.read_lines(metrics)) == saved

    assert vitrail("resume", run).code == 0
    assert pretrain(whole, "--steps", 24, "--checkpoint-every", 1000).code == 0
    weights = [(r / "encoder.safetensors").read_bytes() for r in (run, whole)]
    assert weights[0] == weights[1]


def test_an_interrupt_outside_the_loop_ends_without_a_traceback(tmp_path, monkeypatch):
    from vitrail import api

    def interrupted(*paths: Path, out: Path | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "report", interrupted)
    assert vitrail("report", tmp_path).code == 130
