"""Warm starts: runs whose encoder starts from weights instead of random numbers.

The gradients of a new head are random at first, and ruin a trained encoder (dinov2 #204: k-NN fell
from 80 % to 10 %). So the encoder is frozen until the head has warmed up, and `Guard` measures its
k-NN accuracy during the run.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from vitrail.atomic import parse_json, write_atomically
from vitrail.backbones.contract import Backbone
from vitrail.data.contract import Source
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.subset import Subset, hold_out
from vitrail.data.views.preprocess import Preprocess
from vitrail.distributed.ranks import Ranks
from vitrail.encoder import Encoder, load_backbone
from vitrail.evals.classification.knn import K, knn_accuracy
from vitrail.evals.features import features
from vitrail.nn.batch_norm import MOMENTUM, GlobalBatchNorm
from vitrail.nn.random import philox
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import Objective
from vitrail.optim import ParamGroup
from vitrail.recipes.recipe import Recipe, worker_count
from vitrail.train.log import print_line


def resolve_start(recipe: Recipe) -> Recipe:
    """Returns the recipe with the weights' full path, and with their architecture as its backbone.

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
    config = dict(load_backbone(path).config)
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
    """Reads the encoder's weights to start from; None if there are none, or if they are gone.

    Raises:
        ValueError: the encoder is for images of another number of channels.
    """
    if recipe.init_from is None or not Path(recipe.init_from).exists():
        return None
    start = load_backbone(recipe.init_from)
    if start.in_chans != channels:
        raise ValueError(
            f"init_from: its encoder takes {start.in_chans} channel(s) and the images have "
            f"{channels}; set --channels {start.in_chans}"
        )
    return start.state_dict()


