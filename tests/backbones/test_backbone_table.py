"""Every named model: the contract at reduced depth, the published sizes in full."""

import pytest
import torch

from vitrail.backbones.contract import Features
from vitrail.backbones.registry import BACKBONES, count_parameters, create_backbone, describe
from vitrail.nn.random import Draws

# Facts §4: whole classifiers with a 1000-way linear head, d · 1000 + 1000 parameters. (CRATE's head
# also has a LayerNorm, which is our encoder's final norm.)
PUBLISHED = {
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "crate_tiny_patch16_224": 6_090_856,
    "crate_small_patch16_224": 13_116_328,
    "crate_base_patch16_224": 22_796_008,
    "crate_large_patch16_224": 77_641_192,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_parameters_with_a_1000_way_head_are_the_published_number(
    name: str, parameters: int
) -> None:
    head = BACKBONES[name].width * 1000 + 1000
    assert count_parameters(name) + head == parameters


@pytest.mark.parametrize("name", BACKBONES)
def test_a_listing_says_what_the_model_is(name: str) -> None:
    line = describe(name)
    assert f"width {BACKBONES[name].width}" in line
    assert f"{count_parameters(name) / 1e6:.2f} M" in line
    assert name.endswith(f"_patch{BACKBONES[name].patch_size}_{BACKBONES[name].img_size}")


@pytest.mark.parametrize("name", BACKBONES)
def test_every_model_keeps_the_contract(name: str) -> None:
    row = BACKBONES[name]
    # Two layers and a small grid: the full ones differ in nothing but how long they take.
    size = 3 * row.patch_size
    backbone = create_backbone(name, img_size=size, depth=2, drop_path=0.5)
    wide = torch.randn(2, 3, size, size)
    small = torch.randn(4, 3, 2 * row.patch_size, 2 * row.patch_size)
    draws = Draws(seed=0, step=0, batch_size=2, start=0, count=2)
    outputs = backbone.forward_packed([wide, small], draws)
    assert [tuple(f.pooled.shape) for f in outputs] == [(2, row.width), (4, row.width)]
    assert [tuple(f.patches.shape) for f in outputs] == [
        (2, 3, 3, row.width),
        (4, 2, 2, row.width),
    ]
    sum(f.pooled.sum() + f.patches.square().sum() for f in outputs).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []
    assert isinstance(backbone(wide), Features)
    assert backbone.embed(wide).shape == (2, 10, row.width)
    assert backbone.token_keys(small).shape == (4, 2, 2, row.width)
    assert [h.shape for h, _ in backbone.layer_states(wide)] == [(2, 10, row.width)] * 2
    assert (backbone.embed_dim, backbone.in_chans, backbone.img_size) == (row.width, 3, size)


@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "crate_nano_patch4_32"])
def test_maps_and_the_class_tokens_own_weight_sum_to_one(name: str) -> None:
    backbone = create_backbone(name)
    images = torch.randn(3, 3, 32, 24)
    maps = backbone.token_maps(images)
    assert maps.shape == (3, 2, 8, 6)
    assert (maps >= 0).all()
    attention, projected = backbone._last_projection(images)
    own = attention.class_weights(projected)[:, :, 0]
    torch.testing.assert_close(maps.sum((2, 3)) + own, torch.ones(3, 2))
    assert (own > 0).all()


def test_crates_map_is_the_softmax_of_the_shared_projection() -> None:
    backbone = create_backbone("crate_nano_patch4_32").double()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    last = backbone.blocks[-1]
    before = backbone.layer_states(images)[-2][1][0]
    w = last.norm1(before) @ last.attn.qkv.weight.T
    torch.testing.assert_close(backbone.token_keys(images).flatten(0, 2), w[1:])
    for head, scores in enumerate((w[0, :32] @ w[:, :32].T, w[0, 32:] @ w[:, 32:].T)):
        weights = (scores / 32**0.5).exp()
        expected = (weights / weights.sum())[1:].reshape(8, 8)
        torch.testing.assert_close(backbone.token_maps(images)[0, head], expected)


def test_equal_seeds_give_equal_weights_and_leave_torchs_state_alone() -> None:
    torch.manual_seed(5)
    expected_next = torch.rand(3)
    torch.manual_seed(5)
    first = create_backbone("crate_nano_patch4_32", seed=3).state_dict()
    assert torch.equal(torch.rand(3), expected_next)
    second = create_backbone("crate_nano_patch4_32", seed=3, drop_path=0.2).state_dict()
    other = create_backbone("crate_nano_patch4_32", seed=4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["pos_embed"], other["pos_embed"])


def test_the_recorded_config_builds_the_same_backbone() -> None:
    backbone = create_backbone(
        "vit_nano_patch4_32", img_size=24, in_chans=1, patch_size=8, depth=3, drop_path=0.1, seed=2
    )
    again = create_backbone(**backbone.config, seed=2)
    assert "drop_path" not in backbone.config
    assert list(backbone.state_dict()) == list(again.state_dict())
    pairs = zip(backbone.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_initial_weights_have_the_published_distributions() -> None:
    vit = create_backbone("vit_tiny_patch4_32")
    assert vit.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert vit.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert vit.blocks[0].attn.qkv.bias.abs().max() == 0
    assert {m.eps for m in vit.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}
    narrow = create_backbone("vit_nano_patch4_32")
    assert narrow.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.1, rel=0.02)
    crate = create_backbone("crate_micro_patch4_32")
    assert crate.pos_embed.std().item() == pytest.approx(1, rel=0.05)
    bound = (6 / 128) ** 0.5
    dictionary = crate.blocks[0].mlp.weight
    assert 0.99 * bound < dictionary.abs().max() <= bound
    assert dictionary.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert {m.eps for m in crate.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}
