"""Recipes of SwAV: codes of views predicted from other views."""

from vitrail.objectives import swav
from vitrail.optim import Config as Optim
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.settings import DIGITS_VIEWS


def swav_digits() -> Recipe:
    """SwAV, ViT of width 64, on the 1297 scattered digits of the demo.

    Six prototypes for each of ten classes, two samples of a batch for each prototype, so that no
    queue is needed: where a network moves this fast, features of eight steps ago would spoil the
    codes. AdamW instead of LARC; the demo's crops.

    Measured (commit 0ea6591, 2026-11-22, 2 cores of an AMD EPYC, 76 seconds): k-NN 38.2, linear
    53.2, with 10 labels per class 32.3 ± 2.2; untrained 27.2, 37.2 and 14.0 ± 1.2, raw pixels 82.4,
    49.4 and 31.4 ± 2.3.
    """
    return Recipe(
        objective=swav.Config(
            views=DIGITS_VIEWS,
            n_prototypes=60,
            hidden_dim=256,
            feature_dim=64,
        ),
        backbone="vit_nano_patch4_32",
        data="digits:scattered",
        channels=1,
        batch_size=128,
        epochs=60,
        eval_crop=1.0,
        optim=Optim(
            lr=2e-3,
            lr_per_256=False,
            warmup_epochs=5,
            min_lr=1e-5,
            weight_decay_end=None,
        ),
    )
