"""The linear probe for large data: minibatch AdamW, all learning rates and features in one pass.

Each pair of a learning rate and a choice of features (columns of one table) has its own linear
classifier. All are trained on the same batches and share no parameters, so the sweep needs one pass
over the rows. The one with the lowest cross-entropy on held-out train rows is selected and trained
again on all train rows. The penalty is the l2 term of the loss, not decoupled decay, so the optimum
is that of logistic regression with C = 1 / (l2 * N).

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
    """The settings of the probe that its result depends on.

    Attributes:
        epochs: passes over the train rows.
        min_steps: least number of steps; small data are passed over more than `epochs` times.
        batch_size: rows of a batch.
        lrs: peak learning rates of AdamW to choose from, each above 0.
        l2: strength of the penalty l2 / 2 * |W|^2, 0 or more.
        held_out: share of the train rows held out to select the learning rate, in (0, 1).
        seed: seed of the held-out part and of the order of the rows.
    """

    epochs: int = 30
    min_steps: int = 1000
    batch_size: int = 1024
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    l2: float = 1e-4
    held_out: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier of raw (not standardised) features.

    Attributes:
        weight: weight for standardised features, float32 [K, D].
        bias: bias of each class, float32 [K].
        mean: mean of each train column, float32 [D].
        std: standard deviation of each train column, float32 [D].
        choice: key of the features among the choices.
        columns: position of these features in a table.
        lr: selected learning rate.
        held_out_loss: cross-entropy on the held-out rows, in nats, that it was selected by.
    """

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    mean: Float[Tensor, " D"]
    std: Float[Tensor, " D"]
    choice: str
    columns: slice
    lr: float
    held_out_loss: float

    def logits(self, features: Float[Tensor, "B E"]) -> Float[Tensor, "B K"]:
        """Returns the logits of rows of a whole table, of which `columns` are used."""
        return (features[:, self.columns] - self.mean) / self.std @ self.weight.T + self.bias


@dataclass(frozen=True)
class _Rows:
    """The train rows of a table, standardised batch by batch, without a copy of the table.

    Attributes:
        features: all rows of the table, float32 [N, E].
        labels: classes of all rows, int64 [N].
        index: numbers of the rows to train on, int64.
        mean: mean of each column over the rows of `index`, float32 [E].
        std: standard deviation of each column over the rows of `index`, float32 [E].
        device: torch device of the batches.
    """

    features: Array
    labels: Array
    index: Array
    mean: Tensor
    std: Tensor
    device: str

    def take(self, index: Array) -> tuple[Tensor, Tensor]:
        """Returns any rows of the table, standardised [B, E], and their labels [B]."""
        x = torch.from_numpy(self.features[index]).to(self.device)
        return (x - self.mean) / self.std, torch.from_numpy(self.labels[index]).to(self.device)


def _rows(features: Array, labels: Array, index: Array, device: str) -> _Rows:
    mean, std = _moments(features, index)
    return _Rows(features, labels, index, mean.to(device), std.to(device), device)


def _moments(features: Array, index: Array) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation per column in float32; 1 for a constant column."""
    # chunk by chunk, to avoid a float64 copy of all features
    chunks = [index[start : start + 65536] for start in range(0, len(index), 65536)]
    mean = sum(features[chunk].sum(axis=0, dtype=np.float64) for chunk in chunks) / len(index)
    square = sum(((features[chunk] - mean) ** 2).sum(axis=0) for chunk in chunks)
    std = np.sqrt(square / len(index))
    std[std < 1e-12] = 1.0
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def _cross_entropy(
    weight_RKD: Tensor, bias_RK: Tensor, features_BD: Tensor, labels_B: Tensor
) -> Float[Tensor, " R"]:
    """Returns the mean cross-entropy of each classifier on the same rows, in nats."""
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
    """Trains the sweep and returns its best linear classifier.

    A pure function of its arguments on one machine. Memory beyond the table: one batch, and 16
    bytes for each weight of all classifiers, K times D times R for each choice.

    Args:
        features: table of train rows, float32 [N, E].
        labels: classes, int64 [N].
        config: settings of the sweep; `Probe()` if None.
        device: torch device of the training.
        choices: columns of the table that a classifier is given, for each name.

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
    # by cross-entropy: on separable data accuracy ties, also at rates too low to converge
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
    """Returns the mean cross-entropy [R] on the held-out rows, for each choice."""
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
    """Trains by AdamW from zero weights (the problem is convex) with a cosine schedule.

    Returns:
        weights [R, K, D] and biases [R, K] for each choice.
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
            # the sum over classifiers leaves their gradients independent
            (loss_R.sum() + config.l2 / 2 * weight_RKD.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        name: (torch.stack(weights[name]).detach(), torch.stack(biases[name]).detach())
        for name in choices
    }


def probe_predict(head: LinearHead, features: Float32[Array, "M E"]) -> Int64[Array, " M"]:
    """Predicts the class of each row of a table that has the columns of the training table."""
    predicted = [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(features), 8192):
        part = torch.from_numpy(features[start : start + 8192])
        predicted.append(head.logits(part).argmax(1).numpy())
    return np.concatenate(predicted)
