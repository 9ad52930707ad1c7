"""All the state a run carries from step to step: what a checkpoint holds, and what is exported."""

from pathlib import Path

from vitrail import checkpoint
from vitrail.assemble import Parts, preprocess_of
from vitrail.distributed import Ranks
from vitrail.encoder import Encoder
from vitrail.recipes.config import kind, to_dict
from vitrail.recipes.recipe import Recipe
from vitrail.run import require_same


def restore(run: Path, recipe: Recipe, parts: Parts, ranks: Ranks) -> int:
    """Loads the last whole checkpoint into the parts, and returns the number of steps it holds."""
    state = checkpoint.load_latest(run / "checkpoints", ranks.device)
    if state is None:
        return 0
    require_same(run, state["config"], recipe)
    if state["source"] != parts.source.fingerprint():
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
        "source": parts.source.fingerprint(),
        "samples": len(parts.source),
        "objective": parts.objective.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
    }
    checkpoint.save(run / "checkpoints", step, state)
    info = {
        "seed": recipe.seed,
        "objective": kind(type(recipe.objective)),
        "data": recipe.data,
        "step": step,
    }
    Encoder(parts.objective.encoder, preprocess_of(recipe, parts.plan), info).save(run)
