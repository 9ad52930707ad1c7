"""Heads between a backbone's pooled features and a loss.

Parameter names and initialisation of the projections are those of the official DINO head
(facebookresearch/dino 7c446df, vision_transformer.DINOHead), without batch norm.

Shape legend: B rows · D features · Z bottleneck · K prototypes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# The official epsilon is 1e-12: the gradient at a zero vector, which a dead ReLU backbone can
# produce, is then 1e12 times too long.
NORM_EPS = 1e-6


def unit_norm(x: Float[Tensor, "*B Z"]) -> Float[Tensor, "*B Z"]:
    """Divides rows by their Euclidean norm, in float32 for any input; zero rows stay zero."""
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(x.float(), dim=-1, eps=NORM_EPS)


def linear_head(in_dim: int, n_classes: int) -> nn.Linear:
    """Builds a linear map to logits, with weights of deviation 0.02 (timm's) and zero biases."""
    head = nn.Linear(in_dim, n_classes)
    _initialise(head)
    return head


class ProjectionHead(nn.Module):
    """Linear-GELU-Linear-GELU-Linear, then unit norm (SimDINO's whole head; book §7.2.3)."""

    def __init__(self, in_dim: int, hidden_dim: int = 2048, bottleneck_dim: int = 256):
        super().__init__()
        self.mlp = _projection(in_dim, hidden_dim, bottleneck_dim)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B Z"]:
        """Returns unit vectors, float32."""
        return unit_norm(self.mlp(x))


class PrototypeHead(nn.Module):
    """`ProjectionHead`'s map, and prototypes to compare its outputs with (DINO's head).

    `forward` returns the projection: 65,536 logits for each row are computed by `last_layer`, or by
    a loss that never stores all of them (`nn/prototype_entropy.py`).

    Args:
        in_dim: features of the backbone, D.
        out_dim: number of prototypes, K.
        hidden_dim: features of the hidden layers.
        bottleneck_dim: features of the projection, Z.
        norm_last_layer: keep the prototypes' norms at 1 instead of learning them.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        norm_last_layer: bool = True,
    ):
        super().__init__()
        self.mlp = _projection(in_dim, hidden_dim, bottleneck_dim)
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim, norm_last_layer)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B Z"]:
        """Returns unit vectors, float32."""
        return unit_norm(self.mlp(x))


class WeightNormLinear(nn.Module):
    """The map x Wᵀ with rows W_k = g_k v_k / |v_k|, no bias (Salimans & Kingma 2016, eq. 2).

    Args:
        in_dim: features of x.
        out_dim: number of rows of W.
        fixed_norm: keep every g_k at 1 instead of learning it.
    """

    def __init__(self, in_dim: int, out_dim: int, fixed_norm: bool):
        super().__init__()
        # torch's default for Linear: the length of v only changes the size of its steps
        bound = in_dim**-0.5
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim).uniform_(-bound, bound))
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=not fixed_norm)

    def weight(self) -> Float[Tensor, "K Z"]:
        """Returns W, float32."""
        return self.weight_g * unit_norm(self.weight_v)

    def forward(self, x: Float[Tensor, "B Z"]) -> Float[Tensor, "B K"]:
        # float32: a logit is divided by a temperature of 0.04, and bf16's error would be 0.05 nats
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight())


def _projection(in_dim: int, hidden_dim: int, bottleneck_dim: int) -> nn.Sequential:
    mlp = nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, bottleneck_dim),
    )
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            _initialise(layer)
    return mlp


def _initialise(layer: nn.Linear) -> None:
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
