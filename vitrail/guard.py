"""Does continued pretraining keep what the encoder knew? k-NN on images held out of the training.

It warns, with the numbers, and changes nothing: neither the run nor which checkpoint is kept.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrail.atomic import write_atomically
from vitrail.backbones.contract import Backbone
from vitrail.data.contract import Source
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.subset import Subset, hold_out
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder
from vitrail.evals.classification.knn import K, knn_accuracy
from vitrail.evals.features import features
from vitrail.nn.random import philox

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
