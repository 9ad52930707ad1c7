"""Image files that a published data set lists by name."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vitrail.data.contract import Detail, Metric, Sample, Source
from vitrail.data.decode.image import decode_file


class ListedSource(Source):
    """Files of a folder. An id is the name of the file, within the folder.

    Raises ValueError where `channels` is neither 1 nor 3.
    """

    def __init__(
        self,
        spec: str,
        root: Path,
        names: Sequence[str],
        labels: Sequence[int] | None,
        classes: Sequence[str] | None,
        channels: int | None,
        metric: Metric = "accuracy",
    ):
        if channels not in (None, 1, 3):
            raise ValueError(f"{spec}: channels is {channels}; its images give 1 (grey) or 3 (RGB)")
        self.spec = spec
        self.channels = channels or 3
        self.classes = classes
        self.metric = metric
        self._root = root
        self._names = tuple(names)
        self._labels = None if labels is None else tuple(labels)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        id = self.id(index)
        image = decode_file(self._root / id, self.channels, id, detail)
        return Sample(image, self.label(index), None, id)

    def id(self, index: int) -> str:
        return self._names[index]

    def label(self, index: int) -> int | None:
        return None if self._labels is None else self._labels[index]

    def fingerprint(self) -> str:
        """Of names and labels: they stand for the same images wherever the set is."""
        content = repr((self._names, self._labels)).encode()
        return hashlib.blake2b(content, digest_size=16).hexdigest()
