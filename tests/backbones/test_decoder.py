"""Decoders of masked autoencoders: patches and back, positions, formulas in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from vitrail.backbones.decoder import (
    CRATEDecoder,
    CRATEDecoderBlock,
    ViTDecoder,
    patchify,
    sincos_positions,
    unpatchify,
)

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    for parameter in module.double().parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator) / 2
    return module


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def norm(layer: nn.LayerNorm, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return centred / scale * layer.weight + layer.bias


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Computes the attention of one image [n D], heads concatenated."""
    parts = []
    for qh, kh, vh in zip(*(x.chunk(heads, dim=1) for x in (q, k, v)), strict=True):
        scores = (qh @ kh.T / math.sqrt(qh.shape[1])).exp()
        parts.append(scores / scores.sum(1, keepdim=True) @ vh)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("size", "patch"), [((4, 12), 4), ((6, 2), 1), ((10, 5), 5)])
def test_patches_go_back_to_where_they_were(
    size: tuple[int, int], patch: int, channels: int
) -> None:
    images = random(2, channels, *size)
    patches = patchify(images, patch)
    grid = size[0] // patch, size[1] // patch
    assert patches.shape == (2, grid[0] * grid[1], patch**2 * channels)
    assert torch.equal(unpatchify(patches, grid, patch), images)


