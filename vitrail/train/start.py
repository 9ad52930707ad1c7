"""Begins a run, or goes on with one, which may change its length and the place of its data.

config.json holds the recipe as it is now and, under "changes", what it was and since which step.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vitrail import signals
from vitrail.atomic import write_atomically
from vitrail.config import differences, to_dict
from vitrail.data.contract import Batch
from vitrail.data.loading.start_method import refuse_second_run
from vitrail.data.sources.registry import resolve_spec
from vitrail.data.tools.found import find
from vitrail.distributed.ranks import Ranks, any_rank, joined, on_main
from vitrail.objectives.contract import ImageObjective
from vitrail.recipes.check import check_new, notes_on
from vitrail.recipes.recipe import SPEED_FIELDS, Recipe, plan_horizon
from vitrail.train.build import assemble, captions_of
from vitrail.train.checkpoint import list_checkpoints
from vitrail.train.contract import Parts
from vitrail.train.image_feed import ImageFeed
from vitrail.train.log import print_line
from vitrail.train.loop import train
from vitrail.train.run_folder import (
    BESIDE,
    create,
    lock_run,
    read_config,
    read_recipe,
    require_same_start,
)
from vitrail.train.warm_start import head_warmup_steps, resolve_start

Resume = Literal["never", "auto"]

FOUND = "found.json"  # beside config.json: what the run found before its first step

# Fields of a run's length. The warm-up of a head is a share of it, unless the recipe says how long.
LENGTH = ("epochs", "steps", "head_warmup_steps")


def begin(recipe: Recipe, out: Path, resume: Resume = "never") -> None:
    """Makes the folder of a run, and trains; under torchrun, on every rank.

    The folder is made only when everything that can be refused beforehand has been checked.

    Args:
        recipe: the recipe.
        out: the folder.
        resume: auto goes on with the run in the folder if the same recipe has begun it.

    Raises:
        ValueError: something that a user can mend.
    """
    refuse_second_run()
    recipe = replace(recipe, data=resolve_spec(recipe.data))
    with joined(recipe.device) as ranks:
        # rank 0 decides, since it makes the folder that the others look for
        if resume == "auto" and any_rank(ranks.is_main and (out / "config.json").exists()):
            recipe = same_command(out, recipe)
            _go_on(out, Change(recipe, recipe, change_of(out).free), ranks)
            return
        recipe = resolve_start(recipe)
        check_new(recipe)
        parts = assemble(recipe, ranks)
        notes = notes_on(recipe, parts.horizon, parts.feed.n_samples)
        on_main(ranks, lambda: create(out, recipe, notes))
        on_main(ranks, lambda: report_found(out, parts))
        for note in notes if ranks.is_main else ():
            print_line(f"note: {note}")
        _train(out, recipe, parts, ranks)


def go_on(run: Path, epochs: float | None = None, data: str | None = None) -> None:
    """Trains from a run's last checkpoint on.

    Args:
        run: the folder of the run.
        epochs: as `change_of`.
        data: a SPEC; None for the run's own.

    Raises:
        ValueError: something that a user can mend.
    """
    refuse_second_run()
    change = change_of(run, epochs, None if data is None else resolve_spec(data))
    with joined(change.after.device) as ranks:
        _go_on(run, change, ranks)


def _go_on(run: Path, change: "Change", ranks: Ranks) -> None:
    begun = bool(list_checkpoints(run / "checkpoints"))
    if not begun:
        require_same_start(run, change.before)
    parts = assemble(change.after, ranks, begun)
    n_samples = parts.feed.n_samples
    longer = with_head_warmup(change, n_samples)
    if longer is not change:
        parts = replace(parts, frozen_steps=longer.after.head_warmup_steps or 0)

    def note(step: int) -> None:
        if not longer.fields:
            return
        for line in describe(longer, n_samples, step) if ranks.is_main else ():
            print_line(line)
        on_main(ranks, lambda: write_change(run, longer, step))
        if step and ranks.is_main:
            parts.exports.save(run, step)  # its description says where the data are

    _train(run, longer.after, replace(parts, changed=longer.free, on_restored=note), ranks)


def _train(run: Path, recipe: Recipe, parts: Parts[Batch], ranks: Ranks) -> None:
    with ExitStack() as stack:
        watch = stack.enter_context(signals.watching())
        on_main(ranks, lambda: stack.enter_context(lock_run(run)))
        try:
            train(run, recipe, parts, ranks)
        except signals.Interrupted:
            if ranks.is_main and not watch.ends_by_itself:
                done = "stopped before a step was taken, so there is nothing to save"
                print_line(f"{done}; go on with `vitrail resume {run}`")
            raise


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


def report_found(run: Path, parts: Parts[Any]) -> None:
    """Prints what was found, and writes it beside config.json. Only for rank 0."""
    feed, objective = parts.feed, parts.objective
    if not isinstance(feed, ImageFeed):
        return
    more = cut_captions(feed, objective) if isinstance(objective, ImageObjective) else []
    found = find(feed.source, more)
    said = set(feed.source.notes)  # when it was opened
    notes = [f"note: {note}" for note in found["notes"] if note not in said]
    print_line("\n  ".join([*found["lines"], *notes]))
    write_atomically(run / FOUND, json.dumps(found, indent=2) + "\n")


def cut_captions(feed: ImageFeed, objective: ImageObjective) -> list[str]:
    """Returns a sentence on captions that are longer than the text tower's context, if any."""
    side, captions = objective.text_side, captions_of(feed.source)
    if side is None or not captions:
        return []
    context = int(side.space.config["context"])
    longer = side.tokenizer.count_longer(captions, context)
    if not longer:
        return []
    return [
        f"{longer:,} of {len(captions):,} captions are longer than the context of {context} tokens "
        "and lose their last words (--objective.context)"
    ]
