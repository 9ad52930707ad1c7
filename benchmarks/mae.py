"""MAE's step, whose encoder processes visible tokens only, against a step that encodes all tokens.

Forward and backward from the same weights and images; blocks of steps are alternated in one
process. The all-token step uses the same model: hidden patches are replaced by mask tokens before
the encoder, and the decoder gets all encoded tokens. Both mask the same patches and compute the
loss over these.

    python -m benchmarks.mae [--backbone vit_base_patch16_224 --batch 2 ...] [--save FILE.md]
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import alternate, keep_freed_memory, one_line, provenance, speed_up
from vitrail.backbones.create import create_backbone
from vitrail.backbones.registry import BACKBONES
from vitrail.data.contract import Batch
from vitrail.data.views.plan import RandomResizedCrop
from vitrail.nn.masking import hidden_error, lowest_visible
from vitrail.nn.random import Draws
from vitrail.nn.schedules import Horizon
from vitrail.objectives import masked
from vitrail.objectives.contract import DataFacts
from vitrail.objectives.mae import MAE, Config

TARGET = 2.0  # least speed-up, from issue 4


def make_batch(size: int, count: int, device: str) -> Batch:
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(count, device=device)
    return Batch(
        views=[torch.randn(count, 3, size, size, generator=generator).to(device)],
        index=index,
        label=torch.full_like(index, -1),
        draws=Draws(seed=0, step=0, batch_size=count, start=0, count=count),
    )


def visible_loss(objective: MAE, batch: Batch) -> Tensor:
    return objective(batch, 0)["loss"]


def all_token_loss(objective: MAE, mask_token: Tensor, batch: Batch) -> Tensor:
    """Returns the same loss with an encoder that also processes the hidden patches."""
    images, backbone, config = batch.views[0], objective.backbone, objective.config
    patches_BHWD = backbone.embed_patches(images)
    grid = patches_BHWD.shape[1:3]
    scores_BN = batch.draws.uniform("mask", grid.numel()).to(images.device)
    hidden_BN = lowest_visible(scores_BN, config.mask_ratio).hidden
    shown = torch.where(hidden_BN.unflatten(1, grid).unsqueeze(-1), mask_token, patches_BHWD)
    (encoded_BND,) = backbone.encode([backbone.assemble(shown)])
    places_BN = torch.arange(grid.numel(), device=images.device).expand_as(hidden_BN)
    predicted_BNK = objective.decoder(encoded_BND, places_BN, tuple(grid))
    target_BNK = masked.targets(images, backbone.patch_size, config.norm_pix)
    return hidden_error(predicted_BNK, target_BNK, hidden_BN)


def step(objective: MAE, loss_of: Callable[[], Tensor]) -> Tensor:
    objective.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16, next(objective.parameters()).is_cuda):
        loss = loss_of()
    loss.backward()
    return loss.detach()


def compare(args: argparse.Namespace, device: str) -> list[str]:
    """Returns the lines of the table."""
    size = BACKBONES[args.backbone].img_size
    config = Config(
        views=RandomResizedCrop(size=size, scale=(0.2, 1.0)), mask_ratio=args.mask_ratio
    )
    torch.manual_seed(0)
    horizon = Horizon(steps=1, steps_per_epoch=1)
    objective = MAE(config, lambda _: create_backbone(args.backbone), horizon, DataFacts())
    objective = objective.to(device)
    mask_token = torch.nn.Parameter(0.02 * torch.randn(objective.backbone.embed_dim, device=device))
    batch = make_batch(size, args.batch, device)
    ways = {
        "all tokens": partial(
            step, objective, partial(all_token_loss, objective, mask_token, batch)
        ),
        "visible only": partial(step, objective, partial(visible_loss, objective, batch)),
    }
    losses = {way: work().item() for way, work in ways.items()}  # also warms up
    times = alternate(ways, args.blocks, args.steps)
    lines = ["| encoder sees | ms a step | images/s | loss |", "|---|---|---|---|"]
    for way, seconds in times.items():
        median = statistics.median(seconds)
        lines.append(
            f"| {way} | {median * 1e3:.0f} | {args.batch / median:.1f} | {losses[way]:.3f} |"
        )
    ratio, least, most = speed_up(times["all tokens"], times["visible only"])
    lines += ["", f"Visible only is {ratio:.2f} times as fast ({least:.2f} to {most:.2f} over the"]
    lines[-1] += f" blocks); the target is {TARGET:g}."
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--mask-ratio", type=float, default=0.75)
    for key, default in {"batch": 4, "blocks": 5, "steps": 1}.items():
        parser.add_argument(f"--{key}", type=int, default=default)
    parser.add_argument("--save", type=Path, help="also write the table to this file")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keep_freed_memory()
    origin = one_line(provenance(device))
    precision = "bf16 autocast" if device == "cuda" else "float32"
    text = [
        "# MAE: encoding visible tokens only against encoding all",
        "",
        f"Printed by `python -m benchmarks.mae --batch {args.batch} --blocks {args.blocks} --steps "
        f"{args.steps}`. Same weights, images and masks; forward and backward; decoder as published"
        " (512 wide, 8 layers) over all patches in both.",
        "",
        f"{origin}; {precision}; {args.backbone}, batch {args.batch}, mask {args.mask_ratio:g}, "
        f"medians of {args.blocks} alternated blocks",
        "",
        *compare(args, device),
    ]
    print("\n".join(text))
    if args.save is not None:
        args.save.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
