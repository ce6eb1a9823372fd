"""What the keys of somebody else's weights do not tell: from --set, the configuration, the name, and else a guess that is said."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from conftest import Vit
from vitcli.config import ModelConfig, model_config
from vitcli.errors import CheckpointError, UsageError
from vitcli.model.vit import ViT
from vitcli.weights import names
from vitcli.weights.checkpoint import load, model_with, save
from vitcli.weights.describe import Description, describe
from vitcli.weights.vit_architecture import usual_heads

pytest.importorskip("torchvision_shim", reason="timm and transformers import torchvision")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

FOUR = {"img_size": 16, "patch_size": 4, "embed_dim": 128, "depth": 2, "num_heads": 4, "num_classes": 5}


def stirred(module: torch.nn.Module) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@pytest.fixture(scope="module")
def four() -> Any:
    """timm's ViT with 4 heads of 32."""
    torch.manual_seed(0)
    return stirred(timm.models.VisionTransformer(**FOUR))


IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def distance(path: Path, theirs: Any, **asked: Any) -> float:
    """The largest difference of a logit from timm's, part of their spread."""
    description, tensors = load(str(path), {f"model.{key}": value for key, value in asked.items()})
    logits = theirs(IMAGES)
    return float((model_with(description.model, tensors)(IMAGES) - logits).abs().max() / (logits.max() - logits.min()))


# --- --set -------------------------------------------------------------------------------------------------


def test_four_heads_of_32_give_their_own_logits_when_asked_for_and_a_note_when_not(tmp_path, four):
    torch.save(four.state_dict(), tmp_path / "w.pth")
    note = next(n for n in describe(tmp_path / "w.pth").notes if "heads" in n)
    assert "2 heads" in note and "--set model.heads=…" in note and "GELU erf" in note and "pooling cls" in note
    assert distance(tmp_path / "w.pth", four) > 0.01
    assert distance(tmp_path / "w.pth", four, heads=4) < 1e-5
    asked = {"model.heads": 4, "model.gelu": "erf", "model.pool": "cls", "model.norm_eps": 1e-6}
    assert not any("--set" in n for n in describe(tmp_path / "w.pth", asked).notes)


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ({"act_layer": "gelu_tanh"}, {"gelu": "tanh"}),
        ({"global_pool": "avg", "fc_norm": False}, {"pool": "mean"}),
        ({"norm_layer": lambda width, **rest: torch.nn.LayerNorm(width, eps=1e-3)}, {"norm_eps": 1e-3}),
    ],
    ids=lambda value: ",".join(value),
)
def test_what_else_is_guessed_can_be_replaced(tmp_path, arguments, asked):
    theirs = stirred(timm.models.VisionTransformer(**FOUR | arguments))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    assert distance(tmp_path / "w.pth", theirs, heads=4) > 1e-5
    assert distance(tmp_path / "w.pth", theirs, heads=4, **asked) < 1e-5


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"heads": 3}, "not a multiple"),
        ({"heads": 0}, "at least 1"),
        ({"width": 64}, "the weights of"),
        ({"depth": 9}, "cannot be changed"),
        ({"pool": "cls+mean"}, "the head of"),
        ({"class_token": False}, "the weights of"),
        ({"img_size": (32, 32)}, "does not concern"),
        ({"dropout": 0.1}, "does not concern"),
    ],
    ids=str,
)
def test_what_cannot_be_is_a_usage_error(tmp_path, four, asked, said):
    torch.save(four.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=said) as caught:
        describe(tmp_path / "w.pth", {f"model.{key}": value for key, value in asked.items()})
    assert caught.value.hint


def own(path: Path, **changes: Any) -> Path:
    model = dataclasses.replace(model_config("mu/4", (16, 16), 5), **changes)
    vit = stirred(ViT(model))
    save(Description(path=path, model=model, classes=(), eval=describe_eval()), vit.state_dict())
    return path


def describe_eval() -> Any:
    from vitcli.config import EvalConfig

    return EvalConfig()


