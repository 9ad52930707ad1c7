"""The collapse of co-training, and how DINO avoids it: docs/cotraining.md.

Three runs on scattered digits with the same images in the same order, the same two views, the same
backbones and the same optimizer: co-training from two classifiers that start apart, co-training
from two that start equal, and DINO. During training, two entropies are measured on 512 images: that
of a prediction, H(P(k|x)), and that of the labels, H(P(k)), with P(k) the mean prediction. Their
difference is the mutual information I(k; x) of label and image. DINO's predictions are those of its
teacher, centred and sharpened.

    python -m benchmarks.cotraining [--optimizer sgd] [--steps 200] [--save]

prints a table; with --save it is written to benchmarks/results/cotraining_OPTIMIZER.md, and the
figure (of AdamW) to docs/images/cotraining.png. It takes less than 3 minutes on one idle core.
"""

import argparse
import math
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.timing import one_line, provenance
from vitrail.backbones.contract import Backbone
from vitrail.backbones.create import create_backbone
from vitrail.data.contract import Source
from vitrail.data.loading.loader import Loader
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.sources.registry import open_source
from vitrail.evals.classification.knn import knn_accuracy
from vitrail.nn.schedules import Horizon
from vitrail.objectives.build import build_objective
from vitrail.objectives.contract import Objective
from vitrail.objectives.cotraining import Config as CoTraining
from vitrail.objectives.cotraining import entropy
from vitrail.objectives.dino import DINO, prototypes
from vitrail.objectives.dino import Config as DINOConfig
from vitrail.recipes.settings import DIGITS_VIEWS

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs" / "images" / "cotraining.png"
RESULTS = ROOT / "benchmarks" / "results"
DATA = "digits:scattered"
LABELS, BATCH, PROBE, EVERY = 32, 64, 512, 10
WARMUP, CLIP = 20, 3.0  # steps; norm over all gradients
OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0),
    "sgd": partial(torch.optim.SGD, lr=0.1),
}
# large crops, to make the two views of an image overlap
PAIR = replace(DIGITS_VIEWS, global_scale=(0.8, 1.0))
RUNS: dict[str, Any] = {
    "Co-training, started apart": CoTraining(PAIR, LABELS, beta=2.0),
    "Co-training, started equal": CoTraining(PAIR, LABELS, beta=2.0, equal_start=True),
    "DINO": DINOConfig(
        PAIR,
        out_dim=LABELS,
        hidden_dim=256,
        bottleneck_dim=64,
        freeze_last_layer_epochs=0,
        momentum_teacher=0.9,
        drop_path=0.0,
    ),
}


class Measures(NamedTuple):
    """Entropies and gradient norm after a step.

    Attributes:
        step: number of the step.
        prediction: mean entropy of a prediction, in nats.
        labels: entropy of the mean prediction, in nats.
        grad_norm: norm of the step's gradient over all parameters.
    """

    step: int
    prediction: float
    labels: float
    grad_norm: float


@torch.no_grad()
def predictions(objective: Objective, images: Tensor, step: int) -> Tensor:
    """Returns P(k|x), [N, K], of the network that gives the targets."""
    if isinstance(objective, DINO):
        _, z = objective.teacher([images])
        logits = prototypes(objective.teacher)(z) - objective.center
        return (logits / objective.teacher_temp(step)).softmax(-1)
    return objective.get_submodule("phi")([images])[1].softmax(-1)


def measure(objective: Objective, images: Tensor, step: int, grad_norm: float) -> Measures:
    p = predictions(objective, images, step)
    each = torch.stack([entropy(row) for row in p]).mean()
    return Measures(step, each.item(), entropy(p.mean(0)).item(), grad_norm)


def loader(source: Source, objective: Objective, batch: int, seed: int, folder: Path) -> Loader:
    quarantine = Quarantine(folder / "quarantine.jsonl", len(source), 0.0)
    return Loader(
        source, objective.views(), batch_size=batch, seed=seed, device="cpu", quarantine=quarantine
    )


