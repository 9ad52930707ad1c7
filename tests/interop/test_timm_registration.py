"""Our backbones as timm's models: the habits of timm's own tests/test_models.py, on every name."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg, group_parameters
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from vitrail.backbones.create import create_backbone
from vitrail.backbones.registry import BACKBONES
from vitrail.interop.timm_model import TimmModel
from vitrail.interop.timm_zoo import NAMES

TINY = {"depth": 2, "width": 32, "heads": 2}
NANO = "crate_nano_patch4_28"


def patch_size(name: str) -> int:
    return BACKBONES[name].options()["patch_size"]


def tiny(name: str, **more: object) -> TimmModel:
    torch.manual_seed(0)
    arguments = {"img_size": 2 * patch_size(name), "num_classes": 5, **TINY, **more}
    return timm.create_model(name, **arguments)


def images(name: str, count: int = 2, channels: int = 3, rows: int = 2, columns: int = 2) -> Tensor:
    p = patch_size(name)
    return torch.randn(count, channels, rows * p, columns * p)


def test_every_white_box_backbone_has_a_name_in_timm() -> None:
    ours = {name for name in BACKBONES if name.startswith(("crate", "tost", "aot"))}
    assert ours <= set(NAMES)
    assert set(timm.list_models("crate*")) == {n for n in BACKBONES if n.startswith("crate")}
    assert set(timm.list_models(module="timm_zoo")) == set(NAMES)


def test_names_that_timm_has_stay_timms() -> None:
    assert "vit_tiny_patch16_224" not in NAMES
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    assert type(model).__module__ == "timm.models.vision_transformer"


@pytest.mark.parametrize("name", NAMES)
def test_forward_backward_and_head(name: str) -> None:
    model, x = tiny(name, drop_path_rate=0.2), images(name, 4)
    model(x).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    model.eval()
    features = model.forward_features(x)
    assert features.shape == (4, 4 + model.num_prefix_tokens, 32)
    torch.testing.assert_close(model.forward_head(features), model(x))
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features[:, 0])
    assert model(images(name, rows=3, columns=1)).shape == (2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_known_of_a_model(name: str) -> None:
    model = tiny(name)
    assert model.num_features == model.head_hidden_size == model.embed_dim == 32
    cfg = model.default_cfg
    assert cfg == model.pretrained_cfg
    assert cfg["input_size"] == (3, BACKBONES[name].img_size, BACKBONES[name].img_size)
    assert cfg["mean"] == (0.485, 0.456, 0.406)
    keys = model.state_dict().keys()
    first = cfg["first_conv"]
    for layer in (cfg["classifier"], *([first] if first else [])):
        assert f"{layer}.weight" in keys
    backbone = create_backbone(name, img_size=2 * patch_size(name), **TINY)
    assert keys == backbone.state_dict().keys() | {"head.weight", "head.bias"}
    assert get_pretrained_cfg(name).has_weights in (None, "", False)


@pytest.mark.parametrize("name", NAMES)
def test_features_only_and_intermediates(name: str) -> None:
    x = images(name, rows=2, columns=3)
    maps = tiny(name, features_only=True, out_indices=(0, -1), img_size=2 * patch_size(name))
    maps.eval()
    assert [tuple(m.shape) for m in maps(x)] == [(2, 32, 2, 3)] * 2
    assert maps.feature_info.channels() == [32, 32]
    assert maps.feature_info.reduction() == [patch_size(name)] * 2
    model = tiny(name).eval()
    final, last = model.forward_intermediates(x, indices=1, norm=True, output_fmt="NLC")
    torch.testing.assert_close(final, model.forward_features(x))
    if "cls_attn_blocks.0.norm1.weight" not in model.state_dict():  # ToST reads the patches after
        torch.testing.assert_close(last[0], final[:, model.num_prefix_tokens :])
    pairs = model.forward_intermediates(x, return_prefix_tokens=True, intermediates_only=True)
    states = model.backbone.layer_states(x)
    for (patches, prefix), state in zip(pairs, states, strict=True):
        tokens = torch.cat([prefix, patches.flatten(2).mT], dim=1)
        torch.testing.assert_close(tokens, state.after)
    torch.testing.assert_close(maps(x)[0], pairs[0][0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 4])
def test_channels(name: str, channels: int) -> None:
    model = tiny(name, in_chans=channels)
    assert model(images(name, channels=channels)).shape == (2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    x = images(name)

    def gradients(enable: bool) -> dict[str, Tensor]:
        model = tiny(name, drop_path_rate=0.5)
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)  # of the dropped branches
        model(x).square().sum().backward()
        return {key: p.grad for key, p in model.named_parameters()}

    kept, recomputed = gradients(False), gradients(True)
    for key, value in kept.items():
        assert torch.equal(value, recomputed[key]), key


def test_checkpointing_keeps_only_the_layers_inputs() -> None:
    def saved(enable: bool) -> int:
        model = tiny(NANO)
        model.set_grad_checkpointing(enable)
        count = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(images(NANO))
        return count

    assert saved(True) < saved(False) / 2


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_weights_go_round(name: str) -> None:
    model, x = tiny(name).eval(), images(name)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x), model(x))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert not torch.equal(twin(x), model(x))  # nothing is shared, and nothing is left behind
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(x), model(x))


def test_what_is_replaced_in_the_model_is_replaced_in_its_backbone() -> None:
    model, x = tiny(NANO).eval(), images(NANO)
    first, _ = model.forward_intermediates(x, intermediates_only=True)
    assert model.prune_intermediate_layers([0], prune_norm=True) == [0]
    assert not [key for key in model.state_dict() if key.startswith(("blocks.1", "norm.", "head"))]
    torch.testing.assert_close(model(x)[:, 1:], first.flatten(2).mT)
    model.norm = nn.LayerNorm(32, bias=False)
    model.to_empty(device="meta")  # every parameter is another one now
    assert model.backbone.cls_token.is_meta
    assert model.backbone.norm is model.norm


def test_the_classifier_can_be_changed() -> None:
    model, x = tiny(NANO).eval(), images(NANO)
    assert isinstance(model.get_classifier(), nn.Linear)
    model.reset_classifier(7)
    assert (model.num_classes, model(x).shape) == (7, (2, 7))
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    torch.testing.assert_close(model(x), model.forward_features(x)[:, 0])
    model.reset_classifier(0, "avg")
    torch.testing.assert_close(model(x), model.forward_features(x)[:, 1:].mean(1))
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 5, 32)
    with pytest.raises(ValueError, match=r"global_pool is 'mean'; known: 'token', 'avg'"):
        model.reset_classifier(0, "mean")


@pytest.mark.parametrize("name", [NANO, "vit_nano_patch4_28", "tost_vit_nano_patch4_28"])
def test_another_size_resamples_the_positions(name: str) -> None:
    model = tiny(name, registers=2).eval()
    x = images(name, rows=5, columns=5)
    before = model(x)
    model.set_input_size(img_size=(20, 20))
    assert model.pos_embed.shape == (1, 26, 32)
    assert tiny(name, img_size=20).pos_embed.shape == (1, 26, 32)
    torch.testing.assert_close(model(x), before)
    assert dict(model.named_parameters())["pos_embed"] is model.backbone.pos_embed
    with pytest.raises(ValueError, match="patch size 4 does not divide the img_size"):
        model.set_input_size(img_size=21)
    with pytest.raises(ValueError, match=r"patch_size is 8.*built for 4"):
        model.set_input_size(patch_size=8)
    with pytest.raises(ValueError, match="positions are learned on a square"):
        model.set_input_size(img_size=(20, 24))


def test_drop_path_follows_torchs_generator() -> None:
    model, x = tiny(NANO, drop_path_rate=0.9, depth=4), images(NANO, 8)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(x)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    model.eval()
    assert torch.equal(draw(1), draw(2))


def test_initial_weights_follow_torchs_generator() -> None:
    first, second = (timm.create_model(NANO, depth=1).pos_embed for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(tiny(NANO).pos_embed, tiny(NANO).pos_embed)


@pytest.mark.parametrize("name", [NANO, "tost_vit_nano_patch4_28"])
def test_groups_for_timms_optimizers(name: str) -> None:
    model = tiny(name, registers=2)
    assert {"pos_embed", "cls_token", "register_tokens"} <= model.no_weight_decay()
    assert model.no_weight_decay() <= {key for key, _ in model.named_parameters()}
    groups = group_parameters(model, model.group_matcher())
    stem = groups[0]
    assert {"cls_token", "pos_embed", "register_tokens"} <= set(stem)
    assert any(key.startswith("patch_embed") for key in stem)
    assert not any(key.startswith(("blocks", "norm", "head")) for key in stem)
    assert len(groups) == 1 + 2 + 1  # stem, layers, head
    decayed = param_groups_layer_decay(
        model, 0.1, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    assert {group["lr_scale"] for group in decayed} == {0.125, 0.25, 0.5, 1.0}


def test_pretrained_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no weights are hosted.*vitrail export"):
        timm.create_model(NANO, pretrained=True)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown override 'attn_drop_rate'"):
        timm.create_model(NANO, attn_drop_rate=0.1)


def test_a_script_of_others_knows_our_names(tmp_path: Path) -> None:
    script = tmp_path / "theirs.py"
    script.write_text(
        "import sys, timm, sibling\n"
        "assert __name__ == '__main__' and sys.argv[1:] == ['--model', 'x']\n"
        f"print(timm.create_model({NANO!r}, depth=1, num_classes=3).num_classes)\n"
    )
    (tmp_path / "sibling.py").touch()
    module = "vitrail.interop.timm_zoo"
    command = [sys.executable, "-m", module, str(script), "--model", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
