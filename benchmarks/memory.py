"""Activation memory of a multi-crop forward pass: what autograd keeps for the backward pass.

Ours packed, against timm's ViT run once per resolution, at the same shapes and weights; and the
white-box families beside them. Counted as the bytes of all distinct storages that autograd saved,
parameters and inputs aside, which is exact and the same on every machine; on CUDA the peak of the
allocator over forward and backward is shown too.

    python -m benchmarks.memory [--backbones NAME ... --batch 4 --locals 8] [--save]
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from benchmarks.timing import one_line, provenance
from vitrail.backbones.create import create_backbone, find_row
from vitrail.backbones.families import Skeleton

RESULTS = Path(__file__).parent / "results"
BACKBONES = ("vit_tiny_patch16_224", "vit_small_patch16_224", "crate_small_patch16_224")


def saved_bytes(model: nn.Module, images: list[Tensor], forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps of one forward pass, parameters and inputs aside."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), *images)}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = forward()  # held: what it keeps must not be freed and counted twice
    total = sum(kept.values())
    loss.backward()
    return total


def peak_bytes(forward: Callable[[], Tensor]) -> int:
    """The CUDA allocator's peak over forward and backward, above what was there before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    forward().backward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def timm_forward(model: nn.Module, images: list[Tensor]) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        return torch.cat([model.forward_features(x)[:, 0] for x in images]).square().mean()

    return forward


def our_forward(model: nn.Module, images: list[Tensor]) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        return torch.cat([f.pooled for f in model.forward_packed(images)]).square().mean()

    return forward


def in_precision(forward: Callable[[], Tensor], device: str, half: bool) -> Tensor:
    with torch.autocast(device, torch.bfloat16, enabled=half):
        return forward()


def measure(name: str, images: list[Tensor], half: bool) -> list[str]:
    """Rows of the table: ours, and timm's where it has the model."""
    device = images[0].device
    makers = {"ours, packed": (lambda: create_backbone(name), our_forward)}
    model = find_row(name)
    if isinstance(model, Skeleton) and model.family == "vit":
        makers["timm"] = (
            lambda: timm.create_model(name, num_classes=0, dynamic_img_size=True),
            timm_forward,
        )
    rows = []
    for side, (make, forward_of) in makers.items():
        net = make().to(device).train()
        forward = partial(in_precision, forward_of(net, images), device.type, half)
        cells = [f"{saved_bytes(net, images, forward) / 2**20:.0f}"]
        if device.type == "cuda":
            cells.append(f"{peak_bytes(forward) / 2**20:.0f}")
        precision = "bf16" if half else "fp32"
        rows.append(f"| {name} | {precision} | {side} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--locals", type=int, default=8)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    counts = {224: 2, 96: args.locals}
    images = [torch.randn(n * args.batch, 3, s, s, device=device) for s, n in counts.items() if n]
    peak = " | allocator peak, MiB" if device == "cuda" else ""
    lines = [
        "# Activation memory of a multi-crop forward pass",
        "",
        f"{one_line(provenance(device))}",
        "",
        f"Batch {args.batch}, 2 x 224 + {args.locals} x 96 px; without stochastic depth.",
        "",
        f"| backbone | precision | | saved for backward, MiB{peak} |",
        f"|---|---|---|---{'|---' if peak else ''}|",
    ]
    for name in args.backbones:
        for half in (False, True):
            lines += measure(name, images, half)
    print("\n".join(lines))
    if args.save:
        (RESULTS / f"memory_{device}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