def test_a_checkpoint_of_vit_s_own_says_what_it_is(tmp_path):
    path = own(tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"model\.heads cannot be changed"):
        describe(path, {"model.heads": 4})
    assert describe(path, {"model.heads": 2, "model.gelu": "erf"}).model.heads == 2
    assert describe(path, {"model.posemb": "paper"}).model.posemb == "paper"


def test_every_command_takes_it(vit: Vit, tmp_path: Path, four: Any, class_folders: Path) -> None:
    theirs = stirred(timm.models.VisionTransformer(**FOUR | {"num_classes": 3}))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    (tmp_path / "labels.txt").write_text("blue\ngreen\nred\n")
    image = next((class_folders / "test" / "red").iterdir())
    data, labels = ("--data", class_folders), ("--labels", "labels.txt")
    commands = {
        "info": (), "eval": (*data, *labels, "--precision", "fp32"), "predict": (image,),
        "export": ("out", "--format", "timm"), "probe": data, "attn-distance": (image,), "attn-rollout": (image, "--out", "r"),
        "filters": (), "posemb-similarity": (), "resize-posemb": ("new.safetensors", "--img-size", "32"),
        "finetune": (*data, "--steps", "1", "--out", "tuned"),
    }  # fmt: skip
    for command, rest in commands.items():
        wrong = vit(command, "w.pth", *rest, "--set", "model.heads=3", "--json")
        assert wrong.code == 2 and "model.heads = 3" in wrong.err, (command, wrong)
        done = vit(command, "w.pth", *rest, "--set", "model.heads=4", "--json")
        assert done.code == 0, (command, done.err)
        assert "2 heads" not in done.err, command
    for written in ("out", "new.safetensors", "tuned"):
        assert vit("info", written, "--json").json["heads"] == 4, written
    measured = [
        vit("eval", "w.pth", *commands["eval"], *more, "--json").json["loss"]
        for more in ((), ("--set", "model.heads=4"))
    ]
    assert measured[0] != measured[1]
    assert vit("eval", "out", *data, "--precision", "fp32", "--json", *labels).json["loss"] == pytest.approx(
        measured[1], abs=1e-5
    )


# --- names -------------------------------------------------------------------------------------------------


def test_names_tell_what_timm_builds():
    """Of every model of timm's vision_transformer.py that has plain GELU blocks."""
    known = 0
    for name in timm.list_models(module="vision_transformer"):
        with torch.device("meta"):
            model = timm.create_model(name)
        if type(model).__name__ != "VisionTransformer" or name.startswith(("aimv2", "test_", "beit3")):
            continue
        block = model.blocks[0]
        if not hasattr(block, "attn"):
            continue
        act = type(getattr(getattr(block, "mlp", None), "act", None)).__name__
        patch = tuple(model.patch_embed.patch_size)
        heads = names.heads(name, model.embed_dim, len(model.blocks), patch)
        if heads is not None:
            assert heads == block.attn.num_heads, name
            if act in ("GELU", "GELUTanh"):
                assert names.activation(name) == ("tanh" if act == "GELUTanh" else "erf"), name
            if model.global_pool in ("token", "avg"):
                assert names.pooling(name, model.has_class_token) == (
                    "cls" if model.global_pool == "token" else "mean"
                ), name
            known += 1
        if act == "QuickGELU":
            assert names.activation(name) == "quick", name
    assert known > 120


@pytest.mark.parametrize(
    ("name", "width", "depth", "patch", "heads"),
    [
        ("google/vit-base-patch16-224", 768, 12, 16, 12),
        ("dinov2_vitg14_reg4_pretrain", 1536, 40, 14, 24),
        ("dinov2_vits14", 384, 12, 14, 6),
        ("vit_b_16", 768, 12, 16, 12),
        ("deit_tiny_patch16_224.fb_in1k", 192, 12, 16, 3),
        ("siglip-so400m-patch14-384", 1152, 27, 14, 16),
        ("vit_so400m_patch14_siglip_gap_384", 1152, 27, 14, 16),
        ("vit_giant_patch14_224", 1408, 40, 14, 16),
        ("vit_gigantic_patch14_224", 1664, 48, 14, 16),
        ("vit_tiny_patch16_224", 192, 2, 16, None),  # another depth
        ("vit_tiny_patch16_224", 256, 12, 16, None),
        ("vit_tiny_patch16_224", 192, 12, 8, None),
        ("my_vit", 192, 12, 16, None),
        ("resnet50", 192, 12, 16, None),
        ("activity_b_16", 768, 12, 16, None),
    ],
)
def test_names_are_believed_where_the_arrays_agree(name, width, depth, patch, heads):
    assert names.heads(name, width, depth, (patch, patch)) == heads


