"""Cross-entropy of views over many prototypes, without ever storing all views' logits.

Each view j of a sample is compared with the targets q_i of the teacher's views i ≠ j (DINO, Caron
et al. 2021, eq. (3); the teacher's T views are the student's first T). With logits s_j = W z_j / τ,
and n_j the number of targets of view j,

    Σ_{i≠j} -q_i · log softmax(s_j)  =  n_j logsumexp(s_j)  -  s_j · Σ_{i≠j} q_i
                                     =  n_j logsumexp(s_j)  -  z_j · Σ_{i≠j} Wᵀq_i / τ

so the student's logits are needed for their logsumexp only, and each target enters as one vector
Wᵀq_i of the size of z. Its gradients, with p_j = softmax(s_j):

    d/dz_j = (n_j Wᵀp_j - Σ_{i≠j} Wᵀq_i) / τ
    d/dW   = Σ_j (n_j p_j - Σ_{i≠j} q_i) z_jᵀ / τ

The result is a scalar: both gradients are known, up to the factor that `backward` is given, as soon
as the logits are. `forward` computes them from some rows of logits at a time, and stores no logits.
These are the three products of a linear layer's forward and backward pass, and a few passes over
memory; with stored logits, their softmax and its gradient it was more than ten.

Shape legend: V views of the student · T of the teacher, the student's first · B samples ·
R = V·B rows · r rows of a slice · Z bottleneck · K prototypes.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# 32 MiB in float32, 128 rows of 65,536: enough work for a product, and it fits the L2 cache of a
# large GPU. The result depends on it by rounding only.
LOGITS_AT_ONCE = 2**23


def prototype_entropy(
    student: Float[Tensor, "V B Z"],
    prototypes: Float[Tensor, "K Z"],
    targets: Float[Tensor, "T B K"],
    temp: float,
) -> Float[Tensor, ""]:
    """Returns the mean cross-entropy over samples and over pairs of a target and a different view.

    Differentiable once, in `student` and `prototypes`.

    Args:
        student: z, the features that are compared with the prototypes. View i < T is the view of
            targets[i].
        prototypes: W.
        targets: q, distributions over prototypes (rows sum to 1); they get no gradient.
        temp: τ, the temperature of the student's softmax.

    Returns:
        Nats, in the common dtype of the arguments: float32 in training.
    """
    assert len(targets) <= len(student) > 1
    assert temp > 0
    with torch.autocast(student.device.type, enabled=False):
        return _PrototypeEntropy.apply(student, prototypes, targets, temp)


class _PrototypeEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_VBZ: Tensor, w_KZ: Tensor, q_TBK: Tensor, temp: float) -> Tensor:
        views, n_targets = len(z_VBZ), len(q_TBK)
        met_V = z_VBZ.new_full((views,), n_targets)  # n_j
        met_V[:n_targets] -= 1
        scale = 1 / (met_V.sum() * z_VBZ.shape[1])  # pairs and samples that the mean is over
        scaled_VBZ = z_VBZ / temp

        met_R1 = met_V.repeat_interleave(z_VBZ.shape[1])[:, None]
        entropy, grad_z_RZ, grad_w_KZ = _log_norms(scaled_VBZ.flatten(0, 1), w_KZ, met_R1)
        grad_z_VBZ = grad_z_RZ.view_as(z_VBZ)

        expected_TBZ = q_TBK @ w_KZ  # Wᵀq_i
        of_others_VBZ = expected_TBZ.sum(0).expand_as(z_VBZ).clone()
        of_others_VBZ[:n_targets] -= expected_TBZ
        entropy -= (scaled_VBZ * of_others_VBZ).sum()
        grad_z_VBZ -= of_others_VBZ
        others_TBZ = scaled_VBZ.sum(0) - scaled_VBZ[:n_targets]  # Σ_{j≠i} z_j / τ
        grad_w_KZ.addmm_(q_TBK.flatten(0, 1).T, others_TBZ.flatten(0, 1), alpha=-1)

        ctx.save_for_backward(grad_z_VBZ.mul_(scale / temp), grad_w_KZ.mul_(scale))
        return entropy * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_z_VBZ, grad_w_KZ = ctx.saved_tensors
        return grad * grad_z_VBZ, grad * grad_w_KZ, None, None


def _log_norms(z_RZ: Tensor, w_KZ: Tensor, met_R1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns Σ over rows of n · logsumexp(W z), and its gradients with respect to z and W."""
    total = z_RZ.new_zeros(())
    grad_z_RZ, grad_w_KZ = torch.empty_like(z_RZ), torch.zeros_like(w_KZ)
    rows = min(len(z_RZ), max(1, LOGITS_AT_ONCE // len(w_KZ)))
    slice_rK = z_RZ.new_empty(rows, len(w_KZ))  # shared by all slices
    for z_rZ, met_r1, grad_z_rZ in zip(
        z_RZ.split(rows), met_R1.split(rows), grad_z_RZ.split(rows), strict=True
    ):
        logits_rK = torch.mm(z_rZ, w_KZ.T, out=slice_rK[: len(z_rZ)])
        most_r1 = logits_rK.amax(1, keepdim=True)
        exp_rK = logits_rK.sub_(most_r1).exp_()
        norm_r1 = exp_rK.sum(1, keepdim=True)
        total += (met_r1 * (most_r1 + norm_r1.log())).sum()
        # the softmax is exp / norm; its rows are divided after the products, where they are short
        weight_r1 = met_r1 / norm_r1
        torch.mul(exp_rK @ w_KZ, weight_r1, out=grad_z_rZ)
        grad_w_KZ.addmm_(exp_rK.T, weight_r1 * z_rZ)
    return total, grad_z_RZ, grad_w_KZ
