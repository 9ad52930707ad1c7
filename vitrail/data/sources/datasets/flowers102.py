"""Oxford Flowers 102 (Nilsback & Zisserman 2008, https://www.robots.ox.ac.uk/~vgg/data/flowers/102/).

jpg/image_00001.jpg, ...        8,189 images
imagelabels.mat                 the class of each, 1 to 102
setid.mat                       the numbers of the images of trnid, valid and tstid
"""

import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from vitrail.data.contract import Source, Split
from vitrail.data.sources.files import FileSource
from vitrail.data.sources.spec import find_place, open_regular

CLASSES = 102
INSIDE = ("", "flowers-102")  # the second: torchvision's
SETS = {"train": ("trnid", "valid"), "test": ("tstid",)}
REMEDY = (
    "download 102flowers.tgz (and unpack it), imagelabels.mat and setid.mat from "
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ into it"
)


def open_flowers102(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `flowers102:DIR`: "train" is its training and validation images (2,040).

    Linear probes on it are commonly reported this way, by the mean of the classes' accuracies. The
    files do not name the classes: they are "1" to "102".

    Raises:
        ValueError: a file is missing or damaged, or channels other than 1 and 3.
    """
    spec = f"flowers102:{rest}"
    root = find_place("flowers102", rest, INSIDE, "imagelabels.mat", REMEDY)
    classes = _matrix(spec, root / "imagelabels.mat", "labels")
    parts = [_matrix(spec, root / "setid.mat", name) for name in SETS[split]]
    numbers = np.sort(np.concatenate(parts))
    if not ((classes >= 1) & (classes <= CLASSES)).all():
        raise ValueError(f"{spec}: imagelabels.mat holds other classes than 1 to 102; {REMEDY}")
    if not len(numbers) or numbers[0] < 1 or numbers[-1] > len(classes):
        raise ValueError(
            f"{spec}: setid.mat names images other than the {len(classes)} that have labels; "
            f"{REMEDY}"
        )
    return FileSource(
        spec,
        root,
        [f"jpg/image_{number:05d}.jpg" for number in numbers.tolist()],
        (classes[numbers - 1] - 1).tolist(),
        [str(number) for number in range(1, CLASSES + 1)],
        channels,
        metric="mean_per_class",
    )


def _matrix(spec: str, path: Path, name: str) -> Int64[np.ndarray, " N"]:
    from scipy.io import loadmat  # lazy import: it is slow
    from scipy.io.matlab import MatReadError

    try:
        with open_regular(path) as file:
            values = loadmat(file, variable_names=[name])[name]
        if values.dtype.kind not in "iuf":
            raise ValueError(f"its {name} are {values.dtype}")
        return values.ravel().astype(np.int64)
    except FileNotFoundError as error:
        raise ValueError(f"{spec}: there is no file {path}; {REMEDY}") from error
    # SciPy raises any of these for a damaged file
    except (MatReadError, OSError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise ValueError(f"{spec}: {path} has no {name} that can be read ({error!r})") from error
