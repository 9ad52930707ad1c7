"""A killed and resumed run ends with the very bits of one that was not."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.processes import child, finish
from tests.train import runs


@pytest.fixture(scope="module", params=["simdino", "dino"])
def whole(request, tmp_path_factory):
    """An uninterrupted run: its objective, folder and duration in seconds."""
    out = tmp_path_factory.mktemp("whole") / request.param
    began = time.monotonic()
    assert finish(runs.pretrain, request.param, str(out), {}) == 0
    return request.param, out, time.monotonic() - began


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]


def assert_same_run(run: Path, other: Path) -> None:
    a, b = runs.final_state(run), runs.final_state(other)
    runs.assert_equal_bits(a, b)
    assert losses(run) == losses(other)
    weights = [(r / "encoder.safetensors").read_bytes() for r in (run, other)]
    assert weights[0] == weights[1]


def resume_to_the_end(objective: str, run: Path) -> None:
    if not (run / "config.json").exists():
        assert finish(runs.pretrain, objective, str(run), {}) == 0
    else:
        assert finish(runs.resume, str(run)) == 0


def test_killed_at_random_moments(whole, tmp_path, slow):
    objective, reference, seconds = whole
    when = random.Random(0)
    for i in range(12 if slow else 3):
        run = tmp_path / str(i)
        process = child(runs.pretrain, objective, str(run), {})
        time.sleep(when.uniform(0.2, 1.0) * seconds)
        process.kill()
        process.join()
        resume_to_the_end(objective, run)
        assert_same_run(run, reference)


# A checkpoint makes: three fsyncs, a rename, an fsync; the encoder and config.json make some too.
# Of a run's calls, the first six fsync and three replace are of files beside its checkpoints.
POINTS = [("fsync", n) for n in (1, 2, 5, 6, 8, 9, 10, 11, 12, 13, 15, 18)] + [
    ("replace", n) for n in (1, 2, 4, 5, 7)
]
QUICK = [("fsync", 8), ("fsync", 9), ("fsync", 12), ("replace", 4)]


def test_killed_inside_a_write(whole, tmp_path, slow):
    objective, reference, _ = whole
    killed = 0
    for call, count in POINTS if slow else QUICK:
        run = tmp_path / f"{call}{count}"
        code = finish(runs.die_at, call, count, runs.pretrain, objective, str(run), {})
        killed += code == -signal.SIGKILL
        resume_to_the_end(objective, run)
        assert_same_run(run, reference)
    assert killed >= len(QUICK) - 1


def test_killed_again_and_again(whole, tmp_path):
    objective, reference, _ = whole
    run = tmp_path / "run"
    finish(runs.die_at, "fsync", 13, runs.pretrain, objective, str(run), {})
    finish(runs.die_at, "fsync", 3, runs.resume, str(run))
    finish(runs.die_at, "fsync", 6, runs.resume, str(run))
    resume_to_the_end(objective, run)
    assert_same_run(run, reference)


def test_sigterm_saves_and_exits_with_0(whole, tmp_path):
    objective, reference, _ = whole
    run = tmp_path / "run"
    # Checkpoints only at the end: what is saved before was saved because of the signal.
    process = child(runs.pretrain, objective, str(run), {"checkpoint_every": 1000})
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.is_alive()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 0
    saved = list((run / "checkpoints").glob("step-*"))
    assert len(saved) == 1
    resume_to_the_end(objective, run)
    a, b = runs.final_state(run), runs.final_state(reference)
    assert a["config"].pop("checkpoint_every") != b["config"].pop("checkpoint_every")
    runs.assert_equal_bits(a, b)


def test_a_damaged_newest_checkpoint_costs_time_only(whole, tmp_path):
    objective, reference, _ = whole
    run = tmp_path / "run"
    finish(runs.die_at, "fsync", 20, runs.pretrain, objective, str(run), {})
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    (newest / "state.pt").write_bytes(b"not what was written")
    resume_to_the_end(objective, run)
    assert_same_run(run, reference)
