"""The functions and tables that the README sends a reader to are there."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from flows.cli import app  # with all verbs

ROOT = Path(__file__).parent.parent
NAMES, FILE = r"((?:`[A-Za-z_.]+`(?:, | and )?)+)", r"`((?:ptpipeline|registry|flows)/[a-z_/]+\.py)`"


def find_names(path: Path) -> set[str]:
    """All that a module defines: functions, classes, their methods as `Class.method`, and its variables."""
    names = set[str]()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{own.name}"
                for own in node.body
                if isinstance(own, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_what_the_readme_names_in_a_module_is_there() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    named = [
        (name, path)
        for names, path in re.findall(rf"{NAMES}(?: \| |,? ?(?:both )?in ){FILE}", text)
        for name in re.findall(r"[A-Za-z_.]+", names.replace(" and ", " "))
    ]
    assert len(named) > 20
    assert [(name, path) for name, path in named if name not in find_names(ROOT / path)] == []


def commands() -> list[tuple[str, list[str]]]:
    """Page and words of every `ptp` command in the pages' blocks of shell."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if not re.match(r"(PTP_\w+=\S+ )?ptp ", line):
                    continue
                for command in re.split(r"; | && ", line.partition(" #")[0]):
                    words = [word for word in shlex.split(command) if not word.startswith("PTP_")]
                    found.append((page.name, words[1:]))
    return found


def test_every_command_of_the_pages_is_understood() -> None:
    found = commands()
    assert len(found) > 70
    for page, words in found:
        command, name = get_command(app), "ptp"
        while below := getattr(command, "commands", {}):
            name, *words = words
            assert name in below, (page, name, words)
            command = below[name]
        command.make_context(name, words)  # raises UsageError


def tracked() -> list[str]:
    """The paths that git knows; what a try of a verb leaves in the working folder is easily committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return listed.rstrip("\0").split("\0")


def test_every_folder_of_the_repository_is_in_the_readmes_tree() -> None:
    folders = {path.partition("/")[0] for path in tracked() if "/" in path}
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2]
    assert folders == {".ci", *re.findall(r"^(\w+)/ ", tree, re.M)}


def test_every_file_at_the_top_is_a_kind_that_belongs_there() -> None:
    files = [path for path in tracked() if "/" not in path]
    pattern = r"[A-Z]+(\.md)?|Makefile|pyproject\.toml|constraints[a-z-]*\.txt|\.gitignore|\.importlinter"
    assert [file for file in files if not re.fullmatch(pattern, file)] == []
