"""Checkpoints that hold all state or none (design, invariant 4).

A checkpoint is a folder `step-00000123/` with `state.pt` and `manifest.json` (its length and
SHA-256). It is written under a temporary name, flushed to the disk, and renamed; older ones go only
after that. A kill at any moment, or a full disk, leaves the previous checkpoint whole.
"""

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from vitrail.atomic import sync, sync_path

KEEP = 2  # whole checkpoints kept: the newest, and one before it should the disk damage that


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes the state after `step` steps, and removes all but the newest KEEP checkpoints.

    Args:
        folder: the run's checkpoints folder; made if missing.
        state: tensors, numbers, strings, and lists and dicts of these.

    Raises:
        OSError: the disk is full or not writable. What was saved before is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    final, temporary = folder / f"step-{step:08d}", folder / f".writing-{step:08d}"
    try:
        temporary.mkdir()
        with open(temporary / "state.pt", "wb") as file:
            torch.save(state, file)
            sync(file)
        manifest: dict[str, Any] = {"step": step, "bytes": (temporary / "state.pt").stat().st_size}
        manifest["sha256"] = _sha256(temporary / "state.pt")
        with open(temporary / "manifest.json", "w") as text:
            json.dump(manifest, text)
            sync(text)
        sync_path(temporary)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # torch's zip writer trips over a full disk with a RuntimeError about something else.
        first = error if isinstance(error, OSError) else error.__context__
        code, reason = (first.errno, first.strerror) if isinstance(first, OSError) else (None, None)
        message = f"checkpoint {final} could not be written: {reason or error}"
        raise OSError(code, message) from error
    if final.exists():  # damaged, or this very state: either way the new one takes its place
        final.rename(folder / f".replaced-{step:08d}")
    temporary.rename(final)
    sync_path(folder)
    remove_leftovers(folder)
    for old in list_checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)
    return final


def load_latest(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest whole state, or None where nothing was saved yet.

    A damaged checkpoint is named in a warning and left where it is; the one before it is used.
    Since a run is a pure function of its steps, that costs time and changes nothing.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
    """
    complaints = []
    for path in reversed(list_checkpoints(folder)):
        try:
            state = _read(path, device)
        except ValueError as error:
            complaints.append(str(error))
            continue
        for complaint in complaints:
            warnings.warn(f"{complaint}; going on from {path.name}", stacklevel=2)
        return state
    if complaints:
        raise ValueError(
            f"no whole checkpoint in {folder}: {'; '.join(complaints)}. Restore one from a backup, "
            "or start the run anew with another --out"
        )
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed write left under a temporary name."""
    for pattern in (".writing-*", ".replaced-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        size = (path / "state.pt").stat().st_size
        whole = size == manifest["bytes"] and _sha256(path / "state.pt") == manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {path} is damaged ({error})") from error
    if not whole:
        raise ValueError(f"checkpoint {path} is damaged (its checksum does not match)")
    try:
        return torch.load(path / "state.pt", map_location=device, weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise ValueError(f"checkpoint {path} is refused ({error})") from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
