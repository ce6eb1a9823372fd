"""The presets of ImageNet: what they are without access, planned by their numbers, downloaded from a stand-in of the hub and trained on."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

import hub_server
from conftest import Result, draw_image, run_vit
from vitcli.classes import imagenet_1k, imagenet_21k
from vitcli.data.presets import PRESETS

LARGE = {"imagenet": (1_281_167, 50_000, 1000), "imagenet-21k": (13_673_551, 472_840, 21_841)}
LABELS_21K = (5, 17, 21_840)


def blob(colour: int, index: int, kind: str) -> bytes:
    stream = io.BytesIO()
    draw_image(colour, index).save(stream, kind)
    return stream.getvalue()


def write_tar(path: Path, rows: list[tuple[int, int]], synset_of: Mapping[int, str] | None = None) -> None:
    """Members as rwightman/imagenet-12k wds/build_wds.py writes them; `rows` are (colour, index). An image that was resized says its size
    before as well.
    """
    known = imagenet_21k()
    with tarfile.open(path, "w") as archive:
        for colour, index in rows:
            label = LABELS_21K[colour]
            synset = (synset_of or {}).get(label, known[label].id)
            said: dict[str, Any] = {"label": label, "label_12k": -1, "class_name": synset, "width": 12, "height": 12}
            if index % 3 == 2:
                said |= {"orig_width": 900, "orig_height": 900}
            members = {"jpg": blob(colour, index, "JPEG"), "json": json.dumps(said).encode(), "cls": b"%d" % label}
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{synset}_{index}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def copy_of_21k(tmp_path: Path) -> Path:
    folder = tmp_path / "hub" / "imagenet-22k-wds"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: other\n---\n## Dataset Description\n")
    rows = [(colour, index) for index in range(16) for colour in range(3)]
    write_tar(folder / "imagenet22k-train-0000.tar", rows[:24])
    write_tar(folder / "imagenet22k-train-0001.tar", rows[24:])
    write_tar(folder / "imagenet22k-validation-000.tar", [(colour, 100 + i) for i in range(4) for colour in range(2)])
    (folder / "_info.json").write_text("{}")
    return folder


@pytest.fixture
def copy_of_1k(tmp_path: Path) -> Path:
    folder = tmp_path / "hub" / "imagenet-1k"
    names = [f"{c.name}, {c.id} in other words" for c in imagenet_1k()]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    (folder / "data").mkdir(parents=True)
    for split, count, classes in (("train", 48, 2), ("validation", 8, 2), ("test", 6, 0)):
        images = [{"bytes": blob(i % 2, i, "JPEG"), "path": f"{split}_{i}.JPEG"} for i in range(count)]
        labels = [i % classes if classes else -1 for i in range(count)]
        table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def asked(home: Path, hub: hub_server.Hub, *arguments: object, token: str = hub_server.TOKEN) -> Result:
    own = {"HF_DATASETS_OFFLINE": "0", "HF_DATASETS_CACHE": str(home / "datasets"), "VIT_CACHE": str(home / "vit")}
    home.mkdir(exist_ok=True)
    return run_vit(*arguments, cwd=home, env=hub.env(home / "hf", token) | own)


SMALL = (
    "--model",
    "ViT-w32d2h2/4",
    "--img-size",
    "12",
    "--batch-size",
    "8",
    "--steps",
    "4",
    "--device",
    "cpu",
    "--json",
)


def test_the_tables_of_synsets_are_in_order() -> None:
    many, few = imagenet_21k(), imagenet_1k()
    ids = [c.id for c in many]
    assert len(ids) == len(set(ids)) == 21_841 and ids == sorted(ids)
    named = {c.id: c.name for c in many}
    assert sum(named.get(c.id) == c.name for c in few) == 999  # the teddy bear is in neither release of the other
    assert {c.id for c in few} - named.keys() == {"n04399382"}
    assert all(c.name == c.name.strip() and c.name for c in many)


def test_the_synsets_are_those_of_timm(pytestconfig: pytest.Config) -> None:
    timm = pytest.importorskip("importlib.util").find_spec("timm")
    if timm is None:
        pytest.skip("timm is not installed")
    listed = Path(timm.origin).parent / "data" / "_info" / "imagenet22k_synsets.txt"
    assert [c.id for c in imagenet_21k()] == listed.read_text().split()


@pytest.mark.parametrize(("preset", "recipe"), [("imagenet", "paper-i1k"), ("imagenet-21k", "paper-i21k")])
def test_a_plan_downloads_nothing(
    tmp_path: Path, copy_of_1k: Path, copy_of_21k: Path, preset: str, recipe: str
) -> None:
    train, held_out, classes = LARGE[preset]
    served = {"ILSVRC/imagenet-1k": copy_of_1k, "timm/imagenet-22k-wds": copy_of_21k}
    with hub_server.serve(served) as hub:
        done = asked(tmp_path / "a", hub, "pretrain", "--data", preset, "--recipe", recipe, "--dry-run", "--json")
        assert done.code == 0, done.err
        assert not hub.requests
    tree = done.json
    assert tree["data"] == {
        "splits": [{"name": "train", "rows": train}, {"name": "validation", "rows": held_out}],
        "classes": classes,
    }
    assert tree["steps"] == round(tree["config"]["train"]["epochs"] * train / 4096)
    assert f"{train:,}" in done.err and "not on this machine" in done.err
    assert ("no official split" in done.err) == (preset == "imagenet-21k")


@pytest.mark.parametrize("recipe", ["augreg", "paper-i21k"])
def test_many_classes_have_the_sigmoid_loss_of_big_vision(in_process: Any, recipe: str) -> None:
    done = in_process("pretrain", "--data", "imagenet-21k", "--recipe", recipe, "--dry-run", "--json")
    assert done.code == 0, done.err
    train = done.json["config"]["train"]
    assert (train["loss"], train["head_bias"], train["label_smoothing"]) == ("sigmoid", -10.0, 0.0)


@pytest.mark.parametrize("asked_for", [["--set", "data.fraction=0.1"], ["--data", "preset:imagenet"], []])
def test_a_plan_takes_a_part_of_what_is_published(in_process: Any, asked_for: list[str]) -> None:
    options = ["--data", "imagenet", *asked_for] if "--data" not in asked_for else asked_for
    done = in_process("pretrain", *options, "--epochs", "1", "--recipe", "paper-i1k", "--dry-run", "--json")
    assert done.code == 0, done.err
    images = 128_117 if "data.fraction=0.1" in asked_for else 1_281_167
    assert done.json["data"]["splits"][0] == {"name": "train", "rows": images}
    assert done.json["steps"] == round(images / 4096)


@pytest.mark.parametrize("preset", LARGE)
@pytest.mark.parametrize("token", ["", "hf_stranger"])
def test_without_access_the_way_to_it_is_said(
    tmp_path: Path, copy_of_1k: Path, copy_of_21k: Path, preset: str, token: str
) -> None:
    served = {"ILSVRC/imagenet-1k": copy_of_1k, "timm/imagenet-22k-wds": copy_of_21k}
    with hub_server.serve(served, gated=tuple(served)) as hub:
        done = asked(tmp_path / "a", hub, "pretrain", "--data", preset, "--steps", "1", token=token)
    assert done.code == 3, done.err
    error, hint = (next(line for line in done.err.splitlines() if line.startswith(w)) for w in ("error", "hint"))
    assert PRESETS[preset].hub in error
    assert "ask for access on its page" in hint and "hf auth login" in hint
    assert not list((tmp_path / "a").glob("runs/*"))


def test_imagenet_is_trained_on_and_measured_on_validation(tmp_path: Path, copy_of_1k: Path) -> None:
    with hub_server.serve({"ILSVRC/imagenet-1k": copy_of_1k}, gated=("ILSVRC/imagenet-1k",)) as hub:
        done = asked(tmp_path / "a", hub, "pretrain", "--data", "imagenet", *SMALL)
        assert done.code == 0, done.err
        assert (done.json["eval"]["split"], done.json["eval"]["n"]) == ("validation", 8)
        plan = asked(tmp_path / "a", hub, "pretrain", "--data", "imagenet", *SMALL, "--dry-run").json
        assert plan["data"]["splits"] == [{"name": "train", "rows": 48}, {"name": "validation", "rows": 8}]
        info = asked(tmp_path / "a", hub, "info", done.json["checkpoint"], "--json").json
    assert [c["id"] for c in info["classes"]] == [c.id for c in imagenet_1k()]


@pytest.mark.parametrize("recipe", ["augreg", "small"])
def test_imagenet_21k_is_trained_on_with_all_its_classes(tmp_path: Path, copy_of_21k: Path, recipe: str) -> None:
    """The copy has images of three classes; the head has an output for each of 21,841."""
    with hub_server.serve({"timm/imagenet-22k-wds": copy_of_21k}, gated=("timm/imagenet-22k-wds",)) as hub:
        done = asked(tmp_path / "a", hub, "pretrain", "--data", "imagenet-21k", *SMALL, "--recipe", recipe)
        assert done.code == 0, done.err
        assert "no official split" in done.err
        report = done.json
        assert (report["eval"]["split"], report["eval"]["n"], report["steps"]) == ("validation", 8, 4)
        info = asked(tmp_path / "a", hub, "info", report["checkpoint"], "--json").json
        shown = asked(tmp_path / "a", hub, "eval", report["checkpoint"], "--json").json
    assert [c["id"] for c in info["classes"]] == [c.id for c in imagenet_21k()]
    assert {c["id"] for c in shown["classes"] if c["n"]} == {imagenet_21k()[label].id for label in LABELS_21K[:2]}


def test_a_copy_with_other_labels_is_refused(tmp_path: Path, copy_of_21k: Path) -> None:
    other = imagenet_21k()[LABELS_21K[0] + 1].id
    write_tar(copy_of_21k / "imagenet22k-train-0000.tar", [(0, 0), (1, 1)], {LABELS_21K[0]: other})
    with hub_server.serve({"timm/imagenet-22k-wds": copy_of_21k}) as hub:
        done = asked(tmp_path / "a", hub, "pretrain", "--data", "imagenet-21k", *SMALL)
    assert done.code == 3
    assert f"label {LABELS_21K[0]} and is of {other}" in done.err


def test_imagenet_is_trained_on_where_it_is(tmp_path: Path, copy_of_1k: Path) -> None:
    with hub_server.serve({"ILSVRC/imagenet-1k": copy_of_1k}, gated=("ILSVRC/imagenet-1k",)) as hub:
        done = asked(tmp_path / "a", hub, "pretrain", "--data", "imagenet", *SMALL, "--set", "data.stream=true")
        assert done.code == 0, done.err
        assert (done.json["eval"]["split"], done.json["eval"]["n"]) == ("validation", 8)
        info = asked(tmp_path / "a", hub, "info", done.json["checkpoint"], "--json").json
        assert [c["id"] for c in info["classes"]] == [c.id for c in imagenet_1k()]
        refused = asked(
            tmp_path / "c", hub, "pretrain", "--data", "imagenet", *SMALL, "--set", "data.stream=true", token=""
        )
    assert refused.code == 3 and "access" in refused.err, refused.err
