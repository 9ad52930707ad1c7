import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.rounding import EXACT, float64_kept, rounding_bound
from vitrail.nn.heads import (
    ProjectionHead,
    PrototypeHead,
    WeightNormLinear,
    linear_head,
    unit_norm,
)


def test_parameter_names_and_shapes_are_the_official_ones() -> None:
    shapes = {k: tuple(v.shape) for k, v in PrototypeHead(24, 100, 32, 16).state_dict().items()}
    assert shapes == {
        "mlp.0.weight": (32, 24),
        "mlp.0.bias": (32,),
        "mlp.2.weight": (32, 32),
        "mlp.2.bias": (32,),
        "mlp.4.weight": (16, 32),
        "mlp.4.bias": (16,),
        "last_layer.weight_g": (100, 1),
        "last_layer.weight_v": (100, 16),
    }
    assert list(ProjectionHead(24, 32, 16).state_dict()) == [k for k in shapes if "mlp" in k]


def test_initialisation() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(300, 1000, 300, 64)
    for i in (0, 2, 4):
        assert abs(head.mlp[i].weight.std().item() - 0.02) < 1e-3
        assert not head.mlp[i].bias.any()
    assert (head.last_layer.weight_g == 1).all()
    assert head.last_layer.weight_v.abs().max() <= 1 / 8


def test_a_linear_head_starts_small_and_without_a_bias() -> None:
    torch.manual_seed(0)
    head = linear_head(300, 200)
    assert head.weight.shape == (200, 300)
    assert abs(head.weight.std().item() - 0.02) < 1e-3
    assert abs(head.weight.mean().item()) < 5e-4
    assert not head.bias.any()


@float64_kept()
def test_projection_is_the_formula() -> None:
    head = ProjectionHead(6, 8, 4).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    w = head.state_dict()
    hidden = F.gelu(x @ w["mlp.0.weight"].T + w["mlp.0.bias"])
    hidden = F.gelu(hidden @ w["mlp.2.weight"].T + w["mlp.2.bias"])
    z = hidden @ w["mlp.4.weight"].T + w["mlp.4.bias"]
    torch.testing.assert_close(head(x), z / z.norm(dim=1, keepdim=True), **EXACT)


@float64_kept()
@pytest.mark.parametrize("fixed_norm", [True, False])
def test_last_layer_equals_torch_weight_norm(fixed_norm: bool) -> None:
    layer = WeightNormLinear(16, 10, fixed_norm).double()
    peer = nn.utils.parametrizations.weight_norm(nn.Linear(16, 10, bias=False).double())
    if not fixed_norm:
        layer.weight_g.data.uniform_(0.5, 2)
    peer.parametrizations.weight.original0.data.copy_(layer.weight_g)
    peer.parametrizations.weight.original1.data.copy_(layer.weight_v)
    x = torch.randn(7, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x), peer(x), **EXACT)
    layer(x).square().sum().backward()
    peer(x).square().sum().backward()
    expected = peer.parametrizations.weight.original1.grad
    torch.testing.assert_close(layer.weight_v.grad, expected, **EXACT)
    assert (layer.weight_g.grad is None) == fixed_norm


def test_projection_is_float32_of_unit_length_under_autocast() -> None:
    head = ProjectionHead(6, 8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        z = head(torch.randn(5, 6))
    assert z.dtype == torch.float32
    # Two norms of four entries each: four squares, their sum, a root; and the division.
    off = rounding_bound(2 * (4 + 2) + 1)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5), atol=off, rtol=0)


def test_zero_rows_stay_zero_with_a_finite_gradient() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    z = unit_norm(x)
    z.sum().backward()
    assert not z.any()
    assert x.grad.isfinite().all()
