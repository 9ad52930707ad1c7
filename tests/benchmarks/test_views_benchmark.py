"""The benchmarks of views run on any JPEGs, and say what is not installed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import views
from benchmarks.decode import encode
from benchmarks.feed import measure
from benchmarks.step_setting import CPU


def files(count: int) -> list[bytes]:
    y, x = np.mgrid[0:90, 0:120]
    waves = np.stack([127 + 100 * np.sin(x * a + y * 0.1) for a in (0.1, 0.2, 0.05)], axis=2)
    return [
        encode(Image.fromarray(np.roll(waves, 7 * i, 1).astype(np.uint8))) for i in range(count)
    ]


@pytest.mark.parametrize("method", views.PLANS)
def test_all_pipelines_give_the_views_of_the_plan(method):
    _, plan = views.PLANS[method]
    ways, missing = views.pipelines(method, plan)
    assert {"vitrail", *views.ACCOUNTABLE} <= set(ways)
    assert not set(ways) & set(missing)
    for name, pipeline in ways.items():
        found = torch.cat([view.flatten() for view in pipeline(files(1))])
        assert found.numel() == sum(3 * view.size**2 for view in plan.views), name
        assert found.isfinite().all(), name


def test_a_row_for_each_pipeline(monkeypatch):
    monkeypatch.setattr(views, "kornia", _missing)
    lines = views.compare("mae", files(2), blocks=2)
    assert next(line.split(" | ")[1] for line in lines) == "vitrail"
    assert any("kornia | not installed" in line for line in lines)
    assert "×" in lines[-1]


def _missing(*_: object) -> None:
    raise ImportError


def test_a_step_fed_from_files(tmp_path: Path):
    for i, data in enumerate(files(6)):
        (tmp_path / f"{i}.jpg").write_bytes(data)
    small = replace(CPU, batch=2, global_size=32, local_size=16, n_local=2, prototypes=64)
    lines = measure(tmp_path, small, workers=0, blocks=1, steps=1)
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| vitrail", "| lightly, DataLoader"]
    assert "of a step's time" in lines[-1]
