"""The interfaces of data: a `Source` gives `Sample`s, and an objective gets a `Batch` of views."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jaxtyping import Bool, Float, Int, UInt8, UInt16
from torch import Tensor

from vitrail.nn.random import Draws

Metric = Literal["accuracy", "mean_per_class"]
# "val" is asked for only of a data set whose test data have no labels (`sources.registry`).
Split = Literal["train", "test", "val"]

# Smallest number of pixels of the decoded image for each pixel of a view: the resampling that
# follows still has some to filter. Measured on photographs of 4096 x 4096 pixels as JPEGs of
# quality 90: 99 % of the pixels of drawn views move by 2/255 or less, those of the smallest
# box by 4/255 or less. With 1 it is 97 % of drawn views' pixels (tests/data/views/test_detail.py).
GAP = 2.0

REDUCTIONS = (8, 4, 2)  # divisors that libjpeg has for the sides of an image

# Number of blocks whose samples are shuffled together. More mix better; fewer are open or in memory
# at once.
WINDOW = 8


class Look(NamedTuple):
    """The smallest box that a view can draw.

    Attributes:
        size: side of the view, in pixels.
        share: area of the box, as a share of the image's, in (0, 1].
        ratio: smallest and largest width / height of the box.
    """

    size: int
    share: float
    ratio: tuple[float, float]


@dataclass(frozen=True)
class Detail:
    """The resolution that views need of every image.

    It depends on the views' distributions and not on the draws, so an image is decoded alike at
    every step.

    Attributes:
        looks: the smallest box of each view.
    """

    looks: tuple[Look, ...]

    def reduction(self, height: int, width: int) -> int:
        """Returns the largest of 1, 2, 4, 8 that the sides of an image may be divided by.

        The two sides may be exchanged: an image that lies on its side in the file is reduced as the
        upright one.

        Args:
            height: of the whole image, in pixels.
            width: of the whole image, in pixels.
        """
        for by in REDUCTIONS:
            if all(
                _smallest_side(look, height, width) >= by * GAP * look.size for look in self.looks
            ):
                return by
        return 1


def _smallest_side(look: Look, height: int, width: int) -> float:
    area = look.share * height * width
    narrow, wide = look.ratio
    of_drawn = min(math.sqrt(area / wide), math.sqrt(area * narrow))
    # If no drawn box fits, the box is the largest of an allowed ratio.
    of_central = min(height, width) * min(1, wide, 1 / narrow)
    return min(of_drawn, of_central)


@dataclass(frozen=True)
class Sample:
    """One decoded image with its label and caption.

    Attributes:
        image: uint8 or uint16 [C, H, W]; 0 to the type's largest number stand for 0 to 1.
        label: number of its class, None for no label.
        text: caption, None for no caption.
        id: its name for people: a path relative to the source's folder, or an index.
    """

    image: UInt8[Tensor, "C H W"] | UInt16[Tensor, "C H W"]
    label: int | None
    text: str | None
    id: str


class Header(NamedTuple):
    """What the first bytes of an image's file say.

    Attributes:
        height: of the image, in pixels.
        width: of the image, in pixels.
        mode: its kind of pixels, by Pillow's name ("RGB", "L", "I;16"), or the type of an array.
    """

    height: int
    width: int
    mode: str


class Mask(NamedTuple):
    """The objects of an image, at the image's size.

    Attributes:
        foreground: bool [H, W], the pixels of objects.
        ignored: bool [H, W], pixels that no score counts.
    """

    foreground: Bool[Tensor, "H W"]
    ignored: Bool[Tensor, "H W"]


class BadSampleError(Exception):
    """A sample that cannot be used. The loader quarantines it; alone it never stops a run."""

    def __init__(self, id: str, reason: str):
        super().__init__(f"{id}: {reason}")
        self.id = id
        self.reason = reason


class NoTestSplitError(ValueError):
    """The source has no test split of its own; `data.subset.hold_out` makes one."""


def label_of(number: Any) -> int | None:
    """Returns the label that a class number stands for: None for a negative one."""
    number = int(number)
    return None if number < 0 else number


def number_of(label: int | None) -> int:
    """Returns the class number of a label: -1 for None, as arrays and batches hold it."""
    return -1 if label is None else label


class Source(ABC):
    """A sequence of images. Reading is a pure function of the index, safe in worker processes.

    Attributes:
        spec: as the user wrote it, such as "folder:DIR".
        channels: of every image read.
        bits: of every pixel read: 8 (uint8) or 16 (uint16).
        classes: names of the classes, None if the source has no labels.
        captioned: true if every sample that can be read has a text.
        metric: score that is reported on it; mean_per_class suits classes of different size.
        masked: true if its samples have masks.
        notes: a sentence on everything that was left out, cut or guessed when it was opened, with
            the number and the first of its kind.
        unlabelled: the reason why it has no labels, "" if it has some or nothing is known.
    """

    spec: str
    channels: int
    bits: Literal[8, 16] = 8
    classes: Sequence[str] | None
    captioned: bool = False
    metric: Metric = "accuracy"
    masked: bool = False
    notes: tuple[str, ...] = ()
    unlabelled: str = ""

    # Class number of each sample, negative for no label; None if no sample has one. A source that
    # finds labels another way overrides `label`.
    _labels: Any = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int, detail: Detail | None = None) -> Sample:
        """Decodes a sample.

        Args:
            index: of the sample.
            detail: resolution that is needed; a larger image may come smaller. None: whole.

        Raises:
            BadSampleError: it cannot be decoded; names the sample and the reason.
        """

    @abstractmethod
    def id(self, index: int) -> str:
        """Returns the sample's name, without decoding it."""

    def label(self, index: int) -> int | None:
        """Returns the sample's class, None for no label, without decoding it."""
        return None if self._labels is None else label_of(self._labels[index])

    def text(self, index: int) -> str | None:
        """Returns the sample's caption, None for no caption, without decoding it."""
        return None

    def mask(self, index: int) -> Mask | None:
        """Returns the sample's objects as people have marked them, None for no mask.

        Raises:
            BadSampleError: as `read`.
        """
        return None

    def header(self, index: int) -> Header | None:
        """Returns an image's size and kind without decoding its pixels; None if that is unknown."""
        return None

    def picture(self, index: int) -> str:
        """Returns a name of the image: samples of one image with several captions share it."""
        return self.id(index)

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a digest that changes when the samples or their order change.

        A resumed run compares it.
        """

    def written(self) -> Sequence[tuple[str, int, int]]:
        """Returns (name, time in ns, inode) of files whose content the fingerprint does not hold.

        The time is that of the last change. Of many files it is a sample that depends only on their
        number. A copy of the data has the same names, and other inodes.
        """
        return ()

    def pixels(self) -> UInt8[Tensor, "N C H W"] | UInt16[Tensor, "N C H W"] | None:
        """Returns all images as one tensor if the source lives in memory, else None."""
        return None

    def blocks(self) -> Sequence[range] | None:
        """Returns runs of samples that are stored together, such as those of one archive.

        Reading a few blocks at a time is then much faster than reading at random. None if the place
        of a sample makes no difference.
        """
        return None


@dataclass(frozen=True)
class Batch:
    """One rank's slice of the global batch, or an accumulation slice of that.

    Attributes:
        views: one normalised float32 tensor [V*B, C, S, S] per resolution, in the plan's order;
            rows are view-major: row v * B + b is view v of sample b.
        index: int64 [B], positions in the source.
        label: int64 [B], -1 for no label.
        draws: this slice's random numbers, for masks and stochastic depth.
        text: B captions, None if the source has none.
    """

    views: list[Float[Tensor, "_ C _ _"]]
    index: Int[Tensor, " B"]
    label: Int[Tensor, " B"]
    draws: Draws
    text: tuple[str, ...] | None = None

    @property
    def size(self) -> int:
        """B, the number of samples in this slice."""
        return self.index.shape[0]
