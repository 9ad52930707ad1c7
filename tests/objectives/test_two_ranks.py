"""Two gloo processes with half the batch each against one with all of it: real DDP, two steps.

In float64: the ranks add up in another order than one process, and in float32 the difference is the
processor's.
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.objectives.tiny import build, in_float64, make_batch, narrow, variants
from tests.processes import on_ranks
from tests.rounding import EXACT, float64_kept
from vitrail.data.contract import Batch
from vitrail.objectives.contract import Objective

BATCH = 8
STEPS = 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs every test on every objective's configs.

    They are read here, and not when this file is imported: the ranks import it too, and would then
    import the test file of every objective.
    """
    metafunc.parametrize("case", variants())


def batch_of(objective: Objective, step: int) -> Batch:
    batch = in_float64(make_batch(objective.views(), BATCH, step))
    batch.label[:3] = -1  # so that the ranks' numbers of labels differ
    return batch


@float64_kept()
def train(config: object, rank: int, world: int) -> dict[str, Any]:
    """Two SGD steps; what came of them."""
    objective = build(config).double()
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


def work(configs: dict[str, object], folder: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {case: train(config, rank, 2) for case, config in configs.items()}
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two_ranks")
    on_ranks(work, variants(), str(folder))
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(2)]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


def test_losses_gradients_and_state_are_those_of_one_process(
    two_ranks: list[dict[str, Any]], case: str
) -> None:
    one, ranks = train(variants()[case], 0, 1), [r[case] for r in two_ranks]
    mean = (ranks[0]["losses"] + ranks[1]["losses"]) / 2
    assert mean.dtype == torch.float64
    torch.testing.assert_close(mean, one["losses"], **EXACT)
    for found in ranks:
        assert_same(found["grads"], one["grads"])
        assert_same(found["state"], one["state"])
    assert "center" not in one["state"] or one["state"]["center"].abs().max() > 0


def test_ranks_stay_bit_identical(two_ranks: list[dict[str, Any]], case: str) -> None:
    first, second = (r[case]["state"] for r in two_ranks)
    assert all(torch.equal(first[name], second[name]) for name in first)
