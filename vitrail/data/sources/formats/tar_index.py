"""Where the samples of tar shards lie: found by their headers once, and kept in the cache.

WebDataset's convention: members whose names agree up to the first dot of the last part, and which
follow each other, are one sample; what comes after that dot says what each is.
"""

import json
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vitrail.data.sources.cache import load_arrays, save_arrays

logger = logging.getLogger(__name__)

VERSION = 1  # of what is kept
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "npy")
LABELS = ("cls",)
TEXTS = ("txt", "text", "caption")
JSON_LABELS = ("label", "cls", "class")  # keys of a .json member
JSON_TEXTS = ("caption", "text", "txt")
MAX_LABEL = 2**8  # bytes of a .cls member; a class is a number or a name
MAX_JSON = 2**20  # bytes of a .json member
THREADS = 8  # that wait for the disk while headers are read


class Member(NamedTuple):
    """A file in a shard: where its bytes are."""

    offset: int
    size: int


@dataclass(frozen=True)
class TarIndex:
    """The samples of shards, in order. Arrays of one length N, but for the last three.

    name_ends: of each name in `names`, in UTF-8. image_, text_offset and _size: int64, in bytes; an
    image of size -1 is cut off with its shard, a text of size -1 is none. suffix: into IMAGES.
    of_json: the text is in a JSON member. label: into `labels`, -1 for none.
    names: uint8. labels: text, each once. counts: samples of each shard.
    """

    name_ends: np.ndarray
    image_offset: np.ndarray
    image_size: np.ndarray
    suffix: np.ndarray
    text_offset: np.ndarray
    text_size: np.ndarray
    of_json: np.ndarray
    label: np.ndarray
    names: np.ndarray
    labels: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.name_ends)

    def name(self, index: int) -> str:
        start = int(self.name_ends[index - 1]) if index else 0
        return self.names[start : int(self.name_ends[index])].tobytes().decode(errors="replace")


def index_shards(paths: Sequence[Path], image: str | None) -> TarIndex:
    """The samples of shards. Those that are as they were last time are not looked at again.

    Args:
        image: the image among a sample's members, by what comes after the first dot of its name;
            where not given, a member that is called by one of IMAGES.

    Raises:
        ValueError: a shard that is no tar, or cannot be read.
    """
    key = repr((VERSION, image, [str(path.absolute()) for path in paths]))
    states = np.array([_state(path) for path in paths], dtype=np.int64).reshape(-1, 2)
    kept = _split(load_arrays("wds", key), states)
    missing = [i for i, shard in enumerate(kept) if shard is None]
    if not missing:
        return _joined([shard for shard in kept if shard is not None])
    with ThreadPoolExecutor(THREADS) as pool:
        for i, shard in zip(
            missing, pool.map(lambda i: index_shard(paths[i], image), missing), strict=True
        ):
            kept[i] = shard
    whole = _joined([shard for shard in kept if shard is not None])
    arrays = {field.name: getattr(whole, field.name) for field in fields(TarIndex)}
    save_arrays("wds", key, arrays | {"states": states})
    return whole


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    return status.st_size, status.st_mtime_ns


def _split(kept: dict[str, np.ndarray] | None, states: np.ndarray) -> list[TarIndex | None]:
    """The index of each shard, None where it is not there or the shard has changed since."""
    names = {field.name for field in fields(TarIndex)} | {"states"}
    if kept is None or set(kept) != names or kept["states"].shape != states.shape:
        return [None] * len(states)
    same = (kept.pop("states") == states).all(1)
    whole = TarIndex(**kept)
    ends = np.cumsum(whole.counts)
    return [
        _part(whole, int(end - count), int(end)) if as_it_was else None
        for as_it_was, count, end in zip(same, whole.counts, ends, strict=True)
    ]


def _part(whole: TarIndex, start: int, stop: int) -> TarIndex:
    rows = {f.name: getattr(whole, f.name)[start:stop] for f in fields(TarIndex)}
    first, last = (int(whole.name_ends[i - 1]) if i else 0 for i in (start, stop))
    rows["name_ends"] = rows["name_ends"] - first
    rows |= {
        "names": whole.names[first:last],
        "labels": whole.labels,
        "counts": np.array([stop - start]),
    }
    return TarIndex(**rows)


def _joined(parts: Sequence[TarIndex]) -> TarIndex:
    before = np.cumsum([0] + [len(part.names) for part in parts])
    labels = np.unique(np.concatenate([part.labels for part in parts]))
    rows = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(TarIndex)
    }
    rows["name_ends"] = np.concatenate(
        [part.name_ends + start for part, start in zip(parts, before, strict=False)]
    )
    renumbered = [np.append(np.searchsorted(labels, part.labels), -1) for part in parts]
    rows["label"] = np.concatenate(
        [new[part.label] for part, new in zip(parts, renumbered, strict=True)]
    ).astype(np.int32)
    rows["labels"] = labels
    return TarIndex(**rows)