def test_guesses_of_known_widths():
    assert [usual_heads(w, d, 4 * w) for w, d in ((1152, 27), (1408, 40), (1664, 48), (192, 12), (200, 2), (7, 1))] == [
        16, 16, 16, 3, 2, 1,
    ]  # fmt: skip


def shaped(path: Path, model: ModelConfig, wrapper: dict[str, Any] | None = None) -> Path:
    tensors = {key: torch.zeros(shape) for key, shape in model.shapes().items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors} | (wrapper or {}), path)
    return path


ODD = dataclasses.replace(model_config("ti/16", (64, 64), 3), heads=3)


@pytest.mark.parametrize("how", ["file", "folder", "arch", "args", "hyper_parameters"])
def test_a_name_is_found_in_the_file_s_name_its_folder_or_the_script_s_arguments(tmp_path, how):
    name, wrapper = "checkpoint", {}
    folder = tmp_path / "run"
    if how == "file":
        name = "deit_tiny_patch16_224-a1311bcf"
    elif how == "folder":
        folder = tmp_path / "vit_tiny_patch16_224"
    else:
        wrapper = {
            "arch": {"arch": "vit_tiny_patch16_224"},
            "args": {"args": argparse.Namespace(model="vit_tiny_patch16_224")},
            "hyper_parameters": {"hyper_parameters": {"model_name": "vit_tiny_patch16_224"}},
        }[how]
    folder.mkdir()
    assert not any(
        "a guess: " in n and "heads" in n for n in describe(shaped(folder / f"{name}.pth", ODD, wrapper)).notes
    )
    assert any("3 heads" in n for n in describe(shaped(tmp_path / "other.pth", ODD)).notes)


# --- configurations ----------------------------------------------------------------------------------------


def timm_folder(folder: Path, **arguments: Any) -> Path:
    folder.mkdir(exist_ok=True)
    model = timm.models.VisionTransformer(**FOUR)
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    given = {key: value for key, value in FOUR.items() if key != "num_classes"} | arguments
    config = {
        "architecture": "vit_base_patch16_224",
        "model_args": given,
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("act_layer", "relu"), ("act_layer", 3), ("global_pool", "max"),
        ("global_pool", "avgmax"), ("global_pool", "map"), ("qk_norm", True), ("pre_norm", True),
        ("final_norm", False), ("norm_layer", "rmsnorm"), ("mlp_layer", "swiglu"), ("attn_layer", "diff"), ("qkv_bias", False),
        ("pos_embed", "none"), ("num_heads", "4"), ("scale_attn_norm", True), ("proj_bias", False),
        ("something_new", 1), ("block_fn", ["x"]), ("qkv_bias", 1.5),
    ],
)  # fmt: skip
def test_arguments_of_timm_that_vit_cannot_follow_are_errors_by_name(tmp_path, key, value):
    with pytest.raises(CheckpointError, match=key) as caught:
        describe(timm_folder(tmp_path / "m", **{key: value}))
    if isinstance(value, str):
        assert value in caught.value.message


@pytest.mark.parametrize(
    "arguments",
    [
        {"drop_rate": 0.5, "drop_path_rate": 0.1, "attn_drop_rate": 0.1, "proj_drop_rate": 0.1, "pos_drop_rate": 0.1},
        {"weight_init": "jax", "fix_init": True, "dynamic_img_size": True, "patch_drop_rate": 0.5},
        {"act_layer": "gelu", "norm_layer": "LayerNorm", "qkv_bias": True, "global_pool": "token"},
        {"mlp_layer": None, "block_fn": None, "qk_norm": False, "act_layer": None, "pre_norm": None},
    ],
)
def test_arguments_that_change_nothing_are_fine(tmp_path, arguments):
    described = describe(timm_folder(tmp_path / "m", **arguments))
    assert described.model.heads == 4 and described.notes == ()


