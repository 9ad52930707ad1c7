"""The registry of recipes: functions that return a whole `Recipe`, called after what they train."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitrail.registry import Registry, Row, summary


@dataclass(frozen=True)
class RecipeRow(Row):
    """A recipe as listings know it; its sentence is the first line of the function's docstring.

    Attributes:
        make: the function that returns the `Recipe`, or "module:function". The recipe is called as
            the function is.
    """

    make: Callable[[], Any] | str

    @property
    def summary(self) -> str:  # type: ignore[override]
        """Returns one sentence that says what the recipe trains."""
        return summary(self.make)


def _row(reference: str) -> RecipeRow:
    """Returns the row of a recipe of vitrail's own, by "file:function"."""
    return RecipeRow(f"vitrail.recipes.{reference}")


RECIPES = Registry(
    "recipe",
    RecipeRow,
    {
        "simdino_digits": _row("simdino:simdino_digits"),
        "deepcluster_digits": _row("deepcluster:deepcluster_digits"),
        "mae_digits": _row("mae:mae_digits"),
        "crate_mae_digits": _row("crate_mae:crate_mae_digits"),
        "swav_digits": _row("swav:swav_digits"),
        "cotraining_digits": _row("cotraining:cotraining_digits"),
        "crate_digits_supervised": _row("supervised:crate_digits_supervised"),
        "clip_emoji": _row("clip:clip_emoji"),
        "clip_vits16_pairs": _row("clip:clip_vits16_pairs"),
        "simdino_vits_fashion": _row("simdino:simdino_vits_fashion"),
        "dino_vits_fashion": _row("dino:dino_vits_fashion"),
        "crate_fashion_supervised": RecipeRow(
            "vitrail.recipes.supervised:crate_fashion_supervised"
        ),
        "dino_vitb16_in1k": _row("dino:dino_vitb16_in1k"),
        "simdino_vitb16_in1k": _row("simdino:simdino_vitb16_in1k"),
        "simdino_vitl16_in1k": _row("simdino:simdino_vitl16_in1k"),
        "crate_tiny_in1k": _row("supervised:crate_tiny_in1k"),
        "crate_small_in1k": _row("supervised:crate_small_in1k"),
        "crate_small_book_in1k": _row("supervised:crate_small_book_in1k"),
        "crate_base_in1k": _row("supervised:crate_base_in1k"),
        "crate_large_in1k": _row("supervised:crate_large_in1k"),
    },
)
