"""The table of recipes: functions that return a whole `Recipe`, named after what they reproduce."""

import shlex
from collections.abc import Callable
from typing import Any

from vitrail.config import suggest, to_dict
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


def command_of(recipe: Recipe) -> str | None:
    """`vitrail pretrain NAME` and a flag for each field that differs from the named recipe.

    None where no command says it: a recipe made in Python, under no name or with another objective.
    """
    if recipe.name not in RECIPES:
        return None
    named, here = to_dict(RECIPES[recipe.name]()), to_dict(recipe)
    if named["objective"]["kind"] != here["objective"]["kind"]:
        return None
    words = ["vitrail", "pretrain", recipe.name, "--data", recipe.data]
    for name, value in _changed(named, here):
        if name != "data":
            flag = f"--{name}".replace("_", "-")
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return shlex.join([*words, "--out", "runs/again"])


def _changed(old: dict[str, Any], new: dict[str, Any], where: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of every leaf that differs."""
    changed: list[tuple[str, Any]] = []
    for name, value in new.items():
        if isinstance(value, dict):
            changed += _changed(old[name], value, f"{where}{name}.")
        elif value != old[name]:
            changed.append((f"{where}{name}", value))
    return changed
