"""How workers are started, and how they end with the process that started them."""

import ctypes
import multiprocessing
import signal
import sys
from contextlib import suppress
from typing import Any

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent ends

_GUARD = (
    'put what the script does under `if __name__ == "__main__":`, or use workers=0, or call '
    'multiprocessing.set_start_method("fork")'
)


def start_method() -> Any:
    """Returns multiprocessing's context of the start method that the user chose, else of fork.

    The others, which are the default of Python 3.14 and of macOS, run the user's script again in
    every worker; that fails for a script without `if __name__ == "__main__"`.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    return multiprocessing.get_context(chosen or ("fork" if sys.platform == "linux" else None))


def refuse_second_run() -> None:
    """Refuses to work in a process that runs the user's script again only to become a worker.

    Raises:
        ValueError: this is one.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ValueError(
            "this process is to become a worker, and the start method of multiprocessing, "
            f"{multiprocessing.get_start_method()!r}, runs the script in it again: {_GUARD}"
        )


def second_run(spec: str, method: str) -> str:
    """Returns the message for a worker that ended before it had read anything."""
    return (
        f"{spec}: a process that reads images ended as it started. The start method of "
        f"multiprocessing, {method!r}, runs the script in it again: {_GUARD}"
    )


def end_with_parent() -> None:
    """Makes the system kill this process when its parent ends, even if it is stopped or stuck."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
