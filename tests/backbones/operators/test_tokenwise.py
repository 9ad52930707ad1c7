"""Token-wise operators against the papers' formulas in float64, ODL against the LASSO."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from timm.layers import SwiGLUPacked
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitrail.backbones.operators.tokenwise import ISTA, MLP, ODL, SwiGLU

D = 12
FEW, MANY = 5, 30  # tokens: fewer and more than features


def random_tokens(count: int, dim: int = D) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, dim, dtype=torch.float64, generator=generator)


def randomised(module: nn.Module) -> nn.Module:
    """In float64, with no parameter left at a value (0, 1) that would hide its misuse."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.double().parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator) / 2
    return module


def products(module: nn.Module, count: int) -> float:
    """Multiplications of `count` tokens in a forward pass."""
    x = torch.randn(count, D)
    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops() / 2


# --- MLP, SwiGLU


def test_mlp_is_two_linear_maps_with_an_exact_gelu_between() -> None:
    mlp, x = randomised(MLP(D)), random_tokens(FEW)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    activated = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    expected = activated @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected, rtol=1e-12, atol=1e-12)
    assert mlp.fc1.weight.shape == (4 * D, D)
    assert MLP(D, ratio=2).fc2.weight.shape == (D, 2 * D)


def test_swiglu_is_timms_at_equal_weights() -> None:
    ours = randomised(SwiGLU(D))
    hidden = ours.w3.in_features
    timms = SwiGLUPacked(D, hidden_features=2 * hidden).double()
    timms.fc1.load_state_dict(ours.w12.state_dict())
    timms.fc2.load_state_dict(ours.w3.state_dict())
    x = random_tokens(FEW)
    torch.testing.assert_close(ours(x), timms(x), rtol=1e-12, atol=1e-12)


# By hand from DINOv2's rule; 1536 is its giant.
@pytest.mark.parametrize(("dim", "hidden"), [(1536, 4096), (384, 1024), (64, 176), (10, 32)])
def test_swiglu_has_the_hidden_size_of_dinov2(dim: int, hidden: int) -> None:
    with torch.device("meta"):
        shapes = {name: tuple(w.shape) for name, w in SwiGLU(dim).state_dict().items()}
    assert shapes == {
        "w12.weight": (2 * hidden, dim),
        "w12.bias": (2 * hidden,),
        "w3.weight": (dim, hidden),
        "w3.bias": (dim,),
    }


@pytest.mark.parametrize("operator", [MLP, SwiGLU])
def test_without_bias_there_is_none(operator: type[nn.Module]) -> None:
    assert not [name for name in operator(D, bias=False).state_dict() if "bias" in name]


# --- ISTA


def published_ista(u: Tensor, dictionary: Tensor, eta: float, lmbda: float) -> Tensor:
    """Tokens as columns, three products: ReLU(u + η(Dᵀu − DᵀDu) − ηλ)."""
    z = u.T
    first = dictionary @ z
    gradient = dictionary.T @ z - dictionary.T @ first
    return (z + eta * gradient - eta * lmbda).clamp(min=0).T


@pytest.mark.parametrize("count", [FEW, D - 1, D, MANY])
@pytest.mark.parametrize(("eta", "lmbda"), [(0.1, 0.1), (0.3, 0.7)])
def test_ista_is_the_formula_with_three_products(count: int, eta: float, lmbda: float) -> None:
    u = random_tokens(count).requires_grad_()
    ista = randomised(ISTA(D, eta=eta, lmbda=lmbda))
    expected = published_ista(u, ista.weight, eta, lmbda)
    torch.testing.assert_close(ista(u), expected, rtol=1e-12, atol=1e-12)
    assert (expected == 0).any()
    assert (expected > 0).any()
    cotangent = torch.randn_like(expected)
    inputs = [u, ista.weight]
    ours = torch.autograd.grad(ista(u), inputs, cotangent)
    published = torch.autograd.grad(expected, inputs, cotangent)
    torch.testing.assert_close(ours, published, rtol=1e-12, atol=1e-12)


def test_ista_takes_one_product_and_two_of_few_tokens_without_gradients() -> None:
    ista = ISTA(D)
    assert products(ista, MANY) == MANY * D**2 + D**3
    assert products(ista, FEW) == FEW * D**2 + D**3  # training has one form for all
    with torch.no_grad():
        assert products(ista, MANY) == MANY * D**2 + D**3
        assert products(ista, FEW) == 2 * FEW * D**2
        few = random_tokens(FEW)
        two = ista.double()(few)
    torch.testing.assert_close(ista(few), two, rtol=1e-12, atol=1e-12)


def test_an_exported_ista_takes_any_number_of_tokens() -> None:
    ista = ISTA(D)
    count = {"tokens": {0: torch.export.Dim("count")}}
    exported = torch.export.export(ista, (torch.randn(FEW, D),), dynamic_shapes=count).module()
    for size in (2, FEW, MANY):
        x = torch.randn(size, D)
        torch.testing.assert_close(exported(x), ista(x))


# --- ODL


