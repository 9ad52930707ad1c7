"""Builds the parts of a run from a recipe of images, and refuses what cannot be trained."""

from typing import Any

import torch
from torch import Tensor

from vitrail.backbones.contract import Backbone
from vitrail.backbones.create import create_backbone, parse_options
from vitrail.data.contract import Batch, Source
from vitrail.data.sources.registry import open_source
from vitrail.data.views.plan import ViewPlan
from vitrail.distributed.ranks import Ranks, on_main
from vitrail.encoder import Encoder
from vitrail.evals.seen.training import stages, to_json
from vitrail.nn.schedules import Horizon
from vitrail.objectives.build import build_objective
from vitrail.objectives.contract import ImageObjective, MakeBackbone
from vitrail.objectives.registry import objective_name
from vitrail.optim import build_optimizer
from vitrail.recipes.recipe import Recipe, plan_horizon, preprocess_of
from vitrail.train.contract import Parts
from vitrail.train.exports import EncoderExports
from vitrail.train.image_feed import ImageFeed
from vitrail.train.log import print_line
from vitrail.train.registry import SINKS
from vitrail.train.warm_start import (
    build_guard,
    freeze_backbones,
    head_warmup_steps,
    read_start,
    split_for_guard,
)


def assemble(recipe: Recipe, ranks: Ranks, begun: bool = False) -> Parts[Batch]:
    """Builds the parts of a run, on all ranks.

    Args:
        recipe: the recipe.
        ranks: this process.
        begun: a checkpoint holds the weights, so those to start from are not read.

    Raises:
        ValueError: the parts of the recipe do not fit together, or do not fit the data.
    """
    for name in recipe.sinks:
        SINKS.find(name)

    def open_() -> Source:
        return open_source(recipe.data, "train", channels=recipe.channels)

    if ranks.world > 1:
        on_main(ranks, open_)  # first, so a data set is downloaded once
    source, guard_images = split_for_guard(recipe, ranks, open_())
    horizon = plan_horizon(recipe, len(source))
    weights = None if begun else read_start(recipe, source.channels)
    if weights is not None and ranks.is_main:
        chosen = " ".join([recipe.backbone, *recipe.backbone_options])
        print_line(f"starting from {recipe.init_from}: {chosen}")
    objective = _build_objective(recipe, source, horizon, weights)
    _require_splittable(recipe, ranks, objective)
    _require_labels(recipe, ranks, source, objective)
    if weights is not None and objective.text_side is not None and ranks.is_main:
        print_line("its text side, and the maps into the joint space, start anew")
    objective.to(ranks.device)
    frozen_steps = head_warmup_steps(recipe, horizon)
    groups = freeze_backbones(objective.param_groups(), objective, frozen_steps)
    plan = objective.views()
    preprocess, encoder = preprocess_of(recipe, plan), objective.encoder
    guard = None
    if guard_images is not None:
        steps_per_epoch = horizon.steps_per_epoch
        guard = build_guard(recipe, ranks, guard_images, encoder, preprocess, steps_per_epoch)
    facts = _facts_of_run(recipe, horizon, weights is not None)
    return Parts(
        feed=ImageFeed(recipe, source, plan, ranks, encoder, preprocess),
        horizon=horizon,
        objective=objective,
        optimizer=build_optimizer(recipe.optim, groups),
        exports=EncoderExports(objective, preprocess, facts),
        guard=guard,
        frozen_steps=frozen_steps,
        missing_start=recipe.init_from if weights is None else None,
    )


def _build_objective(
    recipe: Recipe, source: Source, horizon: Horizon, weights: dict[str, Any] | None
) -> ImageObjective:
    n_classes = None if source.classes is None else len(source.classes)
    make_backbone = _backbone_maker(recipe, source.channels, weights)
    with torch.random.fork_rng(devices=[]):  # heads are drawn from the recipe's seed too
        torch.manual_seed(recipe.seed)
        return build_objective(
            recipe.objective,
            make_backbone,
            horizon,
            n_classes,
            len(source),
            captions_of(source),
            pictures_of(source),
            source.unlabelled,
        )


def _backbone_maker(recipe: Recipe, channels: int, weights: dict[str, Any] | None) -> MakeBackbone:
    plan = recipe.objective.views.plan()

    def make_backbone(drop_path: float) -> Backbone:
        backbone = fresh_backbone(recipe, plan, channels, drop_path)
        if weights is not None:
            backbone.load_state_dict(weights)
        return backbone

    return make_backbone


