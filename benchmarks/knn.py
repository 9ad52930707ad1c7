"""Exact k-nearest neighbours: ours in chunks, against the whole matrix and scikit-learn.

Random normal features, k = 20, cosine similarity. At a size that all can process, blocks are
alternated: ours; plain torch with the whole matrix of similarities; scikit-learn's
`KNeighborsClassifier` with brute force and cosine distance; and the same with Euclidean distance of
unit rows, which has the same neighbours and is its fastest code. Agreement is the share of our
neighbours that another method also finds at the same rank.

Then ours alone with a bank of ImageNet's size. All queries take the same work: if only a part of
them is measured, the time for all is extrapolated, and marked as such. Peak is memory above that of
the process before the call (which includes our inputs and outputs): resident memory sampled every
5 ms on the CPU, the allocator's count on CUDA.

    python -m benchmarks.knn [--bank 50000 --queries 2000] [--part 2048 | --whole] [--save]
"""

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import alternate, hardware, one_line, provenance, speed_up
from vitrail.evals.classification.knn import neighbours

RESULTS = Path(__file__).parent / "results"
K, DIM = 20, 384
IMAGENET = (1_281_167, 50_000)  # bank, queries
Search = Callable[[np.ndarray, np.ndarray], np.ndarray]  # bank [N, D], queries [M, D] -> [M, K]


def features(rows: int, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, DIM, generator=generator).numpy()


def ours(bank: np.ndarray, queries: np.ndarray, device: str) -> np.ndarray:
    return neighbours(bank, queries, K, device=device)[1]


def whole_matrix(bank: np.ndarray, queries: np.ndarray, device: str) -> np.ndarray:
    bank_ND, queries_MD = (
        F.normalize(torch.from_numpy(x).to(device), dim=1) for x in (bank, queries)
    )
    return (queries_MD @ bank_ND.T).topk(K, dim=1).indices.cpu().numpy()


def scikit_learn(bank: np.ndarray, queries: np.ndarray, metric: str) -> np.ndarray:
    if metric == "euclidean":
        bank, queries = (F.normalize(torch.from_numpy(x), dim=1).numpy() for x in (bank, queries))
    model = KNeighborsClassifier(K, algorithm="brute", metric=metric, n_jobs=-1)
    model.fit(bank, np.zeros(len(bank), dtype=np.int64))
    return model.kneighbors(queries, return_distance=False)


class Peak:
    """Peak memory in MiB above that at the beginning; `value` is set at the end of the block."""

    value = float("nan")


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    peak = Peak()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield peak
        torch.cuda.synchronize()
        peak.value = (torch.cuda.max_memory_allocated() - before) / 2**20
        return
    before, highest, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            highest[0] = max(highest[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.value = (max(highest[0], before) - before) / 2**20


def waited_for(search: Search, bank: np.ndarray, queries: np.ndarray) -> Tensor:
    return torch.from_numpy(search(bank, queries)[:1, :1])


def compare(n_bank: int, n_queries: int, device: str, blocks: int) -> list[str]:
    bank, queries = features(n_bank, 0), features(n_queries, 1)
    ways: dict[str, Search] = {
        "ours": partial(ours, device=device),
        "torch, whole matrix": partial(whole_matrix, device=device),
        "scikit-learn, cosine": partial(scikit_learn, metric="cosine"),
        "scikit-learn, Euclidean on unit rows": partial(scikit_learn, metric="euclidean"),
    }
    found, peaks = {}, {}
    for way, search in ways.items():  # warm up before the timing
        with peak_memory("cpu" if way.startswith("scikit") else device) as peak:
            found[way] = search(bank, queries)
        peaks[way] = peak.value
    work = {way: partial(waited_for, search, bank, queries) for way, search in ways.items()}
    times = alternate(work, blocks, calls=1)
    lines = []
    for way in ways:
        ratio, least, most = speed_up(times[way], times["ours"])
        agreement = (found[way] == found["ours"]).mean()
        lines.append(
            f"| {n_bank:,} | {n_queries:,} | {way} | {statistics.median(times[way]):.2f} | "
            f"{ratio:.2f} ({least:.2f}-{most:.2f}) | {peaks[way]:.0f} | {100 * agreement:.2f} % |"
        )
    return lines


def at_scale(n_bank: int, n_queries: int, part: int, device: str) -> list[str]:
    """Returns rows for a part of the queries, measured once, and for all of them."""
    bank, queries = features(n_bank, 0), features(part, 1)
    ours(bank[:65536], queries, device)
    with peak_memory(device) as peak:
        begin = time.perf_counter()
        ours(bank, queries, device)
        took = time.perf_counter() - begin
    size = f"| {n_bank:,} | "
    lines = [f"{size}{part:,} | ours, measured | {took:.0f} | | {peak.value:.0f} | |"]
    if part < n_queries:
        whole = took * n_queries / part
        lines.append(f"{size}{n_queries:,} | ours, extrapolated | {whole:.0f} | | | |")
        # memory does not depend on the bank, so all queries are run against a small one
        with peak_memory(device) as peak:
            ours(bank[:32768], features(n_queries, 2), device)
        lines.append(f"| 32,768 | {n_queries:,} | ours, for its peak | | | {peak.value:.0f} | |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    fitting = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default=fitting, help="device of the torch code"
    )
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--part", type=int, default=2048, help="queries measured at full scale")
    parser.add_argument("--whole", action="store_true", help="measure all queries")
    parser.add_argument("--save", action="store_true", help="write to benchmarks/results/")
    args = parser.parse_args()
    origin = provenance(args.device)
    n_bank, n_queries = IMAGENET
    whole = args.whole or args.device == "cuda"
    rows = compare(args.bank, args.queries, args.device, args.blocks)
    rows += at_scale(n_bank, n_queries, n_queries if whole else args.part, args.device)
    page = "\n\n".join(
        [
            "# k nearest neighbours",
            f"{one_line(origin)}; scikit-learn on {hardware('cpu')}",
            f"{DIM} dimensions, k = {K}, float32. Medians of {args.blocks} alternated blocks; the "
            "ratio's median, least and most over blocks. The rows at full scale are single runs.",
            "| bank | queries | way | seconds | times ours | peak, MiB | agreement |\n"
            + "|---" * 7,
        ]
    )
    page += "|\n" + "\n".join(rows) + "\n"
    print(page)
    if args.save:
        (RESULTS / f"knn_{args.device}.md").write_text(page)


if __name__ == "__main__":
    main()
