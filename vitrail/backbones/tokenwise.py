"""Token-wise operators: what a layer does to each token alone.

Shape legend: T tokens · D features.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class MLP(nn.Module):
    """The transformer's two linear maps with an exact GELU between, four times as wide."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        return self.fc2(F.gelu(self.fc1(tokens)))


class ISTA(nn.Module):
    """One step of iterative shrinkage-thresholding on a square dictionary (CRATE; book (7.3.6)).

    ReLU(u + η(Dᵀu − DᵀDu) − ηλ) for a token u as a column. The threshold is subtracted, as in the
    official code (Ma-Lab/CRATE 674408f); the book prints a plus sign. There it takes three
    products; here two, since Dᵀu − DᵀDu = Dᵀ(u − Du).

    Args:
        eta: step size η. lmbda: sparsity λ. Both fixed, 0.1 as published.
    """

    def __init__(self, dim: int, eta: float = 0.1, lmbda: float = 0.1):
        super().__init__()
        self.eta = eta
        self.lmbda = lmbda
        self.weight = nn.Parameter(torch.empty(dim, dim))  # D
        nn.init.kaiming_uniform_(self.weight)  # bound √(6/d)

    def forward(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        residual_TD = tokens - F.linear(tokens, self.weight)  # rows: (u − Du)ᵀ = uᵀ − uᵀDᵀ
        step_TD = F.linear(residual_TD, self.weight.t())
        return F.relu(tokens + self.eta * step_TD - self.eta * self.lmbda)
