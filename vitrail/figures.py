"""Pictures of what a method makes of its images, drawn while it trains; the report shows them."""

from pathlib import Path

import torch

from vitrail.data.contract import Batch
from vitrail.objectives.contract import Objective, Pictures


def draw(run: Path, objective: Objective, batch: Batch) -> None:
    """Writes run/figures/NAME.png for everything that the objective has to show."""
    with torch.compiler.set_stance("force_eager"):  # a few images are not worth a compilation
        shown = objective.pictures(batch)
    for name, pictures in shown.items():
        _draw(run / "figures" / f"{name}.png", pictures)


def _draw(path: Path, pictures: Pictures) -> None:
    from vitrail.evals.figures.grid import (  # matplotlib: only who draws waits
        Cell,
        cell_side,
        save_grid,
    )

    # [rows, columns, H, W, C]; of other channel counts than three, the first is shown in grey.
    pixels = pictures.pixels.float().movedim(2, -1).cpu().numpy()
    if pixels.shape[-1] != 3:
        pixels = pixels[..., :1]
    rows = [[Cell(picture) for picture in row] for row in pixels]
    save_grid(rows, path, side=cell_side(pixels.shape[2]), columns=list(pictures.columns))
