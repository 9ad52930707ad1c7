"""The folder of a run: made once, locked by one process, and described by its config.json."""

import hashlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vitrail.atomic import locked, parse_json, read_text, write_atomically
from vitrail.config import from_dict, to_dict
from vitrail.recipes.named import command_of
from vitrail.recipes.recipe import Recipe, migrated

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz")

# Names in config.json that are not fields of the recipe.
BESIDE = ("version", "commit", "command", "start", "notes", "changes")


def create(out: Path, recipe: Recipe, notes: Sequence[str] = ()) -> None:
    """Makes the run's folder and writes config.json, or leaves nothing behind.

    Args:
        out: the folder.
        recipe: the recipe.
        notes: lines on the recipe, for the page.

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
    if recipe.init_from is not None:
        description["start"] = weights_digest(Path(recipe.init_from))
    if notes:
        description["notes"] = list(notes)
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
    fields = {k: v for k, v in read_config(run).items() if k not in BESIDE}
    try:
        return from_dict(Recipe, migrated(fields))
    except ValueError as error:
        raise ValueError(f"{run / 'config.json'}: {error}") from error


def read_config(run: Path) -> dict[str, Any]:
    """Reads config.json.

    Raises:
        ValueError: no such run, or a config.json that is not a JSON object.
    """
    path = run / "config.json"
    if not path.exists():
        raise ValueError(f"{run} holds no run (no config.json); start one with `vitrail pretrain`")
    try:
        plain = parse_json(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); restore it") from error
    if not isinstance(plain, dict):
        raise ValueError(f"{path} is not a JSON object of a recipe's fields; restore it")
    return plain


def require_same_start(run: Path, recipe: Recipe) -> None:
    """Refuses to begin a run anew from other weights than it began with.

    Raises:
        ValueError: the files at `init_from` have changed since.
    """
    began = read_config(run).get("start")
    if recipe.init_from is None or began is None or not Path(recipe.init_from).exists():
        return
    if weights_digest(Path(recipe.init_from)) != began:
        raise ValueError(
            f"{run} has no checkpoint yet, and the weights that it starts from have changed since "
            f"it began: restore {recipe.init_from}, or start a new run"
        )


def weights_digest(path: Path) -> str:
    """Returns the SHA-256 of weights: of a file, or of the weights and descriptions in a folder."""
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.is_file() and f.suffix in WEIGHT_SUFFIXES)
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Locks the run for this process; the system releases the lock however the process ends.

    Raises:
        ValueError: another process has locked it.
    """
    path = run / ".lock"
    with locked(path) as free:
        if not free:
            holder = path.read_text().strip() or "unknown"
            raise ValueError(
                f"{run} is in use by process {holder}; wait for it, or name another folder"
            )
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
