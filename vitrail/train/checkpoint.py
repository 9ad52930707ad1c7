"""Checkpoints that hold all state or none (design, invariant 4).

A checkpoint is a folder `step-00000123/` with `state.pt` and `manifest.json` (its format, length
and SHA-256). It is written under a temporary name, flushed to the disk, and renamed; older ones are
removed only after that. A kill at any moment, or a full disk, leaves the previous checkpoint whole.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from vitrail.atomic import parse_json, read_text, sync, sync_path
from vitrail.config import differences, from_dict, to_dict
from vitrail.distributed.ranks import Ranks
from vitrail.recipes.recipe import SPEED_FIELDS
from vitrail.train.contract import Parts, RunSettings

# The format of a checkpoint. A checkpoint without a number is of format 1; a release reads its own
# format and earlier ones.
STATE_FORMAT = 1
# Entries of an optimizer's state that have the shape of their parameter.
MOMENTS = {"exp_avg", "exp_avg_sq", "momentum_buffer"}
KEEP = 2  # number of whole checkpoints that stay: the newest, and one in case the disk damages that


class NewerFormatError(ValueError):
    """A checkpoint was written by a later release of vitrail, in a format of that release."""


def write_state(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes the state after `step` steps, and removes all but the newest KEEP checkpoints.

    Args:
        folder: the run's checkpoints folder; made if missing.
        step: the number of steps taken.
        state: tensors, numbers, strings, and lists and dicts of these.

    Returns:
        The folder of the checkpoint.

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
        manifest = {
            "format": STATE_FORMAT,
            "step": step,
            "bytes": (temporary / "state.pt").stat().st_size,
            "sha256": _sha256(temporary / "state.pt"),
        }
        with open(temporary / "manifest.json", "w") as text:
            json.dump(manifest, text)
            sync(text)
        sync_path(temporary)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # on a full disk, torch's zip writer raises a RuntimeError about something else
        first = error if isinstance(error, OSError) else error.__context__
        code, reason = (first.errno, first.strerror) if isinstance(first, OSError) else (None, None)
        message = f"checkpoint {final} could not be written: {reason or error}"
        raise OSError(code, message) from error
    if final.exists():  # damaged, or this very state: the new one replaces it in both cases
        final.rename(folder / f".replaced-{step:08d}")
    temporary.rename(final)
    sync_path(folder)
    remove_leftovers(folder)
    for old in list_checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)
    return final


class UnfitStateError(ValueError):
    """A checkpoint is whole, but its state is not one of this run's parts."""


def load_latest(
    folder: Path, device: torch.device, take: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any] | None:
    """Reads the newest whole state, or returns None if nothing was saved yet.

    A damaged checkpoint is reported in a warning and stays where it is; the one before it is used.
    Since a run is a pure function of its steps, that costs time and changes nothing.

    Args:
        folder: the run's checkpoints folder.
        device: where the tensors go.
        take: called with the state; by an UnfitStateError it refuses it as a damaged one.

    Raises:
        ValueError: there are checkpoints, and none of them is whole; or (NewerFormatError) the
            newest was written by a later release.
    """
    complaints = []
    for path in reversed(list_checkpoints(folder)):
        try:
            state = _read(path, device)
        except NewerFormatError:
            raise
        except ValueError as error:
            complaints.append(str(error))
            continue
        try:
            if take is not None:
                take(state)
        except UnfitStateError as error:
            complaints.append(f"checkpoint {path} is not a state of this run ({error})")
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


