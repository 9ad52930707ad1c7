"""Checks of a recipe that a run is about to begin with, before anything is read or allocated.

They are not of the recipe itself: runs that began before there was a check go on.
"""

import os
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from vitrail.nn.schedules import Horizon
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


def notes_on(recipe: Recipe, horizon: Horizon, n_samples: int) -> list[str]:
    """Returns one line for each field that says less than it seems to, given the run's length.

    Args:
        recipe: the recipe.
        horizon: the length of the run.
        n_samples: images to train on.
    """
    notes = []
    if recipe.batch_size > n_samples:
        notes.append(
            f"batch_size is {recipe.batch_size} and there are {n_samples} images: a batch holds "
            "copies of an image, which a loss that compares images takes for different ones"
        )
    steps, epochs = horizon.steps, horizon.steps / horizon.steps_per_epoch
    for field in fields(recipe.objective):
        value = getattr(recipe.objective, field.name)
        if field.name.endswith("_epochs") and value and horizon.steps_in(value) >= steps:
            notes.append(
                f"objective.{field.name} is {value:g} and the run has {epochs:.3g} epochs: all of "
                "it lies within them"
            )
    if recipe.init_from is not None and (recipe.head_warmup_steps or 0) >= steps:
        notes.append(
            f"head_warmup_steps is {recipe.head_warmup_steps} and the run has {steps} steps: the "
            "encoder stays as it is"
        )
    return notes


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
    """Refuses views that are not of the backbone's size, and local ones that are the larger."""
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
