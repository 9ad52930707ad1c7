"""Checks of a recipe that a run is about to begin with, before anything is read or allocated.

They are not of the recipe itself: runs that began before there was a check go on.
"""

import os
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from vitrail.recipes.recipe import Recipe

MAX_BATCH = 2**24  # images
MAX_SIZE = 2**24  # of a network's width, a number of prototypes, a side in pixels
MAX_STEPS = 10**12

# Whole numbers that may be 0 though they are not by default.
MAY_BE_0 = {"n_local", "decoder_depth", "sinkhorn_iterations", "kmeans_iterations"}


def check_new(recipe: Recipe) -> None:
    """Refuses a recipe whose sizes make no sense, or of which two fields say two things.

    Raises:
        ValueError: naming the fields and their values.
    """
    _check_sizes(recipe)
    _check_views(recipe)
    _check_memory(recipe)


def _check_sizes(recipe: Recipe) -> None:
    for name, most in (("batch_size", MAX_BATCH), ("steps", MAX_STEPS), ("epochs", MAX_STEPS)):
        value = getattr(recipe, name)
        if value is not None and value > most:
            raise ValueError(f"{name} is {value}; it must be at most {most}")
    for name, field, value in _numbers(recipe.objective, "objective."):
        least = 0 if field.name in MAY_BE_0 or not _default(field) else 1
        if not least <= value <= MAX_SIZE:
            raise ValueError(f"{name} is {value}; it must be from {least} to {MAX_SIZE}")


def _numbers(config: Any, where: str) -> Iterator[tuple[str, Field[Any], int]]:
    """Yields the whole numbers of a configuration: (dotted name, field, value)."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _numbers(value, f"{where}{field.name}.")
        elif type(value) is int:
            yield f"{where}{field.name}", field, value


def _default(field: Field[Any]) -> Any:
    return None if field.default is MISSING else field.default


def _check_views(recipe: Recipe) -> None:
    """Refuses views that are not of the backbone's size, or not of the images' channels."""
    views = recipe.objective.views
    size, local = _sides(views)
    name = "global_size" if hasattr(views, "global_size") else "size"
    if recipe.init_from is None and recipe.img_size not in (None, size):
        raise ValueError(
            f"img_size is {recipe.img_size}, but the views have {size} pixels a side: the encoder "
            f"would be trained at one size and measured at another. Set "
            f"--objective.views.{name.replace('_', '-')} {recipe.img_size}, or leave --img-size out"
        )
    if local is not None and local > size:
        raise ValueError(
            f"objective.views.local_size is {local}, more than global_size, which is {size}; local "
            "views show less of the image than global ones"
        )
    channels = recipe.channels
    if channels is not None and channels != len(views.mean):
        raise ValueError(
            f"channels is {channels}, but objective.views.mean has {len(views.mean)} values; give "
            "mean and std one value a channel, which `vitrail stats SPEC` prints"
        )


def _sides(views: Any) -> tuple[int, int | None]:
    """Returns the side of the views, and that of local ones if there are any."""
    if not hasattr(views, "global_size"):
        return views.size, None
    return views.global_size, views.local_size if views.n_local else None


def _check_memory(recipe: Recipe) -> None:
    """Refuses a batch whose views alone are more than the memory of this machine."""
    plan = recipe.objective.views.plan()
    pixels = len(plan.mean) * sum(view.size**2 for view in plan.views)
    of_slice = recipe.batch_size // (recipe.accumulate * int(os.environ.get("WORLD_SIZE", "1")))
    need = 4 * pixels * of_slice  # float32
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > there:
        raise ValueError(
            f"batch_size is {recipe.batch_size}: the views of {of_slice} images take "
            f"{need / 1e9:,.0f} GB, and this machine has {there / 1e9:,.0f} GB; use a smaller "
            "batch, smaller or fewer views, or --accumulate"
        )
