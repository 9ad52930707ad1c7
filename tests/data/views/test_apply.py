"""Pixels of views against Pillow and torchvision at the same parameters."""

import dataclasses
import itertools
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF
from torchvision.transforms.v2 import functional as TF2

from tests.rounding import EXACT, float64_kept, rounding_bound
from vitrail.data.views import apply_batched, apply_cpu, colour
from vitrail.data.views.apply import apply_views
from vitrail.data.views.apply_batched import crop_batched, recolour_batched
from vitrail.data.views.contract import View
from vitrail.data.views.operations.blur import blur, blur_one, gaussian
from vitrail.data.views.plan import MultiCrop, RandomResizedCrop, ViewParams, ViewPlan
from vitrail.nn.random import Draws

BACKGROUNDS = Path("/usr/share/backgrounds/gnome")
PLAIN = {"flip": 0, "jitter": 0, "grey": 0, "blur": 0}


def smooth_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Returns coloured waves and a soft disc: smooth, like a photograph."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    channels = []
    for _ in range(3):
        fx, fy, phase = generator.uniform(3, 14, 3)
        wave = np.sin(fx * x * 6 + phase) * np.cos(fy * y * 5)
        disc = 1 / (1 + np.exp(60 * (np.hypot(x - 0.4, y - 0.3) - 0.2)))
        channels.append(127 + 80 * wave + 45 * disc * generator.uniform(-1, 1))
    return torch.from_numpy(np.stack(channels).clip(0, 255).astype(np.uint8))


@lru_cache(maxsize=1)
def photographs() -> list[torch.Tensor]:
    images = [smooth_image(375, 500), smooth_image(500, 375, seed=1)]
    for path in sorted(BACKGROUNDS.glob("*-l.webp"))[:2]:
        picture = Image.open(path).convert("RGB").resize((500, 375), Image.Resampling.LANCZOS)
        images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous())
    return images


def sample(view: View, images: list[torch.Tensor], seed: int = 0) -> ViewParams:
    plan = ViewPlan((view,), (0.0,) * 3, (1.0,) * 3)
    sizes = torch.tensor([image.shape[1:] for image in images])
    return plan.sample(Draws(seed, 0, len(images), 0, len(images)), sizes)


def pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def pillow_crop(image: torch.Tensor, params: ViewParams, b: int, size: int) -> Image.Image:
    box = params.box[0, b].tolist()
    crop = TF.resized_crop(pillow(image), *box, [size, size], InterpolationMode.BICUBIC)
    return TF.hflip(crop) if params.flip[0, b] else crop


def share_off(ours: torch.Tensor, theirs: torch.Tensor, by: float) -> float:
    """Returns the share of values that differ by more than `by` / 255."""
    return ((ours - theirs).abs() * 255 > by).double().mean().item()


