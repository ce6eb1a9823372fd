"""attn-distance, attn-rollout, posemb-similarity and filters end to end, each command in a process of its own."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Vit, draw_image, run_vit
from vitcli.classes import Class
from vitcli.config import EvalConfig, ModelConfig
from vitcli.data.origin import seals
from vitcli.model.vit import ViT, init_weights
from vitcli.weights.checkpoint import save
from vitcli.weights.describe import Description

TINY = ModelConfig(name="", width=16, depth=2, heads=2, mlp=32, patch=(4, 4), img_size=(12, 12), classes=3)


def write_checkpoint(path: Path, config: ModelConfig = TINY, data: str = "") -> Path:
    model = ViT(config)
    init_weights(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    classes = tuple(Class(name) for name in ("blue", "green", "red"))
    trained = {"data": {"id": data, "seals": seals(data)}} if data else {}
    save(
        Description(path=path, model=config, classes=classes, eval=EvalConfig(), provenance=trained), model.state_dict()
    )
    return path


@pytest.fixture(scope="module")
def place(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints, a flat folder of images and one that cannot be read."""
    folder = tmp_path_factory.mktemp("inside")
    write_checkpoint(folder / "ckpt.safetensors", data=str(class_folders))
    write_checkpoint(folder / "bare.safetensors")
    write_checkpoint(folder / "lost.safetensors", data=str(folder / "gone"))
    write_checkpoint(
        folder / "wide.safetensors",
        ModelConfig(
            name="", width=16, depth=2, heads=2, mlp=32, patch=(4, 8), img_size=(12, 32), classes=3, registers=2
        ),
    )
    (folder / "flat").mkdir()
    for index in range(3):
        draw_image(index, index, size=20 + 9 * index).resize((40, 20 + 9 * index)).save(
            folder / "flat" / f"{index}.png"
        )
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    return folder


def test_distances_of_the_checkpoint_s_own_data_have_the_fields(place: Path) -> None:
    done = run_vit("attn-distance", "ckpt.safetensors", "--json", cwd=place)
    assert done.code == 0, done.err
    assert "the checkpoint's own" in done.err
    tree = done.json
    assert set(tree) == {"unit", "img_size", "patch_size", "images", "includes_cls", "renormalised", "layers"}
    assert (tree["unit"], tree["img_size"], tree["patch_size"]) == ("px", [12, 12], [4, 4])
    assert (tree["images"], tree["includes_cls"], tree["renormalised"]) == (24, False, True)
    assert [layer["layer"] for layer in tree["layers"]] == [1, 2]
    for layer in tree["layers"]:
        assert set(layer) == {"layer", "heads", "mean"} and len(layer["heads"]) == 2
        assert layer["mean"] == pytest.approx(sum(layer["heads"]) / 2)
        assert all(0 < distance < 12 * 2**0.5 for distance in layer["heads"])


