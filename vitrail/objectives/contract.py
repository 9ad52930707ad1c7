"""The contract of an objective: a batch -> features -> head -> loss -> state update.

`Objective` is of any batch; `ImageObjective` is of the views of images. DDP synchronises gradients
only through `forward`, so the loss is computed in `forward`.

Shape legend: N samples of the source · D features · R rows (all views of a slice) · O outputs of a
head · C channels.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitrail.backbones.contract import Backbone
from vitrail.backbones.joint import JointSpace
from vitrail.data.contract import Batch
from vitrail.data.tokenizer import Tokenizer
from vitrail.data.views.plan import ViewPlan
from vitrail.nn.random import Draws
from vitrail.nn.schedules import Horizon
from vitrail.optim import ParamGroup, decay_groups

B = TypeVar("B")

# (drop_path) -> a freshly initialised backbone; equal calls give equal weights.
MakeBackbone = Callable[[float], Backbone]

# () -> the encoder's features of every sample of the source, by evaluation's preprocessing: float32
# on the CPU, equal on all ranks. Rows of samples that cannot be read are NaN. A collective call.
EmbedAll = Callable[[], Float[Tensor, "N D"]]


@dataclass(frozen=True)
class DataFacts:
    """The facts about a source that an objective may be built from.

    Attributes:
        n_samples: number of samples.
        n_classes: number of label classes, None if the source has no labels.
        captions: the captions that are not empty, None if the source has no captions.
        pictures: a number of the image of every sample, if some images have several captions.
    """

    n_samples: int | None = None
    n_classes: int | None = None
    captions: Sequence[str] | None = None
    pictures: Int[Tensor, " N"] | None = None


class Pictures(NamedTuple):
    """A grid of images for a figure: a title for each column, and pixels in [0, 1]."""

    columns: tuple[str, ...]
    pixels: Float[Tensor, "rows columns C H W"]


class TextSide(NamedTuple):
    """The trained text encoder of a method that learns from captions."""

    space: JointSpace
    tokenizer: Tokenizer


class Objective(nn.Module, Generic[B]):
    """An abstract training objective over batches of type B: the loss, and its state.

    Attributes:
        batch_coupled: if True, the loss of a batch is not the mean of the losses of its parts, so
            gradient accumulation would change it and is refused.
        min_batch_size: smallest global batch, in samples.
        epoch_hook: if True, `before_epoch` is called before every epoch.
        config: the frozen dataclass that set the objective up.
    """

    batch_coupled: ClassVar[bool]
    min_batch_size: ClassVar[int] = 1
    epoch_hook: ClassVar[bool] = False
    config: Any

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, batch: B, step: int) -> dict[str, Tensor]:
        """Computes the loss of this slice of the global batch.

        Returns:
            "loss": scalar float32 with a gradient; its mean over ranks is the global loss, and
            the mean of its gradients is the global gradient.
            "features" and "embedding": optional, detached [rows, D]: the encoder's output and the
            rows that the loss compares, of the last accumulation slice. The health check measures
            both, since a run may collapse in either.
            Integers [rows, ...], such as "index": optional. They are concatenated over
            accumulation slices, handed to `after_step` in their own dtype, and not logged.
            All others: detached means over samples; they are averaged over accumulation slices,
            handed to `after_step`, and logged if they are scalars.
        """

    def after_step(self, out: dict[str, Tensor], step: int) -> None:
        """Updates state after the optimizer's step: EMA teachers, centres, queues.

        Args:
            out: the outputs of `forward` on this rank, detached, over all accumulation slices.
                What must be the same on all ranks is gathered or averaged here.
            step: the step just taken, from 0.
        """

    def param_groups(self) -> list[ParamGroup]:
        """Returns the parameters to train; those with one dimension carry no weight decay."""
        return decay_groups(self)

    @property
    def chance_loss(self) -> float | None:
        """The loss of an output that does not depend on the input (ln K), None if there is none."""
        return None

    @property
    def groups(self) -> Int[Tensor, " N"] | None:
        """The group of every sample of the source, -1 for none; None for no groups.

        Without groups, epochs are random orders of all samples that flow into each other. With
        groups, an epoch draws every group equally often. Groups are made by `before_epoch`, so
        such an objective sets `epoch_hook`.
        """
        return None

    @property
    def epoch_length(self) -> float:
        """The samples of an epoch as a multiple of N, for an objective with `epoch_hook`."""
        return 1.0

    def before_epoch(self, epoch: int, seed: int, embed: EmbedAll) -> list[nn.Parameter]:
        """Prepares the epoch that begins, on all ranks, if `epoch_hook` is set.

        It is called before the first step whose first sample is of the new epoch (see
        `data.loading.order.epoch_at`), and not again when a run resumes within the epoch, so what
        it decides is stored in buffers. It is a pure function of its arguments and of the state.

        Args:
            epoch: number of the epoch, from 0.
            seed: the run's seed, for `nn.random.philox`.
            embed: see `EmbedAll`.

        Returns:
            The parameters that were drawn anew; the optimizer's state of them is dropped.
        """
        return []

    def export(self, folder: Path, info: dict[str, Any]) -> None:
        """Writes the trained model into the run's folder, beside the checkpoints.

        Called on rank 0 after every checkpoint. The encoder and the text side of an
        `ImageObjective` are exported by the trainer; other objectives write files of their own.

        Args:
            folder: the run's folder.
            info: seed, objective, data, step and steps of the run.
        """


class ImageObjective(Objective[Batch]):
    """An abstract objective over views of images, whose encoder is exported.

    All of them are built from the same arguments:

    Args:
        config: the frozen dataclass of its settings, with a field `views`.
        make_backbone: gives backbones with fresh weights.
        horizon: the length of the run.
        facts: the facts about the data.

    Attributes:
        plan: the views of an image, `config.views.plan()`.
        horizon: the length of the run.
        mean_over_labels: if True, the loss is a mean over the labelled samples only, so
            accumulation is refused for a source with unlabelled samples.
    """

    mean_over_labels: ClassVar[bool] = False

    def __init__(
        self, config: Any, make_backbone: MakeBackbone, horizon: Horizon, facts: DataFacts
    ):
        super().__init__(config)
        self.plan: ViewPlan = config.views.plan()
        self.horizon = horizon

    def views(self) -> ViewPlan:
        """Returns the views of one image that `forward` expects, in order."""
        return self.plan

    def pictures(self, batch: Batch) -> dict[str, Pictures]:
        """Returns figures of the first few images by file name; without gradients.

        Called on one rank now and then, so it must not use collectives or change any state.
        """
        return {}

    @property
    @abstractmethod
    def encoder(self) -> Backbone:
        """The backbone that is exported and evaluated."""

    @property
    def text_side(self) -> TextSide | None:
        """The text encoder that is exported too, None for methods without captions."""
        return None


class Network(nn.Module):
    """A backbone and a head. Parameters are `backbone.*` and `head.*`, as in DINO's checkpoints."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(
        self, images: list[Float[Tensor, "_ C _ _"]], draws: Draws | None = None
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R O"]]:
        """Returns pooled features and head outputs, in the order of the views.

        The backbone runs once over all resolutions, the head once over all rows.
        """
        features = self.backbone.forward_packed(images, draws)
        pooled_RD = torch.cat([f.pooled for f in features])
        return pooled_RD, self.head(pooled_RD)
