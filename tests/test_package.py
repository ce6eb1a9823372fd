"""What is distributed: a wheel and an archive of the source that install by themselves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
NOT_IN_THE_CORE = {"timm", "torchvision", "transformers", "tensorboard", "wandb", "onnx", "pytest"}

pytestmark = pytest.mark.slow


def interpreter(version: str) -> Path | None:
    """A Python of that version, on the path or where pyenv keeps them."""
    found = shutil.which(f"python{version}")
    if found is not None and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
        return Path(found)
    kept = sorted(
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob(f"{version}.*/bin/python")
    )
    return kept[-1] if kept else None


def call(*command: object, cwd: Path) -> str:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the archive, made of a copy without anything that git does not know."""
    place = tmp_path_factory.mktemp("package")
    call("git", "clone", "-q", ROOT, "source", cwd=place)
    call(sys.executable, "-m", "venv", "tools", cwd=place)
    call(place / "tools/bin/pip", "install", "-q", "build", cwd=place)
    call(place / "tools/bin/python", "-m", "build", "source", "--outdir", "dist", cwd=place)
    return place / "dist"


def test_they_hold_what_they_should(built: Path) -> None:
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    tables = {p.name for p in (ROOT / "src" / "vitcli" / "tables").iterdir() if p.is_file() and p.suffix != ".pyc"}
    assert {f"vitcli/tables/{name}" for name in tables} <= names and "vitcli/py.typed" in names
    assert all(name.startswith(("vitcli/", "vitcli-")) for name in names), "nothing else is installed"
    with tarfile.open(archive) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "constraints.txt", "tests/conftest.py", "docs/guide.md"} <= inside


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
@pytest.mark.parametrize("version", PYTHONS)
def test_they_install_and_work_alone(built: Path, tmp_path: Path, version: str, kind: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    if kind == "*.tar.gz" and version != PYTHONS[-1]:
        pytest.skip("the archive makes the same wheel")
    (file,) = built.glob(kind)
    call(python, "-m", "venv", "own", cwd=tmp_path)
    call(tmp_path / "own/bin/pip", "install", "-q", "-c", ROOT / "constraints.txt", file, cwd=tmp_path)
    there = {
        item["name"].lower()
        for item in json.loads(call(tmp_path / "own/bin/pip", "list", "--format", "json", cwd=tmp_path))
    }
    assert not there & NOT_IN_THE_CORE, "the core needs none of them"
    vit = tmp_path / "own/bin/vit"
    assert call(vit, "--version", cwd=tmp_path).startswith("vit ")
    run = call(vit, "pretrain", "--steps", "2", "--quiet", cwd=tmp_path).strip()
    scores = json.loads(call(vit, "eval", run, "--json", "--quiet", cwd=tmp_path))
    assert scores["n"] == 359
    call(vit, "attn-distance", run, "--plot", "distance.png", "--quiet", cwd=tmp_path)
    assert (tmp_path / "distance.png").stat().st_size > 1000 and (tmp_path / run).with_name("report.html").exists()
