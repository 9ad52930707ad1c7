"""The contract of views: the distributions of one view, and what an operation on its pixels is.

An operation is one class, in `operations/`, and one row in `registry.py`. Its parameters are drawn
apart from their application, so the same parameters give the same pixels on every device, and it
is applied in two ways: to one image at a time on a CPU, and to rows of a batch on any device.

Shape legend: N views of images · C channels · S side · U uniforms a view.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitrail.data.views.preparation import Interpolation
from vitrail.data.views.registry import OPERATIONS
from vitrail.registry import resolve

# Pixels are whole numbers from 0 (black) to `white`, 255 or 65535, held by float32.
Pixels = Float[Tensor, "N C S S"]
Drawn = dict[str, Tensor]  # an operation's parameters by name; N rows, or V x B
Kernel = Callable[[Tensor, Any, float], Tensor]  # of pixels, their rows' parameters, and white


@dataclass(frozen=True)
class View:
    """The distributions of one view.

    Attributes:
        size: side of the square view, in pixels, at least 1.
        scale: (low, high) of the box's share of the image's area, within (0, 1].
        ratio: (low, high) of the box's width / height, above 0, uniform in its logarithm.
        flip: probability in [0, 1] that the view is mirrored left to right.
        interpolation: filter of the resizing, "bicubic" or "bilinear".
        jitter: probability in [0, 1] that the view's colours are jittered.
        brightness: strength b >= 0 of the jitter's brightness, a factor in [max(0, 1 - b), 1 + b].
        contrast: strength c >= 0 of the jitter's contrast, a factor in [max(0, 1 - c), 1 + c].
        saturation: strength s >= 0 of the jitter's saturation, a factor in [max(0, 1 - s), 1 + s];
            above 0 it needs 3 channels.
        hue: strength h in [0, 0.5] of the jitter's hue, a shift in [-h, h] turns; above 0 it needs
            3 channels.
        grey: probability in [0, 1] that the view is turned to grey; above 0 it needs 3 channels.
        blur: probability in [0, 1] that the view is blurred.
        blur_sigma: (low, high) of the blur's standard deviation, in pixels of the view, above 0.
        solarize: probability in [0, 1] that the view is solarized: its upper half of values
            inverted.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: Interpolation = "bicubic"
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"view: size is {self.size}; it must be at least 1 pixel")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"view: scale is {self.scale}; it must be (low, high) within (0, 1]")
        check_range(self, "ratio")
        check_probability(self, "flip")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(
                f"view: interpolation is {self.interpolation!r}; it must be 'bicubic' or 'bilinear'"
            )
        for operation in operations_of(self).values():
            operation.check(self)


class Change(NamedTuple):
    """One kernel on some rows of a batch of views.

    Attributes:
        kernel: a function of a module, so that it is compiled once, of (pixels, parameter, white).
        rows: int64 [n], the rows to change; none leaves all as they are.
        parameter: float32 [n, ...], one a row, or None.
    """

    kernel: Kernel
    rows: Int[Tensor, " n"]
    parameter: Tensor | None = None

    @classmethod
    def where(cls, on: Bool[Tensor, " N"], kernel: Kernel, parameter: Any = None) -> "Change":
        """Returns the change of the rows where `on` is true; parameter: [N, ...] or None."""
        rows = on.nonzero()[:, 0]
        return cls(kernel, rows, None if parameter is None else parameter[rows])


class Operation(ABC):
    """An operation on the pixels of views. It has no state: one instance serves all views.

    A new operation draws from a stream of its own, "views.NAME", so adding one moves no draw of
    another. The four oldest read columns of the table that the stream "views" draws, as they did
    before there were others, so that a run of any version sees the same views.

    Attributes:
        uniforms: U, the uniform numbers that it needs for one view of one image.
        columns: of the table of the stream "views", for the four oldest; None: its own stream.
    """

    uniforms: ClassVar[int]
    columns: ClassVar[range | None] = None

    @abstractmethod
    def check(self, view: Any) -> None:
        """Raises ValueError for a field of the view that is out of its range."""

    def coloured_fields(self, view: Any) -> list[str]:
        """Returns the names of those fields whose value needs images of 3 channels."""
        return []

    @abstractmethod
    def draw(self, view: Any, uniforms: Float[Tensor, "N U"]) -> Drawn:
        """Returns the parameters of N views of one distribution.

        Args:
            view: a `View`, or a subclass that has the row's fields.
            uniforms: float32 in [0, 1), on the CPU.

        Returns:
            "on": bool [N], true where the operation is applied; and any others, [N, ...].
        """

    @abstractmethod
    def apply(self, pixels: Pixels, drawn: dict[str, Any], white: float) -> Pixels:
        """Returns the pixels of one view (N = 1) changed, on the CPU.

        Args:
            pixels: may be changed in place.
            drawn: one row of `draw`'s, as Python numbers and lists, for which it is on.
            white: the largest value, 255 or 65535.
        """

    @abstractmethod
    def apply_batched(self, drawn: Drawn, views: Sequence[Any]) -> list[Change]:
        """Returns the changes that apply it to the rows of a batch, in order.

        They are decided on the CPU and sent to the batch's device together.

        Args:
            drawn: `draw`'s of N rows.
            views: the plan's, for bounds that hold in every batch.
        """


def operations_of(view: View) -> dict[str, Operation]:
    """Returns the operations whose fields a view has, by name, in the order of application."""
    return {
        name: _instance(resolve(row.operation))
        for name, row in OPERATIONS.items()
        if all(hasattr(view, field) for field in row.fields)
    }


@cache
def _instance(operation: type[Operation]) -> Operation:
    return operation()


def check_probability(view: Any, name: str) -> None:
    """Raises ValueError unless a field is in [0, 1]."""
    if not 0 <= getattr(view, name) <= 1:
        raise ValueError(f"view: {name} is {getattr(view, name)}; it must be in [0, 1]")


def check_strength(view: Any, name: str) -> None:
    """Raises ValueError unless a field is 0 or more, and finite."""
    if not 0 <= getattr(view, name) < math.inf:
        raise ValueError(f"view: {name} is {getattr(view, name)}; it must be 0 or more")


def check_range(view: Any, name: str) -> None:
    """Raises ValueError unless a field is a range (low, high) above 0."""
    low, high = getattr(view, name)
    if not 0 < low <= high < math.inf:
        raise ValueError(
            f"view: {name} is {getattr(view, name)}; it must be (low, high), both above 0"
        )
