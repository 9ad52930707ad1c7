"""Stochastic depth: a layer that computes its branches for kept samples only, against one that
computes them for all and multiplies.

Same draws, same results (checked first); forward and backward of one ViT layer, eager, alternated
blocks in one process. It is what `SKIP_FROM` in vitrail/backbones/stochastic_depth.py rests on.

    python -m benchmarks.drop_path [--width 384 --heads 6 --batch 16 --rates .1 .3 .5] [--save]
"""

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.packed import relative_gap
from benchmarks.timing import alternate, keep_freed_memory, one_line, provenance, speed_up
from vitrail.backbones.families import FAMILIES
from vitrail.backbones.layers import Block
from vitrail.backbones.skeleton import kind_of
from vitrail.backbones.stochastic_depth import Drop, Kept, Shapes

RESULTS = Path(__file__).parent / "results"
Drops = tuple[Drop, Drop]


def dense_and_kept(rate: float, shapes: Shapes, device: str) -> tuple[Drops, Drops]:
    """The same decisions in both forms. Exactly `rate` of each resolution's samples are dropped."""
    keep = [torch.arange(count) >= round(rate * count) for count, _ in shapes]
    kept_T = torch.cat([k.repeat_interleave(n) for k, (_, n) in zip(keep, shapes, strict=True)]).to(
        device
    )
    scale = 1 / (1 - rate)
    counts = [(int(k.sum()), n) for k, (_, n) in zip(keep, shapes, strict=True)]
    dense = kept_T.float().unsqueeze(1) * scale
    kept = Kept(kept_T.nonzero().squeeze(1), counts, scale)
    return (dense, dense), (kept, kept)


def step(layer: Block, tokens: Tensor, shapes: Shapes, drops: Drops) -> Tensor:
    layer.zero_grad(set_to_none=True)
    loss = layer(tokens, shapes, drops).square().mean()
    loss.backward()
    return loss.detach()


def gradients(layer: Block, tokens: Tensor, shapes: Shapes, drops: Drops) -> list[Tensor]:
    step(layer, tokens, shapes, drops)
    return [p.grad.clone() for p in layer.parameters() if p.grad is not None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"width": 384, "heads": 6, "batch": 16, "tokens": 197, "blocks": 7, "steps": 2}
    for key, default in sizes.items():
        parser.add_argument(f"--{key}", type=int, default=default)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keep_freed_memory()
    torch.manual_seed(0)
    layer = Block(kind_of(FAMILIES["vit"]), args.width, args.heads).to(device)
    shapes = [(2 * args.batch, args.tokens)]
    tokens = torch.randn(2 * args.batch * args.tokens, args.width, device=device)
    tokens.requires_grad_()
    lines = [
        "# Stochastic depth: the branches of all samples, or of the kept ones only",
        "",
        f"{one_line(provenance(device))}",
        "",
        f"One ViT layer, width {args.width}, {2 * args.batch} images of {args.tokens} tokens, "
        f"float32, forward and backward; medians of {args.blocks} alternated blocks.",
        "",
        "| rate | all, ms | kept, ms | speed-up | least–most | gradients differ by |",
        "|---|---|---|---|---|---|",
    ]
    for rate in args.rates:
        dense, kept = dense_and_kept(rate, shapes, device)
        gap = relative_gap(*(gradients(layer, tokens, shapes, drops) for drops in (dense, kept)))
        ways = {
            "all": partial(step, layer, tokens, shapes, dense),
            "kept": partial(step, layer, tokens, shapes, kept),
        }
        times = alternate(ways, args.blocks, args.steps)
        slow, fast = (statistics.median(times[way]) * 1e3 for way in ways)
        ratio, least, most = speed_up(times["all"], times["kept"])
        cells = (rate, f"{slow:.1f}", f"{fast:.1f}", f"{ratio:.2f}", f"{least:.2f}–{most:.2f}")
        lines.append(f"| {' | '.join(map(str, cells))} | {gap:.0e} |")
    print("\n".join(lines))
    if args.save:
        (RESULTS / f"drop_path_{device}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
