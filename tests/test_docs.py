"""The README and the documentation: every command as printed, and no command without a page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import draw_image

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.xdist_group("docs")  # one folder, in order, as a reader works
PAGES = ["README.md", "docs/guide.md", "docs/concepts.md"]


def blocks(page: str) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def workplaces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each page a folder with `photos/`, in which its reader works from top to bottom."""
    folders = {}
    for page in PAGES:
        folders[page] = tmp_path_factory.mktemp("workplace")
        for colour, name in enumerate(("cat", "dog", "bird")):
            (folders[page] / "photos" / name).mkdir(parents=True)
            for index in range(20):
                draw_image(colour, index, size=70).save(folders[page] / "photos" / name / f"{index}.jpg")
    return folders


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_first_command_of_the_readme_trains_on_digits(workplaces: dict[str, Path]) -> None:
    workplace = workplaces["README.md"]
    lines = blocks("README.md")[0].strip().splitlines()
    assert [line for line in lines if "venv" not in line and not line.startswith("pip install")] == ["vit pretrain"]
    done = shell("vit pretrain --json", workplace)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["eval"]["top1"] >= 0.97, report["eval"]
    assert (workplace / report["checkpoint"]).is_file()


def test_second_command_of_the_readme_is_the_tests() -> None:
    lines = blocks("README.md")[1].strip().splitlines()
    assert lines[0].startswith("pip install -c constraints.txt -e") and lines[1].startswith("pytest")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("page", "number"),
    [
        (page, n)
        for page in PAGES
        for n in range(len(blocks(page)))
        if (page, n) not in {("README.md", 0), ("README.md", 1), ("docs/guide.md", 0)}
    ],
)
def test_commands_run_as_printed(page: str, number: int, workplaces: dict[str, Path]) -> None:
    """The README's first command has run before, as for a reader."""
    done = shell(blocks(page)[number], workplaces[page])
    assert done.returncode == 0, done.stderr


def test_the_example_runs(workplaces: dict[str, Path], tmp_path: Path) -> None:
    done = shell(f"{ROOT / 'examples' / 'pipeline.sh'} {workplaces['README.md'] / 'photos'} 48", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"top-1: \d+\.\d% of 12 images", done.stdout)


def test_the_reference_is_what_the_program_says() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "reference.py", "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_is_documented() -> None:
    from vitcli.cli.app import app

    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"### vit {command.name}" in reference


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, "docs/decisions.md", "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[\w-]+)?\)", (ROOT / page).read_text(encoding="utf-8")):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
