"""Recipes as JSON and back: `config.json` is one, overrides of `vitrail.pretrain` a part of one.

A union of dataclasses (the objective) is told apart by "kind", the name of the method's file.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as JSON types; nested ones carry their "kind"."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            plain[field.name] = {"kind": kind(type(value)), **to_dict(value)}
        else:
            plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def from_dict(cls: type[T], plain: dict[str, Any], where: str = "") -> T:
    """Builds a dataclass from JSON types, checking every name and type.

    Raises:
        ValueError: naming the field, its value, and what it should be.
    """
    hints = get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for name, value in plain.items():
        if name == "kind":
            continue
        if name not in known:
            raise ValueError(f"{where}{name} is not a field{suggest(name, known)}")
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
    """The configuration with some fields replaced; nested fields as nested dicts."""
    return from_dict(type(config), _merge(to_dict(config), changes, ""))


def differences(old: dict[str, Any], new: dict[str, Any], where: str = "") -> list[str]:
    """One line for each field that differs: "optim.lr: 0.0005 -> 0.001"."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{where}{name}.")
        elif a != b:
            lines.append(f"{where}{name}: {a} -> {b}")
    return lines


def kind(cls: type) -> str:
    """How a configuration class is named in JSON: the method's file ("simdino")."""
    return cls.__module__.rsplit(".", 1)[-1]


def suggest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest name, else the list of all."""
    names = sorted(known)
    near = nearest(name, names)
    return f"; did you mean {near!r}?" if near else f"; there are: {', '.join(names)}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that is most like a given one, None if none is similar."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return near[0] if near else None


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
        return _parse(arguments[0], value, where)
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
    if len(choices) == 1:
        return _parse(choices[0], value, where)
    if type(value) in choices:
        return value
    kinds = {kind(hint): hint for hint in choices}
    named = value.get("kind") if isinstance(value, dict) else value
    if not isinstance(named, str) or named not in kinds:
        raise ValueError(f"{where}.kind is {named!r}{suggest(str(named), kinds)}")
    return _parse(kinds[named], value, where)
