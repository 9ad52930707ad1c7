"""The decoders that `benchmarks.decode` compares, if installed, and the files to decode."""

import io
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.data.decode import image as ours

BACKGROUNDS = Path("/usr/share/backgrounds/gnome")
WIDTH, HEIGHT, QUALITY = 500, 375, 90
OURS = "vitrail (guard and simplejpeg)"
FALLBACK = "vitrail (guard and Pillow)"
Decode = Callable[[bytes], Tensor]


# ---- decoders


def pillow(data: bytes) -> Tensor:
    """Decodes by Pillow, in the usual way."""
    with Image.open(io.BytesIO(data)) as image:
        return interleaved(np.array(image.convert("RGB")))


def interleaved(pixels_HWC: np.ndarray) -> Tensor:
    """Returns a [3, H, W] view of interleaved pixels, the memory layout of most decoders."""
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def guarded_pillow(data: bytes) -> Tensor:
    """Decodes as vitrail does without simplejpeg."""
    whole = ours.decode_whole
    try:
        ours.decode_whole = lambda *_: None
        return ours.decode_bytes(data, 3, "it")
    finally:
        ours.decode_whole = whole


def _simplejpeg() -> Decode:
    import simplejpeg

    return lambda data: interleaved(simplejpeg.decode_jpeg(data))


def _turbojpeg() -> Decode:
    import turbojpeg

    turbo = turbojpeg.TurboJPEG()  # RuntimeError without libjpeg-turbo 3
    return lambda data: interleaved(turbo.decode(data, pixel_format=turbojpeg.TJPF_RGB))


def _torchvision() -> Decode:
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(data: bytes) -> Tensor:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(encoded, mode=ImageReadMode.RGB)

    return decode


def _torchcodec() -> Decode:
    from torchcodec.decoders import decode_jpeg

    return decode_jpeg


def _opencv() -> Decode:
    import cv2

    cv2.setNumThreads(1)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

    def decode(data: bytes) -> Tensor:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if image is None:
            raise ValueError("it is not an image")
        return interleaved(image)

    return decode


OTHERS = {
    "simplejpeg": _simplejpeg,
    "PyTurboJPEG": _turbojpeg,
    "torchvision.io": _torchvision,
    "TorchCodec": _torchcodec,
    "OpenCV": _opencv,
}


def decoders() -> tuple[dict[str, Decode], list[str]]:
    """Returns the installed decoders by name, and the missing ones with the reason."""
    found: dict[str, Decode] = {"Pillow": pillow, FALLBACK: guarded_pillow}
    if find_spec("simplejpeg"):
        found[OURS] = lambda data: ours.decode_bytes(data, 3, "it")
    missing = []
    for name, make in OTHERS.items():
        try:
            found[name] = make()
        except (ImportError, RuntimeError, OSError) as error:
            missing.append(f"{name} ({str(error).strip().splitlines()[0].rstrip('.')})")
    return found, missing


# ---- files


def photographs(count: int) -> list[Image.Image]:
    """Returns crops of 500 x 375 pixels from photographs reduced to half their size."""
    files = [p for p in sorted(BACKGROUNDS.glob("*.webp")) if p.stat().st_size > 10_000]
    if not files:
        sys.exit(f"no photographs in {BACKGROUNDS}: apt install gnome-backgrounds")
    cuts: list[Image.Image] = []
    each = -(-count // len(files))
    for number, path in enumerate(files):
        with Image.open(path) as image:
            half = image.convert("RGB").reduce(2)
        places = np.random.default_rng(number).random((each, 2))
        for x, y in places * [half.width - WIDTH, half.height - HEIGHT]:
            cuts.append(half.crop((int(x), int(y), int(x) + WIDTH, int(y) + HEIGHT)))
    return cuts[:count]


def encode(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, **options)
    return buffer.getvalue()


def kinds(cut: Image.Image) -> dict[str, bytes]:
    """Returns the crop encoded as the common kinds of JPEG, beside the usual 4:2:0."""
    baseline = encode(cut)
    return {
        "4:2:0": baseline,
        "4:2:2": encode(cut, subsampling=1),
        "4:4:4": encode(cut, subsampling=0),
        "odd size": encode(cut.crop((0, 0, WIDTH - 1, HEIGHT - 2))),
        "progressive": encode(cut, progressive=True),
        "grey": encode(cut.convert("L")),
        "CMYK": encode(cut.convert("CMYK")),
        "truncated": baseline[: len(baseline) // 2],
    }


def agreement(decode: Decode, data: bytes) -> str:
    """Returns the largest difference of a pixel from Pillow's, as text."""
    try:
        exact = ours.decode_bytes(data, 3, "it")
    except Exception:
        exact = None
    try:
        found = decode(data)
    except Exception:
        return "refused"
    if exact is None:
        return "decoded"
    return str(int((found.int() - exact.int()).abs().max()))
