"""A recipe is the whole configuration of a run: first what its results depend on, then the rest."""

from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Any, Literal

from vitrail.config import Choice
from vitrail.data.loading.workers import check_workers, choose_workers
from vitrail.data.views.plan import ViewPlan
from vitrail.data.views.preprocess import Preprocess
from vitrail.distributed.ranks import Ranks
from vitrail.nn.schedules import Horizon
from vitrail.objectives.registry import OBJECTIVES, objective_config, objective_name
from vitrail.optim import Config as OptimConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a run depends on, apart from the data themselves.

    Attributes:
        name: the recipe's name in `vitrail list recipes`, which is its function's name; "" for a
            recipe made in Python.
        objective: the settings of the method and of its views. On the command line the objective
            of a recipe stays, and its settings are options.
        backbone: a name of `vitrail list backbones`.
        data: a source SPEC, as `vitrail list sources` shows them.
        batch_size: images a step, over all ranks and accumulation slices.
        epochs: passes over the data.
        steps: the length of the run in steps; if given, it wins over epochs.
        channels: channels of the images; None for the source's own number.
        img_size: pixels a side on which the backbone's positions are learned; None for the largest
            view.
        patch_size: pixels a side of a patch; None for the backbone's own.
        backbone_options: options of the backbone, each as NAME=VALUE: registers=4 decoupled=false.
        eval_crop: side of the centre crop as a fraction of the resized short side, when images are
            embedded, in (0, 1].
        optim: the optimizer and its schedules.
        init_from: weights to start from: a run, an encoder, or an official checkpoint; the backbone
            is then theirs.
        head_warmup_steps: with init_from, steps in which the encoder is frozen while the new head
            warms up; None for an epoch, or a tenth of a short run.
        guard_drop: with init_from, the fall of k-NN accuracy on held-out images that is warned of,
            as a fraction in [0, 1]; None turns the guard off. The images that it holds out are not
            trained on.
        precision: arithmetic of the forward pass; weights are always fp32.
        accumulate: slices of a batch that are computed one after the other; refused for losses that
            couple a batch.
        seed: of weights, sample order and views; from 0 to 2^63 - 1.
        device: auto (CUDA if there is one), cpu, cuda or cuda:N.
        compile: whether torch.compile compiles each layer; auto does with CUDA.
        workers: processes that decode images on each rank; None for a fair share of the cores.
        checkpoint_every: steps between two checkpoints; None for an epoch, at least 50 steps.
        health_every: least number of steps between two measurements of the features' health.
        guard_every: steps between two measurements of the guard; None for an epoch.
        max_bad_fraction: fraction of the files, in [0, 1]; a run stops when more than that cannot
            be read.
        sinks: where the rows of metrics.jsonl go as well: names of `vitrail list sinks`, or none.
    """

    name: str = ""
    objective: Annotated[Any, Choice(OBJECTIVES, objective_config, objective_name)]
    backbone: str
    data: str
    batch_size: int
    epochs: float
    steps: int | None = None
    channels: int | None = None
    img_size: int | None = None
    patch_size: int | None = None
    backbone_options: tuple[str, ...] = ()
    eval_crop: float = 0.875
    optim: OptimConfig = field(default_factory=OptimConfig)
    init_from: str | None = None
    head_warmup_steps: int | None = None
    guard_drop: float | None = 0.05
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulate: int = 1
    seed: int = 0

    # What follows changes the speed of a run, when it gives up, or what is written down, and never
    # its results.

    device: str = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    workers: int | None = None
    checkpoint_every: int | None = None
    health_every: int = 50
    guard_every: int | None = None
    max_bad_fraction: float = 0.5
    sinks: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "accumulate"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")
        optional = (
            "steps",
            "checkpoint_every",
            "guard_every",
            "img_size",
            "patch_size",
            "channels",
        )
        for name in optional:
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")
        if self.workers is not None:
            check_workers(self.workers)
        if self.head_warmup_steps is not None and self.head_warmup_steps < 0:
            raise ValueError(f"head_warmup_steps is {self.head_warmup_steps}; it must be >= 0")
        if self.guard_drop is not None and not 0 <= self.guard_drop <= 1:
            raise ValueError(f"guard_drop is {self.guard_drop}; it must lie in [0, 1]")
        if self.health_every <= 0:
            raise ValueError(f"health_every is {self.health_every}; it must be more than 0")
        if not 0 < self.eval_crop <= 1:
            raise ValueError(f"eval_crop is {self.eval_crop}; it must lie in (0, 1]")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction is {self.max_bad_fraction}; it must lie in [0, 1]")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be >= 0 and below 2^63")


# Fields that a resumed run may change.
SPEED_FIELDS = (
    "device",
    "compile",
    "workers",
    "checkpoint_every",
    "health_every",
    "guard_every",
    "max_bad_fraction",
    "sinks",
)


def migrated(plain: dict[str, Any]) -> dict[str, Any]:
    """Returns a recipe's JSON of an earlier version with the values that new fields stood for then.

    An objective's config may have them in `BEFORE`: values, by name, of fields whose default is
    not what runs did before there was the field.
    """
    objective = plain.get("objective")
    kind = objective.get("kind") if isinstance(objective, dict) else None
    if not isinstance(objective, dict) or not isinstance(kind, str) or kind not in OBJECTIVES:
        return plain
    before = getattr(objective_config(kind), "BEFORE", {})
    return plain | {"objective": before | objective}


def plan_horizon(recipe: Recipe, n_samples: int) -> Horizon:
    """Returns the length of a run on `n_samples` images.

    An epoch may be a fraction of a step when there are few images.
    """
    steps_per_epoch = n_samples / recipe.batch_size
    steps = recipe.steps or max(1, round(recipe.epochs * steps_per_epoch))
    return Horizon(steps=steps, steps_per_epoch=steps_per_epoch)


def preprocess_of(recipe: Recipe, plan: ViewPlan) -> Preprocess:
    """Returns how the run's encoder is given images: a centre crop, and no augmentation.

    An encoder that is only trained further may have been built for another size than its views.
    """
    largest = max(view.size for view in plan.views)
    size = recipe.img_size if recipe.img_size and recipe.init_from is None else largest
    return Preprocess(
        size=size,
        resize=round(size / recipe.eval_crop),
        mean=plan.mean,
        std=plan.std,
        interpolation=plan.interpolation,
    )


def worker_count(recipe: Recipe, ranks: Ranks) -> int:
    """Returns the number of decoding processes of this rank: the recipe's, or a fair share."""
    return choose_workers(recipe.workers, ranks.world)