def test_a_pooling_beside_the_arguments(tmp_path):
    path = timm_folder(tmp_path / "m")
    config = json.loads((path.parent / "config.json").read_text())
    (path.parent / "config.json").write_text(json.dumps(config | {"global_pool": "max"}))
    with pytest.raises(CheckpointError, match="global_pool"):
        describe(path)


def test_an_architecture_with_another_activation(tmp_path):
    path = timm_folder(tmp_path / "m")
    config = json.loads((path.parent / "config.json").read_text())
    (path.parent / "config.json").write_text(
        json.dumps(config | {"architecture": "vit_base_patch16_clip_quickgelu_224"})
    )
    with pytest.raises(CheckpointError, match="pre_norm"):
        describe(path)


def test_siglip_s_activation_by_the_architecture(tmp_path):
    path = timm_folder(tmp_path / "m")
    config = json.loads((path.parent / "config.json").read_text())
    (path.parent / "config.json").write_text(
        json.dumps(
            config
            | {
                "architecture": "vit_so400m_patch16_siglip_gap_256",
                "model_args": config["model_args"] | {"class_token": True},
            }
        )
    )
    assert describe(path).model.gelu == "tanh"


def test_the_arguments_of_timm_s_script_are_looked_at_too(tmp_path):
    state = timm.models.VisionTransformer(**FOUR).state_dict()
    kwargs = {"num_heads": 4, "embed_dim": 128}
    args = argparse.Namespace(
        model="vit_tiny_patch16_224", gp="avg", model_kwargs=kwargs, mean=[0.1] * 3, std=[0.2] * 3
    )
    torch.save({"state_dict": state, "args": args}, tmp_path / "w.pth.tar")
    described = describe(tmp_path / "w.pth.tar")
    assert (described.model.heads, described.model.pool, described.eval.mean) == (4, "mean", (0.1,) * 3)
    args.model_kwargs = {"act_layer": "relu"}
    torch.save({"state_dict": state, "args": args}, tmp_path / "w.pth.tar")
    with pytest.raises(CheckpointError, match="act_layer"):
        describe(tmp_path / "w.pth.tar")


HF = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 16,
    "patch_size": 8,
}


def hf_folder(folder: Path, model: Any, **changes: Any) -> Path:
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_act", "relu"), ("hidden_act", ["gelu"]), ("qkv_bias", False),
     ("use_swiglu_ffn", True), ("use_mean_pooling", True), ("num_channels", 1)],
)  # fmt: skip
def test_settings_of_transformers_that_vit_cannot_follow_are_errors_by_name(tmp_path, key, value):
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**HF))
    with pytest.raises(CheckpointError, match=key):
        describe(hf_folder(tmp_path, model, **{key: value}))


def test_the_pooler_s_activation_where_there_is_a_pooler(tmp_path):
    config = transformers.ViTConfig(**HF)
    with pytest.raises(CheckpointError, match="pooler_act"):
        describe(hf_folder(tmp_path / "a", transformers.ViTModel(config), pooler_act="relu"))
    describe(hf_folder(tmp_path / "b", transformers.ViTForImageClassification(config), pooler_act="relu"))


def test_a_configuration_that_leaves_out_the_usual_values(tmp_path):
    """As SigLIP's on the hub, whose vision_config names its type alone."""
    vision = HF | {"hidden_size": 96, "num_attention_heads": 12, "vision_use_head": False}
    theirs = transformers.SiglipForImageClassification(transformers.SiglipConfig(vision_config=vision, num_labels=3))
    path = hf_folder(tmp_path, theirs, vision_config={"model_type": "siglip_vision_model"})
    described = describe(path)
    assert (described.model.heads, described.model.gelu, described.model.norm_eps) == (12, "tanh", 1e-6)
    assert not any("--set" in n for n in described.notes)
