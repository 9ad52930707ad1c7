"""The list of samples that a run cannot use, in a file; a few of them do not stop the run."""

import errno
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from vitrail.atomic import parse_json

# Characters, at most 12 bytes each as written: with its id a line stays below 4096 bytes, a page.
REASON_LIMIT = 200

logger = logging.getLogger(__name__)


class Quarantine:
    """The ids of bad samples, and the reasons.

    Ranks share one file: each line is one write to its end, and before adding a sample a rank
    reads the lines of the others. Two ranks that find the same one at once may both write it; the
    first line counts.

    Args:
        path: a file of JSON lines {"id", "reason"}, read if it exists and appended to; None: the
            list is only in memory.
        total: number of samples of the source.
        max_fraction: the share of `total` beyond which a run stops.

    Raises:
        ValueError: `max_fraction` out of range; or, from `add` as well, more samples are bad.
    """

    def __init__(self, path: Path | None, total: int, max_fraction: float = 0.5):
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"quarantine: max_fraction is {max_fraction}; it must be in [0, 1]")
        self._path = path
        self._total = total
        self._max_fraction = max_fraction
        self._entries: dict[str, str] = {}
        self._read_to = 0  # bytes of the file, to the end of a line
        if path is not None and path.exists():
            self._catch_up(path)
            self._check()

    @property
    def entries(self) -> Mapping[str, str]:
        """id -> reason, in the order of discovery."""
        return self._entries

    def add(self, id: str, reason: str) -> None:
        """Adds a bad sample; one that is known already changes nothing.

        Args:
            id: the sample's name.
            reason: shortened to REASON_LIMIT characters.

        Raises:
            OSError: the disk is full.
            ValueError: too many samples are bad.
        """
        if id in self._entries:
            return
        torn = self._catch_up(self._path) if self._path is not None else False
        if id not in self._entries:
            self._append(id, _shortened(reason), torn)
        self._check()

    def _append(self, id: str, reason: str, torn: bool) -> None:
        self._entries[id] = reason
        # ASCII, so that names with newlines or undecodable bytes stay on one valid line.
        line = json.dumps({"id": id, "reason": reason}, ensure_ascii=True)
        logger.warning("quarantined %s", line)
        if self._path is None:
            return
        content = (("\n" if torn else "") + line + "\n").encode("ascii")
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            written = os.write(file, content)  # in one call: lines of several ranks do not mix
        finally:
            os.close(file)
        if written < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def _catch_up(self, path: Path) -> bool:
        """Reads the lines that were added since the last time.

        Returns:
            True if the file ends in mid-line, after a kill; its sample will be found again.
        """
        if not path.exists() or path.stat().st_size <= self._read_to:
            return False
        with open(path, "rb") as file:
            file.seek(self._read_to)
            *lines, rest = file.read().split(b"\n")
        self._read_to += sum(len(line) + 1 for line in lines)
        for line in filter(bytes.strip, lines):
            if not self._take(line):
                logger.warning("%s: a line is not a quarantine entry and is ignored", path)
        self._take(rest)
        return bool(rest)

    def _take(self, line: bytes) -> bool:
        """Adds a line's entry unless its id is known; returns False if the line is no entry."""
        try:
            entry = parse_json(line)
            self._entries.setdefault(str(entry["id"]), str(entry["reason"]))
        except (ValueError, KeyError, TypeError):
            return False
        return True

    def _check(self) -> None:
        bad, total = len(self._entries), self._total
        if bad <= self._max_fraction * total:
            return
        id, reason = next(iter(self._entries.items()))
        listed = f"; all are listed in {self._path}" if self._path else ""
        raise ValueError(
            f"{bad} of {total} samples cannot be used, more than the share of "
            f"{self._max_fraction:g} that is allowed (the first: {json.dumps(id)}: {reason})"
            f"{listed}; repair or remove them, or allow a larger share by max_bad_fraction"
        )


def _shortened(reason: str) -> str:
    return reason if len(reason) <= REASON_LIMIT else reason[: REASON_LIMIT - 3] + "..."