def train(
    config: Any, source: Source, optimizer_name: str, steps: int, folder: Path
) -> tuple[list[Measures], Objective]:
    def make_backbone(drop_path: float) -> Backbone:
        return create_backbone("vit_nano_patch4_32", img_size=16, in_chans=1, seed=0)

    torch.manual_seed(0)
    horizon = Horizon(steps, len(source) / BATCH)
    objective = build_objective(config, make_backbone, horizon, None, len(source))
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[optimizer_name](parameters)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, total_iters=WARMUP)
    [probe] = next(iter(loader(source, objective, PROBE, 1, folder).steps(0, 1)))
    images = probe.views[0][:PROBE]
    measures = []
    for step, [batch] in enumerate(loader(source, objective, BATCH, 0, folder).steps(0, steps)):
        out = objective(batch, step)
        optimizer.zero_grad()
        out["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        if step % EVERY == 0 or step + 1 == steps:
            measures.append(measure(objective, images, step, norm.item()))
        optimizer.step()
        warmup.step()
        objective.after_step({k: v.detach() for k, v in out.items()}, step)
    return measures, objective


@torch.no_grad()
def nearest_neighbours(encoder: Backbone) -> float:
    """Returns the k-NN accuracy on the test digits in percent."""
    found = []
    for split in ("train", "test"):
        source = open_source(DATA, split, channels=1)
        pixels = source.pixels()
        assert pixels is not None
        images = (pixels.float() / 255 - PAIR.mean[0]) / PAIR.std[0]
        labels = torch.tensor([source.label(i) for i in range(len(source))])
        found += [encoder.eval()(images).pooled.numpy(), labels.numpy()]
    return 100 * knn_accuracy(*found)


INK, SOFT, RULE, GROUND, BLUE = "#22262b", "#626a73", "#e2dfd8", "#fdfcfa", "#2f6f8f"


def draw(runs: dict[str, list[Measures]], path: Path) -> None:
    """Draws a panel per run: both entropies over the steps, and the area between them."""
    figure = Figure(figsize=(10.5, 3.5), dpi=150, facecolor=GROUND, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(runs), sharey=True)
    ceiling = math.log(LABELS)
    for axes, (title, measures) in zip(panels, runs.items(), strict=True):
        steps, each, labels, _ = zip(*measures, strict=True)
        axes.set_facecolor(GROUND)
        axes.fill_between(steps, each, labels, color=BLUE, alpha=0.18, linewidth=0)
        axes.plot(steps, labels, color=SOFT, linewidth=1.4, label="of the labels, H(P(k))")
        axes.plot(steps, each, color=BLUE, linewidth=1.8, label="of a prediction, H(P(k|x))")
        axes.axhline(ceiling, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_title(title, loc="left", color=INK, fontsize=11, pad=10)
        axes.set_ylim(0, 1.1 * ceiling)
        axes.set_xlabel("step", color=SOFT, fontsize=9)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=SOFT, length=0, labelsize=9)
        for side in axes.spines.values():
            side.set_visible(False)
    panels[0].set_ylabel("entropy, nats", color=SOFT, fontsize=9)
    panels[0].text(0, ceiling * 1.02, "ln K", color=SOFT, fontsize=9, va="bottom")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor=GROUND)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="adamw")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--save", action="store_true", help="write the figure and the table to files"
    )
    args = parser.parse_args()
    origin = provenance("cpu")
    source = open_source(DATA, "train", channels=1)
    runs: dict[str, list[Measures]] = {}
    lines = [
        f"{args.steps} steps of {args.optimizer} at batch {BATCH}, K = {LABELS}, ln K = "
        f"{math.log(LABELS):.3f}; entropies in nats, of {PROBE} pictures, at the last step.",
        "",
        "| | H(P(k\\|x)) | H(P(k)) | I(k; x) | gradient norm, first | last | k-NN, % |",
        "|---|---|---|---|---|---|---|",
    ]
    before = create_backbone("vit_nano_patch4_32", img_size=16, in_chans=1, seed=0)
    lines.append(f"| untrained | | | | | | {nearest_neighbours(before):.1f} |")
    with tempfile.TemporaryDirectory() as folder:
        for title, config in RUNS.items():
            measures, objective = train(config, source, args.optimizer, args.steps, Path(folder))
            runs[title] = measures
            end = measures[-1]
            lines.append(
                f"| {title} | {end.prediction:.3f} | {end.labels:.3f} | "
                f"{end.labels - end.prediction:.3f} | {measures[0].grad_norm:.1e} | "
                f"{end.grad_norm:.1e} | {nearest_neighbours(objective.encoder):.1f} |"
            )
            print(lines[-1], flush=True)
    text = "\n".join([*lines, "", f"{one_line(origin)}."])
    print(text)
    if args.save:
        if args.optimizer == "adamw":
            draw(runs, FIGURE)
        RESULTS.mkdir(exist_ok=True)
        command = f"python -m benchmarks.cotraining --optimizer {args.optimizer}"
        path = RESULTS / f"cotraining_{args.optimizer}.md"
        path.write_text(f"# `{command}`\n\n{text}\n")


if __name__ == "__main__":
    main()
