"""The evaluation transform against torchvision's."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from vitrail.data.views.preprocess import Preprocess

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def waves(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    planes = [np.sin(x / 17) * 90 + 120, np.cos(y / 13) * 90 + 120, np.sin((x + y) / 29) * 90 + 120]
    return np.stack(planes, axis=2).astype(np.uint8)


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (60, 61), (300, 300), (256, 700)])
def test_is_torchvisions(shape):
    image = Image.fromarray(waves(*shape))
    theirs = T.Compose(
        [
            T.Resize(256, T.InterpolationMode.BICUBIC),
            T.CenterCrop(224),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )(image)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    ours = Preprocess(224, 256, MEAN, STD)([tensor])[0]
    off = (ours - theirs).abs() * torch.tensor(STD)[:, None, None] * 255
    assert (off > 2).double().mean() < 0.01
    assert off.mean() < 0.5


def test_list_is_stacked_and_same_size_is_the_identity():
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    preprocess = Preprocess(28, 28, (0.0,), (1.0,))
    assert torch.equal(preprocess(images), preprocess(list(images)))
    torch.testing.assert_close(preprocess(images), images / 255, atol=1e-6, rtol=0)


def test_mixed_and_extreme_shapes():
    shapes = [(1, 1), (1, 60000), (60000, 1), (3, 5000), (40, 30)]
    images = [torch.full((3, *shape), 51, dtype=torch.uint8) for shape in shapes]
    x = Preprocess(32, 40, (0.0,) * 3, (1.0,) * 3)(images)
    torch.testing.assert_close(x, torch.full((5, 3, 32, 32), 0.2), atol=1e-6, rtol=0)
    assert Preprocess(32, 40, MEAN, STD)([]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((0, 10, MEAN, STD), "size is 0"),
        ((12, 10, MEAN, STD), "size is 12 and resize is 10"),
        ((8, 10, MEAN, STD[:2]), "mean has 3 values and std has 2"),
    ],
)
def test_refuses_by_name(args, named):
    with pytest.raises(ValueError, match=named):
        Preprocess(*args)


def test_refuses_other_channels():
    with pytest.raises(ValueError, match="image 1 has 1 channels, but mean has 3"):
        Preprocess(4, 4, MEAN, STD)([torch.zeros(c, 5, 5, dtype=torch.uint8) for c in (3, 1)])


@pytest.mark.parametrize(("shape", "size"), [((100, 150), (32, 48)), ((40, 30), (96, 96))])
def test_stretched_is_the_whole_image_as_pillow_resizes_it(shape, size):
    pixels = waves(*shape)
    found = Preprocess(8, 9, MEAN, STD).stretched(torch.from_numpy(pixels).permute(2, 0, 1), size)
    theirs = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
    expected = (np.asarray(theirs) / 255 - MEAN) / STD
    assert found.shape == (3, *size)
    np.testing.assert_allclose(found.permute(1, 2, 0), expected, atol=1.5 / 255 / min(STD))


def test_stretched_refuses_other_channels():
    with pytest.raises(ValueError, match="the image has 1 channels, but mean has 3"):
        Preprocess(8, 8, MEAN, STD).stretched(torch.zeros(1, 4, 4, dtype=torch.uint8), (8, 8))