def test_in_a_pipeline_stdout_is_the_object_alone(place: Path) -> None:
    """As `vit attn-distance CKPT --json | jq '.layers[].mean'`."""
    script = "import json, sys; print(*(layer['mean'] for layer in json.load(sys.stdin)['layers']))"
    first = subprocess.Popen(
        [sys.executable, "-m", "vitcli", "attn-distance", "ckpt.safetensors", "--json"],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    second = subprocess.run(
        [sys.executable, "-c", script], stdin=first.stdout, capture_output=True, text=True, check=True
    )
    assert first.wait() == 0 and len(second.stdout.split()) == 2
    assert first.stdout is not None and first.stderr is not None
    first.stdout.close()
    first.stderr.close()


def test_text_table_csv_and_plot(place: Path, tmp_path: Path) -> None:
    done = run_vit(
        "attn-distance", "ckpt.safetensors", "--plot", tmp_path / "d.svg", "--csv", tmp_path / "d.csv", cwd=place
    )
    assert done.code == 0, done.err
    tree = run_vit("attn-distance", "ckpt.safetensors", "--json", cwd=place).json
    assert "layer" in done.out and f"{tree['layers'][1]['mean']:.1f}" in done.out and "px" in done.out
    with (tmp_path / "d.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["layer"]), int(r["head"])) for r in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    heads = [distance for layer in tree["layers"] for distance in layer["heads"]]
    assert [float(r["distance_px"]) for r in rows] == pytest.approx(heads)
    assert b"<svg" in (tmp_path / "d.svg").read_bytes()
    again = run_vit("attn-distance", "ckpt.safetensors", "--csv", tmp_path / "d.csv", cwd=place)
    assert again.code == 2 and "--force" in again.err
    assert run_vit("attn-distance", "ckpt.safetensors", "--csv", tmp_path / "d.csv", "--force", cwd=place).code == 0


def test_the_result_does_not_depend_on_the_batch_size(place: Path) -> None:
    tables = [
        run_vit("attn-distance", "ckpt.safetensors", "--json", "--precision", "fp32", "--batch-size", n, cwd=place).json
        for n in (1, 7, 64)
    ]
    for table in tables[1:]:
        for layer, other in zip(table["layers"], tables[0]["layers"], strict=True):
            assert layer["heads"] == pytest.approx(other["heads"], abs=1e-4)


def test_images_come_from_data_files_folders_and_the_checkpoint(place: Path, class_folders: Path) -> None:
    def images(*arguments: object) -> int:
        done = run_vit("attn-distance", *arguments, "--json", cwd=place)
        assert done.code == 0, done.err
        return int(done.json["images"])

    assert images("ckpt.safetensors", "--data", class_folders, "--images", "5") == 5
    assert images("ckpt.safetensors", "--data", "flat") == 3  # unlabelled
    assert images("ckpt.safetensors", "flat/0.png", "flat/2.png") == 2
    assert images("ckpt.safetensors", "flat") == 3
    assert images("ckpt.safetensors", "flat/*.png", "--images", "2") == 2


@pytest.mark.parametrize("name", ["bare", "lost"])
def test_without_any_data_sample_photographs_are_taken_with_a_warning(place: Path, name: str) -> None:
    done = run_vit("attn-distance", f"{name}.safetensors", "--json", "--quiet", cwd=place)
    assert done.code == 0, done.err
    assert "warning:" in done.err and "sample photographs" in done.err
    assert done.json["images"] == 10


def test_both_readings_of_prefix_tokens_by_configuration(place: Path) -> None:
    def layers(*settings: str) -> tuple[dict[str, object], np.ndarray]:
        items = [part for setting in settings for part in ("--set", f"analysis.{setting}")]
        tree = run_vit(
            "attn-distance", "wide.safetensors", "flat", "--json", "--precision", "fp32", *items, cwd=place
        ).json
        return tree, np.array([layer["heads"] for layer in tree["layers"]])

    usual, table = layers()
    raw, smaller = layers("renormalise=false")
    whole, included = layers("include_prefix=true")
    assert usual["img_size"] == [12, 32] and usual["patch_size"] == [4, 8]
    assert (raw["renormalised"], raw["includes_cls"], whole["includes_cls"]) == (False, False, True)
    assert (smaller < table).all()
    np.testing.assert_allclose(included, smaller * 12 / 15, rtol=1e-4)  # 12 patches and 3 prefix tokens at distance 0


def test_another_image_size_interpolates_the_positions(place: Path) -> None:
    tree = run_vit("attn-distance", "ckpt.safetensors", "flat", "--img-size", "16x24", "--json", cwd=place).json
    assert tree["img_size"] == [16, 24]
    wrong = run_vit("attn-distance", "ckpt.safetensors", "flat", "--img-size", "15", cwd=place)
    assert wrong.code == 2 and "patch size 4" in wrong.err


ERRORS = {
    "no image": (3, "nothing.png", ("ckpt.safetensors", "nothing.png")),
    "unreadable": (3, "broken.jpg", ("ckpt.safetensors", "flat/0.png", "broken.jpg")),
    "an empty folder": (3, "no image in", ("ckpt.safetensors", "runs-that-are-empty")),
    "two sources": (2, "--data", ("ckpt.safetensors", "flat/0.png", "--data", "flat")),
    "no checkpoint": (4, "absent.safetensors", ("absent.safetensors",)),
    "a picture's ending": (2, ".gif", ("ckpt.safetensors", "--plot", "d.gif")),
    "a table's ending": (2, ".xls", ("ckpt.safetensors", "--csv", "d.xls")),
    "no images": (2, "--images 0", ("ckpt.safetensors", "--images", "0")),
    "a key that does not concern it": (2, "optim.lr", ("ckpt.safetensors", "--set", "optim.lr=1")),
    "a key that is not known": (2, "analysis.renormalise", ("ckpt.safetensors", "--set", "analysis.renormalize=1")),
    "data that is not there": (3, "absent-data", ("ckpt.safetensors", "--data", "absent-data")),
    "no run": (4, "vit pretrain", ("flat/0.png",)),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_say_what_and_leave_nothing(place: Path, kind: str) -> None:
    code, said, arguments = ERRORS[kind]
    (place / "runs-that-are-empty").mkdir(exist_ok=True)
    before = {path for path in place.rglob("*") if path.is_file()}
    done = run_vit("attn-distance", *arguments, "--json", cwd=place)
    assert (done.code, done.json["error"]["code"]) == (code, code), done.err
    assert said in done.err and "hint:" in done.err
    assert {path for path in place.rglob("*") if path.is_file()} == before


def test_unreadable_images_are_left_out_where_that_is_asked_for(place: Path, tmp_path: Path) -> None:
    skip = ("--set", "data.on_bad_image=skip", "--json")
    done = run_vit("attn-distance", "ckpt.safetensors", "flat/0.png", "broken.jpg", *skip, cwd=place)
    assert done.json["images"] == 1 and "1 unreadable" in done.err
    done = run_vit("attn-rollout", "ckpt.safetensors", "broken.jpg", "flat/0.png", "--out", tmp_path, *skip, cwd=place)
    assert [row["path"] for row in done.json["images"]] == ["flat/0.png"] and "1 unreadable" in done.err
    assert (tmp_path / "0-rollout.png").is_file()


def test_dry_run_writes_nothing(place: Path, tmp_path: Path) -> None:
    tree = run_vit(
        "attn-distance", "ckpt.safetensors", "--plot", tmp_path / "d.png", "--dry-run", "--json", cwd=place
    ).json
    assert (tree["img_size"], tree["images"]) == ([12, 12], 24) and not any(tmp_path.iterdir())
    done = run_vit("attn-rollout", "ckpt.safetensors", "flat", "--out", tmp_path / "out", "--dry-run", cwd=place)
    assert done.code == 0 and "images" in done.out and not any(tmp_path.iterdir())


# --- rollout -----------------------------------------------------------------------------------------------


def test_rollout_writes_an_overlay_an_image_at_its_size(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    done = run_vit("attn-rollout", "wide.safetensors", "flat", "--out", out, "--json", cwd=place)
    assert done.code == 0, done.err
    tree = done.json
    assert [row["path"] for row in tree["images"]] == [f"flat/{i}.png" for i in range(3)]
    for row in tree["images"]:
        assert set(row) == {"path", "overlay", "grid"} and row["grid"] == [3, 4]
        with Image.open(row["overlay"]) as overlay, Image.open(place / row["path"]) as original:
            assert overlay.size == original.size and overlay.format == "PNG"
    assert tree["contact_sheets"] == [str(out / "contact-sheet.png")]
    assert {p.name for p in out.iterdir()} == {*(f"{i}-rollout.png" for i in range(3)), "contact-sheet.png"}
    again = run_vit("attn-rollout", "wide.safetensors", "flat/1.png", "--out", out, cwd=place)
    assert again.code == 2 and "1-rollout.png exists" in again.err and "--force" in again.err
    forced = run_vit("attn-rollout", "wide.safetensors", "flat/1.png", "--out", out, "--force", cwd=place)
    assert forced.out == f"{out / '1-rollout.png'}\n"


def test_rollout_of_each_layer_and_with_weights_left_out(place: Path, tmp_path: Path) -> None:
    for discard in ("0", "0.9"):
        done = run_vit("attn-rollout", "ckpt.safetensors", "flat/1.png", "--out", tmp_path / discard, "--per-layer",
                       "--discard", discard, cwd=place)  # fmt: skip
        assert done.code == 0, done.err
        assert (tmp_path / discard / "1-rollout-layers.png").is_file()
    overlays = [(tmp_path / discard / "1-rollout.png").read_bytes() for discard in ("0", "0.9")]
    assert overlays[0] != overlays[1]


@pytest.mark.parametrize(
    ("code", "said", "arguments"),
    [
        (2, "no image", ("ckpt.safetensors", "--out", "o")),
        (2, "--out", ("ckpt.safetensors", "flat/0.png")),
        (3, "nothing.png", ("ckpt.safetensors", "nothing.png", "--out", "o")),
        (3, "broken.jpg", ("ckpt.safetensors", "flat/0.png", "broken.jpg", "--out", "o")),
        (2, "--discard 1", ("ckpt.safetensors", "flat/0.png", "--out", "o", "--discard", "1")),
        (2, "a folder is to be written", ("ckpt.safetensors", "flat/0.png", "--out", "broken.jpg")),
    ],
)
def test_errors_of_rollout(place: Path, code: int, said: str, arguments: tuple[str, ...]) -> None:
    done = run_vit("attn-rollout", *arguments, cwd=place)
    assert done.code == code and said in done.err, done.err
    assert not list(place.glob("o/*.png")), "no overlay is left of a call that failed"


# --- positions and filters ---------------------------------------------------------------------------------


def test_similarity_of_positions(place: Path, tmp_path: Path) -> None:
    tree = run_vit("posemb-similarity", "wide.safetensors", "--plot", tmp_path / "p.png", "--json", cwd=place).json
    assert set(tree) == {"grid", "similarity"} and tree["grid"] == [3, 4]
    similarity = np.array(tree["similarity"])
    assert similarity.shape == (12, 12)
    np.testing.assert_allclose(similarity.diagonal(), 1, atol=1e-6)
    np.testing.assert_allclose(similarity, similarity.T, atol=1e-6)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    text = run_vit("posemb-similarity", "ckpt.safetensors", "--img-size", "24", cwd=place)
    assert "6 x 6 patches" in text.out and "next patch in the row" in text.out
    assert run_vit("posemb-similarity", "wide.safetensors", "--plot", tmp_path / "p.png", cwd=place).code == 2


def test_filters(place: Path, tmp_path: Path) -> None:
    tree = run_vit("filters", "ckpt.safetensors", "--plot", tmp_path / "f.svg", "--json", cwd=place).json
    assert set(tree) == {"explained_variance", "patch_size"} and tree["patch_size"] == [4, 4]
    explained = tree["explained_variance"]
    assert len(explained) == 16 and sum(explained) == pytest.approx(1) and explained == sorted(explained, reverse=True)
    assert b"<svg" in (tmp_path / "f.svg").read_bytes()
    fewer = run_vit("filters", "ckpt.safetensors", "--set", "analysis.components=3", cwd=place)
    assert "3 " in fewer.out and "4 " not in fewer.out.splitlines()[-2]
    assert run_vit("filters", "ckpt.safetensors", "--set", "data.workers=1", cwd=place).code == 2


def test_without_a_checkpoint_the_newest_finished_run_is_looked_into(vit: Vit, class_folders: Path) -> None:
    trained = vit(
        "pretrain", "--data", class_folders, "--model", "mu/4", "--steps", "3", "--batch-size", "16", "--seed", "0"
    )
    assert trained.code == 0, trained.err
    for command in (("attn-distance",), ("posemb-similarity",), ("filters",)):
        done = vit(*command, "--json")
        assert done.code == 0 and "newest finished run" in done.err, done.err
    image = next((class_folders / "test").rglob("*.png"))
    done = vit("attn-rollout", image, "--out", "o", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["images"][0]["path"] == str(image)


@pytest.mark.parametrize("command", ["attn-distance", "attn-rollout", "posemb-similarity", "filters"])
def test_help_imports_neither_torch_nor_datasets(command: str) -> None:
    script = (
        "import sys; from vitcli.cli.app import run; code = run(sys.argv[1:]); "
        "heavy = {'torch', 'datasets', 'matplotlib', 'numpy'} & set(sys.modules); assert not heavy and code == 0, (heavy, code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, command, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert command in done.stdout