def index_shard(path: Path, image: str | None) -> TarIndex:
    """The samples of one shard, by its headers, labels and JSON members.

    Of a shard that is cut off or damaged, the samples before that are kept, but for the last, which
    may not be whole and becomes one that cannot be read. A line in the log tells.
    """
    rows: list[dict[str, Any]] = []
    try:
        with open(path, "rb") as file:
            walk = _Walk(path, file)
            for name, members in groupby(walk, key=lambda found: found[0]):
                row = _row(file, name, {suffix: member for _, suffix, member in members}, image)
                if row:
                    rows.append(row)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
    if walk.damage:
        lost = "" if not rows else f", and with it sample {rows[-1]['name']!r}"
        logger.warning("%s %s: what follows is lost%s", path, walk.damage, lost)
    if walk.damage and rows:
        rows[-1]["image"] = Member(rows[-1]["image"].offset, -1)
    return _packed(rows)


class _Walk:
    """The members of a tar that are plain files: (sample, suffix, Member), in order.

    damage: after the last, what is wrong with the shard.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self.damage = ""
        self._path, self._file = path, file

    def __iter__(self) -> Iterator[tuple[str, str, Member]]:
        end = os.fstat(self._file.fileno()).st_size
        try:
            tar = tarfile.open(fileobj=self._file, mode="r:")  # noqa: SIM115 (the file is closed)
        except tarfile.TarError as error:
            raise ValueError(
                f"{self._path} is not a tar file ({error}); compressed ones must be unpacked "
                "(gunzip), since samples are read from the middle"
            ) from error
        info = self._next(tar)
        while info is not None:
            tar.members = []  # type: ignore[attr-defined]  # else every one is kept
            if info.offset_data + info.size > end:
                self.damage = f"is cut off: it has {end:,} bytes"
            folder, slash, last = info.name.rpartition("/")
            sample, dot, suffix = last.partition(".")
            if info.isreg() and not info.issparse() and sample and dot:
                member = Member(info.offset_data, info.size)
                yield folder + slash + sample, suffix.lower(), member
            info = self._next(tar)
        # tarfile ends alike at the end mark, a block of zeros, and at a header that is none.
        self._file.seek(tar.offset)
        block = self._file.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0"):
            self.damage = self.damage or f"is damaged at byte {tar.offset:,}"
        if not block and not self.damage:
            logger.warning("%s has no end mark: it may be cut off", self._path)

    def _next(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        try:
            info = tar.next()
        except (tarfile.TarError, ValueError, EOFError, MemoryError) as error:
            self.damage = self.damage or f"is cut off or damaged ({error})"
            return None
        # With a size below zero older versions of tarfile go back, and round for ever.
        if info is not None and (info.size < 0 or tar.offset <= info.offset):
            self.damage = self.damage or f"is damaged at byte {info.offset:,}"
            return None
        return info


def _row(
    file: BinaryIO, name: str, members: dict[str, Member], image: str | None
) -> dict[str, Any] | None:
    """What the index says of a sample. None where it has no image."""
    suffix = next((s for s in ((image,) if image else IMAGES) if s in members), None)
    if suffix is None:
        return None
    kind = suffix.rpartition(".")[2]
    text = next((members[s] for s in TEXTS if s in members), None)
    label = next((members[s] for s in LABELS if s in members), None)
    row: dict[str, Any] = {
        "name": f"{name}.{suffix}",
        "image": members[suffix],
        "suffix": IMAGES.index(kind) if kind in IMAGES else 0,
        "text": text,
        "of_json": False,
        "label": None if label is None else _read(file, label, MAX_LABEL).decode(errors="replace"),
    }
    if "json" in members and (text is None or label is None):
        said = parse_json(_read(file, members["json"], MAX_JSON))
        if label is None:
            value = next((said[key] for key in JSON_LABELS if key in said), None)
            row["label"] = str(value) if type(value) in (int, str) else None
        if text is None and json_text(said):
            row |= {"text": members["json"], "of_json": True}
    return row


def _read(file: BinaryIO, member: Member, limit: int) -> bytes:
    """Its bytes; none where there are more than the limit."""
    return os.pread(file.fileno(), member.size, member.offset) if member.size <= limit else b""


def parse_json(data: bytes) -> dict[str, Any]:
    """The object that a .json member holds; empty where it holds anything else."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def json_text(said: dict[str, Any]) -> str | None:
    """The caption among what a .json member says."""
    return next((v for k in JSON_TEXTS if isinstance(v := said.get(k), str) and v.strip()), None)


def _packed(rows: list[dict[str, Any]]) -> TarIndex:
    names = [row["name"].encode(errors="surrogateescape") for row in rows]
    texts = [row["text"] or Member(0, -1) for row in rows]
    labels = [(row["label"] or "").strip() for row in rows]
    table = sorted(set(labels) - {""})
    number = {label: i for i, label in enumerate(table)} | {"": -1}
    return TarIndex(
        name_ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        image_offset=np.array([row["image"].offset for row in rows], dtype=np.int64),
        image_size=np.array([row["image"].size for row in rows], dtype=np.int64),
        suffix=np.array([row["suffix"] for row in rows], dtype=np.uint8),
        text_offset=np.array([text.offset for text in texts], dtype=np.int64),
        text_size=np.array([text.size for text in texts], dtype=np.int64),
        of_json=np.array([row["of_json"] for row in rows], dtype=bool),
        label=np.array([number[label] for label in labels], dtype=np.int32),
        names=np.frombuffer(b"".join(names), dtype=np.uint8),
        labels=np.array(table, dtype=np.str_),
        counts=np.array([len(rows)], dtype=np.int64),
    )
