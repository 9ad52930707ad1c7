"""The next step's views, queued on a CUDA device beside the step that runs; elsewhere nothing.

The host is ahead of the device, so that no thread is needed: while step t runs, views of step t + 1
are queued on a stream of their own, and the step that wants them waits for them on the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vitrail.data.contract import Batch


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that the host does not wait for: through pinned memory, on the current stream."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Ahead:
    """A stream for views, on CUDA."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._step: torch.cuda.Event | None = None  # the end of the step before the last

    def follow(self) -> None:
        """What is queued from now on sees what is on the device by now."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    @contextmanager
    def queue(self) -> Iterator[None]:
        """What is computed within is computed beside the steps that are queued already.

        The host waits until the last but one of these is done. The device has a whole step left by
        then; and were the host further ahead, so would be the views, and the memory they take.
        """
        if self._stream is None:
            yield
            return
        before, self._step = self._step, torch.cuda.Event(blocking=True)
        self._step.record(torch.cuda.current_stream(self._device))
        if before is not None:
            before.synchronize()
        with torch.cuda.stream(self._stream):
            yield

    def hand_over(self, batches: list[Batch]) -> None:
        """The step to be queued next may use the batches: it starts when they are whole."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for batch in batches:
            for tensor in (*batch.views, batch.index, batch.label):
                # Or the stream of views would write into them as soon as the host lets them go.
                tensor.record_stream(current)
