"""Representation learning you can see through.

run = vitrail.pretrain("simdino_digits", out="runs/mine", data="folder:photos")
features = vitrail.load(run).transform(images)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrail.api import embed, evaluate, export, load, pretrain, report, resume
    from vitrail.registry import register

__version__: str
__all__ = [
    "__version__",
    "embed",
    "evaluate",
    "export",
    "load",
    "pretrain",
    "register",
    "report",
    "resume",
]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import vitrail` is quick.
    if name == "__version__":
        from importlib.metadata import version

        return version("vitrail")
    if name not in __all__:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    module = "vitrail.registry" if name == "register" else "vitrail.api"
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return __all__
