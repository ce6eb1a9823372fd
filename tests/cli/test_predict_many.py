"""`vit predict` for many images: tables in parts, kills, addresses, thresholds, embeddings."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from conftest import Vit, draw_image, run_vit, train_run
from vitcli import api
from vitcli.evaluate import parts

KILLED = """
import os, signal, sys
from vitcli.evaluate import parts
parts._ROWS = 4
whole, after = parts.files.write_file, int(sys.argv[1])
written = 0
def write_file(path, write, size=0):
    global written
    if path.name.startswith("part-"):
        written += 1
        if written == after + 1:  # before it is there
            os.kill(os.getpid(), signal.{signal})
    whole(path, write, size)
parts.files.write_file = write_file
from vitcli.cli.app import main
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def place(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, thirty pictures, one that is none, and a list of all of them."""
    folder = tmp_path_factory.mktemp("many")
    train_run("pretrain", data=str(class_folders), out=str(folder / "run"), model="mu/4", steps=20, batch_size=16)
    (folder / "in").mkdir()
    for index in range(30):
        draw_image(index % 3, 7000 + index).save(folder / "in" / f"{index:02}.png")
    (folder / "in" / "11.png").write_text("no picture")
    names = [f"in/{path.name}" for path in (folder / "in").iterdir()]
    random.Random(0).shuffle(names)
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def names_of(place: Path) -> list[str]:
    return (place / "list.txt").read_text().split()


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open() as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("ending", "after", "name"), [("parquet", 2, "SIGKILL"), ("csv", 3, "SIGKILL"), ("jsonl", 5, "SIGTERM")]
)
def test_killed_and_run_again_every_path_has_one_row_in_order(place: Path, ending: str, after: int, name: str) -> None:
    given = ["predict", "run", "-", "--out", f"{after}.{ending}", "--batch-size", "4"]
    text = (place / "list.txt").read_text()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED.replace("{signal}", name), str(after), *given],
        cwd=place, input=text, text=True, capture_output=True, env=dict(os.environ), timeout=120,
    )  # fmt: skip
    assert killed.returncode == (-signal.SIGKILL if name == "SIGKILL" else 75), killed.stderr
    assert not (place / f"{after}.{ending}").exists()
    again = run_vit(*given, cwd=place, stdin=text)
    assert again.code == 3 and "have their rows already" in again.err, again.err
    found = rows_of(place / f"{after}.{ending}")
    assert [row["path"] for row in found] == names_of(place)
    assert [row["path"] for row in found if row.get("error")] == ["in/11.png"]
    assert "1 of 30 images" in again.err
    assert not (place / f"{after}.{ending}.parts").exists()
    whole = api.predict(str(place / "run"), [str(place / name) for name in names_of(place)])
    assert [row.get("label") for row in whole] == [row.get("label") or None for row in found]


def test_parts_of_something_else_are_not_gone_on_with(
    place: Path, in_process: Vit, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chdir(place)  # in_process goes back to where it was
    monkeypatch.setattr(parts, "_ROWS", 5)
    full = parts.Table.finish
    monkeypatch.setattr(parts.Table, "finish", lambda self: (_ for _ in ()).throw(parts.UsageError("stopped")))
    names = names_of(place)
    assert in_process("predict", "run", *names[:20], "--out", "p.jsonl").code == 2
    monkeypatch.setattr(parts.Table, "finish", full)
    other = in_process("predict", "run", *names[1:], "--out", "p.jsonl")
    assert other.code == 2 and "row 1 of the parts" in other.err
    fewer = in_process("predict", "run", *names[:3], "--out", "p.jsonl")
    assert fewer.code == 2 and "image 4 is None" in fewer.err
    sure = in_process("predict", "run", *names, "--out", "p.jsonl", "--min-score", "0.5")
    assert sure.code == 2 and "wanted differ" in sure.err
    done = in_process("predict", "run", *names, "--out", "p.jsonl", "--quiet")
    assert [row["path"] for row in rows_of(place / "p.jsonl")] == names, done.err


def test_two_commands_do_not_write_one_table(place: Path, tmp_path: Path) -> None:
    with parts.Table(tmp_path / "p.csv", ["path", "error"], {}, force=False) as first:
        with pytest.raises(parts.UsageError, match="another command"):
            parts.Table(tmp_path / "p.csv", ["path", "error"], {}, force=False)
        assert first.done == 0
    parts.Table(tmp_path / "p.csv", ["path", "error"], {}, force=False).lock.close()


def test_below_the_least_score_an_image_is_none_of_these(place: Path, vit: Vit) -> None:
    given = ["predict", place / "run", place / "in", "--json", "--top-k", "2"]
    rows = [json.loads(line) for line in vit(*given).out.splitlines()]
    scores = sorted(row["score"] for row in rows if "score" in row)
    middle = scores[len(scores) // 2]
    found = [json.loads(line) for line in vit(*given, "--min-score", middle).out.splitlines()]
    for before, after in zip(rows, found, strict=True):
        assert before.get("topk") == after.get("topk") and len(after.get("topk", "ab")) == 2
        if "score" in before:
            assert after["label"] == (before["label"] if before["score"] >= middle else None)
    assert sum(row.get("label", "") is None for row in found) == len(scores) // 2
    assert "none of these" in vit("predict", place / "run", place / "in", "--min-score", "1").out
    assert vit("predict", place / "run", place / "in", "--min-score", "2").code == 2


def test_embeddings_are_what_the_head_reads(place: Path, in_process: Vit) -> None:
    done = in_process("predict", place / "run", place / "in", "--out", "e.parquet", "--embedding")
    assert done.code == 3
    table = pyarrow.parquet.read_table("e.parquet").to_pylist()
    plain = api.predict(str(place / "run"), [str(place / "in")])
    _, model = api.load(str(place / "run"))
    for row, other in zip(table, plain, strict=True):
        assert row["label"] == other.get("label")
        if row["embedding"] is not None:
            logits = (
                np.array(row["embedding"]) @ model.head.weight.detach().double().numpy().T
                + model.head.bias.detach().numpy()
            )
            chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            assert chances.max() == pytest.approx(other["score"], abs=1e-4)
    assert in_process("predict", place / "run", place / "in", "--embedding").code == 2
    assert in_process("predict", place / "run", place / "in", "--embedding", "--out", "e.csv").code == 2


def test_addresses_are_read_and_patterns_and_folders_there_too(place: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for index in (3, 1, 2):
        memory.pipe(f"/vit-predict/deep/{index}.png", (place / "in" / f"0{index}.png").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(place / "in" / "05.png", "x/05.png")
    names = [
        "memory://vit-predict/deep/*.png", "memory://vit-predict", "memory://vit-predict/deep/3.png",
        "memory://vit-predict/none.png", "memory://vit-predict/no/*.png", f"zip://x/05.png::{tmp_path / 'a.zip'}",
        f"file://{place / 'in' / '06.png'}", "strange://a.png",
    ]  # fmt: skip
    rows = api.predict(str(place / "run"), names)
    three = [f"memory:///vit-predict/deep/{i}.png" for i in (1, 2, 3)]
    assert [row["path"] for row in rows[:6]] == three * 2
    assert [row["path"] for row in rows[6:]] == names[2:]
    assert ["error" in row for row in rows] == [False] * 7 + [True, True, False, False, True]
    same = api.predict(str(place / "run"), [str(place / "in" / f"0{i}.png") for i in (1, 2, 3, 5, 6)])
    scores = [row["score"] for row in (*rows[:3], *rows[9:11])]
    assert scores == pytest.approx([row["score"] for row in same], abs=1e-6)


# --- faults that were found -----------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["lock", "about.json", "precious.txt", "part-1.csv"])
def test_a_folder_of_the_users_is_neither_written_to_nor_removed(tmp_path: Path, name: str, force: bool) -> None:
    mine = tmp_path / "p.csv.parts"
    mine.mkdir()
    (mine / name).write_text('{"mine": 1}')
    with pytest.raises(parts.UsageError, match="no table's"):
        parts.Table(tmp_path / "p.csv", ["path", "error"], {}, force)
    assert [path.name for path in mine.iterdir()] == [name] and (mine / name).read_text() == '{"mine": 1}'


def test_a_file_in_the_place_of_the_parts_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.csv.parts").write_text("mine")
    with pytest.raises(parts.UsageError, match="no table's"):
        parts.Table(tmp_path / "p.csv", ["path", "error"], {}, force=True)


def test_force_does_not_take_a_table_from_a_command_at_work(tmp_path: Path) -> None:
    with parts.Table(tmp_path / "p.csv", ["path", "error"], {"a": 1}, force=False) as first:
        first.add({"path": "x.png"})
        first.flush()
        with pytest.raises(parts.UsageError, match="another command"):
            parts.Table(tmp_path / "p.csv", ["path", "error"], {"a": 2}, force=True)
        first.finish()
    assert (tmp_path / "p.csv").read_text() == "path,error\nx.png,\n"


def test_force_replaces_the_table_and_goes_on_with_its_own_parts(tmp_path: Path) -> None:
    def begun(about: int) -> parts.Table:
        return parts.Table(tmp_path / "p.jsonl", ["path", "error"], {"a": about}, force=True)

    with begun(1) as table:
        list(table.left([]))
        for index in range(3):
            table.add({"path": f"{index}.png"})
        rows = list(table.waiting)
        table.flush()
        table.waiting = rows  # as a signal in the midst of it leaves them
        table.flush()
    with begun(1) as table:
        assert list(table.left(f"{index}.png" for index in range(5))) == ["3.png", "4.png"] and table.done == 3
    with begun(2) as table:
        assert list(table.left(["other.png"])) == ["other.png"] and table.done == 0


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    for ending in ("jsonl", "csv", "parquet"):
        with parts.Table(tmp_path / f"p.{ending}", ["path", "error"], {}, force=False) as table:
            table.add({"path": "x.png"})
            table.flush()
            (part,) = table.parts
        part.write_bytes(b"\x00\xff[")
        with (
            parts.Table(tmp_path / f"p.{ending}", ["path", "error"], {}, force=False) as table,
            pytest.raises(parts.UsageError),
        ):
            list(table.left(["x.png"]))


def test_a_warning_signal_saves_while_nothing_comes(place: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "vitcli", "predict", "run", "-", "--out", "usr1.csv", "--batch-size", "1"],
        cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdin is not None and running.stderr is not None
    running.stdin.write("in/01.png\nin/02.png\nin/03.png\n")
    running.stdin.flush()
    deadline = time.monotonic() + 60
    while not (place / "usr1.csv.parts" / "about.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.5)
    running.send_signal(signal.SIGUSR1)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 75, said
    assert [row["path"] for part in (place / "usr1.csv.parts").glob("part-*") for row in rows_of(part)]


def test_a_name_with_brackets_is_read_at_an_address_too(place: Path, tmp_path: Path) -> None:
    (tmp_path / "[1]?.png").write_bytes((place / "in" / "01.png").read_bytes())
    (row,) = api.predict(str(place / "run"), [f"file://{tmp_path}/[1]?.png"])
    assert "error" not in row
