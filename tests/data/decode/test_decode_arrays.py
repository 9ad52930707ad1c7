"""Files of 16 bits and any channel count, against the arrays that were written."""

import io
import struct

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from vitrail.data.contract import BadSampleError
from vitrail.data.decode.arrays import check_readers, decode_array_file, needs_arrays
from vitrail.data.decode.image import decode_bytes, decode_file
from vitrail.data.decode.tiff_tags import read_tags

RNG = np.random.default_rng(5)
DEEP_5HW = RNG.integers(0, 65536, (5, 12, 9), dtype=np.uint16)
FLAT_5HW = RNG.integers(0, 256, (5, 12, 9), dtype=np.uint8)
RGB_HWC = RNG.integers(0, 65536, (12, 9, 3), dtype=np.uint16)


def rounded(x: np.ndarray) -> np.ndarray:
    """Returns 16 bits as the nearest 8."""
    return np.round(x / 65535 * 255).astype(np.uint8)


def luma(x_3HW: np.ndarray) -> np.ndarray:
    return np.einsum("chw,c->hw", x_3HW.astype(np.float64), [0.299, 0.587, 0.114])


def reason(path, channels: int, bits: int) -> str:
    with pytest.raises(BadSampleError) as caught:
        decode_array_file(path, channels, bits, "it")
    assert caught.value.id == "it"
    return caught.value.reason


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("array", [DEEP_5HW, FLAT_5HW, DEEP_5HW.astype(">u2")])
def test_npy_of_either_layout_and_depth(tmp_path, array, bits):
    np.save(tmp_path / "first.npy", array)
    np.save(tmp_path / "last.NPY.npy", np.asfortranarray(array.transpose(1, 2, 0)))
    if array.dtype.itemsize == 1:
        expected = array if bits == 8 else array.astype(np.uint16) * 257
    else:
        expected = rounded(array) if bits == 8 else array.astype(np.uint16)
    for path in tmp_path.iterdir():
        image = decode_array_file(path, 5, bits)
        assert image.dtype == (torch.uint8 if bits == 8 else torch.uint16)
        assert image.is_contiguous()
        np.testing.assert_array_equal(image.numpy(), expected)


def test_grey_becomes_rgb_and_rgb_grey(tmp_path):
    np.save(tmp_path / "grey.npy", DEEP_5HW[0])
    np.save(tmp_path / "rgb.npy", RGB_HWC)
    grey = decode_array_file(tmp_path / "grey.npy", 3, 16)
    np.testing.assert_array_equal(grey.numpy(), np.stack([DEEP_5HW[0]] * 3))
    luma_HW = decode_array_file(tmp_path / "rgb.npy", 1, 16).numpy()[0]
    assert np.abs(luma_HW - luma(RGB_HWC.transpose(2, 0, 1))).max() <= 1
    np.save(tmp_path / "white.npy", np.full((4, 4, 3), 65535, np.uint16))
    assert int(decode_array_file(tmp_path / "white.npy", 1, 16).int().min()) == 65535


