"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html).

The binary version is rows of label bytes and 3072 pixels. The Python version, which torchvision
downloads, is pickles: their opcodes are searched for the pixels and labels, and nothing that they
describe is built or called.

Shape legend: N images.
"""

import pickletools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from vitrail.data.contract import Source, Split
from vitrail.data.sources.memory import MemorySource
from vitrail.data.sources.spec import find_place, read_lines, read_regular

PIXELS = 3 * 32 * 32
MAX_BYTES = 2**29  # of one file; CIFAR-100's largest has 156 million


class Version(NamedTuple):
    """One of the archives.

    Attributes:
        folder: that it unpacks to.
        train: files of the training split.
        test: files of the test split.
        names: file of the class names.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str


class Cifar(NamedTuple):
    """One of the data sets.

    Attributes:
        binary: its binary version.
        python: its Python version.
        label_bytes: number before the pixels of a row; the last is the class.
        classes: number of classes.
        labels: key of the labels in the pickles.
        label_names: key of the class names in the pickles.
    """

    binary: Version
    python: Version
    label_bytes: int
    classes: int
    labels: str
    label_names: str


CIFAR10 = Cifar(
    Version(
        "cifar-10-batches-bin",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        "batches.meta.txt",
    ),
    Version(
        "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        ("test_batch",),
        "batches.meta",
    ),
    label_bytes=1,
    classes=10,
    labels="labels",
    label_names="label_names",
)
CIFAR100 = Cifar(
    Version("cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt"),
    Version("cifar-100-python", ("train",), ("test",), "meta"),
    label_bytes=2,
    classes=100,
    labels="fine_labels",
    label_names="fine_label_names",
)
KINDS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def open_cifar10(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `cifar10:DIR`, DIR holding cifar-10-batches-bin or cifar-10-batches-py, or being one.

    Raises:
        ValueError: files that are missing, damaged or of another kind; or other channels.
    """
    return _open("cifar10", rest, split, channels)


def open_cifar100(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `cifar100:DIR`, as `open_cifar10`. The classes are the 100 fine ones."""
    return _open("cifar100", rest, split, channels)


def _open(kind: str, rest: str, split: Split, channels: int | None) -> MemorySource:
    spec, cifar = f"{kind}:{rest}", KINDS[kind]
    remedy = (
        f"download the binary version (cifar-{cifar.classes}-binary.tar.gz, from "
        "https://www.cs.toronto.edu/~kriz/cifar.html) and unpack it there"
    )
    binary = _is_binary(cifar, Path(rest).expanduser())
    version = cifar.binary if binary else cifar.python
    files = version.train if split == "train" else version.test
    root = find_place(kind, rest, ("", version.folder), files[0], remedy)
    images, labels = [], []
    for name in files:
        content = _read(spec, root / name, remedy)
        try:
            pixels_NP, labels_N = (
                binary_rows(content, cifar.label_bytes)
                if binary
                else python_batch(content, cifar.labels)
            )
            if int(labels_N.max()) >= cifar.classes:
                raise ValueError(f"it has a label {labels_N.max()}, of {cifar.classes} classes")
        except ValueError as error:
            raise ValueError(
                f"{spec}: {root / name} is no batch of it ({error}); {remedy}"
            ) from error
        images.append(pixels_NP)
        labels.append(labels_N)
    return MemorySource(
        spec,
        torch.from_numpy(np.concatenate(images).reshape(-1, 3, 32, 32)),
        torch.from_numpy(np.concatenate(labels)),
        _class_names(spec, root / version.names, cifar, binary, remedy),
        channels,
    )


def binary_rows(
    content: bytes, label_bytes: int
) -> tuple[UInt8[np.ndarray, "N 3072"], Int64[np.ndarray, " N"]]:
    """Returns pixels and classes of a file of the binary version. ValueError if it has no rows."""
    row = label_bytes + PIXELS
    if not content or len(content) % row:
        raise ValueError(f"it has {len(content):,} bytes, which are not rows of {row}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    return rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int64)


def python_batch(
    content: bytes, labels: str
) -> tuple[UInt8[np.ndarray, "N 3072"], Int64[np.ndarray, " N"]]:
    """Returns pixels and classes of a pickled batch, which is not unpickled.

    Python 2 wrote {"data": an array of bytes, labels: a list of numbers, ...}: the array's content
    is a string that follows its type, "u1", and False (not in Fortran's order).

    Args:
        content: of the file.
        labels: key of the list.

    Raises:
        ValueError: it is not such a pickle.
    """
    pixels, numbers = b"", []
    last_text, last = "", ""
    for name, argument in _opcodes(content):
        if isinstance(argument, str) and len(argument) < PIXELS:
            last_text = argument
        elif isinstance(argument, str) and last == "NEWFALSE" and not len(argument) % PIXELS:
            pixels = argument.encode("latin-1")
        elif name.startswith("BININT") and last_text == labels:
            numbers.append(argument)
        last = name
    if not pixels or len(pixels) != PIXELS * len(numbers):
        raise ValueError("it holds no array of images and as many labels, as Python 2 wrote them")
    pixels_NP = np.frombuffer(pixels, np.uint8).reshape(-1, PIXELS)
    return pixels_NP, np.array(numbers, dtype=np.int64)


def python_names(content: bytes, key: str) -> list[str]:
    """Returns the list of texts under a key of a pickle, which is not unpickled."""
    names: list[str] | None = None
    for name, argument in _opcodes(content):
        if isinstance(argument, str) and (names is not None or argument == key):
            names = [] if names is None else [*names, argument]
        elif name == "APPENDS" and names:
            break
    return names or []


def _opcodes(content: bytes) -> Iterator[tuple[str, Any]]:
    """Yields names and arguments of a pickle's opcodes, without those that memorise objects."""
    for opcode, argument, _ in pickletools.genops(content):
        if "PUT" not in opcode.name and opcode.name != "MEMOIZE":
            yield opcode.name, argument


def _is_binary(cifar: Cifar, given: Path) -> bool:
    """Returns true if the binary version is there, or no version is."""

    def has(version: Version) -> bool:
        first = (*version.train, *version.test)
        return any((given / sub / name).exists() for sub in ("", version.folder) for name in first)

    return has(cifar.binary) or not has(cifar.python)


def _class_names(spec: str, path: Path, cifar: Cifar, binary: bool, remedy: str) -> Sequence[str]:
    """Returns the names of the file beside the batches, or numbers without it."""
    if not path.exists():
        return [str(number) for number in range(cifar.classes)]
    if binary:
        names = read_lines(spec, path, remedy)
    else:
        content = _read(spec, path, remedy)
        try:
            names = python_names(content, cifar.label_names)
        except ValueError as error:
            raise ValueError(f"{spec}: {path} is damaged ({error}); {remedy}") from error
    if len(names) != cifar.classes:
        raise ValueError(
            f"{spec}: {path} has {len(names)} class names, not {cifar.classes}; {remedy}"
        )
    return names


def _read(spec: str, path: Path, remedy: str) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{spec}: {path} is too large to be a part of CIFAR; {remedy}")
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        raise ValueError(f"{spec}: {path} cannot be read ({error.strerror}); {remedy}") from error
