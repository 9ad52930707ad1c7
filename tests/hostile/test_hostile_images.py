"""Damaged, lying and oversized image files: each is decoded, or named as a bad sample."""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.hostile.judge import judge
from vitrail.data.contract import BadSampleError
from vitrail.data.decode.image import MAX_PIXELS
from vitrail.data.sources.registry import open_source

SIDE = 24
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def encoded(format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format, **options)
    return file.getvalue()


def array_bytes(array: np.ndarray, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


WHOLE = {
    ".png": encoded("PNG"),
    ".jpg": encoded("JPEG"),
    ".gif": encoded("GIF"),
    ".webp": encoded("WEBP"),
    ".bmp": encoded("BMP"),
    ".tif": encoded("TIFF"),
    ".tiff": encoded("TIFF", compression="tiff_lzw"),
    ".npy": array_bytes(PIXELS),
}


def damaged() -> Iterator[tuple[str, str, bytes]]:
    """Yields a name, a suffix and the bytes of files that were cut, changed or prolonged."""
    for suffix, data in WHOLE.items():
        for share in (0, 2, 10, 50, 90, 99):
            yield f"cut to {share} %", suffix, data[: len(data) * share // 100]
        for seed in range(5):
            changed = bytearray(data)
            for place in np.random.default_rng(seed).integers(0, len(data), 8):
                changed[place] ^= 0xFF
            yield f"bytes changed {seed}", suffix, bytes(changed)
        yield "header changed", suffix, b"\xff" * 8 + data[8:]
        yield "twice", suffix, data + data
        yield "long tail", suffix, data + bytes(2**20)
        for other in (".png", ".jpg", ".npy"):
            yield f"is a {other[1:]}", suffix, WHOLE[other]


def png(width: int, height: int, bits: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG whose header says anything."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(**tags: int) -> bytes:
    """A TIFF of one strip whose tags say anything; a loop of pages if `next` is 8."""
    values = {
        "width": (256, 8),
        "height": (257, 8),
        "bits": (258, 8),
        "compression": (259, 1),
        "photometric": (262, 1),
        "offset": (273, 200),
        "samples": (277, 1),
        "rows": (278, 8),
        "bytes": (279, 64),
    }
    entries = [
        struct.pack("<HHII", tag, 4, 1, tags.get(name, value))
        for name, (tag, value) in values.items()
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(entries)
    directory += struct.pack("<I", tags.get("next", 0))
    start = b"II*\0" + struct.pack("<I", tags.get("first", 8)) + directory
    return start.ljust(200, b"\0") + bytes(64)


def npy(header: str) -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


HUGE = 2**31 - 1
LYING = {
    "bomb.png": png(30_000, 30_000, data=bytes(3000)),
    "widest.png": png(HUGE, HUGE),
    "no width.png": png(0, 8),
    "no height.png": png(8, 0),
    "unknown colours.png": png(8, 8, colour=5),
    "unknown bits.png": png(8, 8, bits=7),
    "short data.png": png(8, 8, data=b"\0"),
    "text bomb.png": WHOLE[".png"][:-12]
    + struct.pack(">I", 60)
    + b"zTXta\0\0"
    + zlib.compress(bytes(10**7))[:57],
    "long pages.tif": tiff(next=8),
    "first page nowhere.tif": tiff(first=HUGE),
    "first page zero.tif": tiff(first=0),
    "widest.tif": tiff(width=HUGE, height=HUGE),
    "no width.tif": tiff(width=0),
    "no height.tif": tiff(height=0),
    "bits.tif": tiff(bits=4097),
    "samples.tif": tiff(samples=65_535),
    "rows of zero.tif": tiff(rows=0),
    "bytes.tif": tiff(bytes=HUGE),
    "offset.tif": tiff(offset=HUGE),
    "compression.tif": tiff(compression=34_712),
    "photometric.tif": tiff(photometric=32_844),
    "wide.npy": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999, 9, 3), }"),
    "negative.npy": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-8, 8, 3), }"),
    "true.npy": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (True, 8, 3), }"),
    "digits.npy": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 60 + ",), }"),
    "deep.npy": npy("{'descr': " + "[" * 90 + "}"),
    "call.npy": npy("{'descr': __import__('os').system('true'), 'shape': (8, 8)}"),
    "objects.npy": array_bytes(np.array([{"a": 1}], dtype=object), pickled=True),
    "strings.npy": array_bytes(np.array(["a", "b"])),
    "complex.npy": array_bytes(np.zeros((8, 8), dtype=np.complex64)),
    "no height.npy": array_bytes(np.zeros((0, 8, 3), dtype=np.uint8)),
    "scalar.npy": array_bytes(np.uint8(3)),
    "five axes.npy": array_bytes(np.zeros((2, 2, 2, 2, 2), dtype=np.uint8)),
    "nan.npy": array_bytes(np.full((8, 8, 3), np.nan, dtype=np.float32)),
    "page.png": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage",
    "zeros.png": bytes(4096),
    "pickle.png": b"cos\nsystem\n(S'true'\ntR.",
}
FILES = [(f"{name}{suffix}", data) for name, suffix, data in damaged()] + list(LYING.items())
NAMES = [
    "new\nline.png",
    "\x1b]0;title\x07.png",
    "\x1b[31mred.png",
    "<img src=x onerror=alert(1)>.png",
    "--out.png",
    "100%s{0}.png",
    " .png",
    "..png",
    "x" * 240 + ".png",
    "a\u0301.png",
    "\u202egnp.png",
]


