"""Builds an objective from its config, and refuses data and views that do not fit it."""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from vitrail.backbones.contract import TokenBackbone
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import DataFacts, ImageObjective, MakeBackbone
from vitrail.objectives.registry import OBJECTIVES, objective_name


def build_objective(
    config: object,
    make_backbone: MakeBackbone,
    horizon: Horizon,
    n_classes: int | None = None,
    n_samples: int | None = None,
    captions: Sequence[str] | None = None,
    pictures: Int[Tensor, " N"] | None = None,
    unlabelled: str = "",
) -> ImageObjective:
    """Returns the objective that `config` belongs to, with its networks freshly initialised.

    Args:
        config: an instance of a config class of `OBJECTIVES`.
        make_backbone: see `contract.MakeBackbone`. Heads are initialised from torch's own
            generator: seed it first.
        horizon: how long the run is.
        n_classes: the source's number of labels, None if it has none.
        n_samples: of the source; objectives that keep something of each sample need it.
        captions: the source's, None if it has none. A tokenizer is learned from them.
        pictures: a number of the image of every sample, None if all images differ.
        unlabelled: the reason why the source has no labels, if known.

    Raises:
        ValueError: labels or captions that the objective needs and the source lacks; a view that
            the backbone's patches do not tile; a normalisation for another number of channels.
    """
    name = objective_name(config)
    row = OBJECTIVES[name]
    if "labels" in row.needs and not n_classes:
        raise ValueError(
            f"The objective {name!r} needs labels and the source has none"
            f"{f' ({unlabelled})' if unlabelled else ''}; choose another objective or "
            "a source with classes."
        )
    if "captions" in row.needs and not captions:
        raise ValueError(
            f"The objective {name!r} needs captions and the source has none; choose another "
            "objective or a source with captions (pairs:FILE, emoji)."
        )
    facts = DataFacts(n_samples, n_classes, captions, pictures)
    objective: ImageObjective = row.load()[0](config, make_backbone, horizon, facts)
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
