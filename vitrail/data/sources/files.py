"""A source of image files: the paths of a folder, with labels and captions if any."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vitrail.data.contract import Detail, Header, Metric, Sample, Source
from vitrail.data.decode.headers import header_of_file
from vitrail.data.decode.image import decode_file
from vitrail.data.sources.channels import choose_channels

Decode = Callable[[Path, int, str, Detail | None], Tensor]


STAMPED = 100_000  # files: about a second on a local disk


def stamps(count: int, place: Callable[[int], tuple[str, Path]]) -> list[tuple[str, int, int]]:
    """Returns what `Source.written` does, of up to STAMPED files; -1 and -1 for a missing one.

    Args:
        count: of the files.
        place: gives the name and the path of each.
    """
    found = []
    for index in dict.fromkeys(np.linspace(0, count - 1, min(count, STAMPED)).astype(int).tolist()):
        name, path = place(index)
        try:
            status = os.stat(path)
        except OSError:
            found.append((name, -1, -1))
        else:
            found.append((name, status.st_mtime_ns, status.st_ino))
    return found


class FileSource(Source):
    """Image files by path. An id is the path as given, unless `ids` are given.

    Args:
        spec: of the source, as the user wrote it.
        root: folder that the paths are relative to.
        paths: of the images, N in order.
        labels: N class numbers, negative for no label; None if no image has one.
        classes: names of the classes.
        captions: N texts, None where an image lacks one; None for a source without captions.
        channels: of every image read; None means 3.
        metric: score that is reported on it.
        ids: N names for people, if paths do not serve.
        decode: reads an image from path, channels, id and detail, as `decode.image.decode_file`,
            which gives 1 or 3 channels and is the default.

    Raises:
        ValueError: `channels` is neither 1 nor 3, without a `decode` for others.
    """

    def __init__(
        self,
        spec: str,
        root: Path,
        paths: Sequence[str],
        labels: Any = None,
        classes: Sequence[str] | None = None,
        channels: int | None = None,
        *,
        captions: Sequence[str | None] | None = None,
        metric: Metric = "accuracy",
        ids: Sequence[str] | None = None,
        decode: Decode | None = None,
    ):
        self.spec = spec
        self.channels = choose_channels(spec, channels) if decode is None else channels or 3
        self.classes = classes
        self.captioned = captions is not None
        self.metric = metric
        self._root = root
        self._paths = paths
        self._labels = labels
        self._captions = captions
        self._ids = paths if ids is None else ids
        self._decode = decode or decode_file

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        id = self.id(index)
        image = self._decode(self.path(index), self.channels, id, detail)
        return Sample(image, self.label(index), self.text(index), id)

    def lost_notes(self) -> list[str]:
        """Returns sentences on what 8 bits and one page leave out, by the headers of some files."""
        from vitrail.data.decode import declared  # lazy import: sources are opened in many places

        last = len(self) - 1
        count = min(len(self), declared.LOOKED_AT)
        places = {round(i * last / max(1, count - 1)) for i in range(count)}
        names = (self._paths[place] for place in sorted(places))
        paths = [self._root / name for name in names if name.lower().endswith(declared.SUFFIXES)]
        keeps = f"{self.spec},bits=16" if self.spec.startswith("folder:") else ""
        return declared.lost_notes(paths, self.channels, self.bits, keeps)

    def path(self, index: int) -> Path:
        """Returns the path of an image."""
        return self._root / self._paths[index]

    def id(self, index: int) -> str:
        return self._ids[index]

    def header(self, index: int) -> Header | None:
        return header_of_file(self.path(index))

    def text(self, index: int) -> str | None:
        return None if self._captions is None else self._captions[index]

    def written(self) -> Sequence[tuple[str, int, int]]:
        return stamps(len(self), lambda index: (self.id(index), self.path(index)))

    def fingerprint(self) -> str:
        """Returns a digest of paths and labels: a published set has the same images everywhere."""
        labels = None if self._labels is None else tuple(self._labels)
        content = repr((tuple(self._paths), labels)).encode()
        return hashlib.blake2b(content, digest_size=16).hexdigest()
