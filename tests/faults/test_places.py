"""Rows 40, 53 and 60: where things lie. What a stranger's checkpoint names, places nothing can be written to, full disks."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from conftest import mounted_disk
from listening import Listener, listening
from processes import Started, pretrain, run
from vitcli import files
from vitcli.weights import checkpoint
from vitcli.weights.checkpoint import load


@pytest.fixture(scope="module")
def place(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on `colours`, in a folder with an image."""
    root = tmp_path_factory.mktemp("places")
    shutil.copy(class_folders / "test" / "red" / "000.png", root / "image.png")
    done = run(pretrain(class_folders, steps=2), root)
    assert done.code == 0, done.err
    return root


# --- 40: a stranger's checkpoint ---------------------------------------------------------------------------------


def of_a_stranger(place: Path, path: Path, **data: Any) -> Path:
    """The run's checkpoint with other provenance."""
    description, tensors = load(str(place / "run"))
    provenance = description.provenance | {"data": description.provenance["data"] | data}
    checkpoint.save(dataclasses.replace(description, path=path, provenance=provenance), tensors)
    return path


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as found:
        yield found


READERS = [["eval"], ["probe"], ["finetune", "--steps", "1"], ["eval", "--dry-run"]]


@pytest.mark.parametrize("kind", ["address", "hub", "preset", "folder", "pipe"])
def test_row_40_what_a_strangers_checkpoint_names_is_not_opened(
    place: Path, tmp_path: Path, listener: Listener, class_folders: Path, kind: str
) -> None:
    os.mkfifo(tmp_path / "pipe.parquet")
    names = {
        "address": f"http://{listener.address}/train.parquet",
        "hub": "somebody/something",
        "preset": "cifar10",
        "folder": str(class_folders.parent),
        "pipe": str(tmp_path / "pipe.parquet"),
    }
    path = of_a_stranger(place, tmp_path / "theirs.safetensors", id=names[kind])
    online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_ENDPOINT": f"http://{listener.address}"}
    for command, *more in READERS:
        done = Started([command, path, *more, "--json"], tmp_path, env=online).wait(60)
        assert done.code == 2, done.err
        assert names[kind] in done.json["error"]["hint"] and "--data" in done.json["error"]["hint"]
    assert listener.calls == []


def test_row_40_seals_of_another_name_or_key_do_not_help(place: Path, tmp_path: Path, class_folders: Path) -> None:
    sealed = load(str(place / "run"))[0].provenance["data"]["seals"]
    assert sealed
    for data in (
        {"id": str(class_folders.parent), "seals": sealed},
        {"seals": ["0" * 32]}, {"seals": []}, {"seals": None}, {"seals": "text"}, {"seals": [1, None, {}]},
    ):  # fmt: skip
        path = of_a_stranger(place, tmp_path / "theirs.safetensors", **data)
        assert run(["eval", path, "--json"], tmp_path).code == 2


def test_row_40_this_machines_own_run_needs_no_data(place: Path, tmp_path: Path) -> None:
    """Wherever it was copied to, and whatever became of the cache."""
    shutil.copy(place / "run" / "model.safetensors", tmp_path / "copy.safetensors")
    for env in ({}, {"VIT_CACHE": str(tmp_path / "other")}):
        done = run(["eval", "copy.safetensors", "--json"], tmp_path, env=env)
        assert done.code == 0 or (env and not Path("/etc/machine-id").exists()), done.err


def test_row_40_the_embedded_digits_are_anybodys(place: Path, tmp_path: Path) -> None:
    path = of_a_stranger(place, tmp_path / "theirs.safetensors", id="digits", seals=[])
    done = run(["eval", path, "--json"], tmp_path)
    assert done.code == 3 and "digits" in done.json["error"]["message"], "opened, and found to have other classes"


# --- 53: where nothing can be written ----------------------------------------------------------------------------

