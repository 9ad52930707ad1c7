"""How much of an image its views can show, so that a larger one may be decoded smaller.

A JPEG decoder that is asked for a half, a quarter or an eighth of an image leaves out the work, and
the memory, of what would be averaged away.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

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
