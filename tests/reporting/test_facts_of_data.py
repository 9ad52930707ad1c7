"""Tests of the page on waiting for data, and on files that were left out."""

from vitrail.reporting.facts import facts, left_out, waiting
from vitrail.reporting.run_files import RunFiles


def rows(*shares: float, limit: str | None = None) -> list[dict]:
    limited = {"limited_by": limit} if limit else {}
    return [{"step": i, "data_wait": s} | limited for i, s in enumerate(shares)]


def test_the_first_steps_are_not_typical():
    found = rows(*[0.9] * 10, limit="decode") + rows(*[0.02] * 5)
    assert waiting(found) == "2% of a step (median)"
    assert waiting(rows(0.9, 0.8, 0.7)) == "80% of a step (median)", "where there are no others"


def test_the_limit_is_named_where_it_is_one_of_most_steps():
    typical = rows(*[0.3] * 6, limit="storage") + rows(*[0.05] * 3)
    assert waiting(rows(*[0.0] * 10) + typical) == "30% of a step (median), limited by storage"
    rare = rows(*[0.3] * 3, limit="storage") + rows(*[0.05] * 6)
    assert waiting(rows(*[0.0] * 10) + rare) == "5% of a step (median)"


def test_older_runs_and_damaged_rows_say_nothing():
    assert waiting([]) is None
    assert waiting([{"step": 0, "loss": 1.0}, {"data_wait": None}]) is None
    assert left_out(None) is None
    assert left_out({}) is None
    assert left_out([1]) is None


def test_they_are_facts_of_the_page():
    files = RunFiles("run", rows=rows(0.3, limit="views"), evaluation={"bad": {"train": 2}})
    found = dict(facts(files))
    assert found["Waiting for data"] == "30% of a step (median), limited by views"
    assert found["Left out"] == "2 train images that cannot be read, of the evaluation"