WRITERS = [
    ["eval", "run", "--predictions", "OUT.csv"], ["eval", "run", "--confusion", "OUT.png"],
    ["predict", "run", "image.png", "--out", "OUT.csv"], ["attn-distance", "run", "--plot", "OUT.png"],
    ["attn-distance", "run", "--csv", "OUT.csv"], ["posemb-similarity", "run", "--plot", "OUT.png"],
    ["filters", "run", "--plot", "OUT.png"], ["resize-posemb", "run", "OUT.safetensors", "--img-size", "16"],
    ["export", "run", "OUT.onnx", "--format", "onnx"], ["export", "run", "OUT", "--format", "timm"],
    ["attn-rollout", "run", "image.png", "--out", "OUT"], ["pretrain", "--data", "digits", "--steps", "1", "--out", "OUT"],
    ["sweep", "--data", "digits", "--steps", "1", "--grid", "optim.lr=0.1", "--out", "OUT"],
]  # fmt: skip


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything there: kind, size."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_mode, 0 if p.is_dir() else p.lstat().st_size)
        for p in folder.rglob("*")
        if not p.name.startswith(".")
    }


@pytest.mark.parametrize("command", WRITERS, ids=lambda c: f"{c[0]}-{c[-1]}")
def test_row_53_a_place_that_cannot_be_written_is_said_before_any_work(place: Path, command: list[str]) -> None:
    (word,) = (w for w in command if w.startswith("OUT"))
    ending = word[3:]
    for name in ("link", "way"):
        shutil.rmtree(place / name, ignore_errors=True)
    dangling, device, loop = place / f"dangling{ending}", place / f"device{ending}", place / f"loop{ending}"
    pipe = place / f"pipe{ending}"
    for made in (dangling, device, loop, pipe):
        made.unlink(missing_ok=True)
    dangling.symlink_to("nothing")
    device.symlink_to("/dev/null")
    loop.symlink_to(loop.name)
    os.mkfifo(pipe)
    before = files_below(place)
    places = [dangling.name, device.name, loop.name, pipe.name, "n" * 300 + ending, "n/" * 2500 + "x" + ending]
    places += [f"image.png/x{ending}", "/dev/null/x" + ending, "/proc/x" + ending]
    for out in places:
        done = Started([out if w == word else w for w in command] + ["--json"], place).wait(60)
        assert done.code in (2, 6), f"{out}: {done.err}"
        error = json.loads(done.out.splitlines()[-1])["error"]
        assert error["hint"] and "Traceback" not in done.err
    assert files_below(place) == before
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    "command", [c for c in WRITERS if c[0] not in ("resize-posemb",)], ids=lambda c: f"{c[0]}-{c[-1]}"
)
def test_row_53_the_root_and_the_folder_itself(place: Path, command: list[str]) -> None:
    (word,) = (w for w in command if w.startswith("OUT"))
    if command[0] == "attn-rollout":
        pytest.skip("its pictures may go into any folder")
    before = files_below(place), sorted(Path("/").iterdir())
    for out in ("/", ".", "..", "run/..", "/."):
        done = run([out if w == word else w for w in command] + ["--json"], place)
        assert done.code == 2, f"{out}: {done.err}"
    assert (files_below(place), sorted(Path("/").iterdir())) == before


def test_row_53_a_run_in_the_folder_itself_goes_on(class_folders: Path, tmp_path: Path) -> None:
    """`.` is a place like another: an empty folder, or a run's own."""
    first = run(pretrain(class_folders, steps=2, out="."), tmp_path)
    assert first.code in (0, 2), first.err
    (tmp_path / "empty").mkdir()
    done = Started(pretrain(class_folders, steps=2, out="../empty/."), tmp_path / "empty").wait()
    assert done.code in (0, 2), done.err


def test_row_53_a_long_name_of_data_is_no_long_name_of_a_run(class_folders: Path, tmp_path: Path) -> None:
    name = "n" * 250
    shutil.copytree(class_folders, tmp_path / name)
    done = run(["pretrain", "--data", name, "--model", "mu/4", "--steps", "1", "--json"], tmp_path)
    assert done.code == 0, done.err


