"""The page that compares backbones: made whole by one command, from runs of a few steps."""

import sys

from PIL import Image

from benchmarks import white_box


def test_the_page_and_its_pictures_go_where_asked(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(white_box, "PAGE", tmp_path / "white-box.md")
    monkeypatch.setattr(white_box, "IMAGES", tmp_path / "images")
    monkeypatch.setattr(white_box, "BATCH", 2)
    two = {name: white_box.BACKBONES[name] for name in ("ViT", "CRATE")}
    monkeypatch.setattr(white_box, "BACKBONES", two)
    monkeypatch.setattr(sys, "argv", ["white_box", "--epochs", "0.1", "--seeds", "1", "--save"])
    white_box.main()
    page = (tmp_path / "white-box.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert "| CRATE | 55,240 | 8.5 |" in page
    for name in ("layers", "maps"):
        assert Image.open(tmp_path / "images" / f"white-box-{name}.png").width > 900
