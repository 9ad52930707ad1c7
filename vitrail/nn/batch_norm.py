"""Batch norm whose training statistics are those of the global batch, over all ranks.

torch's `SyncBatchNorm` works on CUDA only. With statistics of a rank's own share, the loss would
depend on how the batch was split.

Shape legend: B samples of this rank · C channels · N ranks · n values of a channel, over all ranks.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.distributed.collectives import all_gather, sum_over_ranks, world_size

MOMENTUM = 0.1  # torch's and timm's: share of a new batch in the running statistics


class GlobalBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm1d` and `nn.BatchNorm2d` over [B, C] or [B, C, ...], synchronised over ranks.

    Ioffe & Szegedy 2015, Algorithm 1, with sums over the global batch. State-dict keys, the
    running averages (of the unbiased variance) and evaluation mode are torch's. With one rank it
    is `F.batch_norm` itself. Statistics are float32 or better, whatever the input's precision.

    All ranks must call in the same order, in training mode, and in backward too.

    Raises:
        ValueError: in training, a channel has one value only, and so no variance.
    """

    def forward(self, x: Float[Tensor, "B C *rest"]) -> Float[Tensor, "B C *rest"]:
        of_batch = self.training or self.running_mean is None
        if of_batch and x.numel() == x.shape[1] and world_size() == 1:
            raise ValueError(
                f"batch norm in training got one value per channel (input {tuple(x.shape)}); use "
                f"a batch of 2 or more, larger images, or .eval()"
            )
        if not of_batch or world_size() == 1:
            return super().forward(x)
        mean_C, var_C, n = global_moments(x.detach())
        self._track(mean_C, var_C * (n / (n - 1)))
        weight_C = x.new_ones(x.shape[1]) if self.weight is None else self.weight
        bias_C = x.new_zeros(x.shape[1]) if self.bias is None else self.bias
        return _Normalise.apply(x, weight_C, bias_C, mean_C, (var_C + self.eps).rsqrt(), n)

    @torch.no_grad()
    def _track(self, mean_C: Tensor, unbiased_C: Tensor) -> None:
        """Updates the running statistics as torch does: old + momentum · (new - old)."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C.to(self.running_mean), share)
        self.running_var.lerp_(unbiased_C.to(self.running_var), share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Replaces the check of nn.BatchNorm2d, which refuses [B, C]."""
        assert input.dim() >= 2, tuple(input.shape)


def convert_batch_norms(module: nn.Module) -> nn.Module:
    """Replaces torch's batch norms within `module` by `GlobalBatchNorm` with the same parameters.

    Returns:
        `module`, changed in place, or its replacement if it is itself a batch norm.
    """
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        return _converted(module)
    known = isinstance(module, GlobalBatchNorm) or not isinstance(
        module, nn.modules.batchnorm._BatchNorm
    )
    assert known, f"{type(module).__name__} does more than batch norm"
    for name, child in list(module.named_children()):
        setattr(module, name, convert_batch_norms(child))
    return module


def _converted(norm: Any) -> GlobalBatchNorm:
    new = GlobalBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    new.weight, new.bias = norm.weight, norm.bias
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    return new.train(norm.training)


@torch.no_grad()
def global_moments(
    x: Float[Tensor, "B C *rest"],
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"], Float[Tensor, ""]]:
    """Returns mean, biased variance and number n of the values of each channel, over all ranks.

    Two passes on each rank, then the ranks' (count, mean, sum of squared deviations) are merged by
    Chan, Golub & LeVeque 1979: no difference of large sums is formed. One collective.

    Returns:
        float32 or better, bit-identical on all ranks.
    """
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    var_C, mean_C = torch.var_mean(values, dim=_all_but_channels(x), correction=0)
    count_C = torch.full_like(mean_C, x.numel() // x.shape[1])
    n_NC, mean_NC, var_NC = all_gather(torch.stack([count_C, mean_C, var_C])[None]).unbind(1)
    n_C = n_NC.sum(0)
    share_NC = n_NC / n_C
    mean_C = (share_NC * mean_NC).sum(0)
    return mean_C, (share_NC * (var_NC + (mean_NC - mean_C) ** 2)).sum(0), n_C[0]


class _Normalise(torch.autograd.Function):
    """Computes w (x - μ)/σ + b, where μ and σ are functions of the x of all ranks.

    Written as one function, so only x itself is saved for backward. With x̂ =
    (x - μ)/σ and the upstream gradient g, summed over all ranks' values:
    dx = w/σ · (g - Σg/n - x̂ Σ(g x̂)/n). The gradients of w and b are the rank's own share.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, *moments: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_C, *moments)
        scale_C = weight_C * moments[1]
        return (_centred(x, moments[0]) * _wide(scale_C, x) + _wide(bias_C, x)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight_C, mean_C, rstd_C, n = ctx.saved_tensors
        dims = _all_but_channels(x)
        normal, grad = _centred(x, mean_C) * _wide(rstd_C, x), grad.to(mean_C.dtype)
        mine_2C = torch.stack([grad.sum(dims), (grad * normal).sum(dims)])
        along_1_C, along_x_C = (sum_over_ranks(mine_2C) / n).unbind(0)
        grad = grad - _wide(along_1_C, x) - normal * _wide(along_x_C, x)
        grad_x = (grad * _wide(weight_C * rstd_C, x)).to(x.dtype)
        grad_bias_C, grad_weight_C = mine_2C.to(weight_C.dtype).unbind(0)
        return grad_x, grad_weight_C, grad_bias_C, None, None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def _centred(x: Tensor, mean_C: Tensor) -> Tensor:
    return x.to(mean_C.dtype) - _wide(mean_C, x)


def _wide(per_C: Tensor, x: Tensor) -> Tensor:
    """Reshapes [C] to [1, C, 1, ...], with as many axes as x."""
    return per_C.view(1, -1, *[1] * (x.dim() - 2))
