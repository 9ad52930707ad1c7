"""Data sets of the Hugging Face hub, or saved by `datasets`: files on the disk, or streamed."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.contract import BadSampleError, Detail, Header, Sample, Source, Split
from vitrail.data.decode.headers import header_of_bytes
from vitrail.data.decode.image import decode_bytes
from vitrail.data.sources.channels import choose_channels
from vitrail.data.sources.formats.columns import Columns, find_schema_columns
from vitrail.data.sources.formats.parquet import (
    OPTIONS,
    add_reasons,
    image_bytes,
    parquet_source,
    plain_text,
)
from vitrail.data.sources.formats.parquet_index import Files
from vitrail.data.sources.labels import encode_labels, number_classes
from vitrail.data.sources.spec import errors_of, split_options
from vitrail.data.sources.splits import choose_name, no_test_split


class HfSource(Source):
    """A data set in the Arrow files of `datasets` on the disk. An id is the row's number.

    Images stay encoded until they are read, and vitrail's own decoder reads them.
    """

    def __init__(
        self,
        spec: str,
        rows: Any,
        columns: Columns,
        classes: tuple[Sequence[str] | None, np.ndarray],
        channels: int,
    ):
        self.spec = spec
        self.channels = channels
        self.classes, self._labels = classes
        self.captioned = columns.text is not None
        self._columns = columns
        texts = [columns.text] if columns.text else []
        self._rows = rows.select_columns([columns.image, *texts]).with_format("arrow")
        self._texts = rows.select_columns(texts).with_format("arrow") if texts else None

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        id, columns = self.id(index), self._columns
        try:
            row = self._rows[index].to_pylist()[0]
        except UnicodeDecodeError as error:
            raise BadSampleError(id, "its text is not UTF-8") from error
        data = image_bytes(row[columns.image], id)
        text = None if columns.text is None else plain_text(row[columns.text])
        if self.captioned and text is None:
            raise BadSampleError(id, "its row has no caption")
        image = decode_bytes(data, self.channels, id, detail)
        return Sample(image, self.label(index), text, id)

    def id(self, index: int) -> str:
        return str(index)

    def header(self, index: int) -> Header | None:
        try:
            row = self._rows[index].to_pylist()[0]
            return header_of_bytes(image_bytes(row[self._columns.image], self.id(index)))
        except (BadSampleError, UnicodeDecodeError):
            return None

    def text(self, index: int) -> str | None:
        if self._texts is None:
            return None
        try:
            return plain_text(self._texts[index].column(0)[0].as_py())
        except UnicodeDecodeError:
            return None

    def fingerprint(self) -> str:
        """Returns a digest of columns and labels, and of the sizes of the encoded images."""
        from pyarrow import compute, types

        digest = hashlib.blake2b(repr(self._columns).encode(), digest_size=16)
        digest.update(self._labels.astype(np.int64).tobytes())
        for start in range(0, len(self), 10_000):
            stop = min(start + 10_000, len(self))
            images = self._rows[start:stop].column(self._columns.image)
            if types.is_struct(images.type):
                images = compute.struct_field(images, "bytes")
            digest.update(repr(compute.binary_length(images).to_pylist()).encode())
        return digest.hexdigest()


def open_hf(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `hf:NAME[,config=..][,split=..][,image=..][,label=..][,text=..][,stream=yes]`.

    NAME: of the hub, as `uoft-cs/cifar10`, or a folder: saved by `save_to_disk`, or of files that
    `load_dataset` understands. No code of a data set is ever run. split: the training split, by
    default `train`; the test split is one for testing, else for validation (`splits.WORDS`). image,
    label, text: columns (`columns.find_schema_columns`). stream: nothing is downloaded as a whole;
    the hub's Parquet files are read a row group at a time, always in the same order.

    Raises:
        ValueError: no such data set, configuration, split or column, no network, an option that
            does not fit, or `datasets` is not installed.
        NoTestSplitError: "test" of a data set that has none.
    """
    spec = f"hf:{rest}"
    name, options = split_options("hf", rest, (*OPTIONS, "config", "split", "stream"))
    if not name:
        raise ValueError("hf: names no data set; write hf:NAME, or hf:FOLDER")
    if options.get("stream", "no") not in ("yes", "no"):
        raise ValueError(f"{spec}: stream is {options['stream']!r}; it must be yes or no")
    channels = choose_channels(spec, channels)
    _check_installed(spec)
    asked = {key: options[key] for key in OPTIONS if key in options}
    train_split = options.get("split", "train")
    if options.get("stream") == "yes":
        files = _parquet_files(spec, name, options.get("config"))
        wanted = _wanted(spec, split, train_split, list(files))
        train_files = files.get(train_split, files[wanted])
        streamed = parquet_source(spec, files[wanted], train_files, asked, channels)
        streamed.notes += _unread(list(files), train_split)
        return streamed
    whole = _load(spec, name, options.get("config"))
    names = [str(key) for key in whole]
    base = re.split(r"[\[+]", train_split)[0]  # of train[:10%]
    if split == "train" and base != train_split:
        rows = _load(spec, name, options.get("config"), train_split)
        train = rows
    else:
        rows = whole[_wanted(spec, split, train_split, names)]
        train = whole[base] if base in names else rows
    source = _hf_source(spec, rows, train, asked, channels)
    source.notes += _unread(names, base)
    return source


