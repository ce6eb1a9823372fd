"""The README and the documentation: every command as printed, and no command without a page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import draw_image
from quick import quick_vit
from vitcli.config import EvalConfig, model_config
from vitcli.model.classifier import build
from vitcli.weights.checkpoint import write_safetensors
from vitcli.weights.describe import Description
from vitcli.weights.theirs import format_of

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "docs/guide.md",
    "docs/measuring.md",
    "docs/concepts.md",
    "docs/python.md",
    "docs/extending.md",
    "docs/source.md",
    "docs/paper.md",
    "docs/first-photos.md",
    "CONTRIBUTING.md",
]


def blocks(page: str) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def photos(folder: Path) -> None:
    """`photos/` with three classes, and `unsorted/` with further images, as the pages take for granted."""
    (folder / "unsorted").mkdir()
    for colour, name in enumerate(("cat", "dog", "bird")):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(20):
            draw_image(colour, index, size=70).save(folder / "photos" / name / f"{index}.jpg")
        for index in range(20, 28):
            draw_image(colour, index, size=70).save(folder / "unsorted" / f"{name}-{index}.jpg")


HUB = {
    "timm/deit_tiny_patch16_224.fb_in1k": "ViT-w64d2h2/16",
    "timm/vit_small_r26_s32_224.augreg_in21k_ft_in1k": "R26+ViT-w64d2h2/32",
    "timm/resnetv2_50x1_bit.goog_in21k": "R50x0.5",
}


@pytest.fixture(scope="module", autouse=True)
def weights_in_the_hubs_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the pages fine-tune: small models in the place and the layout of the hub's client, since no test has a network."""
    cache = tmp_path_factory.mktemp("hub")
    for repository, name in HUB.items():
        folder = cache / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        path, model = snapshot / "model.safetensors", model_config(name, (64, 64), 10)
        model = replace(model, groups=32) if model.family == "bit" else model  # as timm's
        made, described = build(model), Description(path=path, model=model, classes=(), eval=EvalConfig())
        made.initialise(0)
        theirs = format_of(described, "timm")
        write_safetensors(path, {k: t.contiguous() for k, t in theirs.weights(described, made.state_dict()).items()})
        (snapshot / "config.json").write_text(json.dumps(theirs.config(described)))
    before = os.environ.get("HF_HUB_CACHE")
    os.environ["HF_HUB_CACHE"] = str(cache)
    yield
    if before is None:
        del os.environ["HF_HUB_CACHE"]
    else:
        os.environ["HF_HUB_CACHE"] = before


@pytest.fixture(scope="module")
def quick(weights_in_the_hubs_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A `vit` that starts at once, for pages of many commands; the README's first is run by the installed one."""
    with quick_vit(tmp_path_factory.mktemp("quick")) as folder:
        yield folder


def shell(script: str, cwd: Path, first: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`first` is a folder that commands are looked for before the environment's."""
    folders = [*([str(first)] if first else []), str(Path(sys.executable).parent), os.environ["PATH"]]
    path = os.pathsep.join(folders)
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )


IN_ITS_OWN_PLACE = ["python3 -m venv .venv", ". .venv/bin/activate"]


def test_first_command_of_the_readme_trains_on_digits_and_the_others_run(tmp_path: Path, quick: Path) -> None:
    """From top to bottom in one folder, without the installation, which this environment has behind it."""
    photos(tmp_path)
    first, second, *others = blocks("README.md")
    *made, command = first.strip().split(" && ")
    assert made == [*IN_ITS_OWN_PLACE, "pip install -c constraints.txt ."] and command == "vit pretrain"
    done = shell(command, tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / done.stdout.strip()).with_name("report.json").read_text())
    assert report["eval"]["top1"] >= 0.97, report["eval"]
    *made, tests = second.strip().split(" && ")
    assert made == [*IN_ITS_OWN_PLACE, 'pip install -c constraints.txt -e ".[dev]"'] and tests.startswith("pytest")
    run_all(others, tmp_path, quick)


def run_all(scripts: list[str], folder: Path, first: Path | None = None) -> None:
    for script in scripts:
        done = shell(script, folder, first)
        assert done.returncode == 0, f"{script}\n{done.stderr}"


@pytest.mark.parametrize("page", ["docs/guide.md", "docs/measuring.md", "docs/concepts.md"])
def test_commands_of_a_page_run_as_printed(page: str, tmp_path: Path, quick: Path) -> None:
    photos(tmp_path)
    scripts = blocks(page)
    if shutil.which("jq") is None and any("| jq" in script for script in scripts):
        pytest.skip("jq, which this page pipes into, is not installed")
    if page == "docs/guide.md":
        assert scripts.pop(0).split() == ["vit", "pretrain", "vit", "eval"]  # the README's, which has run
    run_all(scripts, tmp_path, quick)


@pytest.mark.parametrize("page", ["docs/python.md", "docs/extending.md"])
def test_python_of_a_page_runs_as_printed(page: str, tmp_path: Path) -> None:
    """From top to bottom, as the cells of one notebook."""
    photos(tmp_path)
    cells = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert cells
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(cells)], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_example_runs(tmp_path: Path, quick: Path) -> None:
    photos(tmp_path)
    done = shell(f"{ROOT / 'examples' / 'pipeline.sh'} {tmp_path / 'photos'} 48", tmp_path, quick)
    assert done.returncode == 0, done.stderr
    assert re.search(r"top-1: \d+\.\d% of 12 images", done.stdout)


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq, which the example pipes into, is not installed")
def test_the_example_of_measuring_runs(tmp_path: Path, quick: Path) -> None:
    photos(tmp_path)
    done = shell("vit pretrain --data photos --model mu/8 --img-size 32 --steps 20 --out run --quiet", tmp_path, quick)
    assert done.returncode == 0, done.stderr
    done = shell(f"{ROOT / 'examples' / 'measure.sh'} photos run", tmp_path, quick)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"run +[\d.]+% +[\d.]+% +[\d.]+%", lines[1]), lines
    assert len([line for line in lines if "photos/" in line]) == 3 and "of 12 images; the hardest class is" in lines[-1]


def test_the_reference_is_what_the_program_says() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "reference.py", "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_is_documented() -> None:
    from vitcli.cli.app import make_app

    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for command in make_app().registered_commands:
        assert f"### vit {command.name}" in reference


def test_links_lead_somewhere() -> None:
    others = [
        "docs/decisions.md",
        "docs/log.md",
        "CHANGELOG.md",
        "tests/faults/README.md",
        "examples/cluster/README.md",
    ]
    for page in [*PAGES, *others]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[\w-]+)?\)", (ROOT / page).read_text(encoding="utf-8")):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
