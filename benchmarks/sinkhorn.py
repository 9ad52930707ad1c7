"""Sinkhorn codes: ours against the published loop, for 4,096 samples and 3,000 prototypes.

The peer is the loop as facebookresearch/swav 06b1b7c runs it on one process, including exp: the
matrix is transposed and rescaled as a whole, twice per iteration. The codes must agree before
anything is timed. Blocks of calls are alternated in one process; printed are medians, and the
median, minimum and maximum of the ratios within a block.

Both are measured twice: with freed memory kept by the process, so only arithmetic and passes over
memory count; and with glibc's default, which returns large matrices to the kernel and faults them
in again, as in a training process. Ours allocates one matrix, the loop three.

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
TOLERANCE = 1e-5  # largest difference of two codes, which are in [0, 1]
EPSILON, ITERATIONS, FEATURES = 0.05, 3, 128  # as in SwAV


Codes = Callable[[Tensor, float, int], Tensor]


class ParityError(Exception):
    """Raised if the two sides do not compute the same result."""


def published(scores_BK: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Computes codes [B, K] of scores [B, K] by the passes of the reference, in its order."""
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
    """Returns cosines of random unit vectors, [rows, prototypes]."""
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
    """Returns the passes that no implementation can avoid, each alone, on allocated memory."""
    kernel, a = torch.softmax(scores / EPSILON, 1), torch.ones(scores.shape[1])

    def exponentials() -> Tensor:
        return torch.softmax(scores, 1, out=kernel)[-1, -1]

    def read() -> Tensor:  # once per iteration, but for the first
        return (kernel @ a)[-1]

    def write() -> Tensor:
        return kernel.mul_(a)[-1, -1]

    return {"exp of every entry": exponentials, "one read": read, "one rewrite": write}


def floor(scores: Tensor, args: argparse.Namespace) -> str:
    times = alternate(least_work(scores), args.blocks, args.calls)
    exponentials, read, write = (statistics.median(t) * 1e3 for t in times.values())
    total = exponentials + (ITERATIONS - 1) * read + write
    return (
        f"What cannot be left out, each pass alone, memory kept: exp of every entry "
        f"{exponentials:.1f} ms, {ITERATIONS - 1} reads of the matrix of {read:.1f} ms, one "
        f"rewrite of {write:.1f} ms: {total:.1f} ms together."
    )


def report(args: argparse.Namespace) -> str:
    origin = provenance("cpu")
    scores = make_scores(args.rows, args.prototypes)
    gap = require_parity(*(way(scores, EPSILON, ITERATIONS) for way in WAYS.values()))
    as_it_is = row("glibc's own", scores, args, gap)
    keep_freed_memory()  # last: it cannot be undone
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
    parser.add_argument("--save", action="store_true", help="write to benchmarks/results/")
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
