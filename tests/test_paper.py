"""examples/paper: every script from its first command to its table and figure, at the size of a smoke test."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from conftest import draw_image
from quick import quick_vit
from vitcli.config import EvalConfig, model_config
from vitcli.model.classifier import build
from vitcli.weights.checkpoint import save
from vitcli.weights.describe import Description

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "paper"
SCRIPTS = sorted(path.name for path in FOLDER.glob("?-*.sh"))
PAGE = ROOT / "docs" / "paper.md"
RESULTS = ROOT / "benchmarks" / "results" / "2026-11-paper-2-cores.jsonl"
SLOW = "ac"
"""What they do is in others, too: several models, two halves of the classes."""
ROWS = {
    "a": ["0.01", "0.05", "1"],
    "b": ["0.01", "0.05", "1"],
    "c": ["2", "4"],
    "d": ["1", "2"],
    "e": ["1", "2", "3", "4", "6"],
    "f": ["0", "2"],
    "g": ["none", "masked-patch", "supervised"],
    "h": ["none", "dropout", "DropPath, linear"],
    "i": ["0", "0.1"],
    "j": ["0.01", "0.1", "1"],
}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with quick_vit(tmp_path_factory.mktemp("quick")) as folder:
        yield folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, quick: Path) -> dict[str, str]:
    """Four classes of images, a checkpoint with 8 x 8 patches, and the quick `vit`."""
    home = tmp_path_factory.mktemp("paper")
    for colour, name in enumerate("abcd"):
        (home / "data" / name).mkdir(parents=True)
        for index in range(20):
            draw_image(colour % 3, index + 20 * (colour // 3), size=32).save(home / "data" / name / f"{index}.png")
    model = model_config("ViT-w64d2h2/8", (64, 64), 4)
    made = build(model)
    made.initialise(0)
    save(Description(path=home / "model.safetensors", model=model, classes=(), eval=EvalConfig()), made.state_dict())
    folders = [str(quick), str(Path(sys.executable).parent), os.environ["PATH"]]
    own = {"DATA": str(home / "data"), "SIZE": "smoke", "CKPT": str(home / "model.safetensors"), "HOME": str(home)}
    return {**os.environ, **own, "PATH": os.pathsep.join(folders)}


def run(script: str, cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As the page prints it, in a folder that has the examples."""
    if not (cwd / "examples").exists():
        (cwd / "examples").symlink_to(ROOT / "examples")
    command = f"bash examples/paper/{script}"
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    "script", [pytest.param(name, marks=[pytest.mark.slow] if name[0] in SLOW else []) for name in SCRIPTS]
)
def test_a_script_ends_in_its_table_and_figure(script: str, tmp_path: Path, environment: dict[str, str]) -> None:
    done = run(script, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    letter = script[0]
    out = tmp_path / "paper" / letter
    text = (out / "table.md").read_text(encoding="utf-8")
    assert done.stdout == text
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert [row[0] for row in cells[2:]] == ROWS[letter]
    assert all(re.match(r"-?\d", cell) for row in cells[2:] for cell in row[1:]), text
    with Image.open(out / "figure.png") as figure:
        assert min(figure.size) > 300 and len(figure.convert("L").getcolors()) > 10
    if (out / "lines.jsonl").exists():
        lines = [json.loads(line) for line in (out / "lines.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(lines) == sum(len(row) - 1 for row in cells[2:]) and all(0 <= line["top1"] <= 1 for line in lines)


def test_a_script_that_is_run_again_trains_nothing_anew(tmp_path: Path, environment: dict[str, str]) -> None:
    """And a run that fails ends the script with an error, and leaves no table."""
    first = run("g-masked-patches.sh", tmp_path, environment)
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("runs/*/model.safetensors")}
    again = run("g-masked-patches.sh", tmp_path, environment)
    assert len(weights) == 5 and again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    failed = run("b-scaling.sh", tmp_path, environment | {"DATA": "no-such-folder"})
    assert failed.returncode and "no-such-folder" in failed.stderr and not failed.stdout
    assert not (tmp_path / "paper" / "b" / "table.md").exists()


def test_unknown_size_is_refused(tmp_path: Path, environment: dict[str, str]) -> None:
    done = run("a-small-data.sh", tmp_path, environment | {"SIZE": "tpu"})
    assert done.returncode == 2 and "smoke, cpu or gpu" in done.stderr


def test_a_run_that_diverged_is_a_word_in_the_table(tmp_path: Path, environment: dict[str, str]) -> None:
    reports = [{"error": {"code": 5, "kind": "diverged"}}, {"eval": {"top1": 0.5, "n": 8}, "train_flops": 1e9}]
    script = "python3 {0} note arm=x seed=0 <<<'{1}'; python3 {0} note arm={3} seed=1 <<<'{2}'"
    for arm, expected in (("x", "| x | 50.0 ± 0.0 (1 of 2 diverged) |"), ("y", "| x | diverged |\n| y | 50.0 ± 0.0 |")):
        noting = script.format(FOLDER / "results.py", *map(json.dumps, reports), arm)
        done = subprocess.run(
            ["bash", "-c", f"{{ {noting}; }} | python3 {FOLDER / 'results.py'} table --rows arm --title T --out {tmp_path}"],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert expected in done.stdout


def test_tables_of_the_page_are_those_of_the_runs() -> None:
    """Every table that is a mean over seeds, made anew from the lines that the scripts left."""
    page = PAGE.read_text(encoding="utf-8")
    kept: dict[str, list[dict[str, str | float]]] = {}
    for text in RESULTS.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        kept.setdefault(line.pop("claim"), []).append(line)
    assert list(kept) == [letter for letter in ROWS if letter not in "de"]
    for lines in kept.values():
        rows, *columns = [key for key in lines[0] if key not in ("seed", "top1", "n", "train_flops")]
        cells: dict[tuple[str, ...], list[float]] = {}
        for line in lines:
            cells.setdefault(tuple(str(line[key]) for key in (rows, *columns)), []).append(
                100 * float(line["top1"] or 0)
            )
        for (row, *_), values in cells.items():
            shown = f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
            assert re.search(rf"^\| {re.escape(row)} \|.*{re.escape(shown)}", page, re.MULTILINE), (row, shown)


def test_page_and_folder_name_each_other() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^bash examples/paper/(\S+)$", page, re.MULTILINE) == SCRIPTS
    assert [name[0] for name in SCRIPTS] == list(ROWS)
    for script in SCRIPTS:
        assert f"bash examples/paper/{script}\n" in (FOLDER / script).read_text(encoding="utf-8")
