"""The one loop: data -> views -> backbone -> objective -> step, read from top to bottom.

Everything it does is a function of (recipe, step) and the saved state: sample order, views,
schedules, stochastic depth. So a run that is killed and resumed takes the very steps of one that
was not.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitrail import signals
from vitrail.distributed.ranks import Ranks, any_rank
from vitrail.optim import apply_schedules, clip_gradients, drop_frozen_gradients
from vitrail.train import epochs
from vitrail.train.checkpoint import restore, save
from vitrail.train.contract import Parts, RunSettings
from vitrail.train.exports import draw_pictures, require_exported
from vitrail.train.health import MEASURED, Monitor, note_saved_state, require_finite
from vitrail.train.log import Log, print_line
from vitrail.train.parallel import parallel
from vitrail.train.warm_start import hold_statistics

B = TypeVar("B")


def train(run: Path, recipe: RunSettings, parts: Parts[B], ranks: Ranks) -> bool:
    """Trains from the run's last checkpoint to its last step, on every rank.

    Returns:
        True when the last step was taken, False when SIGTERM or SIGINT came first; all state is
        saved in both cases.

    Raises:
        Interrupted: SIGTERM or SIGINT came before this process had taken a step, or a second time.
        ValueError: the recipe cannot run, the run was edited, or (DivergedError) the loss is not
            finite. The last whole checkpoint stays.
        OSError: the disk is full. The last whole checkpoint stays.
    """
    objective, optimizer, horizon = parts.objective, parts.optimizer, parts.horizon
    feed, guard = parts.feed, parts.guard
    start = restore(run, recipe, parts, ranks)
    if start == horizon.steps:
        require_exported(run, parts, ranks, start)
        if ranks.is_main:
            print_line(f"{run} is finished: all of its {start} steps are taken")
        return True
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    model = parallel(recipe, objective, ranks)
    feed.begin(run, start)
    monitor = Monitor(recipe.health_every, objective.chance_loss, is_main=ranks.is_main)
    save_every = recipe.checkpoint_every or max(50, round(horizon.steps_per_epoch))
    log_every = 1 if ranks.device.type == "cpu" else 20  # reading a loss makes the host wait
    if guard:
        guard.begin(run, start)

    with (
        note_saved_state(run, horizon.steps),
        Log(run, ranks, start, horizon.steps, feed, recipe.sinks) as log,
        signals.watching() as watch,
    ):
        if horizon.steps_in(recipe.optim.warmup_epochs) == horizon.steps:
            log.print_line("note: the whole run is warm-up; see --optim.warmup-epochs")
        taken = saved = start
        batches = watch.until_stopped(epochs.batches(parts, recipe.seed, start), ranks.world == 1)
        for step, slices in enumerate(log.timed(batches), start):
            lr, weight_decay = apply_schedules(
                optimizer, recipe.optim, horizon, recipe.batch_size, step
            )
            hold_statistics(objective, step < parts.frozen_steps)
            out = forward_backward(model, slices, step, recipe.precision)
            drop_frozen_gradients(optimizer, step)
            out["grad_norm"] = clip_gradients(parameters, recipe.optim)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            objective.after_step(out, step)
            taken = step + 1
            watch.save_first()

            epoch = step / horizon.steps_per_epoch
            log.record({"step": step, "epoch": epoch, "lr": lr, "weight_decay": weight_decay}, out)
            stopping = any_rank(watch.stopping)
            guard_due = guard is not None and guard.due(step)
            saving = stopping or taken == horizon.steps or taken % save_every == 0
            if saving or guard_due or taken % log_every == 0:
                rows = log.flush()
                rows[-1] |= monitor.check(step, out, rows[-1]["loss"], log.pace)
                if guard and guard_due:
                    rows[-1] = guard.measure(step, rows[-1])
                log.write(rows)
                require_finite(rows, recipe.precision)
            if saving:
                save(run, recipe, parts, ranks, taken)
                saved = taken
                draw_pictures(run, objective, slices[0], ranks)
            if stopping:
                break
        if taken > saved:  # the signal came while the next batch was awaited
            log.write(rows := log.flush())
            require_finite(rows, recipe.precision)
            save(run, recipe, parts, ranks, taken)
        if taken < horizon.steps:
            done = f"{taken} of {horizon.steps} steps are saved"
            log.print_line(f"stopped; {done}; go on with `vitrail resume {run}`")
    return taken == horizon.steps


def forward_backward(
    model: nn.Module, batches: list[B], step: int, precision: str
) -> dict[str, Tensor]:
    """Computes the loss and its gradient over the accumulation slices of a step.

    Args:
        model: the objective, or its DDP wrapper.
        batches: slices of equal size.
        step: the step.
        precision: "bf16" for autocast, else "fp32".

    Returns:
        The outputs of `Objective.forward`, detached and joined as its docstring says.
    """
    device = next(model.parameters()).device.type
    outs = []
    for i, batch in enumerate(batches):
        last = i + 1 == len(batches)
        half = torch.autocast(device, torch.bfloat16, precision == "bf16")
        # DDP exchanges gradients in the last slice only; the others add to those there are
        ddp = model if isinstance(model, DistributedDataParallel) else None
        with ddp.no_sync() if ddp and not last else nullcontext():
            with half:
                out = model(batch, step)
            (out["loss"] / len(batches)).backward()
        outs.append({name: value.detach() for name, value in out.items()})
    return {name: _join(name, [out[name] for out in outs]) for name in outs[0]}


def _join(name: str, values: list[Tensor]) -> Tensor:
    """Joins an output of all slices: the last of features, all integers, the mean of others."""
    if name in MEASURED:
        return values[-1]
    if not values[0].is_floating_point():
        return torch.cat(values)
    return torch.stack(values).mean(0)
