"""Figures of an objective on images, drawn beside every checkpoint."""

from pathlib import Path
from typing import Any

import torch

from vitrail.distributed.ranks import Ranks
from vitrail.objectives.contract import ImageObjective, Objective, Pictures


def draw_pictures(run: Path, objective: Objective[Any], batch: Any, ranks: Ranks) -> None:
    """Writes run/figures/NAME.png for every figure that the objective makes of a batch.

    Called on every rank; rank 0 draws. Objectives of other batches than images make no figures.
    """
    if not ranks.is_main or not isinstance(objective, ImageObjective):
        return
    with torch.compiler.set_stance("force_eager"):  # a few images are not worth a compilation
        pictures = objective.pictures(batch)
    for name, grid in pictures.items():
        _draw(run / "figures" / f"{name}.png", grid)


def _draw(path: Path, pictures: Pictures) -> None:
    # lazy import: matplotlib takes about a second
    from vitrail.evals.figures.grid import Cell, cell_side, save_grid

    # [rows, columns, H, W, C]; of other numbers of channels than three, the first is drawn in grey
    pixels = pictures.pixels.float().movedim(2, -1).cpu().numpy()
    if pixels.shape[-1] != 3:
        pixels = pixels[..., :1]
    rows = [[Cell(picture) for picture in row] for row in pixels]
    save_grid(rows, path, side=cell_side(pixels.shape[2]), columns=list(pictures.columns))
