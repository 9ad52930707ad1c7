"""Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747) from its IDX files."""

import fcntl
import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from vitrail.data.contract import Source, Split
from vitrail.data.sources.cache import cache_folder
from vitrail.data.sources.memory import MemorySource

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
MAX_BYTES = 2**30  # of one IDX file; Fashion-MNIST's largest has 47 million


def open_fashion_mnist(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `fashion-mnist[:DIR]`: the four IDX .gz files in DIR.

    Without DIR: Debian's package if it is installed, else torchvision's download into the cache
    (`cache.cache_folder`).

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
    names = [
        f"{p}-{kind}-ubyte.gz" for p in PREFIX.values() for kind in ("images-idx3", "labels-idx1")
    ]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / "fashion-mnist.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one rank downloads, the others wait for it
            if not all((raw / name).is_file() for name in names):
                _download(cache)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"fashion-mnist: the download failed ({error}); {_REMEDY}") from error
    return raw


def _download(cache: Path) -> None:
    from torchvision.datasets import FashionMNIST  # lazy import: it is slow

    FashionMNIST(str(cache), download=True)


def read_idx(path: Path, axes: int) -> UInt8[Tensor, "..."]:
    """Reads a gzipped IDX file of uint8. ValueError if it is missing or damaged.

    Format: 0, 0, 8 (unsigned byte), the number of axes; a big-endian uint32 an axis; the bytes.

    Args:
        path: of the file.
        axes: number that the file must have.
    """
    try:
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
