"""Every package that `make install` takes is pinned by version and content."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("constraints*.txt"), ROOT / ".ci/audit.txt"])
PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+]+( --hash=sha256:[0-9a-f]{64})+")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_package_has_a_sha256(path: Path) -> None:
    text = re.sub(r"\s*\\\n\s*", " ", path.read_text())
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert pins
    assert [line for line in pins if not PIN.fullmatch(line)] == []


def test_no_package_is_pinned_twice() -> None:
    """The two builds of torch stand in files of their own, of which one is taken."""
    names = [
        name.lower().replace("_", "-")
        for path in ROOT.glob("constraints*.txt")
        if path.name != "constraints-torch-cpu.txt"
        for name in re.findall(r"^([\w.-]+)==", path.read_text(), re.MULTILINE)
    ]
    assert sorted(names) == sorted(set(names))
    assert {"torch", "setuptools", "prefect", "mlflow", "fastapi", "sqlalchemy"} <= set(names)


def test_nothing_else_is_installed_by_make() -> None:
    recipe = (ROOT / "Makefile").read_text()
    assert "--require-hashes --no-deps" in recipe
    assert re.findall(r"pip install(?! --quiet --require-hashes --no-deps).*", recipe) == [
        "pip install --quiet --no-build-isolation --editable '.[dev]'  # adds what a GPU build of torch needs"
    ]


def test_what_is_started_as_a_module_is_a_dependency() -> None:
    """An environment need not have what most of them have: pip is not in those that uv makes, nor in an image."""
    own = ("ptpipeline", "registry", "flows")
    sources = [path.read_text() for package in own for path in (ROOT / package).rglob("*.py")]
    started = {name for text in sources for name in re.findall(r'"-m",\s*"(\w+)', text)} - set(own)
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert started
    assert started <= {re.split(r"[^\w-]", one)[0] for one in dependencies}
