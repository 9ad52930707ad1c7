"""The list of bad samples."""

import json
import logging
import multiprocessing

import pytest

from vitrail.data.loading.quarantine import REASON_LIMIT, Quarantine


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


def test_two_ranks_share_a_file(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    a, b = Quarantine(path, total=10), Quarantine(path, total=10)
    a.add("met by both", "first")
    a.add("of a", "x")
    b.add("met by both", "second")
    b.add("of b", "y")
    assert b.entries == {"met by both": "first", "of a": "x", "of b": "y"}
    a.add("of a, later", "z")
    assert dict(a.entries) == dict(b.entries) | {"of a, later": "z"}
    ids = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert ids == ["met by both", "of a", "of b", "of a, later"]


def test_the_share_counts_what_all_ranks_met(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    a, b = (Quarantine(path, total=4, max_fraction=0.5) for _ in range(2))
    a.add("1", "x")
    b.add("2", "x")
    with pytest.raises(ValueError, match="3 of 4 samples"):
        a.add("3", "x")


def test_an_id_written_by_two_ranks_at_once_counts_once(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    line = '{"id": "%s", "reason": "%s"}\n'
    path.write_text(line % ("a", "first") + line % ("a", "second") + line % ("b", "x"))
    assert Quarantine(path, total=4, max_fraction=0.5).entries == {"a": "first", "b": "x"}


def test_a_half_written_line_between_two_ranks(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    a, b = Quarantine(path, total=10), Quarantine(path, total=10)
    a.add("a", "x")
    with path.open("a") as file:
        file.write('{"id": "torn", "rea')
    b.add("b", "y")
    a.add("c", "z")
    assert dict(a.entries) == {"a": "x", "b": "y", "c": "z"}
    assert Quarantine(path, total=10).entries == a.entries


def test_a_last_line_without_its_end_counts(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"id": "a", "reason": "x"}')
    quarantine = Quarantine(path, total=10)
    quarantine.add("b", "y")
    assert Quarantine(path, total=10).entries == {"a": "x", "b": "y"} == quarantine.entries


def test_lines_are_short(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, total=10)
    quarantine.add("a", "\U0001f600" * 10_000)
    assert len(quarantine.entries["a"]) == REASON_LIMIT
    assert len(path.read_bytes()) < 4096
    assert Quarantine(path, total=10).entries == quarantine.entries


def _add_many(path, name):
    quarantine = Quarantine(path, total=1000)
    for i in range(100):
        quarantine.add(f"{name} {i}", "x" * 190)
        quarantine.add(f"both {i}", "y")


def test_processes_at_once_lose_nothing(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_add_many, args=(path, name)) for name in "ab"]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    expected = {f"{name} {i}" for name in ("a", "b", "both") for i in range(100)}
    assert set(Quarantine(path, total=1000).entries) == expected
