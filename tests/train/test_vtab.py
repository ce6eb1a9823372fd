"""VTAB's nineteen tasks, made small in the layouts of TFDS: labels, splits and the table by hand."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from conftest import Vit, draw_image, train_run
from vitcli.config import DataConfig
from vitcli.data.entries import read_entries
from vitcli.data.sources import open_source
from vitcli.errors import DataError

GROUPS = {"natural": 7, "specialised": 4, "structured": 8}


def blob(colour: int, index: int, times: int = 1) -> dict[str, Any]:
    stream = io.BytesIO()
    picture = draw_image(colour, index)
    (picture if times == 1 else picture.convert("L").point(lambda v: int(v > 100))).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def write(folder: Path, split: str, columns: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")


def images(count: int, seed: int, times: int = 1) -> list[dict[str, Any]]:
    return [blob(i % 3, 100_000 * seed + i, times) for i in range(count)]


def clevr(i: int) -> list[dict[str, Any]]:
    depth = (7.0, 8.2, 9.7)[i % 3]
    return [{"pixel_coords": [1.0, 2.0, depth + j], "shape": 0} for j in range(3 + i % 3)]


def kitti(i: int) -> dict[str, Any]:
    """A pedestrian nearer than any vehicle counts for nothing; every fourth has no vehicle."""
    far = (5.0, 12.0, 30.0)[i % 3]
    kinds = ["Pedestrian"] if i % 4 == 3 else ["Pedestrian", ("Car", "Van", "Truck")[i % 3]]
    return {"type": kinds, "location": [[0.0, 0.0, 1.0], [0.0, 0.0, far]][: len(kinds)]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty training images of each and ten or so to measure; svhn as class folders, eurosat as one split, the rest Parquet."""
    folder = tmp_path_factory.mktemp("vtab")
    entries = read_entries(None, folder).by_name
    for number, (name, entry) in enumerate(entries.items()):
        place = folder / (entry.path or name)
        if place.exists():
            continue
        if name == "svhn":
            for split, count in (("train", 30), ("test", 12)):
                for i in range(count):
                    (place / split / str(i % 3)).mkdir(parents=True, exist_ok=True)
                    draw_image(i % 3, 1000 * number + i).save(place / split / str(i % 3) / f"{split}{i:03}.png")
            continue
        one = name in ("eurosat", "resisc45", "dsprites-location")
        named = {p.partition("[")[0] for p in (entry.train, entry.val, entry.test)}
        for split in sorted(named):
            n = 60 if one else 30 if split == "train" else 24
            pictures = images(n, 50 * number + len(split), entry.times)
            labels = [i % 3 for i in range(n)]
            columns: dict[str, Any] = {"image": pictures, "label": labels}
            if entry.path == "clevr":
                columns = {"image": pictures, "objects": [clevr(i) for i in range(n)]}
            elif entry.path == "kitti":
                columns = {"image": pictures, "objects": [kitti(i) for i in range(n)]}
            elif entry.path == "dsprites":
                columns = {"image": pictures, "label_x_position": [2 * (i % 3) + i % 2 for i in range(n)],
                           "label_orientation": [(0, 3, 5)[i % 3] for i in range(n)]}  # fmt: skip
            elif entry.path == "smallnorb":
                columns = {"image": pictures, "label_azimuth": labels, "label_elevation": [2 - v for v in labels]}
            write(place, split, columns)
    return folder


