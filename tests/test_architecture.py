"""The house is a river: who may import whom (design, 'Dependencies')."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vitrail"

# Each room, and what of ours it may import. Rooms see themselves.
MAY_IMPORT = {
    "nn": set(),
    "data": {"nn"},
    "backbones": {"nn"},
    "objectives": {
        "nn",
        "backbones.contract",
        "backbones.decoder",
        "backbones.joint",
        "data.batch",
        "data.tokens",
        "data.views",
        "schedules",
    },
    "evals": {"nn", "backbones", "data", "encoder", "text_encoder", "schedules"},
    "interop": {"nn", "backbones"},
    "report": {"evals", "data", "encoder"},
}
FOR_ALL = {"durable"}  # writing files safely is nobody's own
SEES_EVERYTHING = {"cli", "api", "train", "assemble", "state", "run", "continued", "figures"}


def imports_of(path: Path) -> set[str]:
    """The vitrail modules that a file imports, without the leading package name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name.removeprefix("vitrail.") for name in found if name.startswith("vitrail.")}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_upstream(room):
    allowed = MAY_IMPORT[room] | {room} | FOR_ALL
    for path in (PACKAGE / room).rglob("*.py"):
        for module in imports_of(path):
            assert any(module == a or module.startswith(a + ".") for a in allowed), (
                f"{path.relative_to(PACKAGE)} imports {module}; {room} may import {sorted(allowed)}"
            )


def test_only_the_top_sees_objectives():
    seers = {
        str(path.relative_to(PACKAGE).with_suffix("")).split("/")[0]
        for path in PACKAGE.rglob("*.py")
        if any(name.startswith("objectives") for name in imports_of(path))
    }
    assert seers <= SEES_EVERYTHING | {"objectives", "recipes", "optim"}


@pytest.mark.parametrize(
    "word", ["eval(", "exec(", "pickle.load", "Unpickler(", "torch.hub", "weights_only=False"]
)
def test_nothing_untrusted_is_executed(word):
    for path in PACKAGE.rglob("*.py"):
        code = ast.unparse(_without_docstrings(ast.parse(path.read_text())))
        # `module.eval()` and `retrieval(...)` end alike: only the built-ins stand alone.
        alone = r"(?<![\w.])" if word in ("eval(", "exec(") else ""
        for line in code.splitlines():
            found = re.search(alone + re.escape(word), line)
            assert not found, f"{path.relative_to(PACKAGE)}: {line.strip()}"


def test_the_loop_is_short():
    assert len((PACKAGE / "train.py").read_text().splitlines()) <= 150


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            body[0] = ast.Pass() if isinstance(body[0].value, ast.Constant) else body[0]
    return tree
