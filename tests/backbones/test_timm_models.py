"""ResNets and Swins behind the contract; parity with timm; Swin's windows by a plain formula."""

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rounding import EXACT
from vitrail.backbones.families import TimmResNet, TimmSwin
from vitrail.backbones.maps import MapBackbone
from vitrail.backbones.stochastic_depth import branch_scales
from vitrail.data.contract import Batch
from vitrail.data.views.plan import MultiCrop
from vitrail.nn.random import Draws
from vitrail.nn.schedules import Horizon
from vitrail.objectives import dino
from vitrail.objectives.build import build_objective

ROWS = {
    "resnet18": TimmResNet(224, "resnet18"),
    "resnet50": TimmResNet(224, "resnet50"),
    "resnet18_small": TimmResNet(32, "resnet18", small=True),
    "resnet50_small": TimmResNet(32, "resnet50", small=True),
    "swin_tiny_patch4_window7_224": TimmSwin(224, 96, (2, 2, 6, 2), (3, 6, 12, 24), 4, 7),
    "swin_small_patch4_window7_224": TimmSwin(224, 96, (2, 2, 18, 2), (3, 6, 12, 24), 4, 7),
    "swin_base_patch4_window7_224": TimmSwin(224, 128, (2, 2, 18, 2), (4, 8, 16, 32), 4, 7),
    "swin_nano_patch2_28": TimmSwin(28, 32, (2, 2), (2, 4), 2, 7),
    "swin_nano_patch2_32": TimmSwin(32, 32, (2, 2), (2, 4), 2, 4),
}
QUICK = ["resnet18_small", "swin_nano_patch2_32"]


def build(name: str, in_chans: int = 3, drop_path: float = 0.0, **overrides: int) -> MapBackbone:
    row = ROWS[name]
    if name in ("swin_small_patch4_window7_224", "swin_base_patch4_window7_224"):
        row = replace(row, depths=(1, 1, 1, 1))  # more of the same layers only take longer
    torch.manual_seed(1)
    return row.build(
        name, img_size=None, in_chans=in_chans, drop_path=drop_path, overrides=overrides
    )


