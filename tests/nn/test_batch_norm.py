"""Batch norm over two gloo processes against torch's over the whole batch in one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.processes import on_ranks
from tests.rounding import EXACT, rounding_bound
from vitrail.backbones.families import TimmResNet
from vitrail.nn.batch_norm import GlobalBatchNorm, convert_batch_norms, global_moments
from vitrail.nn.random import Draws

SHARES = (slice(0, 3), slice(3, 8))  # of 8 samples: the ranks need not have equally many


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 4, 3),
        nn.BatchNorm2d(4, momentum=None),
        nn.Flatten(),
        nn.Linear(4 * 4, 3),
        nn.BatchNorm1d(3, affine=False),
    ).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def inputs() -> tuple[Tensor, Tensor]:
    """Images, and the weights of a loss that differs from sample to sample."""
    generator = torch.Generator().manual_seed(1)
    images = 3 + torch.randn(8, 2, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.randn(8, 3, generator=generator, dtype=torch.float64)


def two_passes(net: nn.Module, share: slice) -> dict[str, Any]:
    """Returns values, gradients and running statistics of a share of the batch."""
    images, weights = (t[share] for t in inputs())
    net(images * 2 - 1)  # so that the running statistics are an average
    images = images.clone().requires_grad_()
    out = net(images)
    (out.sin() * weights).sum().backward()
    return {
        "out": out.detach(),
        "images": images.grad,
        "parameters": [p.grad for p in net.parameters()],
        "buffers": list(net.buffers()),
        "eval": net.eval()(images).detach(),
    }


class Pooled(nn.Module):
    """A ResNet of 8 blocks over two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        row = TimmResNet(32, "resnet18", small=True)
        self.backbone = row.build("r", img_size=32, in_chans=3, drop_path=0.4, overrides={})
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1)  # the last of a block starts with 0

    def forward(self, images: list[Tensor], draws: Draws) -> Tensor:
        return torch.cat([f.pooled for f in self.backbone.forward_packed(images, draws)])


