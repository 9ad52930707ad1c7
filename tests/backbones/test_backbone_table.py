"""Every named model: the contract at reduced depth, the published sizes in full."""

import json

import pytest
import torch

from tests.backbones.shrunk import AFFORDABLE, TOKENS, shrunk, shrunk_tokens
from vitrail.backbones.contract import Features
from vitrail.backbones.create import count_parameters, create_backbone
from vitrail.backbones.layers import last_projection
from vitrail.backbones.registry import BACKBONES
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
    model = BACKBONES[name]
    line = model.summary
    assert f"{count_parameters(name) / 1e6:.2f} M" in line
    assert f"{model.img_size} px" in line
    options = model.options()
    if name in TOKENS:
        assert f"width {options['width']}" in line
        assert f"_patch{options['patch_size']}_" in name


@pytest.mark.parametrize("name", AFFORDABLE)
def test_every_model_keeps_the_contract(name: str) -> None:
    backbone = shrunk(name, drop_path=0.5)
    size, width = backbone.img_size, backbone.embed_dim
    wide, small = torch.randn(2, 3, size, size), torch.randn(4, 3, size // 2, size // 2)
    draws = Draws(seed=0, step=0, batch_size=2, start=0, count=2)
    outputs = backbone.forward_packed([wide, small], draws)
    assert [tuple(f.pooled.shape) for f in outputs] == [(2, width), (4, width)]
    sum(f.pooled.sin().sum() + f.patches.square().sum() for f in outputs).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []
    assert isinstance(backbone(wide), Features)
    states = backbone.layer_states(wide)
    assert len({state.name for state in states}) == len(states)
    assert all(state.after.shape[0] == 2 for state in states)
    for state in states:
        backbone.get_submodule(state.name)
    assert (backbone.in_chans, backbone.config["name"]) == (3, name)


@pytest.mark.parametrize("name", TOKENS)
def test_every_model_of_tokens_keeps_theirs(name: str) -> None:
    backbone = shrunk_tokens(name).eval()
    wide, narrow = torch.randn(2, 3, 16, 16), torch.randn(3, 3, 8, 20)
    with torch.no_grad():
        packed = backbone.forward_packed([wide, narrow])
        assert [tuple(f.patches.shape) for f in packed] == [(2, 4, 4, 32), (3, 2, 5, 32)]
        tokens = backbone.embed(narrow)
        assert tokens.shape == (3, backbone.n_prefix + 10, 32)
        [encoded] = backbone.encode([tokens])
        assert encoded.shape[0] == 3
        # Tokens may be left out, as a masked autoencoder does.
        [fewer] = backbone.encode([tokens[:, : backbone.n_prefix + 4]])
        assert fewer.shape[1] == encoded.shape[1] - 6
        assert backbone.token_keys(narrow).shape == (3, 2, 5, 32)
        maps = backbone.token_maps(narrow)
    assert maps.shape == (3, 2, 2, 5)
    assert (maps >= 0).all()
    assert len(backbone.blocks) == 2
    states = backbone.layer_states(narrow)
    assert [state.name for state in states[:2]] == ["blocks.0", "blocks.1"]
    for state in states[:2]:
        # The published ToST's class token is not in its trunk.
        assert state.half.shape == state.after.shape
        assert state.after.shape in (tokens.shape, tokens[:, backbone.n_prefix :].shape)
        assert state.bases is None or state.bases.shape == (2, 32, 16)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", AFFORDABLE)
def test_other_channels_one_image_and_sides_that_differ(name: str, channels: int) -> None:
    backbone = shrunk(name, in_chans=channels).eval()
    size = backbone.img_size
    features = backbone(torch.randn(1, channels, size, 2 * size))
    assert features.pooled.shape == (1, backbone.embed_dim)
    assert features.pooled.isfinite().all()
    _, height, width, _ = features.patches.shape
    assert width == 2 * height
    with pytest.raises(ValueError, match=rf"built for {channels} channel"):
        backbone(torch.randn(1, channels + 1, size, size))


@pytest.mark.parametrize("name", AFFORDABLE)
def test_the_recorded_config_builds_every_model_again(name: str) -> None:
    backbone = shrunk(name, in_chans=1, seed=2)
    again = create_backbone(**json.loads(json.dumps(backbone.config)), seed=2)
    state = again.state_dict()
    assert list(backbone.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


def test_the_steps_from_crate_to_crate_alpha_can_be_taken_one_by_one() -> None:
    """The book's ladder: over-complete, decoupled, residual."""
    for decoupled in (False, True):
        for residual in (False, True):
            backbone = create_backbone(
                "crate_alpha_nano_patch4_32", decoupled=decoupled, residual=residual, ratio=2
            )
            keys = {key for key in backbone.state_dict() if key.startswith("blocks.0.mlp")}
            assert keys == {"blocks.0.mlp.D"} | ({"blocks.0.mlp.D1"} if decoupled else set())
            assert backbone.blocks[0].mlp.D.shape == (64, 128)
            assert backbone.blocks[0].residual is residual
            assert backbone(torch.randn(2, 3, 32, 32)).pooled.isfinite().all()


@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "crate_nano_patch4_32"])
def test_maps_and_the_class_tokens_own_weight_sum_to_one(name: str) -> None:
    backbone = create_backbone(name)
    images = torch.randn(3, 3, 32, 24)
    maps = backbone.token_maps(images)
    assert maps.shape == (3, 2, 8, 6)
    assert (maps >= 0).all()
    attention, projected = last_projection(backbone.blocks, backbone.embed(images))
    own = attention.maps(projected)[:, :, 0]
    torch.testing.assert_close(maps.sum((2, 3)) + own, torch.ones(3, 2))
    assert (own > 0).all()


def test_crates_map_is_the_softmax_of_the_shared_projection() -> None:
    backbone = create_backbone("crate_nano_patch4_32").double()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    last = backbone.blocks[-1]
    before = backbone.layer_states(images)[-2].after[0]
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
