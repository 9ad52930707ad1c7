"""Which shard files a pattern names, and which of them are for training and which for testing."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from vitrail.data.contract import NoTestSplitError

MAX_PATTERNS = 1_000_000  # of one pattern with braces, against {0..999999999}

REMOTE = re.compile(r"(?:^|/)(pipe|https?|s3|gs|gcs|az|hdfs|ftp|hf|file|ssh):", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")

# A word of a file's name, as in train-000.tar or imagenet1k-validation-07.tar.
SPLIT_WORD = re.compile(r"(?:^|[-_.])(train|test|validation|val)(?=[-_.\d]|$)", re.IGNORECASE)
TEST_WORDS = ("test", "val", "validation")  # the first that there is


class Shards(NamedTuple):
    """Of each split, in order. test: empty where there is none."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]

    def of(self, split: Literal["train", "test"], spec: str) -> tuple[Path, ...]:
        """NoTestSplitError where the split is not there."""
        if split == "test" and not self.test:
            raise NoTestSplitError(
                f"{spec} has no test split: give its shards by the option test=PATTERN, name them "
                "train-... and test-... (or val-...), or hold samples out with "
                "vitrail.data.subset.hold_out"
            )
        return self.train if split == "train" else self.test


def find_shards(kind: str, pattern: str, test_pattern: str | None, suffix: str) -> Shards:
    """The shards of a folder, of a pattern or of two.

    A pattern may hold braces, `{000..099}` (numbers, zeros in front kept) and `{a,b}`, and the
    wildcards *, ? and [...]. A folder stands for the shards in it, or for those in its subfolders
    `train` and `test` (or `val`, `validation`), if it has both. Without a pattern for testing,
    shards that have one of these words in their names are of that split, if there are both kinds.

    Args:
        kind: of the source. suffix: of shards in a folder.
        test_pattern: relative to the folder that `pattern` lies in, unless absolute.

    Raises:
        ValueError: nothing is there, a shard that braces name is missing, or some shards' names
            tell a split and others' do not.
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
    """The files that a pattern names, each once, in the order of their names in it."""
    if not pattern:
        raise ValueError(f"{kind}: names no shards; write {kind}:FOLDER or {kind}:PATTERN")
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = _in_folder(path, suffix)
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
    """`a{0..2}.tar` -> a0.tar, a1.tar, a2.tar; `{a,b}` -> a, b; of several, all combinations.

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


def _in_folder(root: Path, suffix: str) -> list[Path]:
    """Its shards; where it has none, those of its subfolders that are called as splits are."""
    here = _list(root, suffix)
    subfolders = [root / word for word in ("train", *TEST_WORDS)] + [root / "data"]
    return here or [path for folder in subfolders for path in _list(folder, suffix)]


def _list(folder: Path, suffix: str) -> list[Path]:
    if not folder.is_dir():
        return []
    names = sorted(os.listdir(folder), key=os.fsencode)
    return [folder / n for n in names if n.lower().endswith(suffix) and not n.startswith(".")]


def _by_name(kind: str, pattern: str, paths: list[Path]) -> Shards:
    words = [_word(path) for path in paths]
    test_word = next((word for word in TEST_WORDS if word in words), None)
    if "train" not in words or test_word is None:
        return Shards(tuple(paths), ())
    if None in words:
        odd = paths[words.index(None)]
        raise ValueError(
            f"{kind}:{pattern}: other shards are named after train and {test_word}, but "
            f"{odd.name} is not; name the shards by two patterns, with test=PATTERN"
        )
    train, test = (
        tuple(p for p, word in zip(paths, words, strict=True) if word == wanted)
        for wanted in ("train", test_word)
    )
    return Shards(train, test)


def _word(path: Path) -> str | None:
    found = SPLIT_WORD.search(path.name.rpartition(".")[0])
    if found:
        return found[1].lower()
    return path.parent.name if path.parent.name in ("train", *TEST_WORDS) else None