def _unread(names: list[str], train_split: str) -> tuple[str, ...]:
    """Returns a sentence on splits that are neither trained nor tested on."""
    test = choose_name([name for name in names if name != train_split], "test")
    others = [name for name in names if name not in (train_split, test)]
    if not others:
        return ()
    return (f"its splits {', '.join(map(repr, others))} are not read",)


def _hf_source(spec: str, rows: Any, train: Any, asked: dict[str, str], channels: int) -> HfSource:
    rows, train = _undecoded(rows), _undecoded(train)
    if not len(rows):
        raise ValueError(f"{spec}: the split has no rows")
    with errors_of(spec):
        columns = find_schema_columns(rows.features.arrow_schema, asked)
    _require_bytes(spec, rows, columns.image)
    values, codes = _labels(rows, columns.label)
    train_values = _labels(train, columns.label)[0] if columns.classes is None else values
    classes = number_classes(spec, codes, values, train_values, columns.classes)
    source = HfSource(spec, rows, columns, classes, channels)
    add_reasons(source, rows.features.arrow_schema, columns, classes[1])
    return source


def _require_bytes(spec: str, rows: Any, image: str) -> None:
    """ValueError if the first row has the path of a file in place of an image."""
    first = rows.with_format("arrow")[0].column(image)[0].as_py()
    if isinstance(first, dict) and first.get("bytes") is None and first.get("path"):
        raise ValueError(
            f"{spec}: it holds no images but paths of files (the first: {first['path']!r}), which "
            "are not followed; read their folder as folder:DIR"
        )


def _undecoded(rows: Any) -> Any:
    """Returns the data set with images as the bytes of their files."""
    from datasets import Image

    for name, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
    return rows


def _labels(rows: Any, name: str | None) -> tuple[list[str], np.ndarray]:
    """Returns the labels as text, each once, and the place of each row's, -1 for no label."""
    if name is None:
        return [], np.full(len(rows), -1)
    column = rows.select_columns([name]).with_format("arrow")[:].column(0)
    return encode_labels(column.to_pylist())


def _check_installed(spec: str) -> None:
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{spec}: it needs datasets: pip install 'vitrail[hf]'") from error


def _wanted(spec: str, split: str, train_split: str, names: list[str]) -> str:
    """Returns the name of the data set's split that is "train" or "test"."""
    if split != "train":
        found = choose_name([name for name in names if name != train_split], split)
        if found is None:
            raise no_test_split(spec, f"its splits are {', '.join(names)}")
        return found
    if train_split not in names:
        raise ValueError(
            f"{spec}: it has no split {train_split!r}; its splits are {', '.join(names)}"
        )
    return train_split


@contextmanager
def _translate_errors(spec: str, name: str) -> Iterator[None]:
    """Raises ValueError for any error of the hub and `datasets`, which have types of their own."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        offline = "" if Path(name).is_dir() else "; without a network, give a folder of files"
        raise ValueError(f"{spec}: it cannot be loaded ({first}){offline}") from error


def _load(spec: str, name: str, config: str | None, split: str | None = None) -> Any:
    """Returns all splits by name, or one split."""
    import datasets

    folder = Path(name).expanduser()
    with _translate_errors(spec, name):
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            if config or split:
                raise ValueError("a saved data set has no configurations, and no parts of splits")
            saved = datasets.load_from_disk(str(folder))
            return saved if isinstance(saved, dict) else {"train": saved}
        path = str(folder) if folder.is_dir() else name
        return datasets.load_dataset(path, config, split=split)


def _parquet_files(spec: str, name: str, config: str | None) -> dict[str, Files]:
    """Returns the Parquet files of every split, which stay on the hub."""
    import datasets
    import fsspec

    folder = Path(name).expanduser()
    with _translate_errors(spec, name):
        path = str(folder) if folder.is_dir() else name
        builder = datasets.load_dataset_builder(path, config)
        of_split = {str(k): [str(url) for url in v] for k, v in builder.config.data_files.items()}
        files = {}
        for key, urls in of_split.items():
            if not all(url.endswith(".parquet") for url in urls):
                raise ValueError(
                    f"only Parquet files can be streamed, and {os.path.basename(urls[0])} is none: "
                    "leave stream=yes out"
                )
            filesystem, _ = fsspec.core.url_to_fs(urls[0])
            paths = tuple(filesystem._strip_protocol(url) for url in urls)
            files[key] = Files(paths, filesystem)
    return files
