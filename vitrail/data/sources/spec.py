"""What stands after the colon of a SPEC: a path or name, and options as `,key=value`."""

import re
from collections.abc import Collection

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
