"""Token statistics self-attention between its two linear maps: the formula, and a fast form of it.

For the projections w_n of an image's tokens, channel c belonging to head k:

    S_c  = max(Σ_n w_nc², 1e-24)                    ŵ = w/√S
    r_kn = Σ_{c∈k} w_nc²/S_c                        squared length of a normalised projection
    Π_kn = softmax over heads k of τ_k r_kn         memberships
    z_k  = Σ_n Π_kn + 1e-8
    d_c  = Σ_n Π_kn w_nc² / z_k                     second moment of channel c under head k
    g_c  = 1/(1 + d_c)
    y_nc = −Π_kn g_c w_nc

ToST (Wu et al. 2025), eq. 10 and TSSA; constants of the official code (RobinWu218/ToST 071ea98).

`TokenStatistics` computes it in five element-wise passes and three sums, and its gradient in eleven
and three. It saves w, Π, r and one number for each channel for the backward step. On CPU it works
on tiles that stay in cache: some images at a time if they are small, some tokens if they are large.
The sums as products of skinny matrices were measured, and were slower than these passes. So no
operation here is one that autocast would run in half precision, and there is no TF32.

Backward, for the gradient G of y:

    δ_c   = g_c² Σ_n Π_kn G_nc w_nc                 of d
    e_nc  = w_nc δ_c/z_k − g_c G_nc
    Π'_kn = Σ_{c∈k} w_nc e_nc − Σ_{c∈k} δ_c d_c/z_k of Π, hence s' = Π (Π' − Σ_k Π_kn Π'_kn)
    r'_kn = τ_k s'_kn,  τ'_k = Σ_n r_kn s'_kn
    κ_c   = Σ_n r'_kn w_nc²/S_c, or 0 where S is at its floor
    w'_nc = Π_kn (e_nc + w_nc δ_c/z_k) + 2 w_nc (r'_kn − κ_c)/S_c

Shape legend: B images · b images of a tile · N tokens · n tokens of a tile · D channels · h heads ·
p = D/h channels of a head · 1 an axis that is broadcast.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

NORM_FLOOR = 1e-12  # of ‖w_c‖ over tokens
TOTAL_EPS = 1e-8  # added to Σ_n Π

# Elements of a tile on CPU: some float32 tiles of 2 MB stay in cache. The best of 2^16 to 2^30.
TILE = 2**19


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float32 at least: the constants 1e-12 and 1e-8 are zero in half precision."""
    return torch.promote_types(dtype, torch.float32)


def memberships(
    projected: Float[Tensor, "B N D"], temp: Float[Tensor, "h 1"]
) -> Float[Tensor, "B h N"]:
    """Returns Π, each token's shares in the heads, which sum to 1; at least float32."""
    x_BNhp = projected.to(statistics_dtype(projected.dtype)).unflatten(-1, (len(temp), -1))
    squares_BNhp = x_BNhp.square()
    share_BNhp = squares_BNhp / squares_BNhp.sum(1, keepdim=True).clamp(min=NORM_FLOOR**2)
    return (share_BNhp.sum(-1).mT * temp.to(x_BNhp.dtype)).softmax(1)


def token_statistics_formula(
    projected: Float[Tensor, "B N D"], temp: Float[Tensor, "h 1"]
) -> Float[Tensor, "B N D"]:
    """Computes the formula as written, for a compiler or an exporter to fuse and differentiate."""
    pi_BNh1 = memberships(projected, temp).mT.unsqueeze(-1)
    x_BNhp = projected.to(pi_BNh1.dtype).unflatten(-1, (len(temp), -1))
    share_BNh1 = pi_BNh1 / (pi_BNh1.sum(1, keepdim=True) + TOTAL_EPS)
    dots_B1hp = (share_BNh1 * x_BNhp.square()).sum(1, keepdim=True)
    return (-x_BNhp * pi_BNh1 / (1 + dots_B1hp)).flatten(2).to(projected.dtype)


