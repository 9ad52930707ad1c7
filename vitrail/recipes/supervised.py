"""Recipes of supervised classification: the white-box transformers of the book."""

from dataclasses import replace

from vitrail.data.views.plan import RandomResizedCrop
from vitrail.objectives import supervised
from vitrail.optim import Config as Optim
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.settings import DIGITS_CROP, FASHION_MEAN, FASHION_STD, IMAGENET

# torchvision's filter by default, at training and at evaluation
CRATE_VIEWS = RandomResizedCrop(size=224, interpolation="bilinear")


def crate_digits_supervised() -> Recipe:
    """CRATE of width 64, supervised with LION, on the 1297 scattered digits of the demo.

    The book's section 7.3.5 with what differs because everything is a thousand times smaller: batch
    64, crops of at least half the picture, no flips (a mirrored 2 is no 2) and no colours, blurs as
    rare as in DINO's second view (one of 2 pixels leaves little of a digit of 12).

    Measured (`vitrail pretrain crate_digits_supervised`, one thread of a shared AMD EPYC, 2 cores,
    2026-11-22, 1 min 10 s of its time): k-NN 86.0, linear 84.4, with 10 labels per class
    82.0 ± 0.8; untrained 31.0, 33.6 and 15.5 ± 1.9, raw pixels 82.4, 49.4 and 31.4 ± 2.3. With
    AdamW at the same rate and decay (`--optim.name adamw`): k-NN 66.8, linear 64.6.
    """
    views = replace(DIGITS_CROP, jitter=0.8, saturation=0.0, hue=0.0, blur=0.1, solarize=0.1)
    return Recipe(
        objective=supervised.Config(views=views),
        backbone="crate_nano_patch4_32",
        data="digits:scattered",
        channels=1,
        batch_size=64,
        epochs=120,
        eval_crop=1.0,
        optim=Optim(
            name="lion",
            lr=2.4e-4,
            lr_per_256=False,
            min_lr=0.0,
            warmup_epochs=5,
            weight_decay=0.5,
            weight_decay_end=None,
            betas=(0.9, 0.99),
            clip=0.0,
        ),
    )


def crate_fashion_supervised() -> Recipe:
    """CRATE-S with patches of 4, supervised, Fashion-MNIST, 50 epochs at batch 512. Not yet run."""
    views = RandomResizedCrop(size=28, scale=(0.5, 1.0), mean=FASHION_MEAN, std=FASHION_STD)
    return Recipe(
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


def crate_tiny_in1k() -> Recipe:
    """CRATE-T/16, supervised, 150 epochs at batch 2048. Published: top-1 66.7. Not yet run."""
    return _crate("tiny")


def crate_small_in1k() -> Recipe:
    """CRATE-S/16, supervised, 150 epochs at batch 2048. Published: top-1 69.2. Not yet run."""
    return _crate("small")


def crate_base_in1k() -> Recipe:
    """CRATE-B/16, supervised, 150 epochs at batch 2048. Published: top-1 70.8. Not yet run."""
    return _crate("base")


def crate_large_in1k() -> Recipe:
    """CRATE-L/16, supervised, 150 epochs at batch 2048. Published: top-1 71.3. Not yet run."""
    return _crate("large")


def crate_small_book_in1k() -> Recipe:
    """CRATE-S/16, supervised, with the augmentations of the book's section 7.3.5. Not yet run.

    "Flips, Gaussian blurs, solarization, etc.", where the training code only crops and flips, which
    is what `crate_small_in1k` does. The book leaves their probabilities open, refers to DINO for
    those of its section 7.2, and names colour jitter there. These are DINO's: jitter and grey of
    every view, blur and solarization as often as in the mean of its two global views.
    """
    views = replace(CRATE_VIEWS, jitter=0.8, grey=0.2, blur=0.55, solarize=0.1)
    objective = supervised.Config(views=views)
    return replace(_crate("small"), objective=objective)


def _crate(size: str) -> Recipe:
    """The book's section 7.3.5: LION, rate 2.4e-4, weight decay .5, batch 2048, 150 epochs.

    Label smoothing .1, no clipping, a bilinear filter and weight decay on all parameters are the
    training code's (CRATE 674408f), and so are its random resized crops, where the book writes
    centre crops; 5 warm-up epochs are the book's (code: 20, its rate changing once an epoch).
    """
    return Recipe(
        objective=supervised.Config(views=CRATE_VIEWS),
        backbone=f"crate_{size}_patch16_224",
        data=IMAGENET,
        batch_size=2048,
        epochs=150,
        optim=Optim(
            name="lion",
            lr=2.4e-4,
            lr_per_256=False,
            min_lr=0.0,
            warmup_epochs=5,
            weight_decay=0.5,
            weight_decay_end=None,
            decay="all",
            betas=(0.9, 0.99),
            clip=0.0,
        ),
        precision="bf16",
    )