@pytest.fixture(scope="module")
def checkpoint(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vtab-run") / "run"
    return train_run("pretrain", data=str(class_folders), out=str(folder), model="mu/4", steps=10, batch_size=16)[0]


def opened(root: Path, name: str) -> Any:
    return open_source(DataConfig(source=f"vtab:{name}@{root}"))


def test_splits_and_labels_are_those_of_the_protocol(root: Path) -> None:
    count = opened(root, "clevr-count")
    assert [c.name for c in count.classes] == ["0", "1", "2"]
    assert count.splits["train"].labels.tolist() == [i % 3 for i in range(30)]
    assert len(count.splits["test"]) == 24  # the validation split, whole
    distance = opened(root, "clevr-distance").splits["test"]
    names = [opened(root, "clevr-distance").classes[label].name for label in distance.labels[:3]]
    assert names == ["0", "1", "4"]  # 7.0, 8.2 and 9.7 between 0, 8, 8.5, 9, 9.5, 10
    vehicles = opened(root, "kitti-distance")
    found = [vehicles.classes[label].name for label in vehicles.splits["test"].labels[:8]]
    assert found == ["0", "1", "2", "3", "1", "2", "0", "3"]
    place, turn = opened(root, "dsprites-location"), opened(root, "dsprites-orientation")
    assert place.splits["train"].labels.tolist() == [i % 3 for i in range(54)] and len(place.splits["test"]) == 6
    assert turn.splits["train"].labels.tolist() == [i % 3 for i in range(54)] and not turn.mirror
    pixels = np.asarray(Image.open(io.BytesIO(place.splits["train"].blobs(np.array([0]))[0][0])))
    assert set(np.unique(pixels)) <= {0, 255} and pixels.max() == 255
    norb = opened(root, "smallnorb-azimuth")
    assert len(norb.splits["train"]) == 42 and len(norb.splits["test"]) == 12
    euro = opened(root, "eurosat")
    assert len(euro.splits["train"]) == 48 and len(euro.splits["test"]) == 12
    assert opened(root, "svhn").splits["train"].labels is not None and not opened(root, "svhn").mirror


def test_eight_hundred_and_two_hundred_are_trained_on(tmp_path: Path) -> None:
    for split, n in (("train", 900), ("validation", 250), ("test", 30)):
        write(tmp_path / "dtd", split, {"image": images(n, len(split)), "label": [i % 5 for i in range(n)]})
    source = opened(tmp_path, "dtd")
    train = source.splits["train"]
    assert len(train) == 1000 and len(source.splits["test"]) == 30
    assert train.blobs(np.array([799, 800]))[0][0] == images(900, 5)[799]["bytes"]
    assert train.blobs(np.array([800]))[0][0] == images(250, 10)[0]["bytes"]
    assert train.labels.tolist() == [i % 5 for i in range(800)] + [i % 5 for i in range(200)]


def test_the_table_is_the_one_computed_by_hand(root: Path, checkpoint: Path, in_process: Vit) -> None:
    done = in_process("vtab", checkpoint, "--root", root, "--json", "--set", "probe.solver=closed", "--quiet")
    assert done.code == 0, done.err
    tree = done.json
    assert [row["task"] for row in tree["tasks"]] == list(read_entries(None, root).by_name) and len(tree["tasks"]) == 19
    scores = {row["task"]: row["top1"] for row in tree["tasks"]}
    for group, count in GROUPS.items():
        own = [row["top1"] for row in tree["tasks"] if row["group"] == group]
        assert len(own) == count == tree["groups"][group]["tasks_of"]
        assert tree["groups"][group]["mean"] == pytest.approx(sum(own) / count, abs=1e-12)
    assert tree["mean"] == pytest.approx(sum(scores.values()) / 19, abs=1e-12) == pytest.approx(tree["mean_of_present"])
    assert tree["absent"] == tree["failed"] == []
    alone = in_process(
        "probe", checkpoint, "--data", f"vtab:pets@{root}", "--json", "--set", "probe.solver=closed"
    ).json
    assert alone["results"][0]["top1"] == scores["pets"]


def test_absent_tasks_are_named_and_never_averaged_over(
    root: Path, checkpoint: Path, tmp_path: Path, in_process: Vit
) -> None:
    gone = ("dtd", "pets", "eurosat", "kitti-distance", "dmlab")
    some = tmp_path / "some"
    shutil.copytree(root, some)
    for name in gone:
        shutil.rmtree(some / name.removesuffix("-distance"))
    tree = in_process("vtab", checkpoint, "--root", some, "--json", "--set", "probe.solver=closed").json
    assert set(tree["absent"]) == set(gone) and tree["mean"] is None
    there = [row["top1"] for row in tree["tasks"] if row["top1"] is not None]
    assert tree["tasks_present"] == len(there) == 14 and tree["mean_of_present"] == pytest.approx(np.mean(there))
    assert [tree["groups"][g]["mean"] for g in GROUPS] == [None] * 3
    text = in_process("vtab", checkpoint, "--root", some, "--set", "probe.solver=closed", "--quiet").out
    assert "mean of 14 of 19 tasks" in text.replace("is the ", "") and "absent: dtd, pets, eurosat" in text
    nothing = in_process("vtab", checkpoint, "--root", tmp_path, "--json")
    assert nothing.code == 3 and "none of the 19 tasks" in nothing.err


def test_tasks_of_ones_own_and_fine_tuning(root: Path, checkpoint: Path, tmp_path: Path, in_process: Vit) -> None:
    shutil.copytree(root / "pets", tmp_path / "animals")
    (tmp_path / "mine.toml").write_text(
        '[animals]\ngroup = "mine"\ntrain = "train[:20]"\ntest = "test"\n[turned]\npath = "animals"\ntrain = "train[50%:]"\ntest = "test[:6]"\n'
    )
    given = [
        "vtab",
        checkpoint,
        "--tasks",
        tmp_path / "mine.toml",
        "--method",
        "finetune",
        "--steps",
        "2",
        "--json",
        "--quiet",
        "--out",
        "runs",
    ]
    done = in_process(*given, "--task", "animals", "--set", "train.batch_size=8")
    assert done.code == 0, done.err
    (row,) = done.json["tasks"]
    assert row["n"] == 24 and Path(row["run"]) == Path("runs/animals") and done.json["mean"] == row["top1"]
    assert in_process(*given, "--task", "animals", "--set", "train.batch_size=8").json == done.json  # the run is there
    assert in_process("eval", "runs/animals", "--json").json["top1"] == row["top1"]
    assert len(open_source(DataConfig(source=f"{tmp_path / 'mine.toml'}:turned")).splits["train"]) == 15
    assert in_process(*given, "--task", "annimals").code == 2
    assert in_process("vtab", checkpoint, "--root", root, "--set", "optim.lr=1").code == 2
    several = in_process("vtab", checkpoint, "--root", root, "--method", "knn", "--set", "probe.k=1,2")
    assert several.code == 2 and "one score a task" in several.err


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[a]\ntrain = 3\ntest = 'test'", "train"), ("[a]\ntrain = 'train'", "lacks test"), ("[a]\ntrian = 'x'", "did you mean|unknown field"),
        ("a = 3", "no table"), ("[a", "not TOML"), ("[a]\ntrain='train'\ntest='test'\nrule='magic'", "rule"),
        ("examples = 3\n[a]\ntrain='train'\ntest='test'", "examples"), ("[a]\ntrain='train[1:2:3]'\ntest='test'", "no part of a split"),
        ("[a]\ntrain='train'\ntest='tset'", "no split"), ("[a]\ntrain='train'\ntest='test'\nlabel='weight'\nrule='floor'", None),
    ],
)  # fmt: skip
def test_an_entry_that_is_none_is_refused_by_its_field(
    root: Path, tmp_path: Path, text: str, named: str | None
) -> None:
    shutil.copytree(root / "pets", tmp_path / "a")
    (tmp_path / "x.toml").write_text(text)
    data = DataConfig(source=f"{tmp_path / 'x.toml'}:a")
    if named is None:  # the data have their classes in a column called label, where the entry's is not there
        assert len(open_source(data).classes) == 3
        return
    with pytest.raises(DataError, match=named):
        open_source(data)