def _facts_of_run(recipe: Recipe, horizon: Horizon, has_start: bool) -> dict[str, Any]:
    """Returns the facts of encoder.json; "step" is replaced in every export.

    Args:
        recipe: the recipe.
        horizon: of the run.
        has_start: the weights to start from were read, so what came before them can be read too; a
            resumed run has written it already (`EncoderExports`).
    """
    facts: dict[str, Any] = {
        "seed": recipe.seed,
        "objective": objective_name(recipe.objective),
        "data": recipe.data,
        "step": 0,
        "steps": horizon.steps,
    }
    if recipe.init_from is None:
        return facts
    facts["init_from"] = recipe.init_from
    if has_start:
        facts["before"] = to_json(stages(Encoder.load(recipe.init_from).info))
    return facts


def captions_of(source: Source) -> list[str] | None:
    """Returns the captions of a source without empty ones; None for a source without captions."""
    if not source.captioned:
        return None
    texts = (source.text(index) for index in range(len(source)))
    return [text for text in texts if text]


def pictures_of(source: Source) -> Tensor | None:
    """Returns a number of the image of every sample; None if no image has several captions."""
    if not source.captioned:
        return None
    numbers: dict[str, int] = {}
    of_sample = [
        numbers.setdefault(source.picture(index), len(numbers)) for index in range(len(source))
    ]
    return None if len(numbers) == len(source) else torch.tensor(of_sample)


def fresh_backbone(recipe: Recipe, plan: ViewPlan, channels: int, drop_path: float) -> Backbone:
    """Returns the recipe's backbone with random weights; its default size is the largest view."""
    overrides = parse_options(recipe.backbone, recipe.backbone_options)
    if recipe.patch_size is not None:
        overrides["patch_size"] = recipe.patch_size
    return create_backbone(
        recipe.backbone,
        img_size=recipe.img_size or max(view.size for view in plan.views),
        in_chans=channels,
        drop_path=drop_path,
        seed=recipe.seed,
        **overrides,
    )


def _require_splittable(recipe: Recipe, ranks: Ranks, objective: ImageObjective) -> None:
    method = type(objective).__name__
    if recipe.batch_size % (ranks.world * recipe.accumulate):
        raise ValueError(
            f"batch_size {recipe.batch_size} is the global batch; it must be a multiple of "
            f"{ranks.world} ranks x {recipe.accumulate} accumulation slices"
        )
    if objective.batch_coupled and recipe.accumulate > 1:
        raise ValueError(
            f"accumulate is {recipe.accumulate}, but {method}'s loss is a function of the whole "
            "batch, and of slices it would be another loss; use more ranks or a smaller batch_size"
        )
    if objective.encoder.batch_coupled and recipe.accumulate > 1:
        raise ValueError(
            f"accumulate is {recipe.accumulate}, but {recipe.backbone} has batch norms, whose "
            "statistics are of the whole batch; use more ranks or a smaller batch_size"
        )
    if recipe.batch_size < objective.min_batch_size:
        raise ValueError(
            f"batch_size is {recipe.batch_size}, but {method} needs at least "
            f"{objective.min_batch_size}: with fewer images nothing keeps its features apart"
        )


def _require_labels(
    recipe: Recipe, ranks: Ranks, source: Source, objective: ImageObjective
) -> None:
    """Refuses labels that teach nothing, and says how many are missing.

    Slices of a batch whose shares of labels differ are refused too, since their mean is another
    loss.
    """
    if not objective.mean_over_labels:
        return
    labels = [source.label(index) for index in range(len(source))]
    known = {label for label in labels if label is not None}
    missing = labels.count(None)
    if len(known) < 2:
        raise ValueError(
            f"{source.spec}: {len(labels) - missing} of {len(labels)} samples have a label, of "
            f"{len(known)} class(es); {objective_name(recipe.objective)!r} needs images of at "
            "least two classes"
        )
    if missing and recipe.accumulate > 1:
        raise ValueError(
            f"accumulate is {recipe.accumulate}, but {missing} of {len(source)} samples have no "
            "label, so that slices of a batch would count unequally; leave these out, use more "
            "ranks, or a smaller batch_size"
        )
    if missing and ranks.is_main:
        print_line(
            f"{missing} of {len(labels)} images have no label and teach this objective nothing; "
            f"{len(labels) - missing} images of {len(known)} classes do"
        )
