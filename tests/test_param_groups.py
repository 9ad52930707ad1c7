"""Which parameters carry weight decay."""

import pytest
import torch
from torch import nn

from tests.objectives.tiny import make_backbone
from vitrail.backbones.text import LANGUAGE, TOST, TextBackbone
from vitrail.nn.heads import PrototypeHead
from vitrail.objectives.contract import Network
from vitrail.optim import decay_groups


def network(backbone: str = "vit_nano_patch4_32") -> Network:
    made = make_backbone(backbone)(0.0)
    return Network(made, PrototypeHead(made.embed_dim, 10, 8, 4))


def names(module: nn.Module) -> list[set[str]]:
    """The parameter names of every group."""
    name_of = {p: name for name, p in module.named_parameters()}
    return [{name_of[p] for p in group["params"]} for group in decay_groups(module)]


def test_matrices_decay_and_what_has_one_dimension_does_not() -> None:
    module = network()
    decayed, free = names(module)
    assert {"backbone.pos_embed", "backbone.blocks.1.mlp.fc1.weight", "head.mlp.0.weight"} < decayed
    assert {"backbone.norm.weight", "backbone.blocks.1.mlp.fc1.bias", "head.mlp.0.bias"} < free
    assert all("norm" in name or name.endswith("bias") for name in free)
    assert decayed | free == {name for name, p in module.named_parameters() if p.requires_grad}
    assert not decayed & free


def test_what_a_backbone_names_does_not_decay() -> None:
    module = nn.ModuleDict({"inner": network("tost_vit_nano_patch4_32")})
    _, free = names(module)
    temperature = "inner.backbone.blocks.0.attn.temp"
    assert module.get_parameter(temperature).ndim == 2
    assert temperature in free
    assert {name for name in free if module.get_parameter(name).ndim > 1} == {
        f"inner.backbone.{name}" for name in module["inner"].backbone.no_weight_decay()
    }


def test_text_transformers_are_asked_too() -> None:
    """Causal TSSA's temperatures and position biases are matrices that carry no decay."""
    text = TextBackbone(TOST, width=16, depth=2, heads=2, vocabulary=20, context=6)
    decayed, free = names(nn.ModuleDict({"space": nn.ModuleDict({"text": text})}))
    matrices = {name for name in free if text.get_parameter(name[len("space.text.") :]).ndim > 1}
    expected = {f"blocks.{i}.attn.{name}" for i in (0, 1) for name in ("temp", "denom_bias")}
    assert matrices == {f"space.text.{name}" for name in expected}
    assert "space.text.wte.weight" in decayed


@pytest.mark.parametrize("name", LANGUAGE)
def test_which_text_transformers_list_matrices(name: str) -> None:
    """Those with TSSA; the others, and CLIP's two kinds, are grouped as by dimensions alone."""
    with torch.device("meta"):
        text = LANGUAGE[name].build(20, 6)
    assert bool(text.no_weight_decay()) == name.startswith("tost")


def test_groups_say_what_they_are_and_none_is_empty() -> None:
    decayed, free = decay_groups(network(), freeze_steps=7)
    assert decayed["freeze_steps"] == free["freeze_steps"] == 7
    assert "wd_scale" not in decayed
    assert free["wd_scale"] == 0
    (only,) = decay_groups(nn.LayerNorm(3))
    assert only["wd_scale"] == 0
    assert decay_groups(nn.LayerNorm(3).requires_grad_(False)) == []
