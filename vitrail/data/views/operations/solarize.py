"""Solarization: the upper half of the values inverted."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vitrail.data.views.colour import solarize
from vitrail.data.views.contract import (
    Change,
    Drawn,
    Operation,
    Pixels,
    View,
    check_probability,
)


class Solarize(Operation):
    """Inverts the upper half of the values."""

    uniforms = 1
    columns = range(32, 33)

    def check(self, view: View) -> None:
        check_probability(view, "solarize")

    def draw(self, view: View, uniforms: Float[Tensor, "N U"]) -> Drawn:
        return {"on": uniforms[:, 0] < view.solarize}

    def apply(self, pixels: Pixels, drawn: dict[str, Any], white: float) -> Pixels:
        return solarize(pixels, white)

    def apply_batched(self, drawn: Drawn, views: Sequence[View]) -> list[Change]:
        return [Change.where(drawn["on"], _solarize)]


def _solarize(pixels: Pixels, _: None, white: float) -> Pixels:
    return solarize(pixels, white)
