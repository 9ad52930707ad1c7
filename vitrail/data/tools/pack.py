"""Packing: writes a source's images, resized, into tar shards, for slow storage.

The format is WebDataset's: `wds:DIR`, the `webdataset` package and any tar program read it.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from vitrail.atomic import locked, parse_json, write_atomically
from vitrail.data.contract import NoTestSplitError, Source
from vitrail.data.loading.loader import read_images
from vitrail.data.loading.order import default_order
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.loading.reader import CHUNK
from vitrail.data.sources.formats.wds import CLASSES_FILE, PACK_FILE
from vitrail.data.sources.registry import open_source
from vitrail.data.subset import Subset
from vitrail.data.tools.encode import Encoded, Packing
from vitrail.data.tools.progress import Progress
from vitrail.data.tools.tar_writer import TarWriter

logger = logging.getLogger(__name__)

VERSION = 1
MB = 10**6
LOCK = ".lock"  # in the folder
LISTED = 10  # bad files in the summary
SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


@dataclass
class Split:
    """The progress of writing a split.

    Attributes:
        fingerprint: of the source.
        samples: number of samples in the source.
        next: position of the first sample that is not written yet.
        shards: (name, samples, bytes) of each shard that is complete.
        bad: id -> reason of the samples that are left out.
    """

    fingerprint: str
    samples: int
    next: int = 0
    shards: list[tuple[str, int, int]] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)

    @property
    def written(self) -> int:
        """The number of samples in shards."""
        return sum(samples for _, samples, _ in self.shards)

    @property
    def size(self) -> int:
        """The bytes of all shards."""
        return sum(size for _, _, size in self.shards)


@dataclass
class State:
    """A pack and its progress.

    Attributes:
        out: the folder.
        spec: of the source.
        packing: the size and format of the images.
        splits: the progress of each split.
    """

    out: Path
    spec: str
    packing: Packing
    splits: dict[str, Split]

    def save(self, complete: bool) -> None:
        """Writes pack.json; complete: all splits are written."""
        content = {
            "version": VERSION,
            "complete": complete,
            "spec": self.spec,
            "packing": asdict(self.packing),
            "splits": {name: asdict(split) for name, split in self.splits.items()},
        }
        write_atomically(self.out / PACK_FILE, json.dumps(content, indent=1))


def pack(
    spec: str, out: Path, packing: Packing, workers: int = 0, channels: int | None = None
) -> dict[str, Split]:
    """Writes a source's splits as shards train-000000.tar, ..., test-000000.tar, ...

    Beside them are the class names in classes.json, and the source, packing and shards in
    pack.json. The training split is written in a random order, the same every time, so any few
    shards hold all kinds of images; the test split in its own. A sample is `NUMBER_name.jpg` (.png,
    .npy), with `.cls` (the number of its label) if it has a label, and `.txt` if it has a caption.
    The same source gives the same bytes. A pack that was stopped continues after its last complete
    shard.

    Args:
        spec: of the source.
        out: a folder that is empty or does not exist, or that holds a part of this pack.
        packing: the size and format of the images.
        workers: number of processes that decode, resize and encode; 0: this one.
        channels: as `open_source`.

    Returns:
        the splits as they were written, by name.

    Raises:
        ValueError: the folder holds something else, or another pack; or no image can be read.
        OSError: the disk is full, or failed.
    """
    sources = _open_splits(spec, channels)
    out.mkdir(parents=True, exist_ok=True)
    with _lock_folder(out):
        state = _begin(State(out, spec, packing, {}), sources)
        classes = sources["train"].classes
        if classes is not None:
            write_atomically(out / CLASSES_FILE, json.dumps(list(classes)))
        for name, source in sources.items():
            _pack_split(state, name, source, workers)
        train = state.splits["train"]
        if not train.written:
            id, reason = next(iter(train.bad.items()))
            raise ValueError(f"{spec}: no image can be read (the first: {id}: {reason})")
        state.save(complete=True)
    return state.splits


def summary(out: Path, splits: dict[str, Split]) -> list[str]:
    """Returns lines on the shards, the samples left out and why, and how to read the pack."""
    lines = []
    for name, split in splits.items():
        shards = f"{len(split.shards)} shard{'' if len(split.shards) == 1 else 's'}"
        lines.append(
            f"{name}: {split.written:,} images in {shards}, {split.size / MB:,.1f} MB"
            + (f"; {len(split.bad):,} left out:" if split.bad else "")
        )
        listed = list(split.bad.items())[:LISTED]
        lines += [f"  {json.dumps(id)}: {reason}" for id, reason in listed]
        if len(split.bad) > LISTED:
            lines.append(f"  ... and {len(split.bad) - LISTED:,} more, in {out / PACK_FILE}")
    return [*lines, f"read it as wds:{out}"]


def _open_splits(spec: str, channels: int | None) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for split in SPLITS:
        try:
            sources[split] = open_source(spec, split, channels)
        except NoTestSplitError:
            logger.info("%s has no test split; all is packed for training", spec)
    return sources


@contextmanager
def _lock_folder(out: Path) -> Iterator[None]:
    """Locks the folder; raises ValueError if another process packs into it."""
    with locked(out / LOCK) as free:
        if not free:
            raise ValueError(f"{out} is being packed into by another process")
        try:
            yield
        finally:
            (out / LOCK).unlink(missing_ok=True)  # a pack holds nothing but shards and their lists


def _begin(state: State, sources: dict[str, Source]) -> State:
    """Returns the state with the progress found in its folder, after writing it to an empty one.

    Raises:
        ValueError: the folder holds something else.
    """
    out = state.out
    fresh = {k: Split(source.fingerprint(), len(source)) for k, source in sources.items()}
    if all(path.name == LOCK or path.name.endswith(".writing") for path in out.iterdir()):
        state.splits.update(fresh)
        state.save(complete=False)
        return state
    try:
        before = parse_json((out / PACK_FILE).read_bytes())
        version, packing = before["version"], dict(before["packing"])
        splits = {
            name: Split(**split | {"shards": [tuple(shard) for shard in split["shards"]]})
            for name, split in before["splits"].items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{out} is not empty and holds no pack; choose another folder") from error
    changed = [
        f"{name} was {packing.get(name)!r} and is {value!r}"
        for name, value in asdict(state.packing).items()
        if packing.get(name) != value
    ]
    if version != VERSION:
        changed.append(f"it was written by another version ({version}, not {VERSION})")
    was, now = ({k: split.fingerprint for k, split in of.items()} for of in (splits, fresh))
    if was != now:
        made_of = before.get("spec")
        changed.append(f"the images of {state.spec} are not those that it is made of ({made_of})")
    changed += [
        f"its shard {shard} is not there any more, or not as it was written"
        for split in splits.values()
        for shard, _, size in split.shards
        if not _is_of_size(out / shard, size)
    ]
    if changed:
        raise ValueError(
            f"{out} holds another pack: {'; '.join(changed)}; choose another folder, or remove it"
        )
    state.splits.update(splits)
    return state


def _is_of_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _pack_split(state: State, name: str, source: Source, workers: int) -> None:
    """Writes the rest of a split, a shard at a time."""
    split, packing = state.splits[name], state.packing
    suffix = packing.suffix(source)
    if name == "train":  # an epoch's order, by blocks if the source has some
        order = default_order(source, len(source), seed=0).indices(0).tolist()
    else:
        order = list(range(len(source)))
    quarantine = Quarantine(None, len(source), max_fraction=1.0)
    for id, reason in split.bad.items():
        quarantine.add(id, reason)
    rows = [range(i, min(i + CHUNK, len(order))) for i in range(split.next, len(order), CHUNK)]
    encoded = Subset(Encoded(source, packing), order)

    def finish(shard: TarWriter, following: int) -> None:
        """Closes the shard, which sample `following` comes after, and saves the progress."""
        split.shards.append((shard.path.name, shard.samples, shard.close()))
        split.next, split.bad = following, dict(quarantine.entries)
        state.save(complete=False)

    with Progress(name, len(order), split.next) as progress, TarWriter.none() as shard:
        for position, image in _one_by_one(read_images(encoded, quarantine, workers, rows)):
            members = _members(source, order[position], suffix, image)
            if shard.samples and shard.size_with(members) > packing.shard_mb * MB:
                finish(shard, position)
            if not shard.is_open:
                shard.open(state.out / f"{name}-{len(split.shards):06d}.tar")
            shard.add(_key(position, source.id(order[position])), members)
            progress.at(position + 1, len(quarantine.entries), split.size + shard.size)
        if shard.is_open:
            finish(shard, len(order))
        split.next, split.bad = len(order), dict(quarantine.entries)
        progress.at(len(order), len(quarantine.entries), split.size)


def _one_by_one(
    read: Iterable[tuple[list[int], list[Tensor]]],
) -> Iterator[tuple[int, Tensor]]:
    """Yields (position, image) of each image of the chunks."""
    for positions, images in read:
        yield from zip(positions, images, strict=True)


def _members(source: Source, index: int, suffix: str, image: Tensor) -> dict[str, bytes]:
    """Returns a sample's files by suffix: the image, and its label and caption if any."""
    label, text = source.label(index), source.text(index)
    members = {suffix: image.numpy().tobytes()}
    if label is not None:
        members["cls"] = str(label).encode()
    if text is not None:
        members["txt"] = text.encode()
    return members


def _key(position: int, id: str) -> str:
    """Returns a sample's key: a unique number, and its name in letters that every system allows."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", os.path.splitext(os.path.basename(id))[0])
    return f"{position:09d}_{stem[:60]}"