@pytest.mark.parametrize(
    ("size", "scale"), [(224, (0.4, 1.0)), (96, (0.05, 0.4)), (224, (0.01, 0.05)), (7, (0.4, 1.0))]
)
def test_crop_resize_flip_is_pillows(size, scale):
    images = photographs()
    params = sample(View(size, scale, **(PLAIN | {"flip": 0.5})), images)
    assert params.flip.any()
    assert not params.flip.all()
    [ours] = apply_views(images, params, "cpu")
    for b, image in enumerate(images):
        theirs = TF.to_tensor(pillow_crop(image, params, b, size))
        assert share_off(ours[b], theirs, 2) < 0.01, b
        assert abs((ours[b] - theirs).mean()) * 255 < 0.05, b  # not shifted, not darker


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resize_of_16_bits_is_torchs_antialiased_filter_on_floats(mode):
    image = (smooth_image(211, 333).int() * 257 - 40).clamp(min=0).to(torch.uint16)
    for size in (300, 96, 24):
        params = sample(View(size, (0.2, 0.9), interpolation=mode, **PLAIN), [image])
        top, left, h, w = params.box[0, 0].tolist()
        box = image.double()[None, :, top : top + h, left : left + w]
        theirs = torch.nn.functional.interpolate(box, (size, size), mode=mode, antialias=True)
        for form in ([image], image[None]):
            [ours] = apply_views(form, params, "cpu")
            # Whole 65535ths: half of one, and what float32 adds to it.
            assert (ours.double() * 65535 - theirs.clamp(0, 65535)).abs().max() < 0.55


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bits_stay_whole_and_in_range_where_the_filter_overshoots(channels):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 2, (channels, 40, 50), generator=generator).mul(65535).to(torch.uint16)
    off = {"saturation": 0, "hue": 0}
    view = View(32, (0.2, 0.9), **PLAIN | off)
    plan = ViewPlan((view,) * 3, (0.0,) * channels, (1.0,) * channels)
    params = plan.sample(Draws(0, 0, 1, 0, 1), torch.tensor([[40, 50]]))
    for form in ([image], image[None]):
        values = apply_views(form, params, "cpu")[0].double() * 65535
        assert values.min() == 0
        assert (values - 65535).max().abs() < 0.01
        assert (values - values.round()).abs().max() < 0.01


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [7, 32, 96])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_products_resize_as_torchs_kernel_to_the_bit(channels, size, mode):
    """Up to a shrinking of 4, where float32 holds the sums of integers exactly."""
    generator = torch.Generator().manual_seed(size)
    longest = 4 * size
    shape = (2, channels, longest + 3, longest + 9)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    view = View(size, (0.01, 0.9), interpolation=mode, **PLAIN | {"flip": 0.5})
    plan = ViewPlan((view,) * 4, (0.0,) * 3, (1.0,) * 3)
    params = plan.sample(Draws(size, 0, 2, 0, 2), torch.tensor([shape[2:]] * 2))
    out = torch.empty(4, 2, channels, size, size)
    crop_batched(images, params, [out])
    for v, b in itertools.product(range(4), range(2)):
        top, left, h, w = params.box[v, b].tolist()
        box = images[b : b + 1, :, top : top + h, left : left + w]
        theirs = torch.nn.functional.interpolate(box, (size, size), mode=mode, antialias=True)
        theirs = theirs.flip(3) if params.flip[v, b] else theirs
        assert torch.equal(out[v, b], theirs[0].float())


def test_bilinear_crops_are_torchvisions():
    images = photographs()
    view = View(64, (0.1, 1.0), interpolation="bilinear", **PLAIN)
    params = sample(view, images)
    [ours] = apply_views(images, params, "cpu")
    for b, image in enumerate(images):
        box = params.box[0, b].tolist()
        # version 2, which resizes in 8 bits; version 1 rounds once, after both passes
        theirs = TF2.resized_crop(image, *box, [64, 64], InterpolationMode.BILINEAR)
        assert share_off(ours[b], theirs / 255, 0.1) < 1e-3
        assert share_off(ours[b], theirs / 255, 1.1) == 0


def test_views_of_one_plan_have_one_filter():
    views = (View(8, (0.5, 1.0)), View(8, (0.5, 1.0), interpolation="bilinear"))
    with pytest.raises(ValueError, match="differ in interpolation"):
        ViewPlan(views, (0.0,) * 3, (1.0,) * 3)


def test_padding_and_groups_of_mixed_sizes_change_nothing(monkeypatch):
    images = [smooth_image(40 + 9 * i, 90 - 13 * i, i) for i in range(5)]
    params = sample(View(24, (0.2, 1.0), **PLAIN), images)
    together, apart = torch.empty(1, 5, 3, 24, 24), torch.empty(1, 5, 3, 24, 24)
    crop_batched(images, params, [together])
    monkeypatch.setattr(apply_batched, "_STACK_VALUES", 3 * 90 * 60)
    assert len(list(apply_batched._groups(images))) > 2
    crop_batched(images, params, [apart])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("bits", [8, 16])
