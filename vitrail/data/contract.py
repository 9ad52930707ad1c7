"""What flows down the river: a `Sample` out of a source, a `Batch` into an objective."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import Bool, Float, Int, UInt8, UInt16
from torch import Tensor

from vitrail.nn.random import Draws

Metric = Literal["accuracy", "mean_per_class"]

# Pixels of the decoded image, at least, for each pixel of a view: the resampling that follows still
# has room for its own, better filter. Measured on photographs of 4096 x 4096 pixels as JPEGs of
# quality 90: 99 % of the pixels of drawn views move by 2/255 or less, those of the smallest
# box by 4/255 or less. With 1 it is 97 % of drawn views' pixels (tests/data/views/test_detail.py).
GAP = 2.0

REDUCTIONS = (8, 4, 2)  # what libjpeg can divide an image's sides by


class Look(NamedTuple):
    """A view's smallest box: its share of the image's area, and the range of width / height."""

    size: int
    share: float
    ratio: tuple[float, float]


@dataclass(frozen=True)
class Detail:
    """What is looked at in every image. It depends on the views' distributions, not on what is
    drawn from them, so that an image is decoded alike at every step.
    """

    looks: tuple[Look, ...]

    def reduction(self, height: int, width: int) -> int:
        """The largest of 1, 2, 4, 8 to divide the sides of an image by.

        Args:
            height, width: of the whole image, in pixels. Which is which does not matter: an image
                that lies on its side in the file may be looked at upright.
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
    # Where none that is drawn fits, the box is the largest of an allowed ratio.
    of_central = min(height, width) * min(1, wide, 1 / narrow)
    return min(of_drawn, of_central)


@dataclass(frozen=True)
class Sample:
    """One decoded image.

    image: uint8 or uint16 [C, H, W], 0 to the type's largest number, which stand for 0 to 1;
    label: class index or None; text: caption or None;
    id: what a person calls it (a path relative to the source's folder, or an index).
    """

    image: UInt8[Tensor, "C H W"] | UInt16[Tensor, "C H W"]
    label: int | None
    text: str | None
    id: str


class Mask(NamedTuple):
    """What is an object in an image, at the image's size; `ignored` pixels do not count."""

    foreground: Bool[Tensor, "H W"]
    ignored: Bool[Tensor, "H W"]


class BadSampleError(Exception):
    """A sample that cannot be used. The loader quarantines it; it never stops a run by itself."""

    def __init__(self, id: str, reason: str):
        super().__init__(f"{id}: {reason}")
        self.id = id
        self.reason = reason


class NoTestSplitError(ValueError):
    """The source has no test split of its own; `data.memory.hold_out` makes one."""


class Source(ABC):
    """Where images come from. Reading is a pure function of the index, safe in worker processes."""

    spec: str  # what the user wrote
    channels: int  # of every image read
    bits: Literal[8, 16] = 8  # of every pixel read: uint8 or uint16
    classes: Sequence[str] | None  # label names, None if the source has no labels
    captioned: bool = False  # every sample that can be read has a text
    metric: Metric = "accuracy"  # what is reported on it; the other where classes differ in size
    masked: bool = False  # and has a mask

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int, detail: Detail | None = None) -> Sample:
        """Decodes sample `index`. Raises BadSampleError, naming the sample and the reason.

        Args:
            detail: what will be looked at; an image that has more may come smaller. None: whole.
        """

    @abstractmethod
    def id(self, index: int) -> str:
        """The sample's name, without decoding it."""

    @abstractmethod
    def label(self, index: int) -> int | None:
        """The sample's class, without decoding it."""

    def text(self, index: int) -> str | None:
        """The sample's caption, without decoding it; None where there is none."""
        return None

    def mask(self, index: int) -> Mask | None:
        """The sample's objects as people have marked them, None where they have not.

        Raises BadSampleError, as `read`.
        """
        return None

    def picture(self, index: int) -> str:
        """What names the image: the samples of an image of several captions share it."""
        return self.id(index)

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the samples or their order change. A resumed run compares it."""

    def pixels(self) -> UInt8[Tensor, "N C H W"] | UInt16[Tensor, "N C H W"] | None:
        """All images as one tensor if the source lives in memory, else None."""
        return None

    def blocks(self) -> Sequence[range] | None:
        """All samples in runs that lie together (an archive each), or None if any is as near.

        Reading a few blocks at a time is then much faster than reading here and there.
        """
        return None


@dataclass(frozen=True)
class Batch:
    """One rank's slice of the global batch (or an accumulation slice of that).

    views: one normalised float32 tensor [V*B, C, S, S] per resolution, in the plan's order;
        rows are view-major: row v * B + b is view v of sample b.
    index: int64 [B], positions in the source. label: int64 [B], -1 where there is none.
    draws: this slice's randomness, for masks and stochastic depth.
    text: B captions, None where the source has none.
    """

    views: list[Float[Tensor, "_ C _ _"]]
    index: Int[Tensor, " B"]
    label: Int[Tensor, " B"]
    draws: Draws
    text: tuple[str, ...] | None = None

    @property
    def size(self) -> int:
        """B, the samples in this slice."""
        return self.index.shape[0]


# Blocks whose samples are shuffled together. More mix better, fewer are open or in memory at once.
WINDOW = 8
