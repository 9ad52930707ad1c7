"""A disk that fills up stops a run with a message, and costs it nothing that was saved."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import shell
from tests.cli.shell import pretrain, vitrail

STEPS = 8
CHANGES = ["--steps", STEPS, "--checkpoint-every", 2, "--health-every", 1]


def needs(run: Path) -> int:
    return sum(path.stat().st_size for path in run.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on a disk with room."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain(run, *CHANGES).code == 0
    return run


@pytest.fixture
def disk(tmp_path: Path, whole: Path) -> Iterator[Path]:
    """A small file system, with room for what the run ends with and one more checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    room = f"size={needs(whole) * 2}"
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", room, "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounting.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounting.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Writes a file that leaves so many bytes free, in whole pages."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    free = shutil.disk_usage(disk).free
    with open(ballast, "wb") as file:
        file.write(bytes(max(0, free - leave)))
    return ballast


def assert_stopped_full(outcome: shell.Outcome, run: Path) -> None:
    assert outcome.code == 1, outcome
    *_, error, note = outcome.err.splitlines()
    assert error.startswith("vitrail: error: "), outcome.err
    assert "No space left on device" in error
    assert "The disk is full: make room" in note
    assert f"vitrail resume {run}" in note
    assert "Traceback" not in outcome.err


def assert_same_end(run: Path, whole: Path) -> None:
    weights = [(r / "encoder.safetensors").read_bytes() for r in (run, whole)]
    assert weights[0] == weights[1]
    losses = [[row["loss"] for row in shell.read_lines(r / "metrics.jsonl")] for r in (run, whole)]
    assert losses[0] == losses[1]


# Bytes left free: from nothing, over the first lines of metrics, into one or two checkpoints.
@pytest.mark.parametrize("share", [0.02, 0.2, 0.45, 0.7, 0.9])
def test_a_disk_that_fills_up(disk, whole, share):
    run = disk / "run"
    ballast = fill(disk, leave=int(share * needs(whole)))
    threads = threading.active_count()
    outcome = pretrain(run, *CHANGES)
    assert_stopped_full(outcome, run)
    kept = sorted(path.name for path in (run / "checkpoints").glob("*"))
    assert [name for name in kept if not name.startswith("step-")] == []
    note = outcome.err.splitlines()[-1]
    if kept:
        steps = int(kept[-1].removeprefix("step-"))
        assert f"Kept: {steps} of {STEPS} steps, in {run / 'checkpoints' / kept[-1]}" in note
    else:
        assert "No step was saved yet" in note
    assert threading.active_count() == threads

    assert_stopped_full(vitrail("resume", run), run)  # still full
    assert sorted(path.name for path in (run / "checkpoints").glob("*")) == kept
    ballast.unlink()
    assert vitrail("resume", run).code == 0
    assert_same_end(run, whole)


def test_a_disk_that_is_full_from_the_start_gets_no_run(disk):
    fill(disk, leave=0)
    outcome = pretrain(disk / "new" / "run", *CHANGES)
    shell.assert_refused(
        outcome, "cannot be written to (No space left on device)", "another folder"
    )
    assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_metrics_and_events_on_a_full_disk(monkeypatch, tmp_path, whole):
    """/dev/full takes no byte: the error is raised where it happens, and by no other thread."""
    monkeypatch.setattr(threading, "excepthook", lambda args: pytest.fail(str(args)))
    for name in ("metrics.jsonl", "tb"):
        run = tmp_path / name
        shutil.copytree(whole, run)
        shutil.rmtree(run / "checkpoints")
        shutil.rmtree(run / "tb")
        (run / "metrics.jsonl").unlink()
        if name == "tb":
            monkeypatch.setattr("vitrail.train.tensorboard.socket.gethostname", lambda: "host")
            monkeypatch.setattr("vitrail.train.tensorboard.time.time_ns", lambda: 1)
            (run / "tb").mkdir()
            event_file = f"events.out.tfevents.{1:020d}.host.{os.getpid()}"
            (run / "tb" / event_file).symlink_to("/dev/full")
        else:
            (run / name).symlink_to("/dev/full")
            monkeypatch.setattr("vitrail.train.log._cut", lambda path, start: None)
        assert_stopped_full(vitrail("resume", run), run)
