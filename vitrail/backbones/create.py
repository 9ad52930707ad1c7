"""Creates backbones by name, with the checks of names and options.

The table of names is `vitrail.backbones.registry.BACKBONES`.
"""

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch

from vitrail.backbones.contract import Backbone
from vitrail.backbones.families import BackboneRow
from vitrail.backbones.registry import BACKBONES
from vitrail.config import suggest

# Largest values of sizes, beyond which nobody could hold the network; of `depth`, build it.
MAX_SIZE, MAX_DEPTH, MAX_PARAMETERS = 2**20, 1000, 10**11
WORDS = {"true": True, "false": False, "none": None}


def create_backbone(
    name: str,
    *,
    img_size: int | None = None,
    in_chans: int = 3,
    drop_path: float = 0.0,
    seed: int = 0,
    **overrides: Any,
) -> Backbone:
    """Creates a freshly initialised backbone on the CPU; equal arguments give equal weights.

    torch's global random state is left unchanged.

    Args:
        name: a name of BACKBONES.
        img_size: side in pixels of the images for which positions are learned; by default the
            row's.
        in_chans: channels of the images.
        drop_path: rate of stochastic depth in the last layer, in [0, 1).
        seed: of the weights, from 0 to 2^63 - 1.
        overrides: values for some of the row's `options()`: patch_size, width, depth, heads,
            registers, ...

    Returns:
        A backbone whose `config` holds the arguments that give this architecture (all but drop_path
        and seed): `create_backbone(**backbone.config)`.

    Raises:
        ValueError: an unknown name or override, or values that do not fit together.
    """
    row = find_row(name)
    _check(name, row, img_size, in_chans, drop_path, seed, overrides)
    if overrides:
        _check_parameters(name, {"img_size": img_size, "in_chans": in_chans, **overrides})
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed: that would also reseed the GPUs.
        torch.default_generator.manual_seed(seed)
        backbone = row.build(
            name, img_size=img_size, in_chans=in_chans, drop_path=drop_path, overrides=overrides
        )
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"backbone {name} of {BACKBONES.package(name)}: its row builds a "
            f"{type(backbone).__name__}; it must be a {Backbone.__module__}.{Backbone.__name__}"
        )
    return backbone


def outline(name: str, kwargs: dict[str, Any] | None = None) -> Backbone:
    """Returns a backbone on the meta device: keys and shapes, without memory for its weights.

    Args:
        name: a name of BACKBONES.
        kwargs: arguments of `create_backbone`; img_size, in_chans and overrides.

    Raises:
        ValueError: an unknown name, or sizes that do not fit together.
    """
    overrides = dict(kwargs or {})
    img_size, in_chans = overrides.pop("img_size", None), overrides.pop("in_chans", 3)
    with torch.device("meta"):
        return find_row(name).build(
            name, img_size=img_size, in_chans=in_chans, drop_path=0.0, overrides=overrides
        )


def _check_parameters(name: str, kwargs: dict[str, Any]) -> None:
    """Refuses a network that no machine holds, before memory is asked for."""
    count = sum(p.numel() for p in outline(name, kwargs).parameters())
    if count > MAX_PARAMETERS:
        sizes = ", ".join(f"{k} {v}" for k, v in kwargs.items() if v is not None)
        raise ValueError(
            f"backbone {name}: with {sizes} it has {count:.1e} parameters, more than "
            f"{MAX_PARAMETERS:.0e}; choose smaller ones"
        )


def find_row(name: str) -> BackboneRow:
    """Returns the row of a name. Raises ValueError, with the nearest name, if there is none."""
    if not isinstance(name, str) or name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}{suggest(str(name), BACKBONES)}")
    return BACKBONES[name]


def loadable_rows() -> dict[str, BackboneRow]:
    """Returns all rows by name, without those of packages that cannot be imported."""
    rows = {}
    for name in BACKBONES:
        with suppress(ValueError):
            rows[name] = BACKBONES[name]
    return rows


def parse_options(name: str, texts: Iterable[str]) -> dict[str, Any]:
    """Parses overrides of a backbone from "NAME=VALUE" texts: registers=4, decoupled=false.

    Args:
        name: of the backbone, for errors.
        texts: one override each; the value is a number, true, false or none.

    Raises:
        ValueError: a text of another form, or a value that is no number, true, false or none.
    """
    overrides: dict[str, Any] = {}
    for text in texts:
        key, _, value = text.partition("=")
        try:
            overrides[key] = WORDS[value.lower()] if value.lower() in WORDS else _number(value)
        except ValueError:
            raise ValueError(
                f"backbone {name}: option {text!r} is not NAME=VALUE with a number, true, false or "
                "none; for example registers=4"
            ) from None
    return overrides


def count_parameters(name: str) -> int:
    """Counts the parameters of a row, with its final norm and without a head."""
    return sum(p.numel() for p in outline(name).parameters())


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _check(
    name: str,
    row: BackboneRow,
    img_size: int | None,
    in_chans: int,
    drop_path: float,
    seed: int,
    overrides: dict[str, Any],
) -> None:
    for key, value in (
        ("img_size", row.img_size if img_size is None else img_size),
        ("in_chans", in_chans),
    ):
        if type(value) is not int:
            raise ValueError(f"backbone {name}: {key} is {value!r}, but must be a whole number")
        if value < 1:
            raise ValueError(f"backbone {name}: {key} is {value}, but must be at least 1")
        if value > MAX_SIZE:
            raise ValueError(f"backbone {name}: {key} is {value}, but must be at most {MAX_SIZE}")
    if not isinstance(drop_path, int | float) or not 0 <= drop_path < 1:
        raise ValueError(f"backbone {name}: drop_path is {drop_path}, but must be in [0, 1)")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"backbone {name}: seed is {seed!r}, but must be from 0 to 2^63 - 1")
    options = row.options()
    for key, value in overrides.items():
        if key not in options:
            known = suggest(key, options) if options else "; it has none"
            raise ValueError(f"backbone {name}: unknown override {key!r}{known}")
        if not _fits(key, value, options[key]):
            raise ValueError(
                f"backbone {name}: {key} is {value!r}; give a value like the row's {options[key]!r}"
            )
        most = MAX_DEPTH if key == "depth" else MAX_SIZE
        if isinstance(value, int | float) and value > most:
            raise ValueError(f"backbone {name}: {key} is {value}, but must be at most {most}")


def _fits(key: str, value: Any, own: Any) -> bool:
    """Checks that an override is of its option's type: a number for a number, a flag for a flag."""
    if isinstance(own, bool) or isinstance(value, bool):
        return isinstance(own, bool) and isinstance(value, bool)
    if isinstance(own, int):
        return isinstance(value, int)
    if value is None:
        return key in ("layer_scale", "final_norm_eps")  # the options that may be None
    return isinstance(value, int | float) and math.isfinite(value)
