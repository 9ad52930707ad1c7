"""Tiny real runs for the tests of the loop: seconds each, every part in play."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STEPS = 12
HEAD = {"hidden_dim": 32, "bottleneck_dim": 16, "drop_path": 0.1}
VIEWS = {"global_size": 16, "local_size": 8, "n_local": 2}
# The demo's recipe made tiny, with stochastic depth on, and saved often.
TINY: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 16,
    "checkpoint_every": 3,
    "health_every": 1,
    "device": "cpu",
    "workers": 0,
    "backbone": "vit_nano_patch4_32",
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "simdino": {"kind": "simdino", **HEAD, "views": VIEWS},
    "dino": {"kind": "dino", **HEAD, "out_dim": 64, "views": VIEWS},
    "cotraining": {"kind": "cotraining", "n_labels": 16, "equal_start": True, "drop_path": 0.1},
    # Clusters 96 of the 1297 images' worth of samples apart: before steps 0 and 6.
    "deepcluster": {"kind": "deepcluster", "n_clusters": 8, "reassign": 0.074, "drop_path": 0.1},
}


def tiny_recipe(kind: str, /, **changes: Any) -> Any:
    from vitrail.config import from_dict, override, to_dict
    from vitrail.recipes.named import get_recipe
    from vitrail.recipes.recipe import Recipe

    name = f"{kind}_digits" if kind == "deepcluster" else "simdino_digits"
    plain = to_dict(get_recipe(name))
    views = plain["objective"]["views"] | OBJECTIVES[kind].get("views", {})
    plain["objective"] = OBJECTIVES[kind] | {"views": views}
    return override(from_dict(Recipe, plain), TINY | changes)


def assemble_on(objective: str, ranks: Any) -> Any:
    """The parts of a tiny run before its first step."""
    from vitrail.train.build import assemble

    return assemble(tiny_recipe(objective), ranks)


def pretrain(objective: str, out: str, changes: dict[str, Any]) -> None:
    """Runs in a child process."""
    from vitrail import api

    torch.set_num_threads(1)
    api.start(tiny_recipe(objective, **changes), Path(out))


def resume(run: str) -> None:
    """Runs in a child process. A run that was killed before it began starts from the beginning."""
    from vitrail import api

    torch.set_num_threads(1)
    api.resume(run)


def die_at(call: str, count: int, action: Callable[..., None], *arguments: Any) -> None:
    """Runs in a child process, which kills itself at the count-th call of an os function."""
    original, calls = getattr(os, call), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(os, call, counted)
    action(*arguments)


def final_state(run: Path) -> dict[str, Any]:
    from vitrail.train import checkpoint

    state = checkpoint.load_latest(run / "checkpoints", torch.device("cpu"))
    assert state is not None
    assert state["step"] == STEPS
    return state


def assert_equal_bits(a: Any, b: Any, where: str = "state") -> None:
    """Nested states are the same, every tensor to the bit."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), f"{where} differs by {(a - b).abs().max()}"
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal_bits(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal_bits(x, y, f"{where}[{i}]")
    else:
        assert a == b, where
