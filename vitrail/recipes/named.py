"""Recipes by their name, and the command that a recipe stands for."""

import shlex
from dataclasses import replace
from typing import Any

from vitrail.config import to_dict
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.registry import RECIPES
from vitrail.registry import resolve


def get_recipe(name: str) -> Recipe:
    """Returns the recipe of this name. Raises ValueError, with the nearest name, for none."""
    recipe: Recipe = resolve(RECIPES.find(name).make)()
    return replace(recipe, name=name)


def command_of(recipe: Recipe) -> str | None:
    """Returns `vitrail pretrain NAME` and a flag for each field that differs from the named recipe.

    None if no command makes it: a recipe made in Python, without a name or with another objective.
    """
    if recipe.name not in RECIPES:
        return None
    named, here = to_dict(get_recipe(recipe.name)), to_dict(recipe)
    if named["objective"]["kind"] != here["objective"]["kind"]:
        return None
    words = ["vitrail", "pretrain", recipe.name, "--data", recipe.data]
    for name, value in _changed(named, here):
        if name != "data":
            flag = f"--{name}".replace("_", "-")
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return shlex.join([*words, "--out", "runs/again"])


def _changed(old: dict[str, Any], new: dict[str, Any], where: str = "") -> list[tuple[str, Any]]:
    """Returns (dotted name, value) of every leaf that differs."""
    changed: list[tuple[str, Any]] = []
    for name, value in new.items():
        if isinstance(value, dict):
            changed += _changed(old[name], value, f"{where}{name}.")
        elif value != old[name]:
            changed.append((f"{where}{name}", value))
    return changed
