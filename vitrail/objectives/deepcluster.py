"""DeepCluster: cluster the features, then learn to predict the clusters.

Caron et al. 2018, "Deep Clustering for Unsupervised Learning of Visual Features", eqs. (1)-(2) and
section 3.3.
Reference: facebookresearch/deepcluster at 2d1927e (main.py, clustering.py, util.py).

    before each epoch:
        x_n = f(centre crop of image n)          every image; evaluation mode, no gradient
        x_n = whitened(x_n)                      P principal components of unit variance, unit norm
        y_n = argmin_k |x_n - c_k|²              c: k-means, 20 iterations from K random images
        W <- N(0, 0.01²), b <- 0                 the classes have new names
    loss = mean over the batch of  CE(y_n, softmax(W f(random crop of image n) + b))
    an epoch draws every cluster equally often

Departures from the reference:
- No Sobel filters before the first layer; images keep their colours.
- f is the backbone's pooled output. There it is AlexNet's or VGG-16's with its two hidden layers
  and their dropout, read before the last ReLU for k-means and after it for W.
- W has the rate and the optimizer of the rest, its state made new each epoch; there it has plain
  SGD, without momentum.
- Directions of almost no variance are dropped in whitening, where there they are magnified.
- Epochs are whole steps (see `data/sampling.py`).
Not by accident: a cluster that ends empty is no class of that epoch, but keeps its row of W.

Shape legend: B samples of this slice · N of the source · K clusters · D features · P whitened.
"""

from dataclasses import dataclass, field
from math import inf, log
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn

from vitrail.backbones.contract import Backbone
from vitrail.data.contract import Batch
from vitrail.data.views.plan import RandomResizedCrop, ViewPlan
from vitrail.distributed.collectives import of_first_rank, rank
from vitrail.nn.classification import UNLABELLED, classify
from vitrail.nn.kmeans import kmeans, whiten
from vitrail.nn.random import philox
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import EmbedAll, MakeBackbone, Network, Objective
from vitrail.optim import ParamGroup, decay_groups

HEAD_STD = 0.01


@dataclass(frozen=True)
class Config:
    """The published values.

    n_clusters: K; ten times the number of classes was best on ImageNet. pca_dim: P, or D where that
    is less. kmeans_iterations: of Lloyd's algorithm. reassign: epochs between two clusterings (the
    code's option of this name); "epoch" in the rest of this file is such a time. drop_path: none
    was published.
    """

    views: RandomResizedCrop = field(default_factory=RandomResizedCrop)
    n_clusters: int = 10000
    pca_dim: int = 256
    kmeans_iterations: int = 20
    reassign: float = 1.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.n_clusters < 2:
            raise ValueError(f"deepcluster: n_clusters is {self.n_clusters}; it needs at least 2")
        for name in ("pca_dim", "kmeans_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"deepcluster: {name} is {getattr(self, name)}; it must be 1 up")
        if not 0 < self.reassign < inf:
            raise ValueError(f"deepcluster: reassign is {self.reassign}; it must be above 0")


class DeepCluster(Objective):
    # Exact when every sample has a pseudo-label, as all have that the epoch's order draws.
    batch_coupled: ClassVar[bool] = False
    pseudo_labels: Tensor  # int64 [N], UNLABELLED for images that could not be read
    nmi: Tensor  # scalar, of these pseudo-labels and those of the epoch before, if there was one

    def __init__(
        self, config: Config, make_backbone: MakeBackbone, horizon: Horizon, n_samples: int
    ):
        super().__init__()
        if config.n_clusters > n_samples:
            raise ValueError(
                f"deepcluster: n_clusters is {config.n_clusters}, more than the {n_samples} "
                f"images there are; set it to less, as to ten times the classes you expect"
            )
        self.config = config
        self.plan = config.views.plan()
        backbone = make_backbone(config.drop_path)
        self.network = Network(backbone, nn.Linear(backbone.embed_dim, config.n_clusters))
        self.register_buffer("pseudo_labels", torch.full((n_samples,), UNLABELLED))
        self.register_buffer("nmi", torch.tensor(0.0))

    def views(self) -> ViewPlan:
        return self.plan

    def before_epoch(self, epoch: int, seed: int, embed: EmbedAll) -> list[nn.Parameter]:
        """Clusters on rank 0, so that all ranks have the same.

        Raises:
            ValueError: fewer images with finite features than clusters.
        """
        features_ND = embed()
        known_N = features_ND.isfinite().all(1)
        count, k = int(known_N.sum()), self.config.n_clusters
        if count < k:
            raise ValueError(
                f"deepcluster: {count} of {len(known_N)} images have features at epoch {epoch} "
                f"(others could not be read, or the run diverged), fewer than n_clusters, {k}; "
                "set it to less, or mend the images"
            )
        labels_N = torch.full_like(self.pseudo_labels, UNLABELLED)
        if rank() == 0:
            random = philox(seed, "kmeans", epoch)
            labels_N[known_N] = self.cluster(features_ND[known_N], random)
        labels_N = of_first_rank(labels_N)
        self.nmi.fill_(agreement(self.pseudo_labels, labels_N))
        self.pseudo_labels.copy_(labels_N)
        return self.reset_head(philox(seed, "deepcluster head", epoch))

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        label_B = self.pseudo_labels[batch.index]
        pooled_BD, logits_BK = self.network(batch.views, batch.draws)
        loss, accuracy = classify(logits_BK, label_B)
        return {
            "loss": loss,
            "features": pooled_BD.detach(),
            "accuracy": accuracy,  # of the pseudo-labels
            "nmi": self.nmi.clone(),  # 0 in the first epoch
        }

    @torch.no_grad()
    def cluster(
        self, features: Float[Tensor, "n D"], random: np.random.Generator
    ) -> Int[Tensor, " n"]:
        whitened_nP = whiten(features, self.config.pca_dim, self.pseudo_labels.device)
        steps = self.config.kmeans_iterations
        return kmeans(whitened_nP, self.config.n_clusters, random, steps).labels

    @torch.no_grad()
    def reset_head(self, random: np.random.Generator) -> list[nn.Parameter]:
        head = self.network.head
        assert isinstance(head, nn.Linear)
        drawn_KD = random.standard_normal(tuple(head.weight.shape), dtype=np.float32)
        head.weight.copy_(torch.from_numpy(drawn_KD) * HEAD_STD)
        head.bias.zero_()
        return list(head.parameters())

    def param_groups(self) -> list[ParamGroup]:
        return decay_groups(self.network)

    @property
    def groups(self) -> Int[Tensor, " N"]:
        return self.pseudo_labels

    @property
    def epoch_length(self) -> float:
        return self.config.reassign

    @property
    def chance_loss(self) -> float:
        """ln K: every cluster equally likely, as just after the head was drawn anew."""
        return log(self.config.n_clusters)

    @property
    def encoder(self) -> Backbone:
        return self.network.backbone


def agreement(before: Int[Tensor, " N"], now: Int[Tensor, " N"]) -> float:
    """Normalised mutual information of two groupings, of samples in both; 0 where none are.

    As in the paper's figure 2b, but I(A; B) is over the mean of the two entropies (scikit-learn's
    default), where there it is over their geometric mean.
    """
    both = ((before != UNLABELLED) & (now != UNLABELLED)).cpu()
    if not both.any():
        return 0.0
    a, b = before.cpu()[both].numpy(), now.cpu()[both].numpy()
    return float(normalized_mutual_info_score(a, b))