def _is_state(state: Any) -> bool:
    """Returns whether it has the entries that `save` writes."""
    kinds = {"step": int, "config": dict, "source": str, "objective": dict, "optimizer": dict}
    return isinstance(state, dict) and all(
        isinstance(state.get(name), kind) for name, kind in kinds.items()
    )


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def remove_leftovers(folder: Path) -> None:
    """Removes the files that a killed write left under a temporary name."""
    for pattern in (".writing-*", ".replaced-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        manifest = parse_json(read_text(path / "manifest.json"))
        version = manifest.get("format", 1) if isinstance(manifest, dict) else 1
        if isinstance(version, int) and version > STATE_FORMAT:
            raise NewerFormatError(
                f"checkpoint {path} has format {version}, and this release of vitrail reads "
                f"formats up to {STATE_FORMAT}; go on with the release that wrote it or a later one"
            )
        size = (path / "state.pt").stat().st_size
        whole = size == manifest["bytes"] and _sha256(path / "state.pt") == manifest["sha256"]
    except NewerFormatError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {path} is damaged ({error})") from error
    if not whole:
        raise ValueError(f"checkpoint {path} is damaged (its checksum does not match)")
    try:
        state = torch.load(path / "state.pt", map_location=device, weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {path} is refused ({error})") from error
    if not isinstance(state, dict):
        raise ValueError(f"checkpoint {path} is not a state of this run (a {type(state).__name__})")
    return state


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_same(
    run: Path, saved: dict[str, Any], recipe: RunSettings, changed: Collection[str] = ()
) -> None:
    """Refuses to go on with a run whose config.json was edited since its last checkpoint.

    Args:
        run: the run's folder.
        saved: the recipe in the checkpoint, as a dict.
        recipe: the recipe in config.json.
        changed: fields that `resume` was told to change.

    Raises:
        ValueError: listing every changed field, apart from those that only speed depends on.
    """
    # Parsed, both have the fields and the names of this release: a run of an older one lacks fields
    # that were added since, whose defaults change nothing, and has other "kind"s for nested ones.
    before, now = to_dict(from_dict(type(recipe), saved)), to_dict(recipe)
    # the data may have moved; their fingerprint shows whether they are the same
    free = {*SPEED_FIELDS, "data", *changed}
    old, new = ({k: v for k, v in plain.items() if k not in free} for plain in (before, now))
    edited = differences(old, new)
    if edited:
        raise ValueError(
            f"{run / 'config.json'} was edited after the run began ({'; '.join(edited)}): its "
            "results would be neither recipe's. Undo that, or start a new run with another --out"
        )


def restore(run: Path, recipe: RunSettings, parts: Parts[Any], ranks: Ranks) -> int:
    """Loads the last whole checkpoint into the parts, and returns the number of steps it holds.

    A change of the run is then written down.

    Raises:
        ValueError: the recipe or the data changed since, no checkpoint is whole, there is none and
            the weights to start from are gone, or the run is to be shorter than it is.
    """

    def take(state: dict[str, Any]) -> None:
        if not _is_state(state):
            raise UnfitStateError("it lacks what a checkpoint holds")
        require_same(run, state["config"], recipe, parts.changed)
        feed = parts.feed
        if state["source"] != feed.fingerprint:
            raise ValueError(
                f"{feed.spec} has changed since {run} began ({state.get('samples')} "
                f"{feed.sample_noun} then, {feed.n_samples} now): restore it, or start a new run "
                "with another --out"
            )
        _load(parts, state)

    state = load_latest(run / "checkpoints", ranks.device, take)
    if state is None and parts.missing_start is not None:
        raise ValueError(
            f"{run} has no checkpoint yet, and the weights that it starts from are gone: "
            f"restore {parts.missing_start}, or start a new run"
        )
    start, steps = 0 if state is None else int(state["step"]), parts.horizon.steps
    if start > steps:
        raise ValueError(
            f"{run} has taken {start} steps already, more than the {steps} of its length now; "
            "give a larger --epochs"
        )
    if parts.on_restored is not None:
        parts.on_restored(start)
    return start


def _load(parts: Parts[Any], state: dict[str, Any]) -> None:
    """Loads a state into the parts.

    Raises:
        UnfitStateError: its tensors are not theirs. A state that is loaded after it replaces all.
    """
    try:
        parts.objective.load_state_dict(state["objective"])
        parts.optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnfitStateError(first) from error
    for parameter, moments in parts.optimizer.state.items():
        for name in MOMENTS & moments.keys():
            if moments[name].shape != parameter.shape:
                raise UnfitStateError(
                    f"{name} has the shape {tuple(moments[name].shape)}, and its parameter "
                    f"{tuple(parameter.shape)}"
                )


def save(run: Path, recipe: RunSettings, parts: Parts[Any], ranks: Ranks, step: int) -> None:
    """Saves all state after `step` steps, and then the exports.

    Called on every rank; rank 0 writes, since all ranks hold the same state.

    Raises:
        OSError: the disk is full or not writable.
    """
    if not ranks.is_main:
        return
    state = {
        "step": step,
        "config": to_dict(recipe),
        "source": parts.feed.fingerprint,
        "samples": parts.feed.n_samples,
        "objective": parts.objective.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
    }
    write_state(run / "checkpoints", step, state)
    parts.exports.save(run, step)
