"""Recipes of DINO: self-distillation over prototypes."""

from vitrail.data.views.plan import MultiCrop
from vitrail.objectives import dino
from vitrail.optim import Config as Optim
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.settings import FASHION_VIEWS, IMAGENET


def dino_vits_fashion() -> Recipe:
    """DINO, ViT-S with patches of 4, Fashion-MNIST, 50 epochs at batch 512. Not yet run."""
    return Recipe(
        objective=dino.Config(views=FASHION_VIEWS, out_dim=4096),
        backbone="vit_small_patch4_28",
        data="fashion-mnist",
        channels=1,
        batch_size=512,
        epochs=50,
        eval_crop=1.0,
        optim=Optim(warmup_epochs=5),
        precision="bf16",
    )


def dino_vitb16_in1k() -> Recipe:
    """DINO, ViT-B/16, 400 epochs at batch 1024. Published: k-NN 76.1, linear 78.2. Not yet run.

    Caron et al. 2021, the ViT-B/16 run of its repository: crops (.25, 1) and (.05, .25), 10 local
    views, teacher temperature .04 -> .07 over 50 epochs, gradients clipped at .3 per tensor, the
    last layer frozen for 3 epochs, rate 7.5e-4 at batch 256 falling to 2e-6, positions resampled
    for local crops without antialiasing.
    """
    views = MultiCrop(n_local=10, global_scale=(0.25, 1.0), local_scale=(0.05, 0.25))
    return Recipe(
        objective=dino.Config(
            views=views,
            teacher_temp=0.07,
            warmup_teacher_temp=0.04,
            warmup_teacher_temp_epochs=50,
            freeze_last_layer_epochs=3,
        ),
        backbone="vit_base_patch16_dino",
        data=IMAGENET,
        batch_size=1024,
        epochs=400,
        optim=Optim(lr=7.5e-4, min_lr=2e-6, clip=0.3, warmup_peak="last"),
        precision="bf16",
    )
