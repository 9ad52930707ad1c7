"""`vitrail stats` against NumPy, and what it prints."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from vitrail.cli import main
from vitrail.data.sources.registry import open_source
from vitrail.data.tools import stats as stats_module
from vitrail.data.tools.stats import statistics, stats_words

RNG = np.random.default_rng(8)


@pytest.fixture
def folder(tmp_path):
    """Images of different sizes and brightness, so weighting by pixels would show."""
    arrays = []
    for i, size in enumerate([(8, 9), (40, 30), (13, 50), (30, 40), (5, 5)]):
        top = 40 + 50 * i
        arrays.append(RNG.integers(0, top, (*size, 3), dtype=np.uint8))
        Image.fromarray(arrays[-1]).save(tmp_path / f"{i}.png")
    return tmp_path, arrays


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("together", [2**20, 7])
def test_moments_are_numpys(folder, monkeypatch, workers, together):
    monkeypatch.setattr(stats_module, "TOGETHER", together)
    root, arrays = folder
    found = statistics(open_source(f"folder:{root}"), "train", workers=workers)
    pixels = [a.reshape(-1, 3).astype(np.float64) / 255 for a in arrays]
    mean = np.mean([p.mean(0) for p in pixels], axis=0)
    square = np.mean([(p**2).mean(0) for p in pixels], axis=0)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, np.sqrt(square - mean**2), rtol=1e-10)
    assert found.lowest == tuple(np.min([a.min((0, 1)) for a in arrays], axis=0))
    assert found.highest == tuple(np.max([a.max((0, 1)) for a in arrays], axis=0))
    assert (found.smallest, found.median, found.largest) == ((5, 5), (13, 30), (40, 30))
    assert (found.images, found.total, found.bits, found.channels) == (5, 5, 8, 3)


def test_16_bits_are_exact(tmp_path):
    array = RNG.integers(60_000, 60_003, (4, 5, 30, 20), dtype=np.uint16)
    array[:, 2] = 65535
    np.save(tmp_path / "x.npy", array)
    found = statistics(open_source(f"npy:{tmp_path}/x.npy"), "train")
    exact = array.transpose(1, 0, 2, 3).reshape(5, -1).astype(np.float64) / 65535
    np.testing.assert_allclose(found.mean, exact.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.std, exact.std(1), atol=1e-9)
    assert found.bits == 16
    assert found.flags().split("std ")[1].split()[2] == "1.0000", "a constant is not divided by 0"
    assert "constant: channel 3 tells nothing; its std is set to 1" in stats_words(found)


def test_bad_files_are_told_and_left_out(folder):
    root, _ = folder
    (root / "bad.png").write_bytes(b"no image")
    source = open_source(f"folder:{root}")
    found = statistics(source, "train")
    assert found.images == 5
    assert list(found.bad) == ["bad.png"]
    assert any(line.startswith('bad: "bad.png": it is not an image') for line in stats_words(found))
    for i in range(5):
        (root / f"{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r'none of its 6 images .*"0.png": the file is empty'):
        statistics(source, "train")


def test_some_are_drawn_over_all(tmp_path):
    array = np.repeat(np.arange(200, dtype=np.uint8), 16).reshape(200, 4, 4)
    np.save(tmp_path / "x.npy", array)
    source = open_source(f"npy:{tmp_path}/x.npy")
    found = statistics(source, "train", most=50)
    assert (found.images, found.total) == (50, 200)
    assert 80 < found.mean[0] * 255 < 120, "not the first 50"
    assert found == statistics(source, "train", most=50)
    assert statistics(source, "train", most=999).images == 200
    with pytest.raises(ValueError, match="max is 0"):
        statistics(source, "train", most=0)


def test_the_command_prints_flags_that_pretrain_takes(folder, tmp_path, capsys):
    root, _ = folder
    main(["stats", f"folder:{root}", "--json", "--channels", "1", "--workers", "0"])
    found = json.loads(capsys.readouterr().out)
    assert (found["channels"], found["images"], found["spec"]) == (1, 5, f"folder:{root}")
    main(["stats", f"folder:{root}", "--workers", "0"])
    out = capsys.readouterr().out
    assert "5 images of 8 bits" in out
    assert "height x width: 5 x 5 to 40 x 30, median 13 x 30" in out
    command = out[out.index("vitrail pretrain") :].replace("\\\n", " ")
    words = shlex.split(command)
    assert words[:5] == ["vitrail", "pretrain", "RECIPE", "--data", f"folder:{root}"]
    # Whether they are accepted: the run is refused for its folder alone.
    (root / "run").mkdir()
    (root / "run" / "config.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["pretrain", "simdino_digits", *words[3:], "--out", str(root / "run")])
    assert "run" in (message := capsys.readouterr().err)
    assert "mean" not in message
    mean = words[words.index("--objective.views.mean") + 1 :][:3]
    direct = statistics(open_source(f"folder:{root}"), "train").mean
    np.testing.assert_allclose([float(m) for m in mean], direct, atol=5e-5)
