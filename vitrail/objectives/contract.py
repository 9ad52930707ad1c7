"""The contract of an objective: `Features` -> head -> loss -> state update.

DDP synchronises gradients only through `forward`, so the loss *is* `forward`.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypedDict

from torch import Tensor, nn

from vitrail.backbones.contract import Backbone
from vitrail.data.batch import Batch
from vitrail.data.views import ViewPlan


class ParamGroup(TypedDict, total=False):
    """What the optimizer gets, and how the loop's schedules apply to it."""

    params: list[nn.Parameter]
    lr_scale: float  # times the scheduled learning rate, default 1
    wd_scale: float  # times the scheduled weight decay, default 1
    freeze_steps: int  # gradients are dropped while step < freeze_steps, default 0


# (drop_path) -> a freshly initialised backbone; equal calls give equal weights.
MakeBackbone = Callable[[float], Backbone]


class Objective(nn.Module):
    """Abstract. A method: what it wants to see, its loss, and the state it keeps."""

    # The loss of a batch is not the mean of the losses of its parts, so that gradient accumulation
    # would change it; the loop refuses to accumulate such an objective.
    batch_coupled: ClassVar[bool]
    min_batch_size: ClassVar[int] = 1  # of the global batch

    @abstractmethod
    def views(self) -> ViewPlan:
        """The views of one image that `forward` expects, in order."""

    @abstractmethod
    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The loss of this slice of the global batch.

        Returns:
            "loss": scalar float32 with a gradient; its mean over ranks is the global loss, and
            the mean of its gradients is the global gradient.
            "features" and "embedding": optional, detached [rows, D]: what the encoder gives, and
            what the loss compares. `health` looks at them; a run may collapse in either.
            All others: detached means over samples; they are averaged over accumulation slices,
            handed to `after_step`, and logged where they are scalars.
        """

    def after_step(self, out: dict[str, Tensor], step: int) -> None:
        """State updates after the optimizer's step: EMA teachers, centres, queues."""

    @abstractmethod
    def param_groups(self) -> list[ParamGroup]:
        """The parameters to train. Biases and other 1-D parameters carry no weight decay."""

    @property
    def chance_loss(self) -> float | None:
        """The loss of an output that ignores its input (ln K), None where there is none."""
        return None

    @property
    @abstractmethod
    def encoder(self) -> Backbone:
        """What is exported and evaluated."""
