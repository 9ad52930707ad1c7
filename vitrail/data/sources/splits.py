"""The words for train, validation and test data, in names of folders, files, arrays and columns."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal

from vitrail.data.contract import NoTestSplitError
from vitrail.data.sources.formats.listing import is_folder

Part = Literal["train", "test", "val"]

# In any case. The first of a line is the usual word.
WORDS: dict[Part, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval"),
    "val": ("val", "valid", "validation", "dev"),
}

# Parts that can be the split of a source, in order of preference: a data set's test data, or its
# validation data if it has no other. "val" stands for validation data as such (`has_parts`).
PARTS: dict[str, tuple[Part, ...]] = {
    "train": ("train",),
    "test": ("test", "val"),
    "val": ("val",),
}


class ForeignClassesError(ValueError):
    """The test data have no class of the training data: their subfolders are no classes."""


def part_of(word: object) -> Part | None:
    """Returns the part that a folder's name or a column's value stands for, None for another word.

    " Training" -> "train", "DEV" -> "val".
    """
    word = str(word).strip().lower()
    return next((part for part, words in WORDS.items() if word in words), None)


def choose_part(present: Iterable[Part | None], split: str) -> Part | None:
    """Returns the part among those present that is the split "train" or "test"; None if absent."""
    present = set(present)
    return next((part for part in PARTS[split] if part in present), None)


def choose_name(names: Sequence[str], split: str) -> str | None:
    """Returns the name among others that stands for the split "train" or "test", None if absent.

    Of several synonyms it is the first in the order of WORDS.
    """
    words = [word for part in PARTS[split] for word in WORDS[part]]
    found = {name.lower(): name for name in reversed(names)}
    return next((found[word] for word in words if word in found), None)


def part_folders(root: Path) -> dict[Part, list[str]]:
    """Returns the names of the subfolders that stand for each part, in the order of WORDS."""
    found: dict[Part, list[str]] = {part: [] for part in WORDS}
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                part = part_of(entry.name)
                if part is not None and is_folder(entry):
                    found[part].append(entry.name)
    except OSError:  # the caller lists the folder itself and reports it
        return {}
    return {part: sorted(names) for part, names in found.items() if names}


def split_folders(root: Path) -> dict[str, str]:
    """Returns the names of the subfolders that hold the splits of PARTS, if any.

    Raises:
        ValueError: two subfolders stand for the same split.
    """
    found = part_folders(root)
    chosen = {}
    for split in PARTS:
        part = choose_part(found, split)
        if part is None or (split == "val" and len(found[part]) > 1):
            continue
        if len(found[part]) > 1:
            both = " and ".join(map(repr, found[part][:2]))
            raise ValueError(
                f"the subfolders {both} of {root} both stand for {part!r}; rename or merge one of "
                "them"
            )
        chosen[split] = found[part][0]
    return chosen


def folder_notes(root: Path, read: Collection[str]) -> list[str]:
    """Returns a sentence on subfolders beside those of known splits.

    Args:
        root: the folder.
        read: the subfolders that are read as splits; empty if the folder is taken as a whole.
    """
    with os.scandir(root) as entries:
        names = sorted(e.name for e in entries if is_folder(e) and not e.name.startswith("."))
    known = [name for name in names if part_of(name) is not None]
    others = [name for name in names if name not in (read or known)]
    if not known or not others:
        return []
    listed = ", ".join(map(repr, others[:8])) + (f" and {len(others) - 8} more" * (len(others) > 8))
    if read:
        are = "folder is" if len(others) == 1 else "folders are"
        return [f"beside {' and '.join(map(repr, read))}, the {are} not read: {listed}"]
    return [
        f"{' and '.join(map(repr, known))} has the name of a split and {listed} has not, so the "
        f"folder is not split and all of it is read (splits are called {', '.join(_words())})"
    ]


def part_notes(parts: Iterable[Part | None], what: str) -> list[str]:
    """Returns a sentence on the samples or files of parts that no split reads.

    Args:
        parts: of each sample or file.
        what: these are, in the plural.
    """
    counts = Counter(parts)
    read = [choose_part(counts, split) for split in ("train", "test")]
    return [
        f"{count} {what} of {part!r} left out: {read[1]!r} is the test split"
        for part, count in counts.items()
        if part is not None and part not in read
    ]


def _words() -> list[str]:
    return [word for words in WORDS.values() for word in words]


def no_test_split(spec: str, lack: str, remedy: str = "") -> NoTestSplitError:
    """Returns the error of a source that has no test split.

    Args:
        spec: of the source.
        lack: the reason, such as "there is no val".
        remedy: what to add to the data, such as "add it".
    """
    other = f"{remedy}, or " if remedy else ""
    return NoTestSplitError(
        f"{spec} has no test split: {lack}; {other}hold samples out with "
        "vitrail.data.subset.hold_out"
    )