@pytest.mark.parametrize(("name", "data"), FILES, ids=[name for name, _ in FILES])
def test_a_file_is_an_image_or_a_bad_sample(name, data, tmp_path):
    (tmp_path / "0.png").write_bytes(WHOLE[".png"])
    (tmp_path / name).write_bytes(data)
    source = open_source(f"folder:{tmp_path}", "train")
    assert sum(read(source, index) for index in range(len(source))) >= 1


def read(source, index: int) -> bool:
    """Returns whether a sample is read; whatever is read is an image within the limits."""
    try:
        image = source.read(index).image
    except BadSampleError:
        return False
    assert image.dtype in (torch.uint8, torch.uint16)
    assert image.ndim == 3
    assert 0 < image.shape[1] * image.shape[2] <= MAX_PIXELS
    return True


@pytest.mark.parametrize("name", NAMES)
def test_a_name_reaches_the_terminal_as_plain_text(name, tmp_path):
    (tmp_path / "good.png").write_bytes(WHOLE[".png"])
    (tmp_path / name).write_bytes(WHOLE[".png"][:60])
    outcome = judge("stats", f"folder:{tmp_path}", "--workers", 0)
    assert outcome.code == 0
    assert "\x1b" not in outcome.out + outcome.err


def test_a_name_that_is_no_unicode(tmp_path):
    (tmp_path / "good.png").write_bytes(WHOLE[".png"])
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png"))).write_bytes(WHOLE[".png"])
    judge("stats", f"folder:{tmp_path}", "--workers", 0)


def special_files(folder: Path) -> None:
    """Everything that a folder can hold and that is no image file."""
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.png").symlink_to("missing")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "up.png").symlink_to("..")
    (folder / "folder.png").mkdir()


def test_pipes_loops_and_devices_are_never_waited_for(tmp_path):
    special_files(tmp_path)
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(WHOLE[".png"])
    assert judge("stats", f"folder:{tmp_path}", "--workers", 0).code == 0


@pytest.mark.parametrize("suffix", WHOLE)
def test_random_changes(suffix, tmp_path, slow):
    """The long form of the changed bytes."""
    if not slow:
        pytest.skip("run with --slow: two thousand changed files of each format")
    (tmp_path / "0.png").write_bytes(WHOLE[".png"])
    path = tmp_path / f"1{suffix}"
    path.write_bytes(WHOLE[suffix])
    source = open_source(f"folder:{tmp_path}", "train")
    random = np.random.default_rng(1)
    for _ in range(2000):
        data = bytearray(WHOLE[suffix])
        for place in random.integers(0, len(data), random.integers(1, 20)):
            data[place] = random.integers(0, 256)
        path.write_bytes(bytes(data[: random.integers(1, len(data) + 1)]))
        read(source, 1)