def test_arrays_that_are_no_images_are_named(tmp_path):
    path = tmp_path / "x.npy"

    def message(array, channels: int = 3) -> str:
        np.save(path, array)
        return reason(path, channels, 16)

    assert "floating-point (float32)" in message(np.zeros((4, 4), np.float32))
    assert "astype('uint16')" in message(np.zeros((4, 4), np.float64))
    assert "int64" in message(np.zeros((4, 4), np.int64))
    assert "shape [2, 2, 2, 2]" in message(np.zeros((2, 2, 2, 2), np.uint8))
    assert "neither or both" in message(np.zeros((3, 8, 3), np.uint8))
    assert "neither or both" in message(np.zeros((8, 8, 5), np.uint8))
    assert "0 pixels" in message(np.zeros((3, 0, 0), np.uint8)) or "empty" in reason(path, 3, 16)
    # Sparse: 9 GB by its header, and never read.
    huge = np.lib.format.open_memmap(path, "w+", np.uint8, (1, 95_000, 95_000))
    del huge
    assert "more than the limit" in reason(path, 3, 16)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    assert "Python objects" in reason(path, 3, 8)
    path.write_bytes(b"no array")
    assert reason(path, 3, 8) == "it is not a .npy file, or holds objects"
    np.save(path, DEEP_5HW)
    path.write_bytes(path.read_bytes()[:-5])
    assert "damaged" in reason(path, 5, 16)
    np.savez(tmp_path / "z.npz", a=DEEP_5HW)
    path.write_bytes((tmp_path / "z.npz").read_bytes())
    assert ".npz archive" in reason(path, 5, 16)
    path.write_bytes(b"")
    assert reason(path, 5, 16) == "the file is empty"
    assert "no such file" in reason(tmp_path / "gone.npy", 5, 16)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, x: tifffile.imwrite(path, x),
        lambda path, x: tifffile.imwrite(path, x, metadata=None),
        lambda path, x: tifffile.imwrite(path, x, planarconfig="separate"),
        lambda path, x: tifffile.imwrite(path, x, imagej=x.dtype == np.uint16),
        lambda path, x: tifffile.imwrite(path, x, ome=True, metadata={"axes": "CYX"}),
        lambda path, x: tifffile.imwrite(path, x, compression="zlib", predictor=True),
        lambda path, x: tifffile.imwrite(path, x.transpose(1, 2, 0), compression="lzw"),
        lambda path, x: tifffile.imwrite(path, x.transpose(1, 2, 0)),
        lambda path, x: tifffile.imwrite(
            path, x.transpose(1, 2, 0), planarconfig="contig", photometric="minisblack"
        ),
    ],
)
@pytest.mark.parametrize("array", [DEEP_5HW, FLAT_5HW])
def test_tiff_of_five_channels_however_written(tmp_path, write, array):
    path = tmp_path / "x.tif"
    write(path, array)
    image = decode_array_file(path, 5, array.dtype.itemsize * 8)
    np.testing.assert_array_equal(image.numpy(), array)


