"""Recipes on Fashion-MNIST: 28x28 grey pictures, hours on two cores and minutes on one GPU."""

from vitrail.data.views.plan import MultiCrop, RandomResizedCrop
from vitrail.objectives import dino, simdino, supervised
from vitrail.optim import Config as Optim
from vitrail.recipes.recipe import Recipe

MEAN, STD = (0.286,), (0.353,)  # of the 60,000 training pictures
VIEWS = MultiCrop(
    global_size=28,
    local_size=16,
    n_local=6,
    global_scale=(0.4, 1.0),
    local_scale=(0.1, 0.4),
    saturation=0.0,
    hue=0.0,
    grey=0.0,
    blur=(0.5, 0.1, 0.25),
    mean=MEAN,
    std=STD,
)


def simdino_vits_fashion() -> Recipe:
    """SimDINO, ViT-S with patches of 4, Fashion-MNIST, 50 epochs at batch 512. Not yet run."""
    return Recipe(
        name="simdino_vits_fashion",
        objective=simdino.Config(views=VIEWS),
        backbone="vit_small_patch4_28",
        data="fashion-mnist",
        channels=1,
        batch_size=512,
        epochs=50,
        eval_crop=1.0,
        optim=Optim(warmup_epochs=5),
        precision="bf16",
    )


def dino_vits_fashion() -> Recipe:
    """DINO, ViT-S with patches of 4, Fashion-MNIST, 50 epochs at batch 512. Not yet run."""
    return Recipe(
        name="dino_vits_fashion",
        objective=dino.Config(views=VIEWS, out_dim=4096),
        backbone="vit_small_patch4_28",
        data="fashion-mnist",
        channels=1,
        batch_size=512,
        epochs=50,
        eval_crop=1.0,
        optim=Optim(warmup_epochs=5),
        precision="bf16",
    )


def crate_fashion_supervised() -> Recipe:
    """CRATE-S with patches of 4, supervised, Fashion-MNIST, 50 epochs at batch 512. Not yet run."""
    views = RandomResizedCrop(size=28, scale=(0.5, 1.0), mean=MEAN, std=STD)
    return Recipe(
        name="crate_fashion_supervised",
        objective=supervised.Config(views=views),
        backbone="crate_small_patch4_28",
        data="fashion-mnist",
        channels=1,
        batch_size=512,
        epochs=50,
        eval_crop=1.0,
        optim=Optim(
            name="lion",
            lr=2.4e-4,
            lr_per_256=False,
            min_lr=0.0,
            warmup_epochs=2,
            weight_decay=0.5,
            weight_decay_end=None,
            betas=(0.9, 0.99),
            clip=0.0,
        ),
        precision="bf16",
    )
