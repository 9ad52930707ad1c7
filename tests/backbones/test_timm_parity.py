"""Our ViT is timm's: same keys, same numbers. timm is the oracle, with weights drawn by it."""

import pytest
import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.rounding import EXACT, float64_kept
from vitrail.backbones.create import create_backbone
from vitrail.backbones.embedding import resize_matrix, resize_positions


@pytest.fixture(scope="module")
def pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    """timm's ViT-T/16 and ours with its weights, in float64; positions are given some structure."""
    torch.manual_seed(0)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=0, dynamic_img_size=True
    ).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    ours = create_backbone("vit_tiny_patch16_224")
    ours.load_state_dict(theirs.state_dict())  # strict: the layouts are one and the same
    return theirs.double(), ours.double()


def images_of(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)


@float64_kept()  # for timm, which resamples positions in float32
@pytest.mark.parametrize("size", [224, 96])
def test_features_equal_timms(pair: tuple[torch.nn.Module, torch.nn.Module], size: int) -> None:
    theirs, ours = pair
    images = images_of(size)
    with torch.no_grad():
        expected, actual = theirs.forward_features(images), ours(images)
    torch.testing.assert_close(actual.pooled, expected[:, 0], **EXACT)
    torch.testing.assert_close(actual.patches.flatten(1, 2), expected[:, 1:], **EXACT)


@float64_kept()
def test_last_layer_maps_and_keys_equal_timms(
    pair: tuple[torch.nn.Module, torch.nn.Module],
) -> None:
    theirs, ours = pair
    images = images_of(96)
    inputs: list[torch.Tensor] = []
    attention = theirs.blocks[-1].attn
    handle = attention.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        theirs.forward_features(images)
        handle.remove()
        q, k, _ = attention.qkv(inputs[0]).reshape(2, 37, 3, 3, 64).permute(2, 0, 3, 1, 4)
        rows = (q @ k.transpose(-2, -1) / 8).softmax(-1)[:, :, 0, 1:]
        keys = attention.qkv(inputs[0])[:, 1:, 192:384]
        maps, our_keys = ours.token_maps(images), ours.token_keys(images)
    torch.testing.assert_close(maps, rows.reshape(2, 3, 6, 6), **EXACT)
    torch.testing.assert_close(our_keys, keys.reshape(2, 6, 6, 192), **EXACT)


@float64_kept()
@pytest.mark.parametrize("new", [(6, 6), (5, 9), (20, 17), (14, 3), (14, 14), (1, 1)])
def test_positions_are_resampled_as_timm_does(new: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(4)
    positions = torch.randn(1, 1 + 14 * 14, 24, generator=generator, dtype=torch.float64)
    expected = timm.layers.resample_abs_pos_embed(positions, list(new), [14, 14])
    actual = resize_positions(positions, 14, new)
    torch.testing.assert_close(actual, expected, **EXACT)
    torch.testing.assert_close(actual[:, 0], positions[:, 0], rtol=0, atol=0)


def test_gradients_flow_through_resampled_positions() -> None:
    positions = torch.randn(1, 17, 3, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        resize_positions(positions, 4, (3, 5))  # must not poison the cached filters
    assert torch.autograd.gradcheck(lambda p: resize_positions(p, 4, (3, 5)), (positions,))


def test_tracing_at_another_size_leaves_nothing_behind() -> None:
    """A cached tensor would be the tracer's, and every later pass a trace's."""
    backbone = create_backbone("vit_nano_patch4_32").eval()
    images = torch.randn(1, 3, 44, 44)
    with FakeTensorMode(allow_non_fake_inputs=True):
        backbone(images)
    assert type(backbone(images).pooled) is torch.Tensor


@pytest.mark.parametrize("antialias", [True, False])
def test_positions_filter_is_torchs(antialias: bool) -> None:
    for old, new in ((14, 6), (7, 7), (3, 16), (37, 16), (5, 1), (1, 4)):
        identity = torch.eye(old, dtype=torch.float64)[None, None]
        how = {"size": (new, old), "antialias": True}
        if not antialias:
            how = {"scale_factor": ((new + 0.1) / old, 1.0)}
        expected = torch.nn.functional.interpolate(identity, mode="bicubic", **how)[0, 0]
        actual = torch.from_numpy(resize_matrix(old, new, antialias))
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
