"""Memory stays flat over a run: a short form of `benchmarks.memory_flat`, all processes watched."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory_flat import Reading, growth

FLAT = 2.5  # MiB. To keep the images of these steps would take 6.

# In a process of its own, in which no shapes are checked: that takes most of the time, and memory.
WATCH = """
import json, sys
from pathlib import Path
import torch
from benchmarks.memory_flat import growth, tiny_files, watch
from vitrail.data.sources.registry import open_source
from vitrail.data.views.plan import RandomResizedCrop

torch.set_num_threads(1)
colour = RandomResizedCrop(8).plan()
grey = RandomResizedCrop(8, mean=(0.5,), std=(0.5,)).plan()
files = tiny_files(Path(sys.argv[1]))
found = {n: growth(watch(files, colour, n, 200, readings=60)) for n in (0, 2)}
found["memory"] = growth(watch(open_source("digits"), grey, 0, 200, readings=60))
print(json.dumps(found))
"""


@pytest.mark.timeout(120)
def test_batches_leave_nothing_behind(tmp_path):
    home = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, tmp_path / "images"],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"0", "2", "memory"}
    for where, (main, worker) in found.items():
        assert main < FLAT, where
        assert worker < FLAT, where


def test_growth_is_seen_and_the_first_steps_do_not_count():
    climbing = [Reading(step, 100.0 + max(0, 50 - step), step * 0.1) for step in range(100)]
    main, worker = growth(climbing)
    assert main < 0
    assert worker == pytest.approx(8.0)
