"""Worker processes that read: slices come back in the order of the requests, and a file that
crashes its worker is quarantined like other bad files.

Each worker has a pipe of its own, so the death of one is noticed only where its answer is awaited.
A worker has no state that a process started in its place would lack. It ends with the main process,
even if it is stuck in a read.
"""

import json
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from ctypes import c_int64
from multiprocessing import Pipe, RawValue, parent_process, util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import current_thread, main_thread

import torch

from vitrail import signals
from vitrail.data.loading.reader import Reader, Request, Slice
from vitrail.data.loading.start_method import end_with_parent, second_run, start_method
from vitrail.data.loading.transfer import (
    InWorkerError,
    WorkerFailedError,
    receive_answer,
    send_answer,
)

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

# More are a slip of the pen: they would only wait for each other, for memory and for the storage.
MAX_WORKERS = 1024

POLL_SECONDS = 1.0  # between two looks at whether a signal has come
JOIN_SECONDS = 5.0  # for a killed process to go; one in a hung system call may not


def check_workers(workers: int) -> None:
    """Raises ValueError for a number of workers out of range."""
    if not 0 <= workers <= MAX_WORKERS:
        raise ValueError(f"workers is {workers}; it must be from 0 to {MAX_WORKERS}")


def read_slices(
    reader: Reader, requests: Iterable[Request], workers: int
) -> Generator[Slice, None, None]:
    """Yields the slices of the requests, in order.

    Workers run until the last slice, or until the iterator is closed. With 0 workers, this process
    reads each slice on demand.

    Raises:
        ValueError: too many workers.
        OSError: a worker was killed (mostly for memory), or crashed, but not by a file.
    """
    check_workers(workers)
    if not workers:
        yield from map(reader.read, requests)
        return
    started: list[_Worker] = []
    # At exit at the latest, before multiprocessing sends SIGTERM, which they ignore, and waits.
    stop = util.Finalize(None, _stop, (started,), exitpriority=10)
    try:
        for _ in range(workers):
            with signals.hold():
                started.append(_Worker(reader))  # first: whatever interrupts its start stops it
                started[-1].start()
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
        with signals.hold():
            stop()


class _Worker:
    """A process that reads, and the requests that it has not answered."""

    def __init__(self, reader: Reader):
        self._reader = reader
        self._asked: deque[Request] = deque()
        self._answered = False
        self._process: BaseProcess | None = None

    def start(self) -> None:
        """Starts the process, anew after the death of one.

        Raises:
            OSError: it cannot be started.
        """
        self._connection, theirs = Pipe()
        self._note = RawValue(c_int64, NO_SAMPLE)  # the index of the sample that it reads
        context = start_method()
        self._method = context.get_start_method()
        # The system ties a process to the thread that starts it, so only the main thread's are.
        tied = current_thread() is main_thread()
        arguments = theirs, self._reader, self._note, self._method, tied
        self._process = process = context.Process(target=_serve, args=arguments, daemon=True)
        # It inherits them blocked, and ignores them before it unblocks them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, MAIN_PROCESS_SIGNALS)
        try:
            process.start()
        except (EOFError, ConnectionError) as error:
            raise OSError(second_run(self._reader.source.spec, self._method)) from error
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
        while (read := self._receive()) is None:
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
        self._answered = True
        return read._replace(bad=[*crashed, *read.bad])

    def _receive(self) -> Slice | None:
        """Returns an answer, or None if the worker died."""
        # a signal just before the wait is handled after it
        assert self._process is not None
        while not wait([self._connection, self._process.sentinel], POLL_SECONDS):
            pass
        try:
            return receive_answer(self._connection) if self._connection.poll() else None
        except WorkerFailedError as failed:
            raise failed.error from InWorkerError(failed.where)
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
        assert self._process is not None
        self._process.join()
        code, index, source = self._process.exitcode, self._note.value, self._reader.source
        assert code is not None
        how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
        died = f"{source.spec}: a process that reads images died on {how}"
        if code > 0 and not self._answered and self._method != "fork":
            raise OSError(second_run(source.spec, self._method))
        if index == NO_SAMPLE:
            raise OSError(
                f"{died} while reading none of them; the memory may have run out: use fewer "
                "--workers"
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
        self.start()
        for request in self._asked:
            self._send(request)

    def stop(self) -> None:
        """Kills the process; nothing that it does is worth waiting for."""
        if self._process is None or self._process.pid is None:
            return
        self._process.kill()
        self._process.join(JOIN_SECONDS)
        self._connection.close()


def _ask(worker: _Worker, coming: Iterator[Request], asked: deque[_Worker]) -> None:
    request = next(coming, None)
    if request is not None:
        worker.ask(request)
        asked.append(worker)


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()


def _serve(connection: Connection, reader: Reader, note: c_int64, method: str, tied: bool) -> None:
    """Answers requests in a worker until the main process closes the pipe, or is gone.

    Args:
        connection: the worker's end of the pipe.
        reader: reads.
        note: where the index of the sample that is being read is noted.
        method: the start method.
        tied: whether the worker is to be killed when the thread that started it ends.
    """
    for number in MAIN_PROCESS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, MAIN_PROCESS_SIGNALS)
    main = parent_process()
    assert main is not None
    if tied:
        end_with_parent()
        if method != "forkserver" and os.getppid() != main.pid:
            return  # it ended just before
    torch.set_num_threads(1)

    def take_note(index: int | None) -> None:
        note.value = NO_SAMPLE if index is None else index

    reader.note = take_note
    while True:
        wait([connection, main.sentinel])
        try:
            if not connection.poll():
                return
            send_answer(connection, reader, connection.recv())
        except (EOFError, ConnectionError):
            return


def choose_workers(asked: int | None, world: int = 1) -> int:
    """Returns the number of workers that is asked for, or a fair share of the cores.

    Args:
        asked: a number; None for a fair share, from 0 to 8.
        world: processes that share the cores.

    Raises:
        ValueError: a number that is out of range.
    """
    if asked is not None:
        check_workers(asked)
        return asked
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(0, min(8, cores // world - 1))
