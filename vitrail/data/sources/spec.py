"""The part of a SPEC after its colon: a path or name, and options as `,key=value`."""

import os
import re
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vitrail.data.contract import NoTestSplitError
from vitrail.data.sources.splits import ForeignClassesError

MAX_TEXT = 2**28  # bytes of a list of names or classes

_COMMA = re.compile(r",(?![^{}]*\})")  # but for those of {a,b}


@contextmanager
def errors_of(where: str) -> Iterator[None]:
    """Puts the name of a source, or a part of it, before the message of a ValueError raised within.

    A NoTestSplitError names its source already.
    """
    try:
        yield
    except NoTestSplitError:
        raise
    except ForeignClassesError as error:
        raise ForeignClassesError(f"{where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def split_options(kind: str, rest: str, known: Collection[str]) -> tuple[str, dict[str, str]]:
    """Returns the path and the options: `DIR,labels=FILE` -> ("DIR", {"labels": "FILE"}).

    Options are taken from the end, and only words that are followed by "=", so commas and equal
    signs in a path stay part of it unless they have the form of an option. Commas in braces, as of
    `test={a,b}.tar`, separate nothing.

    Args:
        kind: of the source, for messages.
        rest: of the spec, after the colon of the kind.
        known: names of the options that the source has.

    Raises:
        ValueError: an unknown option, or one given twice or without a value.
    """
    parts = _COMMA.split(rest)
    options: dict[str, str] = {}
    while len(parts) > 1 and parts[-1].partition("=")[0].isidentifier() and "=" in parts[-1]:
        key, _, value = parts.pop().partition("=")
        if key not in known:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise ValueError(f"{kind}: unknown option {key!r} in {kind}:{rest}; {has}")
        if key in options or not value:
            why = "is given twice" if key in options else "has no value"
            raise ValueError(f"{kind}: option {key!r} {why} in {kind}:{rest}")
        options[key] = value
    return ",".join(parts), options


def find_place(kind: str, rest: str, inside: Sequence[str], has: str, remedy: str) -> Path:
    """Returns the first of the folder `rest` and its subfolders `inside` in which `has` exists.

    Args:
        kind: of the source, for messages.
        rest: of the spec, after the colon of the kind.
        inside: "" for the folder itself, and the folders of archives and of other downloaders.
        has: file or folder that must be there.
        remedy: what to download, and where to put it.

    Raises:
        ValueError: `rest` is empty, or none of the folders has it.
    """
    if not rest:
        raise ValueError(f"{kind}: names no folder; write {kind}:DIR ({remedy})")
    given = Path(rest).expanduser()
    for folder in (given / sub for sub in inside):
        if (folder / has).exists():
            return folder
    where = " or ".join(str(given / sub / has) for sub in inside)
    raise ValueError(f"{kind}:{rest}: there is no {where}; {remedy}")


def check_regular(path: Path) -> None:
    """Raises ValueError for what is no plain file: opening a pipe waits for ever, and a device such
    as /dev/zero never ends. OSError if there is no such file.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "special file")
        raise ValueError(f"{path} is a {kind}, not a file; give a plain file")


_KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
    (stat.S_ISSOCK, "socket"),
)


def open_regular(path: Path) -> BinaryIO:
    """Opens a plain file for reading. ValueError as `check_regular`, OSError as `open`."""
    check_regular(path)
    return open(path, "rb")


def read_regular(path: Path, limit: int = MAX_TEXT) -> bytes:
    """Returns the bytes of a plain file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no plain file, or has more bytes than the limit.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} has more than {limit:,} bytes; it cannot be such a file")
    return content


def read_lines(spec: str, path: Path, remedy: str) -> list[str]:
    """Returns the lines of a text file that are not blank. ValueError if it cannot be read."""
    try:
        lines = read_regular(path).decode().splitlines()
    except FileNotFoundError as error:
        raise ValueError(f"{spec}: there is no file {path}; {remedy}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{spec}: {path} cannot be read ({error}); {remedy}") from error
    return [line.strip() for line in lines if line.strip()]
