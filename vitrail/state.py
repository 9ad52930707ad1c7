"""All the state a run carries from step to step: what a checkpoint holds, and what is exported."""

import json
from pathlib import Path

from vitrail import text_encoder
from vitrail.config import kind, to_dict
from vitrail.distributed.ranks import Ranks
from vitrail.encoder import DESCRIPTION, WEIGHTS, Encoder
from vitrail.recipes.recipe import Recipe
from vitrail.text_encoder import TextEncoder
from vitrail.train import checkpoint
from vitrail.train.build import Parts, preprocess_of
from vitrail.train.run_folder import require_same
from vitrail.train.warm_start import require_started


def restore(run: Path, recipe: Recipe, parts: Parts, ranks: Ranks) -> int:
    """Loads the last whole checkpoint into the parts, and returns the number of steps it holds."""
    state = checkpoint.load_latest(run / "checkpoints", ranks.device)
    if state is None:
        require_started(run, recipe, parts.started)
        return 0
    require_same(run, state["config"], recipe)
    if state["source"] != parts.fingerprint:
        raise ValueError(
            f"{recipe.data} has changed since {run} began ({state['samples']} images then, "
            f"{len(parts.source)} now): restore it, or start a new run with another --out"
        )
    parts.objective.load_state_dict(state["objective"])
    parts.optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save(run: Path, recipe: Recipe, parts: Parts, step: int) -> None:
    """Writes all state after `step` steps, and the encoder as it is now."""
    state = {
        "step": step,
        "config": to_dict(recipe),
        "source": parts.fingerprint,
        "samples": len(parts.source),
        "objective": parts.objective.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
    }
    checkpoint.save(run / "checkpoints", step, state)
    export(run, recipe, parts, step)


def export(run: Path, recipe: Recipe, parts: Parts, step: int) -> None:
    """Writes the encoder as it is now, after `step` steps; first the text side, if it has one."""
    info = {
        "seed": recipe.seed,
        "objective": kind(type(recipe.objective)),
        "data": recipe.data,
        "step": step,
        "steps": parts.horizon.steps,
    }
    if recipe.init_from is not None:
        info["init_from"] = recipe.init_from
    if parts.objective.text_side is not None:
        TextEncoder(*parts.objective.text_side, step=step).save(run)
    Encoder(parts.objective.encoder, preprocess_of(recipe, parts.plan), info).save(run)


def require_exported(run: Path, recipe: Recipe, parts: Parts, step: int) -> None:
    """Exports again where a kill came between the last checkpoint and its export, or files went."""
    whole = (run / WEIGHTS).exists() and _step(run / DESCRIPTION) == step
    if parts.objective.text_side is not None:
        whole &= (run / text_encoder.WEIGHTS).exists()
        whole &= _step(run / text_encoder.DESCRIPTION) == step
    if not whole:
        export(run, recipe, parts, step)


def _step(description: Path) -> int | None:
    """Which is written last, and so tells what the weights beside it are of."""
    try:
        found: int = json.loads(description.read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found