def test_tiff_of_16_bit_grey_and_colour_alpha_and_orientation(tmp_path):
    path = tmp_path / "x.tiff"
    tifffile.imwrite(path, RGB_HWC)
    rgb_3HW = RGB_HWC.transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_array_file(path, 3, 16).numpy(), rgb_3HW)
    tifffile.imwrite(path, RGB_HWC[..., 0])
    np.testing.assert_array_equal(decode_array_file(path, 1, 16).numpy()[0], RGB_HWC[..., 0])
    tifffile.imwrite(path, RGB_HWC[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(
        decode_array_file(path, 1, 16).numpy()[0], 65535 - RGB_HWC[..., 0]
    )
    alpha_HW1 = RNG.integers(0, 65536, (12, 9, 1), dtype=np.uint16)
    tifffile.imwrite(path, np.concatenate([RGB_HWC, alpha_HW1], -1), photometric="rgb")
    share = alpha_HW1 / 65535
    over_HWC = np.round(RGB_HWC * share + 65535 * (1 - share))
    np.testing.assert_array_equal(
        decode_array_file(path, 3, 16).numpy(), over_HWC.transpose(2, 0, 1)
    )
    raw = decode_array_file(path, 4, 16).numpy()
    np.testing.assert_array_equal(raw[3], alpha_HW1[..., 0])
    for orientation in range(1, 9):
        extra = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(path, RGB_HWC, extratags=extra)
        plain = Image.fromarray((RGB_HWC >> 8).astype(np.uint8))
        exif = plain.getexif()
        exif[274] = orientation
        plain.save(tmp_path / "x.png", exif=exif)
        turned = decode_array_file(path, 3, 16).numpy() >> 8
        by_pillow = decode_array_file(tmp_path / "x.png", 3, 8).numpy()
        np.testing.assert_array_equal(turned, by_pillow, err_msg=str(orientation))


def test_tiff_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, DEEP_5HW)
    assert "5 pages of one channel, and 4" in reason(path, 4, 16)
    # Of a file of frames, the first.
    np.testing.assert_array_equal(decode_array_file(path, 1, 16).numpy()[0], DEEP_5HW[0])
    tifffile.imwrite(path, RGB_HWC.astype(np.float32), photometric="rgb")
    assert "32 bits a value" in reason(path, 3, 16)
    tifffile.imwrite(path, RGB_HWC)
    assert "it has 3 channels, and 7 are asked for" in reason(path, 7, 16)
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged" in reason(path, 3, 16)
    tifffile.imwrite(path, RGB_HWC, photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["SamplesPerPixel"].overwrite(60_000)
    assert "it has 60000 channels" in reason(path, 3, 16)
    path.write_bytes(b"II*\0" + b"\0" * 40)
    assert "damaged" in reason(path, 3, 16)
    header = bytearray(_tiff_of_size(path, 12, 9))
    path.write_bytes(header)
    assert "more than the limit" in reason(path, 1, 16)


def _tiff_of_size(path, height: int, width: int) -> bytes:
    """A small file whose header says that it is 60,000 x 60,000."""
    tifffile.imwrite(path, RGB_HWC[..., 0])
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["ImageWidth"].overwrite(60_000)
        file.pages.first.tags["ImageLength"].overwrite(60_000)
    return path.read_bytes()


def test_ome_names_no_other_file(tmp_path):
    """OME-TIFF may refer to channels in other files, here one outside of the folder."""
    inside, outside = tmp_path / "in" / "x.ome.tif", tmp_path / "secret.tif"
    inside.parent.mkdir()
    tifffile.imwrite(outside, DEEP_5HW[0])
    planes = "".join(
        f'<TiffData IFD="0" FirstC="{c}"><UUID FileName="../secret.tif">urn:uuid:{c}</UUID>'
        "</TiffData>"
        for c in range(5)
    )
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="9" '
        f'SizeY="12" SizeC="5" SizeZ="1" SizeT="1">{planes}</Pixels></Image></OME>'
    )
    tifffile.imwrite(inside, DEEP_5HW[1], description=xml, metadata=None)
    assert "1 page of one channel" in reason(inside, 5, 16)


def test_plain_pictures_with_16_bits_asked_for(tmp_path):
    small_HWC = (RGB_HWC >> 8).astype(np.uint8)
    Image.fromarray(small_HWC).save(tmp_path / "x.png")
    image = decode_array_file(tmp_path / "x.png", 3, 16).numpy()
    np.testing.assert_array_equal(image, small_HWC.transpose(2, 0, 1).astype(np.uint16) * 257)
    Image.fromarray(small_HWC).save(tmp_path / "x.tif")
    image = decode_array_file(tmp_path / "x.tif", 3, 16).numpy()
    np.testing.assert_array_equal(image, small_HWC.transpose(2, 0, 1).astype(np.uint16) * 257)
    Image.fromarray(RGB_HWC[..., 1]).save(tmp_path / "grey.png")
    image = decode_array_file(tmp_path / "grey.png", 1, 16).numpy()
    np.testing.assert_array_equal(image[0], RGB_HWC[..., 1])
    alpha_HWC = np.dstack([small_HWC, small_HWC[..., 0]])
    Image.fromarray(alpha_HWC).save(tmp_path / "x.png")
    image = decode_array_file(tmp_path / "x.png", 4, 8).numpy()
    np.testing.assert_array_equal(image, alpha_HWC.transpose(2, 0, 1))
    assert "it has 4 channels, and 5" in reason(tmp_path / "x.png", 5, 8)
    (tmp_path / "x.png").write_bytes(b"no image")
    assert "not an image" in reason(tmp_path / "x.png", 5, 8)


@pytest.mark.parametrize("channels", [3, 4])
def test_png_of_16_bit_colour_keeps_its_bits(tmp_path, channels):
    import struct
    import zlib

    array_HWC = RNG.integers(0, 65536, (6, 5, channels), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array_HWC)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 5, 6, 16, 2 if channels == 3 else 6, 0, 0, 0)
    path = tmp_path / "x.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    image = decode_array_file(path, channels, 16).numpy()
    np.testing.assert_array_equal(image, array_HWC.transpose(2, 0, 1))
    path.write_bytes(path.read_bytes()[:-40])
    assert "damaged" in reason(path, channels, 16)


