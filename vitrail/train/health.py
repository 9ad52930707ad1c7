"""The health check of a run: measurements of its features, and warnings with remedies.

Features of one batch are measured, at an interval that keeps the cost under 1 % of the training
time. Users of the official code notice after days: a loss pinned at ln 65536 = 11.09 (dino #246),
NaN (dinov2 #143, SimDINO #43), collapse (SimDINO #20). vitrail warns while it happens.

Shape legend: B rows of one batch · D features.
"""

import errno
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.nn.effective_rank import effective_rank
from vitrail.train.checkpoint import list_checkpoints

MEASURED = ("features", "embedding")  # outputs of an objective, both optional
PATIENCE = 3  # successive bad readings before a warning: the first steps of any run look flat
LOW_RANK, LOW_SPREAD = 1.5, 0.01  # below either, rows are all but equal
SHARE = 0.01  # largest share of the training time that measuring may take


def vital_signs(features_BD: Float[Tensor, "B D"]) -> dict[str, float]:
    """Returns effective_rank, and the least and the mean spread of single dimensions.

    Rows that are not finite are left out; of fewer than two rows, nothing is returned. Spread is
    the standard deviation over the batch of unit-norm features, times sqrt(D): 1 for an isotropic
    cloud, 0 for a collapsed one.
    """
    finite = features_BD[torch.isfinite(features_BD).all(dim=1)]
    if len(finite) < 2:
        return {}
    unit = torch.nn.functional.normalize(finite.float(), dim=1)
    spread = unit.std(dim=0, correction=0) * math.sqrt(unit.shape[1])
    return {
        "effective_rank": effective_rank(finite),
        "spread_min": float(spread.min()),
        "spread_mean": float(spread.mean()),
    }


@dataclass
class Monitor:
    """Decides when to measure, and whether a measurement calls for a warning.

    Attributes:
        every: least number of steps between two measurements.
        chance_loss: the loss of an output that does not depend on its input (ln K), None if the
            objective has no such value.
        is_main: whether this is rank 0, the only one that measures.
        next_step: the step of the next measurement, at the earliest.
    """

    every: int
    chance_loss: float | None
    is_main: bool = True
    next_step: int = 0
    _flat: int = field(default=0, init=False)
    _low: int = field(default=0, init=False)

    def due(self, step: int) -> bool:
        """Returns whether this rank measures at this step."""
        return self.is_main and step >= self.next_step

    def check(
        self, step: int, out: Mapping[str, Tensor], loss: float, step_seconds: float
    ) -> dict[str, Any]:
        """Returns `measure` if it is due, else nothing. The loop calls it on every rank."""
        return self.measure(step, out, loss, step_seconds) if self.due(step) else {}

    def measure(
        self, step: int, out: Mapping[str, Tensor], loss: float, step_seconds: float
    ) -> dict[str, Any]:
        """Returns one measurement: {"health": numbers}, with "warning": text if one is due.

        It measures the "features" and the "embedding" of an objective's output, if any: a head may
        collapse while its backbone has not yet. The next measurement is delayed by what this one
        cost.

        Args:
            step: the step just taken.
            out: the objective's output.
            loss: the loss of this step.
            step_seconds: seconds a step.
        """
        started = time.perf_counter()
        signs = vital_signs(out["features"]) if "features" in out else {}
        if "embedding" in out:
            of_head = vital_signs(out["embedding"])
            signs |= {f"embedding_{name}": value for name, value in of_head.items()}
        cost = time.perf_counter() - started
        self.next_step = step + max(self.every, math.ceil(cost / (SHARE * max(step_seconds, 1e-9))))
        warning = self._diagnose(step, signs, loss)
        return {"health": signs} | ({"warning": warning} if warning else {})

    def _diagnose(self, step: int, signs: dict[str, float], loss: float) -> str | None:
        pinned = self.chance_loss is not None and abs(loss / self.chance_loss - 1) < 0.005
        self._flat = self._flat + 1 if pinned else 0
        low = [
            kind
            for kind in ("", "embedding_")
            if signs.get(f"{kind}effective_rank", math.inf) < LOW_RANK
            or signs.get(f"{kind}spread_mean", 1.0) < LOW_SPREAD
        ]
        self._low = self._low + 1 if low else 0
        if self._flat >= PATIENCE:
            return (
                f"step {step}: the loss has stayed at {loss:.4f}, the value of a uniform output "
                f"(ln K = {self.chance_loss:.4f}): nothing is learned yet. If it does not move "
                "soon: a lower teacher temperature, a shorter warm-up, or a larger batch"
            )
        if self._low >= PATIENCE:
            rank, spread = (signs[f"{low[0]}{name}"] for name in ("effective_rank", "spread_mean"))
            return (
                f"step {step}: the {'head outputs' if low[0] else 'features'} collapse: effective "
                f"rank {rank:.2f}, mean spread {spread:.4f}. Try a lower learning rate, a longer "
                "warm-up, or (SimDINO) a larger batch and gamma"
            )
        return None


class DivergedError(ValueError):
    """The loss is not finite. The message names the step, the likely reason and the remedy."""


def require_finite(rows: list[dict[str, Any]], precision: str) -> None:
    """Stops the run at the first row whose loss or gradient norm is not a finite number.

    Args:
        rows: rows of successive steps.
        precision: of the forward pass, "fp32" or "bf16".

    Raises:
        DivergedError: with the step, the likely reason and the remedy.
    """
    for i, row in enumerate(rows):
        broken = [name for name in ("loss", "grad_norm") if not math.isfinite(row[name])]
        if not broken:
            continue
        verb = "is" if len(broken) == 1 else "are"
        before = [r["grad_norm"] for r in rows[max(0, i - 5) : i]]
        grew = (
            f"; gradient norms just before: {', '.join(f'{g:.3g}' for g in before)}"
            if before
            else ""
        )
        reason = (
            "a learning rate too high for this batch and warm-up is the usual cause"
            if precision == "fp32"
            else f"{precision} rounding or a learning rate too high are the usual causes"
        )
        remedy = "--precision fp32, or " if precision != "fp32" else ""
        raise DivergedError(
            f"step {row['step']}: {' and '.join(broken)} {verb} not finite (loss {row['loss']}, "
            f"learning rate {row['lr']:.3g}{grew}): {reason}. Try {remedy}half the --optim.lr, or "
            "a longer --optim.warmup-epochs"
        )


@contextmanager
def note_saved_state(run: Path, total: int) -> Iterator[None]:
    """Adds to an error that stops a run of `total` steps what is saved, and how to go on."""
    try:
        yield
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        error.add_note(_saved_state(run, total, error))
        raise


def _saved_state(run: Path, total: int, error: Exception) -> str:
    saved = list_checkpoints(run / "checkpoints")
    steps = int(saved[-1].name.removeprefix("step-")) if saved else 0
    kept = f"Kept: {steps} of {total} steps, in {saved[-1]}" if saved else "No step was saved yet"
    if isinstance(error, DivergedError):
        return f"{kept}; resumed, it would do the same again: start a new run with another --out"
    if isinstance(error, torch.OutOfMemoryError):
        return f"{kept}. Start a new run with a smaller --batch-size, or --precision bf16"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "The disk is full: make room" if full else "When that is mended"
    return f"{kept}. {remedy}, then go on with `vitrail resume {run}`"