def lively(backbone: MapBackbone) -> MapBackbone:
    """No parameter and no statistic at a value that hides another (a norm's weight of 0)."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(0.3 * p.abs().mean().clamp(min=0.3) * torch.randn(p.shape, generator=generator))
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
    return backbone


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draws_of(count: int) -> Draws:
    return Draws(seed=5, step=7, batch_size=count, start=0, count=count)


def cells(backbone: MapBackbone, side: int) -> int:
    """⌈side / stride⌉."""
    if "resnet" in backbone.config["name"]:
        return -(-side // (8 if "small" in backbone.config["name"] else 32))
    return -(-side // (backbone.patch_size * 2 ** (len(backbone.layers) - 1)))


@pytest.mark.parametrize("name", ROWS)
def test_every_model_keeps_the_contract(name: str) -> None:
    in_chans = 1 + 3 * (list(ROWS).index(name) % 2)  # 1 or 4
    backbone = lively(build(name, in_chans, drop_path=0.5))
    assert backbone.batch_coupled == ("resnet" in name)
    sizes = [(48, 36), (20, 28)] if "swin" in name else [(17, 42), (19, 8)]
    images = [noise(2, in_chans, *sizes[0]), noise(4, in_chans, *sizes[1])]
    outputs = backbone.forward_packed(images, draws_of(2))
    for found, (height, width), count in zip(outputs, sizes, (2, 4), strict=True):
        grid = cells(backbone, height), cells(backbone, width)
        assert found.pooled.shape == (count, backbone.embed_dim)
        assert found.patches.shape == (count, *grid, backbone.embed_dim)
        torch.testing.assert_close(found.patches.mean((1, 2)), found.pooled)
    sum(f.pooled.square().sum() + f.patches.sin().sum() for f in outputs).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []

    one = images[0][:1]
    assert backbone(one).pooled.shape == (1, backbone.embed_dim)  # in training mode
    backbone, images = backbone.double(), [x.double() for x in images]
    one = one.double()
    with torch.no_grad():
        together, alone = backbone.eval()(images[0]), backbone(one)
        states = backbone.layer_states(one)
    torch.testing.assert_close(together.pooled[:1], alone.pooled, **EXACT)
    assert len(states) == backbone.depth
    assert all((s.half is None) == ("resnet" in name) and s.bases is None for s in states)
    last = backbone.last(states[-1].after.unflatten(1, alone.patches.shape[1:3]))
    assert torch.equal(last, alone.patches)
    assert isinstance(backbone.get_submodule(states[-1].name), nn.Module)


# Of timm's classifiers, and of torchvision's: with a 1000-way linear head.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "swin_tiny_patch4_window7_224": 28_288_354,
    "swin_small_patch4_window7_224": 49_606_258,
    "swin_base_patch4_window7_224": 87_768_224,
}


@pytest.mark.parametrize("name", ROWS)
def test_a_listing_a_config_and_the_published_size(name: str) -> None:
    row = ROWS[name]
    with torch.device("meta"):
        backbone = row.build(name, img_size=None, in_chans=3, drop_path=0.0, overrides={})
    assert backbone.config == {
        "name": name,
        "img_size": row.img_size,
        "in_chans": 3,
        **row.options(),
    }
    assert (backbone.img_size, backbone.in_chans) == (row.img_size, 3)
    assert f"{row.img_size} px" in row.summary
    if name in PUBLISHED:
        count = sum(p.numel() for p in backbone.parameters())
        assert count + backbone.embed_dim * 1000 + 1000 == PUBLISHED[name]


@pytest.mark.parametrize("name", QUICK)
def test_weights_depend_on_torchs_seed_only(name: str) -> None:
    first, second = build(name).state_dict(), build(name).state_dict()
    assert all(map(torch.equal, first.values(), second.values()))
    torch.manual_seed(1)
    other = ROWS[name].build(name, img_size=16, in_chans=3, drop_path=0.2, overrides={})
    assert other.img_size == other.config["img_size"] == 16
    assert all(map(torch.equal, first.values(), other.state_dict().values()))


@pytest.mark.parametrize(
    ("name", "size", "mode"),
    [
        ("resnet18", (65, 40), "eval"),
        ("resnet18", (65, 40), "train"),
        ("resnet50", (32, 51), "train"),
        ("swin_tiny_patch4_window7_224", (224, 224), "train"),
    ],
)
def test_weights_and_features_are_timms(name: str, size: tuple[int, int], mode: str) -> None:
    ours = build(name)
    torch.manual_seed(1)
    theirs = timm.create_model(name, num_classes=0, drop_path_rate=0.0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    theirs.load_state_dict(lively(ours).state_dict())
    images = noise(2, 3, *size)
    with torch.no_grad():
        found = ours.train(mode == "train")(images)
        maps = theirs.train(mode == "train").forward_features(images)
        pooled = theirs.forward_head(maps)
    if "resnet" in name:
        maps = maps.permute(0, 2, 3, 1)
    assert torch.equal(found.patches, maps)
    assert torch.equal(found.pooled, pooled)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def test_the_small_stem_is_a_3x3_convolution_without_pooling() -> None:
    backbone = lively(build("resnet18_small")).double().eval()
    assert backbone.conv1.weight.shape == (64, 3, 3, 3)
    assert build("resnet18_small").conv1.weight.std().item() == pytest.approx(
        (2 / (64 * 9)) ** 0.5, rel=0.1
    )
    images = noise(2, 3, 32, 24, dtype=torch.float64)
    x = F.relu(backbone.bn1(F.conv2d(images, backbone.conv1.weight, padding=1)))
    theirs = timm.create_model("resnet18", num_classes=0).double().eval()
    weights = backbone.state_dict()
    del weights["conv1.weight"]
    theirs.load_state_dict(weights, strict=False)
    expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
    found = backbone(images).patches
    assert found.shape == (2, 4, 3, 512)
    torch.testing.assert_close(found, expected.permute(0, 2, 3, 1), **EXACT)


def swin_by_formula(backbone: MapBackbone, images: Tensor, windows: list[list[int]]) -> Tensor:
    """Swin over whole padded maps: each cell attends to the cells of its window, by coordinates.

    windows: for each stage, the window's side and the shift of its odd layers. The window of cell i
    is ⌊(i - shift) / w⌋ along each axis, without any cyclic shift.
    """
    w = backbone.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def attention(x: Tensor, name: str, side: int, shift: int, heads: int) -> Tensor:
        height, width, dim = x.shape[1:]
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        row, column = torch.meshgrid(*map(torch.arange, x.shape[1:3]), indexing="ij")
        at = torch.stack([row.flatten(), column.flatten()], -1)  # [N, 2]
        window = (at - shift).div(side, rounding_mode="floor")
        same = (window[:, None] == window[None]).all(-1)
        offset = (at[:, None] - at[None]).clamp(1 - side, side - 1) + side - 1
        table = w[f"{name}.relative_position_bias_table"]
        bias = table[offset[..., 0] * (2 * side - 1) + offset[..., 1]].permute(2, 0, 1)
        q, k, v = (
            t.unflatten(-1, (heads, -1)).transpose(1, 2)
            for t in linear(x.flatten(1, 2), f"{name}.qkv").chunk(3, -1)
        )
        scores = q @ k.mT * (dim // heads) ** -0.5 + bias
        mixed = scores.masked_fill(~same, -torch.inf).softmax(-1) @ v
        out = linear(mixed.transpose(1, 2).flatten(2), f"{name}.proj")
        return out.unflatten(1, x.shape[1:3])[:, :height, :width]

    patch = backbone.patch_size
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    x = norm(x.permute(0, 2, 3, 1), "patch_embed.norm")
    for i, (side, shift) in enumerate(windows):
        stage = backbone.layers[i]
        if i:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            quarters = [x[:, a::2, b::2] for b in (0, 1) for a in (0, 1)]
            name = f"layers.{i}.downsample"
            x = linear(norm(torch.cat(quarters, -1), f"{name}.norm"), f"{name}.reduction")
        for j in range(len(stage.blocks)):
            name = f"layers.{i}.blocks.{j}"
            heads = w[f"{name}.attn.relative_position_bias_table"].shape[1]
            x = x + attention(
                norm(x, f"{name}.norm1"), f"{name}.attn", side, shift * (j % 2), heads
            )
            hidden = F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
            x = x + linear(hidden, f"{name}.mlp.fc2")
    return norm(x, "norm")


@pytest.mark.parametrize(
    ("name", "size", "windows"),
    [
        ("swin_nano_patch2_32", (32, 32), [[4, 2], [4, 2]]),
        ("swin_nano_patch2_32", (22, 30), [[4, 2], [4, 2]]),
        ("swin_nano_patch2_28", (18, 4), [[7, 3], [7, 0]]),
        ("swin_tiny_patch4_window7_224", (96, 96), [[7, 3], [7, 3], [7, 3], [7, 0]]),
        ("swin_tiny_patch4_window7_224", (72, 100), [[7, 3], [7, 3], [7, 3], [7, 0]]),
    ],
)
@torch.no_grad()
def test_swin_is_attention_among_the_cells_of_a_window(
    name: str, size: tuple[int, int], windows: list[list[int]]
) -> None:
    backbone = lively(build(name)).double().eval()
    images = noise(2, 3, *size, dtype=torch.float64)
    expected = swin_by_formula(backbone, images, windows)
    torch.testing.assert_close(backbone(images).patches, expected, rtol=1e-9, atol=1e-9)


def test_swins_windows_follow_the_official_rule() -> None:
    """No larger than the stage's map at the row's size (EsViT's W = 14), whatever size is asked,
    and shifted where the map of that size has more than one."""
    row = ROWS["swin_tiny_patch4_window7_224"]
    for size, shifts in ((224, (7, 7, 0, 0)), (96, (7, 0, 0, 0)), (448, (7, 7, 7, 3))):
        net = row.build("x", img_size=size, in_chans=3, drop_path=0, overrides={"window_size": 14})
        assert [stage.blocks[1].window_size for stage in net.layers] == [(14, 14)] * 3 + [(7, 7)]
        assert [stage.blocks[1].shift_size for stage in net.layers] == [(s, s) for s in shifts]
        assert net.config["window_size"] == 14
    finer = build("swin_nano_patch2_32", patch_size=4)
    assert finer.config["patch_size"] == 4
    assert finer(noise(1, 3, 32, 32)).patches.shape == (1, 4, 4, 64)


def test_swin_exempts_its_tables_of_biases_from_weight_decay() -> None:
    backbone = build("swin_nano_patch2_32")
    exempt = backbone.no_weight_decay()
    assert len(exempt) == 4
    assert exempt <= {name for name, _ in backbone.named_parameters()}


@pytest.mark.parametrize("name", QUICK)
@torch.no_grad()
def test_stochastic_depth_does_not_depend_on_the_split_or_on_torchs_generator(name: str) -> None:
    # In evaluation mode: batch norm would see the split.
    backbone = lively(build(name, drop_path=0.9)).double().eval()
    views = noise(2, 4, 3, 16, 16, dtype=torch.float64)
    crops = noise(3, 4, 3, 8, 12, seed=1, dtype=torch.float64)
    before = torch.random.get_rng_state()
    draws = draws_of(4)
    whole = backbone.forward_packed([views.flatten(0, 1), crops.flatten(0, 1)], draws)
    for start, count in ((0, 1), (1, 3)):
        own = slice(start, start + count)
        parts = backbone.forward_packed(
            [views[:, own].flatten(0, 1), crops[:, own].flatten(0, 1)], draws.narrow(start, count)
        )
        for part, full in zip(parts, whole, strict=True):
            expected = full.pooled.unflatten(0, (-1, 4))[:, own].flatten(0, 1)
            torch.testing.assert_close(part.pooled, expected, **EXACT)
    assert torch.equal(torch.random.get_rng_state(), before)
    undropped = backbone.forward_packed([views[0]])[0].pooled
    assert not torch.allclose(whole[0].pooled[:4], undropped)
    kept = build(name).double()
    kept.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(kept.eval()(views[0], draws).pooled, undropped, **EXACT)


@pytest.mark.parametrize("name", QUICK)
@torch.no_grad()
def test_a_dropped_branch_leaves_its_shortcut_and_a_kept_one_grows(name: str) -> None:
    backbone = lively(build(name, drop_path=0.5)).double().eval()
    images = noise(8, 3, 16, 16, dtype=torch.float64)
    scales = branch_scales(draws_of(8), 8, 0.5, backbone.depth)
    assert torch.equal(torch.cat(backbone._scales([images[:4], images[4:]], draws_of(8))), scales)
    layer = backbone.depth - 1  # of the same stage as the one before
    dropped = scales[:, layer] == 0
    assert dropped.any(0).all()
    assert not dropped.all(0).any()
    before, after = list(backbone.walk(images, scales))[layer - 1 : layer + 1]
    bare = scales.clone()
    bare[:, layer] = 1
    full = list(backbone.walk(images, bare))[layer]
    scale = scales[:, layer].view(8, 2, 1, 1, 1)
    if "resnet" in name:  # a ReLU follows the sum
        gone = dropped[:, 0]
        assert torch.equal(after.after[gone], before.after[gone])
        positive = full.after > 0
        grown = before.after + scale[:, 0] * (full.after - before.after)
        torch.testing.assert_close(after.after[positive], grown.relu()[positive], **EXACT)
        return
    half = before.after + scale[:, 0] * (full.half - before.after)
    torch.testing.assert_close(after.half, half, **EXACT)
    assert torch.equal(after.after[dropped[:, 1]], after.half[dropped[:, 1]])


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet18_small", (2, 1, 32, 32), r"built for 3 channel.*images have 1"),
        ("resnet18_small", (2, 3, 0, 32), r"0 × 32 pixels are too small"),
        ("swin_nano_patch2_32", (2, 4, 32, 32), r"built for 3 channel.*images have 4"),
        ("swin_nano_patch2_32", (2, 3, 32, 31), r"patch size 2 does not divide the view size 31"),
        ("swin_nano_patch2_32", (2, 3, 0, 32), r"patch size 2 does not divide the view size 0"),
        ("resnet18", (1, 3, 32, 32), r"one value per channel"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name)(torch.zeros(shape))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="swin_nano_patch2_32: window_size is 0"):
        build("swin_nano_patch2_32", window_size=0)
    with pytest.raises(ValueError, match="patch size 5 does not divide the img_size"):
        build("swin_nano_patch2_32", patch_size=5)


@pytest.mark.parametrize("name", QUICK)
def test_dino_trains_it_and_the_teacher_has_statistics_of_its_own(name: str) -> None:
    config = dino.Config(
        views=MultiCrop(global_size=16, local_size=8, n_local=2),
        out_dim=32,
        hidden_dim=16,
        bottleneck_dim=8,
    )
    horizon = Horizon(steps=10, steps_per_epoch=5)
    objective: Any = build_objective(
        config, lambda drop_path: lively(build(name, drop_path=drop_path)), horizon
    )
    draws = draws_of(4)
    views = [noise(8, 3, 16, 16), noise(8, 3, 8, 8)]
    batch = Batch(views, torch.arange(4), torch.zeros(4, dtype=torch.long), draws)
    out = objective(batch, 0)
    assert all(torch.isfinite(v).all() for v in out.values())
    out["loss"].backward()
    gradients = {n: p.grad for n, p in objective.student.named_parameters() if p.requires_grad}
    assert [n for n, g in gradients.items() if g is None or not torch.isfinite(g).all()] == []
    assert sum(g.abs().sum() for g in gradients.values()) > 0
    if "resnet" in name:
        norms = objective.student.backbone.bn1, objective.teacher.backbone.bn1
        assert [int(n.num_batches_tracked) for n in norms] == [2, 1]  # two resolutions, and one
        mean = norms[1].running_mean.clone()
        objective.after_step(out, 0)
        assert torch.equal(norms[1].running_mean, mean)
        assert not torch.equal(norms[0].running_mean, mean)
