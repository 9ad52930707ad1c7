"""ViT, CRATE and CRATE-α on the same data (the book's exercise 7.5): docs/white-box.md.

Each is trained with labels on scattered digits, by the recipe `crate_digits_supervised` with
patches of 2 pixels, from several seeds; all but the backbone is equal. Accuracy is that of k-NN and
of a linear probe on 500 test digits; the layers are measured by the x-ray, and the maps of the last
layer are drawn.

    python -m benchmarks.white_box [--epochs 40 --seeds 3] [--save]

prints the page; with --save it is written to docs/white-box.md, and its pictures to docs/images/.
It takes about twelve minutes on two idle cores.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import vitrail
from benchmarks.timing import Work, alternate, one_line, provenance
from vitrail.backbones.create import create_backbone
from vitrail.data.sources.registry import open_source
from vitrail.encoder import Encoder
from vitrail.evals.evaluate import evaluate
from vitrail.evals.features import as_colours
from vitrail.evals.figures.grid import Cell, heat, save_grid
from vitrail.evals.patches.saliency import token_maps
from vitrail.recipes.named import get_recipe

ROOT = Path(__file__).parents[1]
PAGE, IMAGES = ROOT / "docs" / "white-box.md", ROOT / "docs" / "images"
RECIPE, PATCH, BATCH = "crate_digits_supervised", 2, 64
BACKBONES = {
    "ViT": "vit_nano_patch4_32",
    "CRATE": "crate_nano_patch4_32",
    "CRATE-α": "crate_alpha_nano_patch4_32",
}
PROTOCOLS = ("knn", "linear", "xray")
SHOWN = (0, 1, 2, 3, 4, 5)  # test digits, the first six


class Trained(NamedTuple):
    """The results of one backbone.

    Attributes:
        run: folder of the first seed's run.
        knn: k-NN test accuracy of each seed, in [0, 1].
        linear: linear probe's test accuracy of each seed, in [0, 1].
        before: linear probe's test accuracy of the first seed's untrained encoder, in [0, 1].
        layers: x-ray of the first seed's encoder.
    """

    run: Path
    knn: list[float]
    linear: list[float]
    before: float
    layers: list[dict[str, Any]]


def train(backbone: str, epochs: float, seeds: int, folder: Path) -> Trained:
    found, runs = [], []
    for seed in range(seeds):
        runs.append(folder / f"{backbone}-{seed}")
        changes = {"backbone": backbone, "patch_size": PATCH, "epochs": epochs, "seed": seed}
        vitrail.pretrain(RECIPE, runs[-1], device="cpu", **changes)
        found.append(evaluate(runs[-1], protocols=PROTOCOLS, quiet=True))
    return Trained(
        runs[0],
        [f["knn"]["trained"] for f in found],
        [f["linear"]["trained"] for f in found],
        found[0]["linear"]["untrained"],
        found[0]["xray"]["trained"],
    )


class Cost(NamedTuple):
    """The cost of one backbone.

    Attributes:
        parameters: number of parameters.
        flops: floating-point operations of a forward pass of one image.
        step: median time of a forward and a backward pass of BATCH images, in milliseconds.
    """

    parameters: int
    flops: int
    step: float


def costs() -> dict[str, Cost]:
    sizes = {"img_size": 16, "in_chans": 1, "patch_size": PATCH}
    models = {name: create_backbone(b, **sizes) for name, b in BACKBONES.items()}
    images = torch.zeros(BATCH, 1, 16, 16)

    def step(model: Any) -> Tensor:
        loss = model(images).pooled.square().mean()
        loss.backward()
        return loss

    ways: dict[str, Work] = {name: partial(step, model) for name, model in models.items()}
    alternate(ways, 1, 1)  # warm up
    times = alternate(ways, 9, 3)
    found = {}
    for name, model in models.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images[:1])
        found[name] = Cost(
            sum(p.numel() for p in model.parameters()),
            counter.get_total_flops(),
            1e3 * statistics.median(times[name]),
        )
    return found


INK, SOFT, RULE, GROUND = "#22262b", "#626a73", "#e2dfd8", "#fdfcfa"
COLOURS = {"ViT": "#8a8f96", "CRATE": "#9a3b26", "CRATE-α": "#2f6f8f"}
PANELS = {
    "rate_after": ("Coding rate R(Z)", "nats, after the layer"),
    "compression_half": ("Compression term Rᶜ(Z | U)", "nats, after the attention"),
    "nonzero": ("Entries that are not zero", "share of all, after the layer"),
}


def draw_layers(trained: dict[str, Trained], path: Path) -> None:
    """Draws a panel per measure, with the layers on the x axis and a line per backbone."""
    figure = Figure(figsize=(10.5, 3.5), dpi=150, facecolor=GROUND, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (measure, (title, unit)) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        axes.set_facecolor(GROUND)
        for name, result in trained.items():
            points = [(i, layer[measure]) for i, layer in enumerate(result.layers, 1)]
            there = [(i, value["mean"]) for i, value in points if value is not None]
            if there:
                axes.plot(*zip(*there, strict=True), "o-", color=COLOURS[name], label=name)
        axes.set_title(title, loc="left", color=INK, fontsize=11, pad=10)
        axes.set_ylabel(unit, color=SOFT, fontsize=9)
        axes.set_xlabel("layer", color=SOFT, fontsize=9)
        axes.set_ylim(bottom=0)
        axes.set_xticks(range(1, 1 + max(len(r.layers) for r in trained.values())))
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=SOFT, length=0, labelsize=9)
        for side in axes.spines.values():
            side.set_visible(False)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=3, frameon=False, labelcolor=INK
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor=GROUND)


def draw_maps(trained: dict[str, Trained], path: Path) -> None:
    """Draws, below the digits, a row per backbone with each patch's weight in the class token."""
    encoders = {name: Encoder.load(result.run) for name, result in trained.items()}
    first = next(iter(encoders.values()))
    source = open_source("digits:scattered", "test", channels=1)
    images = [source.read(i).image for i in SHOWN]
    rows = [[Cell(picture) for picture in as_colours(first, images)]]
    for encoder in encoders.values():
        maps = token_maps(encoder, images).mean(axis=1)
        rows.append([Cell(heat(values, 160)) for values in maps])
    save_grid(rows, path, side=160, margin=["digits", *encoders])


