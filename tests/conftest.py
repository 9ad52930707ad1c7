"""Every annotation of the package is checked while the tests run: shapes and types."""

from collections.abc import Iterator

import jaxtyping
import pytest

jaxtyping.install_import_hook("vitrail", "typechecker.check")


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Puts the cache in a temporary folder, apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the long form of long checks")


@pytest.fixture
def slow(request: pytest.FixtureRequest) -> bool:
    """Returns whether the long form of a check was asked for."""
    return bool(request.config.getoption("--slow"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
