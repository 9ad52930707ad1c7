"""Which parameters carry weight decay."""

from torch import nn

from tests.objectives.tiny import make_backbone
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


def test_groups_say_what_they_are_and_none_is_empty() -> None:
    decayed, free = decay_groups(network(), freeze_steps=7)
    assert decayed["freeze_steps"] == free["freeze_steps"] == 7
    assert "wd_scale" not in decayed
    assert free["wd_scale"] == 0
    (only,) = decay_groups(nn.LayerNorm(3))
    assert only["wd_scale"] == 0
    assert decay_groups(nn.LayerNorm(3).requires_grad_(False)) == []
