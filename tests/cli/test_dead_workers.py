"""A process that reads dies: one plain sentence with the file, or the run goes on without it."""

import faulthandler
import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli import shell
from tests.cli.shell import assert_refused, make_photos, pretrain, vitrail
from vitrail.data.sources.formats.folder import FolderSource

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def killed_by(monkeypatch):
    """Makes the process that reads a file for the n-th time, or later, die by a signal."""
    read, here = FolderSource.read, os.getpid()

    def arm(number: int, by: int, name: str) -> None:
        def deadly(self, index, *detail):
            if self.id(index) == name and os.getpid() != here:
                faulthandler.disable()
                times = Path(self.spec.removeprefix("folder:") + ".times")
                times.write_text(times.read_text() + "." if times.exists() else ".")
                if times.stat().st_size >= number:
                    os.kill(os.getpid(), by)
                    time.sleep(10)
            return read(self, index, *detail)

        monkeypatch.setattr(FolderSource, "read", deadly)

    return arm


def test_a_killed_worker_stops_the_run_with_what_was_saved(tmp_path, killed_by):
    folder = make_photos(tmp_path / "photos")
    name = sorted(path.name for path in folder.iterdir())[3]
    killed_by(3, signal.SIGKILL, name)
    run = tmp_path / "run"
    arguments = ["--data", f"folder:{folder}", "--workers", 1, "--checkpoint-every", 1]
    outcome = pretrain(run, *arguments, "--steps", 20)
    error = outcome._replace(err=outcome.err[outcome.err.index("vitrail: error") :])
    words = ["a process that reads images died on signal 9 (Killed)", f'"{name}"', "--workers 0"]
    assert_refused(error, *words, "Kept: ", "go on with `vitrail resume")
    assert not (run / "quarantine.jsonl").exists()
    killed_by(10**9, signal.SIGKILL, name)  # there is memory again
    assert vitrail("resume", run).code == 0
    assert [row["step"] for row in shell.read_lines(run / "metrics.jsonl")] == list(range(20))


def test_a_crashing_file_is_left_out_and_the_run_ends_well(tmp_path, killed_by):
    folder = make_photos(tmp_path / "photos")
    name = sorted(path.name for path in folder.iterdir())[3]
    killed_by(1, signal.SIGSEGV, name)
    run = tmp_path / "run"
    arguments = ["--data", f"folder:{folder}", "--workers", 1, "--steps", 6]
    assert pretrain(run, *arguments).code == 0
    assert len(shell.read_lines(run / "metrics.jsonl")) == 6
    [entry] = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
    assert entry["id"] == name
    assert entry["reason"].startswith("its decoder crashed: signal 11 (")
    assert vitrail("report", run).code == 0
    assert "its decoder crashed" in (run / "report.html").read_text()
