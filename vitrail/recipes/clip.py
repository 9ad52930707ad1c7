"""Recipes on images with captions: your own pairs, and Noto Color Emoji with their Unicode names.

Of the emoji, 64x64 pixels each, 1,496 are for training and 374 held out.
"""

from vitrail.data.views.plan import RandomResizedCrop
from vitrail.objectives import clip
from vitrail.optim import Config as Optim
from vitrail.recipes.recipe import Recipe

EMOJI_MEAN, EMOJI_STD = (0.837, 0.789, 0.734), (0.284, 0.286, 0.350)  # of the training pictures


def clip_emoji() -> Recipe:
    """CLIP, ViT of width 64 with patches of 8, and a causal text transformer.

    No flips: an arrow to the left is not one to the right. The held-out emoji are of other families
    than those trained on ("woman facepalming" is not held out where "person facepalming" is not).

    Measured (commit e658c0d, 2026-11-22, one thread of a shared AMD EPYC with 2 cores, 6 minutes),
    on the 374 held out: their group is told by its name alone for 23.8 % (chance 11.1, always the
    most frequent one 19.5), their own name is the nearest of 374 for 2.4 % (chance 0.3) and among
    the nearest ten for 11.8 % (2.7). k-NN 57.8, linear 55.6; untrained 48.4 and 50.3, raw pixels
    59.4 and 61.8. With crops from 0.3, drop path 0.1 and weight decay 0.2: 21.1 %, 2.4 %, 12.0 %.
    """
    return Recipe(
        objective=clip.Config(
            views=RandomResizedCrop(
                size=64, scale=(0.6, 1.0), flip=0.0, mean=EMOJI_MEAN, std=EMOJI_STD
            ),
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


def clip_vits16_pairs() -> Recipe:
    """CLIP, ViT-S/16 at 224 pixels, on a table of your own photographs. Not yet run.

    Optimizer, with its epsilon, and temperature are CLIP's (Radford et al. 2021, table 18), its
    schedule for a batch of 1,024 instead of 32,768.
    """
    return Recipe(
        objective=clip.Config(),
        backbone="vit_small_patch16_224",
        data="pairs:pairs.csv",
        batch_size=1024,
        epochs=32,
        optim=Optim(
            lr=5e-4,
            lr_per_256=False,
            warmup_epochs=1,
            min_lr=0.0,
            weight_decay=0.2,
            weight_decay_end=None,
            betas=(0.9, 0.98),
            eps=1e-6,
            clip=1.0,
        ),
        precision="bf16",
    )
