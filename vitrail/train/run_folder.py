"""A run is a folder: made once, held by one process, described by its config.json."""

import errno
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
from typing import Any

import torch

from vitrail.atomic import write_atomically
from vitrail.config import differences, from_dict, to_dict
from vitrail.recipes.command import command_of
from vitrail.recipes.recipe import SPEED_FIELDS, Recipe
from vitrail.train.checkpoint import list_checkpoints
from vitrail.train.health import DivergedError


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
    """The recipe that a run's config.json holds.

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
        return from_dict(Recipe, fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def require_same(run: Path, saved: dict[str, Any], recipe: Recipe) -> None:
    """Refuses to go on with a run whose config.json was edited since its last checkpoint.

    Raises:
        ValueError: listing every changed field, apart from those that only speed depends on.
    """
    # A run of an older version lacks the fields that came since, which by default change nothing.
    before, now = to_dict(from_dict(Recipe, saved)), to_dict(recipe)
    # The data may have moved: whether they are the same, their fingerprint says.
    free = {*SPEED_FIELDS, "data"}
    old, new = ({k: v for k, v in plain.items() if k not in free} for plain in (before, now))
    changed = differences(old, new)
    if changed:
        raise ValueError(
            f"{run / 'config.json'} was edited after the run began ({'; '.join(changed)}): its "
            "results would be neither recipe's. Undo that, or start a new run with another --out"
        )


@contextmanager
def noting_what_is_kept(run: Path, total: int) -> Iterator[None]:
    """Adds to an error that stops a run of `total` steps what is saved, and how to go on."""
    try:
        yield
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        error.add_note(_what_is_kept(run, total, error))
        raise


def _what_is_kept(run: Path, total: int, error: Exception) -> str:
    saved = list_checkpoints(run / "checkpoints")
    steps = int(saved[-1].name.removeprefix("step-")) if saved else 0
    kept = f"Kept: {steps} of {total} steps, in {saved[-1]}" if saved else "No step was saved yet"
    if isinstance(error, DivergedError):
        return f"{kept}; resumed, it would do the same again: start a new run with another --out"
    if isinstance(error, torch.OutOfMemoryError):
        return f"{kept}. Start a new run with a smaller --batch-size, or --precision bf16"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "The disk is full: make room" if full else "When that is mended"
    return f"{kept}. {remedy}, then go on with `vitrail resume {run}`"


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Holds the run for this process; the system lets go of it however the process ends.

    Raises:
        ValueError: another process holds it.
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
    """The commit of the checkout that vitrail runs from, None when installed from a package."""
    checkout = Path(__file__).resolve().parent.parent
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
    """An event that SIGTERM or SIGINT sets, so that the loop ends between two steps."""
    stop = Event()

    def on_signal(signum: int, frame: FrameType | None) -> None:
        stop.set()

    if current_thread() is not main_thread():  # Python hands signals to the main thread only
        yield stop
        return
    before = {s: signal.signal(s, on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
