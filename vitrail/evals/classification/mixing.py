"""Mixup and CutMix of timm, drawn by (seed, step).

Shape legend: B images · C channels · S pixels a side · K classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float, Int
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from vitrail.nn.random import philox


@contextmanager
def numpy_seeded(seed: int, step: int) -> Iterator[None]:
    """Seeds numpy's global generator, which timm's Mixup draws from, by (seed, step).

    The generator's previous state is restored at the end.
    """
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(philox(seed, "finetune mix", step).integers(2**32)))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def mixed(
    images: Tensor,
    labels: Int[Tensor, " B"],
    n_classes: int,
    seed: int,
    step: int,
    *,
    mixup: float,
    cutmix: float,
    label_smoothing: float,
) -> tuple[Float[Tensor, "B C S S"], Float[Tensor, "B K"]]:
    """Returns mixed images and soft targets of a batch; a function of (seed, step).

    Args:
        images: of the batch, of an even number.
        labels: their classes.
        n_classes: K.
        seed: of the draw.
        step: of the training.
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of CutMix, 0 for none; with both, one of the two is drawn for each batch.
        label_smoothing: in [0, 1).
    """
    if mixup == cutmix == 0:
        return images, mixup_target(labels, n_classes, 1.0, label_smoothing)
    mix = Mixup(
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        label_smoothing=label_smoothing,
        num_classes=n_classes,
    )
    with numpy_seeded(seed, step):
        return mix(images, labels)
