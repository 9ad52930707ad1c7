"""Tests fingerprints, ids and labels of small data sets against literal values.

A run resumes only with the fingerprint that its data had at its start, so none of these values may
change. They depend on no encoder of images: the files are bytes of a given length.
"""

import base64
import io
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from vitrail.data.sources.registry import open_source

PIXELS = (np.arange(6 * 4 * 5, dtype=np.uint8) * 7).reshape(6, 4, 5)

# Columns image (binary), label (int64, -1 for none) and caption (string) in two row groups.
PARQUET = (
    "c-nQ6!A`<J5QeAgQi&nnX2K>7!2=s5g@}osdXaE3;m~mMTAPiK0Idb(ojiEp5qubrp1kX9DT-P)?aZe0&Hqof8(xok"
    "2-wE9kCHbox*h-sex-B3F_|05X}L;Hxa^}}!r5roXR)~6z(xt^aEvUuCB$z+I2G$P&Wz!Lhh7O$cv%TTDgi7Jqg2C7"
    "sJn}JY-SO<fVGyWS0=OQ-T+FwpGJ3Py7_(>N9l5s%v&(DI^-%}1sXi8sg?_>=tCe$A%(hn<DvBz5YVx5l?Ho6mX`&e"
    "Yv=rkM*8-LKij1X^{so(4``sDogD-5Z9s1hNnPax<<p70`+c|jDDM_~#uL=1zFvzz^NGFl2?{9CAL8G9wuN3D5^T>I"
    "PMc|zJv^FaCr;B&lx4}P`DC&M%QP>py64@V3izlu54`X{3;8B~0p}uH6#"
)


def put(root: Path, **sizes: int) -> None:
    """Writes files of these sizes in bytes; in their names "__" stands for "/" and "_" for "."."""
    for name, size in sizes.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def flat(root: Path) -> str:
    put(root, b_jpg=3, a_PNG=20, deep__c_tif=0)
    return f"folder:{root}"


def split(root: Path) -> str:
    put(root, train__b__1_png=1, train__a__2_png=2, train__b__3_png=3, val__a__4_png=4)
    return f"folder:{root}"


def table(root: Path) -> str:
    put(root, a_png=1, b_png=2, sub__c_png=3)
    (root / "t.csv").write_text("File,Class\nb.png,10\nsub/c.png,9\na.png,\n")
    return f"folder:{root},labels=t.csv"


def wide(root: Path) -> str:
    root.mkdir()
    np.save(root / "a.npy", PIXELS)
    np.save(root / "b.npy", PIXELS[:2])
    return f"folder:{root},bits=16"


def imagenet(root: Path) -> str:
    put(root, train__n02__1_JPEG=1, train__n01__2_JPEG=2, val__n02__3_JPEG=3)
    return f"imagenet:{root}"


def pairs(root: Path) -> str:
    root.mkdir()
    rows = ["a.png,a cat,cat,train", "a.png,a tom,cat,train", "b.png,,dog,train", "c.png,x,,val"]
    (root / "t.csv").write_text("\n".join(["path,caption,label,split", *rows]))
    return f"pairs:{root}/t.csv"


def unlabelled_pairs(root: Path) -> str:
    root.mkdir()
    (root / "t.jsonl").write_text('{"image": "é.jpg", "text": "é"}\n{"image": "b", "text": "c"}\n')
    return f"pairs:{root}/t.jsonl"


def npy(root: Path) -> str:
    root.mkdir()
    np.save(root / "x.npy", PIXELS.astype(np.uint16) * 100)
    np.save(root / "y.npy", np.array([3, -1, 5, 3, 5, -1]))
    return f"npy:{root}/x.npy,labels=y.npy"


def npz(root: Path) -> str:
    root.mkdir()
    labels = np.array([["b"], ["a"], ["b"], ["c"], ["a"], ["a"]])
    np.savez(root / "x.npz", x_train=PIXELS, y_train=labels, x_val=PIXELS[::-1], y_val=labels)
    return f"npz:{root}/x.npz"


def parquet(root: Path) -> str:
    pytest.importorskip("pyarrow")
    root.mkdir()
    (root / "x.parquet").write_bytes(zlib.decompress(base64.b85decode(PARQUET)))
    return f"parquet:{root}/x.parquet"


