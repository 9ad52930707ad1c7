"""The table of sources: what `--data SPEC` can name."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, cast

from vitrail.data.contract import Source
from vitrail.data.sources.datasets.cifar import open_cifar10, open_cifar100
from vitrail.data.sources.datasets.coco import open_coco_images
from vitrail.data.sources.datasets.digits import open_digits
from vitrail.data.sources.datasets.emoji import open_emoji
from vitrail.data.sources.datasets.fashion_mnist import open_fashion_mnist
from vitrail.data.sources.datasets.flowers102 import open_flowers102
from vitrail.data.sources.datasets.imagenet import open_imagenet
from vitrail.data.sources.datasets.pets import open_pets
from vitrail.data.sources.datasets.stl10 import open_stl10
from vitrail.data.sources.datasets.voc import open_voc
from vitrail.data.sources.formats.arrays import open_npy, open_npz
from vitrail.data.sources.formats.folder import open_folder
from vitrail.data.sources.formats.hf import open_hf
from vitrail.data.sources.formats.pairs import open_pairs
from vitrail.data.sources.formats.parquet import open_parquet
from vitrail.data.sources.formats.wds import open_wds

Split = Literal["train", "test"]


class SourceKind(NamedTuple):
    """`open` gets what follows the colon of a spec, the split, and the channels or None.

    takes_path: what follows the colon is a path; "a folder": it is where there is such a folder,
    and a name else. variants: words that may stand there instead, or before the path and a colon
    of their own.
    """

    usage: str
    help: str
    open: Callable[[str, Split, int | None], Source]
    takes_path: bool | Literal["a folder"]
    variants: tuple[str, ...] = ()


SOURCES: dict[str, SourceKind] = {
    "cifar10": SourceKind(
        "cifar10:DIR",
        "CIFAR-10's binary version, or the Python one as torchvision has it",
        open_cifar10,
        takes_path=True,
    ),
    "cifar100": SourceKind(
        "cifar100:DIR",
        "CIFAR-100 by its 100 fine classes, as cifar10",
        open_cifar100,
        takes_path=True,
    ),
    "coco": SourceKind(
        "coco:DIR",
        "COCO's train2017 and val2017 images, with masks of their objects",
        open_coco_images,
        takes_path=True,
    ),
    "digits": SourceKind(
        "digits[:scattered]",
        "scikit-learn's 1797 handwritten digits; scattered: over a larger canvas",
        open_digits,
        takes_path=False,
    ),
    "emoji": SourceKind(
        "emoji[:subgroups][:DIR]",
        "emoji captioned by name, font and list from DIR or Debian; subgroups: finer classes",
        open_emoji,
        takes_path=True,
        variants=("subgroups",),
    ),
    "fashion-mnist": SourceKind(
        "fashion-mnist[:DIR]",
        "the four IDX .gz files in DIR (default: Debian's package, else a download)",
        open_fashion_mnist,
        takes_path=True,
    ),
    "flowers102": SourceKind(
        "flowers102:DIR",
        "Oxford Flowers 102 (jpg, imagelabels.mat, setid.mat)",
        open_flowers102,
        takes_path=True,
    ),
    "folder": SourceKind(
        "folder:DIR[,labels=FILE][,bits=16]",
        "any folder of images, flat or nested, labelled or not; FILE, in DIR: a table of labels",
        open_folder,
        takes_path=True,
    ),
    "hf": SourceKind(
        "hf:NAME[,config=..][,split=..][,image=..][,label=..][,text=..][,stream=yes]",
        "a data set of the Hugging Face hub, or a folder that `datasets` has saved",
        open_hf,
        takes_path="a folder",
    ),
    "imagenet": SourceKind(
        "imagenet:DIR",
        "ImageNet-1k as DIR/train and DIR/val, a subfolder a class",
        open_imagenet,
        takes_path=True,
    ),
    "npy": SourceKind(
        "npy:FILE[,labels=FILE][,axes=NHWC]",
        "an array of images, uint8 or uint16, of any channel count; labels beside it",
        open_npy,
        takes_path=True,
    ),
    "npz": SourceKind(
        "npz:FILE[,images=KEY][,labels=KEY|none][,axes=NHWC]",
        "arrays by name: images and labels, x_train and y_test, train_images, ...",
        open_npz,
        takes_path=True,
    ),
    "pairs": SourceKind(
        "pairs:FILE",
        "images and captions by a table of paths: .csv, .tsv, .jsonl or .parquet",
        open_pairs,
        takes_path=True,
    ),
    "parquet": SourceKind(
        "parquet:PATTERN[,test=PATTERN][,image=COLUMN][,label=COLUMN][,text=COLUMN]",
        "images inside Parquet files, in Hugging Face's layout",
        open_parquet,
        takes_path=True,
    ),
    "pets": SourceKind(
        "pets:DIR",
        "Oxford-IIIT Pets (images, annotations), with masks of the animals",
        open_pets,
        takes_path=True,
    ),
    "stl10": SourceKind(
        "stl10[:unlabeled]:DIR",
        "STL-10's binary files; unlabeled: its 100,000 images without labels",
        open_stl10,
        takes_path=True,
        variants=("unlabeled",),
    ),
    "voc": SourceKind(
        "voc:DIR",
        "PASCAL VOC's images that have masks of their objects (JPEGImages, SegmentationClass, ...)",
        open_voc,
        takes_path=True,
    ),
    "wds": SourceKind(
        "wds:PATTERN[,test=PATTERN][,image=EXT][,classes=FILE]",
        "WebDataset's tar shards on a disk: a folder, wildcards, or {000..099}",
        open_wds,
        takes_path=True,
    ),
}


def open_source(spec: str, split: str = "train", channels: int | None = None) -> Source:
    """Opens what a spec names.

    Args:
        spec: as a row of SOURCES says (`usage`), such as `digits` or `folder:DIR`.
        split: "train" or "test".
        channels: of every image; None means the source's own number (3 for files).

    Raises:
        ValueError: naming what is wrong with the spec or with what it points at, and the remedy.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'test'")
    kind, _, rest = spec.partition(":")
    if kind not in SOURCES:
        near = difflib.get_close_matches(kind.lower(), SOURCES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        if spec and Path(spec).expanduser().is_dir():
            hint = f"for the images in that folder write folder:{spec}; "
        raise ValueError(
            f"unknown data {spec!r}; {hint}it is one of {', '.join(SOURCES)}, and most go on with "
            "a colon and a path, as folder:DIR (`vitrail list sources` shows how each is written)"
        )
    return SOURCES[kind].open(rest, cast(Split, split), channels)


def resolve_spec(spec: str) -> str:
    """The SPEC with its path, if it has one, absolute, so that it means the same from anywhere."""
    name, _, path = spec.partition(":")
    kind = SOURCES.get(name)
    variant, _, after = path.partition(":")
    if kind is not None and variant in kind.variants:
        name, path = f"{name}:{variant}", after
    if kind is None or not kind.takes_path or not path or path.startswith(","):
        return spec
    if kind.takes_path == "a folder" and not Path(path.split(",")[0]).expanduser().is_dir():
        return spec
    return f"{name}:{Path(path).expanduser().absolute()}"
