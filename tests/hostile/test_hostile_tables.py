"""Listings, tables and archives that lie: paths that leave their folder, numbers without bounds."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.hostile.judge import judge

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


CSV = {
    "empty": b"",
    "a header only": b"path,label\n",
    "no header": b"0.png,a\n1.png,b\n",
    "a header of nothing": b",,,\n",
    "a column twice": b"path,path\n0.png,1.png\n",
    "ragged rows": b"path,label\n0.png\n1.png,a,b,c\n",
    "a zero byte": b"path,label\n0.png,a\0b\n",
    "latin-1": "path,label\n0.png,é\n".encode("latin-1"),
    "utf-16": "path,label\n0.png,a\n".encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbfpath,label\n0.png,a\n1.png,b\n",
    "carriage returns": b"path,label\r0.png,a\r1.png,b\r",
    "an open quote": b'path,label\n"0.png,a\n1.png,b\n',
    "a huge field": b"path,label\n" + b"x" * 10**6 + b",a\n",
    "a path upwards": b"path,label\n../../../etc/passwd,a\n",
    "an absolute path": b"path,label\n/etc/passwd,a\n",
    "a device": b"path,label\n/dev/zero,a\n",
    "a formula": b'path,label\n0.png,=cmd|"/c calc"!A0\n',
    "an escape sequence": b"path,label\n0.png,\x1b]0;title\x07\n1.png,b\n",
    "a path of nothing": b"path,label\n,a\n",
    "a folder": b"path,label\n.,a\n",
    "no such files": b"path,label\nx.png,a\ny.png,b\n",
    "labels beyond bounds": b"path,label\n0.png," + b"9" * 400 + b"\n1.png,-1\n",
    "labels of nan": b"path,label\n0.png,nan\n1.png,inf\n",
    "a zip": b"PK\x03\x04" + bytes(100),
    "pickled": b"cos\nsystem\n(S'true'\ntR.",
    "long lines": b"path,label\n" + b"0.png,a\n" * 20_000,
}
JSONL = {
    "empty": b"",
    "one list": b"[1, 2, 3]\n",
    "numbers": b"1\n2\n",
    "deep": DEEP.encode() + b"\n",
    "many digits": b'{"path": ' + b"9" * 10_000 + b"}\n",
    "null": b'{"path": null, "label": null}\n',
    "nan": b'{"path": "0.png", "label": NaN}\n',
    "nested": b'{"path": {"path": "0.png"}}\n',
    "half a line": b'{"path": "0.png", "lab',
    "half a character": b'{"path": "0.png", "label": "\\ud800"}\n',
    "a zero byte": b'{"path": "0\\u0000.png"}\n',
    "a path upwards": b'{"path": "../../etc/passwd"}\n',
    "a key twice": b'{"path": "0.png", "path": "1.png"}\n',
    "no path": b'{"x": 1}\n',
}


@pytest.mark.parametrize("kind", ["folder", "pairs"])
@pytest.mark.parametrize(
    ("name", "content"),
    [(f"{name}.csv", text) for name, text in CSV.items()]
    + [(f"{name}.jsonl", text) for name, text in JSONL.items()],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_listing(kind, name, content, picture, tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(picture)
    table = tmp_path / name
    table.write_bytes(content)
    outcome = judge("stats", f"{kind}:{table}", "--workers", 0)
    assert "root:" not in outcome.out + outcome.err, "a file outside the folder was read"


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/null", "/proc/self/mem", "/", "pipe"])
@pytest.mark.parametrize("form", ["folder:{}", "pairs:{}", "wds:{}", "parquet:{}", "arrays:{}"])
def test_a_place_that_is_no_table(form, place, tmp_path):
    if place == "pipe":
        place = str(tmp_path / "pipe.csv")
        os.mkfifo(place)
    if form == "folder:{}" and place == "/":
        pytest.skip("reading every image of the machine is what was asked for")
    assert judge("stats", form.format(place), "--workers", 0).code == 1


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def archive(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if data else None)
    return file.getvalue()


def header_with(picture: bytes, start: int, text: bytes) -> bytes:
    """An archive of one image whose header says anything, with a checksum that is right."""
    data = bytearray(archive(member("0.png", picture), format=tarfile.USTAR_FORMAT))
    data[start : start + len(text)] = text
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    return bytes(data)


def archives(picture: bytes) -> dict[str, bytes]:
    good = member("0.png", picture), member("0.cls", b"1")
    whole = archive(*good)
    link = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
    return {
        "empty": b"",
        "zeros": bytes(10_240),
        "no members": archive(),
        "text": b"this is no archive\n" * 100,
        "cut in a header": whole[:300],
        "cut in an image": whole[: 512 + len(picture) // 2],
        "without its end": whole[: -10_240 + 1024],
        "a wrong checksum": whole[:148] + b"0000000\0" + whole[156:],
        "a path upwards": archive(member("../../escaped.png", picture)),
        "an absolute path": archive(member("/tmp/escaped.png", picture)),
        "a link": archive(member("0.png", **link), *good[1:]),
        "a hard link": archive(member("0.png", type=tarfile.LNKTYPE, linkname="1.png")),
        "a device": archive(member("0.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5)),
        "a pipe": archive(member("0.png", type=tarfile.FIFOTYPE)),
        "a name twice": archive(*good, *good),
        "a huge size": header_with(picture, 124, b"77777777777\0"),
        "a size in base 256": header_with(picture, 124, b"\x80" + b"\xff" * 11),
        "a negative size": header_with(picture, 124, b"\xff" * 12),
        "a size of words": header_with(picture, 124, b"twelve bytes"),
        "many digits": archive(member("0.png", picture, pax_headers={"size": "9" * 400})),
        "a size of nan": archive(member("0.png", picture, pax_headers={"size": "nan"})),
        "a long name": archive(member("x" * 100_000 + ".png", picture)),
        "an escape sequence": archive(member("\x1b]0;t\x07.png", picture)),
        "no name": archive(member("", picture)),
        "a label of many digits": archive(good[0], member("0.cls", b"9" * 5000)),
        "a label of zeros": archive(good[0], member("0.cls", bytes(100))),
        "deep metadata": archive(good[0], member("0.json", DEEP.encode())),
        "metadata of digits": archive(good[0], member("0.json", b"9" * 5000)),
        "pickled": archive(member("0.pyd", b"cos\nsystem\n(S'true'\ntR."), *good),
        "an archive in itself": archive(member("0.tar", whole)),
        "gzip": b"\x1f\x8b\x08\0" + bytes(100),
    }


@pytest.mark.parametrize("name", archives(b"x" * 80))
def test_a_shard(name, picture, tmp_path):
    folder = tmp_path / "in" / "side"
    folder.mkdir(parents=True)
    (folder / "0.tar").write_bytes(archives(picture)[name])
    outcome = judge("stats", f"wds:{folder}", "--workers", 0)
    assert "root:" not in outcome.out + outcome.err
    assert not list(tmp_path.rglob("escaped*")) + list(Path("/tmp").glob("escaped.png"))


@pytest.mark.parametrize("name", ["sizes", "shards", "index"])
def test_an_index_beside_a_shard_is_not_believed(name, picture, tmp_path):
    """The index of a shard is our own cache; one that lies must not lead outside the shard."""
    (tmp_path / "0.tar").write_bytes(archive(member("0.png", picture), member("0.cls", b"1")))
    judge("stats", f"wds:{tmp_path}", "--workers", 0)
    for cached in tmp_path.rglob("*.json"):
        cached.write_text({"sizes": '{"size": 1e400}', "shards": DEEP, "index": "null"}[name])
    assert judge("stats", f"wds:{tmp_path}", "--workers", 0).code in (0, 1)


def parquet(**columns: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def tables(picture: bytes) -> dict[str, bytes]:
    whole = parquet(image=[picture] * 4, label=[0, 1, 0, 1])
    return {
        "empty": b"",
        "magic only": b"PAR1PAR1",
        "cut": whole[: len(whole) // 2],
        "a changed end": whole[:-12] + b"\xff" * 8 + b"PAR1",
        "a long end": whole[:-8] + b"\xff\xff\xff\x7f" + b"PAR1",
        "no rows": parquet(image=pa.array([], pa.binary()), label=pa.array([], pa.int64())),
        "no images": parquet(label=[0, 1]),
        "images of numbers": parquet(image=[1, 2], label=[0, 1]),
        "images of text": parquet(image=["0.png", "/etc/passwd"], label=[0, 1]),
        "images of none": parquet(image=pa.array([None, None], pa.binary()), label=[0, 1]),
        "images of nothing": parquet(image=[b"", b""], label=[0, 1]),
        "labels of floats": parquet(image=[picture] * 2, label=[0.5, float("nan")]),
        "labels beyond bounds": parquet(image=[picture] * 2, label=[-(2**63), 2**63 - 1]),
        "paths upwards": parquet(image=[{"bytes": None, "path": "../../etc/passwd"}] * 2),
        "text": b"path,label\n0.png,a\n",
    }


@pytest.mark.parametrize("name", tables(b"x" * 80))
def test_a_parquet_file(name, picture, tmp_path):
    (tmp_path / "0.parquet").write_bytes(tables(picture)[name])
    outcome = judge("stats", f"parquet:{tmp_path}", "--workers", 0)
    assert "root:" not in outcome.out + outcome.err


LABELS = {
    "too few": json.dumps({"0.png": 1}),
    "deep": DEEP,
    "digits": "9" * 5000,
    "list": "[1, 2, 3]",
    "null": "null",
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize(
    "beside", ["dataset.json", "labels.json", "metadata.jsonl", "metadata.csv"]
)
def test_a_file_of_labels_beside_images(name, beside, picture, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture)
    (tmp_path / beside).write_text(LABELS[name])
    judge("stats", f"folder:{tmp_path}", "--workers", 0)
