"""The table of sources: what `--data SPEC` can name."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, cast

from vitrail.data.batch import Source
from vitrail.data.digits import open_digits
from vitrail.data.emoji import open_emoji
from vitrail.data.fashion_mnist import open_fashion_mnist
from vitrail.data.folder import open_folder
from vitrail.data.pairs import open_pairs
from vitrail.data.voc import open_voc

Split = Literal["train", "test"]


class SourceKind(NamedTuple):
    """`open` gets what follows the colon of a spec, the split, and the channels or None.

    takes_path: what follows the colon is a path. variants: words that may stand there instead,
    or before the path and a colon of their own.
    """

    usage: str
    help: str
    open: Callable[[str, Split, int | None], Source]
    takes_path: bool
    variants: tuple[str, ...] = ()


SOURCES: dict[str, SourceKind] = {
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
    "folder": SourceKind(
        "folder:DIR",
        "any folder of images, flat or nested, labelled or not",
        open_folder,
        takes_path=True,
    ),
    "pairs": SourceKind(
        "pairs:FILE",
        "images and captions by a table of paths: .csv, .tsv, .jsonl or .parquet",
        open_pairs,
        takes_path=True,
    ),
    "voc": SourceKind(
        "voc:DIR",
        "PASCAL VOC's images that have masks of their objects (JPEGImages, SegmentationClass, ...)",
        open_voc,
        takes_path=True,
    ),
}


def open_source(spec: str, split: str = "train", channels: int | None = None) -> Source:
    """Opens what a spec names.

    Args:
        spec: `digits[:scattered]`, `emoji[:subgroups][:DIR]`, `fashion-mnist[:DIR]`, `folder:DIR`,
            `pairs:FILE` or `voc:DIR`.
        split: "train" or "test".
        channels: of every image; None means the source's own number (3 for files).

    Raises:
        ValueError: naming what is wrong with the spec or with what it points at, and the remedy.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'test'")
    kind, _, rest = spec.partition(":")
    if kind not in SOURCES:
        near = difflib.get_close_matches(kind, SOURCES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        usages = ", ".join(source.usage for source in SOURCES.values())
        raise ValueError(f"unknown data {spec!r}; {hint}it can be {usages}")
    return SOURCES[kind].open(rest, cast(Split, split), channels)


def resolve_spec(spec: str) -> str:
    """The SPEC with its path, if it has one, absolute, so that it means the same from anywhere."""
    name, _, path = spec.partition(":")
    kind = SOURCES.get(name)
    variant, _, after = path.partition(":")
    if kind is not None and variant in kind.variants:
        name, path = f"{name}:{variant}", after
    if kind is None or not kind.takes_path or not path:
        return spec
    return f"{name}:{Path(path).expanduser().absolute()}"
