"""Sinkhorn codes: ours beside the published loop, on scores of 4,096 samples and 3,000 prototypes.

The peer is the loop as facebookresearch/swav 06b1b7c runs it on one process, exp included: the
matrix is transposed and rescaled as a whole, twice an iteration. The codes must agree before
anything is timed. Then blocks of calls are alternated in one process; medians are printed, and the
median, the least and the most of the ratios within a block.

Twice: with memory that is freed kept by the process, so that only the arithmetic and the passes
over memory count; and with glibc's own handling, which gives large matrices back to the kernel and
faults them in again, as a training process has it. Ours makes one matrix, the loop three.

    python -m benchmarks.sinkhorn [--rows 4096 --prototypes 3000 --blocks 15 --calls 3] [--save]
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import (
    Work,
    alternate,
    keep_freed_memory,
    one_line,
    provenance,
    speed_up,
)
from vitrail.nn.sinkhorn import sinkhorn

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-5  # largest difference of two codes; each lies in [0, 1]
EPSILON, ITERATIONS, FEATURES = 0.05, 3, 128  # SwAV's


Codes = Callable[[Tensor, float, int], Tensor]


class ParityError(Exception):
    """The two sides do not compute the same thing."""


def published(scores_BK: Tensor, epsilon: float, iterations: int) -> Tensor:
    """[B, K] -> [B, K]: the passes of the reference, in its order."""
    q_KB = torch.exp(scores_BK / epsilon).t()
    q_KB /= q_KB.sum()
    share_K = torch.full_like(q_KB[:, 0], 1 / q_KB.shape[0])
    share_B = torch.full_like(q_KB[0], 1 / q_KB.shape[1])
    rows_K = q_KB.sum(1)
    for _ in range(iterations):
        q_KB *= (share_K / rows_K).unsqueeze(1)
        q_KB *= (share_B / q_KB.sum(0)).unsqueeze(0)
        rows_K = q_KB.sum(1)
    return (q_KB / q_KB.sum(0, keepdim=True)).t()


WAYS: dict[str, Codes] = {"as published": published, "ours": sinkhorn}


def make_scores(rows: int, prototypes: int) -> Tensor:
    """Cosines of random unit vectors."""
    generator = torch.Generator().manual_seed(0)
    z, c = (torch.randn(n, FEATURES, generator=generator) for n in (rows, prototypes))
    return torch.nn.functional.normalize(z) @ torch.nn.functional.normalize(c).T


def require_parity(expected: Tensor, codes: Tensor) -> float:
    gap = (codes - expected).abs().max().item()
    if not gap <= TOLERANCE:
        raise ParityError(f"codes differ by {gap:.1e}: not timed")
    return gap


def last_entry(way: str, scores: Tensor) -> Tensor:
    return WAYS[way](scores, EPSILON, ITERATIONS)[-1, -1]


def row(memory: str, scores: Tensor, args: argparse.Namespace, gap: float) -> str:
    ways: dict[str, Work] = {way: partial(last_entry, way, scores) for way in WAYS}
    alternate(ways, 1, 1)  # warm up
    times = alternate(ways, args.blocks, args.calls)
    slow, fast = (statistics.median(times[way]) * 1e3 for way in WAYS)
    ratio, least, most = speed_up(*times.values())
    return (
        f"| {' × '.join(f'{n:,}' for n in scores.shape)} | {memory} | {slow:.1f} | {fast:.1f} | "
        f"{ratio:.2f} | {least:.2f} | {most:.2f} | {gap:.0e} |"
    )


def least_work(scores: Tensor) -> dict[str, Work]:
    """What no order of passes can leave out: each alone, on memory that is there already."""
    kernel, a = torch.softmax(scores / EPSILON, 1), torch.ones(scores.shape[1])

    def exponentials() -> Tensor:
        return torch.softmax(scores, 1, out=kernel)[-1, -1]

    def look() -> Tensor:  # as often as there are iterations, but for the first
        return (kernel @ a)[-1]

    def write() -> Tensor:
        return kernel.mul_(a)[-1, -1]

    return {"exp of every entry": exponentials, "one look": look, "one rewrite": write}


def floor(scores: Tensor, args: argparse.Namespace) -> str:
    times = alternate(least_work(scores), args.blocks, args.calls)
    exponentials, look, write = (statistics.median(t) * 1e3 for t in times.values())
    total = exponentials + (ITERATIONS - 1) * look + write
    return (
        f"What cannot be left out, each pass alone, memory kept: exp of every entry "
        f"{exponentials:.1f} ms, {ITERATIONS - 1} looks at the matrix of {look:.1f} ms, one "
        f"rewrite of {write:.1f} ms: {total:.1f} ms together."
    )


def report(args: argparse.Namespace) -> str:
    origin = provenance("cpu")
    scores = make_scores(args.rows, args.prototypes)
    gap = require_parity(*(way(scores, EPSILON, ITERATIONS) for way in WAYS.values()))
    as_it_is = row("glibc's own", scores, args, gap)
    keep_freed_memory()  # it lasts
    return "\n".join(
        [
            f"Float32, {ITERATIONS} iterations, ε = {EPSILON}. Medians of {args.blocks} alternated "
            f"blocks of {args.calls} calls; gap: the largest difference of two codes.",
            "",
            "| samples × prototypes | freed memory | as published, ms | ours, ms | speed-up "
            "| least | most | gap |",
            "|---|---|---|---|---|---|---|---|",
            row("kept", scores, args, gap),
            as_it_is,
            "",
            floor(scores, args),
            "",
            f"{one_line(origin)}.",
        ]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"rows": 4096, "prototypes": 3000, "blocks": 15, "calls": 3}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--save", action="store_true", help="into benchmarks/results/")
    args = parser.parse_args()
    if min(getattr(args, name) for name in sizes) <= 0:
        parser.error("--rows, --prototypes, --blocks and --calls must be above 0")
    return args


def main() -> None:
    args = arguments()
    try:
        text = report(args)
    except ParityError as error:
        sys.exit(str(error))
    print(text)
    if args.save:
        path = RESULTS / "sinkhorn_cpu.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# `python -m benchmarks.sinkhorn`\n\n{text}\n")


if __name__ == "__main__":
    main()
