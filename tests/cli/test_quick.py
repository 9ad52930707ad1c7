"""Help, listings and typing errors are answered without importing what takes seconds to import."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "timm", "sklearn", "matplotlib", "scipy", "transformers")
CHILD = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from vitrail.cli import main

found = []
for arguments in json.loads(sys.argv[1]):
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        try:
            main(arguments)
        except SystemExit:
            pass
    found.append([name for name in json.loads(sys.argv[2]) if name in sys.modules])
print(json.dumps(found))
"""


def heavy_imports(*commands: list[str]) -> list[list[str]]:
    """Returns the heavy modules that are imported after each of several commands in one process."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(commands), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return json.loads(done.stdout)


def test_help_listings_and_typing_errors_import_nothing_heavy():
    kinds = ["recipes", "backbones", "objectives", "sources", "protocols", "sinks"]
    commands = [[], ["--help"], ["--version"], ["pretrian"], ["pretrain", "--help"], ["list"]]
    commands += [["list", kind] for kind in kinds] + [["resume", "--help"], ["stats", "--help"]]
    commands += [["pretrain", "simdino_digit"], ["list", "recipe"], ["report", "--help"]]
    assert heavy_imports(*commands) == [[]] * len(commands)


@pytest.mark.parametrize("recipe", ["simdino_digits", "clip_emoji", "crate_tiny_in1k"])
def test_the_help_of_a_recipe_imports_torch_and_nothing_else_heavy(recipe):
    (found,) = heavy_imports(["pretrain", recipe, "--help"])
    assert set(found) <= {"torch"}


def test_import_of_the_package_is_quick():
    code = (
        f"import sys, vitrail; vitrail.__version__; print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
