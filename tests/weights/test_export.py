"""What export writes is loaded by the tool that it is for, and gives the same numbers; otherwise nothing is left."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import hub_server
from conftest import draw_image, run_vit
from vitcli.classes import Class
from vitcli.config import EvalConfig, ModelConfig, model_config
from vitcli.data.decode import eval_view, render
from vitcli.errors import CheckpointError, UsageError
from vitcli.model.vit import ViT, init_weights
from vitcli.weights import card, export, formats
from vitcli.weights.checkpoint import load, model_with, save
from vitcli.weights.describe import Description, describe
from vitcli.weights.formats_timm import timm_config

pytest.importorskip("torchvision_shim", reason="timm and transformers import torchvision")

CLASSES = (Class("tench", "n01440764"), Class("Schnäuzer"), Class("老虎"))
PLAIN = model_config("ViT-w64d2h2/8", (32, 48), 3)
SQUARE = dataclasses.replace(PLAIN, img_size=(32, 32))


def checkpoint(path: Path, model: ModelConfig = PLAIN, **seen: Any) -> Path:
    vit = ViT(model)
    init_weights(vit, 0)
    generator = torch.Generator().manual_seed(0)
    tensors = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in vit.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    config = EvalConfig(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), **seen)
    save(Description(path=path, model=model, classes=CLASSES, eval=config), tensors)
    return path


MODELS = {
    "class token": PLAIN,
    "mean without class token": dataclasses.replace(PLAIN, pool="mean", class_token=False),
    "mean without class token, square": dataclasses.replace(SQUARE, pool="mean", class_token=False),
    "tanh": dataclasses.replace(PLAIN, gelu="tanh"),
    "distilled": dataclasses.replace(PLAIN, distilled=True),
    "registers": dataclasses.replace(SQUARE, registers=4, layer_scale=0.1),
    "layer scale, not square": dataclasses.replace(PLAIN, layer_scale=0.1),
    "layer scale without class row": dataclasses.replace(SQUARE, layer_scale=0.1, prefix_positions=False),
    "mean beside a class token": dataclasses.replace(SQUARE, pool="mean"),
    "norm after the mean": dataclasses.replace(PLAIN, pool="mean", norm="after"),
    "class token and mean": dataclasses.replace(SQUARE, pool="cls+mean", layer_scale=1.0),
    "tanh layer": dataclasses.replace(PLAIN, pre_logits=True),
    "no positions": dataclasses.replace(PLAIN, positions="none"),
    "positions in two dimensions": dataclasses.replace(PLAIN, positions="2d"),
    "fixed positions without class token": dataclasses.replace(
        SQUARE, positions="sincos", pool="mean", class_token=False
    ),
    "fixed positions and registers": dataclasses.replace(SQUARE, positions="sincos", registers=4, layer_scale=0.1),
    "fixed positions, distilled": dataclasses.replace(PLAIN, positions="sincos", distilled=True),
    "relative positions": dataclasses.replace(PLAIN, positions="relative"),
    "norms after the sums": dataclasses.replace(PLAIN, norm_place="post"),
}
FOLDED = {name for name, model in MODELS.items() if not model.is_plain}
"""What is written for other tools is not the file itself."""
NEITHER = {"tanh layer", "relative positions", "norms after the sums"}
NOT_IN = {
    "timm": {"class token and mean"} | NEITHER,
    "transformers": {"norm after the mean", "mean without class token", "layer scale, not square"} | NEITHER,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["timm", "transformers"])
def test_folders_for_timm_and_transformers(tmp_path, form, name):
    path = checkpoint(tmp_path / "run" / "model.safetensors", MODELS[name])
    description, tensors = load(str(path))
    out = tmp_path / "out"
    if name in NOT_IN[form]:
        with pytest.raises(CheckpointError, match=form):
            export.export(description, tensors, out, form)
        assert not out.exists()
        return
    tree = export.export(description, tensors, out, form)
    assert set(tree) == {"path", "format", "max_abs_difference", "images", "preprocessing"}
    assert tree["max_abs_difference"] < 1e-4 and tree["images"] == 10
    again, loaded = load(str(out))
    images = torch.randn(2, 3, *description.model.img_size)
    with torch.no_grad():
        ours, theirs = model_with(description.model, tensors)(images), model_with(again.model, loaded)(images)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert [c.name for c in again.classes] == [c.name for c in CLASSES]
    assert again.eval.mean == description.eval.mean


@pytest.mark.parametrize("name", [n for n in MODELS if n not in NOT_IN["timm"] | FOLDED])
def test_a_run_folder_itself_loads_in_timm_and_by_way_of_it_in_transformers(tmp_path, name):
    import timm
    import transformers

    path = checkpoint(tmp_path / "run" / "model.safetensors", MODELS[name])
    description, tensors = load(str(path))
    tree = timm_config(description)
    assert "model_type" not in tree and "num_classes" not in tree["model_args"]
    (path.parent / "config.json").write_text(json.dumps(tree))
    images = torch.randn(2, 3, *description.model.img_size)
    with torch.no_grad():
        ours = model_with(description.model, tensors)(images)
        model = timm.create_model(f"local-dir:{path.parent}", pretrained=True).eval()
        torch.testing.assert_close(model(images), ours, rtol=1e-4, atol=1e-5)
        wrapped = transformers.AutoModelForImageClassification.from_pretrained(path.parent).eval()
        torch.testing.assert_close(wrapped(images).logits, ours, rtol=1e-4, atol=1e-5)
    assert wrapped.config.id2label == {0: "tench", 1: "Schnäuzer", 2: "老虎"}


@pytest.mark.parametrize("seen", [{}, {"crop": 0.875}, {"resize": "square"}, {"resize": "square", "crop": 0.8}])
def test_the_pipeline_of_transformers_gives_the_same_labels_and_scores(tmp_path, seen):
    import transformers

    square = dataclasses.replace(PLAIN, img_size=(32, 32))
    path = checkpoint(tmp_path / "run" / "model.safetensors", square, **seen)
    export.export(*load(str(path)), tmp_path / "out", "transformers")
    picture = draw_image(1, 0, size=60).resize((60, 47))
    picture.save(tmp_path / "a.png")
    pipe = transformers.pipeline("image-classification", model=str(tmp_path / "out"), device="cpu")
    theirs = pipe(str(tmp_path / "a.png"), top_k=3)
    done = run_vit("predict", path, tmp_path / "a.png", "--json", cwd=tmp_path)
    ours = done.json["topk"]
    assert [row["label"] for row in theirs] == [row["label"] for row in ours]
    for one, other in zip(theirs, ours, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=5e-3)  # the processors resize with other filters


def test_onnx_has_a_free_batch_and_says_what_it_is(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = checkpoint(tmp_path / "model.safetensors")
    description, tensors = load(str(path))
    tree = export.export(description, tensors, tmp_path / "model.onnx", "onnx")
    assert tree["max_abs_difference"] < 1e-4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.safetensors"]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 3, 17):
        images = np.random.default_rng(0).normal(size=(batch, 3, 32, 48)).astype(np.float32)
        (logits,) = session.run(["logits"], {"images": images})
        with torch.no_grad():
            ours = model_with(description.model, tensors)(torch.from_numpy(images))
        np.testing.assert_allclose(logits, ours.numpy(), rtol=1e-4, atol=1e-4)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["labels"]) == ["tench", "Schnäuzer", "老虎"]
    assert json.loads(said["preprocessing"])["mean"] == [0.4, 0.5, 0.6]
    assert json.loads(said["preprocessing"])["size"] == [32, 48]


@pytest.mark.parametrize("form", export.FORMATS)
def test_other_numbers_are_an_error_and_leave_nothing(tmp_path, monkeypatch, form):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    path = checkpoint(tmp_path / "model.safetensors")
    description, tensors = load(str(path))
    changed = dict(tensors) | {"head.bias": tensors["head.bias"] + 0.01}
    monkeypatch.setattr(export, "model_with", lambda model, _: model_with(model, tensors))
    if form == "onnx":  # what is exported there is the model itself
        other = model_with(description.model, changed)
        monkeypatch.setattr(export, "_onnx", _with_model(export._onnx, other))
    with pytest.raises(CheckpointError, match="other logits"):
        export.export(description, changed, tmp_path / "out.onnx", form)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def _with_model(write: Any, other: ViT) -> Any:
    return lambda description, tensors, model, place: write(description, tensors, other, place)


def test_what_is_in_the_way_is_not_replaced_without_force(tmp_path):
    path = checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="exists"):
        export.export(*load(str(path)), tmp_path / "out", "timm")
    assert (tmp_path / "out" / "mine.txt").exists()
    export.export(*load(str(path)), tmp_path / "out", "timm", force=True)
    assert describe(tmp_path / "out" / "model.safetensors").classes == CLASSES


def test_a_tool_that_is_not_installed_is_said_before_anything_is_done(tmp_path, monkeypatch):
    path = checkpoint(tmp_path / "model.safetensors")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="onnx, which is not installed") as caught:
        export.check_format("onnx", describe(path))
    assert "vitcli[onnx]" in caught.value.hint


@pytest.mark.parametrize("name", sorted(FOLDED))
def test_onnx_holds_all_positions_and_norms(tmp_path, name):
    path = checkpoint(tmp_path / "model.safetensors", MODELS[name])
    description, tensors = load(str(path))
    tree = export.export(description, tensors, tmp_path / "out.onnx", "onnx")
    assert tree["max_abs_difference"] < 1e-4


@pytest.mark.parametrize("form", ["timm", "transformers"])
@pytest.mark.parametrize(
    ("name", "said"), [("relative positions", r"model\.positions"), ("norms after the sums", r"model\.norm_place")]
)
def test_what_no_other_tool_has_is_said_by_its_name(tmp_path, name, said, form):
    path = checkpoint(tmp_path / "model.safetensors", MODELS[name])
    with pytest.raises(CheckpointError, match=rf"{form} has no ViT with .*{said}") as caught:
        export.check_format(form, describe(path))
    assert "--format onnx" in caught.value.hint


def test_unknown_formats_and_models_without_a_head(tmp_path):
    path = checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="unknown format"):
        export.check_format("keras", describe(path))
    bare = dataclasses.replace(describe(path), model=dataclasses.replace(PLAIN, classes=0), classes=())
    with pytest.raises(CheckpointError, match="no classification head"):
        export.check_format("timm", bare)


def test_transformers_files_have_q_k_and_v_apart_under_the_names_of_its_files(tmp_path):
    description, tensors = load(str(checkpoint(tmp_path / "model.safetensors")))
    export.export(description, tensors, tmp_path / "out", "transformers")
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    block = "vit.encoder.layer.1.attention.attention"
    parts = [written[f"{block}.{name}.weight"] for name in ("query", "key", "value")]
    assert torch.equal(torch.cat(parts), tensors["blocks.1.attn.qkv.weight"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["layer_norm_eps"], config["model_type"]) == (1e-6, "vit")
    assert config["id2label"] == {"0": "tench", "1": "Schnäuzer", "2": "老虎"}
    processor = formats.preprocessor_config(description)
    assert processor["image_mean"] == [0.4, 0.5, 0.6]


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_exports_and_says_how_far_both_sides_differ(tmp_path):
    path = checkpoint(tmp_path / "model.safetensors")
    done = run_vit("export", path, "out", "--format", "timm", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["path"] == "out" and done.json["max_abs_difference"] < 1e-4
    assert "largest difference" in done.err
    again = run_vit("export", path, "out", "--format", "timm", cwd=tmp_path)
    assert again.code == 2 and "exists" in again.err
    none = run_vit("export", path, "other", cwd=tmp_path)
    assert none.code == 2 and "--format" in none.err


LOADED = """
import sys
import torch
import torchvision_shim, timm, transformers
images = torch.load(sys.argv[1])
logits = {}
if sys.argv[3] == "timm":
    logits["timm"] = timm.create_model("hf-hub:someone/model", pretrained=True).eval()(images)
