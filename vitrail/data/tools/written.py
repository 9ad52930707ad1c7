"""Files that were overwritten since a run began: a resumed run would go on with other images.

A fingerprint holds names and sizes, so that a copied folder is the same one. The times and inodes
of the files are beside it, in written.json of the run.
"""

import json
from pathlib import Path

from vitrail.atomic import parse_json, write_atomically
from vitrail.data.contract import Source

NAME = "written.json"


def record_written(run: Path, source: Source) -> None:
    """Writes times and inodes of the source's files into the run's folder."""
    write_atomically(run / NAME, json.dumps(source.written()) + "\n")


def check_written(run: Path, source: Source) -> str | None:
    """Compares the source's files with those that the run began with.

    A file whose time differs was written again, but for a copy of all: there every time and every
    inode differs. A copy that keeps times, as of rsync -a, is the same. A run of an earlier commit
    has no times, and is not checked.

    Returns:
        a note on a copy, if any.

    Raises:
        ValueError: some files were written again.
    """
    try:
        known = {name: (time, inode) for name, time, inode in parse_json((run / NAME).read_text())}
    except (OSError, ValueError, TypeError):
        return None
    now = [stamp for stamp in source.written() if stamp[0] in known and known[stamp[0]][0] >= 0]
    changed = [(name, inode) for name, time, inode in now if time != known[name][0]]
    if not changed:
        return None
    if len(changed) == len(now) and all(inode != known[name][1] for name, inode in changed):
        return (
            f"note: all files of {source.spec} have other times than when {run} began, as those of "
            "a copy; that they hold the same is not checked"
        )
    count, first = len(changed), changed[0][0]
    raise ValueError(
        f"{source.spec}: {count} of {len(now)} files were written again after {run} began, with "
        f"the same sizes (the first: {first!r}): restore them, or start a new run with another "
        f"--out; if they hold what they held, remove {run / NAME} and resume"
    )