def test_image_by_image_and_the_batch_at_once_give_the_same_pixels(bits):
    """The applier of accelerators against that of CPUs, in levels of 8 bits."""
    small = torch.stack([smooth_image(40, 56, seed) for seed in range(24)])
    large = torch.stack([image for image in photographs() if image.shape[1:] == (375, 500)])
    for images in (small, large):
        if bits == 16:
            images = (images.int() * 257).to(torch.uint16)
        plan = MultiCrop(global_size=64, local_size=40, n_local=3, solarize=0.5).plan()
        plan = dataclasses.replace(plan, mean=(0.0,) * 3, std=(1.0,) * 3)
        n = len(images)
        params = plan.sample(Draws(1, 2, n, 0, n), torch.tensor([images.shape[2:]] * n))
        native = [torch.empty(v, n, 3, s, s) for s, v in plan.resolutions]
        apply_cpu.apply_native(list(images), params, native)
        batched = apply_batched_views(list(images), params)
        for a, b in zip(native, batched, strict=True):
            assert share_off(a.flatten(0, 1), b, 1.001) < 1e-3  # asked of all devices
            assert share_off(a.flatten(0, 1), b, 0.1) < 1e-3  # and much nearer in fact


def apply_batched_views(images: list[torch.Tensor], params: ViewParams) -> list[torch.Tensor]:
    views = [torch.empty(v, len(images), 3, s, s) for s, v in params.plan.resolutions]
    crop_batched(images, params, views)
    flat = [view.flatten(0, 1) for view in views]
    recolour_batched(flat, params, float(torch.iinfo(images[0].dtype).max))
    return flat


def test_rows_are_view_major_and_slices_are_the_whole():
    images = [smooth_image(30 + i, 50 - i, i) for i in range(6)]
    plan = MultiCrop(global_size=24, local_size=12, n_local=2).plan()
    sizes = torch.tensor([image.shape[1:] for image in images])
    params = plan.sample(Draws(0, 0, 6, 0, 6), sizes)
    whole = apply_views(images, params, "cpu")
    assert [tuple(v.shape) for v in whole] == [(12, 3, 24, 24), (12, 3, 12, 12)]
    for start, count in ((0, 3), (3, 3), (2, 1)):
        part = apply_views(images[start : start + count], params.narrow(start, count), "cpu")
        for whole_views, part_views in zip(whole, part, strict=True):
            expected = whole_views.unflatten(0, (2, 6))[:, start : start + count].flatten(0, 1)
            torch.testing.assert_close(part_views, expected, atol=1e-5, rtol=0)


PILLOW_OPS = {
    "brightness": TF.adjust_brightness,
    "contrast": TF.adjust_contrast,
    "saturation": TF.adjust_saturation,
}


@pytest.mark.parametrize("name", PILLOW_OPS)
@pytest.mark.parametrize("factor", [0.613, 1.371])
def test_jitter_is_pillows_to_the_bit(name, factor):
    for image in photographs():
        x = image.float()[None]
        theirs = np.array(PILLOW_OPS[name](pillow(image), factor))
        theirs = torch.from_numpy(theirs).permute(2, 0, 1).float()
        for form in (factor, torch.full((1, 1, 1, 1), factor)):
            ours = getattr(colour, name)(x, form, 255.0)[0]
            assert ((ours - theirs) != 0).double().mean() < 1e-4, name


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.037, 0.1, 0.5])
def test_hue_is_pillows(turns):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 200, 200), generator=generator, dtype=torch.uint8)
    noise[:, :5] = noise[:1, :5]  # grey pixels have no hue
    noise[:2, 5:10] = noise[:1, 5:10]  # and ties of two channels lie where branches meet
    noise[1:, 10:15] = noise[1:2, 10:15]
    noise[:, :, :3] = 0
    for image in (*photographs(), noise):
        theirs = np.array(TF.adjust_hue(pillow(image), turns))
        theirs = torch.from_numpy(theirs).permute(2, 0, 1).float()
        for form in (turns, torch.full((1, 1, 1, 1), turns)):
            ours = colour.hue(image.float()[None], form, 255.0)[0]
            # A quotient's last bit may be decisive; a step of the hue is then 6/255 of the chroma.
            assert ((ours - theirs) != 0).double().mean() < 5e-3
            assert (ours - theirs).abs().max() <= 7


