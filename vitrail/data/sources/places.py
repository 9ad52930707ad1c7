"""Where the files of a published data set are, and what to do where they are not."""

from collections.abc import Sequence
from pathlib import Path


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
