"""The one loop: data -> views -> backbone -> objective -> step, read from top to bottom.

Everything it does is a function of (recipe, step) and the saved state: sample order, views,
schedules, stochastic depth. So a run that is killed and resumed takes the very steps of one that
was not.
"""

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitrail.data.contract import Batch
from vitrail.data.loading.loader import Loader
from vitrail.data.loading.quarantine import Quarantine
from vitrail.distributed.ranks import Ranks, any_rank, on_main
from vitrail.optim import apply_schedules, clip_gradients, drop_frozen_gradients
from vitrail.recipes.recipe import Recipe, worker_count
from vitrail.train import epochs
from vitrail.train.build import Parts
from vitrail.train.checkpoint import noting_what_is_kept, require_exported, restore, save_run
from vitrail.train.health import LOOKED_AT, Monitor, require_finite
from vitrail.train.log import Journal, draw_pictures, say
from vitrail.train.parallel import parallel
from vitrail.train.run_folder import stop_signals
from vitrail.train.warm_start import head_warmup_steps, hold_statistics


def train(run: Path, recipe: Recipe, parts: Parts, ranks: Ranks) -> bool:
    """Takes the run from its last checkpoint to its last step.

    Returns:
        True when the last step was taken, False when SIGTERM or SIGINT came first; all state is
        saved either way.

    Raises:
        ValueError: the recipe cannot run, the run was edited, or (DivergedError) the loss is not
            finite. OSError: the disk is full. The last whole checkpoint stays in each case.
    """
    objective, optimizer, horizon = parts.objective, parts.optimizer, parts.horizon
    start = restore(run, recipe, parts, ranks)
    if start == horizon.steps:
        if ranks.is_main:
            require_exported(run, recipe, parts, start)
            say(f"{run} is finished: all of its {start} steps are taken")
        return True
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    model = parallel(recipe, objective, ranks)
    quarantine_file = run / "quarantine.jsonl"  # of all ranks
    if start == 0:  # of a run that was never saved: files may be mended since
        on_main(ranks, lambda: quarantine_file.unlink(missing_ok=True))
    loader = Loader(
        parts.source,
        parts.plan,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        device=ranks.device,
        rank=ranks.rank,
        world=ranks.world,
        accumulate=recipe.accumulate,
        workers=worker_count(recipe, ranks),
        quarantine=Quarantine(quarantine_file, len(parts.source), recipe.max_bad_fraction),
    )
    monitor = Monitor(every=recipe.health_every, chance_loss=objective.chance_loss)
    save_every = recipe.checkpoint_every or max(50, round(horizon.steps_per_epoch))
    log_every = 1 if ranks.device.type == "cpu" else 20  # reading a loss makes the host wait

    guard, frozen = parts.guard, head_warmup_steps(recipe, horizon)
    if guard and ranks.is_main:
        guard.begin(run, objective.encoder, start)

    with (
        noting_what_is_kept(run, horizon.steps),
        Journal(run, ranks, start, horizon.steps, loader.meter) as journal,
        stop_signals() as stop,
    ):
        if horizon.steps_in(recipe.optim.warmup_epochs) == horizon.steps:
            journal.say("note: the whole run is warm-up; see --optim.warmup-epochs")
        steps = journal.timed(epochs.batches(loader, recipe, parts, start))
        for step, batches in enumerate(steps, start):
            lr, weight_decay = apply_schedules(
                optimizer, recipe.optim, horizon, recipe.batch_size, step
            )
            hold_statistics(objective, step < frozen)
            out = forward_backward(model, batches, step, recipe.precision)
            drop_frozen_gradients(optimizer, step)
            out["grad_norm"] = clip_gradients(parameters, recipe.optim)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            objective.after_step(out, step)

            epoch = step / horizon.steps_per_epoch
            journal.record(
                {"step": step, "epoch": epoch, "lr": lr, "weight_decay": weight_decay}, out
            )
            stopping = any_rank(stop.is_set())
            guard_due = guard is not None and guard.due(step)
            saving = stopping or step + 1 == horizon.steps or (step + 1) % save_every == 0
            if saving or guard_due or (step + 1) % log_every == 0:
                rows = journal.flush(recipe.batch_size)
                if ranks.is_main and monitor.due(step):
                    rows[-1] |= monitor.look(step, out, rows[-1]["loss"], journal.pace)
                if guard and guard_due and ranks.is_main:
                    rows[-1] = guard.look(step, objective.encoder, rows[-1])
                journal.write(rows)
                require_finite(rows, recipe.precision)
            if saving and ranks.is_main:
                save_run(run, recipe, parts, step + 1)
                draw_pictures(run, objective, batches[0])
            if stopping and step + 1 < horizon.steps:
                done = f"{step + 1} of {horizon.steps} steps are saved"
                journal.say(f"stopped; {done}; go on with `vitrail resume {run}`")
                return False
    return True


def forward_backward(
    model: nn.Module, batches: list[Batch], step: int, precision: str
) -> dict[str, Tensor]:
    """The loss and its gradient over the accumulation slices: means over slices of equal size."""
    outs = []
    for i, batch in enumerate(batches):
        last = i + 1 == len(batches)
        half = torch.autocast(batch.index.device.type, torch.bfloat16, precision == "bf16")
        # DDP exchanges gradients in the last slice only; the others add to what is there.
        ddp = model if isinstance(model, DistributedDataParallel) else None
        with ddp.no_sync() if ddp and not last else nullcontext():
            with half:
                out = model(batch, step)
            (out["loss"] / len(batches)).backward()
        outs.append({name: value.detach() for name, value in out.items()})
    return {
        name: outs[-1][name] if name in LOOKED_AT else torch.stack([o[name] for o in outs]).mean(0)
        for name in outs[0]
    }