class TokenStatistics(torch.autograd.Function):
    """The formula with a derived backward step. Differentiable once.

    `apply(projected [B N D], temp [h 1]) -> [B N D]`; float16, bfloat16, float32 or float64.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, temp: Tensor) -> Tensor:
        out_BND = torch.empty_like(projected, memory_format=torch.contiguous_format)
        tiles = zip(_image_tiles(projected, temp), _image_tiles(out_BND, temp), strict=True)
        parts = [_forward(w_bNhp, out_bNhp, temp) for w_bNhp, out_bNhp in tiles]
        statistics = [torch.cat(part) for part in zip(*parts, strict=True)]
        ctx.save_for_backward(projected, temp, *statistics)
        return out_BND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        projected, temp, *statistics = ctx.saved_tensors
        dw_BND = torch.empty_like(projected, memory_format=torch.contiguous_format)
        large = [_image_tiles(x, temp) for x in (grad, projected, dw_BND)]
        images = len(large[0][0])
        small = [x.split(images) for x in statistics]
        tiles: list[tuple[Tensor, ...]] = list(zip(*large, *small, strict=True))
        dtemp_h1 = torch.stack([_backward(temp, *tile) for tile in tiles]).sum(0)
        return dw_BND, dtemp_h1.to(temp.dtype)


def _image_tiles(x_BND: Tensor, temp: Tensor) -> tuple[Tensor, ...]:
    """Splits into tiles of images [b N h p]: as many as fit a tile, at least one."""
    images = max(1, _tile_size(x_BND) // max(1, x_BND.shape[1] * x_BND.shape[2]))
    return x_BND.unflatten(-1, (len(temp), -1)).split(images)


def _token_step(x_bNhp: Tensor) -> int:
    """Returns the number of tokens of a tile."""
    return max(1, _tile_size(x_bNhp) // max(1, x_bNhp[:, 0].numel()))


def _tile_size(x: Tensor) -> int:
    # all at once on a GPU, which gains nothing from tiles
    return TILE if x.device.type == "cpu" else max(1, x.numel())


class _Tiles:
    """The results of `make` for the tiles of some tensors, which can be iterated more than once.

    A single tile is stored, since it stays in cache. Several tiles are computed anew each time,
    which costs less than writing all of them to memory and reading them back.
    """

    def __init__(self, make: Callable[..., Tensor], *sources: "Sequence[Tensor] | _Tiles"):
        self._make = make
        self._sources = sources
        self._stored: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._sources[0])

    def __iter__(self) -> Iterator[Tensor]:
        made = map(self._make, *self._sources)
        if len(self) > 1:
            return made
        self._stored = self._stored or list(made)
        return iter(self._stored)


def _forward(w_bNhp: Tensor, out_bNhp: Tensor, temp: Tensor) -> tuple[Tensor, ...]:
    """Fills `out` with y. Returns S [b 1 h p], r and Π [b h N], d [b 1 h p], z [b 1 h 1]."""
    dtype = statistics_dtype(w_bNhp.dtype)
    step = _token_step(w_bNhp)
    ws = _Tiles(lambda x: x.to(dtype), w_bNhp.split(step, 1))
    squares = _Tiles(Tensor.square, ws)
    norms_b1hp = _over_tokens(squares).clamp_(min=NORM_FLOOR**2)
    inverse_b1hp = norms_b1hp.reciprocal()
    scores_bhN = _over_channels(x * inverse_b1hp for x in squares)
    pi_bhN = (scores_bhN * temp.to(dtype)).softmax(1)
    pi_bNh1 = pi_bhN.mT.unsqueeze(-1)
    pis = pi_bNh1.split(step, 1)
    total_b1h1 = pi_bNh1.sum(1, keepdim=True) + TOTAL_EPS
    dots_b1hp = _over_tokens(map(Tensor.mul_, squares, pis)).div_(total_b1h1)
    shrink_b1hp = -1 / (1 + dots_b1hp)
    for x, pi, out in zip(ws, pis, out_bNhp.split(step, 1), strict=True):
        torch.mul(x * pi, shrink_b1hp, out=out)
    return norms_b1hp, scores_bhN, pi_bhN, dots_b1hp, total_b1h1


def _backward(
    temp: Tensor,
    grad_bNhp: Tensor,
    w_bNhp: Tensor,
    dw_bNhp: Tensor,
    norms_b1hp: Tensor,
    scores_bhN: Tensor,
    pi_bhN: Tensor,
    dots_b1hp: Tensor,
    total_b1h1: Tensor,
) -> Tensor:
    """Fills `dw` with w'. Returns τ' [h 1]."""
    dtype = pi_bhN.dtype
    step = _token_step(w_bNhp)
    grads, ws = (_Tiles(lambda x: x.to(dtype), y.split(step, 1)) for y in (grad_bNhp, w_bNhp))
    pis = pi_bhN.mT.unsqueeze(-1).split(step, 1)

    gain_b1hp = 1 / (1 + dots_b1hp)
    delta_b1hp = _over_tokens((g * x).mul_(pi) for g, x, pi in zip(grads, ws, pis, strict=True))
    pull_b1hp = delta_b1hp.mul_(gain_b1hp.square()).div_(total_b1h1)  # δ/z
    es = _Tiles(lambda x, g: (x * pull_b1hp).addcmul_(g, gain_b1hp, value=-1), ws, grads)
    dpi_bhN = _over_channels(map(torch.mul, ws, es))
    dpi_bhN -= (pull_b1hp * dots_b1hp).sum(-1).mT
    dpi_bhN *= pi_bhN
    ds_bhN = torch.addcmul(dpi_bhN, pi_bhN, dpi_bhN.sum(1, keepdim=True), value=-1)
    dr_bNh1 = (ds_bhN * temp.to(dtype)).mT.unsqueeze(-1)

    moved = _Tiles(torch.mul, ws, dr_bNh1.split(step, 1))  # w r'
    kappa_b1hp = _over_tokens(map(torch.mul, moved, ws))
    kappa_b1hp = torch.where(norms_b1hp > NORM_FLOOR**2, kappa_b1hp / norms_b1hp, 0)
    slope_b1hp = 2 / norms_b1hp
    offset_b1hp = kappa_b1hp.mul_(slope_b1hp)
    for x, pi, e, m, dw in zip(ws, pis, es, moved, dw_bNhp.split(step, 1), strict=True):
        e.addcmul_(x, pull_b1hp).mul_(pi).addcmul_(m, slope_b1hp)
        torch.addcmul(e, x, offset_b1hp, value=-1, out=dw)
    return (ds_bhN * scores_bhN).sum((0, 2)).unsqueeze(1)


def _over_tokens(tiles_bnhp: Iterable[Tensor]) -> Tensor:
    """Sums over the tokens of all tiles: [b 1 h p]."""
    return reduce(Tensor.add_, [x.sum(1, keepdim=True) for x in tiles_bnhp])


def _over_channels(tiles_bnhp: Iterable[Tensor]) -> Tensor:
    """Sums over the channels of each head: [b h N], contiguous for a fast softmax over heads."""
    return torch.cat([x.sum(-1).mT for x in tiles_bnhp], -1).contiguous()
