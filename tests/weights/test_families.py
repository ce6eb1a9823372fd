"""Other people's checkpoints: the same logits as the code that they come from, with weights copied from its objects."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from google_files import google_arrays
from vitcli.errors import CheckpointError
from vitcli.weights.checkpoint import load, model_with, save
from vitcli.weights.describe import describe

pytest.importorskip("torchvision_shim", reason="timm and transformers import torchvision")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-5  # of the logits' spread, float32


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def stirred(module: nn.Module) -> nn.Module:
    """Every parameter moved, so that none that is left out or in another's place goes unseen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@torch.no_grad()
def assert_same(path: Path, theirs: Tensor, images: Tensor, features: bool = False) -> Any:
    description, tensors = load(str(path))
    model = model_with(description.model, tensors)
    ours = model.features(images) if features else model(images)
    spread = float(theirs.max() - theirs.min())
    assert spread > 0.1, "numbers that hardly differ show nothing"
    assert float((ours - theirs).abs().max()) <= TOLERANCE * spread
    return description


def pixels(*size: int) -> Tensor:
    return torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(2))


# --- timm --------------------------------------------------------------------------------------------------

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2, "num_classes": 5}

TIMM = {
    "plain": {},
    "seven classes, not square": {"num_classes": 7, "img_size": (24, 40)},
    "mean, norm after it": {"global_pool": "avg"},
    "mean, norm before it": {"global_pool": "avg", "fc_norm": False},
    "mean without class token": {"global_pool": "avg", "class_token": False, "fc_norm": False},
    "layer scale, no row for the class token": {"init_values": 0.1, "no_embed_class": True},
    "one register": {"reg_tokens": 1, "no_embed_class": True},
    "four registers": {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
    "four registers with rows": {"reg_tokens": 4},
    "four registers, mean, not square": {"reg_tokens": 4, "no_embed_class": True, "global_pool": "avg", "img_size": (24, 40)},
    "tanh": {"act_layer": "gelu_tanh"},
}  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_timm(tmp_path, name):
    arguments = SMALL | TIMM[name]
    theirs = stirred(timm.models.VisionTransformer(**arguments))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    kept = {key: value for key, value in arguments.items() if key != "num_classes"}
    config = {
        "architecture": "vit_base_patch16_224",
        "num_classes": arguments["num_classes"],
        "model_args": kept,
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    size = arguments["img_size"] if isinstance(arguments["img_size"], tuple) else (32, 32)
    images = pixels(*size)
    description = assert_same(tmp_path / "model.safetensors", theirs(images).detach(), images)
    assert description.model.img_size == size


@pytest.mark.parametrize("classes", [0, 6])
def test_timm_s_distilled_deit(tmp_path, classes):
    theirs = stirred(timm.create_model("deit_tiny_distilled_patch16_224", depth=2, num_classes=classes, img_size=64))
    torch.save({"model": theirs.state_dict()}, tmp_path / "deit.pth")
    images = pixels(64, 64)
    if classes:
        assert assert_same(tmp_path / "deit.pth", theirs(images).detach(), images).model.distilled
    else:
        tokens = theirs.forward_features(images).detach()
        assert_same(tmp_path / "deit.pth", tokens[:, 0], images, features=True)


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_as_facebook_wrote_it(tmp_path, registers):
    """Class row in the positions, registers without: what timm's loader is given."""
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    theirs = stirred(timm.create_model(name, depth=2, img_size=56, num_classes=0))
    state = dict(theirs.state_dict())
    if registers:  # timm has the class row added to the token already
        state["register_tokens"] = state.pop("reg_token")
        row = 0.1 * torch.randn(1, 1, 384)
        state["pos_embed"] = torch.cat([row, state["pos_embed"]], dim=1)
        state["cls_token"] = state["cls_token"] - row
    state["mask_token"] = torch.randn(1, 384)
    torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    images = pixels(56, 56)
    description = assert_same(tmp_path / "dinov2_vits14_pretrain.pth", theirs(images).detach(), images, features=True)
    assert (description.model.registers, description.layout) == (registers, "DINOv2")
    assert [(row.key, row.fate) for row in description.report if row.fate == "dropped"] == [("mask_token", "dropped")]


def test_deit_iii_as_facebook_wrote_it(tmp_path):
    theirs = stirred(timm.create_model("deit3_small_patch16_224", depth=2, img_size=48, num_classes=4))
    state = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for key, value in theirs.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "deit_3.pth")
    images = pixels(48, 48)
    description = assert_same(tmp_path / "deit_3.pth", theirs(images).detach(), images)
    assert description.layout == "DeiT-III" and not description.model.prefix_positions


@pytest.mark.parametrize("kind", ["encoder", "full", "fine-tuned"])
def test_mae(tmp_path, kind):
    pooled = {"global_pool": "avg", "fc_norm": True} if kind == "fine-tuned" else {"num_classes": 0}
    theirs = stirred(timm.models.VisionTransformer(**SMALL | pooled))
    state = dict(theirs.state_dict())
    if kind == "full":
        state |= {"mask_token": torch.zeros(1, 1, 64), "decoder_pos_embed": torch.zeros(1, 17, 64)}
        state |= {
            "decoder_embed.weight": torch.zeros(64, 128),
            "decoder_blocks.0.attn.qkv.weight": torch.zeros(192, 64),
        }
        state |= {"decoder_norm.weight": torch.zeros(64), "decoder_pred.bias": torch.zeros(192)}
    torch.save({"model": state}, tmp_path / "mae.pth")
    images = pixels(32, 32)
    description = assert_same(tmp_path / "mae.pth", theirs(images).detach(), images, features=kind != "fine-tuned")
    dropped = [row.key for row in description.report if row.fate == "dropped"]
    assert len(dropped) == (6 if kind == "full" else 0)
    assert len(description.report) == len(state)


# --- transformers ------------------------------------------------------------------------------------------

HF = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 200,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}


