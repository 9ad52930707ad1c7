"""An index of the samples in tar shards, made from their headers once and cached.

WebDataset's convention: members whose names agree up to the first dot of the last part, and which
follow each other, are one sample; the suffix after that dot gives the kind of each.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vitrail.atomic import parse_json
from vitrail.data.decode.formats import SUFFIXES
from vitrail.data.sources.cache import load_arrays, save_arrays
from vitrail.data.sources.formats.tar_walk import Member, Walk
from vitrail.data.sources.labels import encode_labels
from vitrail.data.sources.left_out import TarLeft
from vitrail.data.sources.spec import open_regular

VERSION = 2  # of the cached arrays
# Without the dot; a sample's image is the first of them.
_USUAL = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "npy")
IMAGES = tuple(dict.fromkeys((*_USUAL, *(suffix[1:] for suffix in SUFFIXES))))
LABELS = ("cls",)
TEXTS = ("txt", "text", "caption")
JSON_LABELS = ("label", "cls", "class")  # keys of a .json member
JSON_TEXTS = ("caption", "text", "txt")
MAX_LABEL = 2**8  # bytes of a .cls member; a class is a number or a name
MAX_JSON = 2**20  # bytes of a .json member
THREADS = 8  # waiting for the disk while headers are read


@dataclass(frozen=True)
class TarIndex:
    """The N samples of shards, in order.

    Attributes:
        name_ends: int64 [N], the end of each name in `names`.
        image_offset: int64 [N], the image's first byte.
        image_size: int64 [N], in bytes; -1 for an image that is cut off with its shard.
        suffix: uint8 [N], into IMAGES.
        text_offset: int64 [N], the caption's first byte.
        text_size: int64 [N], in bytes; -1 for no caption.
        of_json: bool [N], true if the caption is in a JSON member.
        label: int32 [N], into `labels`, -1 for no label.
        names: uint8, the names in UTF-8, one after another.
        labels: text, each once.
        counts: int64, the samples of each shard.
        left: text, what was left out of each shard (`left_out.TarLeft`), as JSON.
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
    left: np.ndarray

    def __len__(self) -> int:
        return len(self.name_ends)

    def name(self, index: int) -> str:
        start = int(self.name_ends[index - 1]) if index else 0
        return self.names[start : int(self.name_ends[index])].tobytes().decode(errors="replace")


def index_shards(paths: Sequence[Path], image: str | None) -> TarIndex:
    """Returns the samples of shards. Shards that have not changed are taken from the cache.

    Args:
        paths: of the shards.
        image: suffix of the image among a sample's members, after the first dot of its name; None:
            the first of IMAGES that is there.

    Raises:
        ValueError: a shard is no tar, or cannot be read.
    """
    key = repr((VERSION, image, [str(path.absolute()) for path in paths]))
    states = np.array([_state(path) for path in paths], dtype=np.int64).reshape(-1, 2)
    shards = _split(load_arrays("wds", key), states)
    missing = [i for i, shard in enumerate(shards) if shard is None]
    if not missing:
        return _joined([shard for shard in shards if shard is not None])
    with ThreadPoolExecutor(THREADS) as pool:
        for i, shard in zip(
            missing, pool.map(lambda i: index_shard(paths[i], image), missing), strict=True
        ):
            shards[i] = shard
    whole = _joined([shard for shard in shards if shard is not None])
    arrays = {field.name: getattr(whole, field.name) for field in fields(TarIndex)}
    save_arrays("wds", key, arrays | {"states": states})
    return whole


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    return status.st_size, status.st_mtime_ns


def _split(cached: dict[str, np.ndarray] | None, states: np.ndarray) -> list[TarIndex | None]:
    """Returns the cached index of each shard, None if it is missing or the shard has changed."""
    names = {field.name for field in fields(TarIndex)} | {"states"}
    if cached is None or set(cached) != names or cached["states"].shape != states.shape:
        return [None] * len(states)
    same = (cached.pop("states") == states).all(1)
    whole = TarIndex(**cached)
    ends = np.cumsum(whole.counts)
    return [
        _part(whole, shard, int(end - count), int(end)) if unchanged else None
        for shard, (unchanged, count, end) in enumerate(zip(same, whole.counts, ends, strict=True))
    ]


