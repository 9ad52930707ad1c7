"""Runs commands on hostile input: each must work, or refuse the input in one sentence."""

import resource
from pathlib import Path

from tests.cli.shell import Outcome, vitrail

LONGEST_MESSAGE = 1000  # characters
MOST_MEMORY = 2 * 2**30  # bytes that the peak of a process may grow by, over one input


def judge(*arguments: object, marker: Path | None = None) -> Outcome:
    """Runs a command on hostile input, and fails unless it works or refuses the input in words.

    `shell.vitrail` fails on a traceback. A refusal is a line for the user on standard error. A word
    of the terminal's own (an escape sequence) from a file name or a value must not reach it.

    Args:
        arguments: of the command.
        marker: a file that code inside the input would write.
    """
    before = _peak()
    outcome = vitrail(*arguments)
    assert _peak() - before < MOST_MEMORY, "the input took too much memory"
    assert outcome.code in (0, 1, 2), outcome
    assert "Traceback" not in outcome.err, outcome.err
    assert "\x1b]" not in outcome.out + outcome.err, outcome
    assert marker is None or not marker.exists(), "code inside the input was run"
    if outcome.code == 1:
        assert outcome.err.count("vitrail: error: ") == 1, outcome.err
        message = outcome.err[outcome.err.index("vitrail: error: ") :]
        assert 20 < len(message) < LONGEST_MESSAGE, message
    return outcome


def _peak() -> int:
    """Returns the largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
