"""Token statistics self-attention: ours against the published formula, and its growth with tokens.

First, the mixing of tokens, forward and backward, without the two linear maps that both have: the
formula written out op by op, in the order of the official code (RobinWu218/ToST 071ea98), and ours.
Values and gradients must agree before anything is timed. Blocks of calls are alternated in one
process; printed are medians, and the median, minimum and maximum of the ratios within a block.

Second, whole operators (TSSA, and MHSA by scaled_dot_product_attention) on one image of 256 to
65,536 tokens, forward and backward: the seconds, the bytes of all distinct storages that autograd
saves for the backward pass (without parameters and input; on CUDA also the allocator's peak), and
the exponent a of N^a fitted to them. A size is skipped if an operator's growth so far predicts more
than --budget seconds for it.

    python -m benchmarks.tssa [--device cuda] [--blocks 9 --budget 60 --largest 65536] [--save]

On CUDA the fused kernels are timed, in float32 and bfloat16, against the formula with and without
`torch.compile`.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import peak_bytes, saved_bytes
from benchmarks.timing import (
    Work,
    alternate,
    keep_freed_memory,
    one_line,
    provenance,
    seconds,
    speed_up,
)
from vitrail.backbones.operators.attention import MHSA, Attention
from vitrail.backbones.operators.tssa import TSSA

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-4  # largest difference in values and gradients, relative to the largest entry
# images, tokens, width, heads
CPU_SIZES = [
    (32, 197, 384, 6),
    (32, 197, 384, 8),
    (32, 197, 192, 4),
    (8, 1024, 384, 8),
    (1, 16384, 384, 8),
]
CUDA_SIZES = [(64, 197, 384, 8), (256, 197, 384, 8), (32, 1024, 384, 8), (1, 65536, 384, 8)]
WIDTH, HEADS = 384, 8  # ToST-S
SMALLEST = 256  # tokens; each next size is four times as large

Mix = Callable[[Tensor, Tensor], Tensor]


class ParityError(Exception):
    """Raised if the two sides do not compute the same result."""


def published(projected: Tensor, temp: Tensor) -> Tensor:
    """Computes the published formula: projected tokens [B, N, D], temp [h, 1] -> [B, N, D]."""
    w = projected.unflatten(-1, (len(temp), -1)).transpose(1, 2)
    lengths = (F.normalize(w, dim=-2) ** 2).sum(-1)
    pi = torch.softmax(lengths * temp, dim=1)
    shares = pi / (pi.sum(-1, keepdim=True) + 1e-8)
    dots = shares.unsqueeze(-2) @ w**2
    mixed = -(w * pi.unsqueeze(-1)) * (1 / (1 + dots))
    return mixed.transpose(1, 2).flatten(2)


def ours(operator: TSSA, projected: Tensor, temp: Tensor) -> Tensor:
    assert temp is operator.temp
    return operator.mix(projected)


def results(mix: Mix, projected: Tensor, temp: Tensor, cotangent: Tensor) -> list[Tensor]:
    mixed = mix(projected, temp)
    return [mixed, *torch.autograd.grad(mixed, (projected, temp), cotangent.to(mixed.dtype))]


def measured(mix: Mix, projected: Tensor, temp: Tensor, cotangent: Tensor) -> Tensor:
    return results(mix, projected, temp, cotangent)[1].flatten()[0]


def require_parity(*sides: list[Tensor]) -> float:
    pairs = zip(*sides, strict=True)
    gap = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    if not gap <= TOLERANCE:
        raise ParityError(f"values or gradients differ by {gap:.1e}: not timed")
    return gap


def compare(size: tuple[int, int, int, int], dtype: torch.dtype, args: argparse.Namespace) -> str:
    """Returns rows of the first table."""
    *shape, heads = size
    torch.manual_seed(0)
    operator = TSSA(shape[-1], heads).to(args.device)
    operator.temp.data.uniform_(0.5, 2)
    projected = torch.randn(shape, device=args.device, requires_grad=True)
    cotangent = torch.randn(shape, device=args.device)
    mixes: dict[str, Mix] = {"as published": published, "ours": partial(ours, operator)}
    sides = [results(mix, projected, operator.temp, cotangent) for mix in mixes.values()]
    gap = require_parity(*sides)
    del sides

    if args.device == "cuda":
        mixes["published + torch.compile"] = torch.compile(published, dynamic=False)
    given = projected.detach().to(dtype).requires_grad_(), operator.temp, cotangent.to(dtype)
    ways: dict[str, Work] = {name: partial(measured, mix, *given) for name, mix in mixes.items()}
    alternate(ways, 1, 2)  # warm up, and compile
    times = alternate(ways, args.blocks, args.calls)
    rows = []
    for peer in (name for name in times if name != "ours"):
        slow, fast = (statistics.median(times[name]) * 1e3 for name in (peer, "ours"))
        ratio, least, most = speed_up(times[peer], times["ours"])
        where = f"{' × '.join(map(str, shape))}, {heads}"
        rows.append(
            f"| {where} | {str(dtype).removeprefix('torch.')} | {peer} | {slow:.2f} | {fast:.2f} | "
            f"{ratio:.2f} | {least:.2f} | {most:.2f} | {gap:.0e} |"
        )
    return "\n".join(rows)


def forward(operator: Attention, tokens: Tensor) -> Tensor:
    return operator(tokens, [(1, len(tokens))]).square().mean()


def step(operator: Attention, tokens: Tensor) -> Tensor:
    operator.zero_grad(set_to_none=True)
    tokens.grad = None
    loss = forward(operator, tokens)
    loss.backward()
    return loss.detach()


def exponent(sizes: list[int], costs: list[float]) -> float:
    """Returns a of cost = constant · N^a by least squares on logarithms; NaN below two sizes."""
    if len(sizes) < 2:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def expected_seconds(sizes: list[int], times: list[float], n_tokens: int) -> float:
    """Predicts the seconds of the next size by the growth between the last two; 0 before that."""
    if len(sizes) < 2:
        return 0.0
    return times[-1] * (n_tokens / sizes[-1]) ** max(1.0, exponent(sizes[-2:], times[-2:]))


def growth(kind: type[Attention], args: argparse.Namespace) -> list[str]:
    """Returns rows of the second table for one operator, followed by the fits."""
    torch.manual_seed(0)
    operator = kind(WIDTH, HEADS).to(args.device)
    sizes: list[int] = []
    times: list[float] = []
    kept: list[float] = []
    rows = []
    n_tokens = SMALLEST
    while n_tokens <= args.largest:
        expected = expected_seconds(sizes, times, n_tokens)
        if expected > args.budget:
            why = f"not run: about {expected:.0f} s expected, budget {args.budget:.0f} s"
            rows.append(f"| {kind.__name__} | {n_tokens:,} | {why} | |")
            break
        tokens = torch.randn(n_tokens, WIDTH, device=args.device, requires_grad=True)
        work = partial(step, operator, tokens)
        first = seconds(work, 1)
        calls = max(1, min(50, int(0.2 / first)))
        repeats = args.blocks if first * args.blocks < args.budget else 1
        times.append(statistics.median(seconds(work, calls) for _ in range(repeats)))
        kept.append(saved_bytes(operator, [tokens], partial(forward, operator, tokens)) / 2**20)
        sizes.append(n_tokens)
        peak = ""
        if args.device == "cuda":
            peak = f" (peak {peak_bytes(partial(forward, operator, tokens)) / 2**20:.0f})"
        row = f"| {kind.__name__} | {n_tokens:,} | {times[-1] * 1e3:.1f} | {kept[-1]:.1f}{peak} |"
        rows.append(row)
        n_tokens *= 4
    fits = f"N^{exponent(sizes, times):.2f} | N^{exponent(sizes, kept):.2f}"
    return [*rows, f"| {kind.__name__} | fit | {fits} |"]


def main_memory() -> float:
    """Returns the main memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    fitting = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=fitting)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--calls", type=int, help="calls of a block; default 2, on CUDA 50")
    parser.add_argument(
        "--budget", type=float, default=60.0, help="largest time of a step, in seconds"
    )
    parser.add_argument(
        "--largest", type=int, default=65536, help="largest number of tokens in the second part"
    )
    parser.add_argument("--save", action="store_true", help="write to benchmarks/results/")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
    args.calls = (50 if args.device == "cuda" else 2) if args.calls is None else args.calls
    if min(args.blocks, args.calls, args.budget) <= 0 or args.largest < SMALLEST:
        parser.error(f"--blocks, --calls, --budget must be > 0 and --largest >= {SMALLEST}")
    return args


