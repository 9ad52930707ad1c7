"""Settings that several recipes share: views, statistics and data of one data set."""

from vitrail.data.views.plan import MultiCrop, RandomResizedCrop
from vitrail.optim import Config as Optim

# Two crops of at least half the picture: a quarter of an 8x8 digit is no digit.
DIGITS_VIEWS = MultiCrop(
    global_size=16,
    local_size=8,
    n_local=0,
    global_scale=(0.5, 1.0),
    ratio=(0.85, 1.18),
    flip=0.0,
    jitter=0.0,
    saturation=0.0,
    hue=0.0,
    grey=0.0,
    blur=(0.0, 0.0, 0.0),
    solarize=0.0,
    mean=(0.2,),
    std=(0.33,),
)


# One crop, not mirrored: a mirrored 2 is no 2.
DIGITS_CROP = RandomResizedCrop(
    size=16, scale=(0.5, 1.0), ratio=(0.85, 1.18), flip=0.0, mean=(0.2,), std=(0.33,)
)
MAE_OPTIM = Optim(
    lr=2e-3,
    lr_per_256=False,
    warmup_epochs=10,
    min_lr=0.0,
    weight_decay=0.05,
    weight_decay_end=None,
    betas=(0.9, 0.95),
    clip=0.0,
)


FASHION_MEAN, FASHION_STD = (0.286,), (0.353,)  # of the 60,000 training pictures
FASHION_VIEWS = MultiCrop(
    global_size=28,
    local_size=16,
    n_local=6,
    global_scale=(0.4, 1.0),
    local_scale=(0.1, 0.4),
    saturation=0.0,
    hue=0.0,
    grey=0.0,
    blur=(0.5, 0.1, 0.25),
    mean=FASHION_MEAN,
    std=FASHION_STD,
)


IMAGENET = "folder:imagenet"