def test_who_reads_what(monkeypatch):
    assert needs_arrays("a.NPY", 3, 8)
    assert needs_arrays("a.jpg", 3, 16)
    assert needs_arrays("a.tif", 5, 8)
    assert not needs_arrays("a.tif", 3, 8)
    assert not needs_arrays("a.png", 1, 8)
    monkeypatch.setattr("vitrail.data.decode.tiff.find_spec", lambda name: None)
    check_readers(["a.tif", "b.npy"], 3, 8)
    with pytest.raises(ValueError, match=r"need tifffile: pip install 'vitrail\[tiff\]'"):
        check_readers(["a.npy", "b.TIF"], 3, 16)


GREY8, GREY16 = FLAT_5HW[0], DEEP_5HW[0]
RGB8 = FLAT_5HW[:3].transpose(1, 2, 0).copy()
RGBA8 = FLAT_5HW[:4].transpose(1, 2, 0).copy()
RGBA16 = DEEP_5HW[:4].transpose(1, 2, 0).copy()
COLOUR = {"photometric": "rgb"}
# name -> (array, arguments of tifffile.imwrite)
TIFFS = {
    "grey 8": (GREY8, {}),
    "grey 8, white is zero": (GREY8, {"photometric": "miniswhite"}),
    "grey 16": (GREY16, {}),
    "grey 16, big-endian": (GREY16, {"byteorder": ">"}),
    "grey 16, white is zero": (GREY16, {"photometric": "miniswhite"}),
    "grey 16, compressed": (GREY16, {"compression": "zlib", "predictor": True}),
    "BigTIFF": (GREY16, {"bigtiff": True}),
    "colour 8": (RGB8, COLOUR),
    "colour 16": (RGB_HWC, COLOUR),
    "colour 16, planes": (RGB_HWC.transpose(2, 0, 1), COLOUR | {"planarconfig": "separate"}),
    "alpha 8": (RGBA8, COLOUR | {"extrasamples": ["unassalpha"]}),
    "alpha 16": (RGBA16, COLOUR | {"extrasamples": ["unassalpha"]}),
    "three pages 8": (FLAT_5HW[:3], {"photometric": "minisblack"}),
    "three pages 16": (DEEP_5HW[:3], {"photometric": "minisblack"}),
    "five pages 8": (FLAT_5HW, {"photometric": "minisblack"}),
    "five pages 16": (DEEP_5HW, {"photometric": "minisblack"}),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TIFFS)
def test_a_tiff_means_one_thing_whichever_way_it_is_read(tmp_path, name, channels):
    array, how = TIFFS[name]
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, array, metadata=None, **how)
    by_file = decode_file(path, channels)
    by_bytes = decode_bytes(path.read_bytes(), channels, "it")
    by_array = decode_array_file(path, channels, 8)
    deep = decode_array_file(path, channels, 16)
    assert torch.equal(by_file, by_bytes)
    assert torch.equal(by_file, by_array)
    eight = deep.int() * 255 / 65535
    # alpha and luma round to whole numbers of the file's own type
    assert (eight - by_file).abs().max() <= (1.01 if "alpha" in name or channels == 1 else 0.51)
    if channels == 3 and "pages" in name:
        grey = array[0] if array.dtype == np.uint8 else rounded(array[0])
        own = array if array.dtype == np.uint8 else rounded(array)
        expected = own if len(array) == 3 else np.stack([grey] * 3)
        np.testing.assert_array_equal(by_file.numpy(), expected)
    if name == "grey 8, white is zero":
        np.testing.assert_array_equal(by_file[0].numpy(), 255 - array)
    if name == "grey 16, white is zero":
        np.testing.assert_array_equal(by_file[0].numpy(), rounded(65535 - array))
    if name == "colour 16" and channels == 3:
        np.testing.assert_array_equal(by_file.numpy(), rounded(array.transpose(2, 0, 1)))


