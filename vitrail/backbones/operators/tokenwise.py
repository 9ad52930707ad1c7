"""Token-wise operators: maps of a layer that act on each token alone.

An operator is built with (D) and keyword arguments. The residual around it belongs to the block.

Shape legend: T tokens · D features · M = ratio · D hidden features or atoms of a dictionary.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class MLP(nn.Module):
    """The transformer's two linear maps with an exact GELU between.

    Args:
        dim: features of a token, D.
        ratio: hidden features per feature, >= 1.
        bias: of both linear maps.

    Raises:
        ValueError: a ratio below 1.
    """

    def __init__(self, dim: int, *, ratio: int = 4, bias: bool = True):
        super().__init__()
        _check_ratio("MLP", ratio)
        self.fc1 = nn.Linear(dim, ratio * dim, bias=bias)
        self.fc2 = nn.Linear(ratio * dim, dim, bias=bias)

    def forward(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        return self.fc2(F.gelu(self.fc1(tokens)))


class SwiGLU(nn.Module):
    """Two linear maps with a gate between: W3 (silu(a) ⊙ b), where (a, b) = W12 x.

    As in DINOv2's giant model (facebookresearch/dinov2 b8931f7), with its names. About 8 D / 3
    hidden features, a multiple of 8: three matrices then have as many numbers as an MLP's two.

    Args:
        dim: features of a token, D.
        bias: of both linear maps.
    """

    def __init__(self, dim: int, *, bias: bool = True):
        super().__init__()
        hidden = (int(4 * dim * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden, bias=bias)
        self.w3 = nn.Linear(hidden, dim, bias=bias)

    def forward(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        gate_TM, value_TM = self.w12(tokens).chunk(2, dim=-1)
        return self.w3(F.silu(gate_TM) * value_TM)


class ISTA(nn.Module):
    """One step of iterative shrinkage-thresholding on a square dictionary (CRATE; book (7.3.6)).

    ReLU(u + η(Dᵀu − DᵀDu) − ηλ) for a token u as a column. The threshold is subtracted, as in the
    official code (Ma-Lab/CRATE 674408f); the book prints a plus sign. The official code takes three
    products with T tokens. Here it is one, u (Dᵀ − DᵀD). Without gradients, if the tokens are too
    few to pay for DᵀD, it is two, Dᵀ(u − Du). Both are exact, and differ by rounding only. But
    rounding may move an entry over the ReLU's edge, where the gradient jumps: training always uses
    the first form, however a batch is packed or split.

    Args:
        dim: features of a token, D.
        eta: step size η > 0, fixed; 0.1 as published.
        lmbda: sparsity λ >= 0, fixed; 0.1 as published.

    Raises:
        ValueError: eta or lmbda out of range.
    """

    def __init__(self, dim: int, *, eta: float = 0.1, lmbda: float = 0.1):
        super().__init__()
        _check_step("ISTA", eta, lmbda)
        self.eta = eta
        self.lmbda = lmbda
        self.weight = nn.Parameter(torch.empty(dim, dim))  # D
        nn.init.kaiming_uniform_(self.weight)  # bound √(6/d)

    def forward(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        step_TD = self._step(tokens)
        return torch.add(tokens, step_TD, alpha=self.eta).sub_(self.eta * self.lmbda).relu_()

    def _step(self, tokens_TD: Tensor) -> Tensor:
        """Returns Dᵀ(u − Du) for each row u.

        In an exported graph the number of tokens is unknown and DᵀD is a constant to fold.
        """
        transposed_DD = self.weight.t()
        many = torch.compiler.is_exporting() or tokens_TD.shape[0] >= tokens_TD.shape[1]
        if many or torch.is_grad_enabled():
            return F.linear(tokens_TD, transposed_DD - transposed_DD @ self.weight)
        return F.linear(tokens_TD - F.linear(tokens_TD, self.weight), transposed_DD)


class ODL(nn.Module):
    """Overcomplete dictionary layer (CRATE-α, Yang et al. 2024; book (7.5.4)).

    `steps` proximal gradient steps from z = 0 on ½‖x − Dz‖² + λ Σ z, z >= 0, for a token x as a
    column, z ← ReLU(z − ηDᵀ(Dz − x) − ηλ), then a decoding. The book decodes with D itself, the
    official code (CRATE-alpha edbd624) with a second dictionary D₁, while D and Dᵀ stay tied in the
    steps. Names and initial values are those of its JAX form.

    Args:
        dim: features of a token, D.
        ratio: atoms per feature, >= 1.
        steps: proximal steps, >= 1. Published: 2.
        eta: step size η > 0, fixed; 0.1 as published.
        lmbda: sparsity λ >= 0, fixed; 0.1 as published.
        decoupled: decode with a second dictionary, `D1`; otherwise with D.

    Raises:
        ValueError: ratio, steps, eta or lmbda out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        ratio: int = 4,
        steps: int = 2,
        eta: float = 0.1,
        lmbda: float = 0.1,
        decoupled: bool = True,
    ):
        super().__init__()
        _check_ratio("ODL", ratio)
        _check_step("ODL", eta, lmbda)
        if steps < 1:
            raise ValueError(f"ODL: steps is {steps}, but must be at least 1")
        self.steps = steps
        self.eta = eta
        self.lmbda = lmbda
        self.D = nn.Parameter(torch.empty(dim, ratio * dim))
        self.D1 = nn.Parameter(torch.empty(dim, ratio * dim)) if decoupled else None
        for dictionary_DM in self.parameters():
            # "fan_out" is torch's name for the rows: bound √(6/d), not √(6/M).
            nn.init.kaiming_uniform_(dictionary_DM, mode="fan_out")

    def forward(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        codes_TM = self._descend(tokens).relu_()  # Dz = 0 at first: one product
        for _ in range(self.steps - 1):
            residual_TD = tokens - F.linear(codes_TM, self.D)
            codes_TM = self._descend(residual_TD).add_(codes_TM).relu_()
        return F.linear(codes_TM, self.D if self.D1 is None else self.D1)

    def _descend(self, residual_TD: Tensor) -> Tensor:
        """Returns ηDᵀr − ηλ for each row r, in one pass over the codes."""
        threshold_M = residual_TD.new_full(self.D.shape[1:], -self.eta * self.lmbda)
        return F.linear(self.eta * residual_TD, self.D.t(), threshold_M)


def _check_ratio(operator: str, ratio: int) -> None:
    if ratio < 1:
        raise ValueError(f"{operator}: ratio is {ratio}, but must be at least 1")


def _check_step(operator: str, eta: float, lmbda: float) -> None:
    if not 0 < eta < float("inf"):
        raise ValueError(f"{operator}: eta is {eta}, but must be a finite number above 0")
    if not 0 <= lmbda < float("inf"):
        raise ValueError(f"{operator}: lmbda is {lmbda}, but must be a finite number, at least 0")
