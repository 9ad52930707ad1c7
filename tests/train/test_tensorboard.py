"""TensorBoard reads what we write."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitrail.train.tensorboard import TensorBoard


def write(folder: Path, start: int, stop: int, scale: float) -> None:
    events = TensorBoard(folder, start)
    for step in range(start, stop):
        events.write([{"step": step, "loss": scale * step, "health": {"effective_rank": 1.0}}])
    events.close()


def test_tensorboard_reads_it_and_a_resumed_run_replaces_later_steps(tmp_path):
    write(tmp_path, 0, 6, scale=1.0)
    write(tmp_path, 4, 8, scale=10.0)
    read = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert set(read.Tags()["scalars"]) == {"loss", "health/effective_rank"}
    rows = [(scalar.step, scalar.value) for scalar in read.Scalars("loss")]
    assert rows == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60), (7, 70)]


def test_a_full_disk_is_said_where_it_happens(tmp_path, monkeypatch):
    full = Path("/dev/full")
    monkeypatch.setattr("vitrail.train.tensorboard.open", lambda *_: full.open("wb"), raising=False)
    events = TensorBoard(tmp_path, 0)
    with pytest.raises(OSError, match="No space left"):
        events.write([{"step": 0, "loss": 1.0}])
