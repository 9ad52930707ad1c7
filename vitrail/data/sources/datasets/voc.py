"""PASCAL VOC's segmentation sets (Everingham et al. 2010): images whose objects are marked.

JPEGImages/NAME.jpg
SegmentationClass/NAME.png          palette: 0 background, 1 to 20 classes, 255 not decided
ImageSets/Segmentation/train.txt, val.txt       a NAME a line
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vitrail.data.contract import Detail, Mask, NoTestSplitError, Sample, Source
from vitrail.data.decode.image import (
    decode_file,
    decode_numbers,
)

IGNORED = 255  # the border of objects, and what was too hard to mark
LISTS = Path("ImageSets/Segmentation")
SPLITS = {"train": "train.txt", "test": "val.txt"}  # the masks of VOC's own test set are not public
INSIDE = ("", "VOC2012", "VOCdevkit/VOC2012")  # where archives put it


class VOCSource(Source):
    """An id is the NAME. Without labels: an image shows objects of several classes."""

    masked = True
    classes = None

    def __init__(self, spec: str, root: Path, names: Sequence[str], channels: int):
        self.spec = spec
        self.channels = channels
        self._root = root
        self._names = tuple(names)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        id = self.id(index)
        path = self._root / "JPEGImages" / f"{id}.jpg"
        return Sample(decode_file(path, self.channels, id, detail), None, None, id)

    def mask(self, index: int) -> Mask:
        """Objects of all classes together."""
        id = self.id(index)
        classes_HW = decode_numbers(self._root / "SegmentationClass" / f"{id}.png", id)
        ignored_HW = classes_HW == IGNORED
        return Mask((classes_HW > 0) & ~ignored_HW, ignored_HW)

    def id(self, index: int) -> str:
        return self._names[index]

    def label(self, index: int) -> int | None:
        return None

    def fingerprint(self) -> str:
        """Of the names: they stand for the same images wherever VOC is."""
        return hashlib.blake2b("\n".join(self._names).encode(), digest_size=16).hexdigest()


def open_voc(rest: str, split: Literal["train", "test"], channels: int | None) -> Source:
    """`voc:DIR`, DIR holding JPEGImages, or VOCdevkit/VOC2012 with it. "test" is VOC's val.

    Raises:
        ValueError: no such folder or list, no names in it, a name that is none, or channels other
            than 1 and 3.
        NoTestSplitError: "test" without val.txt.
    """
    spec = f"voc:{rest}"
    if channels not in (None, 1, 3):
        raise ValueError(f"{spec}: channels is {channels}; image files give 1 (grey) or 3 (RGB)")
    if not rest:
        raise ValueError("voc: names no folder; write voc:DIR")
    given = Path(rest).expanduser()
    root = next((given / sub for sub in INSIDE if (given / sub / "JPEGImages").is_dir()), None)
    if root is None:
        raise ValueError(
            f"{spec}: there is no folder {given / 'JPEGImages'}; name the folder that holds "
            "JPEGImages, SegmentationClass and ImageSets"
        )
    path = root / LISTS / SPLITS[split]
    if split == "test" and not path.exists():
        raise NoTestSplitError(
            f"{spec} has no test split: there is no {path}; add it, or hold samples out with "
            "vitrail.data.subset.hold_out"
        )
    return VOCSource(spec, root, _read_names(spec, path), channels or 3)


def _read_names(spec: str, path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{spec}: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{spec}: {path} is not a list of names in UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    for number, name in enumerate(names, 1):
        # No separators: an image is in the folder.
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"{spec}: {path} names {name!r} (number {number}), which is not the name of an "
                "image in JPEGImages (letters, digits, '_', '-' and '.')"
            )
    if not names:
        raise ValueError(f"{spec}: {path} names no images")
    return names
