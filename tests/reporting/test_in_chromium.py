"""The pages in a real browser: nothing is asked of the network, nothing fails, nothing runs."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.reporting.pages import Elements, write_metrics
from vitrail.reporting.build import build_report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">.jpg"
)
FOLDER = HOSTILE.replace("/", "\u2215") + "x" * 90  # a name without a slash, and without a break
COLOUR = (250, 0, 130)  # that nothing else on the page has
FIGURES = {"neighbours": (300, 60), "saliency": (300, 60), "pca": (1400, 60), "xray": (420, 60)}
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
# Asks a page for what is wider than it: the whole, or an element that no scroller holds.
PROBE = """<script>addEventListener("load", () => {
  const wide = [...document.querySelectorAll("main *, header *, footer *")].filter(e =>
    !e.closest(".picture, .wide, svg") && e.getBoundingClientRect().right > innerWidth + 1);
  const scrollers = [...document.querySelectorAll("[tabindex='0']")];
  parent.postMessage({
    width: innerWidth, page: document.documentElement.scrollWidth,
    wide: wide.map(e => e.tagName + " " + e.className),
    unreachable: [...document.querySelectorAll(".picture, .wide")]
      .filter(e => e.scrollWidth > e.clientWidth && e.tabIndex !== 0).length,
    scrolling: scrollers.filter(e => e.scrollWidth > e.clientWidth).length,
    small: [...document.querySelectorAll("summary, nav a")]
      .filter(e => e.getBoundingClientRect().height < 24).length,
  }, "*");
});</script>"""
FRAME = """<!doctype html><title>-</title><pre id="answer"></pre><script>
addEventListener("message", event => {
  document.getElementById("answer").textContent = JSON.stringify(event.data); });
</script><iframe src="probed.html" style="width: 390px; height: 800px; border: 0"></iframe>"""


def chromium(page, profile, *more):
    """Runs to the end; any host name fails to resolve, so that a request shows in the log."""
    rules = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [CHROMIUM, *FLAGS, rules, f"--user-data-dir={profile}", *more, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def write_run(run):
    (run / "figures").mkdir(parents=True)
    config = {"name": HOSTILE, "data": HOSTILE, "steps": 30, "command": HOSTILE}
    (run / "config.json").write_text(json.dumps(config | {"objective": {"kind": run.name}}))
    (run / "encoder.json").write_text("{}")
    (run / "quarantine.jsonl").write_text(json.dumps({"id": HOSTILE, "reason": HOSTILE}) + "\n")
    for name, size in FIGURES.items():
        Image.new("RGB", size, COLOUR).save(run / "figures" / f"{name}.png")
    few = {"mean": 0.5, "std": 0.01}
    known = {"knn": {"raw": 0.5, "untrained": 0.2, "trained": 0.9}, "data": HOSTILE}
    known |= {"linear_1_percent": {"raw": few, "untrained": few, "trained": few}}
    known |= {"transfer": {HOSTILE: {"knn": {"trained": 0.25}}, "x" * 150: dict(known)}}
    settings = {"k": 20, HOSTILE: HOSTILE}
    (run / "evaluation.json").write_text(json.dumps(known | {"settings": settings}))
    write_metrics(run, warning=HOSTILE)
    return run


@pytest.fixture(scope="module", params=["one", "three", "seven"])
def pages(request, tmp_path_factory):
    """(page, how many runs it is about)."""
    root = tmp_path_factory.mktemp("runs")
    runs = [write_run(root / FOLDER)]
    runs += [write_run(root / f"{FOLDER}{i}") for i in range(1, {"three": 3}.get(request.param, 1))]
    runs += [write_run(root / f"r{i}") for i in range(6)] if request.param == "seven" else []
    out = None if request.param == "one" else root / "compared.html"
    return build_report(*runs, out=out), len(runs)


def test_it_loads_without_a_complaint_a_request_or_a_script(pages, tmp_path):
    page, n_runs = pages
    done = chromium(page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "ERR_NAME_NOT_RESOLVED" not in done.stderr
    for tag, attributes in Elements(done.stdout).found:
        assert tag != "script"
        assert not any(name.startswith("on") for name in attributes)
    assert len(re.findall("<img", done.stdout)) == n_runs * len(FIGURES)
    assert "<title>owned" not in done.stdout
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", done.stdout)


@pytest.mark.parametrize(("width", "scheme"), [(1100, 1), (500, 0)])  # light, dark
def test_figures_are_decoded_and_fit(pages, tmp_path, width, scheme):
    page, n_runs = pages
    if n_runs == 7:
        pytest.skip("looks as three do")
    shot = tmp_path / "shot.png"
    height = 6000 if width > 600 else 9000
    size, colours = (
        f"--window-size={width},{height}",
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    chromium(page, tmp_path / "profile", f"--screenshot={shot}", size, colours)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(np.int16)
    assert pixels.shape[1] == width
    figures = (abs(pixels - COLOUR).max(-1) < 12).sum()
    assert figures > 0.95 * n_runs * 2 * 60 * 300  # the two that fit everywhere, unscaled
    corner = pixels[2, 2].mean()
    assert corner < 60 if scheme == 0 else corner > 220
    # The page keeps its margin: nothing sticks out to the right of it.
    assert abs(pixels[:, -3] - pixels[2, 2]).max() < 12


def test_a_phone_shows_all_of_it(pages, tmp_path):
    page, _ = pages
    text = page.read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)[0]
    (tmp_path / "probed.html").write_text(text.replace(policy, "").replace("</body>", PROBE))
    (tmp_path / "frame.html").write_text(FRAME)
    done = chromium(tmp_path / "frame.html", tmp_path / "profile", "--dump-dom")
    answer = json.loads(re.search('<pre id="answer">(.*?)</pre>', done.stdout)[1])
    assert answer.pop("scrolling") > 0
    assert answer == {"width": 390, "page": 390, "wide": [], "unreachable": 0, "small": 0}


def test_the_policy_lets_no_script_run(pages, tmp_path):
    """A second defence: even a script that got onto the page would not run."""
    page, n_runs = pages
    if n_runs > 1:
        pytest.skip("has the same policy")
    script = "<script>document.title = 'owned'</script></body>"
    (tmp_path / "with.html").write_text(page.read_text().replace("</body>", script))
    done = chromium(tmp_path / "with.html", tmp_path / "profile", "--dump-dom")
    assert "Content Security Policy" in done.stderr
    assert "<title>owned" not in done.stdout