def percent(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def table(trained: dict[str, Trained], cost: dict[str, Cost]) -> list[str]:
    lines = [
        "| | parameters | MFLOP an image | ms a step | k-NN, % | linear, % | linear, untrained, % "
        "| not zero after the last layer, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in trained.items():
        c = cost[name]
        nonzero = 100 * result.layers[-1]["nonzero"]["mean"]
        lines.append(
            f"| {name} | {c.parameters:,} | {c.flops / 1e6:.1f} | {c.step:.0f} | "
            f"{percent(result.knn)} | {percent(result.linear)} | {100 * result.before:.1f} | "
            f"{nonzero:.0f} |"
        )
    return lines


TEXT = """# White box and black box on the same data

The book's exercise 7.5: what does it cost to design every layer by a principle, and what is it
good for? `python -m benchmarks.white_box --save` made this page: a ViT, a CRATE and a CRATE-α of
the same width, depth and number of heads, trained with labels on scattered digits by the same
recipe (`{recipe}`, {epochs:g} epochs, patches of {patch} pixels). They differ in the layer alone:

- **ViT**: attention with separate queries, keys and values; an MLP of four times the width.
- **CRATE**: one projection for all three (MSSA); a step of sparse coding (ISTA), no residual.
- **CRATE-α**: the same attention; sparse coding over a dictionary of four times the width (ODL),
  with a second dictionary to decode and a residual.

{table}

Accuracies are of {test} test digits, mean and standard deviation over {seeds} seeds; the columns on
layers are the first seed's. MFLOP: a forward pass, a multiplication and an addition counted as two.
A step: forward and backward, {batch} digits, median of nine alternated blocks.

## Layer by layer

![Coding rate, compression term and sparsity, layer by layer](images/white-box-layers.png)

The coding rate is the room that an image's tokens take. The compression term is that room within
the subspaces that a layer's heads project to, and is there for attention that has such subspaces.
Only CRATE's tokens are sparse: its layers end with a ReLU. CRATE-α is sparse within its layers and
adds the decoded code to tokens that are dense; a ViT has no reason to be (its line lies below
CRATE-α's, at 1).

## Where they look

![Maps of the last layer for six test digits](images/white-box-maps.png)

What each patch gives to the class token in the last layer, averaged over heads: brighter is more.

{origin}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=float, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--save", action="store_true", help="write the page and its pictures to docs/"
    )
    args = parser.parse_args()
    origin = provenance("cpu")
    cost = costs()
    with tempfile.TemporaryDirectory() as folder:
        trained = {
            name: train(backbone, args.epochs, args.seeds, Path(folder))
            for name, backbone in BACKBONES.items()
        }
        images = IMAGES if args.save else Path(folder)
        draw_layers(trained, images / "white-box-layers.png")
        draw_maps(trained, images / "white-box-maps.png")
    page = TEXT.format(
        recipe=get_recipe(RECIPE).name,
        epochs=args.epochs,
        patch=PATCH,
        table="\n".join(table(trained, cost)),
        test=len(open_source("digits:scattered", "test")),
        seeds=args.seeds,
        batch=BATCH,
        origin=one_line(origin),
    )
    print(page)
    if args.save:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
