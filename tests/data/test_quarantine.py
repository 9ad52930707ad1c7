"""The list of bad samples."""

import json
import logging

import pytest

from vitrail.data.quarantine import Quarantine


def test_entries_are_written_once_and_logged(tmp_path, caplog):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, total=10)
    with caplog.at_level(logging.WARNING):
        quarantine.add("a.jpg", "empty")
        quarantine.add("b.jpg", "text")
        quarantine.add("a.jpg", "empty")
    assert quarantine.entries == {"a.jpg": "empty", "b.jpg": "text"}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"id": "a.jpg", "reason": "empty"}, {"id": "b.jpg", "reason": "text"}]
    assert sum("a.jpg" in record.getMessage() for record in caplog.records) == 1


def test_odd_ids_survive(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    odd = ['quo"te\n<script>\u2028.jpg', "bad\udcff\udcfe.jpg", "žluť 图.jpg"]
    quarantine = Quarantine(path, total=10)
    for id in odd:
        quarantine.add(id, 'reason\nof "two" lines')
    assert len(path.read_bytes().split(b"\n")) == 4
    assert path.read_bytes().isascii()
    assert list(Quarantine(path, total=10).entries) == odd


def test_reload_after_a_kill_in_mid_line(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, total=10).add("a", "x")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "b", "rea')
    quarantine = Quarantine(path, total=10)
    assert quarantine.entries == {"a": "x"}
    quarantine.add("b", "y")
    quarantine.add("c", "z")
    assert Quarantine(path, total=10).entries == {"a": "x", "b": "y", "c": "z"}


def test_too_many_stop_the_run(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, total=4, max_fraction=0.5)
    quarantine.add("a", "empty")
    quarantine.add("b", "x")
    with pytest.raises(ValueError, match=r'3 of 4 samples.*share of 0\.5.*"a": empty.*jsonl'):
        quarantine.add("c", "x")
    with pytest.raises(ValueError, match="3 of 4"):
        Quarantine(path, total=4, max_fraction=0.5)
    assert len(Quarantine(path, total=4, max_fraction=0.8).entries) == 3


def test_without_a_file():
    quarantine = Quarantine(None, total=1, max_fraction=1.0)
    quarantine.add("a", "x")
    assert quarantine.entries == {"a": "x"}
    with pytest.raises(ValueError, match="max_fraction is 2"):
        Quarantine(None, total=1, max_fraction=2.0)
