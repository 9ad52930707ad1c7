"""PNG files of 16 bits, of which Pillow by itself keeps the high bytes.

Pillow unpacks the decoded bytes of a file as it is told. Told of the other order of bytes, it keeps
the low ones, so two passes give both.

Shape legend: C channels · H, W an image.
"""

import warnings
from typing import Any

import numpy as np
from PIL import Image

from vitrail.data.decode.image import FORMATS, File

DEEP = ("RGB;16B", "RGBA;16B", "LA;16B")  # Pillow's names of the bytes of 16-bit files


def is_deep(image: Any) -> bool:
    """Returns True for an opened PNG of 16-bit colours, or of 16-bit grey with alpha.

    Args:
        image: Pillow's, of which no pixel has been decoded.
    """
    return image.format == "PNG" and bool(image.tile) and _packing(image) in DEEP


def read_deep(file: File) -> np.ndarray:
    """Returns the values, uint16 [C, H, W]: grey and alpha, colours, or colours and alpha.

    A file that declares one colour as transparent gets an alpha channel.

    Args:
        file: at any position, of a PNG for which `is_deep`.
    """
    packing = _packing(opened(file))
    if packing == "LA;16B":  # 4 bytes a pixel, as those of 8-bit RGBA
        bytes_HW4 = _unpacked(file, "RGBA")
        return _joined(bytes_HW4[..., 0::2], bytes_HW4[..., 1::2])
    low_HWC = _unpacked(file, packing.replace("16B", "16L"))
    values_CHW = _joined(_unpacked(file, packing), low_HWC)
    transparent = opened(file).info.get("transparency")
    if isinstance(transparent, tuple) and len(values_CHW) == 3:
        is_it_HW = (values_CHW == np.array(transparent)[:, None, None]).all(0)
        alpha_HW = np.where(is_it_HW, 0, 65535).astype(np.uint16)
        values_CHW = np.concatenate([values_CHW, alpha_HW[None]])
    return values_CHW


def opened(file: File) -> Any:
    """Opens the file anew; no pixel is decoded yet."""
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as `image.open_image` does
        return Image.open(file, formats=FORMATS)


def _packing(image: Any) -> str:
    arguments = image.tile[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _unpacked(file: File, packing: str) -> np.ndarray:
    image = opened(file)
    image.tile = [image.tile[0]._replace(args=packing)]
    return np.array(image)


def _joined(high_HWC: np.ndarray, low_HWC: np.ndarray) -> np.ndarray:
    values_HWC = high_HWC.astype(np.uint16) << 8 | low_HWC
    return np.ascontiguousarray(np.moveaxis(values_HWC, 2, 0))
