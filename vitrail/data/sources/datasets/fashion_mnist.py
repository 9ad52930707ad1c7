"""Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747) from its IDX files."""

import fcntl
import gzip
import hashlib
import io
import math
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from vitrail.atomic import write_atomically
from vitrail.data.contract import Source, Split
from vitrail.data.sources.cache import cache_folder
from vitrail.data.sources.memory import MemorySource
from vitrail.data.sources.spec import check_regular

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PREFIX = {"train": "train", "test": "t10k"}
# the authors' repository
URL = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
    "b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/"
)
# SHA-256 of the files' unpacked content, which is the same however they are packed
CONTENT = {
    "train-images-idx3-ubyte.gz": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte.gz": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}
MAX_PACKED = 2**26  # bytes of a download; the largest has 26 million
MAX_BYTES = 2**30  # of one IDX file; Fashion-MNIST's largest has 47 million


def open_fashion_mnist(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `fashion-mnist[:DIR]`: the four IDX .gz files in DIR.

    Without DIR: Debian's package if it is installed, else the authors' files, downloaded into the
    cache (`cache.cache_folder`) and compared with their SHA-256. A file there that is not whole is
    downloaded again.

    Raises:
        ValueError: a file is missing or damaged.
    """
    folder = Path(rest).expanduser() if rest else _default_folder()
    if not folder.is_dir():
        raise ValueError(f"fashion-mnist: there is no folder {folder}; {_REMEDY}")
    images = read_idx(folder / f"{PREFIX[split]}-images-idx3-ubyte.gz", axes=3)
    labels_path = folder / f"{PREFIX[split]}-labels-idx1-ubyte.gz"
    labels = read_idx(labels_path, axes=1)
    if len(images) != len(labels) or not len(labels) or int(labels.max()) >= len(CLASSES):
        raise ValueError(
            f"fashion-mnist: {labels_path} holds {len(labels)} labels for {len(images)} images; "
            f"there must be one each, in 0..{len(CLASSES) - 1}; {_REMEDY}"
        )
    spec = f"fashion-mnist:{rest}" if rest else "fashion-mnist"
    return MemorySource(spec, images[:, None], labels.long(), CLASSES, channels)


_REMEDY = (
    "give the folder of the four .gz files as fashion-mnist:DIR, or install Debian's package "
    "dataset-fashion-mnist"
)


def _default_folder() -> Path:
    if DEBIAN.is_dir():
        return DEBIAN
    cache = cache_folder()
    raw = cache / "FashionMNIST" / "raw"
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with open(cache / "fashion-mnist.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one rank downloads, the others wait for it
            for name, digest in CONTENT.items():
                if not _is_whole(raw / name, digest):
                    _download(raw / name, digest)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"fashion-mnist: the download failed ({error}); {_REMEDY}") from error
    return raw


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return _digest(path.read_bytes()) == digest
    except FileNotFoundError:
        return False


def _digest(packed: bytes) -> str:
    """Returns the SHA-256 of a packed file's content, "" for a file that is not whole."""
    content = hashlib.sha256()
    try:
        with gzip.open(io.BytesIO(packed)) as file:
            for _ in range(MAX_BYTES // _PART):
                part = file.read(_PART)
                content.update(part)
                if not part:
                    return content.hexdigest()
    except (OSError, EOFError, zlib.error):
        pass
    return ""


_PART = 2**20


def _download(path: Path, digest: str) -> None:
    """Downloads a file. RuntimeError for another content, OSError as the network raises."""
    with urllib.request.urlopen(URL + path.name, timeout=60) as answer:
        packed = answer.read(MAX_PACKED + 1)
    if _digest(packed) != digest:
        raise RuntimeError(
            f"{URL}{path.name} came with {len(packed):,} bytes of another content than the "
            f"published, whose SHA-256 is {digest}"
        )
    write_atomically(path, packed)


def read_idx(path: Path, axes: int) -> UInt8[Tensor, "..."]:
    """Reads a gzipped IDX file of uint8. ValueError if it is missing or damaged.

    Format: 0, 0, 8 (unsigned byte), the number of axes; a big-endian uint32 an axis; the bytes.

    Args:
        path: of the file.
        axes: number that the file must have.
    """
    try:
        check_regular(path)
        with gzip.open(path, "rb") as file:
            magic = file.read(4)
            if magic != bytes((0, 0, 8, axes)):
                raise ValueError(
                    f"{path} starts with {magic.hex()}, not {bytes((0, 0, 8, axes)).hex()}: it is "
                    f"not an IDX file of bytes with {axes} axes; {_REMEDY}"
                )
            header = file.read(4 * axes)
            shape = [int(size) for size in np.frombuffer(header[: len(header) // 4 * 4], ">u4")]
            expected = math.prod(shape) if len(shape) == axes else MAX_BYTES + 1
            body = file.read(expected + 1) if expected <= MAX_BYTES else b""
    except FileNotFoundError as error:
        raise ValueError(f"fashion-mnist: there is no file {path}; {_REMEDY}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_REMEDY}") from error
    if len(body) != expected or not expected:
        raise ValueError(
            f"{path} does not hold the {shape} bytes its header promises, or promises none; "
            f"{_REMEDY}"
        )
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).view(shape)
