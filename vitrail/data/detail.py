"""How much of an image its views can show, so that a larger one may be decoded smaller.

A JPEG decoder that is asked for a half, a quarter or an eighth of an image leaves out the work, and
the memory, of what would be averaged away.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

# Pixels of the decoded image, at least, for each pixel of a view: the resampling that follows still
# has room for its own, better filter.
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
            height, width: of the whole image, in pixels.
        """
        for by in REDUCTIONS:
            if all(
                _smallest_side(look, height, width) >= by * GAP * look.size for look in self.looks
            ):
                return by
        return 1


def _smallest_side(look: Look, height: int, width: int) -> float:
    area = look.share * height * width
    tall, wide = look.ratio[1], look.ratio[0]
    return min(math.sqrt(area / tall), math.sqrt(area * wide), height, width)
