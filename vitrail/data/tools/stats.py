"""Statistics of a source's images: mean and standard deviation of each channel, range, sizes.

Shape legend: C channels · N pixels of an image · H, W an image.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import UInt8, UInt16
from rich.table import Table
from torch import Tensor

from vitrail.data.contract import Source
from vitrail.data.loading.loader import read_images
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.subset import Subset
from vitrail.data.tools.progress import Progress
from vitrail.nn.random import philox

TOGETHER = 2**20  # pixels turned to float64 at a time; sums of their squares are exact below 2^53
SHOWN_BAD = 5
CONSTANT = 1e-6  # a std below this is rounding


@dataclass(frozen=True)
class Stats:
    """Statistics of the images of a source.

    Attributes:
        spec: of the source.
        split: "train" or "test".
        total: number of images in the split.
        images: number of images that were read.
        bad: id -> reason of those that cannot be read.
        channels: of every image.
        bits: of every pixel, 8 or 16.
        mean: of each channel, of pixels in [0, 1]; every image counts alike whatever its size, as
            it does in training.
        std: of each channel, likewise.
        lowest: smallest value of each channel, as stored.
        highest: largest value of each channel, as stored.
        smallest: (height, width) of the image of the smallest area, in pixels.
        median: of the heights, and of the widths.
        largest: (height, width) of the image of the largest area, in pixels.
        classes: number of classes, None without labels.
    """

    spec: str
    split: str
    total: int
    images: int
    bad: dict[str, str]
    channels: int
    bits: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    lowest: tuple[int, ...]
    highest: tuple[int, ...]
    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    classes: int | None

    def to_json(self) -> str:
        """Returns one JSON object, indented by two spaces."""
        return json.dumps(asdict(self), indent=2)

    def flags(self) -> str:
        """Returns arguments of `vitrail pretrain`; the std of a constant channel is set to 1."""
        mean, std = (" ".join(map(_number, values)) for values in (self.mean, self._divisors))
        return (
            f"--channels {self.channels} --objective.views.mean {mean} --objective.views.std {std}"
        )

    @property
    def _divisors(self) -> tuple[float, ...]:
        return tuple(1.0 if value < CONSTANT else value for value in self.std)


def statistics(
    source: Source, split: str, most: int | None = None, workers: int = 0, seed: int = 0
) -> Stats:
    """Reads every image once, or a random subset; the sums are in float64.

    Args:
        source: of the images.
        split: its name, for the report.
        most: number of images to read, at least 1; None: all.
        workers: number of processes that decode; 0: this one.
        seed: of the subset.

    Raises:
        ValueError: `most` below 1, or no image can be read.
    """
    if most is not None and most < 1:
        raise ValueError(f"stats: max is {most}; it must be at least 1")
    total = len(source)
    if most is not None and most < total:
        drawn = philox(seed, "stats", 0).permutation(total)[:most]
        source = Subset(source, sorted(drawn.tolist()))
    quarantine = Quarantine(None, len(source), max_fraction=1.0)
    sums = _Sums(source.channels)
    for image in _images(source, quarantine, workers):
        sums.add(image.numpy())
    if not sums.images:
        id, reason = next(iter(quarantine.entries.items()), ("", "there are none"))
        raise ValueError(
            f"{source.spec}: none of its {len(source)} images can be read (the first: "
            f"{json.dumps(id)}: {reason})"
        )
    # The largest value that can be stored stands for 1.
    unit = 2**source.bits - 1
    first_C, second_C = sums.first / sums.images, sums.second / sums.images
    sizes = sorted(sums.sizes, key=lambda size: (size[0] * size[1], size))
    height, width = (
        int(np.median(np.repeat(lengths, [sums.sizes[size] for size in sizes])))
        for lengths in zip(*sizes, strict=True)
    )
    return Stats(
        spec=source.spec,
        split=split,
        total=total,
        images=sums.images,
        bad=dict(quarantine.entries),
        channels=source.channels,
        bits=source.bits,
        mean=tuple((first_C / unit).tolist()),
        std=tuple((np.sqrt(np.maximum(second_C - first_C**2, 0)) / unit).tolist()),
        lowest=tuple(sums.lowest.tolist()),
        highest=tuple(sums.highest.tolist()),
        smallest=sizes[0],
        median=(height, width),
        largest=sizes[-1],
        classes=None if source.classes is None else len(source.classes),
    )


class _Sums:
    """Sums over images: first, second: [C], of the means of their values and of their squares."""

    def __init__(self, channels: int):
        self.images = 0
        self.first, self.second = np.zeros((2, channels))
        self.lowest = np.full(channels, 2**16)
        self.highest = np.full(channels, -1)
        self.sizes: Counter[tuple[int, int]] = Counter()

    def add(self, image: UInt8[np.ndarray, "C H W"] | UInt16[np.ndarray, "C H W"]) -> None:
        values_CN = image.reshape(len(image), -1)
        sums = np.zeros((2, len(image)))
        for start in range(0, values_CN.shape[1], TOGETHER):
            part_Cn = values_CN[:, start : start + TOGETHER].astype(np.float64)
            sums += part_Cn.sum(1), np.einsum("cn,cn->c", part_Cn, part_Cn)
        self.images += 1
        self.first += sums[0] / values_CN.shape[1]
        self.second += sums[1] / values_CN.shape[1]
        self.lowest = np.minimum(self.lowest, values_CN.min(1))
        self.highest = np.maximum(self.highest, values_CN.max(1))
        self.sizes[image.shape[1], image.shape[2]] += 1


def _images(source: Source, quarantine: Quarantine, workers: int) -> Iterator[Tensor]:
    done = 0
    with Progress("stats", len(source)) as progress:
        for index, images in read_images(source, quarantine, workers):
            yield from images
            done += len(index)
            bad = len(quarantine.entries)
            progress.at(done + bad, bad)


def stats_table(stats: Stats) -> Table:
    """Returns a table for a terminal, one row a channel."""
    table = Table()
    for name in ("channel", "mean", "std", "lowest", "highest"):
        table.add_column(name, justify="right")
    rows = zip(stats.mean, stats.std, stats.lowest, stats.highest, strict=True)
    for channel, (mean, std, lowest, highest) in enumerate(rows, 1):
        table.add_row(str(channel), _number(mean), _number(std), f"{lowest:,}", f"{highest:,}")
    return table


def stats_words(stats: Stats) -> list[str]:
    """Returns the lines below the table: sizes, bad images, and a `vitrail pretrain` command."""

    def by(size: tuple[int, int]) -> str:
        return f"{size[0]} x {size[1]}"

    smallest, median, largest = map(by, (stats.smallest, stats.median, stats.largest))
    one = stats.smallest == stats.largest
    lines = [
        f"height x width: {'all ' if one else ''}{smallest}"
        + ("" if one else f" to {largest}, median {median}")
    ]
    lines += [f"bad: {json.dumps(id)}: {why}" for id, why in list(stats.bad.items())[:SHOWN_BAD]]
    if len(stats.bad) > SHOWN_BAD:
        lines.append(f"bad: {len(stats.bad) - SHOWN_BAD} more; --json names all")
    if constant := [str(c) for c, std in enumerate(stats.std, 1) if std < CONSTANT]:
        lines.append(f"constant: channel {', '.join(constant)} tells nothing; its std is set to 1")
    return [*lines, "", "vitrail pretrain RECIPE --data " + shlex.quote(stats.spec) + " \\"] + [
        f"  {flag}" for flag in stats.flags().replace(" --", " \\\n--").split("\n")
    ]


def _number(value: float) -> str:
    """Returns a number with four significant digits."""
    return f"{value:.4f}" if value >= 0.1 or value == 0 else f"{value:#.4g}"


def stats_title(stats: Stats) -> str:
    """Returns the line above the table: the source and the number of images."""
    read = f"{stats.images:,}" + (f" of {stats.total:,}" if stats.images < stats.total else "")
    bad = f", {len(stats.bad):,} bad" if stats.bad else ""
    classes = f", {stats.classes} classes" if stats.classes else ""
    return f"{stats.spec} ({stats.split}): {read} images of {stats.bits} bits{bad}{classes}"
