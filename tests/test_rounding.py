"""The tests' own ruler."""

import pytest
import torch

from tests.rounding import float64_kept, rounding_bound


@pytest.mark.parametrize("terms", [1, 2, 30, 1000])
def test_sums_in_any_order_are_within_the_bound_and_a_wrong_term_is_not(terms: int) -> None:
    generator = torch.Generator().manual_seed(terms)
    x, y = torch.randn(2, terms, generator=generator)
    exact, scale = (x.double() * y.double()).sum(), (x.double() * y.double()).abs().sum().item()
    one_by_one = torch.zeros(())
    for a, b in zip(x, y, strict=True):
        one_by_one += a * b
    bound = rounding_bound(terms, scale)
    for found in (one_by_one, x @ y, (x * y).sum(), (x * y).sort().values.sum()):
        assert (found - exact).abs() <= bound
    without = (x * y).sum() - (x * y).abs().max()
    assert (without - exact).abs() > bound


def test_float64_is_kept_within_and_lifts_as_ever() -> None:
    x = torch.zeros(2, dtype=torch.float64)
    with float64_kept():
        assert x.float().dtype == torch.float64
        assert x.bfloat16().float().dtype == torch.float32
        assert torch.nn.Parameter(x).float().dtype == torch.float64
    assert x.float().dtype == torch.float32
    assert "float" not in vars(torch.Tensor)
