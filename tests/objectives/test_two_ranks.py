"""Two gloo processes with half the batch each against one with all of it: real DDP, two steps.

In float64: the ranks add up in another order than one process, and in float32 the difference is the
processor's.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.objectives.tiny import CONFIGS, build, in_float64, make_batch, narrow
from tests.processes import on_ranks
from tests.rounding import EXACT, float64_kept
from vitrail.data.contract import Batch
from vitrail.objectives.contract import Objective

BATCH = 8
STEPS = 2
CASES = {
    "dino": CONFIGS["dino"],
    "dino, free norms": replace(CONFIGS["dino"], norm_last_layer=False, teacher_temp=0.07),
    # n = 8 samples against p dimensions: both ways of reducing the coding rate.
    "simdino, p > n": replace(CONFIGS["simdino"], expand="student"),
    "simdino, p < n": replace(CONFIGS["simdino"], bottleneck_dim=6),
    "cotraining": CONFIGS["cotraining"],
    "supervised": CONFIGS["supervised"],
    "deepcluster": CONFIGS["deepcluster"],
    # Without its queue in the first step, and with it, in uneven shares, in the second.
    "swav, queue": replace(CONFIGS["swav"], queue_length=5, queue_epoch=0),
    "mae": CONFIGS["mae"],
    "crate_mae": CONFIGS["crate_mae"],
    "clip": CONFIGS["clip"],
    "clip, bidirectional": replace(CONFIGS["clip"], text="bidirectional"),
}


def batch_of(objective: Objective, step: int) -> Batch:
    batch = in_float64(make_batch(objective.views(), BATCH, step))
    batch.label[:3] = -1  # so that the ranks' numbers of labels differ
    return batch


@float64_kept()
def train(case: str, rank: int, world: int) -> dict[str, Any]:
    """Two SGD steps; what came of them."""
    objective = build(CASES[case]).double()
    model = objective if world == 1 else DistributedDataParallel(objective, broadcast_buffers=False)
    params = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    losses, grads = [], {}
    for step in range(STEPS):
        share = BATCH // world
        out = model(narrow(batch_of(objective, step), rank * share, share), step)
        out["loss"].backward()
        losses.append(out["loss"].detach())
        with torch.no_grad():
            for name, p in params.items():
                grads[f"{step} {name}"] = p.grad.clone()
                p.sub_(0.1 * p.grad)
                p.grad = None
        objective.after_step({k: v.detach() for k, v in out.items()}, step)
    return {"losses": torch.stack(losses), "grads": grads, "state": objective.state_dict()}


def work(folder: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.save({case: train(case, rank, 2) for case in CASES}, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two_ranks")
    on_ranks(work, str(folder))
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(2)]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_and_state_are_those_of_one_process(
    two_ranks: list[dict[str, Any]], case: str
) -> None:
    one, ranks = train(case, 0, 1), [r[case] for r in two_ranks]
    mean = (ranks[0]["losses"] + ranks[1]["losses"]) / 2
    assert mean.dtype == torch.float64
    torch.testing.assert_close(mean, one["losses"], **EXACT)
    for found in ranks:
        assert_same(found["grads"], one["grads"])
        assert_same(found["state"], one["state"])
    assert "center" not in one["state"] or one["state"]["center"].abs().max() > 0


@pytest.mark.parametrize("case", CASES)
def test_ranks_stay_bit_identical(two_ranks: list[dict[str, Any]], case: str) -> None:
    first, second = (r[case]["state"] for r in two_ranks)
    assert all(torch.equal(first[name], second[name]) for name in first)
