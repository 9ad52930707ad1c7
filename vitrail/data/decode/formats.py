"""The image formats that are decoded, and the suffixes of their files.

What Pillow was built with decides about AVIF and JPEG 2000, and `pillow-heif` about HEIC. A suffix
of a format that cannot be read here is listed in `MISSING`, with the remedy.
"""

import warnings
from contextlib import suppress
from typing import NamedTuple

from PIL import features


class Format(NamedTuple):
    """A kind of image file.

    Attributes:
        decoder: Pillow's name of it.
        name: for people.
        suffixes: of its files, in lower case.
        feature: of Pillow that it needs, "" for none.
        remedy: what to do if it cannot be read here.
    """

    decoder: str
    name: str
    suffixes: tuple[str, ...]
    feature: str = ""
    remedy: str = ""


HEIF = Format(
    "HEIF",
    "HEIC",
    (".heic", ".heif", ".hif"),
    remedy="HEIC needs pillow-heif: pip install 'vitrail[heic]'",
)
# The usual suffixes come first: messages list them in this order.
TABLE = (
    Format("JPEG", "JPEG", (".jpg", ".jpeg")),
    Format("PNG", "PNG", (".png",)),
    Format("WEBP", "WebP", (".webp",)),
    Format("BMP", "BMP", (".bmp",)),
    Format("GIF", "GIF", (".gif",)),
    Format("TIFF", "TIFF", (".tif", ".tiff")),
    Format("JPEG", "JPEG", (".jfif", ".jpe", ".jif", ".mpo")),
    Format("PNG", "PNG", (".apng",)),
    Format("PPM", "PPM", (".ppm", ".pgm", ".pbm", ".pnm")),
    Format(
        "JPEG2000",
        "JPEG 2000",
        (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
        "jpg_2000",
        "this Pillow has no JPEG 2000: install Pillow's own wheel, or save the images as PNG",
    ),
    Format(
        "AVIF", "AVIF", (".avif",), "avif", "AVIF needs Pillow 11.3: pip install 'pillow>=11.3'"
    ),
)


def _has_heif() -> bool:
    """Registers the opener of `pillow-heif`, if that is installed, in every process alike."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        return True
    return False


def _readable() -> tuple[Format, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a Pillow that does not know the feature
        found = [kind for kind in TABLE if not kind.feature or features.check(kind.feature)]
    return (*found, *([HEIF] if _has_heif() else []))


READABLE = _readable()
# Only these decoders ever get a file, whatever its name.
FORMATS = tuple(dict.fromkeys(kind.decoder for kind in READABLE))
NAMES = tuple(dict.fromkeys(kind.name for kind in READABLE))
SUFFIXES = tuple(suffix for kind in READABLE for suffix in kind.suffixes)
MISSING = {
    suffix: kind.remedy
    for kind in (*TABLE, HEIF)
    if kind not in READABLE
    for suffix in kind.suffixes
}
