"""`vit predict`: a line an image, in order, errors in their lines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from conftest import Vit, draw_image, run_vit


@pytest.fixture(scope="module")
def place(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run, five pictures, a file that is none and one that is cut off."""
    folder = tmp_path_factory.mktemp("predict")
    done = run_vit(
        "pretrain", "--data", class_folders, "--model", "mu/4", "--steps", "30", "--batch-size", "16", "--out", "run",
        cwd=folder,
    )  # fmt: skip
    assert done.code == 0, done.err
    (folder / "in" / "deep").mkdir(parents=True)
    for index, name in enumerate(("b.png", "a.jpg", "deep/c.png")):
        draw_image(index, 5000 + index).save(folder / "in" / name)
    (folder / "notes.txt").write_text("no image")
    whole = (folder / "in" / "b.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


def rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_an_image_in_the_order_given(place: Path) -> None:
    done = run_vit("predict", "run", "in/deep/c.png", "in/b.png", "in/a.jpg", "--json", cwd=place)
    assert done.code == 0, done.err
    found = rows(done.out)
    assert [row["path"] for row in found] == ["in/deep/c.png", "in/b.png", "in/a.jpg"]
    for row in found:
        assert set(row) == {"path", "label", "score", "topk"}
        best = row["topk"]
        assert isinstance(best, list) and len(best) == 3
        assert row["label"] == best[0]["label"] and row["score"] == best[0]["score"]
        assert abs(sum(item["score"] for item in best) - 1) < 1e-9


def test_errors_stand_in_their_lines_and_the_others_are_there(place: Path) -> None:
    names = ["in/b.png", "missing.png", "notes.txt", "cut.png", "in/a.jpg"]
    done = run_vit("predict", "run", *names, "--json", cwd=place)
    found = rows(done.out)
    assert [row["path"] for row in found] == names
    assert ["error" in row for row in found] == [False, True, True, True, False]
    assert all(set(row) == {"path", "error"} for row in found if "error" in row)
    assert "No such file" in str(found[1]["error"])
    assert done.code == 3 and "3 of 5 images could not be read" in done.err
    without = run_vit("predict", "run", "in/b.png", "in/a.jpg", "--json", cwd=place)
    assert rows(without.out) == [found[0], found[4]]
    alone = run_vit("predict", "run", "in/a.jpg", "--json", cwd=place)
    (same,) = rows(alone.out)
    assert [item["label"] for item in same["topk"]] == [item["label"] for item in found[4]["topk"]]
    assert [item["score"] for item in same["topk"]] == pytest.approx(
        [item["score"] for item in found[4]["topk"]], abs=1e-6
    )


def test_text_has_path_label_and_score_between_tabs(place: Path) -> None:
    done = run_vit("predict", "run", "in/b.png", "cut.png", cwd=place)
    first, second = (line.split("\t") for line in done.out.splitlines())
    assert first[0] == "in/b.png" and first[1] in ("red", "green", "blue") and 0 < float(first[2]) <= 1
    assert second[0] == "cut.png" and second[1].startswith("error: ")


def test_folders_patterns_and_stdin(place: Path) -> None:
    folder = run_vit("predict", "run", "in", cwd=place).out
    assert [line.split("\t")[0] for line in folder.splitlines()] == ["in/a.jpg", "in/b.png", "in/deep/c.png"]
    pattern = run_vit("predict", "run", "in/*.png", "in/**/c.png", cwd=place).out
    assert [line.split("\t")[0] for line in pattern.splitlines()] == ["in/b.png", "in/deep/c.png"]
    piped = run_vit("predict", "run", "-", cwd=place, stdin="in/b.png\n\nin/a.jpg\r\n").out
    assert [line.split("\t")[0] for line in piped.splitlines()] == ["in/b.png", "in/a.jpg"]
    empty = run_vit("predict", "run", "-", cwd=place, stdin="")
    assert (empty.code, empty.out) == (0, "")


def test_a_batch_changes_no_row(place: Path) -> None:
    names = ["in/b.png", "cut.png", "in/a.jpg", "in/deep/c.png"]
    one = run_vit("predict", "run", *names, "--json", "--batch-size", "1", cwd=place)
    many = run_vit("predict", "run", *names, "--json", "--batch-size", "64", cwd=place)
    for a, b in zip(rows(one.out), rows(many.out), strict=True):
        assert a.keys() == b.keys() and a.get("label") == b.get("label")
        if "score" in a:
            assert a["score"] == pytest.approx(b["score"], abs=1e-6)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_table_in_place_of_lines(place: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"p.{ending}"
    done = run_vit("predict", "run", "in/b.png", "cut.png", "--out", out, cwd=place)
    assert done.code == 3 and done.out == f"{out}\n"
    text = out.read_bytes()
    if ending == "parquet":
        table = pyarrow.parquet.read_table(out).to_pylist()
        assert [row["path"] for row in table] == ["in/b.png", "cut.png"]
        assert table[0]["error"] is None and table[1]["label"] is None
        assert table[0]["topk"][0]["label"] == table[0]["label"]
    else:
        assert b"in/b.png" in text and b"cut.png" in text
    assert run_vit("predict", "run", "in/b.png", "--out", out, cwd=place).code == 2
    assert out.read_bytes() == text
    assert run_vit("predict", "run", "in/b.png", "--out", out, "--force", cwd=place).code == 0
    assert run_vit("predict", "run", "in/b.png", "--out", tmp_path / "p.xls", cwd=place).code == 2


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_names_that_are_not_utf_8_have_their_rows(place: Path, tmp_path: Path, ending: str) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(place / "in" / "b.png", odd)
    os.mkfifo(tmp_path / "pipe.png")
    out = tmp_path / f"p.{ending}"
    done = run_vit("predict", "run", odd, tmp_path / "pipe.png", "--out", out, cwd=place)
    assert done.code == 3 and (b"caf\\udce9.png" if ending == "jsonl" else b"caf\\xe9.png") in out.read_bytes()


def test_a_reader_that_stops_early_is_quiet(place: Path) -> None:
    command = f"{sys.executable} -m vitcli predict run {'in ' * 200} --batch-size 1 | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=place, capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr and "rror" not in done.stderr


def test_what_cannot_be_predicted_with(vit: Vit, place: Path) -> None:
    missing = vit("predict", "nothing.safetensors", place / "in" / "b.png", "--json")
    assert missing.code == 4 and missing.json["error"]["code"] == 4
    assert vit("predict", place / "run", place / "in" / "b.png", "--set", "optim.lr=1").code == 2


def test_names_for_outputs_that_have_none(tmp_path: Path) -> None:
    import torch

    from vitcli.config import model_config
    from vitcli.model.vit import ViT, init_weights

    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "x.png")
    for classes, expected in ((1000, "tench"), (3, "0")):
        model = ViT(model_config("mu/4", (16, 16), classes))
        init_weights(model, 0)
        with torch.no_grad():
            model.head.bias[0] = 1.0
        torch.save(model.state_dict(), tmp_path / "w.pth")
        done = run_vit("predict", "w.pth", "x.png", "--json", cwd=tmp_path)
        assert done.json["label"] == expected and "labels" in done.err
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n")
    assert run_vit("predict", "w.pth", "x.png", "--labels", "names.txt", "--json", cwd=tmp_path).json["label"] == "cat"
