"""Sampled view parameters applied to images: 8 or 16 bits in, normalised float32 out.

One specification, two ways to compute it: image by image on a CPU (`apply_cpu.py`), or the batch
at once (`apply_batched.py`). The sizes agree to the bit, the colours to 1/255 where a device's last
bit of a quotient decides how a hue is rounded, and everywhere else to float32.

The order: box, resize and flip; the operations of `registry.py`, in its order; normalise. Up to the
blur, pixels are whole numbers of the image's type, as in the published pipelines, which work on 8
bits.

Shape legend: B images · V views · C channels · S side.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, UInt8, UInt16
from torch import Tensor

from vitrail.data.views.apply_batched import crop_batched, recolour_batched
from vitrail.data.views.apply_cpu import apply_native
from vitrail.data.views.plan import ViewParams, ViewPlan, join_params

Images = (
    Sequence[UInt8[Tensor, "C _ _"] | UInt16[Tensor, "C _ _"]]
    | UInt8[Tensor, "B C H W"]
    | UInt16[Tensor, "B C H W"]
)

# Side of a view, in pixels, from which on a CPU images of one size are worked on one by one too.
NATIVE_FROM = 96


def apply_views(
    images: Images, params: ViewParams, device: torch.device | str
) -> list[Float[Tensor, "_ C _ _"]]:
    """Returns the views of a batch.

    Args:
        images: of mixed sizes as a list, or of one size as a tensor. Both give the same pixels.
        params: drawn for these images.
        device: where to compute.

    Returns:
        Normalised float32 [V*B, C, S, S] per resolution, in the plan's order; view-major rows.
    """
    made = ViewsOfBatch(params.plan, len(images), torch.device(device))
    made.add(images, params)
    return made.finish()


class ViewsOfBatch:
    """The views of B images that come in parts; the images of a part are not needed after `add`.

    Args:
        plan: of the views.
        count: B.
        device: where to compute.
    """

    def __init__(self, plan: ViewPlan, count: int, device: torch.device):
        self._plan, self._device = plan, device
        self._views = [
            torch.empty(n_views, count, len(plan.mean), side, side, device=device)
            for side, n_views in plan.resolutions
        ]
        self._filled = 0
        self._uncoloured: list[ViewParams] = []
        self._white = 0.0

    def add(self, images: Images, params: ViewParams) -> None:
        """Adds the next images of the batch, with the parameters drawn for them."""
        assert len(images) == params.box.shape[1]
        assert all(image.shape[0] == len(self._plan.mean) for image in images)
        out = [view[:, self._filled : self._filled + len(images)] for view in self._views]
        self._filled += len(images)
        self._white = float(torch.iinfo(images[0].dtype).max)
        with torch.no_grad(), full_precision(self._device):
            if self._image_by_image(images):
                apply_native(images, params, out)
                return
            crop_batched(_moved(images, self._device), params, out)
            self._uncoloured.append(params)

    def _image_by_image(self, images: Images) -> bool:
        """Returns True on a CPU, but for images of one size with views so small that calls cost
        more than pixels."""
        largest = max(side for side, _ in self._plan.resolutions)
        one_size = isinstance(images, Tensor)
        return self._device.type == "cpu" and not (one_size and largest < NATIVE_FROM)

    def finish(self) -> list[Float[Tensor, "_ C _ _"]]:
        """Returns normalised float32 [V*B, C, S, S] per resolution, in the plan's order."""
        assert self._filled == self._views[0].shape[1]
        flat = [view.flatten(0, 1) for view in self._views]
        if self._uncoloured:
            # All parts together: on an accelerator the cost is the number of calls.
            with torch.no_grad(), full_precision(self._device):
                recolour_batched(flat, join_params(self._uncoloured), self._white)
        return flat


def _moved(images: Images, device: torch.device) -> Images:
    if isinstance(images, Tensor):
        return images.to(device, non_blocking=True)
    return [image.to(device, non_blocking=True) for image in images]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Computes float32 products in float32 within: neither autocast nor TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