def wds(root: Path) -> str:
    root.mkdir()
    for split, names in {"train": "ab", "validation": "c"}.items():
        with tarfile.open(root / f"{split}-000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for name in names:
                members = {"jpg": b"picture", "cls": b"-1" if name == "b" else b"7", "txt": b"t"}
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{name}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return f"wds:{root}"


def pets(root: Path) -> str:
    folder = root / "annotations"
    folder.mkdir(parents=True)
    (folder / "trainval.txt").write_text("#Image\nAby_2 1 1 1\nbig_dog_1 2 2 1\nAby_1 1 1 1\n")
    (folder / "test.txt").write_text("big_dog_10 2 2 1\n")
    return f"pets:{root}"


def flowers(root: Path) -> str:
    root.mkdir()
    sets = {"trnid": [[4]], "valid": [[2]], "tstid": [[3, 5]]}
    scipy.io.savemat(root / "imagelabels.mat", {"labels": [[5, 1, 102, 5, 7]]})
    scipy.io.savemat(root / "setid.mat", sets)
    return f"flowers102:{root}"


def coco(root: Path) -> str:
    put(root, train2017__0025_jpg=1, train2017__0009_JPG=1, val2017__3_png=1)
    return f"coco:{root}"


def voc(root: Path) -> str:
    lists = root / "ImageSets/Segmentation"
    for folder in (lists, root / "JPEGImages"):
        folder.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000039\n")
    (lists / "val.txt").write_text("2007_000033\n")
    return f"voc:{root}"


# fmt: off
MADE: list[tuple[Callable[[Path], str], int | None, list[tuple[str, int, str]]]] = [
    (flat, None, [
        ("b707970a4372776149331a68ce621833", 0, "a.PNG:None b.jpg:None deep/c.tif:None"),
    ]),
    (split, None, [
        ("81150c68237100037d923d781c6c1808", 2, "train/a/2.png:0 train/b/1.png:1 train/b/3.png:1"),
        ("7c2582535264e2f2a6d457fe60df638d", 2, "val/a/4.png:0"),
    ]),
    (table, None, [
        ("cf5a598cfc4661f1b000627b4551e562", 2, "a.png:None b.png:1 sub/c.png:0"),
    ]),
    (wide, 5, [
        ("21ff9f4fbf04a6c37047af0282296777", 0, "a.npy:None b.npy:None"),
    ]),
    (imagenet, None, [
        ("256f268ce1744fbb027ff7dc4249c3c6", 2, "train/n01/2.JPEG:0 train/n02/1.JPEG:1"),
        ("88803b74a8b4723d3c3ad48ea71482a6", 2, "val/n02/3.JPEG:1"),
    ]),
    (pairs, 1, [
        ("7afee6e377b4ad64d44d183fd9423463", 2, "a.png:0 a.png#2:0 b.png:1"),
        ("e4dd092ff3246e2efe4217e653c9ae46", 2, "c.png:None"),
    ]),
    (unlabelled_pairs, None, [
        ("9573c30f944af4e8df248e4f69784504", 0, "é.jpg:None b:None"),
    ]),
    (npy, None, [
        ("ecc5aad01cd5c9af527b5c4ec930280c", 2, "0:0 1:None 2:1 3:0 4:1 5:None"),
    ]),
    (npz, None, [
        ("d6aa2a2f53d1b7a971fba77973dfa2c7", 3, "0:1 1:0 2:1 3:2 4:0 5:0"),
        ("c9c381278eacd27bbe4ba7005aa54ee6", 3, "0:1 1:0 2:1 3:2 4:0 5:0"),
    ]),
    (parquet, None, [
        ("bf49367936693a0495062e8acafe1df0", 2, "x.parquet/0:1 x.parquet/1:None x.parquet/2:0"),
    ]),
    (wds, None, [
        ("06cbbcad8b95c511037998b6c7a497fb", 1, "train-000.tar/a.jpg:0 train-000.tar/b.jpg:None"),
        ("184a80f430cbddd2083aba34fb7434ea", 1, "validation-000.tar/c.jpg:0"),
    ]),
    (pets, None, [
        ("fa76d11d81e149ce1657eb1724df9d6f", 2,
         "images/Aby_2.jpg:0 images/big_dog_1.jpg:1 images/Aby_1.jpg:0"),
        ("62d7c6cb412266c398c866aba0e06c8f", 2, "images/big_dog_10.jpg:1"),
    ]),
    (flowers, None, [
        ("93a5a708f9d580fea95d5a759d78f2b0", 102, "jpg/image_00002.jpg:0 jpg/image_00004.jpg:4"),
        ("ef042f5388c73c471f3e3cfa27207add", 102, "jpg/image_00003.jpg:101 jpg/image_00005.jpg:6"),
    ]),
    (coco, None, [
        ("33e7cdf824191223c0a8bd31303d2154", 0, "train2017/0009.JPG:None train2017/0025.jpg:None"),
        ("ad2be510ab8e56140ae24d14a9a6c2ad", 0, "val2017/3.png:None"),
    ]),
    (voc, None, [
        ("0b0f82a1e86850444a440b46e28d756f", 0, "2007_000032:None 2007_000039:None"),
        ("3ddfef04ffe7567759ec4b0880aa72f2", 0, "2007_000033:None"),
    ]),
]
# fmt: on


@pytest.mark.parametrize(("make", "channels", "known"), MADE, ids=[row[0].__name__ for row in MADE])
def test_a_source_is_the_one_that_it_was(tmp_path, monkeypatch, make, channels, known):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = make(tmp_path / "data")
    for split, expected in zip(("train", "test"), known, strict=False):
        assert described(open_source(spec, split, channels)) == expected


def described(source) -> tuple[str, int, str]:
    """Returns the fingerprint, the number of classes, and the id and label of each sample."""
    samples = [f"{source.id(i)}:{source.label(i)}" for i in range(len(source))]
    return source.fingerprint(), len(source.classes or ()), " ".join(samples)
