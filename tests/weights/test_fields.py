"""Row 46: what a header or a file of configuration says may be anything. It is used, or refused by its name."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import Result
from vitcli.classes import Class
from vitcli.config import EvalConfig, model_config
from vitcli.config_values import check_bounds
from vitcli.errors import CheckpointError, UsageError
from vitcli.model.vit import ViT, init_weights
from vitcli.weights import checkpoint
from vitcli.weights.asked import asked_checkpoint
from vitcli.weights.describe import Description, describe
from vitcli.weights.header import read_header

MODEL = model_config("mu/4", (8, 8), 10)
RUN = {
    "command": "pretrain",
    "data": {"id": "digits", "name": "digits", "revision": "", "identity": "digits", "held_out": "test"},
    "recipe": "small",
    "seed": 0,
    "steps": 3,
    "images_seen": 4,
    "train_flops": 5,
}
PARENT = {"path": "p.safetensors", "sha256": "", "data": None}
PROVENANCE = RUN | {"ancestry": [RUN | {"sha256": "", "path": "p"}], "parent": PARENT}
SCORES = {"split": "test", "top1": 0.5, "top5": None, "loss": 1.0, "ece": 0.1, "n": 7}
RECORD = {"images": 0, "complete": True, "unknown": ["p"], "digests": ""}

Command = Callable[..., Result]


def weights() -> dict[str, torch.Tensor]:
    model = ViT(MODEL)
    init_weights(model, 0)
    return model.state_dict()


class Header:
    """A checkpoint of vit's own, whose document can be written anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        classes = tuple(Class(str(digit)) for digit in range(10))
        checkpoint.save(
            Description(
                path=path,
                model=MODEL,
                classes=classes,
                eval=EvalConfig(),
                provenance=PROVENANCE,
                scores=SCORES,
                trained_images=RECORD,
            ),
            weights(),
        )
        header, self._whole = read_header(path), path.read_bytes()
        tree = json.loads(self._whole[8 : header.data_start])
        self.document = json.loads(tree.pop("__metadata__")["vit"])
        self._entries, self._data = tree, self._whole[header.data_start :]

    def write(self, document: Any) -> None:
        text = json.dumps({"__metadata__": {"vit": json.dumps(document)}} | self._entries).encode()
        self.path.write_bytes(len(text).to_bytes(8, "little") + text + self._data)

    def places(self) -> Iterator[tuple[Any, ...]]:
        nodes: list[tuple[tuple[Any, ...], Any]] = [((), self.document)]
        while nodes:
            place, node = nodes.pop()
            if place:
                yield place
            inner = node.items() if isinstance(node, dict) else enumerate(node[:2]) if isinstance(node, list) else ()
            nodes += [((*place, key), value) for key, value in inner]

    def put(self, place: tuple[Any, ...], value: Any) -> None:
        tree = json.loads(json.dumps(self.document))
        node = tree
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        self.write(tree)


@pytest.fixture
def header(tmp_path: Path) -> Header:
    return Header(path=tmp_path / "w.safetensors")


@pytest.fixture
def vit(in_process: Command) -> Command:
    return in_process


