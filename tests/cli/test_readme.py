"""The commands that README shows are commands."""

import shlex
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
LINES = [
    line.split("#")[0].strip()
    for line in README.read_text().splitlines()
    if line.startswith("vitrail ") and "..." not in line
]


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_is_taken(line, monkeypatch):
    from vitrail import api, cli

    called = []
    monkeypatch.setattr(api, "start", lambda *a, **k: called.append("pretrain"))
    for name in ("resume", "evaluate", "report", "embed"):
        monkeypatch.setattr(api, name, lambda *a, name=name, **k: called.append(name))
    words = shlex.split(line)
    cli.main(words[1:])
    assert called == ([] if words[1] == "list" else [words[1]])


def test_the_readme_shows_commands():
    assert len(LINES) >= 5
    assert all((README.parent / p).exists() for p in ("CONTRIBUTING.md", "CHANGELOG.md"))
