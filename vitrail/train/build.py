"""From a recipe to the parts of a run, refusing what cannot work before anything is trained."""

from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from vitrail.backbones.contract import Backbone
from vitrail.backbones.create import create_backbone, parse_options
from vitrail.data.contract import Source
from vitrail.data.sources.registry import open_source
from vitrail.data.views.plan import ViewPlan
from vitrail.distributed.ranks import Ranks, on_main
from vitrail.nn.schedules import Horizon
from vitrail.objectives.build import build_objective
from vitrail.objectives.contract import Objective
from vitrail.objectives.registry import OBJECTIVES, objective_name
from vitrail.optim import build_optimizer
from vitrail.recipes.recipe import Recipe, plan_horizon
from vitrail.train.log import say
from vitrail.train.warm_start import Guard, freeze_backbones, guarded, head_warmup_steps, read_start


@dataclass(frozen=True)
class Parts:
    """What the loop turns: everything on its device, initialised from the recipe's seed."""

    source: Source
    fingerprint: str  # of the source as it was when the run, or its resumption, began
    plan: ViewPlan
    horizon: Horizon
    objective: Objective
    optimizer: Optimizer
    guard: Guard | None  # of continued pretraining
    started: bool  # whether the weights of init_from are in the objective


def assemble(recipe: Recipe, ranks: Ranks) -> Parts:
    """Builds the parts of a run.

    Raises:
        ValueError: a recipe whose parts do not fit together or the data; both are named.
    """

    def open_() -> Source:
        return open_source(recipe.data, "train", channels=recipe.channels)

    if ranks.world > 1:
        on_main(ranks, open_)  # first: what has to be downloaded is downloaded once
    plan = recipe.objective.views.plan()
    source, guard = guarded(recipe, plan, ranks, open_())
    horizon = plan_horizon(recipe, len(source))
    weights = read_start(recipe, source.channels)
    if weights is not None and ranks.is_main:
        chosen = " ".join([recipe.backbone, *recipe.backbone_options])
        say(f"starting from {recipe.init_from}: {chosen}")

    def make_backbone(drop_path: float) -> Backbone:
        backbone = fresh_backbone(recipe, plan, source.channels, drop_path)
        if weights is not None:
            backbone.load_state_dict(weights)
        return backbone

    n_classes = None if source.classes is None else len(source.classes)
    with torch.random.fork_rng(devices=[]):  # heads are drawn from the seed too, and leave no trace
        torch.manual_seed(recipe.seed)
        objective = build_objective(
            recipe.objective, make_backbone, horizon, n_classes, len(source), captions_of(source)
        )
    _require_splittable(recipe, ranks, objective)
    _require_labels(recipe, source)
    if weights is not None and objective.text_side is not None and ranks.is_main:
        say("its text side, and the maps into the joint space, start anew")
    objective.to(ranks.device)
    frozen = head_warmup_steps(recipe, horizon)
    groups = freeze_backbones(objective.param_groups(), objective, frozen)
    return Parts(
        source=source,
        fingerprint=source.fingerprint(),
        plan=plan,
        horizon=horizon,
        objective=objective,
        optimizer=build_optimizer(recipe.optim, groups),
        guard=guard,
        started=weights is not None,
    )


def captions_of(source: Source) -> list[str] | None:
    """The captions of a source, those that are missing left out; None where it has none."""
    if not source.captioned:
        return None
    texts = (source.text(index) for index in range(len(source)))
    return [text for text in texts if text]


def fresh_backbone(recipe: Recipe, plan: ViewPlan, channels: int, drop_path: float) -> Backbone:
    """The recipe's backbone with random weights, for its largest view where no size is given."""
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


def _require_splittable(recipe: Recipe, ranks: Ranks, objective: Objective) -> None:
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


def _require_labels(recipe: Recipe, source: Source) -> None:
    """Refuses slices of a batch whose shares of labels differ: their mean is another loss."""
    needs = OBJECTIVES[objective_name(recipe.objective)].needs
    if recipe.accumulate == 1 or "labels" not in needs:
        return
    missing = sum(source.label(index) is None for index in range(len(source)))
    if missing:
        raise ValueError(
            f"accumulate is {recipe.accumulate}, but {missing} of {len(source)} samples have no "
            "label, so that slices of a batch would count unequally; leave these out, use more "
            "ranks, or a smaller batch_size"
        )