WRONG: list[tuple[str, Any]] = [
    ("preprocessing.mean", "abc"),
    ("preprocessing.mean", [0.5, 0.5]),
    ("preprocessing.mean", [0.5, float("nan"), 0.5]),
    ("preprocessing.mean", [1e300, 0.5, 0.5]),
    ("preprocessing.mean", [True, 0.5, 0.5]),
    ("preprocessing.std", [0, 0, 0]),
    ("preprocessing.std", [0.5, -0.5, 0.5]),
    ("preprocessing.std", {"r": 1}),
    ("preprocessing.crop", 0),
    ("preprocessing.crop", 1e9),
    ("preprocessing.crop", 1e-300),
    ("preprocessing.crop", True),
    ("preprocessing.resize", "long"),
    ("preprocessing.interpolation", ["bicubic"]),
    ("preprocessing.views", 3),
    ("preprocessing.views", 10**400),
    ("preprocessing.size", [224, 224]),
    ("preprocessing.size", "8"),
    ("preprocessing.batch_size", 10**12),
    ("model.img_size", -1),
    ("model.img_size", [10**9, 10**9]),
    ("model.img_size", [[8], [8]]),
    ("model.width", True),
    ("model.width", float("nan")),
    ("model.norm_eps", -1),
    ("model.stranger", 1),
    ("classes", "abcdefghij"),
    ("classes", [[]] * 10),
    ("classes", [{"name": 3}] * 10),
    ("provenance", [["data", 1]]),
    ("provenance.data", "digits"),
    ("provenance.data", None),
    ("provenance.data.id", ["digits"]),
    ("provenance.steps", "many"),
    ("provenance.steps", None),
    ("provenance.images_seen", float("inf")),
    ("provenance.ancestry", {"data": 1}),
    ("provenance.ancestry", [3]),
    ("provenance.parent", "p"),
    ("provenance.note", float("nan")),
    ("provenance.deep", json.loads("[" * 500 + "]" * 500)),
    ("scores", 3),
    ("scores.top1", "high"),
    ("scores.n", -1),
    ("trained_images", []),
    ("trained_images.unknown", "p"),
    ("trained_images.complete", 1),
    ("sha256", 3),
    ("version", {}),
]


@pytest.mark.parametrize(("place", "value"), WRONG, ids=[f"{place} {str(value)[:20]}" for place, value in WRONG])
def test_row_46_a_field_of_a_header_that_cannot_be_is_named(header, vit, place, value):
    header.put(tuple(place.split(".")), value)
    done = vit("info", header.path, "--json")
    assert done.code == 4, done
    error = done.json["error"]
    named = place.rpartition(".")[2] in error["message"] or " px in patches" in error["message"]
    assert named and str(header.path) in error["message"] and error["hint"]
    assert len(error["message"]) < 600


COMMANDS = (
    ("info", "{}"),
    ("eval", "{}", "--device", "cpu"),
    ("predict", "{}", "i.png"),
    ("finetune", "{}", "--dry-run"),
    ("resize-posemb", "{}", "out.safetensors", "--img-size", "16", "--force"),
    ("export", "{}", "exported", "--format", "timm"),
    ("attn-distance", "{}", "--set", "analysis.images=2"),
    ("attn-rollout", "{}", "i.png", "--out", "rollouts"),
    ("probe", "{}", "--dry-run"),
    ("posemb-similarity", "{}"),
    ("filters", "{}"),
)


@pytest.mark.parametrize(
    ("place", "value"),
    [("preprocessing.std", [0, 1, 1]), ("provenance.data", ["digits"]), ("provenance.ancestry", 3), ("scores.n", "x")],
)
def test_row_46_every_command_refuses_it(header, vit, tmp_path, place, value):
    header.put(tuple(place.split(".")), value)
    Image.new("RGB", (8, 8)).save(tmp_path / "i.png")
    for command in COMMANDS:
        done = vit(*(word.format(header.path) for word in command), "--json")
        assert done.code == 4, (command, done)
        assert place.rpartition(".")[2] in done.json["error"]["message"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("provenance.data.held_out", "\ud800"),
        ("provenance.stranger", {"\x1b[2J": ["\ud800", None, {}]}),
        ("provenance.parent", {}),
        ("provenance.ancestry", [{}]),
        ("provenance.data", {}),
        ("scores", {"top1": None}),
        ("trained_images", {}),
    ],
)
def test_row_46_what_may_be_said_goes_through_every_command(header, vit, tmp_path, place, value):
    header.put(tuple(place.split(".")), value)
    Image.new("RGB", (8, 8)).save(tmp_path / "i.png")
    for command in COMMANDS:
        data = ("--data", "digits") if command[0] in ("eval", "finetune", "probe", "attn-distance") else ()
        done = vit(*(word.format(header.path) for word in command), *data, "--json")
        assert done.code == 0 or (done.code == 2 and "--format" in command), (command, done)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, -(10**400), "cls", "digits", "\ud800", [0.5, 0.5, 0.5], [8, 8]]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=JSON)
