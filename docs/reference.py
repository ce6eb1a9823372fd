"""Write docs/reference.md from the commands' own help, the configuration and the recipes, and the list of files in docs/source.md
from their docstrings; --check only compares.

python docs/reference.py [--check]
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from vitcli import api
from vitcli.cli.table import COMMANDS
from vitcli.config import COMMAND_SECTIONS, FAMILIES, OBJECTIVE_SECTIONS, SECTIONS, ModelConfig
from vitcli.config_values import key_of
from vitcli.data.presets import PRESETS
from vitcli.recipes.table import RECIPES

PAGE = Path(__file__).with_name("reference.md")
MAP = Path(__file__).with_name("source.md")
SOURCE = Path(__file__).parents[1] / "src" / "vitcli"


def help_of(*command: str) -> str:
    env = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}
    env.pop("FORCE_COLOR", None)
    text = subprocess.run(
        [sys.executable, "-m", "vitcli", *command, "--help"], env=env, capture_output=True, text=True, check=True
    ).stdout
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def default(field: dataclasses.Field) -> str:  # type: ignore[type-arg]
    value = field.default
    if isinstance(value, tuple):
        return ", ".join(v if isinstance(v, str) else f"{v:.4g}" for v in value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def about(field: dataclasses.Field) -> str:  # type: ignore[type-arg]
    """The sentence on its line, the values that a choice has, and whether a checkpoint decides."""
    key = key_of(field)
    choices = re.findall(r"'([\w+-]+)'", str(field.type)) or re.findall(r'"([\w+-]+)"', str(field.type))
    text = key.text + (f" ({', '.join(choices)})" if choices else "")
    return text.replace("|", "\\|") + ("; a checkpoint decides it" if key.fixed else "")


def page() -> str:
    parts = [
        "# Reference\n\nMade by `python docs/reference.py` from the program itself.\n",
        "## Commands\n",
        f"```text\n{help_of()}\n```\n",
    ]
    for command in COMMANDS:
        parts.append(f"### vit {command}\n\n```text\n{help_of(command)}\n```\n")
    parts.append(
        "## Configuration\n\nSet by `--set section.key=value` or in the file that `--config` names. "
        "The defaults of a run are its recipe's; these are the values where a recipe says nothing.\n"
    )
    for section, cls in (SECTIONS | OBJECTIVE_SECTIONS | COMMAND_SECTIONS).items():
        rows = [f"| `{section}.{f.name}` | {default(f)} | {about(f)} |" for f in dataclasses.fields(cls)]
        parts.append(f"### [{section}]\n\n| key | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    for name, family in FAMILIES.items():
        own = [
            f
            for f in dataclasses.fields(family.config)
            if f.name not in {g.name for g in dataclasses.fields(ModelConfig)}
        ]
        rows = [f"| `model.{f.name}` | {default(f)} | {about(f)} |" for f in own]
        if rows:
            head = f"### [model] of the family {name}\n\nSuch as {family.example}.\n\n"
            parts.append(head + "| key | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    parts.append("## Recipes\n")
    for name, recipe in RECIPES.items():
        parts.append(f"### {name}\n\n{inspect.getdoc(recipe)}\n")
    rows = [
        f"| `{name}` | {p.hub}{' (' + p.config + ')' if p.config else ''} | {p.image} | {p.label} | {p.held_out} | {p.note} |"
        for name, p in PRESETS.items()
    ]
    parts.append(
        "## Presets\n\n`digits` needs no network: it comes with scikit-learn.\n\n"
        "| preset | hub id | images | labels | held out | |\n|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )
    parts.append("## Python\n\n`from vitcli import api`; how it is used stands in [From Python](python.md).\n")
    named = {name: of_python(name, getattr(api, name)) for name in api.__all__}
    parts += [f"### api.{name}\n\n{text}\n" for name, text in named.items() if text]
    return "\n".join(parts)


def of_python(name: str, thing: object) -> str:
    """The signature of a function with its docstring, a class's docstring."""
    text = inspect.getdoc(thing) or ""
    if inspect.isclass(thing):
        return "" if text.startswith(f"{thing.__name__}(") else text  # what a dataclass without one says
    if not inspect.isfunction(thing):
        return ""
    node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    assert isinstance(node, ast.FunctionDef) and node.returns is not None
    parameters, depth = [""], 0
    for letter in ast.unparse(node.args):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parameters.append("")
        else:
            parameters[-1] += letter
    inside = "".join(f"\n    {parameter.strip()}," for parameter in parameters)
    return f"```python\n{name}({inside}\n) -> {ast.unparse(node.returns)}\n```\n\n{text}"


def files() -> str:
    """A line a module, with the first sentence of its docstring."""
    lines, folder = [], None
    for path in sorted(SOURCE.rglob("*.py"), key=lambda p: (p.parent != SOURCE, p.parent, p)):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = re.split(r"(?<=\.)\s|\n\n", text, maxsplit=1)[0].replace("\n", " ").rstrip(".")
        if path.name in ("__init__.py", "__main__.py"):
            continue
        if path.parent != folder:
            folder = path.parent
            lines.append(f"\n**{folder.relative_to(SOURCE.parent)}/**\n" if folder != SOURCE else "**vitcli/**\n")
        lines.append(f"- [`{path.name}`](../src/{path.relative_to(SOURCE.parent)}): {first}")
    return "\n".join(lines) + "\n"


def source_map() -> str:
    """docs/source.md with its list of files as they are now."""
    text = MAP.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- files -->\n")
    return f"{before}<!-- files -->\n{files()}<!-- end of files -->{rest.partition('<!-- end of files -->')[2]}"


def main() -> int:
    pages = {PAGE: page(), MAP: source_map()}
    if "--check" in sys.argv[1:]:
        stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        for path in stale:
            print(f"docs/{path.name} is out of date: run python docs/reference.py")
        if not stale:
            print("docs/reference.md is up to date")
        return bool(stale)
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
