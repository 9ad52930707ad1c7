"""Writes the tables of the documentation from the registries: `python docs/generate.py`.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->` in README.md or in a page of docs/.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from vitrail.registry import registry

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/reference.md")


def table(kind: str) -> str:
    """Returns a registry as a table of Markdown: how each thing is written, and what it is."""
    own = registry(kind).own
    rows = [(row.usage or name, row.summary) for name, row in own.items()]
    lines = [f"| `{_escaped(usage)}` | {_escaped(summary)} |" for usage, summary in rows]
    return "\n".join([f"| {kind} | |", "|---|---|", *lines])


def names(kind: str) -> str:
    """Returns the names of a registry in one line."""
    return ", ".join(f"`{name}`" for name in registry(kind).own)


BLOCKS: dict[str, Callable[[], str]] = {
    "objectives": lambda: table("objective"),
    "objective names": lambda: names("objective"),
    "backbones": lambda: table("backbone"),
    "operations": lambda: table("operation"),
    "recipes": lambda: table("recipe"),
    "sources": lambda: table("source"),
    "source names": lambda: names("source"),
    "protocols": lambda: table("protocol"),
    "protocol names": lambda: names("protocol"),
    "sinks": lambda: table("sink"),
}


def generated(page: str) -> str:
    """Returns a page with every table made anew.

    Raises:
        ValueError: a block that is not in BLOCKS.
    """

    def fill(block: re.Match[str]) -> str:
        name = block[1]
        if name not in BLOCKS:
            raise ValueError(f"there is no block {name!r}; there are {', '.join(BLOCKS)}")
        return f"<!-- {name} -->\n{BLOCKS[name]()}\n<!-- /{name} -->"

    return re.sub(r"<!-- ([a-z ]+) -->\n.*?<!-- /\1 -->", fill, page, flags=re.DOTALL)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Rewrites the pages, and says which have changed; with --check only says so, and exits 1."""
    check, stale = "--check" in sys.argv[1:], False
    for page in PAGES:
        path = REPOSITORY / page
        before = path.read_text(encoding="utf-8")
        after = generated(before)
        if after == before:
            continue
        stale = True
        print(
            f"{page} is {'out of date: run `make docs`' if check else 'written'}", file=sys.stderr
        )
        if not check:
            path.write_text(after, encoding="utf-8")
    raise SystemExit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
