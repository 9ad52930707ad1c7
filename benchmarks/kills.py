"""Kills at random moments, over all objectives: each run goes on and ends with the same bits.

    python -m benchmarks.kills [--kills 300] [--seed 0]

For every objective a tiny run is made once without a kill. Then runs of the same command are killed
(SIGKILL) up to three times each, either after a random part of the time that the run takes, or
within a write: at a random call of fsync or rename. They go on by the same command with
`--resume auto`, and must end with the weights, the optimizer's state and the losses of the run that
was not killed. The default takes about a quarter of an hour on two cores.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.signals import in_child

STEPS = 8
LONGEST = 3  # kills of one run
CALLS = 40  # of fsync and of rename, about as many as a run makes
DEADLINE = 600.0  # seconds of one run; a machine that does much else is slow
MOST_WRONG = 20  # runs; more show nothing new

_TINY = f"--steps {STEPS} --batch-size 8 --device cpu --workers 0 --checkpoint-every 2"
_TINY += " --precision fp32 --health-every 2"
_HEAD = " --objective.hidden-dim 16 --objective.bottleneck-dim 8"
_DECODER = " --objective.decoder-width 16 --objective.decoder-depth 1 --objective.decoder-heads 2"
_TEXT = " --objective.text-width 16 --objective.text-depth 1 --objective.text-heads 2"

# By objective: the recipe, and what makes it tiny. PAIRS is a table of pictures with captions.
RUNS = {
    "simdino": f"simdino_digits{_HEAD}",
    "dino": "dino_vits_fashion --backbone vit_nano_patch4_28 --data digits --objective.out-dim 32"
    f"{_HEAD} --objective.drop-path 0.1",
    "swav": "swav_digits --objective.n-prototypes 8 --objective.hidden-dim 16"
    " --objective.queue-length 8 --objective.queue-epoch 0.01",
    "deepcluster": "deepcluster_digits --objective.n-clusters 8 --objective.reassign 0.02",
    "mae": f"mae_digits{_DECODER}",
    "crate_mae": "crate_mae_digits",
    "cotraining": "cotraining_digits --objective.n-labels 16",
    "supervised": "crate_digits_supervised",
    "clip": "clip_emoji --backbone vit_nano_patch4_32 --objective.views.size 16 --data pairs:PAIRS"
    f" --objective.embed-dim 16 --objective.context 8{_TEXT}",
}

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["vitrail.cli.run", "vitrail.train.build", "vitrail.train.loop", "vitrail.recipes.named"]
)


def make_pairs(root: Path) -> Path:
    """Writes pictures and a table of their captions, and returns the table."""
    lines = ["path,caption"]
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 20, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(root / f"{i}.png")
        lines.append(f"{i}.png,the picture of number {i}")
    (root / "pairs.csv").write_text("\n".join(lines) + "\n")
    return root / "pairs.csv"


def command(objective: str, run: Path, pairs: Path) -> list[str]:
    """Returns the command of an objective's tiny run."""
    words = f"pretrain {RUNS[objective]} {_TINY} --resume auto".replace("PAIRS", str(pairs))
    return [*words.split(), "--out", str(run)]


def dying(call: str, count: int, arguments: list[str], said: str, temporary: str) -> None:
    """Runs a command that kills itself at the count-th call of a function of os."""
    original, calls = getattr(os, call), 0

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **named)

    setattr(os, call, counted)
    in_child(arguments, said, temporary)


def run_once(arguments: list[str], root: Path, death: tuple[str, int] | float | None) -> int | None:
    """Runs a command in a process, and kills it if asked; returns its exit status.

    Args:
        arguments: the command.
        root: a folder for what it prints.
        death: (name of a function of os, number of the call), seconds, or None for no kill.
    """
    said, temporary = str(root / "said.txt"), str(root / "temporary")
    os.makedirs(temporary, exist_ok=True)
    if isinstance(death, tuple):
        process = _processes.Process(target=dying, args=(*death, arguments, said, temporary))
    else:
        process = _processes.Process(target=in_child, args=(arguments, said, temporary))
    process.start()
    if isinstance(death, float):
        process.join(death)
        process.kill()
    process.join(DEADLINE)
    return process.exitcode


def outcome(run: Path) -> dict[str, Any]:
    """Returns what a finished run holds: its state, its encoder, and its losses."""
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    state = torch.load(newest / "state.pt", weights_only=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "state": state,
        "encoder": (run / "encoder.safetensors").read_bytes(),
        "losses": [(row["step"], row["loss"]) for row in rows],
    }


def same(a: Any, b: Any) -> bool:
    """Returns whether nested states are the same, every tensor to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def one_run(
    objective: str, root: Path, seconds: float, expected: Any, randomness: random.Random
) -> tuple[int, str]:
    """Makes a run that is killed again and again; returns the kills, and what is wrong."""
    run, killed = root / "run", 0
    arguments = command(objective, run, root.parent / "pairs.csv")
    for _ in range(randomness.randint(1, LONGEST)):
        within = (randomness.choice(("fsync", "replace")), randomness.randint(1, CALLS))
        death = within if randomness.random() < 0.5 else randomness.uniform(0.05, 1) * seconds
        status = run_once(arguments, root, death)
        killed += status == -signal.SIGKILL
        if status not in (0, -signal.SIGKILL):
            return killed, f"{objective}: status {status}: {(root / 'said.txt').read_text()}"
    status = run_once(arguments, root, None)
    if status != 0:
        return killed, f"{objective}: it does not go on: {(root / 'said.txt').read_text()}"
    left = [p for p in run.rglob("*.writing*") if p.exists()]
    if left:
        return killed, f"{objective}: left behind: {left}"
    found = outcome(run)
    wrong = [name for name in expected if not same(found[name], expected[name])]
    return killed, f"{objective}: another {' and '.join(wrong)}" if wrong else ""


def campaign(kills: int, seed: int, root: Path) -> tuple[Counter[str], list[str]]:
    """Kills runs of all objectives by turns; returns the kills of each, and what was wrong."""
    randomness = random.Random(seed)
    make_pairs(root)
    whole: dict[str, tuple[float, Any]] = {}
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    i = 0
    while sum(counts.values()) < kills and len(wrong) < MOST_WRONG:
        objective = list(RUNS)[i % len(RUNS)]
        folder = root / f"{i}-{objective}"
        folder.mkdir()
        if objective not in whole:
            began = time.monotonic()
            arguments = command(objective, root / objective, root / "pairs.csv")
            if run_once(arguments, folder, None) != 0:
                raise RuntimeError(f"{objective}: {(folder / 'said.txt').read_text()}")
            whole[objective] = time.monotonic() - began, outcome(root / objective)
            print(f"{objective}: {whole[objective][0]:.1f} s", flush=True)
        killed, complaint = one_run(objective, folder, *whole[objective], randomness)
        counts[objective] += killed
        if complaint:
            wrong.append(complaint)
            print(complaint, flush=True)
        shutil.rmtree(folder)
        i += 1
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        counts, wrong = campaign(asked.kills, asked.seed, Path(folder))
    for objective, count in counts.items():
        print(f"{objective:<12} {count} kills")
    print(f"{sum(counts.values())} kills, {len(wrong)} runs with something wrong")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
