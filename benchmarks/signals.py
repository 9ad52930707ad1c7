"""Signals at random moments, over all commands: each ends soon, and leaves nothing behind.

    python -m benchmarks.signals [--trials 240] [--seed 0] [--fresh]

A trial starts a command and sends SIGINT or SIGTERM after a random part of the time that it takes:
once, or a second time soon after, or with its workers stopped (SIGSTOP) before. It fails if the
command does not end, prints a traceback, ends with another status than 0 or that of the signal, or
leaves a process or a file in the temporary folder. Commands run in a process that has imported
torch before; with --fresh in one that has not, as from a shell, which takes some seconds more each.
The default takes about ten minutes on two cores.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

HOW = ("once", "twice", "stopped once", "stopped twice")
DEADLINE = 60.0  # seconds to end; a machine that does much else is slow
CACHE = "torchinductor"  # of torch, which is to stay
PAUSE = 0.5  # seconds between two signals, at most
TINY = [
    "--backbone",
    "vit_nano_patch4_32",
    "--device",
    "cpu",
    "--batch-size",
    "8",
    "--channels",
    "3",
    "--objective.views.mean",
    ".5",
    ".5",
    ".5",
    "--objective.views.std",
    ".3",
    ".3",
    ".3",
    "--objective.hidden-dim",
    "16",
    "--objective.bottleneck-dim",
    "8",
    "--workers",
    "2",
]

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["vitrail.cli.run", "vitrail.train.build", "vitrail.train.loop", "vitrail.evals.evaluate"]
)


class Trial(NamedTuple):
    """One command and its signals.

    Attributes:
        command: the command's name.
        how: one of HOW.
        number: of the signal.
        delay: seconds from the moment at which the command handles signals.
        pause: seconds between two signals.
    """

    command: str
    how: Literal["once", "twice", "stopped once", "stopped twice"]
    number: signal.Signals
    delay: float
    pause: float


def make_data(root: Path) -> Path:
    """Writes a folder of two classes with a test split, and returns it."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = root / "data" / ("test" if i % 3 == 0 else "train") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root / "data"


def commands(root: Path, out: Path) -> dict[str, list[str]]:
    """Returns the words of every command that reads or writes, with its results below `out`.

    Args:
        root: holds `data`, `run` (a finished run) and, for `resume`, `begun` (one that is not).
        out: a folder of the trial's own.
    """
    spec, run = f"folder:{root / 'data'}", str(root / "run")
    train = ["pretrain", "simdino_digits", "--data", spec, *TINY, "--steps", "12"]
    return {
        "pretrain": [*train, "--out", f"{out}/run"],
        "resume": ["resume", f"{out}/begun"],
        "evaluate": f"evaluate {run} --out {out}/e --protocols knn linear --workers 2".split(),
        "embed": f"embed {run} --out {out}/features.npz --workers 2".split(),
        "stats": f"stats {spec} --workers 2".split(),
        "pack": f"pack {spec} --out {out}/pack --workers 2".split(),
        "report": f"report {run} --out {out}/page.html".split(),
        "export": f"export {run} --format safetensors --out {out}/export".split(),
        "saliency": f"saliency {run} --frames {root}/data/test/a --out {out}/a.gif".split(),
    }


def in_child(arguments: list[str], said: str, temporary: str) -> None:
    """Runs a command in a process of its own, as the console script does."""
    os.setsid()
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    multiprocessing.set_start_method("fork", force=True)  # as in a process that nobody has forked
    sys.argv[1:] = arguments
    from vitrail.cli import main

    main()


def start(arguments: list[str], said: Path, temporary: Path, fresh: bool) -> Any:
    """Starts a command; what it prints goes to a file."""
    if not fresh:
        process = _processes.Process(target=in_child, args=(arguments, str(said), str(temporary)))
        process.start()
        return process
    with open(said, "w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "vitrail", *arguments],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=os.environ | {"TMPDIR": str(temporary)},
        )


def finish(process: Any, seconds: float) -> int | None:
    """Returns the exit status of a process, None if it does not end in time."""
    if isinstance(process, subprocess.Popen):
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
    process.join(seconds)
    return process.exitcode


