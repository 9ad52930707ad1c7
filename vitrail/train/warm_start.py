"""Continued pretraining: a run whose encoder does not start from random weights.

A new head on a trained encoder sends it random gradients at first, and undoes it (dinov2 #204:
k-NN fell from 80 % to 10 %). So the encoder is frozen until the head has warmed up, and `guard`
watches what it knows.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from vitrail.backbones.contract import Backbone
from vitrail.encoder import Encoder
from vitrail.nn.batch_norm import MOMENTUM, GlobalBatchNorm
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import Objective, ParamGroup
from vitrail.recipes.recipe import Recipe


def resolve_start(recipe: Recipe) -> Recipe:
    """The recipe with the weights' full path, and with their architecture as its backbone.

    Raises:
        ValueError: weights that cannot be read, or sizes in the recipe that are not theirs.
    """
    if recipe.init_from is None:
        return recipe
    path = Path(recipe.init_from).expanduser().resolve()
    if recipe.backbone_options:
        raise ValueError(
            f"backbone_options are {' '.join(recipe.backbone_options)}, but init_from has a "
            "backbone of its own; leave them out"
        )
    config = dict(Encoder.load(path).backbone.config)
    name, _ = config.pop("name"), config.pop("in_chans")
    sizes = {"img_size": config.pop("img_size"), "patch_size": config.pop("patch_size", None)}
    for key, size in sizes.items():
        if getattr(recipe, key) not in (None, size):
            raise ValueError(
                f"{key} is {getattr(recipe, key)}, but the encoder in {path} was built for {size}; "
                f"leave {key} out (views may have other sizes)"
            )
    options = tuple(f"{key}={value}" for key, value in config.items())
    return replace(recipe, init_from=str(path), backbone=name, backbone_options=options, **sizes)


def read_start(recipe: Recipe, channels: int) -> dict[str, Tensor] | None:
    """The encoder's weights to start from; None where there are none, or no longer.

    Raises:
        ValueError: an encoder of images of another number of channels.
    """
    if recipe.init_from is None or not Path(recipe.init_from).exists():
        return None
    start = Encoder.load(recipe.init_from).backbone
    if start.in_chans != channels:
        raise ValueError(
            f"init_from: its encoder takes {start.in_chans} channel(s) and the images have "
            f"{channels}; set --channels {start.in_chans}"
        )
    return start.state_dict()


def require_started(run: Path, recipe: Recipe, started: bool) -> None:
    """Raises ValueError where a run has no checkpoint yet, and lacks its first weights."""
    if recipe.init_from is not None and not started:
        raise ValueError(
            f"{run} has no checkpoint yet, and the weights that it starts from are gone: restore "
            f"{recipe.init_from}, or start a new run"
        )


def head_warmup_steps(recipe: Recipe, horizon: Horizon) -> int:
    """Steps in which the encoder is frozen: as said, or an epoch, or a tenth of a short run."""
    if recipe.init_from is None:
        return 0
    if recipe.head_warmup_steps is not None:
        return recipe.head_warmup_steps
    return min(round(horizon.steps_per_epoch), horizon.steps // 10)


def freeze_backbones(
    groups: list[ParamGroup], objective: Objective, steps: int
) -> list[ParamGroup]:
    """The groups, parted so that the parameters of backbones are frozen for so many steps."""
    if steps == 0:
        return groups
    theirs = {id(p) for m in objective.modules() if isinstance(m, Backbone) for p in m.parameters()}
    return list(_parted(groups, theirs, steps))


def hold_statistics(objective: Objective, frozen: bool) -> None:
    """Batch norms of a frozen encoder keep their running statistics as well as their weights."""
    for backbone in (m for m in objective.modules() if isinstance(m, Backbone)):
        for norm in (m for m in backbone.modules() if isinstance(m, GlobalBatchNorm)):
            norm.momentum = 0.0 if frozen else MOMENTUM


def _parted(groups: list[ParamGroup], theirs: set[int], steps: int) -> Iterator[ParamGroup]:
    for group in groups:
        frozen: list[nn.Parameter] = [p for p in group["params"] if id(p) in theirs]
        free: list[nn.Parameter] = [p for p in group["params"] if id(p) not in theirs]
        if frozen:
            longest = max(steps, group.get("freeze_steps", 0))
            yield {**group, "params": frozen, "freeze_steps": longest}
        if free:
            yield {**group, "params": free}
