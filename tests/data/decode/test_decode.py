"""Decoding of image files of all kinds; every fault of a file becomes a BadSampleError."""

import contextlib
import errno
import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from vitrail.data.contract import BadSampleError
from vitrail.data.decode import image as decode
from vitrail.data.decode import jpeg
from vitrail.data.decode.image import MAX_PIXELS, decode_file, from_pil


def colours(height: int = 20, width: int = 30) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 8, y * 12, (x + y) * 5], axis=2).astype(np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG written by hand: a header and compressed rows (each starts with filter byte 0)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def refused(path, **kwargs) -> str:
    with pytest.raises(BadSampleError) as caught:
        decode_file(path, 3, id="the id", **kwargs)
    assert caught.value.id == "the id"
    return caught.value.reason


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "gif", "tif", "jpg"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    picture = Image.fromarray(np.full((20, 30, 3), 90, np.uint8))
    picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = decode_file(path, 3)
    assert image.shape == (3, 20, 30)
    assert image.dtype == torch.uint8
    assert (image.int() - 90).abs().max() <= 1
    assert decode_file(path, 1).shape == (1, 20, 30)


def test_pixels_and_channel_order(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "a.png")
    image = decode_file(tmp_path / "a.png", 3)
    assert torch.equal(image, torch.from_numpy(colours()).permute(2, 0, 1))
    grey = decode_file(tmp_path / "a.png", 1)[0]
    exact = colours() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey.numpy() - exact).max() <= 1


def test_one_pixel(tmp_path):
    Image.fromarray(np.array([[[1, 2, 3]]], np.uint8)).save(tmp_path / "a.png")
    assert decode_file(tmp_path / "a.png", 3).flatten().tolist() == [1, 2, 3]


def test_alpha_is_laid_over_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, :3] = (200, 0, 100)
    rgba[0, :, 3] = (0, 255, 51)
    for suffix in ("png", "webp"):
        Image.fromarray(rgba).save(tmp_path / f"a.{suffix}", lossless=True, exact=True)
        image = decode_file(tmp_path / f"a.{suffix}", 3)[:, 0].T.tolist()
        assert image[0] == [255, 255, 255], "transparent pixels carry garbage colours"
        assert image[1] == [200, 0, 100]
        assert image[2] == [244, 204, 224]  # 0.2 colour + 0.8 white
    grey = np.array([[[0, 0], [0, 255]]], np.uint8)
    Image.fromarray(grey, "LA").save(tmp_path / "la.png")
    assert decode_file(tmp_path / "la.png", 1).flatten().tolist() == [255, 0]


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0])
    image.save(tmp_path / "a.png")
    assert decode_file(tmp_path / "a.png", 3)[:, 0].T.tolist()[:2] == [[10, 20, 30], [200, 100, 50]]
    image.save(tmp_path / "b.png", transparency=0)
    image.save(tmp_path / "b.gif", transparency=0)
    for name in ("b.png", "b.gif"):
        first, second = decode_file(tmp_path / name, 3)[:, 0].T.tolist()[:2]
        assert first == [255, 255, 255]
        assert second == [200, 100, 50]


def test_cmyk_and_one_bit(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red = decode_file(tmp_path / "a.jpg", 3)[:, 4, 4].tolist()
    assert red[0] > 240
    assert max(red[1:]) < 15
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "b.png")
    assert decode_file(tmp_path / "b.png", 1).flatten().tolist() == [255, 0]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([0, 128, 129, 257, 32768, 65278, 65535], ">u2")
    (tmp_path / "grey.png").write_bytes(png(7, 1, 16, 0, b"\0" + values.tobytes()))
    grey = decode_file(tmp_path / "grey.png", 1).flatten().tolist()
    assert grey == [round(int(v) * 255 / 65535) for v in values]
    Image.fromarray(values.astype(np.uint16)[None]).save(tmp_path / "grey.tif")
    assert decode_file(tmp_path / "grey.tif", 1).flatten().tolist() == grey
    rgb = np.array([[65535, 0, 32768]], ">u2")
    (tmp_path / "rgb.png").write_bytes(png(1, 1, 16, 2, b"\0" + rgb.tobytes()))
    assert decode_file(tmp_path / "rgb.png", 3).flatten().tolist() == [255, 0, 128]


