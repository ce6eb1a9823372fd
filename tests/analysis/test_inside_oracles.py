"""The same table of distances, and the same rollout, from the attention weights of timm and transformers on equal pixels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from vitcli import api

pytest.importorskip("torchvision_shim", reason="timm and transformers import torchvision")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

IMAGES = 3


def stirred(module: nn.Module) -> nn.Module:
    """Parameters with a spread, so that heads attend to something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@pytest.fixture
def photos(tmp_path: Path) -> Any:
    """Makes smooth pictures of a size: their files, and what a model sees with mean and std 0.5."""

    def make(height: int, width: int) -> tuple[list[str], Tensor]:
        random, files, seen = np.random.default_rng(0), [], []
        for index in range(IMAGES):
            coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            files.append(str(tmp_path / f"{index}.png"))
            image.save(files[-1])
            seen.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1)
        return files, torch.stack(seen)

    return make


def table(layers: list[Tensor], grid: tuple[int, int], patch: tuple[int, int], prefix: int) -> np.ndarray:
    """[layers, heads]: mean attention distance by its definition, in numpy."""
    row, column = (places.flatten() for places in np.indices(grid))
    distance = np.hypot(np.subtract.outer(row, row) * patch[0], np.subtract.outer(column, column) * patch[1])
    result = []
    for weights in layers:
        among = weights.double().numpy()[:, :, prefix:, prefix:]
        among = among / among.sum(-1, keepdims=True)
        result.append((among * distance).sum(-1).mean((0, 2)))
    return np.stack(result)


def rollout(layers: list[Tensor], grid: tuple[int, int], prefix: int) -> np.ndarray:
    """[images, rows, columns] of the class token."""
    product = np.eye(layers[0].shape[-1])
    for weights in layers:
        product = (0.5 * weights.double().numpy().mean(1) + 0.5 * np.eye(product.shape[-1])) @ product
    return product[:, 0, prefix:].reshape(-1, *grid)


PIXELS = {"eval.mean": (0.5,) * 3, "eval.std": (0.5,) * 3, "eval.crop": 1.0}


def assert_same(checkpoint: Path, files: list[str], layers: list[Tensor], prefix: int) -> Any:
    ours = api.attention_distance(str(checkpoint), images=files, precision="fp32", overrides=PIXELS)
    size, patch = ours["img_size"], ours["patch_size"]
    grid = (size[0] // patch[0], size[1] // patch[1])
    assert layers[0].shape[-1] == grid[0] * grid[1] + prefix
    theirs = table(layers, grid, tuple(patch), prefix)
    found = np.array([layer["heads"] for layer in ours["layers"]])
    assert theirs.std() > 0.3, "numbers that hardly differ show nothing"
    np.testing.assert_allclose(found, theirs, atol=1e-3, rtol=0)
    assert [layer["mean"] for layer in ours["layers"]] == pytest.approx(theirs.mean(1).tolist(), abs=1e-3)
    planned = api.plan_attention(str(checkpoint), images=files, precision="fp32", overrides=PIXELS)
    if planned.model.pool == "cls" and not planned.model.distilled:
        np.testing.assert_allclose(planned.rollout().maps[-1], rollout(layers, grid, prefix), atol=1e-5)
    return ours


# --- timm --------------------------------------------------------------------------------------------------

SMALL = {"embed_dim": 96, "depth": 3, "num_heads": 3, "num_classes": 5}
TIMM = {
    "16 px": {"img_size": 64, "patch_size": 16},
    "14 px": {"img_size": 70, "patch_size": 14},
    "14 px, registers": {"img_size": 56, "patch_size": 14, "reg_tokens": 4, "init_values": 0.5, "no_embed_class": True},
    "16 px, not square": {"img_size": (48, 96), "patch_size": 16},
    "14 px, registers, not square": {"img_size": (42, 70), "patch_size": 14, "reg_tokens": 4, "no_embed_class": True},
    "mean of the patches": {"img_size": 64, "patch_size": 16, "global_pool": "avg"},
    "patches alone": {"img_size": 64, "patch_size": 16, "global_pool": "avg", "class_token": False},
}  # fmt: skip


@torch.no_grad()
def weights_of_timm(model: Any, images: Tensor) -> list[Tensor]:
    layers: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda module, given: layers.append(given[0].clone()))
    model(images)
    return layers


@pytest.mark.parametrize("kind", TIMM)
def test_timm_unfused(kind: str, tmp_path: Path, photos: Any) -> None:
    arguments = SMALL | TIMM[kind]
    theirs = stirred(timm.models.VisionTransformer(**arguments))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_base_patch16_224",
        "num_classes": 5,
        "model_args": {key: value for key, value in arguments.items() if key != "num_classes"},
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    size = arguments["img_size"]
    files, images = photos(*(size if isinstance(size, tuple) else (size, size)))
    layers = weights_of_timm(theirs, images)
    prefix = int(arguments.get("class_token", True)) + int(arguments.get("reg_tokens", 0))
    assert_same(tmp_path / "model.safetensors", files, layers, prefix)