theirs = transformers.AutoModelForImageClassification.from_pretrained("someone/model").eval()
logits["transformers"] = theirs(images).logits
torch.save({name: value.detach() for name, value in logits.items()}, sys.argv[2])
"""


@pytest.mark.parametrize("form", ["timm", "transformers"])
def test_a_pushed_folder_loads_from_the_hub_and_tells_nothing_of_this_machine(tmp_path, form):
    description, tensors = load(str(checkpoint(tmp_path / "run" / "model.safetensors", SQUARE)))
    secret = tmp_path / "secret-place" / "photos"
    parent = {"path": str(tmp_path / "secret-place" / "a.safetensors"), "data": {"id": str(secret)}}
    said = {"data": {"id": str(secret), "name": "photos"}, "parent": parent, "ancestry": [parent]}
    scores = {"split": "test", "top1": 0.75, "top5": None, "n": 40}
    path = tmp_path / "run" / "model.safetensors"
    save(dataclasses.replace(description, path=path, provenance=said, scores=scores), tensors)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with hub_server.serve({}) as hub:
        env = hub.env(tmp_path / "home")
        done = run_vit(
            "export",
            path,
            "out",
            "--format",
            form,
            "--push",
            "someone/model",
            "--force",
            "--json",
            cwd=tmp_path,
            env=env,
        )
        assert done.code == 0, done.err
        assert done.json["pushed"] == f"{hub.url}/someone/model"
        folder = hub.models["someone/model"]
        usual = {"README.md", "config.json", "model.safetensors"}
        names = {"timm": usual, "transformers": usual | {"preprocessor_config.json"}}[form]
        assert set(hub_server.files(folder)) == names
        assert all(
            b"secret-place" not in p.read_bytes() and str(tmp_path).encode() not in p.read_bytes()
            for p in folder.iterdir()
        )
        front = hub_server.card(folder)
        assert (front["library_name"], front["pipeline_tag"]) == (form, "image-classification")
        assert "license" not in front and front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75
        assert "someone/model" in (folder / "README.md").read_text()
        if form == "timm":
            assert describe(folder / "model.safetensors").provenance["data"]["id"] == "photos"
        images = torch.randn(2, 3, 32, 32)
        torch.save(images, tmp_path / "images.pt")
        script = [sys.executable, "-c", LOADED, "images.pt", "logits.pt", form]
        shim = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
        loading = subprocess.run(
            script, cwd=tmp_path, env=os.environ | env | shim, capture_output=True, text=True, check=False
        )
        assert loading.returncode == 0, loading.stderr
        with torch.no_grad():
            ours = model_with(description.model, tensors)(images)
        for logits in torch.load(tmp_path / "logits.pt").values():
            torch.testing.assert_close(logits, ours, rtol=1e-4, atol=1e-5)
        again = run_vit("predict", "someone/model", tmp_path / "none.jpg", "--json", cwd=tmp_path, env=env)
        assert "none.jpg" in again.out, again.err


def test_an_onnx_file_is_pushed_with_its_card_and_nothing_else(tmp_path):
    pytest.importorskip("onnxruntime")
    path = checkpoint(tmp_path / "model.safetensors")
    with hub_server.serve({}) as hub:
        words = ("--format", "onnx", "--push", "someone/model", "--json")
        done = run_vit("export", path, "out.onnx", *words, cwd=tmp_path, env=hub.env(tmp_path / "home"))
        assert done.code == 0, done.err
        assert set(hub_server.files(hub.models["someone/model"])) == {"README.md", "out.onnx"}
        assert hub_server.card(hub.models["someone/model"])["library_name"] == "onnx"


@pytest.mark.parametrize(
    ("said", "told"),
    [("/home/me/photos", "photos"), ("../photos", "photos"), ("a/b/c.csv", "c.csv"), ("C:\\me\\x", "x"), ("./x", "x")]
    + [
        (kept, kept)
        for kept in ("digits", "user/name", "user/name@rev", "google/vit:config", "hf://datasets/a/b", "a fifth")
    ],
)
def test_provenance_is_told_without_folders(said, told):
    assert card.public({"data": [{"id": said}], "path": said}) == {"data": [{"id": told}], "path": told}


def test_a_hub_that_does_not_answer_is_a_lack_of_resources_and_the_export_stays(tmp_path):
    path = checkpoint(tmp_path / "model.safetensors")
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0"}
    done = run_vit("export", path, "out", "--format", "timm", "--push", "someone/model", cwd=tmp_path, env=env)
    assert done.code == 6 and "someone/model" in done.err
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_real_weights_keep_their_predictions(tmp_path, deit_weights, shared_data):
    timm = pytest.importorskip("timm")
    done = run_vit(
        "export", deit_weights, tmp_path / "out", "--format", "timm", "--labels", "imagenet-1k", cwd=tmp_path
    )
    assert done.code == 0, done.err
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    photos = sorted((shared_data / "photos").glob("*/*.jpg"))[::12]
    rows = [
        json.loads(line) for line in run_vit("predict", deit_weights, *photos, "--json", cwd=tmp_path).out.splitlines()
    ]
    cfg = timm.data.resolve_data_config({}, model=model)
    transform = timm.data.create_transform(**cfg)
    with torch.no_grad():
        images = torch.stack([transform(Image.open(p).convert("RGB")) for p in photos])
        chances = model(images).softmax(1)
    for row, chance in zip(rows, chances, strict=True):
        assert row["score"] == pytest.approx(float(chance.max()), abs=1e-4)
        assert model.pretrained_cfg["label_names"][int(chance.argmax())] == row["label"]


# --- the same pixels -----------------------------------------------------------------------------------------

PICTURES = [(60, 47), (47, 60), (61, 61), (100, 33), (33, 100), (31, 29), (301, 444), (32, 48), (64, 96), (128, 33)]  # fmt: skip


def picture(height: int, width: int) -> Image.Image:
    random = np.random.default_rng([height, width])
    small = random.integers(0, 256, (height // 7 + 2, width // 7 + 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def levels(pixels: Any) -> np.ndarray:
    return np.rint(np.asarray(pixels, np.float64) * 255).astype(int)


UNSCALED = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SHAPES = [(32, 32), (33, 33), (32, 48), (48, 32), (40, 56), (224, 224)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["short", "square"])
@pytest.mark.parametrize("size", SHAPES)
def test_timm_makes_the_same_pixels_of_an_exported_folder(size, resize, interpolation):
    import timm.data

    for crop in (1.0, 0.95, 0.9, 0.875, 0.8, 32 / 36):
        config = EvalConfig(crop=crop, resize=resize, interpolation=interpolation, **UNSCALED)  # type: ignore[arg-type]
        description = Description(
            path=Path("w"), model=dataclasses.replace(PLAIN, patch=(1, 1), img_size=size), classes=(), eval=config
        )
        exported = json.loads(json.dumps(timm_config(description)))["pretrained_cfg"]
        transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=exported))
        assert formats.preprocessing_differences(description, "timm") == []
        for shape in PICTURES:
            ours = render(picture(*shape), eval_view(size, config)).astype(int)
            assert (levels(transform(picture(*shape))) == ours).all(), (crop, shape)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["short", "square"])
@pytest.mark.parametrize("size", SHAPES)
def test_transformers_makes_the_same_pixels_or_the_export_says_in_what_they_differ(
    tmp_path, size, resize, interpolation
):
    import transformers

    for crop in (1.0, 0.95, 0.9, 0.875, 0.8):
        config = EvalConfig(crop=crop, resize=resize, interpolation=interpolation, **UNSCALED)  # type: ignore[arg-type]
        description = Description(
            path=Path("w"), model=dataclasses.replace(PLAIN, patch=(1, 1), img_size=size), classes=(), eval=config
        )
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(formats.preprocessor_config(description)))
        exact = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        usual = transformers.AutoImageProcessor.from_pretrained(tmp_path)
        *differs, rounding = formats.preprocessing_differences(description, "transformers")
        assert "torchvision" in rounding
        same = True
        for shape in PICTURES:
            ours = render(picture(*shape), eval_view(size, config)).astype(int)
            theirs = levels(exact(picture(*shape), return_tensors="np")["pixel_values"][0])
            assert theirs.shape == ours.shape
            same &= bool((theirs == ours).all())
            if not differs:
                off = levels(usual(picture(*shape), return_tensors="np")["pixel_values"][0]) - ours
                assert abs(off).max() <= 4
        assert same or differs
        assert not same or not differs or resize == "short"  # where it depends on the image


@pytest.mark.parametrize(("form", "seen", "count"), [("timm", {}, 0), ("transformers", {}, 2), ("transformers", {"resize": "square"}, 1)])  # fmt: skip
def test_the_command_says_in_what_the_pixels_are_not_the_same(tmp_path, form, seen, count):
    path = checkpoint(tmp_path / "model.safetensors", **seen)
    done = run_vit("export", path, "out", "--format", form, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["preprocessing"]["equal"] == (count == 0)
    assert len(done.json["preprocessing"]["differs"]) == count == done.err.count("other pixels")


@pytest.mark.parametrize("cut", [32, 224, 299, 384])
def test_the_crop_of_another_tool_s_processor_is_read_to_the_pixel(cut):
    from vitcli.weights.transformers_sidecar import _part

    for side in range(cut, 2 * cut):
        assert int(cut / _part(cut, side)) == side


# --- what is in the way --------------------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_row_36_force_replaces_the_files_that_are_written_and_nothing_else(tmp_path):
    path = checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    for name in ("thesis.txt", "deep/config.json", "config.json", ".hidden"):
        (tmp_path / "mine" / name).write_text("precious")
    done = run_vit("export", path, "mine", "--format", "timm", "--force", cwd=tmp_path)
    assert done.code == 0, done.err
    found = everything(tmp_path / "mine")
    assert sorted(found) == [".hidden", "config.json", "deep/config.json", "model.safetensors", "thesis.txt"]
    assert all(found[name] == b"precious" for name in (".hidden", "deep/config.json", "thesis.txt"))
    assert describe(tmp_path / "mine" / "model.safetensors").classes == CLASSES
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    "place", ["run", "by its run.toml", "file", "file for ONNX", "itself", "folder in a file's place", "dangling"]
)
def test_row_36_what_is_not_replaced_even_with_force(tmp_path, place):
    path = checkpoint(tmp_path / "source" / "model.safetensors")
    out, form = tmp_path / "out", "timm"
    if place in ("run", "by its run.toml"):
        checkpoint(out / "model.safetensors")
        (out / "state" / "step").mkdir(parents=True) if place == "run" else (out / "run.toml").write_text("")
    elif place == "file":
        out.write_text("hello")
    elif place == "file for ONNX":
        pytest.importorskip("onnxruntime")
        out.mkdir()
        form = "onnx"
    elif place == "itself":
        out = path.parent
    elif place == "folder in a file's place":
        (out / "config.json").mkdir(parents=True)
    else:
        out.symlink_to(tmp_path / "nowhere")
    before = everything(tmp_path)
    done = run_vit("export", path, out, "--format", form, "--force", "--json", cwd=tmp_path)
    assert done.code == 2 and done.json["error"]["hint"], done
    assert everything(tmp_path) == before


def test_row_36_other_numbers_leave_an_existing_folder_as_it_was(tmp_path, monkeypatch):
    path = checkpoint(tmp_path / "model.safetensors")
    description, tensors = load(str(path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("mine")
    changed = dict(tensors) | {"head.bias": tensors["head.bias"] + 0.01}
    monkeypatch.setattr(export, "model_with", lambda model, _: model_with(model, tensors))
    with pytest.raises(CheckpointError, match="other logits"):
        export.export(description, changed, tmp_path / "out", "timm", force=True)
    assert everything(tmp_path / "out") == {"config.json": b"mine"}