def test_row_46_any_json_anywhere_in_a_header_is_read_or_refused_by_name(header, vit, data, value):
    place = data.draw(st.sampled_from(sorted(header.places(), key=str)))
    header.put(place, value)
    try:
        describe(header.path).record()
    except CheckpointError as error:
        named = [key for key in place if isinstance(key, str)]
        structure = ("does not fit", "image height", "image width", "images cannot be read", "outputs", " px ")
        assert any(word in error.message for word in (*named, *structure)), (place, error.message)
        return
    for flags in ((), ("--json",)):
        done = vit("info", header.path, *flags)
        assert done.code == 0, (place, value, done)


# --- files beside the weights ----------------------------------------------------------------------------------


def timm_config(**changes: Any) -> dict[str, Any]:
    cfg = {"input_size": [3, 8, 8], "interpolation": "bicubic", "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3}
    return {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"num_heads": 2},
        "pretrained_cfg": cfg | changes,
    }


TIMM = [
    ("mean", "abc"),
    ("mean", [0.5] * 2),
    ("std", 0),
    ("std", [0, 0, 0]),
    ("crop_pct", 0),
    ("crop_pct", 1e9),
    ("crop_pct", "all"),
    ("interpolation", 3),
    ("input_size", [3, -8, 8]),
    ("input_size", [1] * 7),
    ("input_size", 10**9),
    ("input_size", [3, 10**9, 10**9]),
]