def _part(whole: TarIndex, shard: int, start: int, stop: int) -> TarIndex:
    rows = {f.name: getattr(whole, f.name)[start:stop] for f in fields(TarIndex)}
    first, last = (int(whole.name_ends[i - 1]) if i else 0 for i in (start, stop))
    rows["name_ends"] = rows["name_ends"] - first
    rows |= {
        "names": whole.names[first:last],
        "labels": whole.labels,
        "counts": np.array([stop - start]),
        "left": whole.left[shard : shard + 1],
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
    """Returns the samples of one shard, by its headers, labels and JSON members.

    Of a shard that is cut off or damaged, the samples before that remain. The last of them may not
    be whole, so it becomes one that cannot be read.
    """
    rows: list[dict[str, Any]] = []
    left = TarLeft(path.name)
    try:
        with open_regular(path) as file:
            walk = Walk(path, file, left)
            for name, members in groupby(walk, key=lambda found: found[0]):
                row = _row(file, name, _by_suffix(name, members, left), image, left)
                if row:
                    rows.append(row)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
    if walk.damage:
        lost = "" if not rows else f", and with it sample {rows[-1]['name']!r}"
        left.damage = f"{path} {walk.damage}: what follows is lost{lost}"
    if walk.damage and rows:
        rows[-1]["image"] = Member(rows[-1]["image"].offset, -1)
    return _packed(rows, left)


def _by_suffix(
    name: str, members: Iterable[tuple[str, str, Member]], left: TarLeft
) -> dict[str, Member]:
    found: dict[str, Member] = {}
    for _, suffix, member in members:
        if suffix in found:
            left.add("repeated", f"{name}.{suffix}")
        found[suffix] = member
    return found


def _row(
    file: BinaryIO, name: str, members: dict[str, Member], image: str | None, left: TarLeft
) -> dict[str, Any] | None:
    """Returns the row of the index for a sample, None for one without an image."""
    suffix = next((s for s in ((image,) if image else IMAGES) if s in members), None)
    if suffix is None:
        left.add_sample(name, members, (*LABELS, *TEXTS, "json"), IMAGES)
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
        "label": None,
    }
    if label is not None:
        if label.size > MAX_LABEL:
            left.add("long_label", f"{name}.cls")
        row["label"] = _read(file, label, MAX_LABEL).decode(errors="replace")
    if "json" in members and (text is None or label is None):
        content = json_object(_read(file, members["json"], MAX_JSON))
        if not content:
            left.add("json", f"{name}.json")
        if label is None:
            value = next((content[key] for key in JSON_LABELS if key in content), None)
            row["label"] = str(value) if type(value) in (int, str) else None
            if value is not None and row["label"] is None:
                left.add("json_label", f"{name}.json")
        if text is None and json_text(content):
            row |= {"text": members["json"], "of_json": True}
    return row


def _read(file: BinaryIO, member: Member, limit: int) -> bytes:
    """Returns a member's bytes, empty if there are more than the limit."""
    return os.pread(file.fileno(), member.size, member.offset) if member.size <= limit else b""


def json_object(data: bytes) -> dict[str, Any]:
    """Returns the object of a .json member, empty if it holds another value."""
    try:
        content = parse_json(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def json_text(content: dict[str, Any]) -> str | None:
    """Returns the caption in the object of a .json member."""
    return next((v for k in JSON_TEXTS if isinstance(v := content.get(k), str) and v.strip()), None)


def _packed(rows: list[dict[str, Any]], left: TarLeft) -> TarIndex:
    names = [row["name"].encode(errors="surrogateescape") for row in rows]
    texts = [row["text"] or Member(0, -1) for row in rows]
    labels, codes = encode_labels(row["label"] for row in rows)
    return TarIndex(
        name_ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        image_offset=np.array([row["image"].offset for row in rows], dtype=np.int64),
        image_size=np.array([row["image"].size for row in rows], dtype=np.int64),
        suffix=np.array([row["suffix"] for row in rows], dtype=np.uint8),
        text_offset=np.array([text.offset for text in texts], dtype=np.int64),
        text_size=np.array([text.size for text in texts], dtype=np.int64),
        of_json=np.array([row["of_json"] for row in rows], dtype=bool),
        label=codes.astype(np.int32),
        names=np.frombuffer(b"".join(names), dtype=np.uint8),
        labels=np.array(labels, dtype=np.str_),
        counts=np.array([len(rows)], dtype=np.int64),
        left=np.array([left.to_json()], dtype=np.str_),
    )
