"""Token statistics self-attention on CUDA: `tssa_cpu.TokenStatistics` as eight kernels.

Each program has one head of one image and a run of its tokens ("split"), and iterates over them in
tiles of tokens × channels. A sum over all tokens is stored as one part for each split, and the next
kernel adds up the parts: no atomics, so the same input gives the same output. If programs are fewer
than a GPU can run at once, runs are shorter. Loads are of the input's dtype, everything else is
float32.

Forward: squares -> scores -> memberships and their moments -> outputs. Backward: products ->
gradients of Π -> of scores -> of the input. Symbols as in `tssa_cpu`.

The kernels run on CPU, slowly, when TRITON_INTERPRET=1 is set before Triton is imported; that is
how they are tested without a GPU.

Shape legend: B images · N tokens · D channels · h heads · p = D/h channels of a head · S splits ·
n tokens of a tile. In a kernel: `pair` is image · h + head, w and G are [B N D], Π and r [B h N],
numbers of a channel [B h p], parts of them [B h S p].
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from vitrail.backbones.operators.tssa_cpu import NORM_FLOOR, TOTAL_EPS

PROGRAMS = 512  # about four for each multiprocessor of an H100
TILE = 4096  # elements, 32 a thread with four warps
MAX_SPLITS = 64

# constexpr, because kernels may only read such globals
FLOOR = tl.constexpr(NORM_FLOOR**2)
EPS = tl.constexpr(TOTAL_EPS)


@triton.jit
@no_type_check
def _tile(base, pair, rows, columns, N, H, P):
    """Returns offsets of a head's tile in [B N D], and a mask of its valid elements."""
    image = (pair // H).to(tl.int64) * N * H * P
    at = base + image + (pair % H) * P + rows[:, None] * (H * P) + columns[None, :]
    return at, (rows < N)[:, None] & (columns < P)[None, :]


@triton.jit
@no_type_check
def _added_up(parts, pair, columns, P, S):
    """Returns the sum over splits of [B h S p], for one head."""
    total = tl.zeros_like(columns).to(tl.float32)
    for s in range(S):
        total += tl.load(parts + (pair * S + s) * P + columns, mask=columns < P, other=0.0)
    return total


@triton.jit
@no_type_check
def _squares(w, parts, N, H, P, S, RUN, BN: tl.constexpr, BP: tl.constexpr, BH: tl.constexpr):
    """Σ_n w²."""
    pair, split, columns = tl.program_id(0), tl.program_id(1), tl.arange(0, BP)
    total = tl.zeros([BP], tl.float32)
    for start in range(split * RUN, split * RUN + RUN, BN):
        at, exists = _tile(w, pair, start + tl.arange(0, BN), columns, N, H, P)
        x = tl.load(at, mask=exists, other=0.0).to(tl.float32)
        total += tl.sum(x * x, 0)
    tl.store(parts + (pair * S + split) * P + columns, total, mask=columns < P)


@triton.jit
@no_type_check
def _scores(
    w, parts, norms, scores, N, H, P, S, RUN, BN: tl.constexpr, BP: tl.constexpr, BH: tl.constexpr
):
    """S and r."""
    pair, split, columns = tl.program_id(0), tl.program_id(1), tl.arange(0, BP)
    norm = _added_up(parts, pair, columns, P, S)
    norm = tl.where(norm <= FLOOR, FLOOR, norm)  # lets NaN through
    if split == 0:
        tl.store(norms + pair * P + columns, norm, mask=columns < P)
    inverse = 1.0 / norm
    for start in range(split * RUN, split * RUN + RUN, BN):
        rows = start + tl.arange(0, BN)
        at, exists = _tile(w, pair, rows, columns, N, H, P)
        x = tl.load(at, mask=exists, other=0.0).to(tl.float32)
        tl.store(scores + pair * N + rows, tl.sum(x * x * inverse[None, :], 1), mask=rows < N)


@triton.jit
@no_type_check
def _moments(
    w, scores, temp, pis, totals, dots, N, H, P, S, RUN,
    BN: tl.constexpr, BP: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Π, and parts of Σ_n Π and Σ_n Π w². Every head's program forms the softmax of all heads."""
    pair, split, columns = tl.program_id(0), tl.program_id(1), tl.arange(0, BP)
    heads = tl.arange(0, BH)
    first = (pair // H) * H
    temps = tl.load(temp + heads, mask=heads < H, other=0.0)
    own_temp = tl.load(temp + pair % H)
    total = 0.0
    moment = tl.zeros([BP], tl.float32)
    for start in range(split * RUN, split * RUN + RUN, BN):
        rows = start + tl.arange(0, BN)
        known = (heads < H)[:, None] & (rows < N)[None, :]
        every = tl.load(
            scores + (first + heads)[:, None] * N + rows[None, :], mask=known, other=0.0
        )
        every = tl.where((heads < H)[:, None], every * temps[:, None], float("-inf"))
        top = tl.max(every, 0)
        own = tl.load(scores + pair * N + rows, mask=rows < N, other=0.0)
        pi = tl.exp(own * own_temp - top) / tl.sum(tl.exp(every - top[None, :]), 0)
        pi = tl.where(rows < N, pi, 0.0)
        tl.store(pis + pair * N + rows, pi, mask=rows < N)
        at, exists = _tile(w, pair, rows, columns, N, H, P)
        x = tl.load(at, mask=exists, other=0.0).to(tl.float32)
        total += tl.sum(pi, 0)
        moment += tl.sum(x * x * pi[:, None], 0)
    tl.store(totals + pair * S + split, total)
    tl.store(dots + (pair * S + split) * P + columns, moment, mask=columns < P)


@triton.jit
@no_type_check
def _outputs(
    w, pis, total_parts, dot_parts, totals, dots, out, N, H, P, S, RUN,
    BN: tl.constexpr, BP: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """z, d and y."""
    pair, split, columns = tl.program_id(0), tl.program_id(1), tl.arange(0, BP)
    total = EPS
    for s in range(S):
        total += tl.load(total_parts + pair * S + s)
    dot = _added_up(dot_parts, pair, columns, P, S) / total
    if split == 0:
        tl.store(totals + pair, total)
        tl.store(dots + pair * P + columns, dot, mask=columns < P)
    gain = 1.0 / (1.0 + dot)
    for start in range(split * RUN, split * RUN + RUN, BN):
        rows = start + tl.arange(0, BN)
        at, exists = _tile(w, pair, rows, columns, N, H, P)
        x = tl.load(at, mask=exists, other=0.0).to(tl.float32)
        pi = tl.load(pis + pair * N + rows, mask=rows < N, other=0.0)
        y = -x * pi[:, None] * gain[None, :]
        at, exists = _tile(out, pair, rows, columns, N, H, P)
        tl.store(at, y.to(out.dtype.element_ty), mask=exists)


@triton.jit
@no_type_check
def _products(
    grad, w, pis, parts, N, H, P, S, RUN, BN: tl.constexpr, BP: tl.constexpr, BH: tl.constexpr
):
    """Parts of Σ_n Π G w."""
    pair, split, columns = tl.program_id(0), tl.program_id(1), tl.arange(0, BP)
    total = tl.zeros([BP], tl.float32)
    for start in range(split * RUN, split * RUN + RUN, BN):
        rows = start + tl.arange(0, BN)
        at, exists = _tile(w, pair, rows, columns, N, H, P)
        x = tl.load(at, mask=exists, other=0.0).to(tl.float32)
        at, exists = _tile(grad, pair, rows, columns, N, H, P)
        g = tl.load(at, mask=exists, other=0.0).to(tl.float32)
        pi = tl.load(pis + pair * N + rows, mask=rows < N, other=0.0)
        total += tl.sum(x * g * pi[:, None], 0)
    tl.store(parts + (pair * S + split) * P + columns, total, mask=columns < P)


@triton.jit
@no_type_check
def _pi_gradients(
    grad, w, parts, totals, dots, pulls, dpis, N, H, P, S, RUN,
    BN: tl.constexpr, BP: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """δ/z and Π'."""
    pair, split, columns = tl.program_id(0), tl.program_id(1), tl.arange(0, BP)
    dot = tl.load(dots + pair * P + columns, mask=columns < P, other=0.0)
    gain = 1.0 / (1.0 + dot)
    pull = gain * gain * _added_up(parts, pair, columns, P, S) / tl.load(totals + pair)
    if split == 0:
        tl.store(pulls + pair * P + columns, pull, mask=columns < P)
    shared = tl.sum(pull * dot, 0)
    for start in range(split * RUN, split * RUN + RUN, BN):
        rows = start + tl.arange(0, BN)
        at, exists = _tile(w, pair, rows, columns, N, H, P)
        x = tl.load(at, mask=exists, other=0.0).to(tl.float32)
        at, exists = _tile(grad, pair, rows, columns, N, H, P)
        g = tl.load(at, mask=exists, other=0.0).to(tl.float32)
        e = x * pull[None, :] - g * gain[None, :]
        tl.store(dpis + pair * N + rows, tl.sum(x * e, 1) - shared, mask=rows < N)


@triton.jit
@no_type_check
def _score_gradients(
    w, pis, dpis, scores, temp, drs, kappas, dtemps, N, H, P, S, RUN,
    BN: tl.constexpr, BP: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """r', and parts of Σ_n r' w² and τ'."""
    pair, split, columns = tl.program_id(0), tl.program_id(1), tl.arange(0, BP)
    heads = tl.arange(0, BH)
    first = (pair // H) * H
    own_temp = tl.load(temp + pair % H)
    dtemp = 0.0
    total = tl.zeros([BP], tl.float32)
    for start in range(split * RUN, split * RUN + RUN, BN):
        rows = start + tl.arange(0, BN)
        known = (heads < H)[:, None] & (rows < N)[None, :]
        every = (first + heads)[:, None] * N + rows[None, :]
        pi_every = tl.load(pis + every, mask=known, other=0.0)
        mean = tl.sum(pi_every * tl.load(dpis + every, mask=known, other=0.0), 0)
        own = pair * N + rows
        pi = tl.load(pis + own, mask=rows < N, other=0.0)
        ds = pi * (tl.load(dpis + own, mask=rows < N, other=0.0) - mean)
        dr = ds * own_temp
        tl.store(drs + own, dr, mask=rows < N)
        dtemp += tl.sum(ds * tl.load(scores + own, mask=rows < N, other=0.0), 0)
        at, exists = _tile(w, pair, rows, columns, N, H, P)
        x = tl.load(at, mask=exists, other=0.0).to(tl.float32)
        total += tl.sum(x * x * dr[:, None], 0)
    tl.store(dtemps + pair * S + split, dtemp)
    tl.store(kappas + (pair * S + split) * P + columns, total, mask=columns < P)


@triton.jit
@no_type_check
def _input_gradients(
    grad, w, pis, drs, pulls, dots, norms, kappas, dw, N, H, P, S, RUN,
    BN: tl.constexpr, BP: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """w'."""
    pair, split, columns = tl.program_id(0), tl.program_id(1), tl.arange(0, BP)
    own = pair * P + columns
    pull = tl.load(pulls + own, mask=columns < P, other=0.0)
    gain = 1.0 / (1.0 + tl.load(dots + own, mask=columns < P, other=0.0))
    norm = tl.load(norms + own, mask=columns < P, other=1.0)
    kappa = _added_up(kappas, pair, columns, P, S) / norm
    kappa = tl.where(norm <= FLOOR, 0.0, kappa)
    slope = 2.0 / norm
    for start in range(split * RUN, split * RUN + RUN, BN):
        rows = start + tl.arange(0, BN)
        at, exists = _tile(w, pair, rows, columns, N, H, P)
        x = tl.load(at, mask=exists, other=0.0).to(tl.float32)
        at, exists = _tile(grad, pair, rows, columns, N, H, P)
        g = tl.load(at, mask=exists, other=0.0).to(tl.float32)
        pi = tl.load(pis + pair * N + rows, mask=rows < N, other=0.0)
        dr = tl.load(drs + pair * N + rows, mask=rows < N, other=0.0)
        through_pi = pi[:, None] * (2.0 * x * pull[None, :] - g * gain[None, :])
        y = through_pi + x * (dr[:, None] - kappa[None, :]) * slope[None, :]
        at, exists = _tile(dw, pair, rows, columns, N, H, P)
        tl.store(at, y.to(dw.dtype.element_ty), mask=exists)


class FusedTokenStatistics(torch.autograd.Function):
    """`TokenStatistics` by Triton kernels. Differentiable once.

    `apply(projected [B N D], temp [h 1]) -> [B N D]`; float16, bfloat16 or float32, on CUDA.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, temp: Tensor) -> Tensor:
        w_BND = projected.contiguous()
        temps = temp.float().contiguous()
        new, grid, sizes = _plan(w_BND, len(temp))
        parts, total_parts, dot_parts = new("hSp"), new("hS"), new("hSp")
        norms, scores, pis, totals, dots = new("hp"), new("hN"), new("hN"), new("h"), new("hp")
        out_BND = torch.empty_like(w_BND)
        with torch.cuda.device_of(w_BND):
            _squares[grid](w_BND, parts, **sizes)
            _scores[grid](w_BND, parts, norms, scores, **sizes)
            _moments[grid](w_BND, scores, temps, pis, total_parts, dot_parts, **sizes)
            _outputs[grid](w_BND, pis, total_parts, dot_parts, totals, dots, out_BND, **sizes)
        ctx.save_for_backward(w_BND, temp, norms, scores, pis, totals, dots)
        return out_BND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        w_BND, temp, norms, scores, pis, totals, dots = ctx.saved_tensors
        g_BND = grad.contiguous()
        temps = temp.float().contiguous()
        new, grid, sizes = _plan(w_BND, len(temp))
        parts, kappas, dtemps = new("hSp"), new("hSp"), new("hS")
        pulls, dpis, drs = new("hp"), new("hN"), new("hN")
        dw_BND = torch.empty_like(w_BND)
        with torch.cuda.device_of(w_BND):
            _products[grid](g_BND, w_BND, pis, parts, **sizes)
            _pi_gradients[grid](g_BND, w_BND, parts, totals, dots, pulls, dpis, **sizes)
            _score_gradients[grid](w_BND, pis, dpis, scores, temps, drs, kappas, dtemps, **sizes)
            _input_gradients[grid](
                g_BND, w_BND, pis, drs, pulls, dots, norms, kappas, dw_BND, **sizes
            )
        return dw_BND, dtemps.sum((0, 2)).unsqueeze(1).to(temp.dtype)


def _plan(w_BND: Tensor, heads: int) -> tuple[Any, tuple[int, int], dict[str, int]]:
    """Returns a maker of float32 buffers [B ...], the grid of programs, and the kernels' sizes."""
    images, n_tokens, dim = w_BND.shape
    p = dim // heads
    block_p = max(16, triton.next_power_of_2(p))
    block_n = max(16, TILE // block_p)
    tiles = triton.cdiv(n_tokens, block_n)
    run = triton.cdiv(tiles, min(MAX_SPLITS, max(1, PROGRAMS // (images * heads)))) * block_n
    splits = triton.cdiv(n_tokens, run)
    extent = {"h": heads, "S": splits, "p": p, "N": n_tokens}

    def new(axes: str) -> Tensor:
        return w_BND.new_empty([images, *(extent[a] for a in axes)], dtype=torch.float32)

    sizes = {"N": n_tokens, "H": heads, "P": p, "S": splits, "RUN": run}
    sizes |= {"BN": block_n, "BP": block_p, "BH": triton.next_power_of_2(heads)}
    return new, (images * heads, splits), sizes
