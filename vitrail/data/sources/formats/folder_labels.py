"""Labels of a folder's images by a table: a path, a class and, where it is there, a split a row."""

import logging
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from vitrail.data.sources.formats.columns import (
    COLUMNS,
    choose_rows,
    find_columns,
    number_labels,
    texts,
)
from vitrail.data.sources.formats.listing import Paths
from vitrail.data.sources.formats.read_table import read_table

logger = logging.getLogger(__name__)

KINDS = ("image", "label", "split")
NEEDED = ("image", "label")


class Chosen(NamedTuple):
    """A split of a folder. positions: of its images in the listing, None for all."""

    positions: Int[np.ndarray, " N"] | None
    labels: Int32[np.ndarray, " N"]  # -1 for none


@dataclass(frozen=True)
class LabelTable:
    """files: as written, made plain (`./a//b.jpg` is `a/b.jpg`). labels: of each, -1 for none.

    splits: the column, None where there is none. classes: those of the whole table.
    """

    name: str  # for messages
    files: list[str]
    labels: list[int]
    classes: list[str]
    splits: list | None

    def choose(self, paths: Paths, inside: str, split: str) -> Chosen:
        """The images of a split, and their labels.

        With a column of splits an image without a row belongs to "train". Without one, `paths` are
        of the split already, and all are taken.

        Args:
            paths: of the folder, or of its subfolder `inside`.

        Raises:
            ValueError: no row names an image, or two rows of an image say different things.
            NoTestSplitError: "test", where there are splits and none of them is it.
        """
        places = {path: place for place, path in enumerate(paths.raws())}
        rows = [places.get(os.fsencode(file), -1) for file in self.files]
        self._tell_missing(rows, paths, inside)
        labels = self._per_image(rows, self.labels, len(paths), "label")
        if self.splits is None:
            return Chosen(None, labels)
        wanted = set(choose_rows(self.splits, split, len(self.files)))
        is_wanted = [row in wanted for row in range(len(rows))]
        states = self._per_image(rows, is_wanted, len(paths), "split")
        taken = (states != 0) if split == "train" else (states == 1)
        positions = np.flatnonzero(taken)
        return Chosen(positions, labels[positions])

    def _per_image(
        self, rows: list[int], values: list[int] | list[bool], n_images: int, kind: str
    ) -> Int32[np.ndarray, " N"]:
        """The values of the rows at their images, -1 where an image has no row."""
        per_image = np.full(n_images, -1, np.int32)
        seen = np.zeros(n_images, bool)
        for row, (place, value) in enumerate(zip(rows, values, strict=True)):
            if place < 0:
                continue
            if seen[place] and per_image[place] != value:
                raise ValueError(
                    f"its row {row + 1} gives {self.files[row]!r} another {kind} than a row "
                    "before it; leave one of them out"
                )
            per_image[place], seen[place] = value, True
        return per_image

    def _tell_missing(self, rows: list[int], paths: Paths, inside: str) -> None:
        """A line in the log on rows that name no image; an error if none does."""
        prefix = f"{inside}/" if inside else ""
        missing = [
            file
            for file, place in zip(self.files, rows, strict=True)
            if place < 0 and file.startswith(prefix)
        ]
        if all(place < 0 for place in rows):
            raise ValueError(
                f"none of its {len(rows)} rows names an image of the folder: the first is "
                f"{self.files[0]!r}, and an image is called {paths[0]!r}; paths must be relative "
                "to the folder, with forward slashes"
            )
        if missing:
            logger.warning(
                "%s: %d of %d rows name no image of the folder and are left out (the first: %r)",
                self.name,
                len(missing),
                len(rows),
                missing[0],
            )


def read_labels(root: Path, name: str) -> LabelTable:
    """Reads `name`, relative to `root` unless it is absolute, as `tables.read_table` does.

    Columns are found by name, in whatever case (`columns.COLUMNS`): an image's path relative to
    `root`; its label, text or a whole number, blank for none; and maybe a split, as of `pairs:`.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    path = root / Path(name).expanduser()
    try:
        table = read_table(path, {word for kind in KINDS for word in COLUMNS[kind]})
        columns = find_columns(table, NEEDED, KINDS)
        labels, classes = number_labels(columns["label"])
        files = [posixpath.normpath(file) for file in texts(columns["image"], "image")]
    except OSError as error:
        raise ValueError(f"labels={name}: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"labels={name}: {error}") from error
    if labels is None or classes is None:
        raise ValueError(f"labels={name}: none of its rows has a label")
    return LabelTable(f"labels={name}", files, labels, classes, columns.get("split"))
