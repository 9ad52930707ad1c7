"""Fine-tuning: the whole encoder and a linear head trained on labels, all of them or few.

Settings of He et al. 2022 (MAE, arXiv:2111.06377, table 9): AdamW, cosine schedule, layer-wise
decay of the learning rate (Bao et al. 2022, BEiT, and timm's `param_groups_layer_decay`), label
smoothing, timm's mixup and CutMix. Departures: no RandAugment and no random erasing; one process.

Shape legend: B images · C channels · S pixels a side · D features · K classes · L layers.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.backbones.contract import Backbone
from vitrail.backbones.create import create_backbone
from vitrail.data.contract import Metric, Source, number_of
from vitrail.data.loading.loader import Loader
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.subset import Subset
from vitrail.data.views.plan import RandomResizedCrop, ViewPlan
from vitrail.encoder import Encoder
from vitrail.evals.classification.few_labels import draw_share
from vitrail.evals.classification.knn import check_labels
from vitrail.evals.classification.scores import score
from vitrail.evals.features import Embed, collect
from vitrail.nn.random import Draws, philox
from vitrail.nn.schedules import cosine

Array = np.ndarray


@dataclass(frozen=True)
class Finetune:
    """MAE's published values for ViT-B, for a batch of 256.

    epochs: over the labelled images, and min_steps: little data are gone over more often.
    batch_size: even; less where there are fewer images. lr: AdamW's at its peak, of the head and
    the final norm; a layer that is d below them gets layer_decay^d of it. warmup: share of the
    steps. mixup, cutmix: the alphas, 0 for none; one of the two is drawn for each batch. crop:
    share of an image's area that is seen. flip, drop_path: rates.
    """

    epochs: float = 100.0
    min_steps: int = 500
    batch_size: int = 256
    lr: float = 5e-4
    warmup: float = 0.05
    weight_decay: float = 0.05
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


class Classifier(nn.Module):
    """A backbone and a linear head on its pooled features; equal arguments give equal weights."""

    def __init__(self, backbone: Backbone, n_classes: int, seed: int):
        super().__init__()
        self.backbone = backbone
        self.head = nn.utils.skip_init(nn.Linear, backbone.embed_dim, n_classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, images: Float[Tensor, "B C S S"], draws: Draws | None = None
    ) -> Float[Tensor, "B K"]:
        return self.head(self.backbone(images, draws).pooled)

    def predict(self, images: Float[Tensor, "B C S S"]) -> Int64[Array, " B"]:
        with torch.inference_mode():
            logits_BK = self.eval()(images.to(self.head.weight.device))
        return logits_BK.argmax(1).cpu().numpy()


def layer_of(backbone: Backbone) -> tuple[dict[str, int], int]:
    """The depth of every parameter: 0 for what comes before the layers, 1..L for those, and L + 1
    for what comes after; and L. Parameters between two layers (Swin's merging) are of the first.

    Runs the backbone once, on an empty image of its own size, to learn what its layers are.
    """
    like = next(backbone.parameters())
    side = backbone.img_size
    mode = backbone.training
    with torch.no_grad():
        states = backbone.eval().layer_states(like.new_zeros(1, backbone.in_chans, side, side))
    backbone.train(mode)
    names = [f"{state.name}." for state in states]
    depths, reached = {}, 0
    parameters = [name for name, _ in backbone.named_parameters()]
    inside = {p: i + 1 for p in parameters for i, layer in enumerate(names) if p.startswith(layer)}
    last = max((i for i, p in enumerate(parameters) if p in inside), default=-1)
    for position, name in enumerate(parameters):
        reached = inside.get(name, reached)
        depths[name] = reached if position <= last else len(names) + 1
    return depths, len(names)


def layer_groups(network: Classifier, config: Finetune) -> list[dict[str, Any]]:
    """Optimizer groups with `lr_scale`; biases, 1-D parameters and what the backbone names carry no
    weight decay."""
    depths, n_layers = layer_of(network.backbone)
    free = {f"backbone.{name}" for name in network.backbone.no_weight_decay()}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        depth = depths.get(name.removeprefix("backbone."), n_layers + 1)
        decays = parameter.ndim > 1 and not name.endswith("bias") and name not in free
        group = {
            "params": [],
            "lr_scale": config.layer_decay ** (n_layers + 1 - depth),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        groups.setdefault((depth, decays), group)["params"].append(parameter)
    return list(groups.values())


@contextmanager
def numpy_seeded(seed: int, step: int) -> Iterator[None]:
    """timm mixes with numpy's global generator: within, that is a function of (seed, step)."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(philox(seed, "finetune mix", step).integers(2**32)))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _mixed(
    config: Finetune,
    images: Tensor,
    labels: Int[Tensor, " B"],
    n_classes: int,
    seed: int,
    step: int,
) -> tuple[Float[Tensor, "B C S S"], Float[Tensor, "B K"]]:
    if config.mixup == config.cutmix == 0:
        return images, mixup_target(labels, n_classes, 1.0, config.label_smoothing)
    mix = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=n_classes,
    )
    with numpy_seeded(seed, step):
        return mix(images, labels)


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
    """A classifier that starts from the encoder's weights; the encoder itself is left as it is.

    A pure function of its arguments on a CPU. On CUDA with autocast to bfloat16.

    Raises:
        ValueError: no images, one without a label, a single class, other channels than the
            encoder's, or a loss that is no longer finite.
    """
    labels = labels_of(train)
    check_labels(labels, "train")
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"all {len(labels)} train samples are of class {int(labels[0])}: "
            "fine-tuning needs at least two classes"
        )
    network = Classifier(_copy(encoder, config.drop_path), int(labels.max()) + 1, seed)
    network = network.to(device).train()
    optimizer = torch.optim.AdamW(layer_groups(network, config), lr=0.0)
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
        n_classes = network.head.out_features
        images, target = _mixed(config, batch.views[0], batch.label, n_classes, seed, step)
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


def _copy(encoder: Encoder, drop_path: float) -> Backbone:
    info = encoder.description()
    backbone = create_backbone(
        info["backbone"], **info["kwargs"], drop_path=drop_path, seed=info["seed"]
    )
    backbone.load_state_dict(encoder.backbone.state_dict())
    return backbone


def _views(encoder: Encoder, config: Finetune) -> ViewPlan:
    preprocess = encoder.preprocess
    crop = RandomResizedCrop(
        size=preprocess.size,
        scale=config.crop,
        flip=config.flip,
        mean=preprocess.mean,
        std=preprocess.std,
    )
    return crop.plan()


def labels_of(source: Source) -> Int64[Array, " N"]:
    """Of every sample, readable or not; -1 where there is none."""
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
    """Test accuracy, in [0, 1], after fine-tuning on a share of the labels of every class.

    Args:
        share: below 1, the subset of `draw_share` with this seed; no other image is seen.
        quarantines: of the training and the test images.

    Raises ValueError as `finetune` and `draw_share`, and for an unlabelled or empty test source.
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
