"""SwAV: a view's code over prototypes, predicted from the other views of the same image.

Paper: Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments", eqs. (1)-(6), section 3.2 (multi-crop), appendix A.

Code: facebookresearch/swav at 06b1b7c (main_swav.py, src/resnet50.py, scripts/).

    z    = head(backbone(all views))            unit vectors; one packed pass
    s    = z Cᵀ                                 C: prototypes, unit vectors
    q    = Sinkhorn_ε(s of global views)        codes, over the whole batch and the queue
    loss = mean over global views i and other views j of  -Σ_k q_i · log softmax(s_j / τ)
    C    <- C / |C| after the optimizer's step; queue <- (z of global views, queue)[:Q]

No gradient flows through q. Nothing else keeps features apart, neither a teacher nor negatives:
Sinkhorn uses all prototypes equally. A batch much smaller than K is too small for that, so the
queue adds the features of the last batches (`nn/queue.py`). It fills from `queue_epoch` on, and
counts once it is full.

Departures: none in the mathematics.
- A queue need not be a multiple of the batch, and one smaller than the batch holds its first rows.
- Prototypes are made unit vectors after each step, and at the start, rather than before each step.
- Scores, codes and softmax are float32, where the reference runs in apex's O1 half precision.
- For each view, the codes are summed before they are multiplied with its scores, so one log-sum-exp
  serves both.
- The optimizer is set in the recipe. In the code it is LARC, with weight decay on all parameters
  (`optim.decay="all"`).

Shapes: V views of a sample (the first 2 are global) · B samples of this slice · N ranks ·
K prototypes · P dimensions of z · Q length of the queue · q rows of a rank's share · D features.
"""

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.backbones.contract import Backbone
from vitrail.data.contract import Batch
from vitrail.data.views.plan import MultiCrop
from vitrail.nn.batch_norm import GlobalBatchNorm
from vitrail.nn.heads import unit_norm
from vitrail.nn.queue import empty_queue, is_full, push, share_of_rank
from vitrail.nn.schedules import Horizon
from vitrail.nn.sinkhorn import sinkhorn
from vitrail.objectives.contract import DataFacts, ImageObjective, MakeBackbone, Network
from vitrail.optim import ParamGroup, decay_groups

# stronger colours than DINO's, blur in half of all views, no solarisation, smaller local views;
# torchvision's filter by default, and the code's standard deviation of red, .228
VIEWS = MultiCrop(
    interpolation="bilinear",
    std=(0.228, 0.224, 0.225),
    n_local=6,
    global_scale=(0.14, 1.0),
    local_scale=(0.05, 0.14),
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    blur=(0.5, 0.5, 0.5),
    solarize=0.0,
)


@dataclass(frozen=True)
class Config:
    """SwAV's published values, of the runs at batch 4096.

    Attributes:
        views: the views of an image: two global ones and several local ones.
        n_prototypes: prototypes K, at least 2.
        hidden_dim: width of the head's hidden layer.
        feature_dim: dimensions P of the head's output z.
        temperature: temperature τ of the predictions, above 0.
        epsilon: entropy regularisation ε of the codes in Sinkhorn, above 0.
        sinkhorn_iterations: iterations of Sinkhorn, at least 1.
        freeze_prototypes_epochs: epochs, >= 0, in which the prototypes' gradients are dropped.
        queue_length: features Q that are stored for each global view, over all ranks; 0 for no
            queue (the published runs at batch 256: 3840).
        queue_epoch: epoch, >= 0, from which the queue fills.
        drop_path: rate of stochastic depth, in [0, 1); none was published.
    """

    views: MultiCrop = VIEWS
    n_prototypes: int = 3000
    hidden_dim: int = 2048
    feature_dim: int = 128
    temperature: float = 0.1
    epsilon: float = 0.05
    sinkhorn_iterations: int = 3
    freeze_prototypes_epochs: float = 1
    queue_length: int = 0
    queue_epoch: float = 15
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("temperature", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"swav: {name} is {getattr(self, name)}; it must be above 0")
        for name in ("freeze_prototypes_epochs", "queue_length", "queue_epoch"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"swav: {name} is {getattr(self, name)}; it must be 0 or more")
        if self.sinkhorn_iterations < 1:
            raise ValueError(
                f"swav: sinkhorn_iterations is {self.sinkhorn_iterations}; it must be 1 or more"
            )
        if self.n_prototypes < 2:
            raise ValueError(f"swav: n_prototypes is {self.n_prototypes}; it needs at least 2")


