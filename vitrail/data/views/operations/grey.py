"""RGB turned to grey, whose three channels are the image's luma."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vitrail.data.views.colour import grey
from vitrail.data.views.contract import (
    Change,
    Drawn,
    Operation,
    Pixels,
    View,
    check_probability,
)


class Grey(Operation):
    """Turns RGB to grey."""

    uniforms = 1
    columns = range(29, 30)

    def check(self, view: View) -> None:
        check_probability(view, "grey")

    def coloured_fields(self, view: View) -> list[str]:
        return ["grey"] if view.grey > 0 else []

    def draw(self, view: View, uniforms: Float[Tensor, "N U"]) -> Drawn:
        return {"on": uniforms[:, 0] < view.grey}

    def apply(self, pixels: Pixels, drawn: dict[str, Any], white: float) -> Pixels:
        return grey(pixels)

    def apply_batched(self, drawn: Drawn, views: Sequence[View]) -> list[Change]:
        return [Change.where(drawn["on"], _grey)]


def _grey(pixels: Pixels, _: None, __: float) -> Pixels:
    return grey(pixels)
