"""The command line."""

from vitrail.cli.run import main

__all__ = ["main"]