def hf_folder(tmp_path: Path, model: Any) -> Path:
    model.save_pretrained(tmp_path)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("change", [{}, {"hidden_act": "gelu_new"}, {"num_labels": 3, "image_size": 40}])
def test_transformers_vit(tmp_path, change):
    theirs = stirred(transformers.ViTForImageClassification(transformers.ViTConfig(**HF | change)))
    images = pixels(*[change.get("image_size", 32)] * 2)
    description = assert_same(hf_folder(tmp_path, theirs), theirs(images).logits.detach(), images)
    assert description.model.norm_eps == 1e-12 and description.model.heads == 4


def test_transformers_vit_by_its_names_in_memory(tmp_path):
    theirs = stirred(transformers.ViTForImageClassification(transformers.ViTConfig(**HF)))
    theirs.config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    images = pixels(32, 32)
    assert_same(tmp_path, theirs(images).logits.detach(), images)


def test_transformers_vit_without_a_head_has_the_tanh_layer(tmp_path):
    theirs = stirred(transformers.ViTModel(transformers.ViTConfig(**HF)))
    images = pixels(32, 32)
    output = theirs(images).pooler_output.detach()
    assert assert_same(hf_folder(tmp_path, theirs), output, images, features=True).model.pre_logits


@pytest.mark.parametrize("heads", [1, 2])
def test_transformers_deit(tmp_path, heads):
    kind = transformers.DeiTForImageClassificationWithTeacher if heads == 2 else transformers.DeiTForImageClassification
    theirs = stirred(kind(transformers.DeiTConfig(**HF)))
    images = pixels(32, 32)
    description = assert_same(hf_folder(tmp_path, theirs), theirs(images).logits.detach(), images)
    assert description.model.distilled == (heads == 2)


@pytest.mark.parametrize("registers", [0, 1, 4])
def test_transformers_dinov2(tmp_path, registers):
    values = {key: value for key, value in HF.items() if key != "intermediate_size"}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**values, num_register_tokens=registers)
        theirs = stirred(transformers.Dinov2WithRegistersForImageClassification(config))
    else:
        theirs = stirred(transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**values)))
    images = pixels(32, 32)
    description = assert_same(hf_folder(tmp_path, theirs), theirs(images).logits.detach(), images)
    assert description.model.pool == "cls+mean"


def test_transformers_siglip(tmp_path):
    vision = {key: value for key, value in HF.items() if key != "num_labels"} | {"vision_use_head": False}
    config = transformers.SiglipConfig(vision_config=vision, num_labels=5)
    theirs = stirred(transformers.SiglipForImageClassification(config))
    images = pixels(32, 32)
    assert_same(hf_folder(tmp_path, theirs), theirs(images).logits.detach(), images)