def resnet_step(share: slice) -> dict[str, Any]:
    """A training pass, whose loss is a mean over samples; two views of each, and a crop."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(4, 3, 3, 16, 16, generator=generator, dtype=torch.float64)[share]
    views = [images[:, :2].transpose(0, 1).flatten(0, 1), images[:, 2, :, :8, :12]]
    draws = Draws(seed=5, step=7, batch_size=4, start=0, count=4)
    net = Pooled().double()
    model = DistributedDataParallel(net) if dist.is_initialized() else net
    loss = model(views, draws.narrow(share.start, share.stop - share.start)).sin().mean()
    loss.backward()
    gradients = {n: p.grad for n, p in net.named_parameters()}
    return {"loss": loss.detach(), "gradients": gradients, "buffers": dict(net.named_buffers())}


def far_from_zero() -> Tensor:
    """Images with a mean 1e4 times the deviation."""
    return inputs()[0] * 1e-3 + 10


def work(folder: str) -> None:
    dist.init_process_group("gloo")
    me = dist.get_rank()
    found = {
        "network": two_passes(convert_batch_norms(network()), SHARES[me]),
        "moments": global_moments(far_from_zero()[SHARES[me]]),
        "moments of float32": global_moments(far_from_zero().float()[SHARES[me]]),
        "resnet": resnet_step(slice(2 * me, 2 * me + 2)),
        "half": GlobalBatchNorm(2)(inputs()[0].bfloat16()[SHARES[me]]).detach(),
    }
    torch.save(found, f"{folder}/{me}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("batch_norm")
    on_ranks(work, str(folder))
    return [torch.load(Path(folder) / f"{r}.pt", weights_only=True) for r in range(2)]


def test_values_gradients_and_statistics_are_those_of_one_process(
    ranks: list[dict[str, Any]],
) -> None:
    one = two_passes(network(), slice(0, 8))
    first, second = (r["network"] for r in ranks)
    for name in ("out", "images", "eval"):
        torch.testing.assert_close(torch.cat([first[name], second[name]]), one[name])
    for a, b, whole in zip(
        first["parameters"], second["parameters"], one["parameters"], strict=True
    ):
        torch.testing.assert_close(a + b, whole)  # the losses are summed
    for a, b, whole in zip(first["buffers"], second["buffers"], one["buffers"], strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, whole)
    assert one["images"].abs().max() > 1e-3


def test_a_resnet_in_ddp_is_that_of_one_process(ranks: list[dict[str, Any]]) -> None:
    one, found = resnet_step(slice(0, 4)), [r["resnet"] for r in ranks]
    torch.testing.assert_close((found[0]["loss"] + found[1]["loss"]) / 2, one["loss"])
    for kind in ("gradients", "buffers"):
        for name, expected in one[kind].items():
            assert torch.equal(found[0][kind][name], found[1][kind][name])
            torch.testing.assert_close(found[0][kind][name], expected, rtol=1e-7, atol=1e-9)


def test_moments_survive_a_large_mean(ranks: list[dict[str, Any]]) -> None:
    """Mean square less squared mean would leave 1e8 roundings of float64: 1e-8 of the variance."""
    for rank in ranks:
        mean, var, n = rank["moments"]
        assert int(n) == 8 * 36
        torch.testing.assert_close(mean, far_from_zero().mean((0, 2, 3)), **EXACT)
        expected = far_from_zero().var((0, 2, 3), correction=0)
        torch.testing.assert_close(var, expected, rtol=EXACT["rtol"], atol=0)
        mean, var, _ = rank["moments of float32"]
        assert mean.dtype == torch.float32
        # Two passes: n u + (n u · 1e4)² of the variance (Chan, Golub & LeVeque 1983, table 1). One
        # would be off by n u · 1e8, a thousand variances.
        off = rounding_bound(8 * 36) / 2
        rtol = off + (1e4 * off) ** 2
        torch.testing.assert_close(var.double(), expected, rtol=rtol, atol=0)


def test_half_precision_has_float32_statistics(ranks: list[dict[str, Any]]) -> None:
    images = inputs()[0].bfloat16()
    found = torch.cat([r["half"] for r in ranks])
    assert found.dtype == torch.bfloat16
    expected = nn.functional.batch_norm(images.double(), None, None, training=True)
    # The output is rounded to 8 bits, by 2^-8 of it at most. Before, in float32: a mean of 3 and a
    # deviation of 1, each of 8 · 36 values, shift and scale outputs of at most 5.
    off = rounding_bound(8 * 36 + 4, scale=3 + 5)
    assert expected.abs().max() < 5
    torch.testing.assert_close(found.double(), expected, atol=off, rtol=2**-8)


def test_one_process_is_torchs_to_the_bit() -> None:
    ours, theirs = convert_batch_norms(network()), network()
    found, expected = two_passes(ours, slice(0, 8)), two_passes(theirs, slice(0, 8))
    for name in ("out", "images", "eval"):
        assert torch.equal(found[name], expected[name])
    for name in ("parameters", "buffers"):
        assert all(map(torch.equal, found[name], expected[name]))


def test_conversion_keeps_keys_parameters_and_mode() -> None:
    net = network().eval()
    before = net.state_dict()
    parameters = list(net.parameters())
    assert convert_batch_norms(net) is net
    assert list(net.state_dict()) == list(before)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert [type(net[i]) for i in (1, 4, 7)] == [GlobalBatchNorm] * 3
    assert not net[1].training
    net.load_state_dict(network().state_dict())
    assert type(convert_batch_norms(nn.BatchNorm1d(3))) is GlobalBatchNorm
    assert type(convert_batch_norms(net)[1]) is GlobalBatchNorm


def test_one_value_per_channel_is_refused_in_training_only() -> None:
    norm = GlobalBatchNorm(3)
    with pytest.raises(ValueError, match=r"one value per channel.*\(1, 3, 1, 1\).*batch of 2"):
        norm(torch.zeros(1, 3, 1, 1))
    assert torch.isfinite(norm(torch.randn(1, 3, 2, 1))).all()
    assert torch.isfinite(norm.eval()(torch.zeros(1, 3))).all()
