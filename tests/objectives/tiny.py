"""Tiny objectives and batches, the same in every process."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from vitrail.backbones.contract import Backbone
from vitrail.backbones.create import create_backbone
from vitrail.backbones.registry import BACKBONES
from vitrail.data.contract import Batch
from vitrail.data.views.plan import MultiCrop, ViewPlan
from vitrail.nn.random import Draws
from vitrail.nn.schedules import Horizon
from vitrail.objectives.build import build_objective
from vitrail.objectives.contract import Objective
from vitrail.objectives.registry import OBJECTIVES

CROPS = MultiCrop(global_size=16, local_size=8, n_local=3)
HORIZON = Horizon(steps=40, steps_per_epoch=4)
N_CLASSES = 5
N_SAMPLES = 32
CAPTIONS = tuple(" ".join(["blue", "cat", "runs", "over", "there"][: 1 + i % 5]) for i in range(32))


class _Configs(Mapping[str, Any]):
    """The tiny config of every objective, by name: `TINY` of its tests/objectives/test_NAME.py.

    `TINY` trains in a moment on images of 16 pixels. It is read when it is asked for, because the
    test files import this one.
    """

    def __getitem__(self, name: str) -> Any:
        return _test_file(name).TINY

    def __iter__(self) -> Iterator[str]:
        return iter(OBJECTIVES.own)

    def __len__(self) -> int:
        return len(OBJECTIVES.own)


CONFIGS = _Configs()


def variants() -> dict[str, Any]:
    """Every objective's tiny config, and the `VARIANTS` of its test file, if it has any.

    `VARIANTS` are configs that take other ways through the loss, by what sets them apart.
    """
    found = {}
    for name, tiny in CONFIGS.items():
        others = getattr(_test_file(name), "VARIANTS", {})
        found |= {name: tiny} | {f"{name}, {what}": config for what, config in others.items()}
    return found


def _test_file(name: str) -> ModuleType:
    return import_module(f"tests.objectives.test_{name}")


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
