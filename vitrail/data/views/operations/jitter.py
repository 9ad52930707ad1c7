"""Colour jitter: brightness, contrast, saturation and hue, in an order drawn for each view.

torchvision's v1 `ColorJitter`, behind a probability of its own as DINO and SwAV have it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.data.views.colour import brightness, contrast, hue, saturation
from vitrail.data.views.contract import (
    Change,
    Drawn,
    Kernel,
    Operation,
    Pixels,
    View,
    check_probability,
    check_strength,
)

# By number, as in `order` and in the columns of `factors`: a kernel, its neutral factor.
KERNELS: tuple[tuple[Kernel, float], ...] = (
    (brightness, 1.0),
    (contrast, 1.0),
    (saturation, 1.0),
    (hue, 0.0),
)


def _table_of_orders() -> Tensor:
    """Returns the 24 orders of four kernels, int64 [24, 4]."""
    numbers = torch.arange(len(KERNELS))
    words = torch.cartesian_prod(numbers, numbers, numbers, numbers)
    return torch.stack([word for word in words if len(word.unique()) == len(KERNELS)])


ORDERS = _table_of_orders()


class Jitter(Operation):
    """Jitters the colours. Drawn: factors, float32 [N, 4], in turns for the hue; order, int64."""

    uniforms = 6
    columns = range(23, 29)

    def check(self, view: View) -> None:
        check_probability(view, "jitter")
        for name in ("brightness", "contrast", "saturation"):
            check_strength(view, name)
        if not 0 <= view.hue <= 0.5:
            raise ValueError(f"view: hue is {view.hue}; it must be in [0, 0.5] turns")

    def coloured_fields(self, view: View) -> list[str]:
        strengths = ("saturation", "hue") if view.jitter > 0 else ()
        return [name for name in strengths if getattr(view, name) > 0]

    def draw(self, view: View, uniforms: Float[Tensor, "N U"]) -> Drawn:
        on, *of_factors, of_hue, of_order = uniforms.unbind(1)
        strengths = (view.brightness, view.contrast, view.saturation)
        factors = [_factor(u, strength) for u, strength in zip(of_factors, strengths, strict=True)]
        return {
            "on": on < view.jitter,
            "factors": torch.stack([*factors, view.hue * (2 * of_hue - 1)], dim=1),
            "order": ORDERS[(of_order * len(ORDERS)).long()],
        }

    def apply(self, pixels: Pixels, drawn: dict[str, Any], white: float) -> Pixels:
        for number in drawn["order"]:
            (kernel, neutral), factor = KERNELS[number], drawn["factors"][number]
            if factor != neutral:
                pixels = kernel(pixels, factor, white)
        return pixels

    def apply_batched(self, drawn: Drawn, views: Sequence[View]) -> list[Change]:
        on, factors, order = drawn["on"], drawn["factors"], drawn["order"]
        changes = []
        for place in range(len(KERNELS)):
            for number, (kernel, neutral) in enumerate(KERNELS):
                factor = factors[:, number]
                here = on & (order[:, place] == number) & (factor != neutral)
                changes.append(Change.where(here, kernel, factor[:, None, None, None]))
        return changes


def _factor(uniforms: Float[Tensor, " N"], strength: float) -> Float[Tensor, " N"]:
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * uniforms