def handles_signals(pid: int) -> bool:
    """Returns whether a process has a handler for SIGTERM, or is gone."""
    try:
        [line] = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigCgt" in x]
    except (OSError, ValueError):
        return True
    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def session(leader: int) -> list[int]:
    """Returns the other processes of a session that are not zombies."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            state, _, _, sid = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
        except (OSError, ValueError):
            continue
        if int(sid) == leader and int(folder.name) != leader and state != "Z":
            found.append(int(folder.name))
    return found


def about(pid: int) -> str:
    """Returns the command and the state of a process."""
    folder = Path(f"/proc/{pid}")
    with suppress(OSError):
        words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        wanted = ("State", "PPid", "SigIgn", "SigBlk", "SigPnd")
        lines = (folder / "status").read_text().splitlines()
        return " ".join([words, *(x for x in lines if x.startswith(wanted))])
    return str(pid)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Waits until a condition holds; returns whether it does."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    return holds


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def prepare(root: Path, only: Collection[str] = ()) -> dict[str, float]:
    """Makes the data and the runs that commands need, and returns the seconds that each takes.

    Args:
        root: an empty folder.
        only: names of the commands; none for all of them.
    """
    make_data(root)
    seconds = {}
    (root / "once").mkdir()
    words = commands(root, root / "once")
    words = {name: words[name] for name in only or words}
    for name, arguments in words.items():
        if name == "resume":
            begun = root / "begun"
            run_to_the_end([*words["pretrain"][:-1], str(begun), "--checkpoint-every", "1"], root)
            shutil.rmtree(begun / "checkpoints" / "step-00000012")
            shutil.copytree(begun, root / "once" / "begun")
        seconds[name] = run_to_the_end(arguments, root)
        if name == "pretrain":
            shutil.copytree(root / "once" / "run", root / "run")
    return seconds


def run_to_the_end(arguments: list[str], root: Path) -> float:
    """Returns the seconds that a command takes, once it handles signals."""
    said, temporary = root / "said.txt", root / "temporary"
    temporary.mkdir(exist_ok=True)
    process = start(arguments, said, temporary, fresh=False)
    wait_for(lambda: handles_signals(process.pid), DEADLINE)
    began = time.monotonic()
    status = finish(process, 10 * DEADLINE)
    if status != 0:
        raise RuntimeError(f"{arguments} ended with {status}: {said.read_text()}")
    return time.monotonic() - began


def attempt(trial: Trial, root: Path, out: Path, fresh: bool = False) -> tuple[int | None, str]:
    """Runs one trial.

    Args:
        trial: the command and its signals.
        root: as `prepare` has left it.
        out: an empty folder.
        fresh: import torch in the process of the command.

    Returns:
        The exit status, and what is wrong, "" if nothing is.
    """
    said, temporary = out / "said.txt", out / "temporary"
    temporary.mkdir()
    if trial.command == "resume":
        shutil.copytree(root / "begun", out / "begun")
    process = start(commands(root, out)[trial.command], said, temporary, fresh)
    pid = process.pid
    wait_for(lambda: handles_signals(pid), DEADLINE)
    time.sleep(trial.delay)
    if trial.how.startswith("stopped"):
        for worker in session(pid):
            send(worker, signal.SIGSTOP)
    send(pid, trial.number)
    if trial.how.endswith("twice"):
        time.sleep(trial.pause)
        send(pid, trial.number)
    status = finish(process, DEADLINE)
    wrong = []
    if status is None:
        wrong.append("it does not end")
        process.kill()
        finish(process, DEADLINE)
    elif status not in (0, -trial.number, 128 + trial.number):
        wrong.append(f"its status is {status}")
    text = said.read_text() if said.exists() else ""
    if "Traceback" in text or "Exception ignored" in text:
        wrong.append("it prints a traceback")
    if not wait_for(lambda: not session(pid), 5.0):
        wrong.append(f"processes stay: {[about(orphan) for orphan in session(pid)]}")
        for orphan in session(pid):
            send(orphan, signal.SIGKILL)
    left = [path.name for path in temporary.iterdir() if not path.name.startswith(CACHE)]
    if trial.how.endswith("once") and left:
        wrong.append(f"files stay: {left}")
    if status == 0 and trial.command in ("pretrain", "resume"):
        run = out / ("run" if trial.command == "pretrain" else "begun")
        if not wrong and not any((run / "checkpoints").glob("step-*")):
            wrong.append("nothing is saved")
    return status, "; ".join(wrong) + (f"\n{text}" if wrong else "")


def draw(seconds: dict[str, float], randomness: random.Random) -> Trial:
    """Draws a trial, of commands by the seconds that each takes."""
    command = randomness.choice(list(seconds))
    return Trial(
        command,
        randomness.choice(HOW),  # type: ignore[arg-type]
        randomness.choice((signal.SIGINT, signal.SIGTERM)),
        randomness.uniform(0, seconds[command]),
        randomness.uniform(0, PAUSE),
    )


def campaign(trials: int, seed: int, root: Path, fresh: bool = False) -> tuple[Counter, list[str]]:
    """Runs trials, and returns how often each status came, and what was wrong."""
    seconds = prepare(root)
    randomness = random.Random(seed)
    statuses: Counter[tuple[str, Any]] = Counter()
    wrong = []
    for i in range(trials):
        trial = draw(seconds, randomness)
        out = root / f"trial-{i}"
        out.mkdir()
        status, complaint = attempt(trial, root, out, fresh)
        statuses[trial.command, status] += 1
        if complaint:
            wrong.append(f"trial {i}: {trial}: {complaint}")
        shutil.rmtree(out, ignore_errors=True)
    return statuses, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="signals-") as folder:
        statuses, wrong = campaign(asked.trials, asked.seed, Path(folder), asked.fresh)
    for (command, status), count in sorted(statuses.items(), key=str):
        print(f"{command:<10} status {status}: {count}")
    for line in wrong:
        print(line)
    print(f"{asked.trials} signals, {len(wrong)} of them with something wrong")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