def proximal_gradient(
    x: np.ndarray, dictionary: np.ndarray, steps: int, eta: float, lmbda: float
) -> np.ndarray:
    """Codes [n, m] of min ½‖x − Dz‖² + λ Σ z over z >= 0, token by token, from z = 0."""
    codes = np.zeros((len(x), dictionary.shape[1]))
    for z, column in zip(codes, x, strict=True):
        for _ in range(steps):
            gradient = dictionary.T @ (dictionary @ z - column)
            z[:] = np.maximum(z - eta * gradient - eta * lmbda, 0)
    return codes


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_odl_is_proximal_gradient_and_a_decoding(steps: int, decoupled: bool) -> None:
    eta, lmbda = 0.02, 0.6
    odl = randomised(ODL(D, ratio=3, steps=steps, eta=eta, lmbda=lmbda, decoupled=decoupled))
    weights = {name: weight.numpy() for name, weight in odl.state_dict().items()}
    x = random_tokens(FEW)
    codes = proximal_gradient(x.numpy(), weights["D"], steps, eta, lmbda)
    assert 0.05 < (codes > 0).mean() < 0.95
    expected = codes @ (weights["D1"] if decoupled else weights["D"]).T
    torch.testing.assert_close(odl(x), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    assert list(weights) == (["D", "D1"] if decoupled else ["D"])


def test_two_steps_are_the_default_with_the_published_numbers() -> None:
    odl, x = ODL(D).double(), random_tokens(FEW)
    dictionary, decoder = odl.D.detach().numpy(), odl.D1.detach().numpy()
    expected = proximal_gradient(x.numpy(), dictionary, 2, 0.1, 0.1) @ decoder.T
    torch.testing.assert_close(odl(x), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    assert dictionary.shape == decoder.shape == (D, 4 * D)


@torch.no_grad()
def test_with_many_steps_odl_solves_the_lasso() -> None:
    dim, ratio, lmbda = 6, 3, 0.3
    x = random_tokens(4, dim)
    dictionary = torch.randn(
        dim, ratio * dim, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    eta = 0.9 / torch.linalg.matrix_norm(dictionary, 2).item() ** 2
    odl = ODL(dim, ratio=ratio, steps=20_000, eta=eta, lmbda=lmbda).double()
    odl.D.copy_(dictionary)
    codes = []
    for k in range(ratio):  # a decoder that reads `dim` codes at a time
        odl.D1.zero_()[:, k * dim : (k + 1) * dim] = torch.eye(dim)
        codes.append(odl(x))
    # sklearn divides the squared error by the number of rows.
    lasso = Lasso(alpha=lmbda / dim, fit_intercept=False, positive=True, max_iter=10**6, tol=1e-14)
    expected = np.stack([lasso.fit(dictionary.numpy(), column).coef_ for column in x.numpy()])
    assert ((expected > 0).sum(axis=1) > 0).all()
    torch.testing.assert_close(
        torch.cat(codes, dim=1), torch.from_numpy(expected), rtol=1e-6, atol=1e-6
    )


def test_dictionaries_begin_with_the_published_bound() -> None:
    torch.manual_seed(0)
    for dictionary in (ISTA(64).weight, ODL(64).D, ODL(64).D1):
        bound = math.sqrt(6 / 64)
        assert 0.99 * bound < dictionary.abs().max() <= bound
        assert dictionary.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_odl_takes_two_products_a_step() -> None:
    for steps in (1, 2, 4):
        assert products(ODL(D, steps=steps), FEW) == 2 * steps * FEW * D * 4 * D


# --- all of them


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize(
    "operator", [MLP(6), SwiGLU(6), ISTA(6), ODL(6, ratio=2), ODL(6, ratio=2, decoupled=False)]
)
def test_gradients_are_those_of_the_values(operator: nn.Module, count: int) -> None:
    """Checks gradients by finite differences, for tokens and weights."""
    operator = randomised(operator)
    names = list(dict(operator.named_parameters()))

    def values(x: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(operator, named, (x,))

    inputs = [random_tokens(count, 6).requires_grad_(), *operator.parameters()]
    assert torch.autograd.gradcheck(values, inputs)


@pytest.mark.parametrize("operator", [MLP(D), SwiGLU(D), ISTA(D), ODL(D)])
def test_the_tokens_are_left_as_they_were(operator: nn.Module) -> None:
    x = torch.randn(MANY, D)
    before = x.clone()
    operator(x).sum().backward()
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (MLP, {"ratio": 0}),
        (ODL, {"ratio": 0}),
        (ODL, {"steps": 0}),
        (ODL, {"eta": 0.0}),
        (ODL, {"lmbda": -0.5}),
        (ISTA, {"eta": -1.0}),
        (ISTA, {"eta": math.nan}),
        (ISTA, {"lmbda": math.inf}),
    ],
)
def test_an_impossible_argument_is_named_with_its_value(
    operator: type[nn.Module], arguments: dict[str, float]
) -> None:
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError, match=f"{operator.__name__}: {name} is {value}, but must be"):
        operator(D, **arguments)
