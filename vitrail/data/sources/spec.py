"""What stands after the colon of a SPEC: a path or name, and options as `,key=value`."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

_COMMA = re.compile(r",(?![^{}]*\})")  # but for those of {a,b}


def split_options(kind: str, rest: str, known: Collection[str]) -> tuple[str, dict[str, str]]:
    """`DIR,labels=FILE` -> ("DIR", {"labels": "FILE"}).

    Only the tail is looked at, and only words that are followed by "=", so that commas and equal
    signs in a path stay what they are, unless they look like an option. Commas in braces, as of
    `test={a,b}.tar`, part nothing.

    Args:
        kind: of the source, for messages. known: the options it has.

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
    """The first of the folder `rest` and its subfolders `inside` in which `has` exists.

    Args:
        inside: "" for the folder itself, and where archives and others' downloads put it.
        remedy: what to download, and where to put it.

    Raises:
        ValueError: nothing is named, or it is in none of them.
    """
    if not rest:
        raise ValueError(f"{kind}: names no folder; write {kind}:DIR ({remedy})")
    given = Path(rest).expanduser()
    for folder in (given / sub for sub in inside):
        if (folder / has).exists():
            return folder
    where = " or ".join(str(given / sub / has) for sub in inside)
    raise ValueError(f"{kind}:{rest}: there is no {where}; {remedy}")


def read_lines(spec: str, path: Path, remedy: str) -> list[str]:
    """The lines of a list that are not blank. ValueError where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise ValueError(f"{spec}: there is no file {path}; {remedy}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{spec}: {path} cannot be read ({error}); {remedy}") from error
    return [line.strip() for line in lines if line.strip()]
