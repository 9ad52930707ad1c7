"""Continued pretraining: a run whose encoder does not start from random weights.

A new head on a trained encoder sends it random gradients at first, and undoes it (dinov2 #204:
k-NN fell from 80 % to 10 %). So the encoder is frozen until the head has warmed up, and `guard`
watches what it knows.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitrail.atomic import write_atomically
from vitrail.backbones.contract import Backbone
from vitrail.data.contract import Source
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.subset import Subset, hold_out
from vitrail.data.views.plan import ViewPlan
from vitrail.data.views.preprocess import Preprocess
from vitrail.distributed.ranks import Ranks
from vitrail.encoder import Encoder
from vitrail.evals.classification.knn import K, knn_accuracy
from vitrail.evals.features import features
from vitrail.nn.batch_norm import MOMENTUM, GlobalBatchNorm
from vitrail.nn.random import philox
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import Objective
from vitrail.optim import ParamGroup
from vitrail.recipes.recipe import Recipe, plan_horizon, preprocess_of, worker_count
from vitrail.train.log import say


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


HELD_OUT = 1000  # images at most, and no more than a tenth of the data
BANK = 5000  # training images that they are compared with, at most
BASELINE = "guard.json"  # in the run's folder: k-NN before the first step


@dataclass
class Guard:
    """Args: bank, queries: labelled images; the queries are not trained on. every: steps between
    two looks. drop: the fall of k-NN accuracy that is worth a warning, as a fraction. device: where
    the encoder is. workers: decoding processes. max_bad_fraction: of the files of either.
    """

    bank: Source
    queries: Source
    preprocess: Preprocess
    every: int
    drop: float
    device: str = "cpu"
    workers: int = 0
    max_bad_fraction: float = 0.5
    _before: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        # Kept from look to look: what is bad is read once.
        self._bad_bank, self._bad_queries = (
            Quarantine(None, len(source), self.max_bad_fraction)
            for source in (self.bank, self.queries)
        )

    def begin(self, run: Path, encoder: Backbone, start: int) -> None:
        """Measures what the encoder knows before the first step, or reads what was measured."""
        if start > 0 and (run / BASELINE).exists():
            self._before = json.loads((run / BASELINE).read_text(encoding="utf-8"))["knn"]
            return
        self._before = self.accuracy(encoder)
        described = {"knn": self._before, "held_out": len(self.queries), "bank": len(self.bank)}
        write_atomically(run / BASELINE, json.dumps(described) + "\n")

    def due(self, step: int) -> bool:
        return (step + 1) % self.every == 0

    def look(self, step: int, encoder: Backbone, row: dict[str, Any]) -> dict[str, Any]:
        """The row with "knn", and with a warning where it has fallen too far."""
        now = self.accuracy(encoder)
        row = row | {"knn": now}
        if self._before - now <= self.drop:
            return row
        warning = (
            f"step {step}: k-NN on {len(self.queries)} held-out images is {now:.1%}, and was "
            f"{self._before:.1%} before the first step: the encoder forgets more than the "
            f"{self.drop:.1%} allowed. Try a lower --optim.lr, a longer --head-warmup-steps, or "
            "stop here"
        )
        return row | {"warning": "; ".join([*_said(row), warning])}

    def accuracy(self, encoder: Backbone) -> float:
        """k-NN of the held-out images among the bank, in [0, 1]."""
        frozen = Encoder(encoder, self.preprocess, {})
        bank_ND, labels_N, _ = features(frozen, self.bank, self._bad_bank, workers=self.workers)
        queries_MD, answers_M, _ = features(
            frozen, self.queries, self._bad_queries, workers=self.workers
        )
        k = min(K, len(bank_ND))
        return knn_accuracy(bank_ND, labels_N, queries_MD, answers_M, k, device=self.device)


def split_for_guard(source: Source, seed: int) -> tuple[Source, Source, Source]:
    """(to train on, the guard's bank, the guard's queries): the bank is a part of the first.

    Raises:
        ValueError: too few images to hold any out.
    """
    fraction = min(0.1, HELD_OUT / len(source))
    rest, queries = hold_out(source, fraction, seed)
    return rest, _some(rest, BANK, seed), queries


def _some(source: Subset, count: int, seed: int) -> Subset:
    if len(source) <= count:
        return source
    order: Sequence[int] = philox(seed, "guard", 0).permutation(len(source))[:count].tolist()
    return Subset(source, sorted(order))


def _said(row: dict[str, Any]) -> list[str]:
    return [row["warning"]] if "warning" in row else []


def guarded(
    recipe: Recipe, plan: ViewPlan, ranks: Ranks, source: Source
) -> tuple[Source, Guard | None]:
    """What is trained on, and the guard of a run that starts from weights, if it can have one."""
    if recipe.init_from is None or recipe.guard_drop is None:
        return source, None
    if source.classes is None:
        if ranks.is_main:
            say(
                f"no guard: {source.spec} has no labels, so nobody sees whether the encoder forgets"
            )
        return source, None
    rest, bank, queries = split_for_guard(source, recipe.seed)
    steps_per_epoch = plan_horizon(recipe, len(rest)).steps_per_epoch
    return rest, Guard(
        bank,
        queries,
        preprocess_of(recipe, plan),
        every=recipe.guard_every or max(50, round(steps_per_epoch)),
        drop=recipe.guard_drop,
        device=str(ranks.device),
        workers=worker_count(recipe, ranks),
        max_bad_fraction=recipe.max_bad_fraction,
    )
