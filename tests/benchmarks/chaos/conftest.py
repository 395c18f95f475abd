"""The servers that chaos runs on, shared by its tests: each takes a target of its own."""

from collections.abc import Iterator

import pytest

from benchmarks.chaos.backends import Backends, run_backends


@pytest.fixture(scope="package")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backends]:
    with run_backends(tmp_path_factory.mktemp("chaos")) as backends:
        yield backends