def test_transformers_mae_drops_the_decoder_by_name(tmp_path):
    model = transformers.ViTModel(transformers.ViTConfig(**HF), add_pooling_layer=False)
    theirs = stirred(model)
    model.save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    state = {f"vit.{key}": value for key, value in state.items()}
    state |= {"decoder.mask_token": torch.zeros(1, 1, 64), "decoder.decoder_layers.0.x.weight": torch.zeros(3)}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    images = pixels(32, 32)
    output = theirs(images).last_hidden_state[:, 0].detach()
    description = assert_same(tmp_path / "model.safetensors", output, images, features=True)
    assert sum(row.fate == "dropped" for row in description.report) == 2


def test_transformers_shards(tmp_path):
    theirs = stirred(transformers.ViTForImageClassification(transformers.ViTConfig(**HF)))
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    images = pixels(32, 32)
    assert_same(tmp_path, theirs(images).logits.detach(), images)


def test_transformers_labels_and_preprocessing_come_along(tmp_path):
    names = {0: "cat", 1: "dog", 2: "owl", 3: "fox", 4: "bee"}
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**HF, id2label=names))
    hf_folder(tmp_path, theirs)
    processor = {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    processor |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    description = describe(tmp_path / "model.safetensors")
    assert [c.name for c in description.classes] == list(names.values())
    assert (description.eval.mean, description.eval.crop) == ((0.1, 0.2, 0.3), 32 / 36)
    assert (description.eval.resize, description.eval.interpolation) == ("short", "bicubic")


# --- torchvision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("representation", [None, 128])
def test_torchvision(tmp_path, representation):
    from torchvision.models import VisionTransformer

    theirs = stirred(
        VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=128, mlp_dim=160, num_classes=5,
                          representation_size=representation)
    )  # fmt: skip
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    images = pixels(32, 32)
    description = assert_same(tmp_path / "vit.pth", theirs(images).detach(), images)
    assert description.layout == "torchvision" and description.eval.interpolation == "bilinear"


# --- Google ------------------------------------------------------------------------------------------------


