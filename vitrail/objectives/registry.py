"""The registry of objectives. A row is all that has to be said about one outside its own file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vitrail.registry import Registry, Row, resolve

Need = Literal["labels", "captions", "sample_count"]


@dataclass(frozen=True)
class ObjectiveRow(Row):
    """An objective as the command line, `config.json` and the documentation know it.

    Attributes:
        objective: the class, a subclass of `objectives.contract.Objective`, or "module:Class".
        config: the frozen dataclass of its settings, or "module:Class". Every field has a default
            and is documented on a line of its own, for that is its help on the command line.
        summary: what the method does, and its source, in a few words.
        needs: what the data must have. "labels" and "captions" are refused where the data lack
            them; "sample_count" is a number of samples that is known before the first step.
    """

    objective: type | str
    config: type | str
    summary: str
    needs: frozenset[Need] = frozenset()

    def load(self) -> tuple[type, type]:
        """Returns the classes of the objective and of its config."""
        return resolve(self.objective), resolve(self.config)


def _row(reference: str, summary: str, needs: Sequence[Need] = ()) -> ObjectiveRow:
    """Returns the row of an objective whose file also holds its `Config`."""
    module = reference.partition(":")[0]
    return ObjectiveRow(reference, f"{module}:Config", summary, frozenset(needs))


OBJECTIVES = Registry(
    "objective",
    ObjectiveRow,
    {
        "dino": _row(
            "vitrail.objectives.dino:DINO",
            "self-distillation over prototypes (Caron et al. 2021)",
        ),
        "simdino": _row(
            "vitrail.objectives.simdino:SimDINO",
            "self-distillation with a coding rate (Wu et al. 2025)",
        ),
        "cotraining": _row(
            "vitrail.objectives.cotraining:CoTraining",
            "two classifiers agree on labels nobody gave (McAllester 2024); collapses",
        ),
        "clip": _row(
            "vitrail.objectives.clip:CLIP",
            "images and captions find each other (Radford et al. 2021)",
            needs=["captions"],
        ),
        "supervised": _row(
            "vitrail.objectives.supervised:Supervised",
            "classification with labels",
            needs=["labels"],
        ),
        "deepcluster": _row(
            "vitrail.objectives.deepcluster:DeepCluster",
            "classification of k-means clusters (Caron et al. 2018)",
            needs=["sample_count"],
        ),
        "mae": _row(
            "vitrail.objectives.mae:MAE",
            "masked autoencoding of visible patches (He et al. 2022)",
        ),
        "crate_mae": _row(
            "vitrail.objectives.crate_mae:CRATEMAE",
            "white-box masked autoencoding (Pai et al. 2024)",
        ),
        "swav": _row(
            "vitrail.objectives.swav:SwAV",
            "codes of views predicted from other views (Caron et al. 2020)",
        ),
    },
)


def objective_config(name: str) -> type:
    """Returns the config class of an objective. Raises ValueError, with the nearest name."""
    return OBJECTIVES.find(name).load()[1]


def objective_name(config: Any) -> str:
    """Returns the name of the objective that a config, or a class of configs, belongs to.

    Raises:
        ValueError: no objective has such configs.
    """
    cls = config if isinstance(config, type) else type(config)
    reference = f"{cls.__module__}:{cls.__qualname__}"
    for name, row in OBJECTIVES.items():
        if row.config in (cls, reference):
            return name
    raise ValueError(
        f"{cls.__name__} is not an objective's config; there are those of {', '.join(OBJECTIVES)}"
    )
