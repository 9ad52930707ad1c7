"""Recipes on scikit-learn's handwritten digits: nothing to download, minutes on two cores."""

from vitrail.data.views import MultiCrop
from vitrail.objectives import simdino
from vitrail.optim import Config as Optim
from vitrail.recipes.recipe import Recipe


def simdino_digits() -> Recipe:
    """SimDINO, ViT of width 64, on 1297 digits scattered over 28x28 canvases: the demo."""
    views = MultiCrop(
        global_size=28,
        local_size=16,
        n_local=4,
        global_scale=(0.4, 1.0),
        local_scale=(0.15, 0.4),
        flip=0.0,
        jitter=0.0,
        saturation=0.0,
        hue=0.0,
        grey=0.0,
        blur=(0.0, 0.0, 0.0),
        solarize=0.0,
        mean=(0.1,),
        std=(0.25,),
    )
    return Recipe(
        name="simdino_digits",
        objective=simdino.Config(views=views, hidden_dim=256, bottleneck_dim=64, drop_path=0.0),
        backbone="vit_nano_patch4_32",
        data="digits:scattered",
        channels=1,
        batch_size=128,
        epochs=100,
        eval_crop=1.0,
        optim=Optim(lr=1e-3, lr_per_256=False, warmup_epochs=5, min_lr=1e-5),
    )
