"""Which tests of a run by several processes (`make test`) stay together, and which come first.

A file's tests stay together, since they share what its fixtures made; a folder's, if they share servers that are
theirs alone. What takes longest comes first, so that no process works alone at the end.
"""

from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/e2e", "tests/benchmarks/chaos")
FIRST = (
    *TOGETHER,
    "tests/deploy",
    "tests/registry/versions/test_mlflow_edit.py",
    "tests/registry/mlflow",
    "tests/flows/stages",
    "tests/flows/on_demand",
    "tests/flows/cli",
    "tests/registry/garbage",
    "tests/registry/repair",
    "tests/registry",
    "tests/flows",
    "tests/data",
    "tests/benchmarks",
)


def rank(nodeid: str) -> int:
    """The place of a test among all: of the first of FIRST that holds it."""
    places = [place for place, start in enumerate(FIRST) if nodeid.startswith(start)]
    return min(places, default=len(FIRST))


class ByFile(LoadScopeScheduling):
    """Gives each process a file after the other, in the order of the collection."""

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in TOGETHER if nodeid.startswith(f"{folder}/")), nodeid.split("::", 1)[0])
