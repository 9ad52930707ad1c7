"""Helpers of the tests of pages: parsed elements, a picture, and run folders."""

import base64
import json
import re
from html.parser import HTMLParser

from tests.evals.synthetic_runs import write_metrics

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SETTINGS = {"k": 20, "tau": 0.07, "draws": 10, "seed": 0}


class Elements(HTMLParser):
    """All elements with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text, self.open = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def attributes(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def words_of(page):
    """The text of a page, its style left out, with single spaces."""
    body = page.split("<body", 1)[1]
    return re.sub(r"\s+", " ", Elements("<body" + body).text)


def require_self_contained(page):
    for tag, attributes in Elements(page).found:
        assert tag not in ("script", "link", "iframe", "object", "embed"), tag
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/png;base64,", "data:image/webp;base64,"))
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in page
    assert "@import" not in page
    assert len(page.encode()) < 10_000_000


def make_run(path, objective="simdino", data="digits", figures=("neighbours",), **evaluation):
    """A finished run; evaluated where any of `evaluation` is given."""
    (path / "figures").mkdir(parents=True)
    config = {"name": f"{objective}_digits", "data": data, "seed": 0, "steps": 30}
    config |= {"objective": {"kind": objective}, "command": f"vitrail pretrain {objective}_digits"}
    (path / "config.json").write_text(json.dumps(config))
    description = {"data": data, "step": 30, "steps": 30, "objective": objective}
    (path / "encoder.json").write_text(json.dumps(description))
    for name in figures:
        (path / "figures" / f"{name}.png").write_bytes(PNG)
    if evaluation:
        known = {"data": data, "n_train": 1297, "n_test": 500, "settings": SETTINGS}
        (path / "evaluation.json").write_text(json.dumps(known | evaluation))
    write_metrics(path)
    return path
