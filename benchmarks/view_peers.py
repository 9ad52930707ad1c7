"""Others' pipelines for a plan of views, from the bytes of a JPEG to normalised float32 tensors.

torchvision's and kornia's are built from the plan's own distributions, by their documentation;
lightly's are its ready transforms. Each decodes as its users do.
"""

import io
import random
from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from vitrail.data.views.contract import View
from vitrail.data.views.plan import ViewPlan

Pipeline = Callable[[list[bytes]], list[Tensor]]  # the views of the files, in any arrangement

BICUBIC = InterpolationMode.BICUBIC


def open_rgb(data: bytes) -> Image.Image:
    """As torchvision's ImageFolder opens a file."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def one_by_one(transforms: list[Callable], open_: Callable[[bytes], object]) -> Pipeline:
    def run(files: list[bytes]) -> list[Tensor]:
        return [t(image) for image in map(open_, files) for t in transforms]

    return run


class PillowBlur:
    """DINO's: Pillow's filter with a drawn radius."""

    def __init__(self, p: float, sigma: tuple[float, float]):
        self.p, self.sigma = p, sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))


def torchvision_v1(plan: ViewPlan) -> Pipeline:
    """torchvision's first transforms, on Pillow images."""
    return one_by_one(
        [
            v1.Compose([*augmentations(v1, view, PillowBlur), v1.ToTensor(), normalise(v1, plan)])
            for view in plan.views
        ],
        open_rgb,
    )


def torchvision_v2(plan: ViewPlan) -> Pipeline:
    """torchvision's second transforms, on uint8 tensors that its own decoder gave."""
    from torchvision.io import ImageReadMode, decode_jpeg

    def open_tensor(data: bytes) -> Tensor:
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)

    def blur(p: float, sigma: tuple[float, float]) -> Callable:
        return v2.RandomApply([v2.GaussianBlur(17, sigma)], p)

    to_float = v2.ToDtype(torch.float32, scale=True)
    return one_by_one(
        [
            v2.Compose([*augmentations(v2, view, blur), to_float, normalise(v2, plan)])
            for view in plan.views
        ],
        open_tensor,
    )


def normalise(t: ModuleType, plan: ViewPlan) -> Callable:
    return t.Normalize(plan.mean, plan.std)


def augmentations(
    t: ModuleType, view: View, blur: Callable[[float, tuple[float, float]], Callable]
) -> list[Callable]:
    """A view's, in the words that both generations of torchvision share."""
    steps: list[Callable] = [
        t.RandomResizedCrop(view.size, view.scale, view.ratio, BICUBIC),
        t.RandomHorizontalFlip(view.flip),
    ]
    if view.jitter:
        jitter = t.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
        steps.append(t.RandomApply([jitter], view.jitter))
    if view.grey:
        steps.append(t.RandomGrayscale(view.grey))
    if view.blur:
        steps.append(blur(view.blur, view.blur_sigma))
    if view.solarize:
        steps.append(t.RandomSolarize(128, view.solarize))
    return steps


def kornia(plan: ViewPlan) -> Pipeline:
    """kornia's augmentations of a batch, decoded by Pillow. ImportError without it."""
    from kornia import augmentation as k

    def transform(view: View) -> Callable:
        side, sigma = (view.size, view.size), view.blur_sigma
        steps = [
            k.RandomResizedCrop(side, view.scale, view.ratio, resample="BICUBIC"),
            k.RandomHorizontalFlip(p=view.flip),
        ]
        if view.jitter:
            strengths = (view.brightness, view.contrast, view.saturation, view.hue)
            steps.append(k.ColorJiggle(*strengths, p=view.jitter))
        if view.grey:
            steps.append(k.RandomGrayscale(p=view.grey))
        if view.blur:
            steps.append(k.RandomGaussianBlur((17, 17), sigma, p=view.blur))
        if view.solarize:
            steps.append(k.RandomSolarize(0.0, 0.0, p=view.solarize))
        mean, std = torch.tensor(plan.mean), torch.tensor(plan.std)
        return torch.nn.Sequential(*steps, k.Normalize(mean, std))

    transforms = [transform(view) for view in plan.views]

    def run(files: list[bytes]) -> list[Tensor]:
        images = torch.stack([v1.functional.to_tensor(open_rgb(data)) for data in files])
        return [t(images) for t in transforms]

    return run


def lightly(method: str) -> Pipeline:
    """lightly's ready transforms, on Pillow images. ImportError without it."""
    from lightly import transforms

    make = {
        "dino": partial(transforms.DINOTransform, n_local_views=10),
        "simclr": transforms.SimCLRTransform,
        "mae": transforms.MAETransform,
    }
    transform = make[method]()

    def run(files: list[bytes]) -> list[Tensor]:
        return [view for data in files for view in transform(open_rgb(data))]

    return run
