"""The contract of an objective: `Features` -> head -> loss -> state update.

DDP synchronises gradients only through `forward`, so the loss *is* `forward`.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitrail.backbones.contract import Backbone
from vitrail.backbones.joint import JointSpace
from vitrail.data.contract import Batch
from vitrail.data.tokenizer import Tokenizer
from vitrail.data.views.plan import ViewPlan
from vitrail.nn.random import Draws
from vitrail.optim import ParamGroup


class Pictures(NamedTuple):
    """A grid for a person to look at: a title for each column, and pixels in [0, 1]."""

    columns: tuple[str, ...]
    pixels: Float[Tensor, "rows columns C H W"]


class TextSide(NamedTuple):
    """What a method that learns from captions makes of them."""

    space: JointSpace
    tokenizer: Tokenizer


# (drop_path) -> a freshly initialised backbone; equal calls give equal weights.
MakeBackbone = Callable[[float], Backbone]

# () -> the encoder's features of every image of the source, by evaluation's preprocessing: float32
# on the CPU, equal on all ranks. Rows of images that cannot be read are NaN. All ranks call it.
EmbedAll = Callable[[], Float[Tensor, "N D"]]


class Objective(nn.Module):
    """Abstract. A method: what it wants to see, its loss, and the state it keeps."""

    # The loss of a batch is not the mean of the losses of its parts, so that gradient accumulation
    # would change it; the loop refuses to accumulate such an objective.
    batch_coupled: ClassVar[bool]
    min_batch_size: ClassVar[int] = 1  # of the global batch

    @abstractmethod
    def views(self) -> ViewPlan:
        """The views of one image that `forward` expects, in order."""

    @property
    def groups(self) -> Int[Tensor, " N"] | None:
        """The group of every sample of the source, -1 for none; None for most objectives.

        Epochs are then random orders of all samples, and flow into each other. An epoch of an
        objective with groups draws each group equally often, and begins by `before_epoch`.
        """
        return None

    @property
    def epoch_length(self) -> float:
        """How many samples an epoch of an objective with groups has, as a multiple of N."""
        return 1.0

    def before_epoch(self, epoch: int, seed: int, embed: EmbedAll) -> list[nn.Parameter]:
        """Makes the groups of the epoch that begins. Called on all ranks, where there are groups.

        It comes before the first step whose first sample is of the new epoch (see
        `data.sampling.epoch_at`), and not again when a run resumes within the epoch: what it
        decides is kept in buffers. A pure function of its arguments and of this module's state.

        Args:
            epoch: from 0. seed: the run's, for `nn.random.philox`.

        Returns:
            the parameters that it drew anew: what the optimizer remembers of them is dropped.
        """
        return []

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

    def pictures(self, batch: Batch) -> dict[str, Pictures]:
        """What the method makes of the first few images, by the figure's name; without gradients.

        One rank calls it, now and then: it must not speak to the others, nor change any state.
        """
        return {}

    @property
    def chance_loss(self) -> float | None:
        """The loss of an output that ignores its input (ln K), None where there is none."""
        return None

    @property
    @abstractmethod
    def encoder(self) -> Backbone:
        """What is exported and evaluated."""

    @property
    def text_side(self) -> TextSide | None:
        """What is exported beside the encoder, None for methods without captions."""
        return None


class Network(nn.Module):
    """Parameter names are `backbone.*` and `head.*`, as in DINO's full checkpoints."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(
        self, images: list[Float[Tensor, "_ C _ _"]], draws: Draws | None = None
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R O"]]:
        """Pooled features and head outputs, in the order of the views.

        The backbone runs once over all resolutions, the head once over all rows.
        """
        features = self.backbone.forward_packed(images, draws)
        pooled_RD = torch.cat([f.pooled for f in features])
        return pooled_RD, self.head(pooled_RD)
