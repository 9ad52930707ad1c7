"""The files that a run writes beside its checkpoints: the encoder, its text side, and figures."""

from pathlib import Path
from typing import Any

import torch

from vitrail import text_encoder
from vitrail.atomic import parse_json
from vitrail.data.views.preprocess import Preprocess
from vitrail.distributed.ranks import Ranks
from vitrail.encoder import DESCRIPTION, WEIGHTS, Encoder
from vitrail.objectives.contract import ImageObjective, Objective, Pictures
from vitrail.text_encoder import TextEncoder
from vitrail.train.contract import Parts


class EncoderExports:
    """Exports the encoder of an objective on images, and first its text side, if any.

    Args:
        objective: the objective.
        preprocess: how images are prepared for the encoder.
        info: facts of the run for encoder.json; the step is added after "data".
    """

    def __init__(self, objective: ImageObjective, preprocess: Preprocess, info: dict[str, Any]):
        self._objective = objective
        self._preprocess = preprocess
        self._info = info

    def save(self, run: Path, step: int) -> None:
        """Writes the files of the encoder as it is after `step` steps."""
        text_side = self._objective.text_side
        if text_side is not None:
            TextEncoder(*text_side, step=step).save(run)
        if "init_from" in self._info and "before" not in self._info:
            self._info |= _stages_before(run / DESCRIPTION)
        Encoder(self._objective.encoder, self._preprocess, self._info | {"step": step}).save(run)

    def are_saved(self, run: Path, step: int) -> bool:
        """Returns whether all files are there and of this step."""
        whole = (run / WEIGHTS).exists() and _step_of(run / DESCRIPTION) == step
        if self._objective.text_side is not None:
            whole &= (run / text_encoder.WEIGHTS).exists()
            whole &= _step_of(run / text_encoder.DESCRIPTION) == step
        return whole


class ObjectiveExports:
    """Exports what the objective itself writes, by `Objective.export`.

    Args:
        objective: the objective.
        info: facts of the run; the step is added.
    """

    def __init__(self, objective: Objective[Any], info: dict[str, Any]):
        self._objective = objective
        self._info = info

    def save(self, run: Path, step: int) -> None:
        """Calls the objective's `export`."""
        self._objective.export(run, self._info | {"step": step})

    def are_saved(self, run: Path, step: int) -> bool:
        """Returns False: the files are the objective's own, so they are written again."""
        return False


def require_exported(run: Path, parts: Parts[Any], ranks: Ranks, step: int) -> None:
    """Exports again if a kill came between the last checkpoint and its export, or files are gone.

    Called on every rank; rank 0 writes.
    """
    if ranks.is_main and not parts.exports.are_saved(run, step):
        parts.exports.save(run, step)


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


def _step_of(description: Path) -> int | None:
    """Returns the step of an export. Its description is written last, after the weights."""
    try:
        step: int = parse_json(description.read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step


def _stages_before(description: Path) -> dict[str, Any]:
    """Returns what an earlier export says of the weights that the run started from."""
    try:
        before = parse_json(description.read_text(encoding="utf-8"))["before"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {"before": before}
