"""Every annotation of the package is checked while the tests run: shapes and types."""

import jaxtyping
import pytest

jaxtyping.install_import_hook("vitrail", "typechecker.check")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the long form of long checks")


@pytest.fixture
def slow(request: pytest.FixtureRequest) -> bool:
    """Whether the long form of a check was asked for."""
    return bool(request.config.getoption("--slow"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
