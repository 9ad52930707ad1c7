"""Labels of a folder's images by a table: each row has a path, a class and, if any, a split."""

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from vitrail.data.contract import Split
from vitrail.data.sources.formats.columns import choose_rows, number_labels, read_columns, texts
from vitrail.data.sources.formats.listing import Paths
from vitrail.data.sources.labels import nfc
from vitrail.data.sources.spec import errors_of

KINDS = ("image", "label", "split")
NEEDED = ("image", "label")


class Chosen(NamedTuple):
    """A split of a folder.

    Attributes:
        positions: int [N], of its images in the listing, None for all.
        labels: int32 [N], class numbers, -1 for no label.
    """

    positions: Int[np.ndarray, " N"] | None
    labels: Int32[np.ndarray, " N"]


@dataclass(frozen=True)
class LabelTable:
    """A table of labels.

    Attributes:
        name: of the table, for messages.
        files: paths in normal form (`./a//b.jpg` is `a/b.jpg`).
        labels: class number of each, -1 for no label.
        classes: names of the classes of the whole table.
        splits: column of splits, None for a table without.
    """

    name: str
    files: list[str]
    labels: list[int]
    classes: list[str]
    splits: list | None

    def choose(
        self, spec: str, paths: Paths, inside: str, split: Split, notes: list[str]
    ) -> Chosen:
        """Returns the images of a split, and their labels.

        With a column of splits an image without a row belongs to "train". Without one, `paths` are
        of the split already, and all are taken.

        Args:
            spec: of the source, for messages.
            paths: of the folder, or of its subfolder `inside`.
            inside: the subfolder, "" for none.
            split: "train" or "test".
            notes: gets a sentence on rows that name no image.

        Raises:
            ValueError: no row names an image, or two rows of an image differ.
            NoTestSplitError: "test" of a table with splits that has no such row.
        """
        places = {path: place for place, path in enumerate(paths.raws())}
        rows = [places.get(os.fsencode(file), -1) for file in self.files]
        if -1 in rows:
            self._add_other_forms(rows, paths)
        self._note_missing(rows, paths, inside, notes)
        labels = self._per_image(rows, self.labels, len(paths), "label")
        if self.splits is None:
            return Chosen(None, labels)
        wanted = set(choose_rows(spec, self.splits, split, len(self.files)))
        is_wanted = [row in wanted for row in range(len(rows))]
        states = self._per_image(rows, is_wanted, len(paths), "split")
        taken = (states != 0) if split == "train" else (states == 1)
        positions = np.flatnonzero(taken)
        return Chosen(positions, labels[positions])

    def _add_other_forms(self, rows: list[int], paths: Paths) -> None:
        """Finds images whose names are in the other Unicode form, as macOS writes them."""
        composed = {nfc(path): place for place, path in enumerate(paths) if not path.isascii()}
        for row, (file, place) in enumerate(zip(self.files, rows, strict=True)):
            if place < 0 and not file.isascii():
                rows[row] = composed.get(nfc(file), -1)

    def _per_image(
        self, rows: list[int], values: list[int] | list[bool], n_images: int, kind: str
    ) -> Int32[np.ndarray, " N"]:
        """Returns the values of the rows at their images, -1 for an image without a row."""
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

    def _note_missing(self, rows: list[int], paths: Paths, inside: str, notes: list[str]) -> None:
        """Notes the number of rows that name no image. ValueError if no row names one."""
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
            notes.append(
                f"{self.name}: {len(missing)} of {len(rows)} rows name no image of the folder and "
                f"are left out (the first: {missing[0]!r})"
            )


def read_labels(root: Path, name: str) -> LabelTable:
    """Reads a table of labels, as `read_table.read_table` does.

    Columns are found by name, in any case (`columns.COLUMNS`): an image's path relative to `root`;
    its label, text or a whole number, blank for none; and maybe a split, as of `pairs:`.

    Args:
        root: folder of the images.
        name: of the table, relative to `root` unless it is absolute.

    Raises:
        ValueError: the table cannot be used; says which and why.
    """
    path = root / Path(name).expanduser()
    try:
        with errors_of(f"labels={name}"):
            columns = read_columns(path, NEEDED, KINDS).by_kind
            labels, classes = number_labels(columns["label"])
            files = [posixpath.normpath(file) for file in texts(columns["image"], "image")]
            if labels is None or classes is None:
                raise ValueError("none of its rows has a label")
    except OSError as error:
        raise ValueError(f"labels={name}: {path} cannot be read ({error.strerror})") from error
    return LabelTable(f"labels={name}", files, labels, classes, columns.get("split"))
