"""Any named model at a size that tests can afford: the full ones differ in how long they take."""

from typing import Any

from vitrail.backbones.contract import Backbone, TokenBackbone
from vitrail.backbones.create import create_backbone
from vitrail.backbones.registry import BACKBONES

SIZES = {"width": 32, "depth": 2, "heads": 2, "patch_size": 4}
TOKENS = [name for name, model in BACKBONES.items() if "depth" in model.options()]
# Those of timm's modules cannot be made smaller; test_timm_models.py walks over all of them.
AFFORDABLE = [*TOKENS, "resnet18_small", "swin_nano_patch2_32"]


def shrunk(name: str, **changes: Any) -> Backbone:
    """A model of the table on 16 px; `changes` go to create_backbone."""
    if name not in TOKENS:
        return create_backbone(name, **({"img_size": 32} | changes))
    sizes = {key: value for key, value in SIZES.items() if key in BACKBONES[name].options()}
    return create_backbone(name, **({"img_size": 16} | sizes | changes))


def shrunk_tokens(name: str, **changes: Any) -> TokenBackbone:
    backbone = shrunk(name, **changes)
    assert isinstance(backbone, TokenBackbone)
    return backbone
