"""The main job as Python calls: what the command line does, and nothing it does not."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.config import override
from vitrail.data.sources.registry import resolve_spec
from vitrail.distributed.ranks import Ranks, choose_device, joined, on_main
from vitrail.encoder import Encoder
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.registry import get_recipe
from vitrail.train.build import Parts, assemble
from vitrail.train.loop import train
from vitrail.train.run_folder import create, lock_run, read_recipe
from vitrail.train.warm_start import resolve_start


def pretrain(
    recipe: str | Recipe, out: str | Path, data: str | None = None, **changes: Any
) -> Path:
    """Trains an encoder, and returns the run's folder.

    >>> run = vitrail.pretrain("simdino_digits", out="runs/mine", epochs=20, optim={"lr": 5e-4})
    >>> vitrail.load(run).transform(images)

    Args:
        recipe: a name of `vitrail list recipes`, or a Recipe.
        out: a folder that does not hold a run yet. data: a source SPEC instead of the recipe's.
        changes: fields of the recipe, nested ones as dicts.

    Raises:
        ValueError: a name, a field or a value that does not fit, or a loss that is not finite.
    """
    chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
    chosen = override(chosen, changes | ({} if data is None else {"data": data}))
    return start(chosen, Path(out))


def start(recipe: Recipe, out: Path) -> Path:
    """Makes the run's folder, and trains; under torchrun, on every rank.

    The folder is made only when all that can be refused beforehand has passed.
    """
    recipe = resolve_start(replace(recipe, data=resolve_spec(recipe.data)))
    with joined(recipe.device) as ranks:
        parts = assemble(recipe, ranks)
        on_main(ranks, lambda: create(out, recipe))
        _train(out, recipe, parts, ranks)
    return out


def resume(run: str | Path) -> Path:
    """Goes on with a run from its last whole checkpoint, as if it had never stopped.

    A finished run is left as it is.

    Raises:
        ValueError: no such run, one in use, one that was edited, or data that changed.
    """
    run = Path(run)
    recipe = read_recipe(run)
    with joined(recipe.device) as ranks:
        _train(run, recipe, assemble(recipe, ranks), ranks)
    return run


def load(path: str | Path, device: str = "cpu") -> Encoder:
    """The encoder of a run, or of an encoder.safetensors beside its encoder.json."""
    return Encoder.load(path, device=str(choose_device(device)))


def _train(run: Path, recipe: Recipe, parts: Parts, ranks: Ranks) -> None:
    with ExitStack() as stack:
        on_main(ranks, lambda: stack.enter_context(lock_run(run)))
        train(run, recipe, parts, ranks)
