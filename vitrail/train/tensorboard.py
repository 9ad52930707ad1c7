"""TensorBoard's event file, written in the caller's thread.

`SummaryWriter` writes in a thread of its own: on a full disk that prints a traceback of its own and
the error surfaces at some later call. Here it is raised where it happens.
"""

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class Events:
    """Appends to a new event file in `folder`; TensorBoard drops older rows from step `start` on.

    Raises:
        OSError: from every method, when the disk is full or the folder not writable.
    """

    def __init__(self, folder: Path, start: int):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "wb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Notes the scalars of one step; `flush` brings them to the file."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._add(Event(step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        """Hands everything to the system."""
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
