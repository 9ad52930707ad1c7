"""Any named model at a size that tests can afford: the full ones differ in how long they take."""

from typing import Any

from vitrail.backbones.contract import Backbone, TokenBackbone
from vitrail.backbones.registry import BACKBONES, create_backbone

SIZES = {"width": 32, "depth": 2, "heads": 2, "patch_size": 4}
# Widths, depths and heads are published as lists of stages: not options.
FIXED = {name: model for name, model in BACKBONES.items() if "depth" not in model.options()}
TOKENS = [name for name in BACKBONES if name not in FIXED]


def shrunk(name: str, **changes: Any) -> Backbone:
    """A model of the table on 16 px; `changes` go to create_backbone."""
    options = BACKBONES[name].options()
    sizes = {key: value for key, value in SIZES.items() if key in options}
    if name in FIXED:
        sizes = {}
    size = 16 if sizes else 32
    return create_backbone(name, **({"img_size": size} | sizes | changes))


def shrunk_tokens(name: str, **changes: Any) -> TokenBackbone:
    backbone = shrunk(name, **changes)
    assert isinstance(backbone, TokenBackbone)
    return backbone
