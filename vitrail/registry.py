"""Registries: one table for each kind of thing that vitrail knows by name.

A row says all that has to be said about a thing outside its own file; help, listings, documentation
and tests derive from it. Rows refer to code as "package.module:Name", so that a table of names can
be read without importing torch; `load` imports the code when it is needed.

Rows come from three places, in this order: vitrail's own table, the entry points of installed
packages (group `vitrail.objectives`, `vitrail.sources`, ...), and `vitrail.register(...)`.
"""

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from vitrail.config import suggest

R = TypeVar("R", bound="Row")

# Every registry, as its kind (in the singular) and where it stands.
REGISTRIES = {
    "backbone": "vitrail.backbones.registry:BACKBONES",
    "objective": "vitrail.objectives.registry:OBJECTIVES",
    "operation": "vitrail.data.views.registry:OPERATIONS",
    "protocol": "vitrail.evals.registry:PROTOCOLS",
    "recipe": "vitrail.recipes.registry:RECIPES",
    "sink": "vitrail.train.registry:SINKS",
    "source": "vitrail.data.sources.registry:SOURCES",
}


class Row:
    """Abstract. What a listing shows of a row, whatever kind of thing it is.

    Attributes:
        usage: how it is written on the command line; "" if that is its name.
        summary: one line that says what it is.
    """

    usage: str = ""
    summary: str


class Registry(Mapping[str, R], Generic[R]):
    """A read-only mapping from names to rows; rows of other packages are loaded when asked for.

    Iterating gives names only, and loads nothing.

    Args:
        kind: what the rows are, in the singular: "objective". Entry points are of the group
            `vitrail.objectives`.
        row: the class of a row. Whatever else an entry point or `register` gives is refused.
        rows: vitrail's own rows by name.
    """

    def __init__(self, kind: str, row: type[R], rows: dict[str, R]):
        self.kind = kind
        self.group = f"vitrail.{kind}s"
        self.row = row
        self._own = rows
        self._registered: dict[str, R] = {}
        self._loaded: dict[str, R] = {}

    # Mapping has none, and tyro hashes the recipe's annotations, one of which holds a registry.
    __hash__ = object.__hash__

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._own, *self._entry_points, *self._registered)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._entry_points or name in self._registered

    def __getitem__(self, name: str) -> R:
        for rows in (self._own, self._registered, self._loaded):
            if name in rows:
                return rows[name]
        if name not in self._entry_points:
            raise KeyError(name)
        self._loaded[name] = self._load(name)
        return self._loaded[name]

    def find(self, name: str) -> R:
        """Returns the row of this name.

        Raises:
            ValueError: there is none, with the nearest name; or the package that provides it
                cannot be imported.
        """
        if name not in self:
            raise ValueError(f"{name!r} is not {self._article} {self.kind}{suggest(name, self)}")
        return self[name]

    def package(self, name: str) -> str:
        """Returns the distribution that provides a name: "vitrail", or another package's name."""
        if name in self._own:
            return "vitrail"
        return (
            "this process" if name in self._registered else _distribution(self._entry_points[name])
        )

    def register(self, name: str, row: Any) -> None:
        """Adds a row for the rest of this process. See `vitrail.register`."""
        if name in self._own or name in self._entry_points:
            raise ValueError(
                f"{self._article} {self.kind} called {name!r} is there already (of "
                f"{self.package(name)}); register yours under another name"
            )
        self._registered[name] = self._checked(name, row)

    def listing(self) -> list[tuple[str, str]]:
        """Returns how each thing is written, and what it is in one line, in the order of the table.

        A row that cannot be loaded says why instead.
        """
        return [self._listed(name) for name in self]

    def _listed(self, name: str) -> tuple[str, str]:
        try:
            row = self[name]
        except ValueError as error:
            return name, str(error)
        return row.usage or name, row.summary

    @property
    def own(self) -> Mapping[str, R]:
        """vitrail's own rows, without those of other packages; read-only."""
        return MappingProxyType(self._own)

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self._own or point.name in found:
                owner = "vitrail" if point.name in self._own else _distribution(found[point.name])
                print(
                    f"vitrail: warning: the {self.kind} {point.name!r} of the package "
                    f"{_distribution(point)} is left out, for {owner} has one of that name",
                    file=sys.stderr,
                )
                continue
            found[point.name] = point
        return found

    def _load(self, name: str) -> R:
        point = self._entry_points[name]
        try:
            row = point.load()
        except Exception as error:  # whatever a foreign package raises at import
            raise ValueError(
                f"the {self.kind} {name!r} of the package {_distribution(point)} cannot be loaded "
                f"({type(error).__name__}: {error}); mend or uninstall that package"
            ) from error
        return self._checked(name, row)

    def _checked(self, name: str, row: Any) -> R:
        if not isinstance(row, self.row):
            raise ValueError(
                f"the {self.kind} {name!r} is registered as {row!r}; it must be a "
                f"{self.row.__module__}.{self.row.__name__}"
            )
        return row

    @property
    def _article(self) -> str:
        return "an" if self.kind[0] in "aeiou" else "a"


def register(kind: str, name: str, row: object) -> None:
    """Adds a thing of one's own under a name, for the rest of this process.

    A package that is installed names its rows as entry points instead (`vitrail.objectives`,
    `vitrail.sources`, ...), and the command line knows them too; see `docs/extending.md`.

    Args:
        kind: "backbone", "objective", "operation" (on views), "protocol", "recipe", "sink" or
            "source".
        name: what it is called on the command line and in `config.json`.
        row: of the class that the registry of that kind holds, such as `ObjectiveRow`.

    Raises:
        ValueError: an unknown kind, a name that is taken, or a row of another class.
    """
    registry(kind).register(name, row)


def registry(kind: str) -> Registry[Any]:
    """Returns the registry of a kind ("objective"). Raises ValueError for an unknown kind."""
    if kind not in REGISTRIES:
        raise ValueError(f"{kind!r} is not a kind of row{suggest(kind, REGISTRIES)}")
    found = resolve(REGISTRIES[kind])
    assert isinstance(found, Registry)
    return found


def resolve(reference: Any) -> Any:
    """Returns the object that "package.module:Name" names; what is no text is returned as it is."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def summary(reference: str | Callable[..., object]) -> str:
    """Returns the first line of an object's docstring, without importing the object's module."""
    if not isinstance(reference, str):
        return (reference.__doc__ or "").strip().partition("\n")[0]
    module, _, name = reference.partition(":")
    return _docstrings(module).get(name, "").strip().partition("\n")[0]


@cache
def _docstrings(module: str) -> dict[str, str]:
    """Returns the docstrings of a module's functions and classes, read from its source."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    documented = (ast.FunctionDef, ast.ClassDef)
    return {n.name: ast.get_docstring(n) or "" for n in tree.body if isinstance(n, documented)}


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module.partition(".")[0]