def test_hue_of_16_bits_is_the_exact_one():
    """Against torchvision on floats, which rounds nothing."""
    x = torch.rand(1, 3, 50, 50, generator=torch.Generator().manual_seed(1))
    whole = (x * 65535).round()
    for turns in (-0.31, 0.1):
        ours = colour.hue(whole, turns, 65535.0) / 65535
        torch.testing.assert_close(ours, TF.adjust_hue(whole / 65535, turns), atol=3e-4, rtol=0)


def test_grey_is_pillows_to_the_bit():
    for image in photographs():
        theirs = torch.from_numpy(np.array(TF.to_grayscale(pillow(image), 3))).permute(2, 0, 1)
        assert torch.equal(colour.grey(image.float()[None])[0], theirs.float())


def test_solarize_is_pillows_on_every_value():
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    theirs = np.array(ImageOps.solarize(Image.fromarray(ramp[0].numpy()), threshold=128))
    ours = colour.solarize(ramp.float()[None], 255.0)[0, 0]
    assert torch.equal(ours.to(torch.uint8), torch.from_numpy(theirs))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_is_a_gaussian_and_near_pillows(sigma):
    image = smooth_image(200, 200)
    x = image.double()[None] / 255
    with float64_kept():
        ours = blur(x, gaussian(torch.tensor([sigma]).double()))[0]
    reach = max(1, math.ceil(4 * sigma))
    # In float32, twice a sum of as many terms as there are weights, which are rounded and sum to 1.
    off = rounding_bound(2 * (2 * reach + 1 + 2), scale=1)
    native = blur_one(x.float(), sigma)[0]
    torch.testing.assert_close(native.double(), ours, atol=off, rtol=0)
    # Oracle: the same Gaussian, as a sum over offsets of the image with repeated edges.
    offsets = range(-reach, reach + 1)
    weights = [math.exp(-(o**2) / (2 * sigma**2)) for o in offsets]
    exact = x[0].numpy()
    for axis in (1, 2):
        last = exact.shape[axis] - 1
        places = [(np.arange(last + 1) + o).clip(0, last) for o in offsets]
        shifted = [exact.take(place, axis) for place in places]
        exact = sum(w * s for w, s in zip(weights, shifted, strict=True)) / sum(weights)
    torch.testing.assert_close(ours, torch.from_numpy(exact), **EXACT)
    # Pillow repeats the edge of every box blur, this the edge of the image: they part at the rim.
    # Its box blurs also round down, each pass a little: hence 3, not 2, of 255.
    theirs = TF.to_tensor(pillow(image).filter(ImageFilter.GaussianBlur(sigma)))
    inside = (slice(None), slice(8, -8), slice(8, -8))
    assert share_off(ours[inside], theirs[inside], 3) < 0.01


@float64_kept()
def test_blur_gives_each_image_its_own_sigma():
    x = (torch.arange(32) >= 16).double().expand(3, 3, 32, 32)
    sigma = torch.tensor([0.5, 2.0, 1.0]).double()
    together = blur(x, gaussian(sigma))
    for i in range(3):
        alone = blur(x[i : i + 1], gaussian(sigma[i : i + 1]))
        # Also its own reach: the others must not lengthen its tail.
        torch.testing.assert_close(together[i : i + 1], alone, **EXACT)


def pillow_chain(image: torch.Tensor, params: ViewParams, b: int, size: int) -> Image.Image:
    """Applies torchvision's and DINO's transforms to a Pillow image, with given parameters."""
    x = pillow_crop(image, params, b, size)
    functions = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    drawn = {
        operation: {name: tensor[0, b].tolist() for name, tensor in tensors.items()}
        for operation, tensors in params.operations.items()
    }
    for kind in drawn["jitter"]["order"] if drawn["jitter"]["on"] else ():
        x = functions[kind](x, drawn["jitter"]["factors"][kind])
    if drawn["grey"]["on"]:
        x = TF.to_grayscale(x, 3)
    if drawn["blur"]["on"]:
        x = x.filter(ImageFilter.GaussianBlur(drawn["blur"]["sigma"]))
    return ImageOps.solarize(x, 128) if drawn["solarize"]["on"] else x


