"""The table of recipes: functions that return a whole `Recipe`, named after what they reproduce."""

from collections.abc import Callable

from vitrail.config import suggest
from vitrail.recipes import clip, dino, imagenet, supervised
from vitrail.recipes.recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "simdino_digits": supervised.simdino_digits,
    "deepcluster_digits": supervised.deepcluster_digits,
    "mae_digits": supervised.mae_digits,
    "crate_mae_digits": supervised.crate_mae_digits,
    "swav_digits": supervised.swav_digits,
    "cotraining_digits": supervised.cotraining_digits,
    "crate_digits_supervised": supervised.crate_digits_supervised,
    "clip_emoji": clip.clip_emoji,
    "clip_vits16_pairs": clip.clip_vits16_pairs,
    "simdino_vits_fashion": dino.simdino_vits_fashion,
    "dino_vits_fashion": dino.dino_vits_fashion,
    "crate_fashion_supervised": dino.crate_fashion_supervised,
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
