"""The command line."""

from vitrail import signals

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Runs one command. Exits with 0, with 1 and one line on an error, or with 2 on misuse.

    A signal ends it without a traceback: with 0 if all is saved, else with 128 + its number.

    Args:
        arguments: of the command; None for those of the process, which then ends with the command.
    """
    with signals.watching(whole_process=arguments is None) as watch:
        try:
            from vitrail.cli.run import run  # lazy import: signals are watched first

            run(arguments)
        except KeyboardInterrupt as error:
            raise SystemExit(_stopped(watch)) from error
        except Exception as error:
            if watch.first is None:
                raise
            raise SystemExit(_stopped(watch)) from error  # it comes of the interruption


def _stopped(watch: signals.Watch) -> int:
    """Returns the exit status of a command that a signal has ended."""
    return 130 if watch.first is None else 128 + watch.first
