"""scikit-learn's handwritten digits: 1797 images of 8 × 8 pixels, part of the package."""

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from vitrail.data.contract import Source, Split
from vitrail.data.sources.memory import MemorySource
from vitrail.data.subset import stratified_split
from vitrail.nn.random import philox

TEST_SHARE = 500 / 1797
CANVAS = 16  # pixels, the side of a scattered digit's image
SIDES = (10, 14)  # pixels, the smallest and largest side of a scattered digit, both included


def open_digits(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `digits`, or `digits:scattered`: each at its own scale and place on a larger canvas.

    8 × 8 digits are centred and of one size, so raw pixels are enough to classify them. Scattered
    digits need an encoder. Scale and place are a pure function of the
    digit's index, drawn independently of its label and of the split.
    """
    if rest not in ("", "scattered"):
        raise ValueError(f"digits:{rest} is unknown; use 'digits' or 'digits:scattered'")
    data = load_digits()
    images_NHW = np.round(data.images * 255 / 16).astype(np.uint8)
    if rest == "scattered":
        images_NHW = _scattered(images_NHW)
    labels = data.target.tolist()
    train, test = stratified_split(labels, TEST_SHARE, seed=0, stream="digits split")
    chosen = torch.tensor(train if split == "train" else test)
    return MemorySource(
        f"digits:{rest}" if rest else "digits",
        torch.from_numpy(images_NHW)[chosen, None],
        torch.tensor(labels)[chosen],
        [str(digit) for digit in range(10)],
        channels,
    )


def _scattered(images_NHW: np.ndarray) -> np.ndarray:
    """Returns digits resized (bicubic, in Pillow's portable integer arithmetic) on black."""
    canvases = np.zeros((len(images_NHW), CANVAS, CANVAS), dtype=np.uint8)
    draws_N3 = philox(0, "digits scattered", 0).random((len(images_NHW), 3))
    smallest, largest = SIDES
    for canvas, image, (size, top, left) in zip(canvases, images_NHW, draws_N3, strict=True):
        side = smallest + int(size * (largest - smallest + 1))
        y, x = int(top * (CANVAS - side + 1)), int(left * (CANVAS - side + 1))
        digit = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        canvas[y : y + side, x : x + side] = np.asarray(digit)
    return canvases
