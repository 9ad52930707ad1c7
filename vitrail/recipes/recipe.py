"""A recipe is the whole configuration of a run: what its results depend on, then the rest."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from vitrail.objectives import dino, simdino, supervised
from vitrail.optim import Config as OptimConfig

# On the command line a recipe's objective keeps its kind: its fields are options, not a subcommand.
ObjectiveConfig = Annotated[
    Annotated[dino.Config, tyro.conf.subcommand("dino")]
    | Annotated[simdino.Config, tyro.conf.subcommand("simdino")]
    | Annotated[supervised.Config, tyro.conf.subcommand("supervised")],
    tyro.conf.AvoidSubcommands,
]


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on, apart from the data themselves.

    data: a source SPEC. channels: of the images, None for the source's own.
    backbone: a name of `vitrail list backbones`; img_size, patch_size: in pixels, None for the
        largest view and for the backbone's own.
    batch_size: images a step, over all ranks. epochs: passes over the data; steps, if given, wins.
    eval_crop: side of the centre crop over the resized short side, when images are embedded.
    seed: of weights, sample order and views.
    max_bad_fraction: of the files; a run stops when more than that cannot be read.
    """

    name: str
    objective: ObjectiveConfig
    backbone: str
    data: str
    batch_size: int
    epochs: float
    steps: int | None = None
    channels: int | None = None
    img_size: int | None = None
    patch_size: int | None = None
    eval_crop: float = 0.875
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulate: int = 1
    seed: int = 0
    max_bad_fraction: float = 0.5

    # What follows changes the speed of a run, or what is written down, and never its results.
    device: str = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    workers: int | None = None
    checkpoint_every: int | None = None
    health_every: int = 50

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "accumulate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")
        for name in ("steps", "checkpoint_every", "img_size", "patch_size", "channels"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")
        if not 0 < self.eval_crop <= 1:
            raise ValueError(f"eval_crop is {self.eval_crop}; it must lie in (0, 1]")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction is {self.max_bad_fraction}; it must lie in [0, 1]")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be >= 0")


# Fields that a resumed run may change.
SPEED_FIELDS = ("device", "compile", "workers", "checkpoint_every", "health_every")
