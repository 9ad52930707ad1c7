"""The setting shared by both sides of `benchmarks.step`: sizes, optimizer settings and crops."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.data.contract import Batch
from vitrail.nn.random import Draws

LR, WEIGHT_DECAY, CLIP, MOMENTUM = 5e-4, 0.04, 3.0, 0.996


@dataclass(frozen=True)
class Setting:
    """The sizes of a step.

    Attributes:
        device: torch device.
        precision: "fp32", or "bf16" (autocast).
        backbone: name of a ViT; its positions are learned at global_size.
        batch: samples of a batch.
        global_size: side of the 2 global views in pixels.
        local_size: side of the local views in pixels.
        n_local: local views of a sample.
        prototypes: outputs of DINO's head.
        drop_path: stochastic depth rate of the last layer.
    """

    device: str
    precision: str
    backbone: str
    batch: int
    global_size: int
    local_size: int
    n_local: int
    prototypes: int
    drop_path: float = 0.1


# ViT-Ti with 64 and 16 patches per view; DINO's ViT-S/16 on one GPU
CPU = Setting("cpu", "fp32", "vit_tiny_patch8_224", 8, 64, 32, 8, 4096)
CUDA = Setting("cuda", "bf16", "vit_small_patch16_224", 64, 224, 96, 8, 65536)


def make_batch(setting: Setting) -> Batch:
    """Returns crops of noise, packed by resolution."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(setting.global_size, 2), (setting.local_size, setting.n_local)]
    crops = [torch.randn(n * setting.batch, 3, s, s, generator=generator) for s, n in sizes if n]
    index = torch.arange(setting.batch, device=setting.device)
    return Batch(
        views=[crop.to(setting.device) for crop in crops],
        index=index,
        label=torch.full_like(index, -1),
        draws=Draws(seed=0, step=0, batch_size=setting.batch, start=0, count=setting.batch),
    )


def view_list(batch: Batch) -> list[Tensor]:
    """Returns the same crops in the form of lightly's loader: [B, C, S, S] for each view."""
    return [view for views in batch.views for view in views.split(batch.size)]
