"""A backbone with a linear head, and the learning rates of its layers.

Layer-wise decay of the learning rate: Bao et al. 2022, BEiT, and timm's
`param_groups_layer_decay`.

Shape legend: B images · C channels · S pixels a side · K classes.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.backbones.contract import Backbone
from vitrail.nn.random import Draws


class Classifier(nn.Module):
    """A backbone with a linear head on its pooled features.

    Args:
        backbone: initialised backbone, trained in place.
        n_classes: classes of the head.
        seed: seed of the head's initial weights.
    """

    def __init__(self, backbone: Backbone, n_classes: int, seed: int):
        super().__init__()
        self.backbone = backbone
        self.head = nn.utils.skip_init(nn.Linear, backbone.embed_dim, n_classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, images: Float[Tensor, "B C S S"], draws: Draws | None = None
    ) -> Float[Tensor, "B K"]:
        """Returns the logits of preprocessed images; `draws` are those of stochastic depth."""
        return self.head(self.backbone(images, draws).pooled)

    def predict(self, images: Float[Tensor, "B C S S"]) -> Int64[np.ndarray, " B"]:
        """Returns the classes of preprocessed images; switches to evaluation mode."""
        with torch.inference_mode():
            logits_BK = self.eval()(images.to(self.head.weight.device))
        return logits_BK.argmax(1).cpu().numpy()


def layer_of(backbone: Backbone) -> tuple[dict[str, int], int]:
    """Returns the depth of each parameter by name, and the number of layers L.

    Depth 0 is before the layers, 1..L are the layers, L + 1 is after them. Parameters between two
    layers (Swin's merging) belong to the first of them. The names of the layers are read from one
    forward pass over an empty image of the backbone's own size.
    """
    like = next(backbone.parameters())
    side = backbone.img_size
    mode = backbone.training
    with torch.no_grad():
        states = backbone.eval().layer_states(like.new_zeros(1, backbone.in_chans, side, side))
    backbone.train(mode)
    names = [f"{state.name}." for state in states]
    depths, reached = {}, 0
    parameters = [name for name, _ in backbone.named_parameters()]
    inside = {p: i + 1 for p in parameters for i, layer in enumerate(names) if p.startswith(layer)}
    last = max((i for i, p in enumerate(parameters) if p in inside), default=-1)
    for position, name in enumerate(parameters):
        reached = inside.get(name, reached)
        depths[name] = reached if position <= last else len(names) + 1
    return depths, len(names)


def layer_groups(
    network: Classifier, layer_decay: float, weight_decay: float, decay_positions: bool = False
) -> list[dict[str, Any]]:
    """Returns optimizer groups with an `lr_scale` each, by depth.

    Biases, 1-D parameters and those of the backbone's `no_weight_decay` have no weight decay, nor
    have positions and the class token, as in MAE's fine-tuning.

    Args:
        network: classifier to train.
        layer_decay: factor of the learning rate per layer, from the head downwards.
        weight_decay: weight decay of all other parameters.
        decay_positions: give positions and the class token weight decay too.
    """
    depths, n_layers = layer_of(network.backbone)
    free = {f"backbone.{name}" for name in network.backbone.no_weight_decay()}
    if not decay_positions:
        free |= {f"backbone.{name}" for name in ("pos_embed", "cls_token")}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        depth = depths.get(name.removeprefix("backbone."), n_layers + 1)
        decays = parameter.ndim > 1 and not name.endswith("bias") and name not in free
        group = {
            "params": [],
            "lr_scale": layer_decay ** (n_layers + 1 - depth),
            "weight_decay": weight_decay if decays else 0.0,
        }
        groups.setdefault((depth, decays), group)["params"].append(parameter)
    return list(groups.values())
