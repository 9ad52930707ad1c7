"""Recipes on Noto Color Emoji: 1,496 pictures of 64x64 with their Unicode names, 374 held out."""

from vitrail.data.views import RandomResizedCrop
from vitrail.objectives import clip
from vitrail.optim import Config as Optim
from vitrail.recipes.recipe import Recipe

MEAN, STD = (0.837, 0.789, 0.734), (0.284, 0.286, 0.350)  # of the training pictures


def clip_emoji() -> Recipe:
    """CLIP, ViT of width 64 with patches of 8, and a causal text transformer. Not yet run."""
    return Recipe(
        name="clip_emoji",
        objective=clip.Config(
            views=RandomResizedCrop(size=64, scale=(0.6, 1.0), flip=0.0, mean=MEAN, std=STD),
            embed_dim=64,
            text_width=64,
            text_depth=2,
            text_heads=4,
            vocabulary=1024,
            context=16,
        ),
        backbone="vit_nano_patch4_32",
        patch_size=8,
        data="emoji",
        batch_size=187,
        epochs=60,
        eval_crop=1.0,
        optim=Optim(
            lr=1e-3,
            lr_per_256=False,
            warmup_epochs=5,
            min_lr=1e-5,
            weight_decay=0.1,
            weight_decay_end=None,
        ),
    )
