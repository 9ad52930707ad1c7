"""The contracts of the trainer: what the loop needs of a recipe and a run's parts, and of a log."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from torch.optim import Optimizer

from vitrail.data.loading.feed import Feed
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import Objective
from vitrail.optim import Config as OptimConfig

B = TypeVar("B")


@runtime_checkable
class RunSettings(Protocol):
    """The fields of a recipe that the loop reads; `Recipe` documents them.

    Any frozen dataclass with these fields will do: checkpoints hold it as a dict.
    """

    @property
    def optim(self) -> OptimConfig: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def precision(self) -> Literal["fp32", "bf16"]: ...
    @property
    def seed(self) -> int: ...
    @property
    def compile(self) -> Literal["auto", "on", "off"]: ...
    @property
    def checkpoint_every(self) -> int | None: ...
    @property
    def health_every(self) -> int: ...
    @property
    def sinks(self) -> tuple[str, ...]: ...


@runtime_checkable
class Watch(Protocol):
    """Measures the model now and then while it trains, such as the guard of a warm start.

    The loop calls every method on every rank; the watch decides which ranks compute.
    """

    def begin(self, run: Path, start: int) -> None:
        """Measures the model before step `start`, or reads what was measured before step 0."""

    def due(self, step: int) -> bool:
        """Returns whether to measure after this step; the same on every rank."""

    def measure(self, step: int, row: dict[str, Any]) -> dict[str, Any]:
        """Returns the row of metrics.jsonl of this step with the measurements added."""


@runtime_checkable
class Exports(Protocol):
    """The files that a run writes beside its checkpoints, for use after training."""

    def save(self, run: Path, step: int) -> None:
        """Writes the model as it is after `step` steps."""

    def are_saved(self, run: Path, step: int) -> bool:
        """Returns whether the run's folder holds the files of this step."""


@runtime_checkable
class Sink(Protocol):
    """A place where the rows of metrics.jsonl go as well, such as TensorBoard. Only on rank 0."""

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Writes rows, one for each step. "step" is an integer; numbers may be NaN or infinite.

        Raises:
            OSError: the disk is full or not writable.
        """

    def close(self) -> None:
        """Flushes and closes what is open."""


@dataclass(frozen=True)
class Parts(Generic[B]):
    """The parts of a run, on their device, initialised from the recipe's seed.

    Attributes:
        feed: gives the batches.
        horizon: the length of the run.
        objective: the loss and its state.
        optimizer: over the objective's parameter groups.
        exports: the files to write beside checkpoints.
        guard: measures a warm start while it trains, None for no guard.
        frozen_steps: steps at the start in which backbones are frozen.
        missing_start: the path of weights that the run should start from and that are gone; None
            if they are loaded, or if the run starts from random weights.
        changed: fields in which the run's checkpoints may differ from the recipe.
        on_restored: called on every rank with the steps taken so far, once the run can go on.
    """

    feed: Feed[B]
    horizon: Horizon
    objective: Objective[B]
    optimizer: Optimizer
    exports: Exports
    guard: Watch | None = None
    frozen_steps: int = 0
    missing_start: str | None = None
    changed: Collection[str] = ()
    on_restored: Callable[[int], None] | None = None
