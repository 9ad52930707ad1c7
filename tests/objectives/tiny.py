"""Tiny objectives and batches, the same in every process."""

from collections.abc import Callable
from dataclasses import replace

import torch

from vitrail.backbones.contract import Backbone
from vitrail.backbones.create import create_backbone
from vitrail.backbones.registry import BACKBONES
from vitrail.data.contract import Batch
from vitrail.data.views.plan import MultiCrop, RandomResizedCrop, ViewPlan
from vitrail.nn.random import Draws
from vitrail.nn.schedules import Horizon
from vitrail.objectives import (
    clip,
    cotraining,
    crate_mae,
    deepcluster,
    dino,
    mae,
    simdino,
    supervised,
    swav,
)
from vitrail.objectives.build import build_objective
from vitrail.objectives.contract import Objective

CROPS = MultiCrop(global_size=16, local_size=8, n_local=3)
HORIZON = Horizon(steps=40, steps_per_epoch=4)
N_CLASSES = 5
N_SAMPLES = 32
CAPTIONS = tuple(" ".join(["blue", "cat", "runs", "over", "there"][: 1 + i % 5]) for i in range(32))

CONFIGS = {
    "dino": dino.Config(views=CROPS, out_dim=64, hidden_dim=32, bottleneck_dim=16),
    "simdino": simdino.Config(views=CROPS, hidden_dim=32, bottleneck_dim=16),
    "swav": swav.Config(views=CROPS, n_prototypes=24, hidden_dim=32, feature_dim=16),
    "cotraining": cotraining.Config(views=MultiCrop(16, n_local=0), n_labels=24, beta=1.5),
    "supervised": supervised.Config(views=RandomResizedCrop(size=16)),
    "deepcluster": deepcluster.Config(views=RandomResizedCrop(size=16), n_clusters=6),
    "mae": mae.Config(
        views=RandomResizedCrop(size=16), decoder_width=16, decoder_depth=1, decoder_heads=2
    ),
    "crate_mae": crate_mae.Config(views=RandomResizedCrop(size=16)),
    "clip": clip.Config(
        views=RandomResizedCrop(size=16),
        embed_dim=16,
        text_width=16,
        text_depth=1,
        text_heads=2,
        vocabulary=300,
        context=12,
    ),
}


def make_backbone(
    name: str = "vit_nano_patch4_32", **overrides: int
) -> Callable[[float], Backbone]:
    known = BACKBONES[name].options().keys() | {"img_size", "in_chans"}
    sizes = {"img_size": 16, "width": 32, "depth": 2, "heads": 2, "patch_size": 4} | overrides
    sizes = {key: value for key, value in sizes.items() if key in known}
    return lambda drop_path: create_backbone(name, drop_path=drop_path, seed=1, **sizes)


def build(config: object, backbone: Callable[[float], Backbone] | None = None) -> Objective:
    torch.manual_seed(0)
    make = backbone or make_backbone()
    objective = build_objective(config, make, HORIZON, N_CLASSES, N_SAMPLES, CAPTIONS)
    objective.before_epoch(0, 0, lambda: torch.randn(N_SAMPLES, 32))  # most need none
    with torch.no_grad():
        for name, p in objective.named_parameters():
            if ".head.mlp." in name:
                # 0.02 is for 2048 inputs; with 32 it leaves outputs of length 1e-3, whose
                # normalisation multiplies gradients, and their rounding, by 1e3.
                p.mul_((2048 / 32) ** 0.5)
    return objective


def make_batch(plan: ViewPlan, count: int, step: int = 0) -> Batch:
    """A whole global batch of noise."""
    generator = torch.Generator().manual_seed(step)
    channels = len(plan.mean)
    return Batch(
        views=[
            torch.randn(n * count, channels, size, size, generator=generator)
            for size, n in plan.resolutions
        ],
        index=torch.arange(count),
        label=torch.randint(N_CLASSES, (count,), generator=generator),
        draws=Draws(seed=3, step=step, batch_size=count, start=0, count=count),
        text=CAPTIONS[:count],
    )


def in_float64(batch: Batch) -> Batch:
    """For an objective that is made `.double()`; with `rounding.float64_kept` it stays so."""
    return replace(batch, views=[v.double() for v in batch.views])


def narrow(batch: Batch, start: int, count: int) -> Batch:
    """Samples [start, start + count) of a batch."""
    rows = slice(start, start + count)
    return replace(
        batch,
        views=[v.unflatten(0, (-1, batch.size))[:, rows].flatten(0, 1) for v in batch.views],
        index=batch.index[rows],
        label=batch.label[rows],
        draws=batch.draws.narrow(start, count),
        text=None if batch.text is None else batch.text[rows],
    )
