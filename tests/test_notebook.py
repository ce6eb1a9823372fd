"""The notebook of examples/: its cells run from top to bottom, and what it shows is theirs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(page: Path) -> list[dict]:  # type: ignore[type-arg]
    return [cell for cell in json.loads(page.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def shown(page: Path) -> str:
    """The text of its outputs."""
    outputs = [output for cell in cells(page) for output in cell["outputs"]]
    return "".join("".join(output.get("text", [])) for output in outputs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_it_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    script = "\n".join("".join(cell["source"]) for cell in cells(page))
    env = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    scores = [float(number) for number in re.findall(r"([\d.]+)%", done.stdout)]
    assert scores[0] > 95 and scores[-1] > 95
    # the same lines as are shown, numbers aside, which differ between machines
    kinds = [re.sub(r"[\d.]+", "0", text).split("\n")[0] for text in (done.stdout, shown(page))]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_outputs_are_there_and_tell_no_place(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert all(cell["execution_count"] for cell in cells(page)) and '"image/png"' in text
    assert not re.search(r"/(home|root|tmp|Users|work)/", text) and '"error"' not in text
