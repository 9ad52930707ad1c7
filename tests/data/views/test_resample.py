"""How far the rounded resampling is from Pillow's own: what the docstring of `resample` says."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.views.preprocess import Preprocess
from vitrail.data.views.resample import resample_one_rounded, taps

SIDE = 96
LEVEL = [(300, 200), (200, 300), (224, 224), (400, 400), (60, 500)]
# shrunk more, or magnified less, in height than in width: Pillow 13 resizes the columns first
TALL = [(500, 60), (100, 90), (900, 50)]


def waves(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    planes = [np.sin(x / 17) * 90 + 120, np.cos(y / 13) * 90 + 120, np.sin((x + y) / 29) * 90 + 120]
    return np.stack(planes, axis=2).astype(np.uint8)


def ours(pixels: np.ndarray, mode: str) -> np.ndarray:
    """The whole image as a square, in the arithmetic of views."""
    sides, largest = [], []
    for length in pixels.shape[:2]:
        no = torch.tensor(False)
        lengths = torch.tensor(length), torch.tensor(SIDE)
        sides.append(taps(*lengths, torch.tensor(0), no, SIDE, mode))
        largest.append(float(sides[-1].weight.max()))
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return resample_one_rounded(image, *sides, tuple(largest)).permute(1, 2, 0).numpy()


def differences(pixels: np.ndarray, mode: str) -> np.ndarray:
    filter = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[mode]
    theirs = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), filter))
    return np.abs(ours(pixels, mode) - theirs.astype(float))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", LEVEL + TALL)
def test_smooth_images_are_pillows_within_a_level(shape: tuple[int, int], mode: str) -> None:
    off = differences(waves(*shape), mode)
    assert off.max() <= 1
    assert (off > 0).mean() < 0.02


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", LEVEL)
def test_so_is_noise_where_pillow_resizes_the_rows_first(shape: tuple[int, int], mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    off = differences(noise, mode)
    assert off.max() <= 2
    assert (off > 0).mean() < 0.02


@pytest.mark.parametrize("shape", TALL)
def test_noise_in_tall_images_is_not(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    assert differences(noise, "bilinear").max() <= 1
    assert differences(noise, "bicubic").max() <= 25
    assert differences((noise > 127).astype(np.uint8) * 255, "bicubic").max() <= 40


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", LEVEL + TALL)
def test_the_rounded_arithmetic_is_torchs(shape: tuple[int, int], mode: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    image = torch.from_numpy(noise).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(image, (SIDE, SIDE), mode=mode, antialias=True)[0]
    found = torch.from_numpy(ours(noise, mode)).permute(2, 0, 1)
    assert torch.equal(found, theirs.float())


@pytest.mark.parametrize("rounding", ["torchvision", "transformers"])
def test_a_crop_of_a_rounded_image_is_that_of_the_whole(rounding: str) -> None:
    """The largest weight, which sets the number of bits, may lie outside of the crop."""
    noise = np.random.default_rng(2).integers(0, 256, (3, 32, 32)).astype(np.uint8)
    image = torch.from_numpy(noise)
    whole = torch.nn.functional.interpolate(image[None], (37, 37), mode="bicubic", antialias=True)
    preprocess = Preprocess(32, 37, (0.0,) * 3, (1.0,) * 3, rounding=rounding)
    found = (preprocess([image])[0] * 255).round()
    assert torch.equal(found, whole[0, :, 2:34, 2:34].float())
