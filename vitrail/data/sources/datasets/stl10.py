"""STL-10 (Coates, Ng, Lee 2011, https://cs.stanford.edu/~acoates/stl10/) from its binary files.

Images are 3 x 96 x 96 bytes, each channel column by column; labels are bytes from 1.
"""

from pathlib import Path

import numpy as np

from vitrail.data.contract import Source, Split
from vitrail.data.sources.formats.mapped import Classes, Stored, open_stored
from vitrail.data.sources.spec import find_place, read_lines
from vitrail.data.sources.splits import no_test_split

SIDE = 96
PIXELS = 3 * SIDE * SIDE
CLASSES = 10
UNLABELED = "unlabeled"
INSIDE = ("", "stl10_binary")
REMEDY = (
    "download stl10_binary.tar.gz from https://cs.stanford.edu/~acoates/stl10/ and unpack it there"
)


def open_stl10(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `stl10:DIR` (5,000 and 8,000 images) or `stl10:unlabeled:DIR` (100,000, for training).

    The unlabelled images, 2.8 GB, are read as they are needed.

    Raises:
        ValueError: a file is missing or damaged, or other channels.
        NoTestSplitError: "test" of the unlabelled images.
    """
    spec = f"stl10:{rest}"
    variant, _, after = rest.partition(":")
    unlabeled = variant == UNLABELED
    if unlabeled and split == "test":
        raise no_test_split(spec, "it has no labels", f"evaluate on stl10:{after or 'DIR'}")
    part = UNLABELED if unlabeled else split
    root = find_place("stl10", after if unlabeled else rest, INSIDE, f"{part}_X.bin", REMEDY)
    path = root / f"{part}_X.bin"
    images, over = divmod(path.stat().st_size, PIXELS)
    if over or not images:
        raise ValueError(
            f"{spec}: {path} has {path.stat().st_size:,} bytes, which are not images of "
            f"{PIXELS:,}; {REMEDY}"
        )
    stored = Stored(path, np.dtype(np.uint8), (images, 3, SIDE, SIDE), "NCWH")
    return open_stored(spec, stored, None if unlabeled else _classes(spec, root, part), channels)


def _classes(spec: str, root: Path, part: str) -> Classes:
    path = root / f"{part}_y.bin"
    try:
        labels = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ValueError(f"{spec}: {path} cannot be read ({error.strerror}); {REMEDY}") from error
    if not ((labels >= 1) & (labels <= CLASSES)).all():
        raise ValueError(f"{spec}: {path} holds other labels than 1 to {CLASSES}; {REMEDY}")
    names = root / "class_names.txt"
    known = read_lines(spec, names, REMEDY) if names.exists() else []
    fits = len(known) == CLASSES
    return Classes(
        (labels.astype(np.int64) - 1).tolist(),
        known if fits else [str(number) for number in range(1, CLASSES + 1)],
    )
