"""The linear probe for large data: minibatch AdamW, all learning rates and features in one pass.

Every learning rate and every choice of features (columns of one table) owns one linear classifier;
they see the same batches and share nothing, so the sweep costs one pass over the rows. The one
with the lowest cross-entropy on a held-out part of the train rows is chosen, and trained again on
all of them. The penalty is the l2 term of the loss, not decoupled decay, so that the optimum is
that of logistic regression with C = 1 / (l2 * N).

Shape legend: N train rows · M test rows · E columns · D columns of a choice · K classes ·
R learning rates · B batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from vitrail.evals.classification.knn import check_labels
from vitrail.nn.random import philox
from vitrail.nn.schedules import cosine

Array = np.ndarray
EVERYTHING = {"all": slice(None)}


@dataclass(frozen=True)
class Probe:
    """What changes the result. lrs: AdamW's, at their peak; l2: penalty l2 / 2 * |W|^2. min_steps:
    little data are gone over more than `epochs` times."""

    epochs: int = 30
    min_steps: int = 1000
    batch_size: int = 1024
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    l2: float = 1e-4
    held_out: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class LinearHead:
    """A classifier of raw (not standardised) features.

    choice: its key among the choices, and columns: where these are in a table.
    """

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    mean: Float[Tensor, " D"]
    std: Float[Tensor, " D"]
    choice: str
    columns: slice
    lr: float  # the chosen one
    held_out_loss: float  # the cross-entropy on the held-out rows that it was chosen for, in nats

    def logits(self, features: Float[Tensor, "B E"]) -> Float[Tensor, "B K"]:
        return (features[:, self.columns] - self.mean) / self.std @ self.weight.T + self.bias


@dataclass(frozen=True)
class _Rows:
    """Rows of a table, standardised as they are asked for: no copy of the table is made."""

    features: Array  # [N, E]
    labels: Array  # [N]
    index: Array  # of the rows that count
    mean: Tensor  # [E], over these rows
    std: Tensor
    device: str

    def take(self, index: Array) -> tuple[Tensor, Tensor]:
        """Rows of the table, whether they count or not: (standardised [B, E], labels [B])."""
        x = torch.from_numpy(self.features[index]).to(self.device)
        return (x - self.mean) / self.std, torch.from_numpy(self.labels[index]).to(self.device)


def _rows(features: Array, labels: Array, index: Array, device: str) -> _Rows:
    mean, std = _moments(features, index)
    return _Rows(features, labels, index, mean.to(device), std.to(device), device)


def _moments(features: Array, index: Array) -> tuple[Tensor, Tensor]:
    """Mean and deviation per column in float32; the deviation of a constant column is 1."""
    # Chunk by chunk, so that no float64 copy of all features is made.
    chunks = [index[start : start + 65536] for start in range(0, len(index), 65536)]
    mean = sum(features[chunk].sum(axis=0, dtype=np.float64) for chunk in chunks) / len(index)
    square = sum(((features[chunk] - mean) ** 2).sum(axis=0) for chunk in chunks)
    std = np.sqrt(square / len(index))
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
    features: Float32[Array, "N E"],
    labels: Int64[Array, " N"],
    config: Probe | None = None,
    device: str = "cpu",
    choices: Mapping[str, slice] = EVERYTHING,
) -> LinearHead:
    """The best linear classifier of the sweep; a pure function of its arguments on one machine.

    Beyond the table it holds a batch of it, and 16 bytes for each weight of all classifiers, K
    times D times R for each choice.

    Args:
        choices: by name, the columns that a classifier may look at.

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
    held, rows = order[:n_held], _rows(features, labels, order[n_held:], device)
    found = _train(rows, choices, config.lrs, config)
    losses = _held_out_losses(rows, held, choices, found, len(config.lrs))
    # Cross-entropy, not accuracy: on separable data the latter ties, at rates that hardly moved.
    name, at = min(
        ((name, at) for name in choices for at in range(len(config.lrs))),
        key=lambda one: losses[one[0]][one[1]].item(),
    )
    everything = _rows(features, labels, np.sort(order), device)
    columns, lr = choices[name], config.lrs[at]
    weight_1KD, bias_1K = _train(everything, {name: columns}, (lr,), config)[name]
    return LinearHead(
        weight_1KD[0].cpu(),
        bias_1K[0].cpu(),
        everything.mean[columns].cpu(),
        everything.std[columns].cpu(),
        name,
        columns,
        lr,
        float(losses[name][at]),
    )


def _held_out_losses(
    rows: _Rows,
    held: Array,
    choices: Mapping[str, slice],
    found: dict[str, tuple[Tensor, Tensor]],
    n_rates: int,
) -> dict[str, Tensor]:
    losses = {name: torch.zeros(n_rates) for name in choices}
    for start in range(0, len(held), 8192):
        part = held[start : start + 8192]
        x_BE, labels_B = rows.take(part)
        for name, columns in choices.items():
            mean_R = _cross_entropy(*found[name], x_BE[:, columns], labels_B).cpu()
            losses[name] += mean_R * len(part) / len(held)
    return losses


def _train(
    rows: _Rows, choices: Mapping[str, slice], lrs: tuple[float, ...], config: Probe
) -> dict[str, tuple[Tensor, Tensor]]:
    """AdamW from zero weights (the problem is convex) under a cosine schedule.

    Returns:
        for each choice weights [R, K, D] and biases [R, K].
    """
    n_classes, device = int(rows.labels.max()) + 1, rows.device
    weights, biases, groups = {}, {}, []
    for name, columns in choices.items():
        shape = n_classes, len(range(rows.features.shape[1])[columns])
        weights[name] = [torch.zeros(shape, device=device, requires_grad=True) for _ in lrs]
        biases[name] = [torch.zeros(n_classes, device=device, requires_grad=True) for _ in lrs]
        groups += [
            {"params": [w, b], "peak": lr}
            for w, b, lr in zip(weights[name], biases[name], lrs, strict=True)
        ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    batches = -(-len(rows.index) // config.batch_size)
    steps = max(config.epochs * batches, config.min_steps)
    for step in range(steps):
        epoch, position = divmod(step, batches)
        if position == 0:
            order = philox(config.seed, "probe_order", epoch).permutation(rows.index)
        batch = order[position * config.batch_size : (position + 1) * config.batch_size]
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, group["peak"], 0.0)
        x_BE, labels_B = rows.take(batch)
        for name, columns in choices.items():
            weight_RKD, bias_RK = torch.stack(weights[name]), torch.stack(biases[name])
            loss_R = _cross_entropy(weight_RKD, bias_RK, x_BE[:, columns], labels_B)
            # Summed over classifiers: none sees another's gradient.
            (loss_R.sum() + config.l2 / 2 * weight_RKD.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        name: (torch.stack(weights[name]).detach(), torch.stack(biases[name]).detach())
        for name in choices
    }


def probe_predict(head: LinearHead, features: Float32[Array, "M E"]) -> Int64[Array, " M"]:
    """The class of every row of a table with the columns that the head was trained on."""
    predicted = [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(features), 8192):
        part = torch.from_numpy(features[start : start + 8192])
        predicted.append(head.logits(part).argmax(1).numpy())
    return np.concatenate(predicted)
