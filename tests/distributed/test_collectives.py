"""Two gloo processes against the same sums written out in one."""

from pathlib import Path

import torch
import torch.distributed as dist

from tests.processes import on_ranks
from tests.rounding import EXACT, float64_kept
from vitrail.distributed.collectives import (
    all_gather,
    all_mean,
    all_sum,
    mean_over_ranks,
    rank,
    sum_over_ranks,
    world_size,
)
from vitrail.nn.coding_rate import coding_rate


def inputs() -> torch.Tensor:
    """One row of vectors a rank: [2 ranks, 2 sets, 3 vectors, 4 dimensions]."""
    return torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@float64_kept()
def losses(x: torch.Tensor, me: int) -> dict[str, torch.Tensor]:
    """A loss a name; each rank's is a different function of what all ranks hold."""
    weight = 1.0 + me
    return {
        "sum": weight * all_sum(x).square().sum(),
        "mean": weight * all_mean(x).exp().sum(),
        "gather": weight * (all_gather(x).cumsum(0) ** 2).sum(),
        "second moments": weight * coding_rate(x[:, :, :2], 0.3).sum(),  # 6 vectors, 2 dimensions
        "dual": weight * coding_rate(x.repeat(1, 1, 2), 0.3).sum(),  # 6 vectors, 8 dimensions
    }


def work(folder: str) -> None:
    dist.init_process_group("gloo")
    me = dist.get_rank()
    assert (rank(), world_size()) == (me, 2)
    x = inputs()[me].requires_grad_()
    found = {}
    for name, loss in losses(x, me).items():
        found[name] = (loss.detach(), torch.autograd.grad(loss, x)[0])
    found["plain sum"] = sum_over_ranks(x)
    found["plain mean"] = mean_over_ranks(x)
    found["count"] = sum_over_ranks(torch.tensor(me + 1))
    torch.save(found, f"{folder}/{me}.pt")


@float64_kept()
def test_values_and_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    on_ranks(work, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)]

    x = inputs().requires_grad_()
    merged = x.transpose(0, 1).flatten(1, 2)  # [sets, vectors of both ranks, dimensions]
    expected = {
        "sum": x.sum(0).square().sum(),
        "mean": x.mean(0).exp().sum(),
        "gather": (x.flatten(0, 1).cumsum(0) ** 2).sum(),
        "second moments": coding_rate(merged[:, :, :2], 0.3).sum(),
        "dual": coding_rate(merged.repeat(1, 1, 2), 0.3).sum(),
    }
    for name, loss in expected.items():
        # The sum of the ranks' losses is (1 + 2) times this one.
        gradient = 3 * torch.autograd.grad(loss, x, retain_graph=True)[0]
        for r in range(2):
            value, mine = ranks[r][name]
            torch.testing.assert_close(value, (1 + r) * loss.detach(), **EXACT)
            torch.testing.assert_close(mine, gradient[r], **EXACT)
    for r in range(2):
        torch.testing.assert_close(ranks[r]["plain sum"], x.detach().sum(0))
        torch.testing.assert_close(ranks[r]["plain mean"], x.detach().mean(0))
        assert ranks[r]["count"] == 3


def test_one_process_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    for function in (all_sum, all_mean, all_gather):
        assert function(x) is x
    assert not sum_over_ranks(x).requires_grad
    assert (rank(), world_size()) == (0, 1)
