"""The settings of an evaluation: those that protocols share, and a group for each config.

On the command line a protocol's fields are `--GROUP.FIELD` (`--knn.k 5`), in Python nested dicts
(`{"knn": {"k": 5}}`). Evaluations written before protocols had groups are read by `migrated`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from functools import cache
from typing import Any

from vitrail.config import from_dict
from vitrail.data.contract import Metric
from vitrail.evals.protocol import Protocol
from vitrail.evals.registry import PROTOCOLS
from vitrail.registry import resolve

# Fields of the flat settings that evaluation.json had before protocols had groups.
MOVED = {
    "k": "knn.k",
    "more_k": "knn.more_k",
    "tau": "knn.tau",
    "draws": "linear.draws",
    "last_blocks": "linear_sweep.last_blocks",
    "templates": "zeroshot.templates",
    "map_layout": "map.layout",
}


@dataclass(frozen=True)
class Shared:
    """The settings that several protocols share.

    Attributes:
        seed: of draws, probes, fine-tuning and pictures; the 1 % and 10 % subsets have their own.
        metric: what accuracies are; mean_per_class averages over the test classes. None for what
            the data ask for, which is accuracy for most.
        pictures: images in each figure, at least 1.
        image_size: pixels a side, rounded down to whole patches, of the images for `saliency`,
            `pca`, `parts` and `jaccard`; None is the encoder's own.
    """

    seed: int = 0
    metric: Metric | None = None
    pictures: int = 8
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.pictures < 1:
            raise ValueError(f"pictures = {self.pictures}: it must be at least 1")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size = {self.image_size}: it must be at least 1 pixel")


def settings_type() -> type[Shared]:
    """Returns a frozen dataclass: the fields of `Shared`, and one config for each group.

    Raises:
        ValueError: two protocols that have different configs for one group, or a group that is
            called as a shared setting is.
    """
    groups: dict[str, Any] = {}
    taken = {f.name for f in fields(Shared)} | MOVED.keys()
    for name, row in PROTOCOLS.items():
        for group, reference in row.configs.items():
            config = resolve(reference)
            if group in taken or groups.setdefault(group, config) is not config:
                raise ValueError(
                    f"the protocol {name!r} has the group of settings {group!r}, which is taken; "
                    "give it another name"
                )
    return _settings_of(tuple(groups.items()))


@cache
def _settings_of(groups: tuple[tuple[str, type], ...]) -> type[Shared]:
    """Returns one type for equal groups, so settings of two calls can be compared."""
    nested = [(name, config, field(default_factory=config)) for name, config in groups]
    return make_dataclass(
        "Settings", nested, bases=(Shared,), frozen=True, namespace={"__doc__": Shared.__doc__}
    )


def make_settings(values: Mapping[str, Any] | Shared | None = None) -> Any:
    """Returns settings of `settings_type()`, checked; what is not given has its default.

    Args:
        values: shared settings by name, and configs (or dicts of their fields) by group, as in
            {"seed": 1, "knn": {"k": 5}}; or settings that this function has returned.

    Raises:
        ValueError: a name that is not a setting, or a value that it cannot have.
    """
    if values is None:
        values = {}
    elif not isinstance(values, Mapping):
        values = {f.name: getattr(values, f.name) for f in fields(values)}
    for name in values:
        if name in MOVED:
            group, _, inner = MOVED[name].partition(".")
            raise ValueError(f"{name} is now {MOVED[name]}: give {{{group!r}: {{{inner!r}: ...}}}}")
    return from_dict(settings_type(), dict(values))


def configs_of(row: Protocol, settings: Any) -> list[Any]:
    """Returns the configs that the protocol's `run` takes, in the order of its groups."""
    return [getattr(settings, group) for group in row.configs]


def to_json(settings: Any) -> dict[str, Any]:
    """Returns settings as they come back from JSON: lists for tuples, a dict for each group."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return plain


def migrated(settings: Any) -> dict[str, Any]:
    """Returns the settings of an `evaluation.json` in today's form, whatever version wrote it.

    Args:
        settings: of the file, which may be damaged.
    """
    if not isinstance(settings, dict):
        return {}
    new: dict[str, Any] = {}
    for name, value in settings.items():
        group, _, inner = str(MOVED.get(name, name)).partition(".")
        if inner:
            new.setdefault(group, {})[inner] = value
        else:
            new[name] = value
    return new


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of groups as "GROUP.FIELD", beside the shared settings."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": part for inner, part in value.items()}
        else:
            found[name] = value
    return found


def is_known(setting: str) -> bool:
    """Returns True if this version has a setting ("seed", "knn.k"), or at least its group."""
    group, dot, _ = setting.partition(".")
    if dot:
        return any(group in row.configs for row in PROTOCOLS.values())
    return setting in {f.name for f in fields(Shared)}


def depends(row: Protocol, setting: str, shared: Iterable[str] | None = None) -> bool:
    """Returns True if a setting ("seed", "knn.k") changes what a protocol gives.

    Args:
        row: of the protocol.
        setting: as `flatten` calls it.
        shared: the shared settings that count: those of the figure, or (None) of the numbers.
    """
    group, dot, _ = setting.partition(".")
    if not dot:
        return setting in (row.shared if shared is None else shared)
    return group in row.configs and setting not in row.ignores


def refuse_old_options(arguments: Iterable[str]) -> None:
    """Raises ValueError for an option of `vitrail evaluate` that has a new spelling, naming it."""
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        name = argument.removeprefix("--").partition("=")[0].replace("-", "_")
        if name in MOVED:
            old = argument.partition("=")[0]
            raise ValueError(f"{old} is now {option(MOVED[name])}")


def option(setting: str) -> str:
    """Returns a setting as an option of the command line: "knn.more_k" -> "--knn.more-k"."""
    return f"--{setting.replace('_', '-')}"