def test_patches_are_in_maes_order() -> None:
    """Patches row by row; in a patch, rows, then columns, then channels."""
    images = random(2, 3, 4, 6)
    patches = patchify(images, 2)
    for h in range(2):
        for w in range(3):
            pixels = [
                images[1, c, 2 * h + y, 2 * w + x]
                for y in range(2)
                for x in range(2)
                for c in range(3)
            ]
            assert torch.equal(patches[1, 3 * h + w], torch.stack(pixels))


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (1, 1)])
def test_positions_are_maes_formula(grid: tuple[int, int], class_token: bool) -> None:
    dim = 16
    expected = [[0.0] * dim] if class_token else []
    for row in range(grid[0]):
        for column in range(grid[1]):
            features = []
            for at in (column, row):  # MAE: "here w goes first"
                angles = [at / 10_000 ** (k / (dim / 4)) for k in range(dim // 4)]
                features += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            expected.append(features)
    positions = sincos_positions(dim, grid, class_token)
    assert positions.dtype == torch.float64
    exact = torch.tensor(expected, dtype=torch.float64)[None]
    torch.testing.assert_close(positions, exact, rtol=1e-14, atol=1e-14)


def test_positions_made_in_inference_mode_take_part_in_training() -> None:
    with torch.inference_mode():
        sincos_positions(24, (7, 3))
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    (factor * sincos_positions(24, (7, 3))).sum().backward()
    assert factor.grad is not None


def crate_layer(block: CRATEDecoderBlock, x: Tensor) -> Tensor:
    """Facts §3: h = LN(x) Wᵀ, x = h − MSSA(LN h), for one image."""
    h = norm(block.norm1, x, 1e-5) @ block.weight.T
    w = norm(block.norm2, h, 1e-5) @ block.attn.qkv.weight.T
    return h - linear(block.attn.proj, attend(w, w, w, block.attn.heads))


@pytest.mark.parametrize("prefix", [1, 3])
def test_the_crate_decoder_is_its_formula(prefix: int) -> None:
    decoder = CRATEDecoder(12, 3, patch_size=2, depth=2, in_chans=4, n_prefix=prefix)
    decoder = randomised(decoder)
    tokens = random(2, prefix + 5, 12)
    actual = decoder(tokens)
    assert actual.shape == (2, 5, 16)
    for x, result in zip(tokens, actual, strict=True):
        for block in decoder.blocks:
            x = crate_layer(block, x)
        expected = linear(decoder.pred, norm(decoder.norm, x, 1e-6))[prefix:]
        torch.testing.assert_close(result, expected, **CLOSE)


def test_a_crate_decoder_layer_packs_resolutions() -> None:
    block = randomised(CRATEDecoderBlock(12, 3))
    batches = [random(2, 5, 12), random(3, 2, 12, seed=3)]
    packed = block(torch.cat([x.flatten(0, 1) for x in batches]), [(2, 5), (3, 2)])
    apart = [crate_layer(block, x) for batch in batches for x in batch]
    torch.testing.assert_close(packed, torch.cat(apart), **CLOSE)


def vit_layer(block: nn.Module, x: Tensor, heads: int) -> Tensor:
    q, k, v = linear(block.attn.qkv, norm(block.norm1, x, 1e-6)).chunk(3, dim=1)
    x = x + linear(block.attn.proj, attend(q, k, v, heads))
    hidden = linear(block.mlp.fc1, norm(block.norm2, x, 1e-6))
    return x + linear(block.mlp.fc2, hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)


@pytest.mark.parametrize("visible", [6, 2, 0])
def test_the_vit_decoder_is_its_formula(visible: int) -> None:
    decoder = randomised(ViTDecoder(10, patch_size=2, width=12, depth=2, heads=3, in_chans=1))
    encoded = random(2, 1 + visible, 10)
    # Patches in the order (visible, hidden), for each image another.
    orders = [[4, 1, 0, 5, 3, 2], [0, 5, 2, 1, 4, 3]]
    restore = torch.tensor([[order.index(patch) for patch in range(6)] for order in orders])
    actual = decoder(encoded, restore, (2, 3))
    assert actual.shape == (2, 6, 4)
    for x, order, result in zip(encoded, orders, actual, strict=True):
        inner = linear(decoder.embed, x)
        placed = decoder.mask_token[0].expand(6, 12).clone()
        placed[order[:visible]] = inner[1:]
        y = torch.cat([inner[:1], placed]) + sincos_positions(12, (2, 3))[0]
        for block in decoder.blocks:
            y = vit_layer(block, y, 3)
        expected = linear(decoder.pred, norm(decoder.norm, y, 1e-6))[1:]
        torch.testing.assert_close(result, expected, **CLOSE)


def test_gradients_are_those_of_the_values() -> None:
    crate = randomised(CRATEDecoder(4, 2, patch_size=1, depth=1))
    vit = randomised(ViTDecoder(4, patch_size=1, width=4, depth=1, heads=2))
    restore = torch.tensor([[2, 0, 1, 3]])
    for decoder, more in ((crate, ()), (vit, (restore, (2, 2)))):
        names = list(dict(decoder.named_parameters()))

        def values(x: Tensor, *weights: Tensor, decoder=decoder, more=more, names=names) -> Tensor:
            named = dict(zip(names, weights, strict=True))
            return torch.func.functional_call(decoder, named, (x, *more))

        inputs = [random(1, 3, 4).requires_grad_(), *decoder.parameters()]
        assert torch.autograd.gradcheck(values, inputs, fast_mode=True)
        values(*inputs).sin().sum().backward()
        assert [n for n, p in decoder.named_parameters() if not p.grad.any()] == []


def test_bf16_autocast_stays_close() -> None:
    torch.manual_seed(0)
    tokens = random(2, 5, 32).float()
    restore = torch.arange(8).flip(0).expand(2, -1)
    crate = CRATEDecoder(32, 2, patch_size=4, depth=2)
    vit = ViTDecoder(32, patch_size=4, width=16, depth=2, heads=2)
    for decoder, more in ((crate, ()), (vit, (restore, (4, 2)))):
        exact = decoder(tokens, *more)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = decoder(tokens, *more)
        torch.testing.assert_close(exact, rough.float(), rtol=0.05, atol=0.1)


def test_initial_weights_have_the_published_distributions() -> None:
    torch.manual_seed(0)
    vit = ViTDecoder(64, patch_size=4, width=128, depth=1, heads=2)
    bound = math.sqrt(6 / (128 + 512))  # Xavier
    assert 0.98 * bound < vit.blocks[0].mlp.fc1.weight.abs().max() <= bound
    assert vit.mask_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert not vit.blocks[0].mlp.fc1.bias.any()
    crate = CRATEDecoder(128, 2, patch_size=4, depth=1)
    assert 0.98 * math.sqrt(6 / 128) < crate.blocks[0].weight.abs().max() <= math.sqrt(6 / 128)
    linear_bound = math.sqrt(6 / 256)
    assert 0.98 * linear_bound < crate.blocks[0].attn.qkv.weight.abs().max() <= linear_bound


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="patch size 4 does not divide the image side 6"):
        patchify(torch.zeros(1, 3, 8, 6), 4)
    with pytest.raises(ValueError, match="6 patches do not fill a grid of 2 × 2"):
        unpatchify(torch.zeros(1, 6, 12), (2, 2), 2)
    with pytest.raises(ValueError, match="10 values are not 2 × 2"):
        unpatchify(torch.zeros(1, 4, 10), (2, 2), 2)
    with pytest.raises(ValueError, match="multiple of 4 features, not 6"):
        sincos_positions(6, (2, 2))
    with pytest.raises(ValueError, match=r"width 12 .* its 5 heads"):
        ViTDecoder(8, patch_size=2, width=12, heads=5)
    decoder = ViTDecoder(8, patch_size=2, width=8, depth=1, heads=2)
    restore = torch.arange(4)[None]
    with pytest.raises(ValueError, match="4 patches do not fill a grid of 2 × 3"):
        decoder(torch.zeros(1, 3, 8), restore, (2, 3))
    with pytest.raises(ValueError, match="5 visible patches are more than the 4"):
        decoder(torch.zeros(1, 6, 8), restore, (2, 2))
