"""What listings and indexes leave out: counted by kind, and put in sentences."""

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from vitrail.atomic import parse_json
from vitrail.data.decode.formats import MISSING

OUTPUTS = (b"checkpoints", b"export", b"figures")  # folders in that of a run
_OF_RUN = frozenset((b"checkpoints", b"metrics.jsonl", b"found.json", b"encoder.json"))
_MARKS = tuple(
    map(
        frozenset,
        (
            (b"evaluation.json", b"figures"),
            (b"encoder.json", b"encoder.safetensors"),
            (b"pack.json",),
        ),
    )
)

LISTED = 8  # suffixes or names in a sentence


@dataclass
class Left:
    """What a walk has left out, and the first of each kind.

    Attributes:
        by_suffix: number of files of each other suffix, in lower case ("" for none).
        first: the first file of each of these suffixes.
        outputs: folders that vitrail has written: runs, evaluations, packs, exports.
        again: folders that a link leads to and that were listed before.
        hidden: number of hidden files and folders.
    """

    by_suffix: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    hidden: int = 0

    def add_file(self, path: bytes) -> None:
        name = os.fsdecode(path)
        suffix = os.path.splitext(name)[1].lower()
        self.by_suffix[suffix] = self.by_suffix.get(suffix, 0) + 1
        self.first.setdefault(suffix, name)


def is_output(names: Collection[bytes]) -> bool:
    """Returns whether a folder with such entries is one that vitrail has written.

    A run has a config.json and what training adds to it; an evaluation elsewhere its numbers and
    figures; an exported encoder its weights and description; a pack its state.
    """
    run = b"config.json" in names and not _OF_RUN.isdisjoint(names)
    return run or any(marks.issubset(names) for marks in _MARKS)


def left_out_notes(left: Left, used: Collection[str] = ()) -> list[str]:
    """Returns a sentence for each kind of thing that a listing has left out.

    Args:
        left: by the listing.
        used: files that serve another purpose, as a table of labels.
    """
    counts = dict(left.by_suffix)
    for name in used:
        suffix = os.path.splitext(name)[1].lower()
        if counts.get(suffix):
            counts[suffix] -= 1
    notes = [_of_files({suffix: count for suffix, count in counts.items() if count}, left)]
    if left.outputs:
        notes.append(
            f"{plural(len(left.outputs), 'folder')} that vitrail has written (a run, evaluation, "
            f"pack or export) left out: {some(left.outputs)}"
        )
    if left.again:
        notes.append(
            f"{plural(len(left.again), 'link')} to a folder that is listed already left out: "
            f"{some(left.again)}"
        )
    return [note for note in notes if note]


def _of_files(counts: dict[str, int], left: Left) -> str:
    if not counts:
        return ""
    # kinds of images first, as those are missed
    order = sorted(counts, key=lambda suffix: (suffix not in MISSING, -counts[suffix], suffix))
    kinds = [f"{counts[suffix]} {suffix or 'without a suffix'}" for suffix in order]
    total = sum(counts.values())
    hidden = f"; and {left.hidden} hidden" if left.hidden else ""
    remedies = "".join(
        f"; {remedy}" for remedy in dict.fromkeys(MISSING[s] for s in order if s in MISSING)
    )
    return (
        f"{plural(total, 'file')} left out, whose suffix is of no image that can be read: "
        f"{some(kinds)} (the first: {left.first[order[0]]}){hidden}{remedies}"
    )


def plural(count: int, noun: str) -> str:
    """Returns "1 file" or "2 files"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def some(names: Iterable[str]) -> str:
    """Returns names after commas, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


SHOWN = 120  # characters of a name

# A sentence on the members of each kind, after their number; {} stands for the first.
KINDS = {
    "dotted": "images are left out: their names have a dot before that of the suffix, and the name "
    "of a sample ends at the first dot (the first: {}); rename them, or give the option image=EXT",
    "no_image": "samples without an image are left out (the first: {})",
    "labels": "labels or captions do not stand beside their image and are left out (the first: "
    "{}): the members of a sample must follow each other in the shard",
    "nameless": "members without a suffix are left out (the first: {})",
    "special": "members are links or no plain files and are left out (the first: {})",
    "repeated": "members repeat a name of their sample, whose last one counts (the first: {})",
    "long_label": "labels are longer than 256 bytes and are left out (the first: {})",
    "json": "JSON members are no object or longer than 1 MiB and are left out (the first: {})",
    "json_label": "labels in JSON members are neither text nor whole numbers and are left out (the "
    "first: {})",
}
UNREAD = "unread"  # and the suffix: images of a format that cannot be read here


@dataclass
class TarLeft:
    """What was left out of one shard.

    Attributes:
        shard: its name.
        counts: number of each kind.
        first: the first of each kind.
        damage: a description of the shard's damage, "" for none.
    """

    shard: str
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    damage: str = ""

    def add(self, kind: str, name: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.first.setdefault(kind, f"{self.shard}/{name}"[:SHOWN])

    def add_sample(
        self, name: str, suffixes: Collection[str], beside: Collection[str], images: Collection[str]
    ) -> None:
        """Adds a sample without an image, by the best guess of the reason.

        Args:
            name: of the sample.
            suffixes: of its members.
            beside: suffixes of labels, captions and descriptions.
            images: suffixes of images.
        """
        for suffix in suffixes:
            last = suffix.rpartition(".")[2]
            if f".{last}" in MISSING:
                self.add(f"{UNREAD}.{last}", f"{name}.{suffix}")
                return
            if last in images:
                self.add("dotted", f"{name}.{suffix}")
                return
        kind = "labels" if set(suffixes) <= set(beside) else "no_image"
        self.add(kind, f"{name}.{next(iter(suffixes))}")

    def to_json(self) -> str:
        return json.dumps(vars(self)) if self.counts or self.damage else ""


def tar_notes(left: Iterable[str]) -> list[str]:
    """Returns a sentence for each kind of thing that was left out of shards (`TarLeft.to_json`)."""
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    damage = []
    for text in filter(None, left):
        shard = TarLeft(**parse_json(text))
        damage += [shard.damage] if shard.damage else []
        for kind, count in shard.counts.items():
            counts[kind] = counts.get(kind, 0) + count
            first.setdefault(kind, shard.first[kind])
    return damage + [_sentence(kind, count, first[kind]) for kind, count in counts.items()]


def _sentence(kind: str, count: int, first: str) -> str:
    if kind in KINDS:
        return f"{count:,} {KINDS[kind].format(repr(first))}"
    suffix = "." + kind.rpartition(".")[2]
    return f"{count:,} {suffix} images are left out (the first: {first!r}); {MISSING[suffix]}"
