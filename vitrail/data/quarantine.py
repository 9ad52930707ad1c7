"""The samples a run cannot use: each is named once in a file; a few do not stop a run."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)


class Quarantine:
    """Ids of bad samples and the reasons.

    Args:
        path: a file of JSON lines {"id", "reason"}, read if it exists and appended to; None keeps
            the list in memory (for ranks other than the first, each counts what it met itself).
        total: samples of the source.
        max_fraction: the share of `total` beyond which a run stops.

    Raises:
        ValueError: from `add`, and on opening such a file, when more samples than that are bad.
    """

    def __init__(self, path: Path | None, total: int, max_fraction: float = 0.5):
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"quarantine: max_fraction is {max_fraction}; it must be in [0, 1]")
        self._path = path
        self._total = total
        self._max_fraction = max_fraction
        self._entries: dict[str, str] = {}
        self._ends_in_newline = True
        if path is not None and path.exists():
            self._reload(path.read_bytes())
            self._check()

    @property
    def entries(self) -> Mapping[str, str]:
        """id -> reason, in the order of discovery."""
        return self._entries

    def add(self, id: str, reason: str) -> None:
        """Records a bad sample; one that is known already changes nothing."""
        if id in self._entries:
            return
        self._entries[id] = reason
        # ASCII, so that names with newlines or undecodable bytes stay on one valid line.
        line = json.dumps({"id": id, "reason": reason}, ensure_ascii=True)
        logger.warning("quarantined %s", line)
        if self._path is not None:
            with open(self._path, "a", encoding="ascii") as file:
                file.write(line + "\n" if self._ends_in_newline else "\n" + line + "\n")
            self._ends_in_newline = True
        self._check()

    def _reload(self, content: bytes) -> None:
        """A last line that was cut off by a kill is dropped; its sample will be found again."""
        self._ends_in_newline = not content or content.endswith(b"\n")
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                self._entries[str(entry["id"])] = str(entry["reason"])
            except (ValueError, KeyError, TypeError):
                logger.warning("%s: a line is not a quarantine entry and is ignored", self._path)

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
