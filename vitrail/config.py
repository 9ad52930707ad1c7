"""Configurations as JSON and back: `config.json` is one, and so are overrides in Python.

A field that holds one of several dataclasses (a recipe's objective) is annotated with `Choice`; in
JSON its value carries the chosen name as "kind".
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Choice:
    """Annotates a field whose value is one of several dataclasses, told apart by name.

    Attributes:
        names: all names there are, such as a registry.
        find: from one of the names to its dataclass.
        name_of: from such a dataclass to its name; raises ValueError for a foreign one.
    """

    names: Iterable[str]
    find: Callable[[str], type]
    name_of: Callable[[type], str]


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a dataclass as JSON types; the value of a `Choice` carries its name as "kind"."""
    choices = {name: _choice(hint) for name, hint in _hints(type(config)).items()}
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, choice = getattr(config, field.name), choices[field.name]
        if choice is not None:
            plain[field.name] = {"kind": choice.name_of(type(value)), **to_dict(value)}
        elif dataclasses.is_dataclass(value):
            plain[field.name] = to_dict(value)
        else:
            plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def from_dict(cls: type[T], plain: dict[str, Any], where: str = "") -> T:
    """Builds a dataclass from JSON types, checking every name and type.

    Args:
        cls: the dataclass.
        plain: its fields; those that are left out have their defaults. "kind" is no field.
        where: the dotted place of `plain` in the whole configuration, for messages.

    Raises:
        ValueError: naming the field, its value, and what it should be.
    """
    hints = _hints(cls)
    values = {}
    for name, value in plain.items():
        if name == "kind":
            continue
        if name not in hints:
            raise ValueError(f"{where}{name} is not a field{suggest(name, hints)}")
        values[name] = _parse(hints[name], value, f"{where}{name}")
    missing = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where.rstrip('.') or 'the configuration'} lacks {', '.join(missing)}")
    return cls(**values)


def override(config: T, changes: dict[str, Any]) -> T:
    """Returns the configuration with some fields replaced; nested fields as nested dicts."""
    return from_dict(type(config), _merge(to_dict(config), changes, ""))


def differences(old: dict[str, Any], new: dict[str, Any], where: str = "") -> list[str]:
    """Returns one line for each field that differs: "optim.lr: 0.0005 -> 0.001"."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{where}{name}.")
        elif a != b:
            lines.append(f"{where}{name}: {a} -> {b}")
    return lines


MOST_NAMES = 25  # of a list in an error message; `vitrail list` has them all


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the nearest name, else "; there are: " and the names."""
    names = sorted(known)
    near = nearest(name, names)
    if near:
        return f"; did you mean {near!r}?"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"; there are: {', '.join(names[:MOST_NAMES])}{more}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that is most like a given one, None if none is similar."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return near[0] if near else None


def printable(text: str) -> str:
    """Returns a text that is safe on a terminal: of its control characters only new lines stay.

    A name of a file or a class can hold escape sequences, which move the cursor, set colours or
    the window's title. They are shown as Python writes them ("\\x1b"), as are marks that turn the
    direction of writing, and bytes that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in text)


def _merge(old: dict[str, Any], changes: dict[str, Any], where: str) -> dict[str, Any]:
    merged = dict(old)
    for name, value in changes.items():
        if name not in old:
            raise ValueError(f"{where}{name} is not a field{suggest(name, old)}")
        nested = isinstance(old[name], dict) and isinstance(value, dict)
        merged[name] = _merge(old[name], value, f"{where}{name}.") if nested else value
    return merged


def _parse(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        choice = _choice(hint)
        return (
            _parse(arguments[0], value, where) if choice is None else _choose(choice, value, where)
        )
    if origin in (Union, types.UnionType):
        return _parse_union(arguments, value, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return from_dict(hint, value, f"{where}.")  # type: ignore[arg-type]
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
    elif origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{where} is {value!r}{suggest(str(value), map(str, arguments))}")
    elif origin is tuple and isinstance(value, (list, tuple)):
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(each) == len(value):
            return tuple(_parse(h, v, where) for h, v in zip(each, value, strict=True))
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise ValueError(f"{where} is {value!r}; it must be {getattr(hint, '__name__', hint)}")


def _parse_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [hint for hint in arguments if hint is not type(None)]
    assert len(choices) == 1, "a field that holds one of several dataclasses is annotated by Choice"
    return _parse(choices[0], value, where)


def _choose(choice: Choice, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value):
        choice.name_of(type(value))
        return value
    name = value.get("kind") if isinstance(value, dict) else value
    if name not in list(choice.names):
        raise ValueError(f"{where}.kind is {name!r}{suggest(str(name), choice.names)}")
    return _parse(choice.find(name), value if isinstance(value, dict) else {}, where)


def _hints(cls: type) -> dict[str, Any]:
    """Returns the annotations of a dataclass's fields, what is in `Annotated` included."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _choice(hint: Any) -> Choice | None:
    if get_origin(hint) is not typing.Annotated:
        return None
    return next((extra for extra in hint.__metadata__ if isinstance(extra, Choice)), None)
