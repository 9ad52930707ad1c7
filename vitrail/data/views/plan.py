"""What the model sees of an image: the distributions of its views, and parameters drawn from them.

Sampling is apart from application (`apply.py`), so that the same parameters give the same pixels on
every device. The distributions are DINO's (Caron et al. 2021, https://arxiv.org/abs/2104.14294,
section 3.2 and `DataAugmentationDINO` of facebookresearch/dino at 7c446df); boxes, jitter, grey and
flip are those of torchvision's v1 transforms.

Shape legend: V views of one image · B images of this slice · U uniforms a view.
"""

import math
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitrail.data.contract import Detail, Look
from vitrail.data.views.boxes import BOX_UNIFORMS, sample_boxes
from vitrail.nn.random import Draws

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of `factors`, values of `order`

# Columns of a view's uniforms; the box takes the first ones.
_FLIP, _JITTER, _B, _C, _S, _H, _ORDER, _GREY, _BLUR, _SIGMA, _SOLARIZE, N_UNIFORMS = range(
    BOX_UNIFORMS, BOX_UNIFORMS + 12
)


def _table_of_orders() -> Tensor:
    """The 24 orders of the four jitter operations, [24, 4]."""
    ops = torch.arange(4)
    return torch.stack(
        [p for p in torch.cartesian_prod(ops, ops, ops, ops) if len(p.unique()) == 4]
    )


ORDERS = _table_of_orders()


@dataclass(frozen=True)
class View:
    """The distributions of one view.

    size: pixels of its side. scale: share of the image's area. ratio: width / height of the box.
    flip, jitter, grey, blur, solarize: probabilities. brightness, contrast, saturation: factors are
    uniform in [max(0, 1 - b), 1 + b]. hue: shift uniform in [-h, h] turns, h <= 1/2.
    blur_sigma: range of the Gaussian's standard deviation, in pixels of the view.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"view: size is {self.size}; it must be at least 1 pixel")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"view: scale is {self.scale}; it must be (low, high) within (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"view: ratio is {self.ratio}; it must be (low, high), both above 0")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1] < math.inf:
            raise ValueError(
                f"view: blur_sigma is {self.blur_sigma}; it must be (low, high), both above 0"
            )
        for name in ("flip", "jitter", "grey", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"view: {name} is {getattr(self, name)}; it must be in [0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"view: {name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"view: hue is {self.hue}; it must be in [0, 0.5] turns")


@dataclass(frozen=True)
class ViewParams:
    """Drawn parameters of V views of B images; everything `apply_views` needs.

    box: int64, (top, left, height, width) in pixels, inside the image. flip: mirrored left-right.
    jitter: whether colours are jittered; factors: float32 (brightness, contrast, saturation,
    hue in turns); order: int64, the operations in the order of application.
    sigma: float32, the blur's standard deviation in pixels of the view, 0 where not blurred.
    """

    plan: "ViewPlan"
    box: Int[Tensor, "V B 4"]
    flip: Bool[Tensor, "V B"]
    jitter: Bool[Tensor, "V B"]
    factors: Float[Tensor, "V B 4"]
    order: Int[Tensor, "V B 4"]
    grey: Bool[Tensor, "V B"]
    sigma: Float[Tensor, "V B"]
    solarize: Bool[Tensor, "V B"]

    def _tensors(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "plan"}

    def narrow(self, start: int, count: int) -> "ViewParams":
        """The parameters of images [start, start + count)."""
        assert 0 <= start <= start + count <= self.box.shape[1]
        rows = slice(start, start + count)
        return replace(self, **{name: value[:, rows] for name, value in self._tensors().items()})

    def of_views(self, first: int, count: int) -> "ViewParams":
        """The parameters of views [first, first + count)."""
        views = slice(first, first + count)
        return replace(self, **{name: value[views] for name, value in self._tensors().items()})


@dataclass(frozen=True)
class ViewPlan:
    """The views of one image, in order, and the normalisation of them all.

    mean, std: one value a channel, of pixels in [0, 1].
    """

    views: tuple[View, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.views:
            raise ValueError("view plan: views is empty; it needs at least one view")
        check_normalisation("view plan", self.mean, self.std)
        if len(self.mean) == 3:
            return
        for view in self.views:
            coloured = {"grey": view.grey > 0}
            coloured |= {"saturation": view.jitter > 0 and view.saturation > 0}
            coloured |= {"hue": view.jitter > 0 and view.hue > 0}
            for name, is_set in coloured.items():
                if is_set:
                    raise ValueError(
                        f"view plan: {name} is {getattr(view, name)}, which needs 3 channels, but "
                        f"mean has {len(self.mean)}; set {name}=0"
                    )

    @property
    def resolutions(self) -> list[tuple[int, int]]:
        """(size, number of views) of each maximal run of consecutive views of equal size."""
        return [(size, len(list(run))) for size, run in groupby(view.size for view in self.views)]

    @property
    def detail(self) -> Detail:
        """What of an image the views can show."""
        return Detail(tuple(Look(v.size, v.scale[0], v.ratio) for v in self.views))

    def sample(self, draws: Draws, sizes: Int[Tensor, "B 2"]) -> ViewParams:
        """Draws the views' parameters. What a sample gets does not depend on other samples.

        Args:
            draws: the slice's randomness; B = draws.count.
            sizes: (height, width) of each image, in pixels, on the CPU.
        """
        assert sizes.shape[0] == draws.count
        uniforms = draws.uniform("views", N_UNIFORMS, views=len(self.views))
        u_VBU = uniforms.view(len(self.views), draws.count, N_UNIFORMS)
        # Equal views that follow each other are drawn together, in as many calls as one.
        runs = [list(run) for _, run in groupby(self.views)]
        drawn = [
            _sample_views(run[0], u_RBU, sizes)
            for run, u_RBU in zip(runs, u_VBU.split([len(run) for run in runs]), strict=True)
        ]
        return ViewParams(self, **{name: torch.cat([d[name] for d in drawn]) for name in drawn[0]})


def check_normalisation(owner: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Refuses a mean and std that do not fit each other, naming `owner`."""
    if not mean or len(mean) != len(std):
        raise ValueError(
            f"{owner}: mean has {len(mean)} values and std has {len(std)}; "
            "both need one value a channel"
        )
    if not all(0 < s < math.inf for s in std) or not all(map(math.isfinite, mean)):
        raise ValueError(f"{owner}: mean is {mean}, std is {std}; std must be above 0, both finite")