@pytest.mark.parametrize(("size", "scale"), [(224, (0.4, 1.0)), (96, (0.05, 0.4))])
def test_whole_chain_is_pillows_in_the_drawn_order(size, scale):
    images = photographs() * 6
    view = View(size, scale, jitter=0.9, grey=0.2, blur=0.5, solarize=0.2)
    params = sample(view, images)
    assert len(params.operations["jitter"]["order"][0].unique(dim=0)) > 5
    for ours in (apply_views(images, params, "cpu"), apply_batched_views(images, params)):
        theirs = [
            TF.to_tensor(pillow_chain(image, params, b, size)) for b, image in enumerate(images)
        ]
        assert share_off(ours[0], torch.stack(theirs), 2) < 0.01


def test_undrawn_operations_leave_pixels_alone():
    images = [smooth_image(40, 40)]
    view = View(32, (0.9, 1.0), jitter=0, grey=0, blur=0, flip=0)
    params = sample(view, images)
    [plain] = apply_views(images, params, "cpu")
    on = torch.ones(1, 1, dtype=torch.bool)
    jitter = {"on": on, "factors": torch.tensor([[[1.0, 1, 1, 0]]])}
    operations = params.operations | {"jitter": params.operations["jitter"] | jitter}
    neutral = dataclasses.replace(params, operations=operations)
    assert torch.equal(apply_views(images, neutral, "cpu")[0], plain)
    assert torch.equal(apply_batched_views(images, neutral)[0], plain)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 40),
    st.sampled_from([1, 3]),
    st.integers(0, 99),
)
def test_output_is_finite_and_in_range_for_any_image(height, width, size, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (channels, height, width)
    image = torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8) * 255  # overshoots
    colours = {"grey": 0.5, "saturation": 0.9, "hue": 0.5} if channels == 3 else {}
    off = {} if channels == 3 else {"grey": 0, "saturation": 0, "hue": 0}
    view = View(size, (0.05, 1.0), brightness=2, contrast=2, solarize=0.5, **colours, **off)
    plan = ViewPlan((view, view), (0.0,) * channels, (1.0,) * channels)
    params = plan.sample(Draws(seed, 0, 1, 0, 1), torch.tensor([[height, width]]))
    [x] = apply_views([image], params, "cpu")
    assert x.shape == (2, channels, size, size)
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert x.min() >= -1e-6
    assert x.max() <= 1 + 1e-6


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_constant_images_stay_constant(value):
    image = torch.full((3, 37, 53), value, dtype=torch.uint8)
    view = View(20, (0.05, 1.0), jitter=0, grey=0.5, blur=1)
    [x] = apply_views([image], sample(view, [image]), "cpu")
    torch.testing.assert_close(x, torch.full_like(x, value / 255), atol=2e-6, rtol=0)


def test_pixels_outside_the_box_never_count():
    image = smooth_image(50, 50)
    view = View(16, (0.1, 0.3), **PLAIN)
    params = sample(view, [image])
    top, left, h, w = params.box[0, 0].tolist()
    poisoned = torch.full_like(image, 255)
    poisoned[:, top : top + h, left : left + w] = image[:, top : top + h, left : left + w]
    for form in (lambda i: [i], lambda i: i[None]):
        a, b = (apply_views(form(i), params, "cpu")[0] for i in (image, poisoned))
        assert torch.equal(a, b)


def test_huge_image_is_cut_before_it_is_converted():
    image = torch.zeros(1, 3000, 20000, dtype=torch.uint8)
    image[:, 1000:1400] = 200
    plan = RandomResizedCrop(8, (0.05, 0.1), mean=(0.0,), std=(1.0,)).plan()
    params = plan.sample(Draws(0, 0, 1, 0, 1), torch.tensor([[3000, 20000]]))
    assert apply_views([image], params, "cpu")[0].isfinite().all()


