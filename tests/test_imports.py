"""What is left out of a process that does not need it: torch alone takes two seconds of processor time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.server.deploy import FLOWS, entrypoint_of

ROOT = Path(__file__).parent.parent
FLOW_MODULES = [entrypoint_of(flow).rpartition(".")[0] for flow in FLOWS]
SAID = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("ptpipeline", "registry", "flows")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "mports no torch" in path.read_text(encoding="utf-8").partition('"""\n')[0]
]
HEAVY = ("torch", "transformers", "mlflow", "datasets", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib", "boto3")


def imported_by(modules: list[str], packages: tuple[str, ...]) -> list[str]:
    """Which of the packages are imported with the modules, each behind the module that brings it first."""
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module({module!r})\n"
        f"for found in {set(packages)!r} & set(sys.modules): sys.exit({module!r} + ' ' + found)\n"
        for module in modules
    )
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, cwd=ROOT)
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("modules", "packages"),
    [(SAID, ("torch",)), (FLOW_MODULES, HEAVY)],
    ids=["modules that say so", "the start of every flow, two of which run every five minutes"],
)
def test_torch_is_not_imported_by(modules: list[str], packages: tuple[str, ...]) -> None:
    assert len(modules) > 5
    assert imported_by(modules, packages) == []
