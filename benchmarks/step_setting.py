"""What the two sides of `benchmarks.step` share: sizes, the optimizer's numbers, the crops."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.data.contract import Batch
from vitrail.nn.random import Draws

LR, WEIGHT_DECAY, CLIP, MOMENTUM = 5e-4, 0.04, 3.0, 0.996


@dataclass(frozen=True)
class Setting:
    """What is measured. Sizes in pixels; 2 global views and `n_local` local ones a sample."""

    device: str
    precision: str  # fp32 or bf16 (autocast)
    backbone: str  # a ViT of ours, whose positions are learned at global_size
    batch: int
    global_size: int
    local_size: int
    n_local: int
    prototypes: int
    drop_path: float = 0.1


# ViT-Ti on 64 and 16 patches a view; and DINO's ViT-S/16 on one GPU.
CPU = Setting("cpu", "fp32", "vit_tiny_patch8_224", 8, 64, 32, 8, 4096)
CUDA = Setting("cuda", "bf16", "vit_small_patch16_224", 64, 224, 96, 8, 65536)


def make_batch(setting: Setting) -> Batch:
    """Crops of noise, packed by resolution."""
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
    """The same crops as lightly's loader hands them out: one [B, C, S, S] a view."""
    return [view for views in batch.views for view in views.split(batch.size)]
