"""k-means of whitened features: ours against scikit-learn's MiniBatchKMeans.

Samples of 256 dimensions are drawn from a mixture with one Gaussian per cluster, and whitened as in
DeepCluster. Ours takes 20 iterations over all samples, as published, or fewer, from random samples.
scikit-learn's takes mini-batches until its own stopping rule, from random samples, from k-means++
(its default), and with the larger batches that its documentation advises for many cores. All get
the same samples, and blocks are alternated. Inertia is the mean squared distance to the nearest
centroid, computed by the same code for all. Passes are those over the samples, without the last
labelling.

The time for a million samples and 10,000 clusters is extrapolated from ours, whose work is
proportional to samples x clusters x passes. scikit-learn's stops after about the same number of
batches for any number of samples, so for many samples its work is mainly the one labelling.

    python -m benchmarks.kmeans [--samples 50000 100000 --clusters 1000 --blocks 3] [--save]
"""

import argparse
import os
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from benchmarks.timing import alternate, hardware, one_line, provenance, speed_up
from vitrail.nn.kmeans import ITERATIONS, kmeans, nearest, whiten
from vitrail.nn.random import philox

RESULTS = Path(__file__).parent / "results"
DIM = 256
MILLION = (1_000_000, 10_000)  # samples, clusters
Found = tuple[Tensor, float]  # centroids; passes over the samples
Cluster = Callable[[], Found]


def mixture(samples: int, clusters: int, device: str) -> Tensor:
    """Returns whitened samples of unit norm, [N, 256].

    The Gaussians have unit width, and so has the distribution of their centres.
    """
    random = philox(0, "benchmark k-means", samples)
    centres = random.standard_normal((clusters, DIM), dtype=np.float32)
    x = centres[random.integers(clusters, size=samples)]
    x += random.standard_normal(x.shape, dtype=np.float32)
    return whiten(torch.from_numpy(x), DIM, torch.device(device))


def ours(x: Tensor, clusters: int, iterations: int) -> Found:
    return kmeans(x, clusters, philox(0, "kmeans", 0), iterations).centroids, iterations


def mini_batches(x: Tensor, clusters: int, **options: object) -> Found:
    """Runs scikit-learn's k-means on the CPU, including labels of all samples, as ours does."""
    found = MiniBatchKMeans(clusters, n_init=1, random_state=0, **options).fit(x.cpu().numpy())
    passes = found.n_steps_ * found.batch_size / len(x)
    return torch.from_numpy(found.cluster_centers_).to(x), passes


def waited_for(cluster: Cluster, found: dict[str, Found], way: str) -> Tensor:
    found[way] = cluster()
    return found[way][0].sum()


def compare(samples: int, clusters: int, device: str, blocks: int) -> list[str]:
    x = mixture(samples, clusters, device)
    cores = os.cpu_count() or 1
    ways: dict[str, Cluster] = {
        "ours": partial(ours, x, clusters, ITERATIONS),
        "ours, 2 iterations": partial(ours, x, clusters, 2),
        "ours, 4 iterations": partial(ours, x, clusters, 4),
        "scikit-learn, from random samples": partial(mini_batches, x, clusters, init="random"),
        "scikit-learn, from k-means++": partial(mini_batches, x, clusters),
        "scikit-learn, from k-means++, batches of 256 a core": partial(
            mini_batches, x, clusters, batch_size=max(1024, 256 * cores)
        ),
    }
    if 256 * cores <= 1024:  # the default already
        del ways["scikit-learn, from k-means++, batches of 256 a core"]
    found: dict[str, Found] = {}
    work = {way: partial(waited_for, cluster, found, way) for way, cluster in ways.items()}
    times = alternate(work, blocks, calls=1)
    lines = []
    for way in ways:
        took = statistics.median(times[way])
        centroids, passes = found[way]
        inertia = nearest(x, centroids)[1].double().mean().item()
        ratio, least, most = speed_up(times[way], times["ours"])
        lines.append(
            f"| {samples:,} | {clusters:,} | {way} | {passes:.1f} | {took:.2f} | "
            f"{inertia:.4f} | {ratio:.2f} ({least:.2f}-{most:.2f}) |"
        )
    share = statistics.median(times["ours"]) * MILLION[0] * MILLION[1] / (samples * clusters)
    lines.append(
        f"| {MILLION[0]:,} | {MILLION[1]:,} | ours, extrapolated from the rows above | "
        f"{ITERATIONS} | {share:.0f} | | |"
    )
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    fitting = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default=fitting, help="torch device of ours"
    )
    parser.add_argument("--samples", type=int, nargs="+", default=[50_000, 100_000])
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write to benchmarks/results/")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    warnings.simplefilter("ignore")  # scikit-learn warns of batches smaller than the clusters
    origin = provenance(args.device)
    head = [
        "# k-means of whitened features",
        f"{one_line(origin)}; scikit-learn on {hardware('cpu')}",
        f"{DIM} dimensions, float32. Medians of {args.blocks} alternated blocks; the ratio's "
        "median, least and most over blocks.",
        "| samples | clusters | way | passes | seconds | inertia | times ours |\n|" + 7 * "---|",
    ]
    rows = [
        line
        for samples in args.samples
        for line in compare(samples, args.clusters, args.device, args.blocks)
    ]
    page = "\n\n".join(head) + "\n" + "\n".join(rows) + "\n"
    print(page)
    if args.save:
        (RESULTS / f"kmeans_{args.device}.md").write_text(page)


if __name__ == "__main__":
    main()
