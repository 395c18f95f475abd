"""Each case is named by a test: a folder that nobody enters shows nothing."""

import ast

import yaml

from tests.cases.case import CASES

FOLDERS = sorted(folder.name for folder in CASES.iterdir() if (folder / "expected.txt").is_file())
SEVERAL = ("91-train", "92-names")  # folders of many tasks, each of which is a case


def texts() -> set[str]:
    """Each string in the other test modules of this folder."""
    trees = (ast.parse(path.read_text()) for path in CASES.glob("test_*.py") if path.name != "test_every_case.py")
    constants = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {node.value for node in constants if isinstance(node.value, str)}


def test_every_folder_is_a_case_that_a_test_names() -> None:
    assert len(FOLDERS) == 33
    assert {folder.name for folder in CASES.iterdir() if folder.is_dir() and folder.name[0].isdigit()} == set(FOLDERS)
    assert sorted(set(FOLDERS) - texts()) == []


def test_every_task_of_a_folder_of_many_is_named_by_a_test() -> None:
    tasks = [path for folder in SEVERAL for path in (CASES / folder / "tasks").glob("*.yaml")]
    names = {yaml.safe_load(path.read_text())["name"] for path in tasks if path.stem != "base_models"}
    assert len(names) == 20
    assert sorted(names - texts()) == []
