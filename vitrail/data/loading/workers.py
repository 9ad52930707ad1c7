"""Worker processes that read: slices come back in the order of the requests, and a file that
crashes its worker is quarantined like other bad files.

Each worker has a pipe of its own, so the death of one is noticed only where its answer is awaited.
A worker has no state that a process started in its place would lack.
"""

import json
import os
import signal
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from ctypes import c_int64
from multiprocessing import Pipe, Process, RawValue, parent_process, util
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler  # torch has registered shared tensors there
from typing import Any

import torch

from vitrail.data.loading.reader import Reader, Request, Slice

# Requests that each worker is ahead: one being decoded, one ready.
PREFETCH = 2

# Signals by which a decoder dies on a damaged file.
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)

# Crashes in a row, with no slice read between, that are put down to the files.
RESTARTS = 3

# Sent to the whole process group, but only the main process responds: it saves, then stops the
# workers.
MAIN_PROCESS_SIGNALS = (signal.SIGINT, signal.SIGTERM)

NO_SAMPLE = -1  # the note of a worker that reads no sample


def read_slices(
    reader: Reader, requests: Iterable[Request], workers: int
) -> Generator[Slice, None, None]:
    """Yields the slices of the requests, in order.

    Workers run until the last slice, or until the iterator is closed. With 0 workers, this process
    reads each slice on demand.

    Raises:
        OSError: a worker was killed (mostly for memory), or crashed, but not by a file.
    """
    if not workers:
        yield from map(reader.read, requests)
        return
    started: list[_Worker] = []
    # At exit at the latest, before multiprocessing sends SIGTERM, which they ignore, and waits.
    stop = util.Finalize(None, _stop, (started,), exitpriority=10)
    try:
        for _ in range(workers):
            started.append(_Worker(reader))
        coming = iter(requests)
        asked: deque[_Worker] = deque()
        for worker in started * PREFETCH:
            _ask(worker, coming, asked)
        while asked:
            worker = asked.popleft()
            read = worker.answer()
            _ask(worker, coming, asked)
            yield read
    finally:
        stop()


class _Worker:
    """A process that reads, and the requests that it has not answered."""

    def __init__(self, reader: Reader):
        self._reader = reader
        self._asked: deque[Request] = deque()
        self._start()

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        self._note = RawValue(c_int64, NO_SAMPLE)  # the index of the sample that it reads
        arguments = theirs, self._reader, self._note
        self._process = Process(target=_serve, args=arguments, daemon=True)
        # It inherits them blocked, and ignores them before it unblocks them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, MAIN_PROCESS_SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # the worker's end is then open in the worker alone

    def ask(self, request: Request) -> None:
        """Sends a request."""
        self._asked.append(request)
        self._send(request)

    def _send(self, request: Request) -> None:
        with suppress(ConnectionError):  # it is dead, which `answer` will find
            self._connection.send(request)

    def answer(self) -> Slice:
        """Returns the slice of the oldest request; a file that crashes the worker is a bad one."""
        crashed: list[tuple[str, str]] = []
        while (answer := self._receive()) is None:
            id, how = self._cause_of_death()
            if len(crashed) == RESTARTS:
                raise OSError(
                    f"{self._reader.source.spec}: {RESTARTS + 1} processes that read images died "
                    f"in a row, the last on {how} while reading {json.dumps(id)}: what decodes "
                    "them may be broken; use --workers 0 to see the cause"
                )
            crashed.append((id, f"its decoder crashed: {how}"))
            self._restart(id)
        self._asked.popleft()
        read, error, where = answer
        if error is not None:
            raise error from _InWorkerError(where)
        return read._replace(bad=[*crashed, *read.bad])

    def _receive(self) -> Any:
        """Returns an answer, or None if the worker died."""
        wait([self._connection, self._process.sentinel])
        try:
            return self._connection.recv() if self._connection.poll() else None
        except (EOFError, OSError):
            # It died while it sent an image; or it is alive, and this is another failure.
            self._process.join(1.0)
            if self._process.exitcode is None:
                raise
            return None

    def _cause_of_death(self) -> tuple[str, str]:
        """Returns (id, signal) of the file that crashed the process.

        Raises:
            OSError: no file did, or none is known to have done it.
        """
        self._process.join()
        code, index, source = self._process.exitcode, self._note.value, self._reader.source
        assert code is not None
        how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
        died = f"{source.spec}: a process that reads images died on {how}"
        if index == NO_SAMPLE:
            raise OSError(
                f"{died} while reading none of them; the memory may have run out, or the shared "
                "memory (/dev/shm; of a container --shm-size): use fewer --workers"
            )
        id = source.id(index)
        if -code not in CRASHES:
            raise OSError(
                f"{died} while reading {json.dumps(id)}; the memory may have run out: use fewer "
                "--workers, or --workers 0 to see the cause"
            )
        return id, how

    def _restart(self, bad: str) -> None:
        self._reader.known_bad.add(bad)
        self._connection.close()
        self._start()
        for request in self._asked:
            self._send(request)

    def stop(self) -> None:
        """Kills the process; nothing that it does is worth waiting for."""
        self._process.kill()
        self._process.join()
        self._connection.close()


class _InWorkerError(Exception):
    """The traceback of an error in a worker, as text."""

    def __str__(self) -> str:
        return f"in a process that reads images:\n{self.args[0]}"


def _ask(worker: _Worker, coming: Iterator[Request], asked: deque[_Worker]) -> None:
    request = next(coming, None)
    if request is not None:
        worker.ask(request)
        asked.append(worker)


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()


def _serve(connection: Connection, reader: Reader, note: c_int64) -> None:
    """Answers requests in a worker until the main process closes the pipe, or is gone."""
    for number in MAIN_PROCESS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, MAIN_PROCESS_SIGNALS)
    torch.set_num_threads(1)
    main = parent_process()
    assert main is not None

    def take_note(index: int | None) -> None:
        note.value = NO_SAMPLE if index is None else index

    reader.note = take_note
    while True:
        wait([connection, main.sentinel])
        try:
            if not connection.poll():
                return
            connection.send_bytes(_answer(reader, connection.recv()))
        except (EOFError, ConnectionError):
            return


def _answer(reader: Reader, request: Request) -> bytes:
    """Returns, pickled, (slice, None, "") or (None, the error, its traceback)."""
    try:
        return bytes(ForkingPickler.dumps((reader.read(request), None, "")))
    except Exception as error:
        return _failed(error, traceback.format_exc())


def _failed(error: Exception, where: str) -> bytes:
    try:
        answer = bytes(ForkingPickler.dumps((None, error, where)))
        ForkingPickler.loads(answer)
    except Exception:  # it cannot be sent as it is
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        answer = bytes(ForkingPickler.dumps((None, plain, where)))
    return answer


def fair_workers(world: int = 1) -> int:
    """Returns the number of workers for one of `world` processes that share the cores, 0 to 8."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(0, min(8, cores // world - 1))
