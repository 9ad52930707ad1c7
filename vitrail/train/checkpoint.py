"""Checkpoints that hold all state or none (design, invariant 4).

A checkpoint is a folder `step-00000123/` with `state.pt` and `manifest.json` (its length and
SHA-256). It is written under a temporary name, flushed to the disk, and renamed; older ones go only
after that. A kill at any moment, or a full disk, leaves the previous checkpoint whole.
"""

import errno
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from vitrail import text_encoder
from vitrail.atomic import sync, sync_path
from vitrail.config import differences, from_dict, to_dict
from vitrail.distributed.ranks import Ranks
from vitrail.encoder import DESCRIPTION, WEIGHTS, Encoder
from vitrail.objectives.registry import objective_name
from vitrail.recipes.recipe import SPEED_FIELDS, Recipe, preprocess_of
from vitrail.text_encoder import TextEncoder
from vitrail.train.build import Parts
from vitrail.train.health import DivergedError
from vitrail.train.warm_start import require_started

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


def restore(run: Path, recipe: Recipe, parts: Parts, ranks: Ranks) -> int:
    """Loads the last whole checkpoint into the parts, and returns the number of steps it holds."""
    state = load_latest(run / "checkpoints", ranks.device)
    if state is None:
        require_started(run, recipe, parts.started)
        return 0
    require_same(run, state["config"], recipe)
    if state["source"] != parts.fingerprint:
        raise ValueError(
            f"{recipe.data} has changed since {run} began ({state['samples']} images then, "
            f"{len(parts.source)} now): restore it, or start a new run with another --out"
        )
    parts.objective.load_state_dict(state["objective"])
    parts.optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save_run(run: Path, recipe: Recipe, parts: Parts, step: int) -> None:
    """Writes all state after `step` steps, and the encoder as it is now."""
    state = {
        "step": step,
        "config": to_dict(recipe),
        "source": parts.fingerprint,
        "samples": len(parts.source),
        "objective": parts.objective.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
    }
    save(run / "checkpoints", step, state)
    export_run(run, recipe, parts, step)


def export_run(run: Path, recipe: Recipe, parts: Parts, step: int) -> None:
    """Writes the encoder as it is now, after `step` steps; first the text side, if it has one."""
    info = {
        "seed": recipe.seed,
        "objective": objective_name(recipe.objective),
        "data": recipe.data,
        "step": step,
        "steps": parts.horizon.steps,
    }
    if recipe.init_from is not None:
        info["init_from"] = recipe.init_from
    if parts.objective.text_side is not None:
        TextEncoder(*parts.objective.text_side, step=step).save(run)
    Encoder(parts.objective.encoder, preprocess_of(recipe, parts.plan), info).save(run)


def require_exported(run: Path, recipe: Recipe, parts: Parts, step: int) -> None:
    """Exports again where a kill came between the last checkpoint and its export, or files went."""
    whole = (run / WEIGHTS).exists() and _step(run / DESCRIPTION) == step
    if parts.objective.text_side is not None:
        whole &= (run / text_encoder.WEIGHTS).exists()
        whole &= _step(run / text_encoder.DESCRIPTION) == step
    if not whole:
        export_run(run, recipe, parts, step)


def _step(description: Path) -> int | None:
    """Which is written last, and so tells what the weights beside it are of."""
    try:
        found: int = json.loads(description.read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found