UNUSABLE_TIFFS = {
    "signed 8": (GREY8.astype(np.int8), {}, "signed whole numbers (int8)"),
    "signed 16": ((GREY16 >> 1).astype(np.int16), {}, "signed whole numbers (int16)"),
    "signed 32": (GREY16.astype(np.int32), {}, "signed whole numbers (int32)"),
    "unsigned 32": (GREY16.astype(np.uint32), {}, "it has 32 bits a value"),
    "small unsigned 32": (np.ones((4, 4), np.uint32), {}, "it has 32 bits a value"),
    "half": (GREY16.astype(np.float16), {}, "floating-point (16 bits a value)"),
    "float": (GREY16.astype(np.float32), {}, "floating-point (32 bits a value)"),
    "double": (GREY16.astype(np.float64), {}, "floating-point (64 bits a value)"),
    "four channels": (RGBA8, COLOUR | {"extrasamples": ["unspecified"]}, "it has 4 channels, and"),
    "five channels": (FLAT_5HW.transpose(1, 2, 0).copy(), {"planarconfig": "contig"}, "5 channels"),
}


@pytest.mark.parametrize("name", UNUSABLE_TIFFS)
def test_a_tiff_is_refused_for_one_reason_whichever_way_it_is_read(tmp_path, name):
    array, how, message = UNUSABLE_TIFFS[name]
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, array, photometric=how.pop("photometric", "minisblack"), **how)
    for read in (
        lambda: decode_file(path, 3),
        lambda: decode_bytes(path.read_bytes(), 3, "it"),
        lambda: decode_array_file(path, 3, 8),
        lambda: decode_array_file(path, 3, 16),
    ):
        with pytest.raises(BadSampleError) as caught:
            read()
        assert message in caught.value.reason


def test_tags_are_bounded(tmp_path):
    """Pages in a circle, a directory of ten thousand tags, a place beyond the end."""
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, GREY8, metadata=None)
    whole = path.read_bytes()
    with open(path, "rb") as file:
        assert read_tags(file).pages == 1
    with tifffile.TiffFile(path) as file:
        start = file.pages.first.offset
    count = int.from_bytes(whole[start : start + 2], "little")
    after = start + 2 + 12 * count
    circle = whole[:after] + start.to_bytes(4, "little") + whole[after + 4 :]
    assert read_tags(io.BytesIO(circle)).pages == 1
    for damaged in (
        whole[:start] + (60_000).to_bytes(2, "little") + whole[start + 2 :],
        whole[:4] + (10**9).to_bytes(4, "little") + whole[8:],
        whole[:4],
        whole[:20],
    ):
        with pytest.raises((ValueError, struct.error)):
            read_tags(io.BytesIO(damaged))
        with pytest.raises(BadSampleError, match="damaged"):
            decode_bytes(damaged, 3, "it")


def test_without_tifffile_it_is_asked_for_and_no_file_is_blamed(tmp_path, monkeypatch):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, RGB_HWC, photometric="rgb")
    tifffile.imwrite(tmp_path / "grey.tif", GREY16)
    expected = decode_file(tmp_path / "grey.tif", 1)
    monkeypatch.setattr("vitrail.data.decode.tiff.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need tifffile: pip install 'vitrail\[tiff\]'"):
        decode_file(path, 3)
    assert torch.equal(decode_file(tmp_path / "grey.tif", 1), expected)


@pytest.mark.parametrize("shape", [(6, 5, 2), (6, 5, 3), (6, 5, 4)])
@pytest.mark.parametrize("level", [0, 9])
def test_png_of_16_bits_is_read_as_by_imagecodecs(tmp_path, shape, level):
    imagecodecs = pytest.importorskip("imagecodecs")
    array_HWC = RNG.integers(0, 65536, shape, dtype=np.uint16)
    path = tmp_path / "x.png"
    path.write_bytes(imagecodecs.png_encode(array_HWC, level=level))
    if shape[2] != 3:
        share = array_HWC[..., -1:] / 65535
        array_HWC = np.round(array_HWC[..., :-1] * share + 65535 * (1 - share)).astype(np.uint16)
    if shape[2] == 2:
        array_HWC = np.repeat(array_HWC, 3, axis=2)
    deep = decode_array_file(path, 3, 16)
    np.testing.assert_array_equal(deep.numpy(), array_HWC.transpose(2, 0, 1))
    expected = rounded(array_HWC.transpose(2, 0, 1))
    np.testing.assert_array_equal(decode_file(path, 3).numpy(), expected)
    np.testing.assert_array_equal(decode_array_file(path, 3, 8).numpy(), expected)
    np.testing.assert_array_equal(decode_bytes(path.read_bytes(), 3, "it").numpy(), expected)