def test_pixels_of_no_agreed_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tif")
    assert "floating-point" in refused(tmp_path / "f.tif")
    for value in (70000, 7):  # the declared type decides, not the values
        Image.fromarray(np.full((4, 4), value, np.int32)).save(tmp_path / "i.tif")
        assert "signed whole numbers (int32)" in refused(tmp_path / "i.tif")
    with pytest.raises(ValueError, match="floating-point"):
        from_pil(Image.new("F", (2, 2)), 3)


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(colours()).save(tmp_path / "a.png", exif=exif)
    image = decode_file(tmp_path / "a.png", 3)
    assert torch.equal(image, torch.from_numpy(np.rot90(colours(), -1).copy()).permute(2, 0, 1))


def test_damaged_exif_costs_nothing(tmp_path):
    Image.fromarray(colours()).save(
        tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage"
    )
    assert decode_file(tmp_path / "a.jpg", 3).shape == (3, 20, 30)


def test_not_an_image(tmp_path):
    (tmp_path / "a.jpg").write_text("this is text")
    assert "not an image" in refused(tmp_path / "a.jpg")
    (tmp_path / "b.png").write_bytes(b"")
    assert "empty" in refused(tmp_path / "b.png")
    (tmp_path / "c.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    assert "not an image" in refused(tmp_path / "c.jpg"), "no other decoder is ever tried"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp"])
