"""A stream on which a CUDA device computes the next step's views beside the step that runs.

The host is ahead of the device, so no thread is needed: while step t runs, the views of step t + 1
are queued on a stream of their own, and step t + 1 waits for them on the device. On other devices
nothing of this happens.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vitrail.data.contract import Batch


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a copy on a device that the host does not wait for, made on the current stream."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class ViewStream:
    """A stream for views, on CUDA; on other devices its methods do nothing."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._step: torch.cuda.Event | None = None  # the end of the step before the last

    def wait_for_current(self) -> None:
        """Makes all work queued from now on wait for the work of the current stream."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    @contextmanager
    def queue(self) -> Iterator[None]:
        """Queues the work within on this stream, beside the steps that are queued already.

        The host first waits until all but the last of these are done. The device still has a whole
        step to do then; a host further ahead would hold the views of more steps in memory.
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

    def join(self, batches: list[Batch]) -> None:
        """Makes the step that is queued next wait until the batches are complete."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for batch in batches:
            for tensor in (*batch.views, batch.index, batch.label):
                # Else this stream would reuse their memory as soon as the host drops them.
                tensor.record_stream(current)
