"""Others' pipelines for a plan of views, from the bytes of a JPEG to normalised float32 tensors.

torchvision's and kornia's are built from the plan's own distributions, by their documentation;
lightly's are its ready transforms. Each decodes as its users do.
"""

import io
import random
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from vitrail.data.views import View, ViewPlan

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

    def transform(view: View) -> Callable:
        steps: list[Callable] = [
            v1.RandomResizedCrop(view.size, view.scale, view.ratio, BICUBIC),
            v1.RandomHorizontalFlip(view.flip),
        ]
        if view.jitter:
            jitter = v1.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
            steps.append(v1.RandomApply([jitter], view.jitter))
        if view.grey:
            steps.append(v1.RandomGrayscale(view.grey))
        if view.blur:
            steps.append(PillowBlur(view.blur, view.blur_sigma))
        if view.solarize:
            steps.append(v1.RandomSolarize(128, view.solarize))
        return v1.Compose([*steps, v1.ToTensor(), v1.Normalize(plan.mean, plan.std)])

    return one_by_one([transform(view) for view in plan.views], open_rgb)


def torchvision_v2(plan: ViewPlan) -> Pipeline:
    """torchvision's second transforms, on uint8 tensors that its own decoder gave."""
    from torchvision.io import ImageReadMode, decode_jpeg

    def open_tensor(data: bytes) -> Tensor:
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)

    def transform(view: View) -> Callable:
        steps: list[Callable] = [
            v2.RandomResizedCrop(view.size, view.scale, view.ratio, BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(view.flip),
        ]
        if view.jitter:
            jitter = v2.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
            steps.append(v2.RandomApply([jitter], view.jitter))
        if view.grey:
            steps.append(v2.RandomGrayscale(view.grey))
        if view.blur:
            steps.append(v2.RandomApply([v2.GaussianBlur(17, view.blur_sigma)], view.blur))
        if view.solarize:
            steps.append(v2.RandomSolarize(128, view.solarize))
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(plan.mean, plan.std)]
        return v2.Compose(steps)

    return one_by_one([transform(view) for view in plan.views], open_tensor)


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