def head_warmup_steps(recipe: Recipe, horizon: Horizon) -> int:
    """Returns the steps in which the encoder is frozen, see `Recipe.head_warmup_steps`."""
    if recipe.init_from is None:
        return 0
    if recipe.head_warmup_steps is not None:
        return recipe.head_warmup_steps
    return min(round(horizon.steps_per_epoch), horizon.steps // 10)


def freeze_backbones(
    groups: list[ParamGroup], objective: Objective[Any], steps: int
) -> list[ParamGroup]:
    """Returns the groups, split so the parameters of backbones are frozen for `steps` steps."""
    if steps == 0:
        return groups
    backbones = (module for module in objective.modules() if isinstance(module, Backbone))
    return list(_split_groups(groups, {id(p) for b in backbones for p in b.parameters()}, steps))


def hold_statistics(objective: Objective[Any], frozen: bool) -> None:
    """Stops, or starts again, the running statistics of the batch norms in backbones."""
    for backbone in (m for m in objective.modules() if isinstance(m, Backbone)):
        for norm in (m for m in backbone.modules() if isinstance(m, GlobalBatchNorm)):
            norm.momentum = 0.0 if frozen else MOMENTUM


def _split_groups(
    groups: list[ParamGroup], of_backbones: set[int], steps: int
) -> Iterator[ParamGroup]:
    for group in groups:
        frozen: list[nn.Parameter] = [p for p in group["params"] if id(p) in of_backbones]
        free: list[nn.Parameter] = [p for p in group["params"] if id(p) not in of_backbones]
        if frozen:
            longest = max(steps, group.get("freeze_steps", 0))
            yield {**group, "params": frozen, "freeze_steps": longest}
        if free:
            yield {**group, "params": free}


HELD_OUT = 1000  # images that are held out, at most, and no more than a tenth of the data
BANK = 5000  # training images that they are compared with, at most
BASELINE = "guard.json"  # in the run's folder: k-NN before the first step


class GuardImages(NamedTuple):
    """Labelled images of the guard: `bank` is a part of the training images, `queries` is not."""

    bank: Source
    queries: Source


@dataclass
class Guard:
    """Measures the k-NN accuracy of the encoder on held-out images, and warns when it falls.

    Attributes:
        encoder: the encoder that is trained.
        images: the bank and the queries.
        preprocess: how images are prepared for the encoder.
        every: steps between two measurements.
        drop: the fall of k-NN accuracy that is warned of, as a fraction.
        is_main: whether this is rank 0, the only one that measures.
        device: the encoder's device.
        workers: processes that decode images.
        max_bad_fraction: fraction of the files of the bank, or of the queries, that may be bad.
    """

    encoder: Backbone
    images: GuardImages
    preprocess: Preprocess
    every: int
    drop: float
    is_main: bool = True
    device: str = "cpu"
    workers: int = 0
    max_bad_fraction: float = 0.5
    _before: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        # shared by all measurements, so a bad file is read once
        self._bad_bank, self._bad_queries = (
            Quarantine(None, len(source), self.max_bad_fraction) for source in self.images
        )

    def begin(self, run: Path, start: int) -> None:
        """Measures the accuracy before the first step, or reads it from guard.json."""
        if not self.is_main:
            return
        if start > 0 and (run / BASELINE).exists():
            self._before = parse_json((run / BASELINE).read_text(encoding="utf-8"))["knn"]
            return
        self._before = self.accuracy()
        bank, queries = self.images
        described = {"knn": self._before, "held_out": len(queries), "bank": len(bank)}
        write_atomically(run / BASELINE, json.dumps(described) + "\n")

    def due(self, step: int) -> bool:
        """Returns whether to measure after this step; the same on every rank."""
        return (step + 1) % self.every == 0

    def measure(self, step: int, row: dict[str, Any]) -> dict[str, Any]:
        """Returns the row with "knn", and with a warning if the accuracy fell too far."""
        if not self.is_main:
            return row
        now, held_out = self.accuracy(), len(self.images.queries)
        row = row | {"knn": now}
        if self._before - now <= self.drop:
            return row
        warning = (
            f"step {step}: k-NN on {held_out} held-out images is {now:.1%}, and was "
            f"{self._before:.1%} before the first step: the encoder forgets more than the "
            f"{self.drop:.1%} allowed. Try a lower --optim.lr, a longer --head-warmup-steps, or "
            "stop here"
        )
        return row | {"warning": "; ".join([*_warnings(row), warning])}

    def accuracy(self) -> float:
        """Returns the k-NN accuracy of the held-out images among the bank, in [0, 1]."""
        frozen, (bank, queries) = Encoder(self.encoder, self.preprocess, {}), self.images
        bank_ND, labels_N, _ = features(frozen, bank, self._bad_bank, workers=self.workers)
        queries_MD, answers_M, _ = features(
            frozen, queries, self._bad_queries, workers=self.workers
        )
        k = min(K, len(bank_ND))
        return knn_accuracy(bank_ND, labels_N, queries_MD, answers_M, k, device=self.device)


def _random_subset(source: Subset, count: int, seed: int) -> Subset:
    if len(source) <= count:
        return source
    order: Sequence[int] = philox(seed, "guard", 0).permutation(len(source))[:count].tolist()
    return Subset(source, sorted(order))


def _warnings(row: dict[str, Any]) -> list[str]:
    return [row["warning"]] if "warning" in row else []


def split_for_guard(
    recipe: Recipe, ranks: Ranks, source: Source
) -> tuple[Source, GuardImages | None]:
    """Returns the images to train on, and those of the guard if the run is to have one.

    Raises:
        ValueError: too few images to hold any out.
    """
    if recipe.init_from is None or recipe.guard_drop is None:
        return source, None
    if source.classes is None:
        if ranks.is_main:
            why = f" ({source.unlabelled})" if source.unlabelled else ""
            print_line(
                f"no guard: {source.spec} has no labels{why}, so nobody sees whether the encoder "
                "forgets"
            )
        return source, None
    fraction = min(0.1, HELD_OUT / len(source))
    rest, queries = hold_out(source, fraction, recipe.seed)
    return rest, GuardImages(_random_subset(rest, BANK, recipe.seed), queries)


def build_guard(
    recipe: Recipe,
    ranks: Ranks,
    images: GuardImages,
    encoder: Backbone,
    preprocess: Preprocess,
    steps_per_epoch: float,
) -> Guard:
    """Returns the guard of a run with these images."""
    assert recipe.guard_drop is not None
    return Guard(
        encoder,
        images,
        preprocess,
        every=recipe.guard_every or max(50, round(steps_per_epoch)),
        drop=recipe.guard_drop,
        is_main=ranks.is_main,
        device=str(ranks.device),
        workers=worker_count(recipe, ranks),
        max_bad_fraction=recipe.max_bad_fraction,
    )
