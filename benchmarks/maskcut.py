"""MaskCut: our eigen-solver beside dense ones, and what the pipeline finds with ideal features.

The eigenvector of the first cut, and MaskCut of one image, on the patches of a synthetic scene: of
an ideal encoder with two amounts of noise, and of an untrained ViT-Ti/8. The peers are scipy's
`eigh` for the one vector that is asked for (as facebookresearch/CutLER cca0a27 calls it), scipy's
`eigh` for all, and torch's `eigh` of the symmetric form. Solvers are alternated in one process;
medians are printed, and the ratio's median, least and most over blocks. All must lead to the same
masks, or nothing is printed.

Then MaskCut, COCO's files and COCO's evaluator, from scenes and ideal features on.

    python -m benchmarks.maskcut [--grids 30 60 --blocks 3 --scenes 100] [--save]
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from benchmarks.timing import alternate, one_line, provenance, speed_up
from vitrail.backbones.contract import TokenBackbone
from vitrail.backbones.create import create_backbone
from vitrail.data.tools.scenes import Layout, Scene, ideal_features, make_scene, write_scenes
from vitrail.evals.patches.coco import average_precision, open_coco, predictions
from vitrail.evals.patches.maskcut import MaskCut, discover, similar, to_image
from vitrail.evals.patches.normalised_cut import (
    WEAK,
    Eigenvector,
    dense_eigenvector,
    second_eigenvector,
)

RESULTS = Path(__file__).parent / "results"
LEAST_IOU = 0.99  # of the masks of two solvers
NOISES = (0.5, 1.0, 1.5, 2.0, 2.5)  # of the ideal features whose AP is measured
TAU, MASKS = MaskCut.tau, MaskCut.masks
Solve = Callable[[Tensor], Eigenvector]


class ParityError(Exception):
    """Two solvers lead to different masks."""


def scipy_all(connected: Tensor) -> Eigenvector:
    """Every eigenvector, of which the second is taken."""
    weight = np.where(connected.cpu().numpy(), 1.0, WEAK)
    degree = np.diag(weight.sum(1))
    values, vectors = scipy.linalg.eigh(degree - weight, degree)
    return _positive(torch.from_numpy(vectors[:, 1].copy()), float(values[1]))


def torch_all(connected: Tensor) -> Eigenvector:
    """The same of D^-½ W D^-½, on the device."""
    weight = WEAK + (1 - WEAK) * connected.double()
    scale = weight.sum(1).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * weight * scale)
    return _positive(scale * vectors[:, -2], 1 - values[-2].item())


def _positive(vector: Tensor, value: float) -> Eigenvector:
    return Eigenvector(vector * vector[vector.abs().argmax()].sign(), value, 0)


OURS, PUBLISHED = "ours", "scipy eigh, one vector"
WAYS: dict[str, Solve] = {
    OURS: second_eigenvector,
    PUBLISHED: dense_eigenvector,
    "scipy eigh, all": scipy_all,
    "torch eigh, all": torch_all,
}


def keys_of(kind: str, scene: Scene, grid: int, device: str) -> Tensor:
    """[grid, grid, D] float32."""
    if kind.startswith("ideal"):
        noise = float(kind.rsplit(" ", 1)[1])
        return torch.from_numpy(ideal_features(scene, grid, noise)).to(device)
    backbone = create_backbone("vit_tiny_patch8_224", img_size=8 * grid).to(device).eval()
    assert isinstance(backbone, TokenBackbone)
    pixels = torch.from_numpy(scene.image).to(device)[None].float() / 127.5 - 1
    resized = torch.nn.functional.interpolate(pixels, (8 * grid, 8 * grid), mode="bilinear")
    with torch.no_grad():
        keys = backbone.token_keys(resized)[0]
    # What all patches share would connect all of them.
    return keys - keys.mean((0, 1))


def vector_of(solve: Solve, graph: Tensor, found: dict[str, Any], way: str) -> Tensor:
    found[way] = solve(graph)
    return found[way].vector[-1]


def masks_of(solve: Solve, keys: Tensor, found: dict[str, Any], way: str) -> Tensor:
    found[way] = discover(keys, TAU, MASKS, solve)
    return torch.tensor(float(found[way].sum()))


def least_iou(expected: np.ndarray, masks: np.ndarray) -> float:
    """Over the masks of an image, in the order in which they were found."""
    if masks.shape != expected.shape:
        raise ParityError(f"{len(expected)} masks against {len(masks)}: not reported")
    both, either = (masks & expected).sum((1, 2)), (masks | expected).sum((1, 2))
    least = float((both / either.clip(1)).min(initial=1))
    if least < LEAST_IOU:
        raise ParityError(f"masks agree to an IoU of {least:.3f} only: not reported")
    return least


def solver_rows(kind: str, grid: int, args: argparse.Namespace) -> list[str]:
    keys = keys_of(kind, make_scene(0), grid, args.device)
    graph = similar(keys, TAU)
    second_eigenvector(graph)  # warm up
    found: dict[str, Any] = {}
    work = {way: partial(vector_of, solve, graph, found, way) for way, solve in WAYS.items()}
    times = alternate(work, args.blocks, calls=1)
    masks: dict[str, Any] = {}
    whole = {way: partial(masks_of, WAYS[way], keys, masks, way) for way in (OURS, PUBLISHED)}
    whole_times = alternate(whole, args.blocks, calls=1)
    iou = least_iou(masks[PUBLISHED], masks[OURS])
    setting = f"| {grid}×{grid} | {kind} | {graph.float().mean():.2f} "
    rows = [
        f"{setting}| eigenvector | {way} | {_numbers(times, way)} | {_passes(found[way])} |"
        for way in WAYS
    ]
    many = f"an image, {len(masks[OURS])} masks"
    return rows + [
        f"{setting}| {many} | {way} | {_numbers(whole_times, way)} | least IoU {iou:.4f} |"
        for way in whole
    ]


def _numbers(times: dict[str, list[float]], way: str) -> str:
    ratio, least, most = speed_up(times[way], times[OURS])
    return f"{statistics.median(times[way]):.3f} | {ratio:.1f} ({least:.1f}–{most:.1f})"


def _passes(found: Eigenvector) -> str:
    return f"{found.passes} passes" if found.passes else "dense"


def precision_row(noise: float, grid: int, scenes: int, folder: Path) -> str:
    """From the scenes' files on; only the features are the scenes' own."""
    coco = open_coco(folder)
    rows: list[dict[str, Any]] = []
    for index, image in enumerate(coco.images):
        keys = torch.from_numpy(ideal_features(make_scene(index), grid, noise, seed=index))
        pixels = coco.read(image, 3)
        seen = pixels.permute(1, 2, 0).numpy()
        masks = to_image(discover(keys, TAU, MASKS), seen, pixels.shape[1:])
        rows += predictions(image["id"], masks)
    precision = average_precision(coco.truth, rows)
    numbers = [
        f"{100 * precision[kind][name]:.1f}" for kind in precision for name in precision[kind]
    ]
    counts = f"{scenes} | {len(coco.truth['annotations'])} | {len(rows)}"
    return f"| {grid}×{grid} | {noise} | {counts} | {' | '.join(numbers)} |"


def precision_rows(grids: Sequence[int], scenes: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scenes"
        write_scenes(path, scenes)
        return [
            precision_row(noise, grid, scenes, path)
            for grid in grids
            for noise in (NOISES if grid == min(grids) else NOISES[1:2])
        ]


def report(args: argparse.Namespace) -> str:
    origin = provenance(args.device)
    kinds = ("ideal, noise 1.0", "ideal, noise 2.5", "untrained ViT-Ti/8")
    solvers = [
        row for grid in args.grids for kind in kinds for row in solver_rows(kind, grid, args)
    ]
    return "\n".join(
        [
            "# `python -m benchmarks.maskcut`",
            "",
            f"{one_line(origin)}.",
            "",
            f"τ = {TAU}, at most {MASKS} masks. Medians of {args.blocks} alternated blocks of one "
            "call, in seconds; times ours: median, least and most over blocks. Density: share of "
            "patches that are connected. An image: cosines, all its cuts and masks.",
            "",
            "| patches | features | density | work | solver | seconds | times ours | |",
            "|" + 8 * "---|",
            *solvers,
            "",
            f"Ideal features of synthetic scenes of {Layout().size} pixels, with noise; "
            "class-agnostic AP in percent.",
            "",
            "| patches | noise | scenes | objects | found | box AP | AP50 | AP75 | mask AP | AP50 "
            "| AP75 |",
            "|" + 11 * "---|",
            *precision_rows(args.grids, args.scenes),
            "",
        ]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    fitting = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=fitting)
    parser.add_argument("--grids", type=int, nargs="+", default=[30, 60], help="patches a side")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--save", action="store_true", help="into benchmarks/results/")
    args = parser.parse_args()
    if min(*args.grids, args.blocks, args.scenes) < 1:
        parser.error("--grids, --blocks and --scenes must be above 0")
    if any(Layout().size % grid for grid in args.grids):
        parser.error(f"--grids must divide the scenes' {Layout().size} pixels")
    return args


def main() -> None:
    args = arguments()
    try:
        text = report(args)
    except ParityError as error:
        sys.exit(str(error))
    print(text)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"maskcut_{args.device}.md").write_text(text)


if __name__ == "__main__":
    main()
