"""The table of sources: the kinds of data that `--data SPEC` can name. It does not import torch."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitrail.config import nearest
from vitrail.registry import Registry, Row, resolve

if TYPE_CHECKING:
    import vitrail.data.contract

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceRow(Row):
    """One kind of source.

    Attributes:
        open: "package.module:function", or the function itself. It is called with the part of the
            SPEC after the colon, the split ("train" or "test"), and the number of channels or None,
            and returns a `data.contract.Source`.
        summary: one line on what it reads.
        usage: form of its SPEC, as `folder:DIR[,bits=16]`; "" if it is the name alone.
        takes_path: true if a path follows the colon; "a folder": a path if there is such a folder,
            else a name. A path becomes absolute before a run saves it.
        variants: words that may stand in place of the path, or before it with another colon.
        has_parts: true if `open` also takes the split "val": validation data as such, which are the
            test split of a data set whose test data have no labels.
    """

    open: str | Callable[..., "vitrail.data.contract.Source"]
    summary: str
    usage: str = ""
    takes_path: bool | Literal["a folder"] = False
    variants: tuple[str, ...] = ()
    has_parts: bool = False


SOURCES = Registry(
    "source",
    SourceRow,
    {
        "cifar10": SourceRow(
            "vitrail.data.sources.datasets.cifar:open_cifar10",
            "CIFAR-10's binary version, or the Python one as torchvision has it",
            "cifar10:DIR",
            takes_path=True,
        ),
        "cifar100": SourceRow(
            "vitrail.data.sources.datasets.cifar:open_cifar100",
            "CIFAR-100 by its 100 fine classes, as cifar10",
            "cifar100:DIR",
            takes_path=True,
        ),
        "coco": SourceRow(
            "vitrail.data.sources.datasets.coco:open_coco_images",
            "COCO's train2017 and val2017 images, with masks of their objects",
            "coco:DIR",
            takes_path=True,
        ),
        "digits": SourceRow(
            "vitrail.data.sources.datasets.digits:open_digits",
            "scikit-learn's 1797 handwritten digits; scattered: over a larger canvas",
            "digits[:scattered]",
            takes_path=False,
        ),
        "emoji": SourceRow(
            "vitrail.data.sources.datasets.emoji:open_emoji",
            "emoji captioned by name, font and list from DIR or Debian; subgroups: finer classes",
            "emoji[:subgroups][:DIR]",
            takes_path=True,
            variants=("subgroups",),
        ),
        "fashion-mnist": SourceRow(
            "vitrail.data.sources.datasets.fashion_mnist:open_fashion_mnist",
            "the four IDX .gz files in DIR (default: Debian's package, else a download)",
            "fashion-mnist[:DIR]",
            takes_path=True,
        ),
        "flowers102": SourceRow(
            "vitrail.data.sources.datasets.flowers102:open_flowers102",
            "Oxford Flowers 102 (jpg, imagelabels.mat, setid.mat)",
            "flowers102:DIR",
            takes_path=True,
        ),
        "folder": SourceRow(
            "vitrail.data.sources.formats.folder:open_folder",
            "any folder of images, flat or nested, labelled or not; FILE, in DIR: a table of "
            "labels",
            "folder:DIR[,labels=FILE][,bits=16]",
            takes_path=True,
            has_parts=True,
        ),
        "hf": SourceRow(
            "vitrail.data.sources.formats.hf:open_hf",
            "a data set of the Hugging Face hub, or a folder that `datasets` has saved",
            "hf:NAME[,config=..][,split=..][,image=..][,label=..][,text=..][,stream=yes]",
            takes_path="a folder",
            has_parts=True,
        ),
        "imagenet": SourceRow(
            "vitrail.data.sources.datasets.imagenet:open_imagenet",
            "ImageNet-1k as DIR/train and DIR/val, a subfolder a class",
            "imagenet:DIR",
            takes_path=True,
        ),
        "npy": SourceRow(
            "vitrail.data.sources.formats.arrays:open_npy",
            "an array of images, uint8 or uint16, of any channel count; labels beside it",
            "npy:FILE[,labels=FILE][,axes=NHWC]",
            takes_path=True,
        ),
        "npz": SourceRow(
            "vitrail.data.sources.formats.arrays:open_npz",
            "arrays by name: images and labels, x_train and y_test, train_images, ...",
            "npz:FILE[,images=KEY][,labels=KEY|none][,axes=NHWC]",
            takes_path=True,
            has_parts=True,
        ),
        "pairs": SourceRow(
            "vitrail.data.sources.formats.pairs:open_pairs",
            "images and captions by a table of paths: .csv, .tsv, .jsonl or .parquet",
            "pairs:FILE",
            takes_path=True,
            has_parts=True,
        ),
        "parquet": SourceRow(
            "vitrail.data.sources.formats.parquet:open_parquet",
            "images inside Parquet files, in Hugging Face's layout",
            "parquet:PATTERN[,test=PATTERN][,image=COLUMN][,label=COLUMN][,text=COLUMN]",
            takes_path=True,
            has_parts=True,
        ),
        "pets": SourceRow(
            "vitrail.data.sources.datasets.pets:open_pets",
            "Oxford-IIIT Pets (images, annotations), with masks of the animals",
            "pets:DIR",
            takes_path=True,
        ),
        "stl10": SourceRow(
            "vitrail.data.sources.datasets.stl10:open_stl10",
            "STL-10's binary files; unlabeled: its 100,000 images without labels",
            "stl10[:unlabeled]:DIR",
            takes_path=True,
            variants=("unlabeled",),
        ),
        "voc": SourceRow(
            "vitrail.data.sources.datasets.voc:open_voc",
            "PASCAL VOC's images that have masks of their objects (JPEGImages, SegmentationClass, "
            "...)",
            "voc:DIR",
            takes_path=True,
        ),
        "wds": SourceRow(
            "vitrail.data.sources.formats.wds:open_wds",
            "WebDataset's tar shards on a disk: a folder, wildcards, or {000..099}",
            "wds:PATTERN[,test=PATTERN][,image=EXT][,classes=FILE]",
            takes_path=True,
            has_parts=True,
        ),
    },
)


def open_source(
    spec: str, split: str = "train", channels: int | None = None, quiet: bool = False
) -> "vitrail.data.contract.Source":
    """Opens a split of a data set.

    Its notes, on what was left out, go to the log, each once in a process.

    Args:
        spec: of a form that a row of SOURCES gives (`usage`), such as `digits` or `folder:DIR`.
        split: "train" or "test".
        channels: of every image; None means the source's own number (3 for files).
        quiet: log nothing; the caller shows `Source.notes`.

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
    row = SOURCES[kind]
    if split == "test" and row.has_parts:
        source = _open_test(row, rest, channels)
    else:
        source = resolve(row.open)(rest, split, channels)
    if hasattr(source, "lost_notes"):  # a source of files
        source.notes = (*source.notes, *source.lost_notes())
    if not quiet:
        _log_notes(spec, source.notes)
    return source


