"""ImageNet-1k (Russakovsky et al. 2015, ILSVRC 2012) as its folders of classes."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from vitrail.data.contract import Source, Split
from vitrail.data.sources.formats.folder import open_folder
from vitrail.data.sources.spec import find_place, read_lines
from vitrail.data.sources.splits import no_test_split

logger = logging.getLogger(__name__)

INSIDE = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # the others: Kaggle's
FOLDERS = {"train": "train", "test": "val"}  # Kaggle's folder `test` has no classes
META = "meta.bin"  # torchvision's
MAPPING = "LOC_synset_mapping.txt"  # Kaggle's: a line a class, "n01440764 tench, Tinca tinca"
REMEDY = (
    "put ILSVRC2012 (https://image-net.org/download) there as train/n01440764/*.JPEG and "
    "val/n01440764/*.JPEG"
)


def open_imagenet(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `imagenet:DIR`: DIR/train and DIR/val with a subfolder a class. "test" is val.

    Classes have their first name if torchvision's meta.bin or Kaggle's LOC_synset_mapping.txt is
    there, else their WordNet number.

    Raises:
        ValueError: no such folders, or val without subfolders, as in the archive.
        NoTestSplitError: "test" without val.
    """
    spec = f"imagenet:{rest}"
    root = find_place("imagenet", rest, INSIDE, "train", REMEDY)
    has_val = (root / "val").is_dir()
    if split == "test" and not has_val:
        raise no_test_split(spec, f"there is no {root / 'val'}", "add it")
    if has_val and not any(path.is_dir() for path in (root / "val").iterdir()):
        raise ValueError(
            f"{spec}: the images in {root / 'val'} are not in subfolders, so that nothing tells "
            "their classes; move them into those of train (val/n01440764/...), as torchvision's "
            "ImageNet does from the archives"
        )
    source = open_folder(str(root if has_val else root / "train"), split, channels, FOLDERS)
    source.spec = spec
    if source.classes is not None:
        source.classes = _readable(list(source.classes), _names(root))
    return source


def _readable(wnids: list[str], names: Mapping[str, str]) -> list[str]:
    """Returns the first name of each class, or all names if two classes share it (crane)."""
    first = {wnid: names.get(wnid, wnid).split(",")[0] for wnid in wnids}
    times = Counter(first.values())
    return [first[w] if times[first[w]] == 1 else names.get(w, w) for w in wnids]


def _names(root: Path) -> dict[str, str]:
    """Returns the names of each WordNet number, comma-separated; empty without a list of names."""
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
    # whatever it raises: names are for people, and the numbers serve as well
    except Exception as error:
        logger.warning("%s is not torchvision's list of class names (%s)", path, error)
        return {}
