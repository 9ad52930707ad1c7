"""The commands that reproduce the numbers and pictures of a report."""

import shlex
from collections.abc import Sequence
from typing import Any

from vitrail.evals.settings import flatten, make_settings, option, to_json
from vitrail.reporting.run_files import RunFiles


def evaluate_again(files: RunFiles, protocols: Sequence[str], sources: Sequence[str] = ()) -> str:
    """Returns the `vitrail evaluate` command to call in the folder that contains the run.

    Args:
        files: files of the run.
        protocols: names of the protocols.
        sources: SPECs of the data, if several were measured; else the evaluation's own is used.
    """
    known = files.evaluation
    weights, data = known.get("weights"), known.get("data")
    foreign = isinstance(weights, str) and not files.description
    words = ["vitrail", "evaluate", as_path(str(weights) if foreign else files.label)]
    if sources or (isinstance(data, str) and data != files.description.get("data")):
        words += ["--data", *(sources or [str(data)])]
    words += ["--protocols", *protocols, *_settings(known.get("settings"))]
    if foreign and files.label != f"{weights}.evaluation":
        words += ["--out", as_path(files.label)]
    return " ".join(map(quoted, words))


def train_again(files: RunFiles) -> str | None:
    """Returns the training command of config.json; None if it has none."""
    command = files.config.get("command")
    return command if isinstance(command, str) else None


def report_again(runs: Sequence[RunFiles], out: str | None = None) -> str:
    """Returns the `vitrail report` command to call in the folder that contains the runs."""
    words = ["vitrail", "report", *(as_path(files.label) for files in runs)]
    return " ".join(map(quoted, words + (["--out", as_path(out)] if out else [])))


def as_path(name: str) -> str:
    """Returns a path that cannot be mistaken for a flag."""
    return f"./{name}" if name.startswith("-") else name


def quoted(word: str) -> str:
    """Quotes a word for a shell, on one line; unprintable characters use bash's $'...'."""
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
    """Returns true for the surrogate of an undecodable byte in a file name."""
    return 0xDC80 <= ord(letter) <= 0xDCFF


def _settings(settings: Any) -> list[str]:
    """Returns options for what differs from the defaults; unknown settings are left out."""
    usual = flatten(to_json(make_settings()))
    options: list[str] = []
    for name, value in flatten(settings if isinstance(settings, dict) else {}).items():
        if name in usual and value != usual[name]:
            many = value if isinstance(value, list) else [value]
            options += [option(name), *map(str, many)]
    return options
