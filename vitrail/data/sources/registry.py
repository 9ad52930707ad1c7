"""The table of sources: the kinds of data that `--data SPEC` can name. It does not import torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitrail.config import nearest
from vitrail.registry import Registry, resolve

if TYPE_CHECKING:
    import vitrail.data.contract


@dataclass(frozen=True)
class SourceRow:
    """One kind of source.

    Attributes:
        usage: form of its SPEC, as `folder:DIR[,bits=16]`.
        summary: one line on what it reads.
        open: "package.module:function", or the function itself. It is called with the part of the
            SPEC after the colon, the split ("train" or "test"), and the number of channels or None,
            and returns a `data.contract.Source`.
        takes_path: true if a path follows the colon; "a folder": a path if there is such a folder,
            else a name. A path becomes absolute before a run saves it.
        variants: words that may stand in place of the path, or before it with another colon.
    """

    usage: str
    summary: str
    open: str | Callable[..., "vitrail.data.contract.Source"]
    takes_path: bool | Literal["a folder"]
    variants: tuple[str, ...] = ()


ROWS = {
    "cifar10": SourceRow(
        "cifar10:DIR",
        "CIFAR-10's binary version, or the Python one as torchvision has it",
        "vitrail.data.sources.datasets.cifar:open_cifar10",
        takes_path=True,
    ),
    "cifar100": SourceRow(
        "cifar100:DIR",
        "CIFAR-100 by its 100 fine classes, as cifar10",
        "vitrail.data.sources.datasets.cifar:open_cifar100",
        takes_path=True,
    ),
    "coco": SourceRow(
        "coco:DIR",
        "COCO's train2017 and val2017 images, with masks of their objects",
        "vitrail.data.sources.datasets.coco:open_coco_images",
        takes_path=True,
    ),
    "digits": SourceRow(
        "digits[:scattered]",
        "scikit-learn's 1797 handwritten digits; scattered: over a larger canvas",
        "vitrail.data.sources.datasets.digits:open_digits",
        takes_path=False,
    ),
    "emoji": SourceRow(
        "emoji[:subgroups][:DIR]",
        "emoji captioned by name, font and list from DIR or Debian; subgroups: finer classes",
        "vitrail.data.sources.datasets.emoji:open_emoji",
        takes_path=True,
        variants=("subgroups",),
    ),
    "fashion-mnist": SourceRow(
        "fashion-mnist[:DIR]",
        "the four IDX .gz files in DIR (default: Debian's package, else a download)",
        "vitrail.data.sources.datasets.fashion_mnist:open_fashion_mnist",
        takes_path=True,
    ),
    "flowers102": SourceRow(
        "flowers102:DIR",
        "Oxford Flowers 102 (jpg, imagelabels.mat, setid.mat)",
        "vitrail.data.sources.datasets.flowers102:open_flowers102",
        takes_path=True,
    ),
    "folder": SourceRow(
        "folder:DIR[,labels=FILE][,bits=16]",
        "any folder of images, flat or nested, labelled or not; FILE, in DIR: a table of labels",
        "vitrail.data.sources.formats.folder:open_folder",
        takes_path=True,
    ),
    "hf": SourceRow(
        "hf:NAME[,config=..][,split=..][,image=..][,label=..][,text=..][,stream=yes]",
        "a data set of the Hugging Face hub, or a folder that `datasets` has saved",
        "vitrail.data.sources.formats.hf:open_hf",
        takes_path="a folder",
    ),
    "imagenet": SourceRow(
        "imagenet:DIR",
        "ImageNet-1k as DIR/train and DIR/val, a subfolder a class",
        "vitrail.data.sources.datasets.imagenet:open_imagenet",
        takes_path=True,
    ),
    "npy": SourceRow(
        "npy:FILE[,labels=FILE][,axes=NHWC]",
        "an array of images, uint8 or uint16, of any channel count; labels beside it",
        "vitrail.data.sources.formats.arrays:open_npy",
        takes_path=True,
    ),
    "npz": SourceRow(
        "npz:FILE[,images=KEY][,labels=KEY|none][,axes=NHWC]",
        "arrays by name: images and labels, x_train and y_test, train_images, ...",
        "vitrail.data.sources.formats.arrays:open_npz",
        takes_path=True,
    ),
    "pairs": SourceRow(
        "pairs:FILE",
        "images and captions by a table of paths: .csv, .tsv, .jsonl or .parquet",
        "vitrail.data.sources.formats.pairs:open_pairs",
        takes_path=True,
    ),
    "parquet": SourceRow(
        "parquet:PATTERN[,test=PATTERN][,image=COLUMN][,label=COLUMN][,text=COLUMN]",
        "images inside Parquet files, in Hugging Face's layout",
        "vitrail.data.sources.formats.parquet:open_parquet",
        takes_path=True,
    ),
    "pets": SourceRow(
        "pets:DIR",
        "Oxford-IIIT Pets (images, annotations), with masks of the animals",
        "vitrail.data.sources.datasets.pets:open_pets",
        takes_path=True,
    ),
    "stl10": SourceRow(
        "stl10[:unlabeled]:DIR",
        "STL-10's binary files; unlabeled: its 100,000 images without labels",
        "vitrail.data.sources.datasets.stl10:open_stl10",
        takes_path=True,
        variants=("unlabeled",),
    ),
    "voc": SourceRow(
        "voc:DIR",
        "PASCAL VOC's images that have masks of their objects (JPEGImages, SegmentationClass, ...)",
        "vitrail.data.sources.datasets.voc:open_voc",
        takes_path=True,
    ),
    "wds": SourceRow(
        "wds:PATTERN[,test=PATTERN][,image=EXT][,classes=FILE]",
        "WebDataset's tar shards on a disk: a folder, wildcards, or {000..099}",
        "vitrail.data.sources.formats.wds:open_wds",
        takes_path=True,
    ),
}

SOURCES = Registry("source", SourceRow, ROWS)


def open_source(
    spec: str, split: str = "train", channels: int | None = None
) -> "vitrail.data.contract.Source":
    """Opens a split of a data set.

    Args:
        spec: of a form that a row of SOURCES gives (`usage`), such as `digits` or `folder:DIR`.
        split: "train" or "test".
        channels: of every image; None means the source's own number (3 for files).

    Raises:
        ValueError: the spec, or the data that it names, cannot be used; says why and the remedy.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'test'")
    kind, _, rest = spec.partition(":")
    if kind not in SOURCES:
        near = nearest(kind.lower(), SOURCES)
        hint = f"did you mean {near!r}? " if near else ""
        if spec and Path(spec).expanduser().is_dir():
            hint = f"for the images in that folder write folder:{spec}; "
        raise ValueError(
            f"unknown data {spec!r}; {hint}it is one of {', '.join(SOURCES)}, and most go on with "
            "a colon and a path, as folder:DIR (`vitrail list sources` shows how each is written)"
        )
    return resolve(SOURCES[kind].open)(rest, split, channels)


def resolve_spec(spec: str) -> str:
    """Returns the SPEC with its path, if any, absolute: it then means the same from any folder."""
    name, _, path = spec.partition(":")
    if name not in SOURCES:
        return spec
    row = SOURCES[name]
    variant, _, after = path.partition(":")
    if variant in row.variants:
        name, path = f"{name}:{variant}", after
    if not row.takes_path or not path or path.startswith(","):
        return spec
    if row.takes_path == "a folder" and not Path(path.split(",")[0]).expanduser().is_dir():
        return spec
    return f"{name}:{Path(path).expanduser().absolute()}"