def test_normalisation():
    image = torch.full((3, 9, 9), 51, dtype=torch.uint8)
    plan = RandomResizedCrop(4).plan()
    params = plan.sample(Draws(0, 0, 1, 0, 1), torch.tensor([[9, 9]]))
    [x] = apply_views([image], params, "cpu")
    expected = (0.2 - torch.tensor(plan.mean)) / torch.tensor(plan.std)
    torch.testing.assert_close(x[0, :, 0, 0], expected, atol=1e-5, rtol=0)


def test_autocast_around_it_changes_nothing():
    images = [smooth_image(30, 30)]
    params = sample(View(16, (0.3, 1.0)), images)
    [plain] = apply_views(images, params, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        [inside] = apply_views(images, params, "cpu")
    assert torch.equal(plain, inside)
    assert inside.dtype == torch.float32


@pytest.mark.parametrize("bits", [8, 16])
def test_an_accelerator_is_sent_parameters_and_never_asked(bits, monkeypatch):
    """On torch's device without data, waiting for a value raises. Copies to it are counted."""
    copies, sent = [], []
    send = apply_batched.send

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            out = operation(*args, **(kwargs or {}))
            if operation is torch.ops.aten._to_copy.default and args[0].device != out.device:
                copies.append(args[0])
            return out

    def counted(tensors, device):
        sent.append(len(tensors))
        return send(tensors, device)

    monkeypatch.setattr(apply_batched, "send", counted)
    dtype = torch.uint8 if bits == 8 else torch.uint16
    images = [torch.empty(3, 40 + i, 50 - i, dtype=dtype, device="meta") for i in range(9)]
    plan = MultiCrop(global_size=24, local_size=12, n_local=3, solarize=0.5).plan()
    sizes = torch.tensor([image.shape[1:] for image in images])
    params = plan.sample(Draws(0, 0, 9, 0, 9), sizes)
    views = [torch.empty(v, 9, 3, s, s, device="meta") for s, v in plan.resolutions]
    with torch.no_grad(), Copies():
        crop_batched(images, params, views)
        recolour_batched([view.flatten(0, 1) for view in views], params, float(2**bits - 1))
    assert len(copies) == len(sent) == 2 + len(plan.resolutions)


def test_views_are_made_though_nothing_compiles(caplog):
    calls = []

    def fails(*_):
        calls.append(1)
        raise OSError("Failed to find C compiler.\nMore of it")

    either = apply_batched._where_it_compiles(colour.brightness, fails)
    x = torch.rand(1, 3, 4, 4)
    for _ in range(2):
        assert torch.equal(either(x, 1.5, 255.0), colour.brightness(x, 1.5, 255.0))
    assert len(calls) == 1
    [message] = [record.getMessage() for record in caplog.records]
    assert message.endswith("torch.compile fails here: Failed to find C compiler.")
    with pytest.raises(OSError, match="Failed"):  # as the operation's own errors are
        apply_batched._where_it_compiles(fails, fails)(x, 1.5, 255.0)


@pytest.mark.gpu
def test_a_gpu_gives_the_pixels_of_a_cpu():
    images = [smooth_image(300 + i, 400 - i, i) for i in range(6)]
    plan = dataclasses.replace(MultiCrop().plan(), mean=(0.0,) * 3, std=(1.0,) * 3)
    sizes = torch.tensor([image.shape[1:] for image in images])
    params = plan.sample(Draws(0, 0, 6, 0, 6), sizes)
    for form in (images, torch.stack([image[:, :300, :390] for image in images])):
        if isinstance(form, torch.Tensor):
            params = plan.sample(Draws(0, 0, 6, 0, 6), torch.tensor([[300, 390]] * 6))
        on_cpu, on_gpu = (apply_views(form, params, device) for device in ("cpu", "cuda"))
        for a, b in zip(on_cpu, on_gpu, strict=True):
            assert share_off(a, b.cpu(), 1.001) < 1e-3
