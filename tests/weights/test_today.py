"""The checkpoints that people use today: the same logits as timm and transformers, with weights copied from their objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitcli.weights.checkpoint import load, model_with
from vitcli.weights.describe import Description

pytest.importorskip("torchvision_shim", reason="timm and transformers import torchvision")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-5  # of the logits' spread, float32


def stirred(module: nn.Module) -> nn.Module:
    """Every parameter moved, so that none that is left out or in another's place goes unseen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@torch.no_grad()
def assert_same(ours: Tensor, theirs: Tensor) -> None:
    spread = float(theirs.max() - theirs.min())
    assert spread > 0.02, "numbers that hardly differ show nothing"
    assert float((ours - theirs).abs().max()) <= TOLERANCE * spread


def pixels(*size: int) -> Tensor:
    return torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(path: Path | str, images: Tensor) -> tuple[Description, Tensor]:
    description, tensors = load(str(path))
    model = model_with(description.model, tensors)
    return description, model(images) if description.model.classes else model.features(images)


# --- timm --------------------------------------------------------------------------------------------------

TIMM: dict[str, dict[str, Any]] = {
    # architecture: what is smaller of it
    "vit_base_patch16_clip_quickgelu_224": {},
    "vit_base_patch32_clip_224": {"patch_size": 8},
    "vit_huge_patch14_clip_224": {"patch_size": 8, "embed_dim": 160, "num_heads": 2},
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch16_siglip_gap_224": {},
    "vit_so400m_patch14_siglip_384": {"patch_size": 8, "embed_dim": 144, "num_heads": 2},
    "vit_so150m_patch16_reg4_map_256": {"mlp_ratio": 2.5},
    "vit_giant_patch14_dinov2": {"patch_size": 8, "embed_dim": 96, "num_heads": 3},
    "vit_giant_patch14_reg4_dinov2": {"patch_size": 8, "embed_dim": 96, "num_heads": 3},
    "vit_small_patch16_dinov3": {},
    "vit_small_plus_patch16_dinov3_qkvb": {},
    "vit_7b_patch16_dinov3": {"embed_dim": 256, "num_heads": 2},
    "vit_base_patch16_lingbot": {},
    "eva02_tiny_patch14_224": {"patch_size": 8},
    "eva02_base_patch14_448": {"patch_size": 8},
    "eva02_base_patch16_clip_224": {},
    "eva_giant_patch14_224": {"patch_size": 8, "embed_dim": 176, "num_heads": 2},
    "vit_pe_core_base_patch16_224": {},
    "vit_pe_core_gigantic_patch14_448": {"patch_size": 8, "embed_dim": 192, "num_heads": 2},
    "vit_pe_lang_large_patch14_448": {"patch_size": 8},
    "vit_pe_spatial_tiny_patch16_512": {},
    "beit_base_patch16_224": {},
    "beitv2_large_patch16_224": {},
    "beit3_base_patch16_224": {},
    "aimv2_large_patch14_224": {"patch_size": 8, "embed_dim": 256, "num_heads": 2},
    "vit_base_patch16_rope_224": {},
    "vit_base_patch16_rope_ape_224": {},
    "vit_base_patch16_rope_mixed_224": {},
    "vit_small_patch16_rope_mixed_ape_224": {},
    "vit_base_patch16_rope_reg1_gap_256": {},
    "vit_mediumd_patch16_rope_reg1_gap_256": {},
    "vit_intern300m_patch14_448": {"patch_size": 8},
    "vit_so150m2_patch16_reg1_gap_256": {},
    "vit_base_patch16_224_miil": {},
    "test_vit3": {},
    "test_vit4": {},
}  # fmt: skip
WIDTHS = {"embed_dim": 96, "num_heads": 3, "depth": 2}


def of_timm(folder: Path, name: str, **arguments: Any) -> nn.Module:
    """timm's model as it writes it: weights, and a configuration with the arguments that differ from the name's."""
    kept = dict(WIDTHS) | arguments
    classes = kept.pop("num_classes", 5)
    theirs = stirred(timm.create_model(name, num_classes=classes, **kept))
    timm.models.save_for_hf(theirs, folder, model_args=kept, safe_serialization=True)
    return theirs