# --- faults that were found -----------------------------------------------------------------------------------


def test_class_folders_are_not_cut_class_by_class(tmp_path: Path) -> None:
    for c in range(3):
        for split, count in (("train", 30), ("test", 6)):
            (tmp_path / "dtd" / split / str(c)).mkdir(parents=True)
            for i in range(count):
                draw_image(c, 40 * c + i).save(tmp_path / "dtd" / split / str(c) / f"{i}.png")
    (tmp_path / "x.toml").write_text(
        "examples = [20, 5]\n[dtd]\ntrain = 'train'\nval = 'train[60%:]'\ntest = 'test'\n[a]\npath = 'dtd'\ntrain = 'train[:60%]'\ntest = 'train[60%:]'\n"
    )
    part = open_source(DataConfig(source=f"{tmp_path / 'x.toml'}:dtd")).splits["train"]
    assert len(part) == 25 and np.bincount(part.labels[:20], minlength=3).min() >= 3
    cut = open_source(DataConfig(source=f"{tmp_path / 'x.toml'}:a")).splits
    assert {len(set(s.labels.tolist())) for s in cut.values()} == {3}
    paths = [set(split.paths(np.arange(len(split)))) for split in cut.values()]
    assert not paths[0] & paths[1]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("['../../esc']\ntrain='train'\ntest='test'", "no name"), ("[a]\npath='../b'\ntrain='train'\ntest='test'", "leads out"),
        ("[a]\npath='/tmp'\ntrain='train'\ntest='test'", "leads out"), ("[a]\ntrain='train'\ntest='test'\ndivide=0.0", "divide"),
        ("[a]\ntrain='train'\ntest='test'\ntimes=-2", "times"), ("[a]\ntrain='train'\ntest='test'\nset=[1]", "set"),
        ("[a]\ntrain='train'\ntest='test'\nrule='nearest'\nedges=[1.0]", "edges"),
        ("[a]\ntrain='train'\ntest='test'\nlabel='x'\nrule='floor'", "no label by rule"), ("[a]\ntrain='train'\ntest='test'\nlabel='x'", "no label by rule"),
        ("[a]\ntrain='train'\ntest='test'\nlabel='objects'\nrule='nearest'\nfield='z'\nedges=[0.0, 1.0]\nkinds=['Car']", "no label by rule"),
    ],
)  # fmt: skip
def test_what_an_entry_may_not_say(tmp_path: Path, text: str, named: str) -> None:
    for split in ("train", "test"):
        columns = {"image": images(4, len(split)), "x": [float("inf"), 0.5, 1.0, 2.0], "objects": [[1], [2], [3], [4]]}
        write(tmp_path / "a", split, columns)
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(DataError, match=named):
        open_source(DataConfig(source=f"{tmp_path / 'x.toml'}:a"))


def test_a_suite_without_tasks_or_with_one_twice(root: Path, checkpoint: Path, tmp_path: Path, in_process: Vit) -> None:
    (tmp_path / "none.toml").write_text("")
    assert in_process("vtab", checkpoint, "--tasks", tmp_path / "none.toml").code == 3
    assert in_process("vtab", checkpoint, "--tasks", tmp_path / "nowhere.toml").code == 3
    twice = in_process("vtab", checkpoint, "--root", root, "--task", "pets", "--task", "pets", "--json").json
    assert len(twice["tasks"]) == 1 == twice["tasks_of"]
