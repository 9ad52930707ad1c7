"""The entry point: finds the command, reads its options, and turns errors into one line."""

import logging
import os
import sys
import unicodedata
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from itertools import pairwise
from typing import NoReturn

import tyro

from vitrail import __version__, signals
from vitrail.cli.commands import COMMANDS
from vitrail.config import printable, suggest
from vitrail.recipes.registry import RECIPES

FLAGS = (tyro.conf.FlagConversionOff,)  # --objective.views.upright True, as in config.json


def run(arguments: list[str] | None = None) -> None:
    """Runs one command. Exits with 0, with 1 and one line on an error, or with 2 on misuse."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--version"]:
        print(__version__)
        return
    _show_log()
    try:
        _run(arguments)
    except Exception as error:
        if not _is_users(error) or signals.stopping():
            raise
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        who = f"rank {os.environ.get('RANK')}: " if several else ""
        print(printable(f"vitrail: error: {who}{_message(error)}"), file=sys.stderr)
        raise SystemExit(1) from error


def _show_log() -> None:
    """Makes warnings of the log safe for a terminal: they hold names of files."""
    if logging.lastResort is not None:  # shows what nobody else handles
        logging.lastResort.setFormatter(_Printable())


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _run(arguments: list[str]) -> None:
    """Calls a command by tyro's subcommands. Only the command that is called is made."""
    if not arguments:
        _no_command()
    name = arguments[0]
    if not name.startswith("-") and name not in COMMANDS:
        raise ValueError(f"{name!r} is not a command{suggest(name, COMMANDS)}")
    _refuse_empty(arguments)
    if name == "pretrain":
        _pretrain(arguments[1:])
        return
    if name == "evaluate":
        from vitrail.evals.settings import refuse_old_options

        refuse_old_options(arguments)
    tyro.extras.subcommand_cli_from_dict(
        {n: _command(n) if n == name else _summary(n) for n in COMMANDS},
        prog="vitrail",
        description="Representation learning you can see through.",
        args=arguments,
    )


def _refuse_empty(arguments: list[str]) -> None:
    """Refuses an empty word, mostly a shell variable that is not set: as a path it is this folder.

    Raises:
        ValueError: naming the option that it follows.
    """
    for before, word in pairwise(arguments):
        option, _, value = word.partition("=")
        if not word.strip() or (word.startswith("--") and "=" in word and not value.strip()):
            owner = option if word.strip() else before
            raise ValueError(f"{owner} is given an empty value; give it one, or leave it out")


def _no_command() -> NoReturn:
    """Prints the commands as an error: a call without a command is a mistake."""
    with redirect_stdout(sys.stderr), suppress(SystemExit):
        _run(["--help"])
    raise SystemExit(2)


def _pretrain(arguments: list[str]) -> None:
    """Calls `pretrain`; its options are the fields of the recipe, the first argument."""
    if not arguments or arguments[0].startswith("-"):
        _usage(
            "usage: vitrail pretrain RECIPE --out RUN [--data SPEC] ...\n\nrecipes:\n  "
            + "\n  ".join(RECIPES)
            + "\n\n`vitrail pretrain RECIPE --help` lists a recipe's fields.",
            asked="--help" in arguments or "-h" in arguments,
        )
    name, *options = arguments
    command = COMMANDS["pretrain"](name)
    tyro.cli(command, prog=f"vitrail pretrain {name}", args=options, config=FLAGS)


def _summary(name: str) -> Callable[..., None]:
    """Returns a stand-in for a command that is not called: its line of help, and no options."""

    def stand_in() -> None:
        raise AssertionError(f"{name} is made before it is called")

    stand_in.__doc__ = (COMMANDS[name].__doc__ or "").partition("\n")[0]
    return stand_in


def _command(name: str) -> Callable[..., None]:
    """Returns a command, or makes it if its options are those of another room's dataclass."""
    found = COMMANDS[name]
    return found() if found.__name__.startswith("make_") else found


def _is_users(error: Exception) -> bool:
    """Returns whether an error is one that a user can cause and mend."""
    if isinstance(error, (ValueError, OSError)):
        return True
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    # on the CPU torch has no class for it
    out_of_memory = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return out_of_memory or isinstance(error, torch.OutOfMemoryError)


def _message(error: Exception) -> str:
    """Returns an error's message, without the number of a system error but with its notes."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror + (f": {error.filename}" if error.filename else "")
    return _printable("\n".join([message, *getattr(error, "__notes__", ())]))


def _printable(text: str) -> str:
    """Returns a text whose control characters, which may come from names of files, are escaped."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else ascii(c)[1:-1]
        for c in text
    )


def _usage(text: str, asked: bool) -> NoReturn:
    """Prints how to call a command: to standard output if that was asked for, else as an error."""
    print(text, file=sys.stdout if asked else sys.stderr)
    raise SystemExit(0 if asked else 2)
