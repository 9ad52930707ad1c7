"""The table of protocols: every row is complete, light to import, and derives what others show."""

import dataclasses
import inspect
import subprocess
import sys

import pytest
import tyro

from vitrail.evals.protocol import NEEDS, Protocol
from vitrail.evals.registry import PROTOCOLS
from vitrail.evals.settings import Shared, settings_type
from vitrail.registry import resolve

ROWS = list(PROTOCOLS.own.items())
HEAVY = ("torch", "numpy", "sklearn", "matplotlib", "timm", "scipy", "rich")


def test_the_table_is_read_without_what_protocols_import():
    code = f"import sys, vitrail.evals.registry; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_row_is_complete(name, row):
    assert row.title
    assert row.meaning.endswith(".")
    assert "\n" not in row.meaning
    assert len(row.summary) < 120
    assert row.needs <= NEEDS.keys()
    assert row.shared <= {field.name for field in dataclasses.fields(Shared)}
    assert row.unit is not None or row.figure is not None  # it gives something
    if row.figure is not None:
        assert row.figure.kind
        assert row.figure.caption.endswith(".")
    for reference in (row.table, row.rows):
        assert reference is None or callable(resolve(reference))


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_its_function_takes_a_context_and_its_configs(name, row):
    configs = [resolve(reference) for reference in row.configs.values()]
    parameters = list(inspect.signature(resolve(row.run)).parameters.values())
    assert [p.annotation for p in parameters[1:]] == configs
    assert all(dataclasses.is_dataclass(config) for config in configs)
    known = {
        f"{g}.{f.name}" for g, c in row.configs.items() for f in dataclasses.fields(resolve(c))
    }
    assert row.ignores <= known
    assert {f"{g}.{field}" for g in row.configs for field in row.by} <= known
    words = {f.name: f.default for c in configs for f in dataclasses.fields(c)}
    assert "{" not in row.explanation.format(**words)


def test_every_setting_has_help(capsys):
    groups = {f.name: f.type for f in dataclasses.fields(settings_type())}
    options = [*dataclasses.fields(Shared)]
    for name, config in groups.items():
        if dataclasses.is_dataclass(config):
            options += dataclasses.fields(config)
            assert f"\n        {dataclasses.fields(config)[0].name}: " in config.__doc__, name
    with pytest.raises(SystemExit):
        tyro.cli(settings_type(), args=["--help"])
    text = capsys.readouterr().out
    assert len(options) > 25
    for option in options:
        assert option.name.replace("_", "-") in text


def test_a_need_that_is_none_is_refused():
    with pytest.raises(ValueError, match="'label' is not a need; did you mean 'labels'"):
        Protocol(run="a:b", title="A", meaning="A.", needs=frozenset({"label"}))


def test_a_group_of_another_protocol_is_not_taken(monkeypatch):
    other = Protocol(run="a:b", title="A", meaning="A.", configs={"knn": Shared})
    monkeypatch.setitem(PROTOCOLS._registered, "other", other)
    with pytest.raises(ValueError, match="'other' has the group of settings 'knn', which is taken"):
        settings_type()
