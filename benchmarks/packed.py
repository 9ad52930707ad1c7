"""Packed against separate: forward and backward of two resolutions through one backbone.

Same weights, same crops, same gradients (checked first). Blocks of steps are alternated in one
process; medians, and the median of the paired ratios, are printed. What packing saves is calls, so
the gain falls as the batch grows and the products alone keep the device busy.

    python -m benchmarks.packed [--width 192 --depth 12 --batches 1 4 16 ...]
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.timing import alternate, keep_freed_memory, one_line, provenance, speed_up
from vitrail.backbones.contract import Backbone, Features
from vitrail.backbones.create import create_backbone

Forward = Callable[[], list[Features]]


def step(backbone: nn.Module, forward: Forward) -> Tensor:
    backbone.zero_grad(set_to_none=True)
    loss = torch.stack([f.pooled.float().square().sum() for f in forward()]).sum()
    loss.backward()
    return loss.detach()


def gradients(backbone: nn.Module, forward: Forward) -> list[Tensor]:
    step(backbone, forward)
    return [p.grad.clone() for p in backbone.parameters() if p.grad is not None]


def relative_gap(first: list[Tensor], second: list[Tensor]) -> float:
    """Largest difference of two lists of gradients, relative to each one's largest entry."""
    pairs = zip(first, second, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in pairs)


def compare(title: str, backbone: Backbone, images: list[Tensor], blocks: int, steps: int) -> None:
    ways: dict[str, Forward] = {
        "separate": lambda: [backbone(batch) for batch in images],
        "packed": lambda: backbone.forward_packed(images),
    }
    gap = relative_gap(*(gradients(backbone, forward) for forward in ways.values()))
    work = {way: partial(step, backbone, forward) for way, forward in ways.items()}
    times = alternate(work, blocks, steps)
    separate, packed = (statistics.median(times[way]) * 1e3 for way in ways)
    ratio, *_ = speed_up(times["separate"], times["packed"])
    print(f"| {title} | {separate:.1f} | {packed:.1f} | {ratio:.2f} | {gap:.0e} |", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = {"width": 192, "depth": 12, "heads": 3, "patch-size": 8, "blocks": 7}
    views = {"globals": 2, "locals": 8, "global-size": 64, "local-size": 32}
    for key, default in (defaults | views).items():
        parser.add_argument(f"--{key}", type=int, default=default)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keep_freed_memory()
    torch.manual_seed(0)
    print(f"{one_line(provenance(device))}; float32")
    print(
        f"width {args.width}, {args.depth} layers, patch {args.patch_size}, {args.globals} x "
        f"{args.global_size} + {args.locals} x {args.local_size} px; forward + backward; "
        f"medians of {args.blocks} alternated blocks\n"
    )
    print("| backbone, batch | separate, ms | packed, ms | speed-up | gradients differ by |")
    print("|---|---|---|---|---|")
    for family in ("vit", "crate"):
        backbone = create_backbone(
            f"{family}_tiny_patch16_224",
            img_size=args.global_size,
            patch_size=args.patch_size,
            width=args.width,
            depth=args.depth,
            heads=args.heads,
        ).to(device)
        for batch in args.batches:
            counts = {args.global_size: args.globals, args.local_size: args.locals}
            images = [torch.randn(n * batch, 3, s, s, device=device) for s, n in counts.items()]
            steps = max(1, 4 // batch)
            compare(f"{family}, {batch}", backbone, images, args.blocks, steps)


if __name__ == "__main__":
    main()
