"""JPEGs decoded at a reduced size: the views do not change visibly."""

import io
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.data import contract
from vitrail.data.contract import GAP, BadSampleError, Detail, Look
from vitrail.data.decode.image import decode_bytes, decode_file
from vitrail.data.sources.registry import open_source
from vitrail.data.views.apply import apply_views
from vitrail.data.views.boxes import BOX_UNIFORMS, sample_boxes
from vitrail.data.views.contract import View
from vitrail.data.views.plan import ViewPlan
from vitrail.nn.random import Draws

BACKGROUNDS = Path("/usr/share/backgrounds/gnome")
DINO = Detail((Look(224, 0.4, (3 / 4, 4 / 3)), Look(96, 0.05, (3 / 4, 4 / 3))))
THIRDS = (3 / 4, 4 / 3)


def by_force(by: int) -> Detail:
    """Returns a detail that reduces images of 8 x 8 pixels and more by `by`."""

    class Forced(Detail):
        def reduction(self, height: int, width: int) -> int:
            return by

    return Forced(())


def waves(height: int, width: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    colours = [np.sin(x / 9 + y / 31), np.cos(y / 7), np.sin((x + y) / 15)]
    return Image.fromarray((127 + 100 * np.stack(colours, -1)).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


@lru_cache(maxsize=3)
def photograph(name: str) -> bytes:
    path = BACKGROUNDS / name
    if not path.exists():
        pytest.skip(f"no {path} (Debian's gnome-backgrounds)")
    with Image.open(path) as image:
        return jpeg(image.convert("RGB").crop((1024, 1024, 3072, 3072)))


# ---- how much


@pytest.mark.parametrize(
    ("height", "width", "by"),
    [
        (375, 500, 1),
        (1200, 1600, 1),
        (3000, 4000, 2),  # a local box is of 671 pixels at least, of which a view keeps 96
        (4000, 6000, 4),
        (8000, 12000, 8),
        (200, 90000, 1),  # no box is higher than the image
    ],
)
def test_reductions_of_dinos_views(height, width, by):
    assert DINO.reduction(height, width) == by
    assert DINO.reduction(width, height) == by


def test_a_whole_image_that_is_looked_at():
    whole = Detail((Look(224, 1.0, (1.0, 1.0)),))
    assert [whole.reduction(n, n) for n in (895, 896, 1792, 3584, 10**5)] == [1, 2, 4, 8, 8]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(30, 6000),
    st.integers(30, 6000),
    st.integers(8, 224),
    st.floats(0.02, 1),
    st.floats(0.4, 2.5),
    st.floats(1, 2),
    st.integers(0, 99),
)
def test_no_box_is_smaller_than_promised(height, width, size, low, narrow, factor, seed):
    ratio = (narrow, narrow * factor)
    by = Detail((Look(size, low, ratio),)).reduction(height, width)
    uniforms = torch.rand(256, BOX_UNIFORMS, generator=torch.Generator().manual_seed(seed))
    sizes = torch.tensor([[height, width]]).expand(256, 2)
    boxes = sample_boxes((low, 1.0), ratio, uniforms, sizes)
    least = boxes[:, 2:].min().item() + 0.5  # sides are rounded
    assert by == 1 or least >= GAP * size * by


# ---- whether it shows


def plan(scale_of_small: float) -> ViewPlan:
    """Boxes and flips only: a threshold on colours could turn any difference into a large one."""
    plain = {"jitter": 0, "grey": 0, "blur": 0, "solarize": 0}
    views = [View(96, (scale_of_small, 0.4), **plain)] * 10 + [View(224, (0.4, 1), **plain)] * 2
    return ViewPlan(tuple(views), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def differences(data: bytes, views: ViewPlan, detail: Detail) -> torch.Tensor:
    """Returns the differences of all pixels of all drawn views, in 1/255."""
    whole, reduced = decode_bytes(data, 3, "whole"), decode_bytes(data, 3, "reduced", detail)
    by = whole.shape[1] // reduced.shape[1]
    sizes = torch.tensor([tuple(reduced.shape[1:])] * 2)
    params = views.sample(Draws(0, 0, 2, 0, 2), sizes)
    seen = apply_views([reduced] * 2, params, "cpu")
    exact = apply_views([whole] * 2, replace(params, box=params.box * by), "cpu")
    parts = [(a - b).abs().flatten() * 255 for a, b in zip(seen, exact, strict=True)]
    return torch.cat(parts)


def share_below(limit: float, of: torch.Tensor) -> float:
    return (of < limit).double().mean().item()


@pytest.mark.parametrize("name", ["wood-l.webp", "licorice-l.webp", "adwaita-l.webp"])
def test_views_of_photographs_do_not_show_it(name):
    data = photograph(name)
    assert plan(0.05).detail.reduction(2048, 2048) == 2
    moved = differences(data, plan(0.05), plan(0.05).detail)
    assert share_below(2.5, moved) > 0.99  # 2/255, and half a step of rounding
    assert moved.mean() < 0.5


@pytest.mark.parametrize("name", ["wood-l.webp", "licorice-l.webp"])
@pytest.mark.parametrize("by", [2, 4])
def test_nor_does_the_smallest_box(name, by):
    side = int(2048 / by / GAP)  # of a view of the whole image
    views = ViewPlan(
        (View(side, (1, 1), (1, 1), jitter=0, grey=0, blur=0),), (0.0,) * 3, (1.0,) * 3
    )
    assert views.detail.reduction(2048, 2048) == by
    moved = differences(photograph(name), views, views.detail)
    assert share_below(4.5, moved) > 0.99
    assert moved.mean() < 1.5


def test_synthetic_image():
    data = jpeg(waves(1792, 1792))
    moved = differences(data, plan(0.3), plan(0.3).detail)
    assert share_below(2.5, moved) > 0.99
    assert moved.mean() < 0.5


def test_a_smaller_gap_would_show(monkeypatch):
    monkeypatch.setattr(contract, "GAP", 1.0)
    moved = differences(photograph("licorice-l.webp"), plan(0.05), plan(0.05).detail)
    assert share_below(2.5, moved) < 0.98


# ---- how


@pytest.mark.parametrize("by", [2, 4, 8])
@pytest.mark.parametrize("size", [(8, 8), (15, 9), (17, 31), (63, 64), (100, 23), (801, 1203)])
def test_sides_are_divided_and_rounded_up(size, by):
    height, width = size
    image = decode_bytes(jpeg(waves(height, width)), 3, "x", by_force(by))
    assert image.shape == (3, -(-height // by), -(-width // by))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}]
)
def test_kinds_of_jpeg(options):
    picture = waves(400, 640)
    image = decode_bytes(jpeg(picture, **options), 3, "x", by_force(4))
    means = np.asarray(picture.reduce(4)).transpose(2, 0, 1).astype(int)
    assert np.abs(image.numpy() - means).mean() < 3


def test_grey_is_that_of_the_colours():
    data = jpeg(waves(400, 640))
    colours, grey = (decode_bytes(data, c, "x", by_force(2)) for c in (3, 1))
    exact = np.tensordot([0.299, 0.587, 0.114], colours.numpy(), 1)
    assert grey.shape == (1, 200, 320)
    assert np.abs(grey[0].numpy() - exact).max() <= 1
    of_grey = decode_bytes(jpeg(waves(400, 640).convert("L")), 1, "x", by_force(2))
    assert np.abs(of_grey[0].numpy() - exact).mean() < 2


def test_cmyk():
    data = jpeg(Image.new("CMYK", (64, 48), (0, 255, 255, 0)))
    image = decode_bytes(data, 3, "x", by_force(4))
    assert image.shape == (3, 12, 16)
    assert image[:, 5, 5].tolist()[0] > 240


def test_an_image_on_its_side(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    (tmp_path / "a.jpg").write_bytes(jpeg(waves(90, 160), exif=exif))
    lying = decode_bytes(jpeg(waves(90, 160)), 3, "x", by_force(2))
    upright = decode_file(tmp_path / "a.jpg", 3, detail=by_force(2))
    assert upright.shape == (3, 80, 45)
    assert torch.equal(upright, lying.rot90(-1, (1, 2)))


def test_stereo_jpeg(tmp_path):
    waves(90, 160).save(tmp_path / "a.mpo", save_all=True, append_images=[waves(90, 160)])
    assert decode_file(tmp_path / "a.mpo", 3, detail=by_force(2)).shape == (3, 45, 80)


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "gif", "tif"])
def test_other_formats_come_whole(tmp_path, suffix):
    waves(90, 160).save(tmp_path / f"a.{suffix}")
    whole = decode_file(tmp_path / f"a.{suffix}", 3)
    assert torch.equal(decode_file(tmp_path / f"a.{suffix}", 3, detail=by_force(8)), whole)


def test_the_limit_is_of_the_whole_image(tmp_path):
    header = bytearray(jpeg(waves(16, 16)))
    place = header.index(b"\xff\xc0") + 5
    header[place : place + 4] = (9500).to_bytes(2, "big") * 2
    (tmp_path / "a.jpg").write_bytes(header)
    with pytest.raises(BadSampleError, match="9,500 x 9,500 pixels"):
        decode_file(tmp_path / "a.jpg", 3, detail=by_force(8))


def test_bytes_are_decoded_as_files_are(tmp_path):
    data = jpeg(waves(90, 160))
    (tmp_path / "a.jpg").write_bytes(data)
    for channels in (1, 3):
        for detail in (None, by_force(2)):
            exact = decode_file(tmp_path / "a.jpg", channels, detail=detail)
            for kind in (data, memoryview(data)):
                assert torch.equal(decode_bytes(kind, channels, "x", detail), exact)
    bad = {"the file is empty": b"", "is not an image": b"text", "is damaged": data[:900]}
    for reason, content in bad.items():
        with pytest.raises(BadSampleError, match=reason) as caught:
            decode_bytes(content, 3, "the id")
        assert caught.value.id == "the id"


@pytest.mark.parametrize("kind", ["folder", "pairs", "voc"])
def test_sources_pass_it_on(tmp_path, kind):
    inside = tmp_path / "JPEGImages"
    inside.mkdir()
    (inside / "a.jpg").write_bytes(jpeg(waves(90, 160)))
    (tmp_path / "t.csv").write_text("path,caption\nJPEGImages/a.jpg,waves\n")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\n")
    source = open_source(f"{kind}:{tmp_path / 't.csv' if kind == 'pairs' else tmp_path}")
    assert source.read(0).image.shape == (3, 90, 160)
    assert source.read(0, by_force(2)).image.shape == (3, 45, 80)
