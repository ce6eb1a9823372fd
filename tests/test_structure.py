"""How large and how entangled the source is, in figures: python tests/test_structure.py prints them.

Tables are exempt: modules that are mostly one (TABLES), and functions count without their docstrings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "vitcli"
MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_A_MODULE, MOST_POSITIONAL = 60, 400, 6
TABLES: dict[str, str] = {}
"""Modules that may be longer, and what they are tables of."""


def modules() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(SOURCE)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(SOURCE.rglob("*.py"))
    }


MODULES = modules()


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}:{node.lineno} {node.name}", node


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From the first statement after the docstring to the last line."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                yield f"{module}:{node.lineno} {node.name}", node


def positional(node: ast.ClassDef) -> int:
    """Arguments that its constructor takes by position."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return len(item.args.args) - 1
    for decorator in node.decorator_list:
        text = ast.unparse(decorator)
        if text.startswith("dataclass"):
            if "kw_only=True" in text:
                return 0
            fields = [
                i for i in node.body if isinstance(i, ast.AnnAssign) and "ClassVar" not in ast.unparse(i.annotation)
            ]
            return sum(not (f.value is not None and "kw_only=True" in ast.unparse(f.value)) for f in fields)
    return 0


def compared_names() -> Iterator[str]:
    """Places outside its own file where the name of an objective or a family is compared with a text."""
    from vitcli.families.table import FAMILIES
    from vitcli.train.objectives.table import OBJECTIVES

    own = {f"train/objectives/{name.replace('-', '_')}.py" for name in OBJECTIVES} | {
        f"families/{f}.py" for f in FAMILIES
    }
    names = "|".join(map(re.escape, [*OBJECTIVES, *FAMILIES]))
    for path in SOURCE.rglob("*.py"):
        module = str(path.relative_to(SOURCE))
        text = path.read_text(encoding="utf-8")
        for found in re.finditer(rf'(objective|family)\w*\s*[!=]=\s*"({names})"', text):
            if module not in own:
                yield f"{module}: {found[0]}"


def figures() -> dict[str, list[tuple[int, str]]]:
    """The largest first."""
    return {
        "lines of a function": sorted(((body_lines(node), name) for name, node in functions()), reverse=True),
        "lines of a module": sorted(
            ((len((SOURCE / name).read_text(encoding="utf-8").splitlines()), name) for name in MODULES), reverse=True
        ),
        "arguments of a constructor by position": sorted(
            ((positional(n), name) for name, n in classes()), reverse=True
        ),
    }


@pytest.mark.parametrize(
    ("what", "most"),
    [
        ("lines of a function", MOST_LINES_OF_A_FUNCTION),
        ("lines of a module", MOST_LINES_OF_A_MODULE),
        ("arguments of a constructor by position", MOST_POSITIONAL),
    ],
)
def test_nothing_is_too_large(what: str, most: int) -> None:
    assert [f"{size} {name}" for size, name in figures()[what] if size > most and name not in TABLES] == []


def test_an_objective_or_a_family_is_known_by_name_in_its_own_file_alone() -> None:
    assert list(compared_names()) == []


if __name__ == "__main__":
    for title, found in figures().items():
        print(f"{title}:")
        for size, name in found[:8]:
            print(f"  {size:4} {name}")
    print("names compared outside their own files:", *(list(compared_names()) or ["none"]))