@pytest.mark.parametrize(("key", "value"), TIMM, ids=str)
def test_row_46_a_value_of_timm_s_configuration_that_cannot_be_is_named(tmp_path, vit, key, value):
    safetensors.torch.save_file(weights(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(timm_config()))
    assert vit("info", "model.safetensors").code == 0
    (tmp_path / "config.json").write_text(json.dumps(timm_config(**{key: value})))
    done = vit("info", "model.safetensors", "--json")
    assert done.code == 4, done
    assert key in done.json["error"]["message"] or "img_size" in done.json["error"]["message"]


def arguments(**changes: Any) -> dict[str, Any]:
    return {
        "model": "vit_tiny_patch4_8",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": None,
        "img_size": 8,
    } | changes


@pytest.mark.parametrize("place", ["in the file", "args.yaml"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("mean", "abc"), ("std", [0, 0, 0]), ("crop_pct", 1e9), ("crop_pct", 0), ("img_size", -1), ("img_size", [1] * 7)],
)
def test_row_46_an_argument_of_a_training_script_that_cannot_be_is_named(tmp_path, place, key, value):
    path = tmp_path / "last.pth.tar"

    def write(args: dict[str, Any]) -> None:
        said = {"args": argparse.Namespace(**args)} if place == "in the file" else {}
        torch.save({"state_dict": weights()} | said, path)
        if place == "args.yaml":
            lines = []
            for name, item in args.items():
                lines += [f"{name}:", *(f"- {n}" for n in item)] if isinstance(item, list) else [f"{name}: {item}"]
            (tmp_path / "args.yaml").write_text("\n".join(lines).replace("None", "null"))

    write(arguments())
    describe(path)
    write(arguments(**{key: value}))
    with pytest.raises(CheckpointError, match=key):
        describe(path)


TRANSFORMERS = [
    ("config.json", "image_size", -1),
    ("config.json", "image_size", 10**9),
    ("config.json", "image_size", [8] * 7),
    ("config.json", "num_attention_heads", -2),
    ("config.json", "num_attention_heads", "two"),
    ("config.json", "layer_norm_eps", "small"),
    ("config.json", "layer_norm_eps", 1e9),
    ("config.json", "id2label", {"0": [["x"]]}),
    ("preprocessor_config.json", "image_mean", "abc"),
    ("preprocessor_config.json", "image_std", [0, 0, 0]),
    ("preprocessor_config.json", "size", {"shortest_edge": -1}),
    ("preprocessor_config.json", "size", {"height": "x", "width": 8}),
    ("preprocessor_config.json", "size", [8] * 7),
    ("preprocessor_config.json", "resample", [3]),
    ("preprocessor_config.json", "rescale_factor", "1/255"),
    ("preprocessor_config.json", "crop_size", -1),
]


@pytest.mark.parametrize(("file", "key", "value"), TRANSFORMERS, ids=str)
def test_row_46_a_value_of_transformers_configuration_that_cannot_be_is_named(tmp_path, file, key, value):
    safetensors.torch.save_file(weights(), tmp_path / "model.safetensors")
    trees: dict[str, dict[str, Any]] = {
        "config.json": {"model_type": "vit", "image_size": 8, "num_attention_heads": 2},
        "preprocessor_config.json": {
            "size": {"height": 8, "width": 8},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    }
    for name, tree in trees.items():
        (tmp_path / name).write_text(json.dumps(tree))
    describe(tmp_path / "model.safetensors")
    (tmp_path / file).write_text(json.dumps(trees[file] | {key: value}))
    with pytest.raises(CheckpointError) as caught:
        describe(tmp_path / "model.safetensors")
    assert key in caught.value.message or "8 x 8" in caught.value.message or "img_size" in caught.value.message


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=JSON)
def test_row_46_any_json_anywhere_in_a_configuration_is_read_or_refused(tmp_path, data, value):
    safetensors.torch.save_file(weights(), tmp_path / "model.safetensors")
    files = {
        "config.json": timm_config() | {"label_names": list("abcdefghij")},
        "preprocessor_config.json": {
            "size": {"height": 8, "width": 8}, "crop_size": 8, "do_center_crop": True, "resample": 3,
            "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        },
    }  # fmt: skip
    if data.draw(st.booleans()):
        files["config.json"] = {"model_type": "vit", "image_size": 8, "num_attention_heads": 2, "hidden_act": "gelu",
                                "layer_norm_eps": 1e-6, "id2label": {str(n): str(n) for n in range(10)}}  # fmt: skip
    name = data.draw(st.sampled_from(sorted(files)))
    tables = [
        table for table in (files[name], files[name].get("pretrained_cfg"), files[name].get("model_args")) if table
    ]
    table = data.draw(st.sampled_from(tables))
    table[data.draw(st.sampled_from(sorted(table)))] = value
    for file, tree in files.items():
        (tmp_path / file).write_text(json.dumps(tree))
    try:
        config = describe(tmp_path / "model.safetensors").eval
    except CheckpointError as error:
        assert str(tmp_path) in error.message and "\n" not in error.message
    else:
        assert min(config.std) > 0 and 0 < config.crop <= 1


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge", "no JSON"])
def test_row_46_a_configuration_that_is_no_file_is_refused(tmp_path, kind):
    safetensors.torch.save_file(weights(), tmp_path / "model.safetensors")
    path = tmp_path / "config.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "no JSON":
        path.write_text("{")
    else:
        with path.open("wb") as file:
            file.truncate(5 << 30)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        describe(tmp_path / "model.safetensors")


def test_row_46_preprocessing_that_is_asked_for_is_checked_as_well(header, vit):
    done = vit("eval", header.path, "--data", "digits", "--set", "eval.std=0,0,0", "--json")
    assert done.code == 2 and "eval.std" in done.json["error"]["message"]
    with pytest.raises(UsageError, match=r"eval\.std"):  # from Python no value is parsed before it comes here
        asked_checkpoint(str(header.path), {"eval.std": (0.0, 0.0, 0.0)}, ("eval.",))


def test_row_46_the_rule_is_that_of_a_run():
    with pytest.raises(UsageError, match=r"eval\.crop"):
        check_bounds("eval", dataclasses.replace(EvalConfig(), crop=1e9))
