"""The TensorBoard sink: event files, written in the caller's thread.

`SummaryWriter` writes in a thread of its own: on a full disk that thread prints a traceback, and
the error surfaces in some later call. Here it is raised by the call that writes.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class TensorBoard:
    """Writes all numbers of a row as scalars to a new event file in RUN/tb.

    TensorBoard drops rows of earlier event files from step `start` on.

    Raises:
        OSError: from every method, when the disk is full or the folder is not writable.
    """

    def __init__(self, run: Path, start: int):
        folder = run / "tb"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "wb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Writes one event for each row, and flushes them to the system."""
        for row in rows:
            values = [Summary.Value(tag=t, simple_value=v) for t, v in _scalars(row).items()]
            self._add(Event(step=row["step"], summary=Summary(value=values)))
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _scalars(row: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a row; those of the health check are tagged "health/..."."""
    numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
    return numbers | {f"health/{k}": v for k, v in row.get("health", {}).items()}
