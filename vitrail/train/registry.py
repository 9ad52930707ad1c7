"""The registry of sinks: where the rows of a run's log go besides metrics.jsonl."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitrail.registry import Registry, Row


@dataclass(frozen=True)
class SinkRow(Row):
    """A sink.

    Attributes:
        open: "module:Name" of a class or function, or the object itself. It is called with the
            run's folder and the first step to come, and returns a `train.contract.Sink`. Rows of
            that step and later ones, which the sink may hold of a run that was killed, are
            replaced.
        summary: one line for listings.
        extra: the extra of vitrail that installs what the sink needs, None if none does.
    """

    open: str | Callable[..., Any]
    summary: str
    extra: str | None = None


SINKS = Registry(
    "sink",
    SinkRow,
    {
        "tensorboard": SinkRow(
            open="vitrail.train.tensorboard:TensorBoard",
            summary="event files in RUN/tb, for `tensorboard --logdir RUN/tb`",
            extra="tensorboard",
        ),
    },
)
