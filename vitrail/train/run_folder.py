"""The folder of a run: made once, locked by one process, and described by its config.json."""

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from threading import Event, current_thread, main_thread
from types import FrameType

from vitrail.atomic import write_atomically
from vitrail.config import from_dict, to_dict
from vitrail.recipes.named import command_of
from vitrail.recipes.recipe import Recipe, migrated


def create(out: Path, recipe: Recipe) -> None:
    """Makes the run's folder and writes config.json, or leaves nothing behind.

    Raises:
        ValueError: the folder already holds a run, or cannot be written to.
    """
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    if (out / "config.json").exists():
        raise ValueError(
            f"{out} already holds a run; go on with it by `vitrail resume {out}`, "
            "or name another folder with --out"
        )
    description = to_dict(recipe) | {
        "version": version("vitrail"),
        "commit": commit(),
        "command": command_of(recipe),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "config.json", json.dumps(description, indent=2) + "\n")
    except OSError as error:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise ValueError(
            f"--out {out} cannot be written to ({error.strerror}); name another folder"
        ) from error


def read_recipe(run: Path) -> Recipe:
    """Reads the recipe of a run from its config.json.

    Raises:
        ValueError: no such run, or a config.json that is not a recipe.
    """
    path = run / "config.json"
    if not path.exists():
        raise ValueError(f"{run} holds no run (no config.json); start one with `vitrail pretrain`")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); restore it") from error
    if not isinstance(plain, dict):
        raise ValueError(f"{path} is not a JSON object of a recipe's fields; restore it")
    fields = {k: v for k, v in plain.items() if k not in ("version", "commit", "command")}
    try:
        return from_dict(Recipe, migrated(fields))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Locks the run for this process; the system releases the lock however the process ends.

    Raises:
        ValueError: another process has locked it.
    """
    with open(run / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise ValueError(
                f"{run} is in use by process {holder}; wait for it, or name another folder"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def commit() -> str | None:
    """Returns the commit of the checkout that vitrail runs from, None for an installed package."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


@contextmanager
def stop_signals() -> Iterator[Event]:
    """Yields an event that SIGTERM or SIGINT sets, so the loop can end between two steps."""
    stop = Event()

    def on_signal(signum: int, frame: FrameType | None) -> None:
        stop.set()

    if current_thread() is not main_thread():  # Python delivers signals to the main thread only
        yield stop
        return
    before = {s: signal.signal(s, on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
