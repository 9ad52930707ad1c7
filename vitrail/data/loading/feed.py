"""The contract of a feed: the batches of every step of a run, whatever the batches are of."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from vitrail.data.loading.order import Order
from vitrail.data.loading.wait_time import Meter, Spent

B = TypeVar("B")


class Feed(ABC, Generic[B]):
    """An abstract feed of batches of type B to one rank. Batches are a pure function of the step.

    Attributes:
        spec: the source as the user names it, for messages.
        fingerprint: of the source when the run, or its resumption, began; it changes when the
            samples or their order change.
        n_samples: number of samples of the source.
        batch_size: samples of a step, over all ranks and accumulation slices.
        sample_noun: what a sample is called, in the plural: "images".
        unit: the unit of the pace, in the plural: "images" or "tokens". Rows of metrics.jsonl hold
            the pace as "images_per_s" or "tokens_per_s".
        units_per_step: how many of that unit a step has, over all ranks.
        meter: measures the time in which steps wait for batches.
    """

    spec: str
    fingerprint: str
    n_samples: int
    batch_size: int
    sample_noun: str
    unit: str
    units_per_step: int
    meter: Meter

    @property
    def steps_per_epoch(self) -> float:
        """Steps of a pass over the samples; below 1 for a source smaller than a batch."""
        return self.n_samples / self.batch_size

    def begin(self, run: Path, start: int) -> None:
        """Prepares for the steps from `start` on. Called once, on all ranks, before `batches`.

        Args:
            run: the run's folder, for files of the feed's own.
            start: the first step to come; 0 for a run that was never saved.
        """

    @abstractmethod
    def batches(self, start: int, stop: int, order: Order | None = None) -> Iterator[list[B]]:
        """Yields the accumulation slices of every step in [start, stop).

        Args:
            start: the first step.
            stop: the step after the last one.
            order: which samples a step has; None for the feed's own order.
        """

    def embed_all(self) -> Tensor:
        """Returns the encoder's features of all samples, see `objectives.contract.EmbedAll`.

        Raises:
            ValueError: the feed has no encoder to embed its samples by.
        """
        raise ValueError(
            f"{self.spec} cannot be embedded by a {type(self).__name__}; choose an objective that "
            "does not embed all samples before an epoch"
        )

    def advise(self, steps: int, busy: float, spent: Spent) -> str | None:
        """Returns advice on a run whose steps wait for batches, if there is any, once.

        Args:
            steps: steps since the last call.
            busy: seconds of these steps.
            spent: where these seconds went.
        """
        return None
