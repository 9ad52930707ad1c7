"""ImageNet-1k (Russakovsky et al. 2015, ILSVRC 2012) as its folders of classes."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from vitrail.data.contract import NoTestSplitError, Source
from vitrail.data.sources.formats.folder import open_folder
from vitrail.data.sources.spec import find_place, read_lines

logger = logging.getLogger(__name__)

INSIDE = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # the others: Kaggle's
# Kaggle's folder `test` has no classes.
SPLITS = {"train": ("train",), "test": ("val",)}
META = "meta.bin"  # torchvision's
MAPPING = "LOC_synset_mapping.txt"  # Kaggle's: a line a class, "n01440764 tench, Tinca tinca"
REMEDY = (
    "put ILSVRC2012 (https://image-net.org/download) there as train/n01440764/*.JPEG and "
    "val/n01440764/*.JPEG"
)


def open_imagenet(rest: str, split: Literal["train", "test"], channels: int | None) -> Source:
    """`imagenet:DIR`: DIR/train and DIR/val with a subfolder a class. "test" is val.

    Classes are called by their first name where torchvision's meta.bin or Kaggle's
    LOC_synset_mapping.txt is there, else by their WordNet number.

    Raises:
        ValueError: no such folders, or val without subfolders, as the archive has it.
        NoTestSplitError: "test" without val.
    """
    spec = f"imagenet:{rest}"
    root = find_place("imagenet", rest, INSIDE, "train", REMEDY)
    has_val = (root / "val").is_dir()
    if split == "test" and not has_val:
        raise NoTestSplitError(
            f"{spec} has no test split: there is no {root / 'val'}; add it, or hold samples out "
            "with vitrail.data.subset.hold_out"
        )
    if has_val and not any(path.is_dir() for path in (root / "val").iterdir()):
        raise ValueError(
            f"{spec}: the images in {root / 'val'} are not in subfolders, so that nothing tells "
            "their classes; move them into those of train (val/n01440764/...), as torchvision's "
            "ImageNet does from the archives"
        )
    source = open_folder(str(root if has_val else root / "train"), split, channels, SPLITS)
    source.spec = spec
    if source.classes is not None:
        source.classes = _readable(list(source.classes), _names(root))
    return source


def _readable(wnids: list[str], names: Mapping[str, str]) -> list[str]:
    """The first of a class's names, or all where two classes share it (crane, maillot)."""
    first = {wnid: names.get(wnid, wnid).split(",")[0] for wnid in wnids}
    times = Counter(first.values())
    return [first[w] if times[first[w]] == 1 else names.get(w, w) for w in wnids]


def _names(root: Path) -> dict[str, str]:
    """WordNet number -> names, comma-separated; empty where nothing tells them."""
    for folder in (root, *root.parents[:3]):
        if (folder / META).is_file():
            return _read_meta(folder / META)
        if (folder / MAPPING).is_file():
            lines = read_lines("imagenet", folder / MAPPING, REMEDY)
            return dict(line.split(" ", 1) for line in lines if " " in line)
    return {}


def _read_meta(path: Path) -> dict[str, str]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {str(wnid): ", ".join(map(str, names)) for wnid, names in content[0].items()}
    # Whatever it holds: names are for people, and the numbers do as well.
    except Exception as error:
        logger.warning("%s is not torchvision's list of class names (%s)", path, error)
        return {}