@pytest.mark.parametrize("size", [(32, 32), (32, 48)], ids=["square", "not square"])
@pytest.mark.parametrize("name", TIMM)
def test_timm(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    patch = TIMM[name].get("patch_size", 32 if "patch32" in name else 16)
    size = (size[0] * patch // 8, size[1] * patch // 8)
    theirs = of_timm(tmp_path, name, img_size=size, **TIMM[name])
    images = pixels(*size)
    description, ours = logits(tmp_path, images)
    assert_same(ours, theirs(images).detach())
    assert tuple(description.model.img_size) == size
    counted = sum(p.numel() for p in theirs.parameters())
    assert description.model.cost().parameters == counted


# --- transformers ------------------------------------------------------------------------------------------

TINY = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 8}
CLIP, SIGLIP, SIGLIP2 = (f"{name}VisionConfig" for name in ("CLIP", "Siglip", "Siglip2"))

TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    # what it is: its class and configuration, what of its output vit computes
    "clip": ("CLIPVisionModel", CLIP, {}, "pooler_output"),
    "clip, erf": ("CLIPVisionModel", CLIP, {"hidden_act": "gelu"}, "pooler_output"),
    "clip, heads of 80": ("CLIPVisionModel", CLIP, {"hidden_size": 160, "num_attention_heads": 2}, "pooler_output"),
    "clip, projected": ("CLIPVisionModelWithProjection", CLIP, {"projection_dim": 40}, "image_embeds"),
    "clip, classified": ("CLIPForImageClassification", "CLIPConfig", {}, "logits"),
    "clip, two towers": ("CLIPModel", "CLIPConfig", {}, ""),
    "siglip": ("SiglipVisionModel", SIGLIP, {}, "pooler_output"),
    "siglip, erf": ("SiglipVisionModel", SIGLIP, {"hidden_act": "gelu"}, "pooler_output"),
    "siglip, classified": ("SiglipForImageClassification", "SiglipConfig", {}, "logits"),
    "siglip, two towers": ("SiglipModel", "SiglipConfig", {}, ""),
    "siglip 2": ("Siglip2VisionModel", SIGLIP2, {"num_patches": 16}, "pooler_output"),
    "siglip 2, classified": ("Siglip2ForImageClassification", "Siglip2Config", {"num_patches": 16}, "logits"),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 4}, "pooler_output"),
    "dinov3, gated": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu", "rope_theta": 50.0},
        "pooler_output",
    ),
    "dinov3, no register, every bias": ("DINOv3ViTModel", "DINOv3ViTConfig", {"key_bias": True}, "pooler_output"),
    "dinov2, gated": ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True}, "pooler_output"),
    "beit": ("BeitForImageClassification", "BeitConfig", {"use_relative_position_bias": True}, "logits"),
    "beit, absolute": ("BeitForImageClassification", "BeitConfig", {"use_absolute_position_embeddings": True}, "logits"),
    "data2vec": (
        "Data2VecVisionForImageClassification",
        "Data2VecVisionConfig",
        {"use_relative_position_bias": True},
        "logits",
    ),
    "aimv2": ("Aimv2VisionModel", "Aimv2VisionConfig", {"use_head": False}, "last_hidden_state"),
    "ijepa": ("IJepaForImageClassification", "IJepaConfig", {}, "logits"),
}  # fmt: skip


def of_transformers(folder: Path, name: str, **more: Any) -> nn.Module:
    """A model as transformers writes it."""
    cls, config, arguments, _ = TRANSFORMERS[name]
    kept = TINY | {"image_size": 32} | arguments | more
    kept = {key: value for key, value in kept.items() if not (cls.startswith("Siglip2") and key == "image_size")}
    if config in ("CLIPConfig", "SiglipConfig", "Siglip2Config"):
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        built = getattr(transformers, config)(vision_config=kept, text_config=text | {"vocab_size": 99})
        built.num_labels = 5
    else:
        extra = {"num_labels": 5} if "Classification" in cls else {}
        kept = {key: value for key, value in kept.items() if not (cls == "Dinov2Model" and key == "intermediate_size")}
        built = getattr(transformers, config)(**kept, **extra)
    theirs = stirred(getattr(transformers, cls)(built))
    theirs.save_pretrained(folder)
    return theirs


def computed_by_transformers(theirs: nn.Module, name: str, images: Tensor) -> Tensor:
    """What vit computes of a model, by its own code."""
    cls, _, _, what = TRANSFORMERS[name]
    if cls.startswith("Siglip2"):
        rows, columns = images.shape[2] // 8, images.shape[3] // 8
        patches = images.view(len(images), 3, rows, 8, columns, 8).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        mask = torch.ones(len(images), rows * columns)
        shapes = torch.tensor([[rows, columns]] * len(images))
        found = theirs(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)
    elif not what:
        found = theirs.vision_model(images)
        if cls == "CLIPModel":
            return theirs.visual_projection(found.pooler_output)
        return found.pooler_output
    else:
        found = theirs(pixel_values=images)
    result = getattr(found, what)
    return result.mean(dim=1) if what == "last_hidden_state" else result


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(tmp_path: Path, name: str) -> None:
    theirs = of_transformers(tmp_path, name)
    images = pixels(32, 32)
    _, ours = logits(tmp_path, images)
    with torch.no_grad():
        assert_same(ours, computed_by_transformers(theirs, name, images))
