"""The command that makes a number or a picture again, as far as one does."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from vitrail.evals.material import Settings
from vitrail.report.files import RunFiles

FLAGS = ("metric", "draws", "seed", "last_blocks")  # of `vitrail evaluate`, beside --k
SAID_BY_K = ("k", "more_k")


class Again(NamedTuple):
    """note: what the command does not say, or nothing."""

    command: str
    note: str = ""


def evaluate_again(files: RunFiles, protocols: Sequence[str], sources: Sequence[str] = ()) -> Again:
    """`vitrail evaluate` as it has to be called in the folder that holds the run.

    Args:
        sources: SPECs, where several were measured; else what the evaluation says.
    """
    known = files.evaluation
    weights, data = known.get("weights"), known.get("data")
    foreign = isinstance(weights, str) and not files.description
    words = ["vitrail", "evaluate", as_path(str(weights) if foreign else files.label)]
    if sources or (isinstance(data, str) and data != files.description.get("data")):
        words += ["--data", *(sources or [str(data)])]
    flags, unsaid = _settings(known.get("settings"))
    words += ["--protocols", *protocols, *flags]
    if foreign and files.label != f"{weights}.evaluation":
        words += ["--out", as_path(files.label)]
    note = f"No flag says {', '.join(unsaid)}: set in Python." if unsaid else ""
    return Again(" ".join(map(quoted, words)), note)


def train_again(files: RunFiles) -> Again | None:
    """What config.json says; None where it says nothing."""
    command = files.config.get("command")
    return Again(command) if isinstance(command, str) else None


def report_again(runs: Sequence[RunFiles], out: str | None = None) -> Again:
    """`vitrail report` in the folder that holds the runs."""
    words = ["vitrail", "report", *(as_path(files.label) for files in runs)]
    return Again(" ".join(map(quoted, words + (["--out", as_path(out)] if out else []))))


def as_path(name: str) -> str:
    """A name that no command takes for a flag."""
    return f"./{name}" if name.startswith("-") else name


def quoted(word: str) -> str:
    """For a shell, on one line: what does not print is written as bash's $'...' has it."""
    if word.isprintable():
        return shlex.quote(word)
    letters = []
    for letter in word:
        if letter.isprintable() and letter not in "'\\":
            letters.append(letter)
            continue
        raw = letter.encode("utf-8", "surrogateescape" if _is_byte(letter) else "replace")
        letters.append("".join(f"\\x{byte:02x}" for byte in raw))
    return f"$'{''.join(letters)}'"


def _is_byte(letter: str) -> bool:
    """Whether it stands for an undecodable byte of a file name."""
    return 0xDC80 <= ord(letter) <= 0xDCFF


def usual_settings() -> dict[str, Any]:
    """The defaults, as evaluation.json would have them."""
    usual: dict[str, Any] = json.loads(json.dumps(asdict(Settings())))
    return usual


def _settings(settings: Any) -> tuple[list[str], list[str]]:
    """(flags for what differs from the defaults, what differs and has no flag)."""
    if not isinstance(settings, dict):
        return [], []
    usual = usual_settings()
    flags: list[str] = []
    unsaid: list[str] = []
    if any(settings.get(name, usual[name]) != usual[name] for name in SAID_BY_K):
        more = settings.get("more_k")
        many = more if isinstance(more, list) else []
        flags += ["--k", *map(str, [settings.get("k", usual["k"]), *many])]
    for name, value in settings.items():
        if name in SAID_BY_K or value == usual.get(name):
            continue
        if name == "finetune" and isinstance(value, dict):
            flags += _finetune(value, usual["finetune"])
        elif name in FLAGS:
            flags += [f"--{name.replace('_', '-')}", str(value)]
        else:
            unsaid.append(f"{name} = {json.dumps(value)}")
    return flags, unsaid


def _finetune(settings: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in settings.items():
        if value != usual.get(name):
            many = value if isinstance(value, list) else [value]
            flags += [f"--finetune.{name.replace('_', '-')}", *map(str, many)]
    return flags
