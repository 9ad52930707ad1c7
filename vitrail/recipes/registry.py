"""The table of recipes: functions that return a whole `Recipe`, named after what they reproduce."""

from collections.abc import Callable

from vitrail.recipes import captions, digits, fashion, imagenet
from vitrail.recipes.config import suggest
from vitrail.recipes.recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "simdino_digits": digits.simdino_digits,
    "deepcluster_digits": digits.deepcluster_digits,
    "mae_digits": digits.mae_digits,
    "crate_mae_digits": digits.crate_mae_digits,
    "swav_digits": digits.swav_digits,
    "cotraining_digits": digits.cotraining_digits,
    "crate_digits_supervised": digits.crate_digits_supervised,
    "clip_emoji": captions.clip_emoji,
    "clip_vits16_pairs": captions.clip_vits16_pairs,
    "simdino_vits_fashion": fashion.simdino_vits_fashion,
    "dino_vits_fashion": fashion.dino_vits_fashion,
    "crate_fashion_supervised": fashion.crate_fashion_supervised,
    "dino_vitb16_in1k": imagenet.dino_vitb16_in1k,
    "simdino_vitb16_in1k": imagenet.simdino_vitb16_in1k,
    "simdino_vitl16_in1k": imagenet.simdino_vitl16_in1k,
    "crate_tiny_in1k": imagenet.crate_tiny_in1k,
    "crate_small_in1k": imagenet.crate_small_in1k,
    "crate_small_book_in1k": imagenet.crate_small_book_in1k,
    "crate_base_in1k": imagenet.crate_base_in1k,
    "crate_large_in1k": imagenet.crate_large_in1k,
}


def get_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ValueError: no such recipe, with the nearest name.
    """
    if name not in RECIPES:
        raise ValueError(f"{name!r} is not a recipe{suggest(name, RECIPES)}")
    return RECIPES[name]()