def papers_equations(arrays: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """Equations 1 to 4 of the paper in float64, from the file's arrays, with jax.nn.gelu's form of the GELU."""
    w = {key: value.astype(np.float64) for key, value in arrays.items()}
    linen = "pos_embedding" in w
    norm2, attention, mlp = (
        ("LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0")
        if linen
        else ("LayerNorm_2", "MultiHeadDotProductAttention_1", "MlpBlock_3")
    )

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-6) * w[f"{name}/scale"] + w[f"{name}/bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    height, width = image.shape[:2]
    x = np.stack([
        np.einsum("hwc,hwcd->d", image[r : r + 4, c : c + 4], w["embedding/kernel"]) + w["embedding/bias"]
        for r in range(0, height, 4)
        for c in range(0, width, 4)
    ])  # fmt: skip
    if linen:
        x = x + w["pos_embedding"][0]
    if "cls" in w:
        x = np.concatenate([w["cls"][0], x])
    if not linen:
        x = x + w["Transformer/posembed_input/pos_embedding"][0]
    for i in range(2):
        block = f"Transformer/encoderblock_{i}/"
        y = norm(x, f"{block}LayerNorm_0")
        q, k, v = (
            np.einsum("td,dhe->the", y, w[f"{block}{attention}/{n}/kernel"]) + w[f"{block}{attention}/{n}/bias"]
            for n in ("query", "key", "value")
        )
        logits = np.einsum("qhe,khe->hqk", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khe->qhe", weights, v)
        x = x + np.einsum("qhe,hed->qd", mixed, w[f"{block}{attention}/out/kernel"]) + w[f"{block}{attention}/out/bias"]
        y = norm(x, f"{block}{norm2}")
        hidden = gelu(y @ w[f"{block}{mlp}/Dense_0/kernel"] + w[f"{block}{mlp}/Dense_0/bias"])
        x = x + hidden @ w[f"{block}{mlp}/Dense_1/kernel"] + w[f"{block}{mlp}/Dense_1/bias"]
    x = norm(x, "Transformer/encoder_norm")
    feature = x[0] if "cls" in w else x.mean(0)
    if "pre_logits/kernel" in w:
        feature = np.tanh(feature @ w["pre_logits/kernel"] + w["pre_logits/bias"])
    return feature @ w["head/kernel"] + w["head/bias"]


@pytest.mark.parametrize("wrapper", ["", "opt/target/", "params/"])
@pytest.mark.parametrize(
    ("linen", "pre_logits", "class_token"),
    [(False, False, True), (False, True, True), (True, True, True), (True, False, False)],
)
def test_google_npz_gives_the_paper_s_equations(tmp_path, linen, pre_logits, class_token, wrapper):
    arrays = google_arrays(linen, pre_logits, class_token)
    # six patches are no square: four or nine would do, so the image is told by a square of positions
    grid = 9
    key = "pos_embedding" if linen else "Transformer/posembed_input/pos_embedding"
    rows = grid + arrays[key].shape[1] - 6
    arrays[key] = np.random.default_rng(1).normal(0, 0.3, (1, rows, 12)).astype(np.float32)
    image = np.random.default_rng(2).uniform(-1, 1, (12, 12, 3))
    extra = {"opt/state/step": np.zeros(())} if wrapper == "opt/target/" else {}
    np.savez(tmp_path / "w.npz", **{wrapper + k: v for k, v in arrays.items()}, **extra)
    images = torch.from_numpy(image.transpose(2, 0, 1)[None].copy()).float()
    expected = torch.from_numpy(papers_equations(arrays, image))[None].float()
    description = assert_same(tmp_path / "w.npz", expected, images)
    assert (description.model.heads, description.model.gelu) == (3, "tanh")
    assert description.model.pre_logits == pre_logits


def test_blocks_that_big_vision_scans_over_and_bfloat16(tmp_path):
    arrays = google_arrays(linen=True, pre_logits=False)
    arrays["pos_embedding"] = np.random.default_rng(1).normal(0, 0.3, (1, 9, 12)).astype(np.float32)
    block = "Transformer/encoderblock_"
    scanned = {key: value for key, value in arrays.items() if not key.startswith(block)}
    for key in [k for k in arrays if k.startswith(f"{block}0/")]:
        rest = key.removeprefix(f"{block}0/")
        scanned[f"Transformer/encoderblock/{rest}"] = np.stack([arrays[f"{block}{i}/{rest}"] for i in range(2)])
    np.savez(tmp_path / "plain.npz", **arrays)
    np.savez(tmp_path / "scanned.npz", **scanned)
    plain, found = load(str(tmp_path / "plain.npz")), load(str(tmp_path / "scanned.npz"))
    assert plain[0].model == found[0].model
    assert all(torch.equal(plain[1][name], found[1][name]) for name in plain[1])
    halves = {
        key: torch.from_numpy(value).bfloat16().view(torch.int16).numpy().view("V2") for key, value in arrays.items()
    }
    np.savez(tmp_path / "half.npz", **halves)
    for name, tensor in load(str(tmp_path / "half.npz"))[1].items():
        torch.testing.assert_close(tensor, plain[1][name], rtol=1e-2, atol=1e-2)


# --- all of them -------------------------------------------------------------------------------------------


def test_what_was_loaded_is_written_and_read_again(tmp_path):
    theirs = stirred(timm.models.VisionTransformer(**SMALL | {"reg_tokens": 4, "init_values": 0.1}))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    description, tensors = load(str(tmp_path / "w.pth"))
    save(dataclasses.replace(description, path=tmp_path / "model.safetensors"), tensors)
    again, same = load(str(tmp_path / "model.safetensors"))
    assert again.model == description.model
    assert all(torch.equal(tensors[name], same[name]) for name in tensors)


@pytest.mark.parametrize(
    "stray", ["blocks.0.attn.q_norm.weight", "norm_pre.weight", "blocks.0.attn.relative_position_bias_table"]
)
def test_parts_that_vit_does_not_have_are_an_error_and_never_left_out(tmp_path, stray):
    state = timm.models.VisionTransformer(**SMALL).state_dict() | {stray: torch.zeros(3)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=stray):
        describe(tmp_path / "w.pth")


def test_an_activation_that_vit_does_not_have_is_an_error(tmp_path):
    transformers.ViTForImageClassification(transformers.ViTConfig(**HF, hidden_act="relu")).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="relu"):
        describe(tmp_path / "model.safetensors")


def test_a_grid_that_is_no_square_is_not_taken_for_one_with_other_rows(tmp_path):
    """25 rows are a class token and 4 x 6 patches here, not 5 x 5 without a row for the class token."""
    theirs = timm.models.VisionTransformer(**SMALL | {"img_size": (32, 48)})
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="position rows"):
        describe(tmp_path / "w.pth")
