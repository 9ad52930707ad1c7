"""What can be found out again, kept in the user's cache folder so that it is found out once."""

import hashlib
import io
import logging
import os
import secrets
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from vitrail.atomic import write_atomically

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/vitrail, or ~/.cache/vitrail. It need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "vitrail"


def cache_file(kind: str, key: str) -> Path:
    """Where what is called `key` is kept. kind: a subfolder, for what is of one format."""
    digest = hashlib.blake2b(os.fsencode(key), digest_size=16).hexdigest()
    return cache_folder() / kind / f"{digest}.npz"


def load_arrays(kind: str, key: str) -> dict[str, np.ndarray] | None:
    """What `save_arrays` has kept; None where there is nothing, or nothing whole. Never pickles."""
    path = cache_file(kind, key)
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except FileNotFoundError:
        return None
    except MemoryError:
        raise
    # Of another version, or damaged: zipfile and NumPy say so in many ways.
    except Exception as error:
        logger.info("%s cannot be read and is made again (%s)", path, error)
        return None


def save_arrays(kind: str, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Keeps arrays of numbers or text.

    Where that fails (no room, no permission) it is one line in the log.
    """
    path = cache_file(kind, key)
    content = io.BytesIO()
    # Not np.savez, which before NumPy 2 would pickle objects.
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    # Ranks and other runs may write the same file at once: each has its own, the last one stays.
    own = path.with_name(f"{path.stem}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(own, content.getvalue())
        os.replace(own, path)
    except OSError as error:
        with suppress(OSError):
            own.unlink(missing_ok=True)
        logger.warning("%s cannot be written, so that it is made again next time (%s)", path, error)
