"""Initial weights that several backbones share."""

from torch import nn


def truncated_normal_linear(module: nn.Module, width: int) -> None:
    """ViT's: truncated normal 0.02 for linear maps, zero biases.

    Below width 192, where nothing is published, 0.8 / sqrt(width): with 0.02, branches would all
    but vanish beside their residual.
    """
    std = 0.02 if width >= 192 else 0.8 * width**-0.5
    for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
        nn.init.trunc_normal_(linear.weight, std=std)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)


def xavier_linear(module: nn.Module) -> None:
    """MAE's and CRATE-MAE's: Xavier-uniform linear maps, zero biases."""
    for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
        nn.init.xavier_uniform_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
