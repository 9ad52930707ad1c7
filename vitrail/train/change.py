"""Changes of a run by `resume`: its length, and the place of its data.

config.json holds the recipe as it is now and, under "changes", what it was and since which step.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitrail.atomic import write_atomically
from vitrail.config import differences, to_dict
from vitrail.recipes.recipe import SPEED_FIELDS, Recipe, plan_horizon
from vitrail.train.run_folder import BESIDE, read_config, read_recipe
from vitrail.train.warm_start import head_warmup_steps

# Fields of a run's length. The warm-up of a head is a share of it, unless the recipe says how long.
LENGTH = ("epochs", "steps", "head_warmup_steps")


@dataclass(frozen=True)
class Change:
    """A recipe before and after a change.

    Attributes:
        before: as the run began, or as an earlier change left it.
        after: as it goes on.
        free: fields in which checkpoints of the run may differ from the recipe.
    """

    before: Recipe
    after: Recipe
    free: tuple[str, ...] = ()

    @property
    def fields(self) -> list[str]:
        """The names of the fields that change."""
        old, new = to_dict(self.before), to_dict(self.after)
        return [name for name in old if old[name] != new[name]]


def change_of(run: Path, epochs: float | None = None, data: str | None = None) -> Change:
    """Returns the change of a run to another length, or to another place of its data.

    Args:
        run: the folder of the run.
        epochs: passes over the data, from the first step on; None for no change.
        data: a resolved SPEC; None for no change.

    Raises:
        ValueError: no such run, or epochs out of range.
    """
    recipe = read_recipe(run)
    history = changes(run)
    after = recipe if data is None else replace(recipe, data=data)
    if epochs is not None:
        after = replace(after, epochs=float(epochs), steps=None)
    # A config.json whose length is not what the last change made of it was edited.
    known = bool(history) and {name: getattr(recipe, name) for name in LENGTH} == {
        name: history[-1]["to"].get(name, getattr(recipe, name)) for name in LENGTH
    }
    return Change(recipe, after, LENGTH if epochs is not None or known else ())


def with_head_warmup(change: Change, n_samples: int) -> Change:
    """Returns the change with the head's warm-up as long as it was, whatever the run's length."""
    before = change.before
    if before.init_from is None or change.after.head_warmup_steps is not None:
        return change
    if "epochs" not in change.fields and "steps" not in change.fields:
        return change
    steps = head_warmup_steps(before, plan_horizon(before, n_samples))
    return replace(change, after=replace(change.after, head_warmup_steps=steps))


def describe(change: Change, n_samples: int, start: int) -> list[str]:
    """Returns one line for each thing that a change means for a run after `start` steps."""
    lines = []
    if "data" in change.fields:
        lines.append(
            f"data: {change.before.data} -> {change.after.data} (the same images, as far as their "
            "fingerprint tells; evaluations take them from there too)"
        )
    old, new = (plan_horizon(r, n_samples).steps for r in (change.before, change.after))
    if old != new:
        lines.append(
            f"length: {old} -> {new} steps ({change.after.epochs:g} epochs). From step {start} on "
            "the rates and all schedules are those of a run of that length; the steps before were "
            "taken with those of the shorter or longer one, so the result is neither run's"
        )
    return lines


def write_change(run: Path, change: Change, start: int) -> None:
    """Writes the changed recipe into config.json, and adds what it was to "changes"."""
    config = read_config(run)
    old, new = to_dict(change.before), to_dict(change.after)
    entry = {
        "step": start,
        "from": {name: old[name] for name in change.fields},
        "to": {name: new[name] for name in change.fields},
    }
    kept = {name: value for name, value in config.items() if name in BESIDE}
    kept["changes"] = [*changes(run), entry]
    write_atomically(run / "config.json", json.dumps(new | kept, indent=2) + "\n")


def changes(run: Path) -> list[dict[str, Any]]:
    """Returns the changes of a run that `write_change` has written, oldest first."""
    found = read_config(run).get("changes", [])
    entries = found if isinstance(found, list) else []
    return [e for e in entries if isinstance(e, dict) and isinstance(e.get("to"), dict)]


def same_command(run: Path, asked: Recipe) -> Recipe:
    """Returns the recipe of a run that `pretrain --resume auto` goes on with.

    Args:
        run: the folder of the run.
        asked: the recipe of the command, with a resolved SPEC.

    Raises:
        ValueError: the run was begun by another command; lists the fields that differ.
    """
    recipe = began = read_recipe(run)
    for entry in reversed(changes(run)):
        was = {k: v for k, v in entry.get("from", {}).items() if k in (*LENGTH, "data")}
        began = replace(began, **was)
    free = set(SPEED_FIELDS)
    if asked.init_from is not None and began.init_from is not None:
        path = str(Path(asked.init_from).expanduser().resolve())
        asked = replace(asked, init_from=path)
        free |= {"backbone", "backbone_options", "img_size", "patch_size"}  # those of the weights
    old, new = (
        {name: value for name, value in to_dict(r).items() if name not in free}
        for r in (began, asked)
    )
    if lines := differences(old, new):
        raise ValueError(
            f"{run} holds a run of another command ({'; '.join(lines)}); go on with it by "
            f"`vitrail resume {run}`, or name another folder with --out"
        )
    return replace(recipe, **{name: getattr(asked, name) for name in SPEED_FIELDS})
