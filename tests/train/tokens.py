"""A run without images: blocks of random tokens, and a model that predicts the next token."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.data.loading.feed import Feed
from vitrail.data.loading.order import Order
from vitrail.data.loading.wait_time import Meter
from vitrail.distributed.ranks import Ranks, joined
from vitrail.nn.random import philox
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import Objective
from vitrail.optim import Config as Optim
from vitrail.optim import build_optimizer
from vitrail.train.contract import Parts
from vitrail.train.exports import ObjectiveExports
from vitrail.train.loop import train

VOCABULARY, CONTEXT, SAMPLES = 17, 8, 40


@dataclass(frozen=True)
class TokenRecipe:
    """The fields that the loop reads, and no image in sight."""

    optim: Optim = field(default_factory=lambda: Optim(lr=0.05, lr_per_256=False, warmup_epochs=0))
    batch_size: int = 8
    steps: int = 12
    accumulate: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    compile: Literal["auto", "on", "off"] = "off"
    checkpoint_every: int | None = 1000
    health_every: int = 1
    sinks: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenBatch:
    """tokens: int64 [B, CONTEXT + 1]. index: int64 [B], which block each row is."""

    tokens: Tensor
    index: Tensor


class TokenFeed(Feed[TokenBatch]):
    """Blocks drawn from a counter: a pure function of the seed and the step."""

    spec = "random tokens"
    fingerprint = "1"
    sample_noun = "blocks"
    unit = "tokens"
    n_samples = SAMPLES

    def __init__(self, recipe: TokenRecipe, ranks: Ranks):
        self.batch_size = recipe.batch_size
        self.units_per_step = recipe.batch_size * CONTEXT
        self.meter = Meter(torch.device("cpu"))
        self._recipe, self._ranks = recipe, ranks

    def batches(
        self, start: int, stop: int, order: Order | None = None
    ) -> Iterator[list[TokenBatch]]:
        slices = self._ranks.world * self._recipe.accumulate
        first = self._ranks.rank * self._recipe.accumulate
        for step in range(start, stop):
            draws = philox(self._recipe.seed, "tokens", step)
            starts = draws.integers(VOCABULARY, size=(self.batch_size, 1))
            # Every token is the one before plus 3, so there is something to learn.
            blocks = (starts + 3 * np.arange(CONTEXT + 1)) % VOCABULARY
            index = torch.from_numpy(draws.integers(SAMPLES, size=self.batch_size))
            parts = zip(torch.from_numpy(blocks).chunk(slices), index.chunk(slices), strict=True)
            yield [TokenBatch(*part) for part in parts][first : first + self._recipe.accumulate]


class NextToken(Objective[TokenBatch]):
    """An embedding and a linear layer."""

    batch_coupled: ClassVar[bool] = False
    seen: Tensor

    def __init__(self, config: TokenRecipe):
        super().__init__(config)
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.logits = nn.Linear(16, VOCABULARY)
        self.register_buffer("seen", torch.zeros(SAMPLES, dtype=torch.int64))
        self.given: list[Tensor] = []  # every "index" that `after_step` got

    def forward(self, batch: TokenBatch, step: int) -> dict[str, Tensor]:
        embedded = self.embedding(batch.tokens[:, :-1])
        logits = self.logits(embedded)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten())
        found = (logits.argmax(-1) == batch.tokens[:, 1:]).float().mean()
        return {
            "loss": loss,
            "features": embedded.flatten(0, 1).detach(),
            "accuracy": found,
            "index": batch.index,
        }

    def after_step(self, out: dict[str, Tensor], step: int) -> None:
        self.given.append(out["index"])
        self.seen += out["index"].bincount(minlength=SAMPLES)

    def export(self, folder: Path, info: dict[str, Any]) -> None:
        described = {"vocabulary": VOCABULARY, **info}
        (folder / "tokens.json").write_text(json.dumps(described))


def build(recipe: TokenRecipe, ranks: Ranks) -> Parts[TokenBatch]:
    torch.manual_seed(recipe.seed)
    feed, objective = TokenFeed(recipe, ranks), NextToken(recipe)
    return Parts(
        feed=feed,
        horizon=Horizon(recipe.steps, feed.steps_per_epoch),
        objective=objective,
        optimizer=build_optimizer(recipe.optim, objective.param_groups()),
        exports=ObjectiveExports(objective, {"objective": "next_token"}),
    )


def run(folder: Path, recipe: TokenRecipe, stop_after: int | None = None) -> Parts[TokenBatch]:
    """Trains; with `stop_after`, the process sends itself SIGTERM when it has taken that step."""
    folder.mkdir(parents=True, exist_ok=True)
    with joined("cpu") as ranks:
        parts = build(recipe, ranks)
        original = parts.objective.after_step

        def after_step(out: dict[str, Tensor], step: int) -> None:
            original(out, step)
            if step == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

        parts.objective.after_step = after_step  # type: ignore[method-assign]
        assert train(folder, recipe, parts, ranks) == (stop_after is None)
    return parts
