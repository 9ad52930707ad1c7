"""Tests of 16 bits and any number of channels: 8 bits x 257 give the results of 8 bits."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.shell import pretrain, vitrail
from vitrail.backbones.create import create_backbone
from vitrail.data.loading.loader import Loader
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.sources.memory import MemorySource
from vitrail.data.views.plan import MultiCrop
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder
from vitrail.evals.features import shown
from vitrail.evals.figures.grid import in_colours
from vitrail.evals.figures.overlays import overlays_figure
from vitrail.evals.patches.maskcut import MaskCut, image_keys
from vitrail.evals.patches.saliency import token_backbone

RNG = np.random.default_rng(2)
# far enough from black and white for no filter to overshoot: 8 bits are clipped between passes
SMALL_NHWC = RNG.integers(64, 192, (3, 33, 21, 4), dtype=np.uint8)
DEEP_NHWC = SMALL_NHWC.astype(np.uint16) * 257


def tensors(array_NHWC: np.ndarray, channels: int = 4) -> list[torch.Tensor]:
    return [
        torch.from_numpy(image[..., :channels].transpose(2, 0, 1).copy()) for image in array_NHWC
    ]


def encoder_of(channels: int) -> Encoder:
    backbone = create_backbone(
        "vit_nano_patch4_28", img_size=16, in_chans=channels, seed=0, width=16, depth=1
    )
    return Encoder(backbone, Preprocess(16, 18, (0.4,) * channels, (0.3,) * channels), {})


def close(a, b, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol)


def test_preprocessing():
    own = encoder_of(4).preprocess
    close(own(tensors(DEEP_NHWC)), own(tensors(SMALL_NHWC)))
    close(own(torch.stack(tensors(DEEP_NHWC))), own(tensors(SMALL_NHWC)))
    both = own([tensors(DEEP_NHWC)[0], tensors(SMALL_NHWC)[1]])
    close(both, own(tensors(SMALL_NHWC)[:2]))
    close(
        own.stretched(tensors(DEEP_NHWC)[0], (9, 7)), own.stretched(tensors(SMALL_NHWC)[0], (9, 7))
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_transform_takes_what_people_have(tmp_path, channels):
    encoder = encoder_of(channels)
    small, deep = (a if channels == 4 else a[..., :3] for a in (SMALL_NHWC, DEEP_NHWC))
    expected = encoder.transform(small)
    np.save(tmp_path / "x.npy", deep[0])
    for images in (
        deep,
        deep.astype(">u2"),
        torch.from_numpy(deep),
        list(deep),
        [deep[0].transpose(2, 0, 1), torch.from_numpy(small[1]), deep[2]],
        [tmp_path / "x.npy", deep[1], str(tmp_path / "x.npy")],
    ):
        # Grey is rounded to 8 bits on one side.
        atol = 1e-5 if channels != 1 else 0.01
        close(encoder.transform(images)[:2], expected[:2], atol=atol)
    close(encoder.transform(deep)[2], expected[2], atol=atol)
    if channels != 4:  # alpha over white
        close(encoder.transform(DEEP_NHWC), encoder.transform(SMALL_NHWC), atol=0.02)
    with pytest.raises(ValueError, match=r"dtype float32: pass uint8 in 0..255 or uint16"):
        encoder.transform(deep.astype(np.float32))
    with pytest.raises(ValueError, match="dtype int32"):
        encoder.transform(torch.zeros(2, 8, 8, dtype=torch.int32))


def test_what_maskcut_sees():
    encoder = encoder_of(4)
    backbone = token_backbone(encoder, "maskcut")
    config = MaskCut(size=24)
    keys, seen = image_keys(encoder, backbone, tensors(SMALL_NHWC)[0], config.size)
    deep_keys, deep_seen = image_keys(encoder, backbone, tensors(DEEP_NHWC)[0], config.size)
    assert deep_seen.dtype == seen.dtype == np.uint8
    # Pillow rounds 8 bits after each of the two passes.
    assert np.abs(seen.astype(int) - deep_seen.astype(int)).max() <= 1
    close(keys, deep_keys, atol=0.05)


def test_pictures_of_any_channels_and_range():
    x = torch.rand(2, 5, 30, 30, generator=torch.Generator().manual_seed(0))
    assert in_colours(x[:, :1]).shape == (2, 1, 30, 30)
    assert torch.equal(in_colours(x[:, :3]), x[:, :3])
    assert torch.equal(in_colours(x), x[:, :3])
    assert torch.equal(in_colours(x[:, :2]), x[:, :2].mean(1, keepdim=True))
    dark = in_colours(0.1 + x / 100, scaled=True)
    assert dark.min() == 0
    assert dark.max() == 1
    middle = (dark > 0) & (dark < 1)
    assert 0.97 < middle.float().mean() < 0.99
    assert torch.equal(
        in_colours(torch.full((1, 3, 4, 4), 0.5), scaled=True), torch.zeros(1, 3, 4, 4)
    )
    for channels, colours in ((1, 1), (2, 1), (3, 3), (4, 3)):
        encoder = encoder_of(channels)
        pictures = shown(encoder, tensors(DEEP_NHWC // 30, channels))
        assert pictures.shape == (3, 16, 16, colours)
        assert pictures.max() > 0.99, "12 bits in 16 are not shown black"
        plain = shown(encoder, tensors(SMALL_NHWC, channels))
        assert plain.shape == pictures.shape


def test_overlays_of_any_channels(tmp_path):
    masks = np.zeros((1, 33, 21), bool)
    masks[0, 5:20, 3:15] = True
    drawn = []
    for image in (
        *(t[:c] for c in (1, 2, 3, 4) for t in tensors(DEEP_NHWC[:1])),
        tensors(SMALL_NHWC, 3)[0],
    ):
        path = overlays_figure([image], [masks], tmp_path / "x.png")
        drawn.append(np.asarray(Image.open(path).convert("RGB")).astype(int))
    assert len({d.shape for d in drawn}) == 1
    # Scaled to their own range, so not the same.
    assert np.corrcoef(drawn[2].ravel(), drawn[4].ravel())[0, 1] > 0.95, "16 bits look as 8 do"


def views_of(images: torch.Tensor, device: str = "cpu") -> list[np.ndarray]:
    source = MemorySource("x", images, None, None, None)
    assert source.bits == 8 * images.element_size()
    plan = MultiCrop(
        global_size=12, local_size=8, n_local=1, jitter=0, grey=0, mean=(0.5,) * 4, std=(0.2,) * 4
    ).plan()
    loader = Loader(
        source, plan, batch_size=4, seed=1, device=device, quarantine=Quarantine(None, 3)
    )
    ((batch,),) = list(loader.steps(0, 1))
    assert batch.label.tolist() == [-1] * 4
    return [view.cpu().numpy() for view in batch.views]


def test_views_of_a_source_in_memory():
    for deep, small in zip(
        views_of(torch.stack(tensors(DEEP_NHWC))),
        views_of(torch.stack(tensors(SMALL_NHWC))),
        strict=True,
    ):
        # Views of 8 bits are rounded to 8 bits after each of two passes.
        close(deep, small, atol=1.5 / 255 / 0.2)


@pytest.mark.gpu
def test_views_of_16_bits_on_a_gpu():
    images = torch.stack(tensors(DEEP_NHWC))
    for there, here in zip(views_of(images, "cuda"), views_of(images), strict=True):
        close(there, here, atol=1e-4)


def test_a_run_of_four_channels_from_first_to_last(tmp_path):
    labels = np.arange(40) % 2
    images = (
        RNG.integers(0, 3000, (40, 16, 16, 4), dtype=np.uint16) + 900 * labels[:, None, None, None]
    )
    np.savez(
        tmp_path / "deep.npz",
        x_train=images[:30].astype(np.uint16),
        y_train=labels[:30],
        x_test=images[30:].astype(np.uint16),
        y_test=labels[30:],
    )
    views = [f"--objective.views.{k}" for k in ("mean", "std")]
    four = ["--data", f"npz:{tmp_path}/deep.npz", "--channels", 4, views[0], *[0.02] * 4]
    done = pretrain(tmp_path / "run", *four, views[1], *[0.01] * 4)
    assert done.code == 0, done.err
    protocols = ["knn", "neighbours", "saliency", "pca", "parts", "map", "xray"]
    done = vitrail("evaluate", tmp_path / "run", "--workers", 0, "--protocols", *protocols)
    assert done.code == 0, done.err
    assert vitrail("report", tmp_path / "run").code == 0
    figures = {path.name for path in (tmp_path / "run/figures").iterdir()}
    assert {"neighbours.png", "saliency.png", "pca.png", "parts.png", "map.png"} <= figures
