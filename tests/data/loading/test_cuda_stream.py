"""Views of the next step are computed beside the one that runs on CUDA, and not on a CPU."""

import contextlib

import pytest
import torch

from vitrail.data.contract import Batch
from vitrail.data.loading import wait_time
from vitrail.data.loading.cuda_stream import ViewStream, to_device
from vitrail.data.loading.loader import Loader
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.loading.wait_time import Meter
from vitrail.data.sources.registry import open_source
from vitrail.data.views.plan import RandomResizedCrop
from vitrail.nn.random import Draws

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAN = RandomResizedCrop(8, mean=(0.5,), std=(0.5,)).plan()


def batch_of(views: list[torch.Tensor]) -> Batch:
    index = torch.arange(4)
    return Batch(views, index, index, Draws(seed=0, step=0, batch_size=4, start=0, count=4))


def test_on_a_cpu_nothing_is_done():
    tensor = torch.arange(3)
    assert to_device(tensor, CPU) is tensor
    stream = ViewStream(CPU)
    stream.wait_for_current()
    with stream.queue():
        batch = batch_of([torch.zeros(4, 1, 2, 2)])
    stream.join([batch])


class Device:
    """Stands in for torch.cuda, and records the calls."""

    def __init__(self, monkeypatch):
        self.calls: list[str] = []
        self.now, self.events = "step", 0
        device = self

        class Stream:
            def __init__(self, name: str = "views"):
                self.name = name

            def wait_stream(self, other) -> None:
                device.calls.append(f"{self.name} waits for {other.name}")

        class Event:
            def __init__(self, **_):
                device.events += 1
                self.name = f"event {device.events}"

            def record(self, stream) -> None:
                device.calls.append(f"{self.name} on {stream.name}")

            def synchronize(self) -> None:
                device.calls.append(f"the host waits for {self.name}")

        @contextlib.contextmanager
        def within(stream):
            before, device.now = device.now, stream.name
            yield
            device.now = before

        monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream())
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", within)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(device.now))


def test_views_are_queued_beside_the_step_and_at_most_two_steps_ahead(monkeypatch):
    device = Device(monkeypatch)
    stream = ViewStream(CUDA)
    stream.wait_for_current()
    for _ in range(3):
        with stream.queue():
            device.calls.append(f"views on {device.now}")
        stream.join([])
        device.calls.append(f"step on {device.now}")
    of_a_step = ["views on views", "step waits for views", "step on step"]
    assert device.calls == [
        "views waits for step",
        *["event 1 on step", *of_a_step],
        *["event 2 on step", "the host waits for event 1", *of_a_step],
        *["event 3 on step", "the host waits for event 2", *of_a_step],
    ]


def test_what_the_device_measures_is_read_when_it_is_past_and_never_waited_for(monkeypatch):
    passed: set[int] = set()

    class Event:
        made = 0

        def __init__(self, enable_timing: bool):
            assert enable_timing
            Event.made += 1
            self.number = Event.made

        def record(self, stream) -> None:
            pass

        def query(self) -> bool:
            return self.number in passed

        def elapsed_time(self, end) -> float:
            assert end.number == self.number + 1
            return 250.0  # milliseconds

    monkeypatch.setattr(wait_time, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    meter = Meter(CUDA)
    for _ in range(2):
        with meter.stalled():
            pass
    assert meter.take().stalled == 0
    passed.add(2)
    assert meter.take().stalled == 0.25
    passed.add(4)
    with meter.views():
        pass
    assert meter.take().stalled == 0.25
    passed.add(6)
    assert meter.take().views == 0.25


@pytest.mark.gpu
@pytest.mark.parametrize("spec", ["digits", "folder"])
def test_batches_on_cuda_are_those_of_the_cpu_whatever_the_step_does(spec, tmp_path):
    """With steps that take long, in which nothing of a batch may be overwritten."""
    source = open_source(spec) if spec == "digits" else of_files(tmp_path)

    def loader(device: torch.device) -> Loader:
        quarantine = Quarantine(None, len(source))
        return Loader(
            source, PLAN, batch_size=32, seed=1, device=device, workers=2, quarantine=quarantine
        )

    expected = [batch for [batch] in loader(CPU).steps(0, 20)]
    measured = loader(CUDA)
    heavy, sums = torch.randn(4096, 4096, device=CUDA), []
    for [batch] in measured.steps(0, 20):
        for _ in range(5):
            heavy = (heavy @ heavy).div_(4096)
        sums.append((batch.views[0].clone(), batch.index.clone(), batch.label.clone()))
    for (views, index, label), batch in zip(sums, expected, strict=True):
        assert torch.allclose(views.cpu(), batch.views[0], atol=1e-4)
        assert torch.equal(index.cpu(), batch.index)
        assert torch.equal(label.cpu(), batch.label)
    torch.cuda.synchronize()
    spent = measured.meter.take()
    assert spent.views > 0
    assert spent.stalled >= 0


def of_files(folder):
    from PIL import Image

    for i, pixels in enumerate(open_source("digits").pixels()[:64, 0].numpy()):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return open_source(f"folder:{folder}", channels=1)
