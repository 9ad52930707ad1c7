"""PASCAL VOC's segmentation sets (Everingham et al. 2010): images with masks of their objects.

JPEGImages/NAME.jpg
SegmentationClass/NAME.png          palette: 0 background, 1 to 20 classes, 255 undecided
ImageSets/Segmentation/train.txt, val.txt       a NAME a line
"""

import hashlib
import re
from pathlib import Path

from vitrail.data.contract import Mask, Source, Split
from vitrail.data.decode.image import decode_numbers
from vitrail.data.sources.channels import choose_channels
from vitrail.data.sources.files import FileSource
from vitrail.data.sources.spec import read_regular
from vitrail.data.sources.splits import no_test_split

IGNORED = 255  # the border of objects, and what was too hard to mark
LISTS = Path("ImageSets/Segmentation")
SPLITS = {"train": "train.txt", "test": "val.txt"}  # the masks of VOC's own test set are not public
INSIDE = ("", "VOC2012", "VOCdevkit/VOC2012")  # the others: folders of the archives


class VOCSource(FileSource):
    """Images without labels: one shows objects of several classes. An id is the NAME."""

    masked = True

    def mask(self, index: int) -> Mask:
        """Returns the objects of all classes as one mask."""
        id = self.id(index)
        classes_HW = decode_numbers(self._root / "SegmentationClass" / f"{id}.png", id)
        ignored_HW = classes_HW == IGNORED
        return Mask((classes_HW > 0) & ~ignored_HW, ignored_HW)

    def fingerprint(self) -> str:
        """Returns a digest of the names: VOC has the same images everywhere."""
        return hashlib.blake2b("\n".join(self._ids).encode(), digest_size=16).hexdigest()


def open_voc(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `voc:DIR`, DIR holding JPEGImages, or VOCdevkit/VOC2012 with it. "test" is VOC's val.

    Raises:
        ValueError: no such folder or list, no names in it, a name that is not one of a file, or
            channels other than 1 and 3.
        NoTestSplitError: "test" without val.txt.
    """
    spec = f"voc:{rest}"
    choose_channels(spec, channels)
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
        raise no_test_split(spec, f"there is no {path}", "add it")
    names = _read_names(spec, path)
    paths = [f"JPEGImages/{name}.jpg" for name in names]
    return VOCSource(spec, root, paths, channels=channels, ids=names)


def _read_names(spec: str, path: Path) -> list[str]:
    try:
        lines = read_regular(path).decode().splitlines()
    except OSError as error:
        raise ValueError(f"{spec}: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{spec}: {path} is not a list of names in UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    for number, name in enumerate(names, 1):
        # no separators: an image is in the folder
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"{spec}: {path} names {name!r} (number {number}), which is not the name of an "
                "image in JPEGImages (letters, digits, '_', '-' and '.')"
            )
    if not names:
        raise ValueError(f"{spec}: {path} names no images")
    return names
