"""Arrays in the user's cache folder: results that take long and can be computed again."""

import hashlib
import io
import logging
import os
import zipfile
from pathlib import Path

import numpy as np

from vitrail.atomic import write_atomically

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Returns $XDG_CACHE_HOME/vitrail, or ~/.cache/vitrail. It need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "vitrail"


def cache_file(kind: str, key: str) -> Path:
    """Returns the path of a cached result.

    Args:
        kind: subfolder, one for each format.
        key: everything that the result depends on.
    """
    digest = hashlib.blake2b(os.fsencode(key), digest_size=16).hexdigest()
    return cache_folder() / kind / f"{digest}.npz"


def load_arrays(kind: str, key: str) -> dict[str, np.ndarray] | None:
    """Returns the arrays of `save_arrays`, None if there are none or they are damaged.

    Nothing is unpickled.
    """
    path = cache_file(kind, key)
    try:
        with np.load(path, allow_pickle=False) as saved:
            return {name: saved[name] for name in saved.files}
    except FileNotFoundError:
        return None
    except MemoryError:
        raise
    # zipfile and NumPy raise many types for a file of another version or a damaged one
    except Exception as error:
        logger.info("%s cannot be read and is made again (%s)", path, error)
        return None


def save_arrays(kind: str, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Saves arrays of numbers or text; a failure (no space, no permission) is a line in the log."""
    path = cache_file(kind, key)
    content = io.BytesIO()
    # not np.savez, which before NumPy 2 would pickle objects
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue(), shared=True)  # ranks and runs write at once
    except OSError as error:
        logger.warning("%s cannot be written and is made again next time (%s)", path, error)
