"""The functions and tables that the README sends a reader to are there."""

import ast
import re
from pathlib import Path

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
