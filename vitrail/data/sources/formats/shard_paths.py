"""The shard files that a pattern stands for, divided into training and testing."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vitrail.data.contract import Split
from vitrail.data.sources.spec import errors_of
from vitrail.data.sources.splits import (
    WORDS,
    Part,
    choose_part,
    no_test_split,
    part_folders,
    part_notes,
    part_of,
    split_folders,
)

MAX_PATTERNS = 1_000_000  # of one pattern with braces, against {0..999999999}

REMOTE = re.compile(r"(?:^|/)(pipe|https?|s3|gs|gcs|az|hdfs|ftp|hf|file|ssh):", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")

# A word of a file's name, as in train-000.tar or imagenet1k-validation-07.tar.
_ANY_WORD = "|".join(word for words in WORDS.values() for word in words)
SPLIT_WORD = re.compile(rf"(?:^|[-_.])({_ANY_WORD})(?=[-_.\d]|$)", re.IGNORECASE)


class Shards(NamedTuple):
    """The shards of each split, in order.

    Attributes:
        train: for training.
        test: for testing, empty without a test split.
        val: for validation, if that is not the test split.
        notes: on shards that are not read.
    """

    train: tuple[Path, ...]
    test: tuple[Path, ...]
    val: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, split: Split, spec: str) -> tuple[Path, ...]:
        """Returns the shards of a split. NoTestSplitError for a missing test split."""
        if split == "test" and not self.test:
            raise no_test_split(
                spec,
                "its shards are not divided",
                "give its shards by the option test=PATTERN, name them train-... and test-... (or "
                "val-...)",
            )
        if split == "val" and not self.val:
            raise no_test_split(spec, "no shards are for validation")
        return {"train": self.train, "test": self.test, "val": self.val}[split]


def find_shards(kind: str, pattern: str, test_pattern: str | None, suffix: str) -> Shards:
    """Returns the shards of a folder, of a pattern or of two.

    A pattern may hold braces, `{000..099}` (numbers, with leading zeros) and `{a,b}`, and the
    wildcards *, ? and [...]. A folder stands for the shards in it, or for those in its subfolders
    for training and testing (`splits.WORDS`). Without a pattern for testing, shards that have one
    of these words in their names are of that split, if there are both kinds.

    Args:
        kind: of the source, for messages.
        pattern: of the training shards, or of all.
        test_pattern: of the test shards; relative to the folder of `pattern`, unless absolute.
        suffix: of shards in a folder.

    Raises:
        ValueError: nothing is there, a shard that braces name is missing, or some shards' names
            have a word for a split and others have none.
    """
    train = _expand(kind, pattern, suffix)
    if test_pattern is not None:
        root = Path(pattern).expanduser()
        root = root if root.is_dir() else root.parent
        test = _expand(kind, str(root / Path(test_pattern).expanduser()), suffix)
        if shared := set(train) & set(test):
            raise ValueError(
                f"{kind}:{pattern}: {min(shared)} is both for training and, by "
                f"test={test_pattern}, for testing; make the patterns exclude each other"
            )
        return Shards(tuple(train), tuple(test))
    return _by_name(kind, pattern, train)


def _expand(kind: str, pattern: str, suffix: str) -> list[Path]:
    """Returns the files that a pattern names, each once, in the order of the pattern."""
    if not pattern:
        raise ValueError(f"{kind}: names no shards; write {kind}:FOLDER or {kind}:PATTERN")
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = _in_folder(kind, path, suffix)
        if not found:
            raise ValueError(f"{kind}:{pattern}: no shards in {path}; their names end in {suffix}")
        return found
    if path.exists():  # whatever its name holds
        return [path]
    paths = []
    for name in expand_braces(str(path)):
        matches = sorted(glob.glob(name), key=os.fsencode) if glob.has_magic(name) else [name]
        if not matches or not os.path.exists(matches[0]):
            raise ValueError(
                f"{kind}:{pattern}: there is no {'match of' if glob.has_magic(name) else 'file'} "
                f"{name}; check the pattern"
            )
        paths += matches
    return [Path(name) for name in dict.fromkeys(paths)]


def expand_braces(pattern: str) -> list[str]:
    """Expands `a{0..2}.tar` to a0.tar, a1.tar, a2.tar, and `{a,b}` to a, b, in all combinations.

    Raises:
        ValueError: more than MAX_PATTERNS of them, or a range that runs backwards.
    """
    done = [""]
    position = 0
    for braces in _BRACES.finditer(pattern):
        before, position = pattern[position : braces.start()], braces.end()
        choices = _choices(pattern, braces[1])
        if len(done) * len(choices) > MAX_PATTERNS:
            raise ValueError(f"{pattern} names more than {MAX_PATTERNS:,} files; give fewer")
        done = [start + before + choice for start in done for choice in choices]
    return [start + pattern[position:] for start in done]


def _choices(pattern: str, inside: str) -> Sequence[str]:
    numbers = _NUMBERS.fullmatch(inside)
    if not numbers:
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not first <= last < first + MAX_PATTERNS:
        raise ValueError(
            f"{pattern}: {{{inside}}} must run upwards over at most {MAX_PATTERNS:,} numbers"
        )
    width = len(numbers[1])
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def _in_folder(kind: str, root: Path, suffix: str) -> list[Path]:
    """Returns the shards of a folder, or, if it has none, those of its subfolders for splits."""
    here = _list(root, suffix)
    if here:
        return here
    with errors_of(f"{kind}:{root}"):
        split_folders(root)  # refuses two for one split
    subfolders = [name for names in part_folders(root).values() for name in names]
    return [path for name in (*subfolders, "data") for path in _list(root / name, suffix)]


def _list(folder: Path, suffix: str) -> list[Path]:
    if not folder.is_dir():
        return []
    names = sorted(os.listdir(folder), key=os.fsencode)
    return [folder / n for n in names if n.lower().endswith(suffix) and not n.startswith(".")]


def _by_name(kind: str, pattern: str, paths: list[Path]) -> Shards:
    parts = [_part(path) for path in paths]
    test_part = choose_part(parts, "test")
    if "train" not in parts or test_part is None:
        return Shards(tuple(paths), (), notes=tuple(_unsplit(paths, parts)))
    if None in parts:
        odd = paths[parts.index(None)]
        raise ValueError(
            f"{kind}:{pattern}: other shards are named after train and {test_part}, but "
            f"{odd.name} is not; name the shards by two patterns, with test=PATTERN"
        )
    train, test, val = (
        tuple(p for p, part in zip(paths, parts, strict=True) if part == wanted)
        for wanted in ("train", test_part, "val")
    )
    return Shards(train, test, val, tuple(part_notes(parts, "shards")))


def _unsplit(paths: list[Path], parts: list[Part | None]) -> list[str]:
    """Returns a sentence on shards of which only some are named after a split."""
    known = next((part for part in parts if part is not None), None)
    if known is None or all(part == known for part in parts):
        return []
    odd = next(path for path, part in zip(paths, parts, strict=True) if part != known)
    return [
        f"some shards are named after {known!r} and others, as {odd.name!r}, are not: all are read "
        "together; name the shards for tests by test=PATTERN"
    ]


def _part(path: Path) -> Part | None:
    found = SPLIT_WORD.search(path.name.rpartition(".")[0])
    return part_of(found[1] if found else path.parent.name)