def test_truncated_at_any_place(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.7, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert refused(path)


def test_corrupt_bytes_are_decoded_or_named(tmp_path):
    generator = np.random.default_rng(1)
    for suffix in ("jpg", "png", "webp", "gif", "tif", "bmp"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(colours()).save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(30):
            damaged = whole.copy()
            places = generator.integers(0, len(whole), 6)
            damaged[places] = generator.integers(0, 256, 6)
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(BadSampleError):
                assert decode_file(path, 3).shape[0] == 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_a_tail_without_end_is_not_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(colours()).save(path)
    whole = decode_file(path, 3)
    os.truncate(path, 2**29)  # a hole, which takes no room on the disk
    if suffix in ("jpg", "png", "bmp", "gif"):
        assert torch.equal(decode_file(path, 3), whole)
    os.truncate(path, 2**40)
    with pytest.raises(BadSampleError, match="it has 1,099,511,627,776 bytes, more than the limit"):
        decode_file(path, 3)


def test_a_jpeg_is_read_no_further_than_its_pixels_can_go(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    Image.fromarray(colours()).save(path)
    whole = decode_file(path, 3)
    read = []
    monkeypatch.setattr(decode, "decode_whole", lambda data, mode: read.append(len(data)))
    assert torch.equal(decode_file(path, 3), whole)
    os.truncate(path, 2**25)
    assert torch.equal(decode_file(path, 3), whole)
    assert read == [len(path.read_bytes().rstrip(b"\0"))]


def test_bomb_is_refused_from_its_header(tmp_path, monkeypatch):
    side = 30000
    (tmp_path / "bomb.png").write_bytes(png(side, side, 1, 0, bytes(10**6)))
    assert f"limit of {MAX_PIXELS:,}" in refused(tmp_path / "bomb.png")
    # Between Pillow's warning and its error, and with Pillow's own guard off, ours still holds.
    (tmp_path / "large.png").write_bytes(png(9500, 9500, 1, 0, bytes(10**6)))
    assert "9,500 x 9,500 pixels" in refused(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded before the check"))
    assert "30,000 x 30,000 pixels" in refused(tmp_path / "bomb.png")


def test_large_but_legal(tmp_path):
    assert MAX_PIXELS > 61_000_000, "a full-frame photograph passes"
    Image.new("1", (4000, 2500)).save(tmp_path / "a.png")
    assert decode_file(tmp_path / "a.png", 1).shape == (1, 2500, 4000)


def test_unreadable(tmp_path, monkeypatch):
    assert "no such file" in refused(tmp_path / "none.jpg")
    os.symlink(tmp_path / "gone", tmp_path / "link.jpg")
    assert "no such file" in refused(tmp_path / "link.jpg")
    (tmp_path / "x.jpg").mkdir()
    assert "not a file" in refused(tmp_path / "x.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "not a file" in refused(tmp_path / "pipe.jpg"), "opening a pipe would wait for ever"

    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    Image.fromarray(colours()).save(tmp_path / "a.png")
    monkeypatch.setattr(decode, "open", forbidden, raising=False)
    assert "permission denied" in refused(tmp_path / "a.png")


@pytest.mark.parametrize("number", ["EIO", "ESTALE", "EMFILE", "ENFILE", "ENOMEM"])
def test_the_machines_fault_is_not_the_files(tmp_path, monkeypatch, number):
    path = tmp_path / "a.png"
    Image.fromarray(colours()).save(path)

    def failing(*args, **kwargs):
        raise OSError(getattr(errno, number), "of the machine")

    monkeypatch.setattr(decode, "open", failing, raising=False)
    with pytest.raises(OSError, match=r"of the machine.*a\.png") as caught:
        decode_file(path, 3)
    assert caught.value.errno == getattr(errno, number)
    monkeypatch.undo()
    assert decode_file(path, 3).shape == (3, 20, 30)


@pytest.mark.parametrize("place", ["open", "transpose"])
def test_no_memory_is_not_the_files_fault(tmp_path, monkeypatch, place):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours()).save(tmp_path / "a.png", exif=exif)

    def failing(*args, **kwargs):
        raise MemoryError

    if place == "open":
        monkeypatch.setattr(decode, "open", failing, raising=False)
    else:
        monkeypatch.setattr(decode.ImageOps, "exif_transpose", failing)
    with pytest.raises(MemoryError):
        decode_file(tmp_path / "a.png", 3)


def test_other_errors_of_the_system_are_the_files(tmp_path, monkeypatch):
    Image.fromarray(colours()).save(tmp_path / "a.png")

    def failing(*args, **kwargs):
        raise OSError(errno.EINVAL, "no sense")

    monkeypatch.setattr(decode, "open", failing, raising=False)
    assert "no sense" in refused(tmp_path / "a.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    assert "permission denied" in refused(tmp_path / "a.png")


def test_channels_other_than_1_and_3_are_refused():
    with pytest.raises(ValueError, match="channels is 4"):
        from_pil(Image.new("RGB", (2, 2)), 4)


def jpeg_kinds() -> dict[str, bytes]:
    """Files as they occur in practice."""
    y, x = np.mgrid[0:75, 0:117]
    waves = [127 + 90 * np.sin(x * a + y * b) for a, b in ((0.2, 0.1), (0.05, 0.6), (0.9, 0.7))]
    picture = Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))

    def encoded(image: Image.Image, **options: object) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90, **options)
        return file.getvalue()

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    whole = encoded(picture)
    return {
        "4:2:0": whole,
        "4:2:2": encoded(picture, subsampling=1),
        "4:4:4": encoded(picture, subsampling=0),
        "progressive": encoded(picture, progressive=True),
        "grey": encoded(picture.convert("L")),
        "CMYK": encoded(picture.convert("CMYK")),
        "turned": encoded(picture, exif=exif),
        "bytes behind its end": whole + b"more",
        "no end": whole[:-2],
        "cut": whole[: len(whole) // 2],
    }


@pytest.mark.parametrize("kind", jpeg_kinds())
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_is_the_same_by_either_decoder(kind, channels, monkeypatch):
    data = jpeg_kinds()[kind]

    def decoded() -> list:
        try:
            return decode.decode_bytes(data, channels, "it").tolist()
        except BadSampleError as error:
            return [error.reason]

    first = decoded()
    monkeypatch.setattr(jpeg, "_decoder", lambda: None)
    assert decoded() == first


def test_simplejpeg_decodes_where_it_is_installed():
    pytest.importorskip("simplejpeg", reason="pip install 'vitrail[fast]'")
    image = jpeg.decode_whole(jpeg_kinds()["4:2:0"], "RGB")
    assert image is not None
    assert image.permute(1, 2, 0).is_contiguous()


def test_a_decoder_of_other_pixels_is_not_used(monkeypatch, caplog):
    simplejpeg = pytest.importorskip("simplejpeg", reason="pip install 'vitrail[fast]'")
    original = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: original(*a, **k) // 2)
    assert jpeg._decoder.__wrapped__() is None
    assert "Pillow" in caplog.text
