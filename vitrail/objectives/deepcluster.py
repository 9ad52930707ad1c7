"""DeepCluster: cluster the features, then learn to predict the clusters.

Paper: Caron et al. 2018, "Deep Clustering for Unsupervised Learning of Visual Features", eqs.
(1)-(2) and section 3.3.

Code: facebookresearch/deepcluster at 2d1927e (main.py, clustering.py, util.py).

    before each epoch:
        x_n = f(centre crop of image n)          every image; evaluation mode, no gradient
        x_n = whitened(x_n)                      P principal components of unit variance, unit norm
        y_n = argmin_k |x_n - c_k|²              c: k-means, 20 iterations from K random images
        W <- N(0, 0.01²), b <- 0                 the clusters have new numbers
    loss = mean over the batch of  CE(y_n, softmax(W f(random crop of image n) + b))
    an epoch draws every cluster equally often

Departures:
- No Sobel filters before the first layer; images keep their colours.
- f is the backbone's pooled output. In the code it is AlexNet's or VGG-16's with its two hidden
  layers and their dropout, read before the last ReLU for k-means and after it for W.
- W has the rate and the optimizer of the rest, whose state of W is dropped each epoch; in the code
  W has plain SGD, without momentum.
- Directions of almost no variance are dropped in whitening; the code magnifies them.
- Epochs are whole steps (see `data/loading/order.py`).
On purpose: a cluster that ends empty is no class of that epoch, but keeps its row of W.

Shapes: B samples of this slice · N of the source · K clusters · D features · P whitened.
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
from vitrail.data.views.plan import RandomResizedCrop
from vitrail.distributed.collectives import of_first_rank, rank
from vitrail.nn.classification import UNLABELLED, classify
from vitrail.nn.kmeans import kmeans, whiten
from vitrail.nn.random import philox
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import (
    DataFacts,
    EmbedAll,
    ImageObjective,
    MakeBackbone,
    Network,
)

HEAD_STD = 0.01


def _views() -> RandomResizedCrop:
    """Returns torchvision's random crop, whose filter is bilinear."""
    return RandomResizedCrop(interpolation="bilinear")


@dataclass(frozen=True)
class Config:
    """DeepCluster's published values.

    Attributes:
        views: the views of an image: one random crop.
        n_clusters: clusters K, at least 2; ten times the number of classes was best on ImageNet.
        pca_dim: whitened dimensions P of the features before k-means, D if that is less.
        kmeans_iterations: iterations of Lloyd's algorithm, at least 1.
        reassign: passes over the data between two clusterings, above 0 (the published code's option
            of this name). The epochs of this objective are of this length.
        drop_path: rate of stochastic depth, in [0, 1); none was published.
    """

    views: RandomResizedCrop = field(default_factory=_views)
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


class DeepCluster(ImageObjective):
    """Trains a classifier of clusters, which are made anew before every epoch.

    Attributes:
        pseudo_labels: int64 [N], the cluster of every image, UNLABELLED for images that cannot be
            read.
        nmi: float32 scalar, the normalised mutual information of these pseudo-labels and those of
            the epoch before; 0 in the first epoch.
    """

    config: Config
    # exact, since the order of an epoch draws only samples that have a pseudo-label
    batch_coupled: ClassVar[bool] = False
    epoch_hook: ClassVar[bool] = True
    pseudo_labels: Tensor
    nmi: Tensor

    def __init__(
        self, config: Config, make_backbone: MakeBackbone, horizon: Horizon, facts: DataFacts
    ):
        super().__init__(config, make_backbone, horizon, facts)
        n_samples = facts.n_samples
        assert n_samples is not None
        if config.n_clusters > n_samples:
            raise ValueError(
                f"deepcluster: n_clusters is {config.n_clusters}, more than the {n_samples} "
                f"images there are; set it to less, as to ten times the classes you expect"
            )
        backbone = make_backbone(config.drop_path)
        self.network = Network(backbone, nn.Linear(backbone.embed_dim, config.n_clusters))
        self.register_buffer("pseudo_labels", torch.full((n_samples,), UNLABELLED))
        self.register_buffer("nmi", torch.tensor(0.0))

    def before_epoch(self, epoch: int, seed: int, embed: EmbedAll) -> list[nn.Parameter]:
        """Clusters the features of all images on rank 0, and gives all ranks the result.

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
            "accuracy": accuracy,  # with the pseudo-labels as classes
            "nmi": self.nmi.clone(),  # 0 in the first epoch
        }

    @torch.no_grad()
    def cluster(
        self, features: Float[Tensor, "n D"], random: np.random.Generator
    ) -> Int[Tensor, " n"]:
        """Returns the cluster of every row, by k-means of whitened features."""
        whitened_nP = whiten(features, self.config.pca_dim, self.pseudo_labels.device)
        steps = self.config.kmeans_iterations
        return kmeans(whitened_nP, self.config.n_clusters, random, steps).labels

    @torch.no_grad()
    def reset_head(self, random: np.random.Generator) -> list[nn.Parameter]:
        """Draws the linear classifier anew, and returns its parameters."""
        head = self.network.head
        assert isinstance(head, nn.Linear)
        drawn_KD = random.standard_normal(tuple(head.weight.shape), dtype=np.float32)
        head.weight.copy_(torch.from_numpy(drawn_KD) * HEAD_STD)
        head.bias.zero_()
        return list(head.parameters())

    @property
    def groups(self) -> Int[Tensor, " N"]:
        return self.pseudo_labels

    @property
    def epoch_length(self) -> float:
        return self.config.reassign

    @property
    def chance_loss(self) -> float:
        """ln K: every cluster is equally likely, as just after the head was drawn anew."""
        return log(self.config.n_clusters)

    @property
    def encoder(self) -> Backbone:
        return self.network.backbone


def agreement(before: Int[Tensor, " N"], now: Int[Tensor, " N"]) -> float:
    """Returns the normalised mutual information of two groupings, over the samples in both.

    It is 0 if no sample is in both. As in the paper's figure 2b, but I(A; B) is divided by the
    arithmetic mean of the two entropies (scikit-learn's default), not by their geometric mean.
    """
    both = ((before != UNLABELLED) & (now != UNLABELLED)).cpu()
    if not both.any():
        return 0.0
    a, b = before.cpu()[both].numpy(), now.cpu()[both].numpy()
    return float(normalized_mutual_info_score(a, b))
