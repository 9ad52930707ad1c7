"""The generated tables of the documentation are those of the registries."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def generate():
    """The script docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_as_the_registries_say():
    # A process of its own, as `make docs` is one.
    command = [sys.executable, str(REPOSITORY / "docs" / "generate.py"), "--check"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_table_that_is_out_of_date_is_written_anew(generate):
    page = "# Title\n<!-- objectives -->\n| old |\n<!-- /objectives -->\nthe rest\n"
    new = generate.generated(page)
    assert "| `simdino` |" in new
    assert "old" not in new
    assert new.startswith("# Title\n")
    assert new.endswith("the rest\n")
    with pytest.raises(ValueError, match="no block 'objektives'"):
        generate.generated("<!-- objektives -->\n<!-- /objektives -->")
