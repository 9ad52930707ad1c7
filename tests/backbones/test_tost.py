"""ToST as published: its formulas in float64, its counts, and the contract in the shell of XCiT."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.backbones.create import create_backbone
from vitrail.backbones.families import ToSTModel
from vitrail.backbones.stochastic_depth import branch_scales
from vitrail.backbones.tost import ToST
from vitrail.nn.random import Draws

TINY = ToSTModel(16, 16, 2, 2, 4, 1.0)
# Facts §4, with a 1000-way linear head: width, depth, heads, eta, parameters.
PUBLISHED = [
    (192, 12, 4, 1.0, 5_769_328),
    (384, 12, 8, 1.0, 22_589_944),
    (512, 24, 8, 1e-5, 71_481_064),
]


def build(row: ToSTModel = TINY, drop_path: float = 0.0, in_chans: int = 3, **more: object) -> ToST:
    torch.manual_seed(0)
    size = more.pop("img_size", None)
    return row.build(
        "tost", img_size=size, in_chans=in_chans, drop_path=drop_path, overrides=dict(more)
    )


def randomised(backbone: ToST) -> ToST:
    """Float64, every parameter and running statistic away from 0 and 1."""
    generator = torch.Generator().manual_seed(2)
    for name, x in backbone.double().state_dict().items():
        if x.dtype == torch.float64:
            noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
            positive = name.endswith(("running_var", "norm.weight"))
            x.copy_(noise.abs() + 0.5 if positive else noise / 3)
    return backbone


def images_of(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def all_draws(batch_size: int) -> Draws:
    return Draws(seed=0, step=0, batch_size=batch_size, start=0, count=batch_size)


# The model from the paper's formulas, for one image, from a state dict alone.


def norm(sd: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-6).sqrt() * sd[f"{name}.weight"] + sd[f"{name}.bias"]


def linear(sd: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ sd[f"{name}.weight"].T + sd[f"{name}.bias"]


def mlp(sd: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = linear(sd, f"{name}.fc1", x)
    return linear(sd, f"{name}.fc2", hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)


def stem(sd: dict[str, Tensor], image: Tensor, layers: int) -> Tensor:
    x = image[None]
    for i in range(layers):
        conv, bn = f"patch_embed.proj.{2 * i}.0", f"patch_embed.proj.{2 * i}.1"
        x = F.conv2d(x, sd[f"{conv}.weight"], stride=2, padding=1)
        wide = [sd[f"{bn}.{k}"].view(-1, 1, 1) for k in ("running_mean", "running_var")]
        x = (x - wide[0]) / (wide[1] + 1e-5).sqrt() * sd[f"{bn}.weight"].view(-1, 1, 1)
        x = x + sd[f"{bn}.bias"].view(-1, 1, 1)
        if i < layers - 1:
            x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x[0].permute(1, 2, 0)  # [H W D]


def fourier(height: int, width: int) -> Tensor:
    """32 features of the row, then 32 of the column, as sine and cosine in turn."""
    table = torch.empty(height, width, 64, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            angles = (
                2 * math.pi * (row + 1) / (height + 1e-6),
                2 * math.pi * (column + 1) / (width + 1e-6),
            )
            for half, angle in enumerate(angles):
                for k in range(16):
                    at = angle / 10_000 ** (2 * k / 32)
                    table[row, column, 32 * half + 2 * k] = math.sin(at)
                    table[row, column, 32 * half + 2 * k + 1] = math.cos(at)
    return table


def tssa(sd: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    """Facts §3, head by head, token by token."""
    parts = linear(sd, f"{name}.qkv", x).chunk(heads, dim=1)
    scores = []
    for h, w in enumerate(parts):
        unit = w / w.square().sum(0).sqrt()
        scores.append(sd[f"{name}.temp"][h] * unit.square().sum(1))
    weights = torch.stack(scores).exp()
    shares = weights / weights.sum(0)  # over heads
    out = []
    for w, share in zip(parts, shares, strict=True):
        dots = ((share / (share.sum() + 1e-8))[:, None] * w.square()).sum(0)
        out.append(-w * share[:, None] / (1 + dots))
    return linear(sd, f"{name}.proj", torch.cat(out, dim=1))


def class_attention(
    sd: dict[str, Tensor], name: str, x: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """Returns what the class token receives, and its weights [h N]."""
    q, k, v = linear(sd, f"{name}.qkv", x).chunk(3, dim=1)
    rows, received = [], []
    for qh, kh, vh in zip(*(y.chunk(heads, dim=1) for y in (q, k, v)), strict=True):
        weights = (kh @ qh[0] / math.sqrt(qh.shape[1])).exp()
        rows.append(weights / weights.sum())
        received.append(rows[-1] @ vh)
    return linear(sd, f"{name}.proj", torch.cat(received)), torch.stack(rows)


def oracle(backbone: ToST, image: Tensor) -> dict[str, Tensor | list[Tensor]]:
    sd, heads = backbone.state_dict(), backbone.blocks[0].attn.heads
    layers = int(math.log2(backbone.patch_size))
    grid = stem(sd, image, layers)
    table = fourier(*grid.shape[:2])
    projection = sd["pos_embeder.token_projection.weight"][:, :, 0, 0]
    x = grid + table @ projection.T + sd["pos_embeder.token_projection.bias"]
    x = x.flatten(0, 1)
    halves, states = [], []
    for i in range(len(backbone.blocks)):
        at = f"blocks.{i}"
        last = norm(sd, f"{at}.norm1", x)
        x = x + sd[f"{at}.ls1.gamma"] * tssa(sd, f"{at}.attn", last, heads)
        halves.append(x)
        x = x + sd[f"{at}.ls2.gamma"] * mlp(sd, f"{at}.mlp", norm(sd, f"{at}.norm2", x))
        states.append(x)
    keys = linear(sd, f"{at}.attn.qkv", last)
    x = torch.cat([sd["cls_token"][0], x])
    for i in range(2):
        at = f"cls_attn_blocks.{i}"
        u = norm(sd, f"{at}.norm1", x)
        received, rows = class_attention(sd, f"{at}.attn", u, heads)
        z = norm(sd, f"{at}.norm2", x + sd[f"{at}.ls1.gamma"] * torch.cat([received[None], u[1:]]))
        own = z[:1] + sd[f"{at}.ls2.gamma"] * mlp(sd, f"{at}.mlp", z[:1])
        x = torch.cat([own, 2 * z[1:]])
    x = norm(sd, "norm", x)
    return {
        "pooled": x[0],
        "patches": x[1:].unflatten(0, grid.shape[:2]),
        "keys": keys.unflatten(0, grid.shape[:2]),
        "maps": rows[:, 1:].unflatten(1, grid.shape[:2]),
        "own": rows[:, 0],
        "halves": halves,
        "states": states,
    }


@pytest.mark.parametrize(("patch_size", "size"), [(2, (6, 4)), (4, (12, 20)), (16, (48, 32))])
def test_the_model_is_its_formulas(patch_size: int, size: tuple[int, int]) -> None:
    # Not closer than 1e-5: timm computes the Fourier features in float32.
    close = {"rtol": 1e-5, "atol": 1e-5}
    backbone = randomised(build(patch_size=patch_size, img_size=3 * patch_size)).eval()
    images = images_of(2, 3, *size)
    features, states = backbone(images), backbone.layer_states(images)
    maps, keys = backbone.token_maps(images), backbone.token_keys(images)
    for i, image in enumerate(images):
        expected = oracle(backbone, image)
        torch.testing.assert_close(features.pooled[i], expected["pooled"], **close)
        torch.testing.assert_close(features.patches[i], expected["patches"], **close)
        torch.testing.assert_close(keys[i], expected["keys"], **close)
        torch.testing.assert_close(maps[i], expected["maps"], **close)
        torch.testing.assert_close(maps[i].sum((1, 2)) + expected["own"], torch.ones(2).double())
        for state, half, after in zip(states, expected["halves"], expected["states"], strict=True):
            torch.testing.assert_close(state.half[i], half, **close)
            torch.testing.assert_close(state.after[i], after, **close)
    assert [state.name for state in states] == ["blocks.0", "blocks.1"]
    assert [tuple(state.bases.shape) for state in states] == [(2, 16, 8)] * 2


@pytest.mark.parametrize(("width", "depth", "heads", "eta", "parameters"), PUBLISHED)
def test_parameters_with_a_1000_way_head_are_the_published_number(
    width: int, depth: int, heads: int, eta: float, parameters: int
) -> None:
    with torch.device("meta"):
        backbone = build(ToSTModel(224, width, depth, heads, 16, eta))
    own = sum(p.numel() for p in backbone.parameters())
    assert own + width * 1000 + 1000 == parameters


def test_the_keys_are_the_official_ones_but_for_three_names() -> None:
    def official(key: str) -> str:
        for ours, theirs in (("ls1.gamma", "gamma1"), ("ls2.gamma", "gamma2")):
            key = key.replace(ours, theirs)
        return key.replace("attn.proj", "attn.to_out.0") if key.startswith("blocks") else key

    def of_layer(name: str, attention: list[str]) -> set[str]:
        maps = ["norm1", "norm2", "mlp.fc1", "mlp.fc2", *attention]
        keys = {f"{name}.{m}.{kind}" for m in maps for kind in ("weight", "bias")}
        return keys | {f"{name}.gamma1", f"{name}.gamma2"}

    bn = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = {"cls_token", "norm.weight", "norm.bias"}
    expected |= {f"pos_embeder.token_projection.{kind}" for kind in ("weight", "bias")}
    for i in (0, 2, 4, 6):
        expected |= {f"patch_embed.proj.{i}.0.weight"}
        expected |= {f"patch_embed.proj.{i}.1.{kind}" for kind in bn}
    for i in range(2):
        expected |= of_layer(f"blocks.{i}", ["attn.qkv", "attn.to_out.0"])
        expected |= {f"blocks.{i}.attn.temp"}
        expected |= of_layer(f"cls_attn_blocks.{i}", ["attn.qkv", "attn.proj"])
    backbone = build(patch_size=16)
    assert {official(key) for key in backbone.state_dict()} == expected
    assert backbone.blocks[0].attn.temp.shape == (2, 1)
    assert backbone.cls_attn_blocks[0].attn.qkv.weight.shape == (48, 16)


@pytest.mark.parametrize("training", [False, True])
def test_packed_equals_separate_in_values_and_gradients(training: bool) -> None:
    backbone = randomised(build()).train(training)
    images = [images_of(4, 3, 16, 16), images_of(6, 3, 8, 12), images_of(2, 3, 4, 4)]
    results = []
    for packed in (True, False):
        backbone.zero_grad()
        outputs = backbone.forward_packed(images) if packed else [backbone(x) for x in images]
        loss = torch.stack([f.pooled.square().mean() + f.patches.sin().mean() for f in outputs])
        loss.sum().backward()
        flat = [t for f in outputs for t in (f.pooled, f.patches)]
        results.append((flat, [p.grad.clone() for p in backbone.parameters()]))
    for packed, separate in zip(*results, strict=True):
        torch.testing.assert_close(packed, separate, rtol=1e-11, atol=1e-11)


def test_the_batch_is_coupled_in_training_only() -> None:
    backbone = randomised(build())
    images = images_of(3, 3, 8, 8)
    changed = images.clone()
    changed[2] += images_of(3, 8, 8, seed=8)
    assert ToST.batch_coupled
    assert not torch.equal(backbone(images).pooled[:2], backbone(changed).pooled[:2])
    backbone.eval()
    assert torch.equal(backbone(images).pooled[:2], backbone(changed).pooled[:2])
    torch.testing.assert_close(backbone(images[1:2]).pooled, backbone(images).pooled[1:2])


def test_a_sample_whose_branches_are_dropped_passes_by_them() -> None:
    backbone = randomised(build(drop_path=0.5)).eval()
    images, draws = images_of(16, 3, 8, 8), all_draws(16)
    scales = branch_scales(draws, 16, 0.5, 2).double()
    expected = []
    for row, tokens in zip(scales, backbone.embed(images), strict=True):
        x = tokens[1:]
        for block, (a, b) in zip(backbone.blocks, row, strict=True):
            x = x + a * block.ls1(block.attn(block.norm1(x), [(1, len(x))]))
            x = x + b * block.ls2(block.mlp(block.norm2(x)))
        x = torch.cat([tokens[:1], x])[None]
        for block in backbone.cls_attn_blocks:
            x = block(x)
        expected.append(backbone.norm(x)[0, 0])
    assert len(scales.flatten(1).unique(dim=0)) > 2
    torch.testing.assert_close(backbone(images, draws).pooled, torch.stack(expected))
    assert torch.equal(backbone(images).pooled, randomised(build()).eval()(images).pooled)


def test_stochastic_depth_is_the_same_however_the_batch_is_split() -> None:
    backbone = randomised(build(drop_path=0.5)).eval()
    images = [images_of(12, 3, 16, 16), images_of(18, 3, 8, 8)]
    whole = backbone.forward_packed(images, all_draws(6))
    for start, count in ((0, 2), (2, 4)):
        part = [x.unflatten(0, (-1, 6))[:, start : start + count].flatten(0, 1) for x in images]
        outputs = backbone.forward_packed(part, all_draws(6).narrow(start, count))
        for mine, every in zip(outputs, whole, strict=True):
            rows = every.pooled.unflatten(0, (-1, 6))[:, start : start + count].flatten(0, 1)
            torch.testing.assert_close(mine.pooled, rows)


def test_the_pooled_vector_sends_gradients_to_every_parameter() -> None:
    backbone = randomised(build())
    backbone(images_of(3, 3, 8, 12)).pooled.sin().sum().backward()
    silent = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_those_of_the_values(training: bool) -> None:
    backbone = randomised(build(width=4, heads=2, depth=1, patch_size=2, ratio=1))
    backbone.train(training)
    names = list(dict(backbone.named_parameters()))

    def values(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, weights, strict=True))
        features = torch.func.functional_call(backbone, named, (x,))
        return features.pooled, features.patches

    inputs = [images_of(2, 3, 4, 4).requires_grad_(), *backbone.parameters()]
    assert torch.autograd.gradcheck(values, inputs, fast_mode=True)


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = randomised(build())
        backbone.checkpointing = checkpointing
        backbone(images_of(2, 3, 8, 8)).pooled.sin().sum().backward()
        gradients.append([p.grad for p in backbone.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-12, atol=1e-12)


def test_tokens_can_be_hidden_between_embed_and_encode() -> None:
    backbone = randomised(build()).eval()
    images = images_of(2, 3, 16, 16)
    tokens = backbone.embed(images)
    assert tokens.shape == (2, 17, 16)
    whole, some = backbone.encode([tokens, tokens[:, :6]])
    torch.testing.assert_close(whole[:, 0], backbone(images).pooled)
    assert some.shape == (2, 6, 16)
    assert not torch.allclose(some[:, 0], whole[:, 0])


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels_and_one_image(channels: int) -> None:
    backbone = build(in_chans=channels)
    features = backbone(images_of(1, channels, 4, 24, dtype=torch.float32))
    assert features.patches.shape == (1, 1, 6, 16)
    assert torch.isfinite(features.pooled).all()


def test_bf16_autocast_stays_close() -> None:
    backbone = build()
    images = images_of(4, 3, 16, 16, dtype=torch.float32)
    exact = backbone(images).pooled
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = backbone(images).pooled
        assert torch.isfinite(backbone.token_maps(images)).all()
    torch.testing.assert_close(exact, rough.float(), rtol=0.05, atol=0.1)


def test_what_is_not_decayed_exists() -> None:
    backbone = build()
    assert backbone.no_weight_decay() == {"cls_token", "blocks.0.attn.temp", "blocks.1.attn.temp"}
    assert backbone.no_weight_decay() <= set(dict(backbone.named_parameters()))


def test_initial_weights_have_the_published_distributions() -> None:
    backbone = build(ToSTModel(32, 192, 1, 4, 4, 0.5))
    assert backbone.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert backbone.cls_attn_blocks[1].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert backbone.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert backbone.blocks[0].mlp.fc1.bias.abs().max() == 0
    assert (backbone.blocks[0].ls1.gamma == 0.5).all()
    assert (backbone.cls_attn_blocks[0].ls2.gamma == 0.5).all()
    assert (backbone.blocks[0].attn.temp == 1).all()
    assert build(layer_scale=None).blocks[0].ls1(torch.ones(2, 16)).equal(torch.ones(2, 16))


def test_the_recorded_config_says_what_was_built() -> None:
    backbone = build(img_size=8, in_chans=1, drop_path=0.1, depth=3)
    assert backbone.config == {
        "name": "tost",
        "img_size": 8,
        "in_chans": 1,
        "patch_size": 4,
        "depth": 3,
    }
    assert "2 layers of TSSA" in TINY.summary
    assert TINY.options()["ratio"] == 4
    assert len(backbone.blocks) == 3


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"patch_size": 6, "img_size": 24}, "patch_size is 6.*power of two"),
        ({"patch_size": 1}, "patch_size is 1.*power of two"),
        ({"width": 15}, "width 15 is not a multiple of heads 2"),
        ({"width": 18, "patch_size": 8}, "width 18 is not a multiple of 4"),
        ({"depth": 0}, "depth is 0"),
        ({"img_size": 18}, "patch size 4 does not divide the img_size of backbone tost, 18"),
    ],
)
def test_an_impossible_size_is_named(overrides: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(**overrides)


def test_images_that_do_not_fit_are_named() -> None:
    backbone = build()
    with pytest.raises(ValueError, match="patch size 4 does not divide the view size 18"):
        backbone(torch.zeros(1, 3, 16, 18))
    for read in (backbone.token_maps, backbone.token_keys, backbone.layer_states):
        with pytest.raises(ValueError, match=r"3 channel\(s\) but the images have 4"):
            read(torch.zeros(1, 4, 16, 16))
    with pytest.raises(ValueError, match="one value per channel"):
        backbone.train()(torch.zeros(1, 3, 4, 4))


def test_a_vit_with_statistics_attention_is_another_model() -> None:
    """The book's drop-in and the published model share the operator, not the shell."""
    drop_in = create_backbone("tost_vit_nano_patch4_32", depth=1)
    assert "pos_embed" in drop_in.state_dict()
    assert "pos_embed" not in build().state_dict()
