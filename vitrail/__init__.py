"""Representation learning you can see through.

run = vitrail.pretrain("simdino_digits", out="runs/mine", data="folder:photos")
features = vitrail.load(run).transform(images)
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrail.api import load, pretrain, resume

__version__ = version("vitrail")
__all__ = ["__version__", "load", "pretrain", "resume"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: only those who train or embed wait for it.
    if name not in __all__:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    from vitrail import api

    return getattr(api, name)