def report(args: argparse.Namespace) -> str:
    origin = provenance(args.device)
    sizes, dtypes = CPU_SIZES, [torch.float32]
    if args.device == "cuda":
        sizes, dtypes = CUDA_SIZES, [torch.float32, torch.bfloat16]
    lines = [
        "Mixing of tokens, forward + backward. "
        f"Medians of {args.blocks} alternated blocks of {args.calls} calls; gap: the largest "
        "relative difference of values and gradients, in float32.",
        "",
        "| images × tokens × width, heads | dtype | peer | peer, ms | ours, ms | speed-up | least "
        "| most | gap |",
        "|---|---|---|---|---|---|---|---|---|",
        *(compare(size, dtype, args) for size in sizes for dtype in dtypes),
        "",
        f"Whole operators with both linear maps, width {WIDTH}, {HEADS} heads, one image, float32, "
        "forward + backward. Kept: bytes that autograd saves. "
        f"A step may take {args.budget:.0f} s "
        f"and the machine has {main_memory():.0f} GiB.",
        "",
        "| operator | tokens | ms | kept, MiB |",
        "|---|---|---|---|",
        *growth(TSSA, args),
        *growth(MHSA, args),
        "",
        f"{one_line(origin)}.",
    ]
    return "\n".join(lines)


def main() -> None:
    args = arguments()
    keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = False  # exact products for the parity check
    try:
        text = report(args)
    except ParityError as error:
        sys.exit(str(error))
    print(text)
    if args.save:
        path = RESULTS / f"tssa_{args.device}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# `python -m benchmarks.tssa`\n\n{text}\n")


if __name__ == "__main__":
    main()