def test_timm_s_distilled_deit(tmp_path: Path, photos: Any) -> None:
    theirs = stirred(timm.create_model("deit_tiny_distilled_patch16_224", depth=2, num_classes=4, img_size=64))
    path = tmp_path / "deit.pth"
    torch.save({"model": theirs.state_dict()}, path)
    files, images = photos(64, 64)
    assert_same(path, files, weights_of_timm(theirs, images), prefix=2)


# --- transformers ------------------------------------------------------------------------------------------

HF = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "num_labels": 5}


def saved(model: Any, folder: Path, size: int) -> Path:
    model.save_pretrained(folder)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": size, "width": size}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder / "model.safetensors"


@pytest.mark.parametrize(("size", "patch"), [(64, 16), (70, 14)])
def test_transformers_vit_eager(size: int, patch: int, tmp_path: Path, photos: Any) -> None:
    config = transformers.ViTConfig(**HF, intermediate_size=200, image_size=size, patch_size=patch)
    theirs = stirred(transformers.ViTForImageClassification._from_config(config, attn_implementation="eager"))
    files, images = photos(size, size)
    with torch.no_grad():
        layers = list(theirs(images, output_attentions=True).attentions)
    assert_same(saved(theirs, tmp_path, size), files, layers, prefix=1)


@pytest.mark.parametrize("registers", [1, 4])
def test_transformers_dinov2_with_registers_eager(registers: int, tmp_path: Path, photos: Any) -> None:
    config = transformers.Dinov2WithRegistersConfig(**HF, num_register_tokens=registers, image_size=70, patch_size=14)
    theirs = stirred(
        transformers.Dinov2WithRegistersForImageClassification._from_config(config, attn_implementation="eager")
    )
    files, images = photos(70, 70)
    with torch.no_grad():
        layers = list(theirs(images, output_attentions=True).attentions)
    ours = assert_same(saved(theirs, tmp_path, 70), files, layers, prefix=1 + registers)
    assert ours["patch_size"] == [14, 14]


# --- npz ---------------------------------------------------------------------------------------------------


def test_npz_as_google_wrote_it(tmp_path: Path, photos: Any) -> None:
    """q and k by their kernels [width, heads, dim], in numpy, of a single layer: nothing before it but the embedding."""
    random = np.random.default_rng(0)
    width, heads, dim, patch, side = 12, 3, 4, 8, 5

    def array(*shape: int) -> np.ndarray:
        return random.normal(0, 0.4, shape).astype(np.float32)

    block, norm = "Transformer/encoderblock_0/", {"scale": array(width) + 1, "bias": array(width)}
    attention = f"{block}MultiHeadDotProductAttention_1/"
    arrays = {
        "cls": array(1, 1, width), "embedding/kernel": array(patch, patch, 3, width), "embedding/bias": array(width),
        "Transformer/posembed_input/pos_embedding": array(1, side**2 + 1, width),
        "Transformer/encoder_norm/scale": array(width), "Transformer/encoder_norm/bias": array(width),
        "head/kernel": array(width, 5), "head/bias": array(5),
        f"{block}LayerNorm_0/scale": norm["scale"], f"{block}LayerNorm_0/bias": norm["bias"],
        f"{block}LayerNorm_2/scale": array(width), f"{block}LayerNorm_2/bias": array(width),
        **{f"{attention}{n}/kernel": array(width, heads, dim) for n in ("query", "key", "value")},
        **{f"{attention}{n}/bias": array(heads, dim) for n in ("query", "key", "value")},
        f"{attention}out/kernel": array(heads, dim, width), f"{attention}out/bias": array(width),
        f"{block}MlpBlock_3/Dense_0/kernel": array(width, 20), f"{block}MlpBlock_3/Dense_0/bias": array(20),
        f"{block}MlpBlock_3/Dense_1/kernel": array(20, width), f"{block}MlpBlock_3/Dense_1/bias": array(width),
    }  # fmt: skip
    np.savez(tmp_path / "ViT-tiny_8.npz", **arrays)
    files, images = photos(patch * side, patch * side)
    pixels = images.permute(0, 2, 3, 1).double().numpy()
    layer = []
    for image in pixels:
        tokens = [arrays["cls"][0, 0]]
        for row in range(side):
            for column in range(side):
                part = image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                tokens.append(np.tensordot(part, arrays["embedding/kernel"], 3) + arrays["embedding/bias"])
        x = np.stack(tokens) + arrays["Transformer/posembed_input/pos_embedding"][0]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * norm["scale"] + norm["bias"]
        q, k = (
            np.einsum("td,dhe->hte", x, arrays[f"{attention}{n}/kernel"]) + arrays[f"{attention}{n}/bias"][:, None]
            for n in ("query", "key")
        )
        logits = q @ k.transpose(0, 2, 1) / math.sqrt(dim)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        layer.append(torch.from_numpy(weights / weights.sum(-1, keepdims=True)))
    assert_same(tmp_path / "ViT-tiny_8.npz", files, [torch.stack(layer)], prefix=1)
