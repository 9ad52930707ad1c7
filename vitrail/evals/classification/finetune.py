"""Fine-tuning: the whole encoder and a linear head are trained on labels, all of them or few.

Settings of He et al. 2022 (MAE, arXiv:2111.06377, table 9): AdamW, cosine schedule, layer-wise
decay of the learning rate (Bao et al. 2022, BEiT, and timm's `param_groups_layer_decay`), label
smoothing, timm's mixup and CutMix. Departures: no RandAugment and no random erasing; one process.

Shape legend: B images · C channels · S pixels a side · D features · K classes · L layers.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from vitrail.backbones.contract import Backbone
from vitrail.backbones.create import create_backbone
from vitrail.data.contract import Batch, Metric, Source, number_of
from vitrail.data.loading.loader import Loader
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.subset import Subset
from vitrail.data.views.plan import RandomResizedCrop, ViewPlan
from vitrail.encoder import Encoder
from vitrail.evals.classification.classifier import Classifier, layer_groups
from vitrail.evals.classification.few_labels import (
    SUBSET_SEEDS,
    draw_share,
    few_labels,
    mean_and_std,
)
from vitrail.evals.classification.knn import check_labels
from vitrail.evals.classification.mixing import mixed
from vitrail.evals.classification.scores import score
from vitrail.evals.contract import Context
from vitrail.evals.features import Embed, collect
from vitrail.nn.schedules import cosine


@dataclass(frozen=True)
class Finetune:
    """Settings of fine-tuning; the defaults are MAE's published values for ViT-B, batch of 256.

    Attributes:
        epochs: passes over the labelled images, 0 or more.
        min_steps: least number of steps; small data are passed over more than `epochs` times.
        batch_size: images of a batch, even; reduced where there are fewer images.
        lr: peak learning rate of AdamW for the head and the final norm.
        warmup: share of the steps with a linear warm-up, in [0, 1).
        weight_decay: decoupled weight decay of matrices, 0 or more; biases and norms have none.
        decay_positions: give positions and the class token weight decay too, which MAE's code does
            not.
        layer_decay: factor of the learning rate from a layer to the one below it, in (0, 1].
        label_smoothing: share of the target spread over all classes, in [0, 1).
        mixup: alpha of mixup, 0 for none; mixup or CutMix is drawn for each batch.
        cutmix: alpha of CutMix, 0 for none.
        drop_path: highest stochastic depth rate, of the last layer, in [0, 1).
        crop: range of the share of an image's area that a random crop covers, in (0, 1].
        flip: probability of a horizontal flip.
    """

    epochs: float = 100.0
    min_steps: int = 500
    batch_size: int = 256
    lr: float = 5e-4
    warmup: float = 0.05
    weight_decay: float = 0.05
    decay_positions: bool = False
    layer_decay: float = 0.65
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    drop_path: float = 0.1
    crop: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.batch_size < 2 or self.batch_size % 2:
            raise ValueError(
                f"finetune: batch_size is {self.batch_size}; it must be even (images are mixed in "
                "pairs) and at least 2"
            )
        for name in ("epochs", "lr", "weight_decay", "mixup", "cutmix", "min_steps"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"finetune: {name} is {value}; it must be 0 or more")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"finetune: layer_decay is {self.layer_decay}; it must be above 0 and at most 1"
            )
        for name in ("warmup", "label_smoothing", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"finetune: {name} is {getattr(self, name)}; it must be in [0, 1)")


def finetune(
    encoder: Encoder,
    train: Source,
    config: Finetune,
    *,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 0,
    quarantine: Quarantine | None = None,
) -> Classifier:
    """Trains a classifier from the encoder's weights; the encoder itself is not changed.

    A pure function of its arguments on a CPU. On CUDA with autocast to bfloat16.

    Args:
        encoder: source of the initial weights and of the preprocessing.
        train: labelled images.
        config: settings of the training.
        seed: seed of the head, the order, the crops and the mixing.
        device: torch device of the training.
        workers: processes that decode images; 0 decodes in this one.
        quarantine: record of unreadable images, with its limit; a new one in memory if None.

    Raises:
        ValueError: no images, an image without a label, a single class, a number of channels other
            than the encoder's, or a loss that is no longer finite.
    """
    network = _network(encoder, train, config, seed).to(device).train()
    groups = layer_groups(network, config.layer_decay, config.weight_decay, config.decay_positions)
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    batch_size = min(config.batch_size, 2 * (len(train) // 2))
    loader = Loader(
        train,
        _views(encoder, config),
        batch_size=batch_size,
        seed=seed,
        device=device,
        workers=workers,
        quarantine=quarantine or Quarantine(None, len(train)),
    )
    steps = max(config.min_steps, round(config.epochs * len(train) / batch_size))
    loss = torch.zeros(())
    for step, (batch,) in enumerate(loader.steps(0, steps)):
        images, target = _mixed(batch, network.head.out_features, seed, step, config)
        lr = cosine(step, steps, config.lr, 0.0, round(config.warmup * steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            logits_BK = network(images, batch.draws)
        loss = F.cross_entropy(logits_BK.float(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if not torch.isfinite(loss):
        raise ValueError(f"fine-tuning diverged: its loss is {loss.item()}; lower lr={config.lr}")
    return network


def _network(encoder: Encoder, train: Source, config: Finetune, seed: int) -> Classifier:
    """Returns a copy of the encoder with a new head. Raises ValueError for unfit labels."""
    labels = labels_of(train)
    check_labels(labels, "train")
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"all {len(labels)} train samples are of class {int(labels[0])}: "
            "fine-tuning needs at least two classes"
        )
    return Classifier(_copy(encoder, config.drop_path), int(labels.max()) + 1, seed)


def _mixed(
    batch: Batch, n_classes: int, seed: int, step: int, config: Finetune
) -> tuple[Float[Tensor, "B C S S"], Float[Tensor, "B K"]]:
    """Returns the images of a batch and their targets, mixed as the config says."""
    return mixed(
        batch.views[0],
        batch.label,
        n_classes,
        seed,
        step,
        mixup=config.mixup,
        cutmix=config.cutmix,
        label_smoothing=config.label_smoothing,
    )


def _copy(encoder: Encoder, drop_path: float) -> Backbone:
    """Returns a copy of the encoder's backbone with a rate of stochastic depth."""
    info = encoder.description()
    backbone = create_backbone(
        info["backbone"], **info["kwargs"], drop_path=drop_path, seed=info["seed"]
    )
    backbone.load_state_dict(encoder.backbone.state_dict())
    return backbone


