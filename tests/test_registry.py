"""Registries: rows of ours, of installed packages, and of this process."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

import vitrail
from vitrail import registry as module
from vitrail.objectives.registry import OBJECTIVES, ObjectiveRow
from vitrail.registry import REGISTRIES, Registry, Row, registry, resolve, summary


@dataclass(frozen=True)
class Thing(Row):
    summary: str
    value: int = 0


FOREIGN = Thing("from elsewhere", 2)


@pytest.fixture
def things(monkeypatch: pytest.MonkeyPatch) -> Registry[Thing]:
    """A registry with one row of its own and four entry points, of which two cannot be used."""
    own = __name__
    points = [
        EntryPoint("theirs", f"{own}:FOREIGN", "vitrail.things"),
        EntryPoint("ours", f"{own}:FOREIGN", "vitrail.things"),
        EntryPoint("broken", "there_is_no_such_module:ROW", "vitrail.things"),
        EntryPoint("wrong", f"{own}:REGISTRIES", "vitrail.things"),
    ]
    monkeypatch.setattr(module, "entry_points", lambda group: points)
    return Registry("thing", Thing, {"ours": Thing("our own", 1)})


def test_rows_come_from_the_table_then_packages_then_the_process(things, capsys):
    things.register("mine", Thing("made here", 3))
    assert list(things) == ["ours", "theirs", "broken", "wrong", "mine"]
    assert [things.find(name).value for name in ("ours", "theirs", "mine")] == [1, 2, 3]
    assert "the thing 'ours' of the package" in capsys.readouterr().err
    assert len(things) == 5


def test_a_row_that_cannot_be_loaded_is_named_and_spoils_no_listing(things):
    with pytest.raises(ValueError, match=r"'broken' of the package .* cannot be loaded"):
        things.find("broken")
    with pytest.raises(ValueError, match=r"'wrong' is registered as .* must be a .*Thing"):
        things.find("wrong")
    listing = dict(things.listing())
    assert listing["theirs"] == "from elsewhere"
    assert "cannot be loaded" in listing["broken"]


def test_names_that_are_taken_or_unknown_are_refused(things):
    with pytest.raises(ValueError, match="'ours' is there already"):
        things.register("ours", Thing("again"))
    with pytest.raises(ValueError, match="'theirs' is there already"):
        things.register("theirs", Thing("again"))
    with pytest.raises(ValueError, match="'our' is not a thing; did you mean 'ours'"):
        things.find("our")
    with pytest.raises(KeyError):
        things["nothing"]
    with pytest.raises(TypeError):
        things.own["ours"] = Thing("mine")


def test_register_from_python(monkeypatch):
    monkeypatch.setattr(OBJECTIVES, "_registered", {})
    row = ObjectiveRow("vitrail.objectives.dino:DINO", "vitrail.objectives.dino:Config", "again")
    vitrail.register("objective", "dino_again", row)
    assert OBJECTIVES.find("dino_again") is row
    assert OBJECTIVES.package("dino_again") == "this process"
    with pytest.raises(ValueError, match="'objektive' is not a kind of row; did"):
        vitrail.register("objektive", "x", row)
    with pytest.raises(ValueError, match=r"must be a .*\.ObjectiveRow"):
        vitrail.register("objective", "x", object())


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_registry_is_found_by_its_kind(kind):
    assert registry(kind).kind == kind
    assert len(registry(kind)) > 0


def test_references_and_summaries():
    assert resolve("vitrail.config:suggest")("a", ["b"]) == "; there are: b"
    assert resolve(3) == 3
    assert summary("vitrail.config:from_dict").startswith("Builds a dataclass from JSON types")
    assert summary(resolve) == summary("vitrail.registry:resolve")
