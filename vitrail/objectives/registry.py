"""The table of objectives, and what is refused before training starts."""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from vitrail.backbones.contract import TokenBackbone
from vitrail.nn.schedules import Horizon
from vitrail.objectives import (
    clip,
    cotraining,
    crate_mae,
    deepcluster,
    dino,
    mae,
    simdino,
    supervised,
    swav,
)
from vitrail.objectives.contract import DataFacts, ImageObjective, MakeBackbone


class Row(NamedTuple):
    """config: the frozen dataclass that chooses the objective and sets it up."""

    config: type
    objective: type[ImageObjective]
    help: str


OBJECTIVES: dict[str, Row] = {
    "dino": Row(dino.Config, dino.DINO, "self-distillation over prototypes (Caron et al. 2021)"),
    "simdino": Row(
        simdino.Config, simdino.SimDINO, "self-distillation with a coding rate (Wu et al. 2025)"
    ),
    "cotraining": Row(
        cotraining.Config,
        cotraining.CoTraining,
        "two classifiers agree on labels nobody gave (McAllester 2024); collapses",
    ),
    "clip": Row(
        clip.Config, clip.CLIP, "images and captions find each other (Radford et al. 2021)"
    ),
    "supervised": Row(supervised.Config, supervised.Supervised, "classification with labels"),
    "deepcluster": Row(
        deepcluster.Config,
        deepcluster.DeepCluster,
        "classification of k-means clusters (Caron et al. 2018)",
    ),
    "mae": Row(mae.Config, mae.MAE, "masked autoencoding of visible patches (He et al. 2022)"),
    "crate_mae": Row(
        crate_mae.Config, crate_mae.CRATEMAE, "white-box masked autoencoding (Pai et al. 2024)"
    ),
    "swav": Row(
        swav.Config, swav.SwAV, "codes of views predicted from other views (Caron et al. 2020)"
    ),
}


def find_objective(name: str) -> Row:
    """The table's row. Raises ValueError, with the nearest name, if there is none."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    near = difflib.get_close_matches(name, OBJECTIVES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(OBJECTIVES)}."
    raise ValueError(f"No objective is called {name!r}; {hint}")


def objective_name(config: object) -> str:
    """What the objective of this config is called."""
    for name, row in OBJECTIVES.items():
        if type(config) is row.config:
            return name
    known = ", ".join(row.config.__module__ + ".Config" for row in OBJECTIVES.values())
    raise ValueError(f"{type(config).__name__} is not an objective's config; known: {known}.")


def build_objective(
    config: object,
    make_backbone: MakeBackbone,
    horizon: Horizon,
    n_classes: int | None = None,
    n_samples: int | None = None,
    captions: Sequence[str] | None = None,
) -> ImageObjective:
    """The objective that `config` is of, with its networks freshly initialised.

    Args:
        config: an instance of a `Config` of the table.
        make_backbone: see `contract.MakeBackbone`. Heads are initialised from torch's own
            generator: seed it first.
        horizon: how long the run is.
        n_classes: the source's number of labels, None if it has none.
        n_samples: of the source; objectives that keep something of each sample need it.
        captions: the source's, None if it has none. A tokenizer is learned from them.

    Raises:
        ValueError: labels or captions that the objective needs and the source lacks; a view that
            the backbone's patches do not tile; a normalisation for another number of channels.
    """
    name = objective_name(config)
    if isinstance(config, supervised.Config) and not n_classes:
        raise ValueError(
            "The objective 'supervised' needs labels and the source has none; choose "
            "another objective or a source with classes."
        )
    if isinstance(config, deepcluster.Config):
        assert n_samples is not None
    if isinstance(config, clip.Config) and not captions:
        raise ValueError(
            "The objective 'clip' needs captions and the source has none; choose another "
            "objective or a source with captions (pairs:FILE, emoji)."
        )
    facts = DataFacts(n_samples, n_classes, captions)
    objective = OBJECTIVES[name].objective(config, make_backbone, horizon, facts)
    _refuse_unfit_views(name, objective)
    return objective


def _refuse_unfit_views(name: str, objective: ImageObjective) -> None:
    backbone, plan = objective.encoder, objective.views()
    if len(plan.mean) != backbone.in_chans:
        raise ValueError(
            f"The views of {name!r} are normalised for {len(plan.mean)} channels and the backbone "
            f"takes {backbone.in_chans}; set mean and std to {backbone.in_chans} values each, as "
            "`vitrail stats SPEC` prints them."
        )
    if not isinstance(backbone, TokenBackbone):
        return
    for size, _ in plan.resolutions:
        patch = backbone.patch_size
        if size % patch:
            below, above = size // patch * patch, (size // patch + 1) * patch
            near = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"The objective {name!r} has views of {size} px, which the backbone's patches of "
                f"{patch} px do not divide; set that view's size to {near}."
            )