def _views(encoder: Encoder, config: Finetune) -> ViewPlan:
    """Returns a plan of one random crop per image, of the encoder's size and normalisation."""
    preprocess = encoder.preprocess
    crop = RandomResizedCrop(
        size=preprocess.size,
        scale=config.crop,
        flip=config.flip,
        mean=preprocess.mean,
        std=preprocess.std,
    )
    return crop.plan()


def labels_of(source: Source) -> Int64[np.ndarray, " N"]:
    """Returns the labels of all samples, readable or not; -1 for none."""
    labels = (source.label(i) for i in range(len(source)))
    return np.array([number_of(label) for label in labels], dtype=np.int64)


def finetune_accuracy(
    encoder: Encoder,
    train: Source,
    test: Source,
    config: Finetune | None = None,
    *,
    share: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 0,
    metric: Metric = "accuracy",
    quarantines: tuple[Quarantine | None, Quarantine | None] = (None, None),
) -> float:
    """Returns the test accuracy, in [0, 1], after fine-tuning on a share of each class's labels.

    Args:
        encoder: source of the initial weights.
        train: labelled images to train on.
        test: labelled images to score.
        config: settings of the training; `Finetune()` if None.
        share: share of the train images of each class, in (0, 1]; below 1, the training uses only
            the subset that `draw_share` draws with this seed.
        seed: as in `finetune`.
        device: torch device of the training.
        workers: processes that decode images; 0 decodes in this one.
        metric: "accuracy" or "mean_per_class", as in `score`.
        quarantines: records of unreadable images of the train and of the test source.

    Raises:
        ValueError: as `finetune` and `draw_share`, and for an unlabelled or empty test source.
    """
    if share < 1:
        labels = labels_of(train)
        check_labels(labels, "train")
        train = Subset(train, draw_share(labels, share, seed).tolist())
    network = finetune(
        encoder,
        train,
        config or Finetune(),
        seed=seed,
        device=device,
        workers=workers,
        quarantine=quarantines[0],
    )
    predict: dict[str, Embed] = {"class": network.predict}
    table, labels, _ = collect(encoder.preprocess, predict, test, quarantines[1], workers=workers)
    check_labels(labels, "test")
    return score(table["class"], labels, metric)


def finetune_all(context: Context, config: Finetune) -> dict[str, float]:
    """Measures accuracies of the untrained and trained encoder, with all labels."""
    return {
        kind: _accuracy(context, encoder, config, 1.0, context.seed)
        for kind, encoder in _encoders(context).items()
    }


def finetune_1_percent(context: Context, config: Finetune) -> dict[str, dict[str, float]]:
    """Measures means and deviations over the subsets of 1 % of the labels."""
    return _of_share(context, config, 0.01)


def finetune_10_percent(context: Context, config: Finetune) -> dict[str, dict[str, float]]:
    """Measures the same with 10 %."""
    return _of_share(context, config, 0.1)


def _of_share(context: Context, config: Finetune, share: float) -> dict[str, dict[str, float]]:
    found = {}
    for kind, encoder in _encoders(context).items():
        accuracies = [_accuracy(context, encoder, config, share, seed) for seed in SUBSET_SEEDS]
        found[kind] = mean_and_std(few_labels(accuracies))
    return found


def _encoders(context: Context) -> dict[str, Encoder]:
    return {"untrained": context.encoder.untrained(), "trained": context.encoder}


def _accuracy(
    context: Context, encoder: Encoder, config: Finetune, share: float, seed: int
) -> float:
    return finetune_accuracy(
        encoder,
        context.train.source,
        context.test.source,
        config,
        share=share,
        seed=seed,
        device=context.device,
        workers=context.workers,
        metric=context.metric,
        quarantines=(context.train.quarantine, context.test.quarantine),
    )
