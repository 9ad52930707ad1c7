"""The linear probe for large data: minibatch AdamW, all learning rates in one pass.

Every learning rate of the sweep owns one linear classifier; they see the same batches and share
nothing, so the sweep costs one pass over the features. The best on a held-out part of the train
rows is kept. The penalty is the l2 term of the loss, not decoupled decay, so that the optimum is
that of logistic regression with C = 1 / (l2 * N).

Shape legend: N train rows · M test rows · D features · K classes · R learning rates · B batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from vitrail.evals.knn import check_labels
from vitrail.nn.random import philox
from vitrail.schedules import cosine

Array = np.ndarray


@dataclass(frozen=True)
class Probe:
    """What changes the result. lrs: AdamW's, at their peak; l2: penalty l2 / 2 * |W|^2."""

    epochs: int = 30
    batch_size: int = 1024
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    l2: float = 1e-4
    held_out: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class LinearHead:
    """A classifier of raw (not standardised) features."""

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    mean: Float[Tensor, " D"]
    std: Float[Tensor, " D"]
    lr: float  # the chosen one
    held_out_loss: float  # its cross-entropy on the held-out rows, in nats

    def logits(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        return (features - self.mean) / self.std @ self.weight.T + self.bias


def _moments(features: Array) -> tuple[Tensor, Tensor]:
    """Mean and deviation per column in float32; the deviation of a constant column is 1."""
    mean = features.mean(axis=0, dtype=np.float64)
    # Column by column of a chunk, so that no float64 copy of all features is made.
    square = np.zeros_like(mean)
    for start in range(0, len(features), 65536):
        square += ((features[start : start + 65536] - mean) ** 2).sum(axis=0)
    std = np.sqrt(square / len(features))
    std[std < 1e-12] = 1.0
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def _cross_entropy(
    weight_RKD: Tensor, bias_RK: Tensor, features_BD: Tensor, labels_B: Tensor
) -> Float[Tensor, " R"]:
    """The mean cross-entropy of every classifier on the same rows."""
    logits_RBK = torch.einsum("bd,rkd->rbk", features_BD, weight_RKD) + bias_RK[:, None]
    labels_RB = labels_B.expand(len(weight_RKD), -1)
    return F.cross_entropy(logits_RBK.transpose(1, 2), labels_RB, reduction="none").mean(1)


def fit_probe(
    features: Float32[Array, "N D"],
    labels: Int64[Array, " N"],
    config: Probe | None = None,
    device: str = "cpu",
) -> LinearHead:
    """The best linear classifier of the sweep; a pure function of its arguments on one machine.

    Raises:
        ValueError: unlabelled rows, a single class, or too few rows to hold any out.
    """
    config = config or Probe()
    check_labels(labels, "train")
    n_held = round(config.held_out * len(labels))
    if len(np.unique(labels)) < 2 or n_held < 1 or n_held >= len(labels):
        raise ValueError(
            f"{len(labels)} rows of {len(np.unique(labels))} classes: the probe needs two classes "
            f"and at least one row held out of the share {config.held_out}"
        )
    order = philox(config.seed, "probe_held_out", 0).permutation(len(labels))
    held, fit = torch.from_numpy(order[:n_held]), torch.from_numpy(order[n_held:])
    mean, std = _moments(features[fit.numpy()])
    features_ND = ((torch.from_numpy(features) - mean) / std).to(device)
    labels_N = torch.from_numpy(labels).to(device)
    weight_RKD, bias_RK = _train(features_ND, labels_N, fit, config)
    held_R = torch.zeros(len(config.lrs), device=device)
    for rows in held.split(8192):
        part_R = _cross_entropy(weight_RKD, bias_RK, features_ND[rows], labels_N[rows])
        held_R += part_R * len(rows) / len(held)
    # Cross-entropy, not accuracy: on separable data the latter ties, at rates that hardly moved.
    best = int(np.argmin(held_R.tolist()))
    return LinearHead(
        weight_RKD[best].cpu(),
        bias_RK[best].cpu(),
        mean,
        std,
        config.lrs[best],
        float(held_R[best]),
    )


def _train(
    features_ND: Tensor, labels_N: Tensor, fit: Tensor, config: Probe
) -> tuple[Tensor, Tensor]:
    """AdamW from zero weights (the problem is convex) under a cosine schedule."""
    n_classes, width = int(labels_N.max()) + 1, features_ND.shape[1]
    device = features_ND.device
    weights = [torch.zeros(n_classes, width, device=device, requires_grad=True) for _ in config.lrs]
    biases = [torch.zeros(n_classes, device=device, requires_grad=True) for _ in config.lrs]
    groups = [{"params": pair} for pair in zip(weights, biases, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    batches = -(-len(fit) // config.batch_size)
    for step in range(config.epochs * batches):
        epoch, position = divmod(step, batches)
        if position == 0:
            order = philox(config.seed, "probe_order", epoch).permutation(len(fit))
        rows = fit[order[position * config.batch_size : (position + 1) * config.batch_size]]
        for group, lr in zip(optimizer.param_groups, config.lrs, strict=True):
            group["lr"] = cosine(step, config.epochs * batches, lr, 0.0)
        weight_RKD, bias_RK = torch.stack(weights), torch.stack(biases)
        rows = rows.to(device)
        loss_R = _cross_entropy(weight_RKD, bias_RK, features_ND[rows], labels_N[rows])
        # Summed over classifiers: none sees another's gradient.
        (loss_R.sum() + config.l2 / 2 * weight_RKD.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(weights).detach(), torch.stack(biases).detach()


def probe_accuracy(
    train: Float32[Array, "N D"],
    labels: Int64[Array, " N"],
    test: Float32[Array, "M D"],
    test_labels: Int64[Array, " M"],
    config: Probe | None = None,
    device: str = "cpu",
) -> float:
    """Test accuracy, in [0, 1], of the classifier that `fit_probe` chooses."""
    check_labels(test_labels, "test")
    head = fit_probe(train, labels, config, device)
    right = 0
    for start in range(0, len(test), 8192):
        rows = slice(start, start + 8192)
        predicted = head.logits(torch.from_numpy(test[rows])).argmax(1).numpy()
        right += int((predicted == test_labels[rows]).sum())
    return right / len(test)
