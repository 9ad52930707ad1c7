"""The plan of an image's views, their drawn parameters, and the two recipes of views.

Sampling is apart from application (`apply.py`), so the same parameters give the same pixels on
every device. The distributions are DINO's (Caron et al. 2021, https://arxiv.org/abs/2104.14294,
section 3.2 and `DataAugmentationDINO` of facebookresearch/dino at 7c446df); boxes, jitter, grey and
flip are those of torchvision's v1 transforms.

Shape legend: V views of one image · B images of this slice · R views of one distribution ·
U uniforms a view.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitrail.data.contract import Detail, Look
from vitrail.data.views.boxes import BOX_UNIFORMS, sample_boxes
from vitrail.data.views.contract import Drawn, Operation, View, operations_of
from vitrail.data.views.preparation import Interpolation
from vitrail.nn.random import Draws

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Columns of the table that the stream "views" draws for every view: the box, the flip, and those
# of the four oldest operations. They are fixed: one more would move every draw of every run.
_FLIP, _TABLE_COLUMNS = BOX_UNIFORMS, BOX_UNIFORMS + 11


@dataclass(frozen=True)
class ViewParams:
    """Drawn parameters of V views of B images: all that `apply_views` needs.

    Attributes:
        plan: the plan that they were drawn from.
        box: int64, (top, left, height, width) in pixels, inside the image.
        flip: true where the view is mirrored left to right.
        operations: the parameters of each operation by its name, [V, B, ...] each.
    """

    plan: "ViewPlan"
    box: Int[Tensor, "V B 4"]
    flip: Bool[Tensor, "V B"]
    operations: dict[str, Drawn]

    def narrow(self, start: int, count: int) -> "ViewParams":
        """Returns the parameters of images [start, start + count)."""
        assert 0 <= start <= start + count <= self.box.shape[1]
        rows = slice(start, start + count)
        return self._each(lambda tensor: tensor[:, rows])

    def of_views(self, first: int, count: int) -> "ViewParams":
        """Returns the parameters of views [first, first + count)."""
        views = slice(first, first + count)
        return self._each(lambda tensor: tensor[views])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "ViewParams":
        drawn = {
            operation: {name: change(tensor) for name, tensor in tensors.items()}
            for operation, tensors in self.operations.items()
        }
        return ViewParams(self.plan, change(self.box), change(self.flip), drawn)


def join_params(parts: list[ViewParams]) -> ViewParams:
    """Returns the parameters of all images of the parts, which are of one plan."""
    drawn = {
        operation: {
            name: torch.cat([part.operations[operation][name] for part in parts], dim=1)
            for name in tensors
        }
        for operation, tensors in parts[0].operations.items()
    }
    box = torch.cat([part.box for part in parts], dim=1)
    return ViewParams(parts[0].plan, box, torch.cat([part.flip for part in parts], dim=1), drawn)


@dataclass(frozen=True)
class ViewPlan:
    """The views of one image, in order, and the normalisation of them all.

    Attributes:
        views: at least one, all of one class and interpolation.
        mean: subtracted from pixels in [0, 1], one value a channel.
        std: divides what remains, above 0, one value a channel.
    """

    views: tuple[View, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.views:
            raise ValueError("view plan: views is empty; it needs at least one view")
        assert len({type(view) for view in self.views}) == 1
        if len({view.interpolation for view in self.views}) > 1:
            raise ValueError("view plan: its views differ in interpolation; give all of them one")
        check_normalisation("view plan", self.mean, self.std)
        if len(self.mean) == 3:
            return
        for view in self.views:
            for operation in self.operations.values():
                for name in operation.coloured_fields(view):
                    raise ValueError(
                        f"view plan: {name} is {getattr(view, name)}, which needs 3 channels, but "
                        f"mean has {len(self.mean)}; set {name}=0"
                    )

    @property
    def operations(self) -> dict[str, Operation]:
        """The operations on the views' pixels, by name, in the order of application."""
        return operations_of(self.views[0])

    @property
    def interpolation(self) -> Interpolation:
        """The filter with which all views are resized."""
        return self.views[0].interpolation

    @property
    def resolutions(self) -> list[tuple[int, int]]:
        """(size, number of views) of each maximal run of consecutive views of equal size."""
        return [(size, len(list(run))) for size, run in groupby(view.size for view in self.views)]

    @property
    def detail(self) -> Detail:
        """The detail of an image that the views can show."""
        return Detail(tuple(Look(v.size, v.scale[0], v.ratio) for v in self.views))

    def sample(self, draws: Draws, sizes: Int[Tensor, "B 2"]) -> ViewParams:
        """Draws the views' parameters. Those of a sample do not depend on other samples.

        Args:
            draws: the slice's randomness; B = draws.count.
            sizes: (height, width) of each image, in pixels, on the CPU.
        """
        assert sizes.shape[0] == draws.count

        def cut(view: View, u_NU: Tensor) -> Drawn:
            box = sample_boxes(
                view.scale, view.ratio, u_NU[:, :BOX_UNIFORMS], sizes.repeat(len(u_NU) // n, 1)
            )
            return {"box": box, "flip": u_NU[:, _FLIP] < view.flip}

        n = max(1, draws.count)
        table_VBU = self._uniforms(draws, "views", _TABLE_COLUMNS)
        operations: dict[str, Drawn] = {}
        for name, operation in self.operations.items():
            if (columns := operation.columns) is not None:
                u_VBU = table_VBU[..., columns.start : columns.stop]
            else:
                u_VBU = self._uniforms(draws, f"views.{name}", operation.uniforms)
            operations[name] = self._drawn(u_VBU, operation.draw)
        return ViewParams(self, **self._drawn(table_VBU, cut), operations=operations)

    def _uniforms(self, draws: Draws, stream: str, count: int) -> Float[Tensor, "V B U"]:
        n_views = len(self.views)
        return draws.uniform(stream, count, views=n_views).view(n_views, draws.count, count)

    def _drawn(self, u_VBU: Float[Tensor, "V B U"], draw: Callable[[View, Tensor], Drawn]) -> Drawn:
        """Returns what `draw` gives for the uniforms of all views, [V, B, ...] each."""
        # Equal views that follow each other are drawn together, in as many calls as one.
        runs = [list(run) for _, run in groupby(self.views)]
        drawn = []
        for run, u_RBU in zip(runs, u_VBU.split([len(run) for run in runs]), strict=True):
            of_run = draw(run[0], u_RBU.flatten(0, 1))
            drawn.append({k: value.unflatten(0, (len(run), -1)) for k, value in of_run.items()})
        return {name: torch.cat([of_run[name] for of_run in drawn]) for name in drawn[0]}


def check_normalisation(owner: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raises ValueError for a mean and std that do not fit each other, naming `owner`."""
    if not mean or len(mean) != len(std):
        raise ValueError(
            f"{owner}: mean has {len(mean)} values and std has {len(std)}; "
            "both need one value a channel"
        )
    if not all(0 < s < math.inf for s in std) or not all(map(math.isfinite, mean)):
        raise ValueError(f"{owner}: mean is {mean}, std is {std}; std must be above 0, both finite")


@dataclass(frozen=True)
class MultiCrop:
    """DINO's views: two global ones, then the local ones. Defaults are the paper's.

    Attributes:
        global_size: side of the two global views, in pixels, at least 1.
        local_size: side of the local views, in pixels, at least 1.
        n_local: number of local views, 0 or more.
        global_scale: (low, high) of a global view's share of the image's area, within (0, 1].
        local_scale: (low, high) of a local view's share of the image's area, within (0, 1].
        ratio: (low, high) of width / height of the box that is cut out, above 0.
        flip: probability in [0, 1] that a view is mirrored left to right.
        interpolation: filter of the resizing, bicubic or bilinear; images are then resized so at
            evaluation too.
        jitter: probability in [0, 1] that a view's colours are jittered, by the four strengths
            below.
        brightness: strength of the jitter's brightness, 0 or more: a factor in
            [max(0, 1 - brightness), 1 + brightness].
        contrast: strength of the jitter's contrast, 0 or more: a factor in
            [max(0, 1 - contrast), 1 + contrast].
        saturation: strength of the jitter's saturation, 0 or more: a factor in
            [max(0, 1 - saturation), 1 + saturation]; 0 for images without 3 channels.
        hue: strength of the jitter's hue, in [0, 0.5] turns: a shift in [-hue, hue]; 0 for images
            without 3 channels.
        grey: probability in [0, 1] that a view is turned to grey; 0 for images without 3 channels.
        blur: probabilities in [0, 1] of a Gaussian blur: of global view 1, of global view 2, and of
            the local views.
        solarize: probability in [0, 1] that global view 2 is solarized (its upper half of values
            inverted).
        mean: subtracted from the pixels, in [0, 1], one value a channel.
        std: divides the pixels after that, above 0, one value a channel.
    """

    global_size: int = 224
    local_size: int = 96
    n_local: int = 10
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: Interpolation = "bicubic"
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
        """Returns the plan of 2 + n_local views. Raises ValueError for a field out of range."""
        if self.n_local < 0:
            raise ValueError(f"multi-crop: n_local is {self.n_local}; it must be 0 or more")
        first = View(
            **_shared_fields(self) | {"blur": self.blur[0], "solarize": 0.0},
            size=self.global_size,
            scale=self.global_scale,
        )
        second = replace(first, blur=self.blur[1], solarize=self.solarize)
        local = replace(first, size=self.local_size, scale=self.local_scale, blur=self.blur[2])
        return ViewPlan((first, second) + (local,) * self.n_local, self.mean, self.std)


@dataclass(frozen=True)
class RandomResizedCrop:
    """One view: crop and flip, colours not changed by default.

    For methods that compare an image with something else than itself: labels, captions, its own
    pixels. Fields are those of `View`.

    Attributes:
        size: side of the view, in pixels, at least 1.
        scale: (low, high) of the view's share of the image's area, within (0, 1].
        ratio: (low, high) of width / height of the box that is cut out, above 0.
        flip: probability in [0, 1] that the view is mirrored left to right.
        interpolation: filter of the resizing, bicubic or bilinear; images are then resized so at
            evaluation too.
        jitter: probability in [0, 1] that the view's colours are jittered, by the four strengths
            below.
        brightness: strength of the jitter's brightness, 0 or more: a factor in
            [max(0, 1 - brightness), 1 + brightness].
        contrast: strength of the jitter's contrast, 0 or more: a factor in
            [max(0, 1 - contrast), 1 + contrast].
        saturation: strength of the jitter's saturation, 0 or more: a factor in
            [max(0, 1 - saturation), 1 + saturation]; 0 for images without 3 channels.
        hue: strength of the jitter's hue, in [0, 0.5] turns: a shift in [-hue, hue]; 0 for images
            without 3 channels.
        grey: probability in [0, 1] that the view is turned to grey; 0 for images without 3
            channels.
        blur: probability in [0, 1] of a Gaussian blur, whose standard deviation is DINO's, 0.1 to 2
            pixels.
        solarize: probability in [0, 1] that the view is solarized (its upper half of values
            inverted).
        mean: subtracted from the pixels, in [0, 1], one value a channel.
        std: divides the pixels after that, above 0, one value a channel.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: Interpolation = "bicubic"
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
        """Returns the plan of one view. Raises ValueError for a field out of range."""
        return ViewPlan((View(**_shared_fields(self)),), self.mean, self.std)


def _shared_fields(recipe: "MultiCrop | RandomResizedCrop") -> dict[str, Any]:
    """Returns the values of those fields of a recipe of views that are fields of `View` too."""
    names = {f.name for f in fields(View)} & {f.name for f in fields(recipe)}
    return {name: getattr(recipe, name) for name in names}