class SwAV(ImageObjective):
    """Trains a backbone and prototypes to predict a view's code from the other views.

    Attributes:
        queue: float32 [2, Q, P], features of earlier batches for each global view, newest first.
    """

    config: Config
    batch_coupled: ClassVar[bool] = True
    min_batch_size: ClassVar[int] = 2  # the code of a single sample is uniform
    queue: Tensor

    def __init__(
        self, config: Config, make_backbone: MakeBackbone, horizon: Horizon, facts: DataFacts
    ):
        super().__init__(config, make_backbone, horizon, facts)
        backbone = make_backbone(config.drop_path)
        self.network = Network(backbone, projection(backbone.embed_dim, config))
        self.prototypes = nn.Linear(config.feature_dim, config.n_prototypes, bias=False)
        self._normalise_prototypes()
        self.register_buffer("queue", empty_queue(2, config.queue_length, config.feature_dim))

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        pooled_VBxD, projected_VBxP = self.network(batch.views, batch.draws)
        with torch.autocast(projected_VBxP.device.type, enabled=False):
            z_VBP = unit_norm(projected_VBxP).unflatten(0, (-1, batch.size))
            scores_VBK = self.prototypes(z_VBP)
        codes_2BK = self.codes(scores_VBK[:2].detach(), step)
        loss = swapped_prediction(scores_VBK, codes_2BK, self.config.temperature)
        entropy = -torch.xlogy(codes_2BK, codes_2BK).sum(-1).mean()
        return {
            "loss": loss,
            "features": pooled_VBxD[: 2 * batch.size].detach(),
            "embedding": z_VBP[:2].detach().flatten(0, 1),
            "code_entropy": entropy,  # nats; ln K and constant: collapsed to uniform
            "kl": loss.detach() - entropy,  # divergence of the predictions from the codes
        }

    def after_step(self, out: dict[str, Tensor], step: int) -> None:
        self._normalise_prototypes()
        if self.config.queue_length and step >= self.queue_start:
            push(self.queue, out["embedding"].unflatten(0, (2, -1)))

    @torch.no_grad()
    def codes(self, scores: Float[Tensor, "2 B K"], step: int) -> Float[Tensor, "2 B K"]:
        """Returns the codes of the two global views; rows sum to 1. A full queue counts too."""
        batch_size = scores.shape[1]
        if is_full(self.queue, step - self.queue_start, batch_size):
            # all ranks hold the whole queue, and each gives its share to the global Sinkhorn
            mine_2qP = share_of_rank(self.queue)
            with torch.autocast(scores.device.type, enabled=False):
                scores = torch.cat([scores, self.prototypes(mine_2qP)], dim=1)
        epsilon, iterations = self.config.epsilon, self.config.sinkhorn_iterations
        return torch.stack([sinkhorn(s, epsilon, iterations)[:batch_size] for s in scores])

    @property
    def queue_start(self) -> int:
        """The first step whose features enter the queue."""
        return self.horizon.steps_in(self.config.queue_epoch)

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(unit_norm(self.prototypes.weight))

    def param_groups(self) -> list[ParamGroup]:
        frozen = self.horizon.steps_in(self.config.freeze_prototypes_epochs)
        return [*decay_groups(self.network), *decay_groups(self.prototypes, frozen)]

    @property
    def chance_loss(self) -> float:
        """ln K: the predictions are uniform, whatever the codes are."""
        return log(self.config.n_prototypes)

    @property
    def encoder(self) -> Backbone:
        return self.network.backbone


def projection(in_dim: int, config: Config) -> nn.Sequential:
    """Returns Linear-BN-ReLU-Linear with torch's first weights; the norm is over all views."""
    return nn.Sequential(
        nn.Linear(in_dim, config.hidden_dim),
        GlobalBatchNorm(config.hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(config.hidden_dim, config.feature_dim),
    )


def swapped_prediction(
    scores: Float[Tensor, "V B K"], codes: Float[Tensor, "2 B K"], temperature: float
) -> Float[Tensor, ""]:
    """Returns the cross-entropy of each code to the softmax of every other view's scores.

    Args:
        scores: z Cᵀ [V, B, K].
        codes: [2, B, K], of views 0 and 1; rows sum to 1.
        temperature: τ.

    Returns:
        float32, in nats: the mean over samples and over the 2 V - 2 pairs.
    """
    with torch.autocast(scores.device.type, enabled=False):
        scaled_VBK = scores.float() / temperature
        global_2BK, local_VBK = scaled_VBK.split([2, len(scores) - 2])
        # a global view predicts the other one's code, a local view both
        met_B = (codes.flip(0) * global_2BK).sum((0, 2))
        met_B = met_B + (codes.sum(0) * local_VBK.sum(0)).sum(1)
        log_norm_B = global_2BK.logsumexp(-1).sum(0) + 2 * local_VBK.logsumexp(-1).sum(0)
        return (log_norm_B - met_B).mean() / (2 * len(scores) - 2)
