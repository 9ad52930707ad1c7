"""The page in a real browser: nothing is asked of the network, nothing fails, nothing runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.report.build import build_report

sys.path.insert(0, str(Path(__file__).parent.parent / "evals"))
from synthetic_runs import write_metrics

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">.jpg"
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",
    "--v=0",
]


def chromium(page, profile, *more):
    """Runs to the end; any host name fails to resolve, so that a request shows in the log."""
    rules = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [CHROMIUM, *FLAGS, rules, f"--user-data-dir={profile}", *more, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    (run / "figures").mkdir()
    (run / "config.json").write_text(json.dumps({"name": HOSTILE, "data": HOSTILE, "steps": 30}))
    (run / "encoder.json").write_text("{}")
    (run / "quarantine.jsonl").write_text(json.dumps({"id": HOSTILE, "reason": HOSTILE}) + "\n")
    colours = np.zeros((60, 300, 3), dtype=np.uint8)
    colours[..., 0], colours[..., 2] = 250, 130  # a colour that nothing else on the page has
    for name in ("neighbours", "saliency", "pca"):
        Image.fromarray(colours).save(run / "figures" / f"{name}.png")
    knn = {"raw": 0.5, "untrained": 0.2, "trained": 0.9}
    (run / "evaluation.json").write_text(json.dumps({"knn": knn, "data": HOSTILE}))
    write_metrics(run, warning=HOSTILE)
    return build_report(run)


def test_it_loads_without_a_complaint_a_request_or_a_script(page, tmp_path):
    done = chromium(page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "ERR_NAME_NOT_RESOLVED" not in done.stderr
    assert not re.search(r"<script|<[^>]*\sonerror=", done.stdout)
    assert len(re.findall("<img", done.stdout)) == 3
    assert "<title>owned" not in done.stdout
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", done.stdout)


@pytest.mark.parametrize("width", [1100, 500])
@pytest.mark.parametrize("scheme", [0, 1])  # dark, light
def test_figures_are_decoded_and_fit(page, tmp_path, width, scheme):
    shot = tmp_path / "shot.png"
    size, colours = f"--window-size={width},3600", f"--blink-settings=preferredColorScheme={scheme}"
    chromium(page, tmp_path / "profile", f"--screenshot={shot}", size, colours)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    figures = (abs(pixels - [250, 0, 130]).max(-1) < 12).sum()
    assert figures > 3 * 60 * 300
    corner = pixels[2, 2].mean()
    assert corner < 60 if scheme == 0 else corner > 220
    # The page keeps its margin: nothing sticks out to the right of it.
    assert abs(pixels[:, -3] - pixels[2, 2]).max() < 12
