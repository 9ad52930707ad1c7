"""Answers of a worker to the main process. Pixels go through memory that both map.

It is a memfd, whose descriptor goes through the worker's pipe: the size of /dev/shm does not
matter, and no file stays when a process is killed.
"""

import mmap
import os
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler, recv_handle, send_handle
from typing import Any

import torch
from torch import Tensor

from vitrail.data.loading.reader import NO_PIXELS, Reader, Request, Slice

MAPS = hasattr(os, "memfd_create")  # Linux; elsewhere the bytes themselves go through the pipe


class InWorkerError(Exception):
    """The traceback of an error in a worker, as text."""

    def __str__(self) -> str:
        return f"in a process that reads images:\n{self.args[0]}"


def send_answer(connection: Connection, reader: Reader, request: Request) -> None:
    """Reads a slice and sends it, or the error of that; in a worker.

    Raises:
        ConnectionError: the other end is closed.
    """
    file = None
    try:
        try:
            read = reader.read(request)
            content = _bytes_of(read.pixels)
            # made first: if there is no memory, nothing is announced that does not follow
            file = _filled(content) if MAPS and len(content) else None
            about = read._asdict() | {"pixels": (read.pixels.dtype is torch.uint16, len(content))}
            said = bytes(ForkingPickler.dumps((about, None, "")))
        except Exception as error:
            connection.send_bytes(_failed(error, traceback.format_exc()))
            return
        connection.send_bytes(said)
        if file is not None:
            send_handle(connection, file, None)
        elif len(content):
            connection.send_bytes(content)
    finally:
        if file is not None:
            os.close(file)


def receive_answer(connection: Connection) -> Slice:
    """Returns the slice that `send_answer` sends at the other end.

    Raises:
        EOFError, OSError: the other end is gone, or there is no memory.
        WorkerFailedError: the worker met an error.
    """
    about, error, where = connection.recv()
    if error is not None:
        raise WorkerFailedError(error, where)
    return Slice(**about | {"pixels": _pixels(connection, *about["pixels"])})


class WorkerFailedError(Exception):
    """Carries an error of a worker, apart from errors of receiving it.

    Attributes:
        error: the error.
        where: its traceback.
    """

    def __init__(self, error: Exception, where: str):
        self.error, self.where = error, where


def _pixels(connection: Connection, wide: bool, size: int) -> Tensor:
    if not size:
        return NO_PIXELS
    dtype = torch.uint16 if wide else torch.uint8
    if not MAPS:
        return torch.frombuffer(bytearray(connection.recv_bytes()), dtype=dtype)
    file = recv_handle(connection)
    try:
        mapped = mmap.mmap(file, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    finally:
        os.close(file)
    return torch.frombuffer(mapped, dtype=dtype)  # which keeps the map


def _bytes_of(pixels: Tensor) -> memoryview:
    array: Any = pixels.numpy()  # numpy's types do not say that it is a buffer
    return memoryview(array).cast("B") if len(pixels) else memoryview(b"")


def _filled(content: memoryview) -> int:
    """Returns the descriptor of a memfd that holds these bytes."""
    file = os.memfd_create("vitrail-pixels")
    try:
        while len(content):
            content = content[os.write(file, content) :]
    except BaseException:
        os.close(file)
        raise
    return file


def _failed(error: Exception, where: str) -> bytes:
    """Returns, pickled, (None, the error, its traceback)."""
    try:
        answer: Any = bytes(ForkingPickler.dumps((None, error, where)))
        ForkingPickler.loads(answer)
    except Exception:  # it cannot be sent as it is
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        answer = bytes(ForkingPickler.dumps((None, plain, where)))
    return bytes(answer)