def _open_test(row: SourceRow, rest: str, channels: int | None) -> "vitrail.data.contract.Source":
    """Opens the test split; the validation data if the test data's labels are not published."""
    from vitrail.data.sources.splits import ForeignClassesError  # lazy import: it imports torch

    open_: Callable[..., vitrail.data.contract.Source] = resolve(row.open)
    try:
        test = open_(rest, "test", channels)
    except ForeignClassesError as error:
        instead = _open_labelled(open_, rest, channels)
        if instead is None:
            raise
        reason = f" ({error})"
    else:
        if test.captioned or _has_labels(test):
            return test
        instead = _open_labelled(open_, rest, channels)
        if instead is None:
            return test
        reason = ""
    instead.notes = (
        *instead.notes,
        f"the test data have no labels{reason}, so the validation data are the test split",
    )
    return instead


def _open_labelled(
    open_: Callable[..., "vitrail.data.contract.Source"], rest: str, channels: int | None
) -> "vitrail.data.contract.Source | None":
    """Returns the validation data, None without any or without labels."""
    try:
        found = open_(rest, "val", channels)
    except ValueError:
        return None
    return found if _has_labels(found) else None


def _has_labels(source: "vitrail.data.contract.Source") -> bool:
    return any(source.label(index) is not None for index in range(len(source)))


_LOGGED: set[str] = set()  # notes of this process


def _log_notes(spec: str, notes: Sequence[str]) -> None:
    if os.environ.get("RANK", "0") != "0":  # torchrun's other ranks open the same data
        return
    for line in (f"{spec}: {note}" for note in notes):
        if line not in _LOGGED:
            _LOGGED.add(line)
            logger.warning("note: %s", line)


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