def _sample_views(
    view: View, u_RBU: Float[Tensor, "R B U"], sizes: Int[Tensor, "B 2"]
) -> dict[str, Tensor]:
    """The parameters of R views of one distribution, [R, B, ...] each."""
    n_views = len(u_RBU)
    u_BU, sizes = u_RBU.flatten(0, 1), sizes.repeat(n_views, 1)

    def factor(column: int, strength: float) -> Tensor:
        low = max(0.0, 1 - strength)
        return low + (1 + strength - low) * u_BU[:, column]

    hue = view.hue * (2 * u_BU[:, _H] - 1)
    rgb = (factor(_B, view.brightness), factor(_C, view.contrast), factor(_S, view.saturation))
    low, high = view.blur_sigma
    sigma = low + (high - low) * u_BU[:, _SIGMA]
    drawn = {
        "box": sample_boxes(view.scale, view.ratio, u_BU[:, :BOX_UNIFORMS], sizes),
        "flip": u_BU[:, _FLIP] < view.flip,
        "jitter": u_BU[:, _JITTER] < view.jitter,
        "factors": torch.stack([*rgb, hue], dim=1),
        "order": ORDERS[(u_BU[:, _ORDER] * len(ORDERS)).long()],
        "grey": u_BU[:, _GREY] < view.grey,
        "sigma": torch.where(u_BU[:, _BLUR] < view.blur, sigma, torch.zeros_like(sigma)),
        "solarize": u_BU[:, _SOLARIZE] < view.solarize,
    }
    return {name: value.unflatten(0, (n_views, -1)) for name, value in drawn.items()}


@dataclass(frozen=True)
class MultiCrop:
    """DINO's views: two global ones, then the local ones. Defaults are the paper's.

    blur: probabilities for global 1, global 2 and the locals. solarize: for global 2 only.
    """

    global_size: int = 224
    local_size: int = 96
    n_local: int = 10
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    solarize: float = 0.2
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def plan(self) -> ViewPlan:
        """The plan of 2 + n_local views. ValueError names a field out of range."""
        if self.n_local < 0:
            raise ValueError(f"multi-crop: n_local is {self.n_local}; it must be 0 or more")
        first = View(
            size=self.global_size,
            scale=self.global_scale,
            ratio=self.ratio,
            flip=self.flip,
            jitter=self.jitter,
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
            grey=self.grey,
            blur=self.blur[0],
        )
        second = replace(first, blur=self.blur[1], solarize=self.solarize)
        local = replace(first, size=self.local_size, scale=self.local_scale, blur=self.blur[2])
        return ViewPlan((first, second) + (local,) * self.n_local, self.mean, self.std)


@dataclass(frozen=True)
class RandomResizedCrop:
    """One view: crop and flip, colours not changed unless asked for.

    For methods that compare an image with something else than itself: labels, captions, its own
    pixels. Fields are those of `View`; where jitter or blur is above 0, its strengths are DINO's.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def plan(self) -> ViewPlan:
        """The plan of one view. ValueError names a field out of range."""
        of_view = {f.name: getattr(self, f.name) for f in fields(View) if f.name != "blur_sigma"}
        return ViewPlan((View(**of_view),), self.mean, self.std)
