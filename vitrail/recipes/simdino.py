"""Recipes of SimDINO: self-distillation with a coding rate instead of prototypes."""

from vitrail.data.views.plan import MultiCrop
from vitrail.objectives import simdino
from vitrail.optim import Config as Optim
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.settings import DIGITS_VIEWS, FASHION_VIEWS, IMAGENET

# Crops of the published ImageNet runs.
IMAGENET_VIEWS = MultiCrop(n_local=10, global_scale=(0.4, 1.0), local_scale=(0.05, 0.4))


def simdino_digits() -> Recipe:
    """SimDINO, ViT of width 64, on 1297 digits scattered over 16x16 canvases: the demo.

    The published recipe with what differs because everything is a thousand times smaller: no local
    views (a quarter of an 8x8 digit is no digit), no flips or colours (a mirrored 2 is no 2), a
    teacher that follows within ten steps, and eps^2 of 0.49, at which the rate saturates at half
    the weight of the similarity, as in the published runs.

    Measured (`make demo`, commit 6ff28f7, 2 cores of an AMD EPYC, 3 minutes): k-NN 79.0, linear
    with 10 labels per class 69.9 ± 1.7; untrained 27.2 and 14.0 ± 1.2, raw pixels 82.4 and
    31.4 ± 2.3.
    """
    return Recipe(
        objective=simdino.Config(
            views=DIGITS_VIEWS,
            hidden_dim=256,
            bottleneck_dim=64,
            eps=0.7,
            momentum_teacher=0.9,
            drop_path=0.0,
        ),
        backbone="vit_nano_patch4_32",
        data="digits:scattered",
        channels=1,
        batch_size=64,
        epochs=120,
        eval_crop=1.0,
        optim=Optim(
            lr=1e-3,
            lr_per_256=False,
            warmup_epochs=5,
            min_lr=1e-5,
            weight_decay_end=None,
        ),
    )


def simdino_vits_fashion() -> Recipe:
    """SimDINO, ViT-S with patches of 4, Fashion-MNIST, 50 epochs at batch 512. Not yet run."""
    return Recipe(
        objective=simdino.Config(views=FASHION_VIEWS),
        backbone="vit_small_patch4_28",
        data="fashion-mnist",
        channels=1,
        batch_size=512,
        epochs=50,
        eval_crop=1.0,
        optim=Optim(warmup_epochs=5),
        precision="bf16",
    )


def simdino_vitb16_in1k() -> Recipe:
    """SimDINO, ViT-B/16, 100 epochs at batch 512. Published: k-NN 74.9, linear 77.3. Not yet run.

    The README and the shipped log of SimDINO 8149fc4: rate 5e-4 at batch 256 (the book writes 2e-3
    at batch 1024, the same line), 10 warm-up epochs, second moments of 8 groups of 64 images (a
    group was a GPU), positions resampled without antialiasing.
    """
    return _in1k("vit_base_patch16_dino")


def simdino_vitl16_in1k() -> Recipe:
    """SimDINO, ViT-L/16, 100 epochs at batch 512. Published: k-NN 75.6, linear 77.4. Not yet run.

    The recipe of ViT-B/16: the official code has no setting of its own for a size.
    """
    return _in1k("vit_large_patch16_dino")


def _in1k(backbone: str) -> Recipe:
    return Recipe(
        objective=simdino.Config(views=IMAGENET_VIEWS, second_moment="local", groups=8),
        backbone=backbone,
        data=IMAGENET,
        batch_size=512,
        epochs=100,
        optim=Optim(warmup_peak="last"),
        precision="bf16",
    )
