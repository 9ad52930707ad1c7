"""The rules of the house hold, and each of them fails when it is broken on purpose."""

import dataclasses
import re
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docstring_parser
import pytest

from tests import house
from vitrail.evals.registry import PROTOCOLS
from vitrail.objectives.registry import OBJECTIVES
from vitrail.recipes.recipe import Recipe
from vitrail.registry import REGISTRIES, registry, resolve

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "vitrail"

# A rule, and a file with a line that breaks it.
BROKEN: list[tuple[Callable[[Path], list[str]], str, str]] = [
    (house.wrong_imports, "nn/heads.py", "from vitrail.data.contract import Batch"),
    (house.wrong_imports, "nn/heads.py", "def late():\n    import vitrail.objectives.dino"),
    (house.wrong_imports, "evals/tables.py", "from vitrail.objectives import dino"),
    (house.wrong_imports, "exporting/export.py", "from vitrail.interop.read import load"),
    (house.wrong_imports, "train/loop.py", "from vitrail.reporting import build"),
    (house.wrong_imports, "data/sources/labels.py", "from vitrail.data.views import plan"),
    (
        house.wrong_imports,
        "data/sources/formats/npy.py",
        "import vitrail.data.sources.datasets.voc",
    ),
    (house.wrong_imports, "evals/figures/grid.py", "from vitrail.evals.features import features"),
    (house.wrong_imports, "backbones/operators/tssa.py", "import vitrail.backbones.contract"),
    (house.wrong_imports, "news.py", ""),
    (house.methods_that_import_methods, "objectives/dino.py", "import vitrail.objectives.simdino"),
    (house.protocols_seen_outside, "train/health.py", "import vitrail.evals.registry"),
    (house.import_cycles, "atomic.py", "import vitrail.encoder"),
    (house.long_code, "nn/ema.py", "\n" * 400 + "x = 1"),
    (house.long_code, "evals/registry.py", "\n" * 400 + "x = 1"),
    (house.long_code, "train/loop.py", "\n" * 100 + "x = 1"),
    (house.long_code, "nn/ema.py", "def long():\n" + "    x = 1\n" * 70),
    (house.words_out_of_place, "nn/ema.py", "import difflib"),
    (house.words_out_of_place, "nn/ema.py", "import os\nos.replace('a', 'b')"),
    (house.words_out_of_place, "reporting/build.py", "def f(figure):\n    figure.savefig('a')"),
    (house.words_out_of_place, "nn/ema.py", "import torch.distributed"),
    *(
        (
            house.untrusted_code,
            "nn/ema.py",
            f"def f(x):\n    return {word}{'x)' if '(' in word else ''}",
        )
        for word in ("eval(", "exec(", "pickle.load", "pickle.Unpickler(", "torch.hub")
    ),
    (house.untrusted_code, "nn/ema.py", "torch.load('x', weights_only=False)"),
    (house.objectives_without_source, "objectives/news.py", '"""A method without a source."""'),
    (
        house.registries_that_are_no_literals,
        "objectives/registry.py",
        "OBJECTIVES = dict(OBJECTIVES)",
    ),
]
RULES = [
    house.wrong_imports,
    house.methods_that_import_methods,
    house.protocols_seen_outside,
    house.import_cycles,
    house.crowded_rooms,
    house.long_code,
    house.words_out_of_place,
    house.untrusted_code,
    house.objectives_without_source,
    house.registries_that_are_no_literals,
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package to break rules in."""
    target = tmp_path_factory.mktemp("copy") / "vitrail"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_holds(rule):
    assert rule(PACKAGE) == []


@pytest.mark.parametrize(("rule", "file", "line"), BROKEN)
def test_a_rule_notices_when_it_is_broken(rule, file, line, copy):
    path = copy / file
    before = path.read_text() if path.exists() else None
    try:
        path.write_text((before or "") + f"\n{line}\n")
        assert rule(copy) != []
    finally:
        path.unlink() if before is None else path.write_text(before)
    assert rule(copy) == []


def test_crowded_rooms_are_noticed(copy):
    extra = [copy / "nn" / f"extra{i}.py" for i in range(house.ROOM_MODULES)]
    for path in extra:
        path.write_text("")
    try:
        assert house.crowded_rooms(copy) != []
    finally:
        for path in extra:
            path.unlink()


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_row_is_named_by_a_test_that_runs_over_its_registry(kind):
    name = REGISTRIES[kind].partition(":")[2]
    over = re.compile(rf"parametrize\([^)]*\b{name}\b|for [^\n]* in [^\n]*\b{name}\b")
    tests = [path for path in (REPOSITORY / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert any(over.search(path.read_text()) for path in tests), f"no test runs over {name}"


def configs() -> list[type]:
    """Every dataclass whose fields are options of a command."""
    found: list[type] = []
    roots = [Recipe, *(row.load()[1] for row in OBJECTIVES.values())]
    roots += [resolve(config) for row in PROTOCOLS.values() for config in row.configs.values()]
    for root in roots:
        found += [cls for cls in _reached(root) if cls not in found]
    return found


def _reached(cls: Any) -> Iterator[type]:
    yield cls
    for hint in typing.get_type_hints(cls).values():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from _reached(part)


@pytest.mark.parametrize("cls", configs(), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_option_has_help(cls):
    documented = docstring_parser.parse(cls.__doc__ or "").params
    helped = {p.arg_name for p in documented if len((p.description or "").split()) > 1}
    assert {field.name for field in dataclasses.fields(cls)} - helped == set()


def test_every_path_in_the_documents_exists():
    pages = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
    pages += sorted((REPOSITORY / "docs").glob("*.md"))
    path = re.compile(r"`((?:vitrail|tests|docs|benchmarks|\.ci)/[\w./-]+)`|\]\(([\w./-]+\.\w+)\)")
    missing = []
    for page in pages:
        for inside, link in path.findall(page.read_text()):
            target = REPOSITORY / inside if inside else page.parent / link
            if "NAME" not in str(target) and not target.exists():
                missing.append(f"{page.name}: {inside or link}")
    assert missing == []


def test_rows_of_every_registry_load():
    for kind in REGISTRIES:
        for name, (_, summary) in zip(registry(kind), registry(kind).listing(), strict=True):
            assert summary, (kind, name)