@pytest.mark.parametrize("what", ["long", "dangling", "file", "below a file", "root of nobody"])
def test_row_53_a_cache_that_cannot_be(class_folders: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nothing")
    caches = {
        "long": str(tmp_path / ("c" * 300)),
        "dangling": str(tmp_path / "dangling"),
        "file": str(tmp_path / "file"),
        "below a file": str(tmp_path / "file" / "cache"),
        "root of nobody": "/proc/cache",
    }
    done = run(pretrain(class_folders, steps=1), tmp_path, env={"VIT_CACHE": caches[what]})
    assert done.code in (0, 2, 6), done.err
    if done.code:
        assert "VIT_CACHE" in done.err
    assert (tmp_path / "file").stat().st_size == 0 and (tmp_path / "dangling").is_symlink()


def test_row_53_a_working_folder_that_was_deleted(place: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    before = f"import os\nos.mkdir({str(gone)!r})\nos.chdir({str(gone)!r})\nos.rmdir({str(gone)!r})"
    for arguments in (
        ["pretrain", "--steps", "1"],
        ["eval", place / "run"],
        ["info", "ViT-B/16"],
        ["predict", place / "run", "x"],
    ):
        done = run([*arguments, "--json"], tmp_path, before=before)
        assert done.code == 6 and "working directory" in done.json["error"]["message"], done.err


# --- 60: a disk that fills ---------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path / "disk", "4m") as folder:
        yield folder


def fill(disk: Path, left: int) -> None:
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, files.free_bytes(disk) - left)


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_row_60_lines_before_the_disk_was_full_are_whole(
    place: Path, disk: Path, tmp_path: Path, option: list[str]
) -> None:
    fill(disk, 8192)
    log = disk / "rows"
    log.touch()
    Path(tmp_path / "list").write_text("image.png\n" * 2000)
    before = (
        "import os, io, sys\nsys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO({!r})))\n".format(
            str(tmp_path / "list")
        )
        + f"f = os.open({str(log)!r}, os.O_WRONLY | os.O_TRUNC)\nos.dup2(f, 1)"
    )
    done = Started(["predict", "run", "-", *option], place, before=before).wait()
    assert done.code == 6 and "No space left" in done.err, done.err
    text = log.read_text()
    lines = text.splitlines()
    assert 5 < len(lines) < 2000 and text.endswith("\n")
    for line in lines:
        assert json.loads(line)["path"] == "image.png" if option else len(line.split("\t")) == 3


@pytest.mark.parametrize("command", [c for c in WRITERS if c[0] not in ("sweep",)], ids=lambda c: f"{c[0]}-{c[-1]}")
def test_row_60_nothing_half_written_is_left(place: Path, disk: Path, command: list[str]) -> None:
    (word,) = (w for w in command if w.startswith("OUT"))
    out = disk / word
    fill(disk, 0)
    done = Started([str(out) if w == word else w for w in command] + ["--json"], place).wait()
    assert done.code == 6, done.err
    assert str(disk) in json.loads(done.out.splitlines()[-1])["error"]["message"]
    left = [p for p in disk.rglob("*") if p.name != "filler" and not (p.is_dir() and not any(p.iterdir()))]
    assert left == [], left


def test_row_60_a_home_that_is_full(class_folders: Path, tmp_path: Path, disk: Path) -> None:
    """A run on a folder needs no room there; Parquet, which a library copies, says what is full. Nothing is left."""
    fill(disk, 0)
    home = {"HOME": str(disk), "VIT_CACHE": str(disk / "vit")}
    before = f"import datasets\ndatasets.config.HF_DATASETS_CACHE = {str(disk / 'datasets')!r}"
    done = run(pretrain(class_folders, steps=2), tmp_path, env=home)
    assert done.code == 0, done.err
    rows = [{"bytes": path.read_bytes()} for path in sorted(class_folders.glob("test/*/*"))]
    pyarrow.parquet.write_table(
        pyarrow.table({"image": rows, "label": [0, 1] * (len(rows) // 2)}), tmp_path / "t.parquet"
    )
    full = run(pretrain("t.parquet", steps=2, out="rows"), tmp_path, env=home, before=before)
    assert full.code == 6 and "HF_DATASETS_CACHE" in full.json["error"]["hint"], full.err
    inside = run(["pretrain", "--data", class_folders, "--model", "mu/4", "--steps", "1", "--json"], disk, env=home)
    assert inside.code == 6 and not (disk / "runs").exists(), inside.err


def test_row_60_what_was_there_stays(place: Path, disk: Path) -> None:
    """A table that cannot be replaced is the old one."""
    (disk / "t.csv").write_text("old")
    fill(disk, 0)
    for command in (["eval", "run", "--predictions"], ["predict", "run", "image.png", "--out"]):
        assert run([*command, disk / "t.csv", "--force"], place).code == 6
    assert (disk / "t.csv").read_text() == "old"
