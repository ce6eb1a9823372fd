"""The checkpoints that people use today: the same logits as timm and transformers, with weights copied from their objects."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from vitcli.errors import CheckpointError
from vitcli.weights.asked import loaded
from vitcli.weights.checkpoint import load, model_with
from vitcli.weights.describe import Description, describe

pytest.importorskip("torchvision_shim", reason="timm and transformers import torchvision")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

from weights.test_families import stirred  # noqa: E402

TOLERANCE = 2e-5  # of the logits' spread, float32


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


# --- as their authors wrote them ---------------------------------------------------------------------------

_TOWER = [
    (r"^patch_embed\.proj\.weight$", "conv1.weight"),
    (r"^pos_embed$", "positional_embedding"),
    (r"^cls_token$", "class_embedding"),
    (r"^norm_pre\.", "ln_pre."),
    (r"^norm\.", "ln_post."),
    (r"^blocks\.", "transformer.resblocks."),
    (r"\.norm(\d)\.", r".ln_\1."),
    (r"\.gamma_(\d)$", r".ls_\1.gamma"),
    (r"\.attn\.qkv\.", ".attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"^attn_pool\.latent$", "attn_pool.probe"),
    (r"^attn_pool\.proj\.", "attn_pool.attn.out_proj."),
    (r"^attn_pool\.norm\.", "attn_pool.layernorm."),
]
_EVA = [
    (r"\.attn\.q_proj\.bias$", ".attn.q_bias"),
    (r"\.attn\.v_proj\.bias$", ".attn.v_bias"),
    (r"\.attn\.norm\.", ".attn.inner_attn_ln."),
    (r"\.mlp\.norm\.", ".mlp.ffn_ln."),
    (r"\.mlp\.fc1_g\.", ".mlp.w1."),
    (r"\.mlp\.fc1_x\.", ".mlp.w2."),
    (r"(blocks.*)\.mlp\.fc2\.", r"\1.mlp.w3."),
]
_DINOV3 = [
    (r"^reg_token$", "storage_tokens"),
    (r"\.gamma_(\d)$", r".ls\1.gamma"),
    (r"\.mlp\.fc1_g\.", ".mlp.w1."),
    (r"\.mlp\.fc1_x\.", ".mlp.w2."),
]
_AIM = [
    (r"^patch_embed\.", "preprocessor.patchifier."),
    (r"^pos_embed$", "preprocessor.pos_embed"),
    (r"^blocks\.", "trunk.blocks."),
    (r"^norm\.", "trunk.post_trunk_norm."),
    (r"\.norm(\d)\.", r".norm_\1."),
    (r"\.mlp\.fc1_g\.", ".mlp.fc1."),
    (r"\.mlp\.fc1_x\.", ".mlp.fc3."),
]


def authors(state: dict[str, Tensor], rules: list[tuple[str, str]], prefix: str = "") -> dict[str, Tensor]:
    """timm's arrays under the names of a family's own code, as that code has them."""
    written = {}
    for key, tensor in state.items():
        name = key
        for pattern, to in rules:
            name = re.sub(pattern, to, name)
        written[prefix + name] = tensor.squeeze() if rules is _TOWER and key in ("pos_embed", "cls_token") else tensor
    if rules is _TOWER:
        head = written.pop(f"{prefix}head.weight", None)
        written.pop(f"{prefix}head.bias", None)
        if head is not None:
            written[f"{prefix}proj"] = head.t().contiguous()
        for kind in ("weight", "bias"):
            parts = [written.pop(f"{prefix}attn_pool.{x}.{kind}", None) for x in ("q", "kv")]
            if parts[0] is not None:
                written[f"{prefix}attn_pool.attn.in_proj_{kind}"] = torch.cat(parts)
        pools = {k: k.replace(".mlp.fc1.", ".mlp.c_fc.").replace(".mlp.fc2.", ".mlp.c_proj.") for k in written}
        written = {pools[key]: tensor for key, tensor in written.items()}
    if rules is _DINOV3:
        gated = any(".mlp.w1." in key for key in written)
        written = {re.sub(r"\.mlp\.fc2\.", ".mlp.w3." if gated else ".mlp.fc2.", k): t for k, t in written.items()}
        for key in [key for key in written if key.endswith("q_bias")]:
            q, v = written.pop(key), written.pop(key.replace("q_bias", "v_bias"))
            stem = key.removesuffix("q_bias")
            written[f"{stem}qkv.bias"] = torch.cat(
                [q, torch.full_like(q, 7.0), v]
            )  # of keys, which the mask leaves out
            written[f"{stem}qkv.bias_mask"] = torch.cat([torch.ones_like(q), torch.zeros_like(q), torch.ones_like(q)])
        written |= {"mask_token": torch.randn(1, 96), "rope_embed.periods": torch.ones(8)}
    return written


AUTHORS: dict[str, tuple[str, list[tuple[str, str]], str, dict[str, Any], dict[str, Any]]] = {
    # what it is: timm's name of the same, the names, a prefix, what differs in timm's arguments, what has to be said
    "CLIP, quick": (
        "vit_base_patch16_clip_quickgelu_224", _TOWER, "visual.", {}, {"model.gelu": "quick", "model.heads": 3},
    ),
    "CLIP, erf, wrapped": (
        "vit_base_patch16_clip_224", _TOWER, "module.visual.", {}, {"model.gelu": "erf", "model.heads": 3},
    ),
    "Perception Encoder": (
        "vit_pe_core_base_patch16_224", _TOWER, "visual.", {"num_heads": 8, "attn_pool_num_heads": 8}, {"model.heads": 8},
    ),
    "Perception Encoder, spatial": (
        "vit_pe_spatial_base_patch16_512", _TOWER, "", {"num_classes": 0}, {"model.heads": 3},
    ),
    "EVA02": ("eva02_base_patch14_224", _EVA, "", {}, {"model.heads": 3}),
    "EVA02-CLIP": ("eva02_base_patch16_clip_224", _EVA, "visual.", {}, {"model.heads": 3}),
    "DINOv3": ("vit_small_patch16_dinov3_qkvb", _DINOV3, "", {"num_classes": 0, "global_pool": "token"}, {"model.heads": 3}),
    "DINOv3, gated": (
        "vit_small_plus_patch16_dinov3_qkvb", _DINOV3, "", {"num_classes": 0, "global_pool": "token"}, {"model.heads": 3},
    ),
    "AIMv2": ("aimv2_large_patch14_224", _AIM, "", {"num_classes": 0}, {"model.heads": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", AUTHORS)
def test_authors(tmp_path: Path, name: str) -> None:
    """timm's own converter reads the same file, which shows that the names are those of the authors."""
    architecture, rules, prefix, changes, said = AUTHORS[name]
    kept = WIDTHS | {"img_size": 128, "patch_size": 8, "num_classes": 5} | changes
    if architecture.startswith("vit_pe") or architecture.startswith("eva02"):
        kept["ref_feat_shape"] = (16, 16)
    theirs = stirred(timm.create_model(architecture, **kept))
    if "head.bias" in theirs.state_dict() and rules is _TOWER:
        torch.nn.init.zeros_(theirs.head.bias)
    written = authors(theirs.state_dict(), rules, prefix)
    converter = timm.models.eva if type(theirs).__name__ == "Eva" else timm.models.vision_transformer
    fresh = timm.create_model(architecture, **kept).eval()
    fresh.load_state_dict(converter.checkpoint_filter_fn(dict(written), fresh))
    images = pixels(128, 128)
    with torch.no_grad():
        assert_same(fresh(images), theirs(images))
    torch.save(written, tmp_path / "w.pth")
    if said:
        with pytest.raises(CheckpointError, match="heads"):
            describe(tmp_path / "w.pth")
    description, model = loaded(str(tmp_path / "w.pth"), overrides=said)
    with torch.no_grad():
        ours = model(images) if description.model.classes else model.features(images)
        assert_same(ours, theirs(images))


def test_open_clip_s_configuration_tells_the_activation(tmp_path: Path) -> None:
    results = {}
    for quick in (True, False):
        folder = tmp_path / str(quick)
        folder.mkdir()
        name = "vit_base_patch16_clip_quickgelu_224" if quick else "vit_base_patch16_clip_224"
        theirs = stirred(timm.create_model(name, **WIDTHS, img_size=64, patch_size=8, num_classes=5))
        torch.nn.init.zeros_(theirs.head.bias)
        state = authors(theirs.state_dict(), _TOWER, "visual.") | {"logit_scale": torch.ones(())}
        safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
        vision = {"image_size": 64, "width": 96, "head_width": 32, "layers": 2, "patch_size": 8}
        config = {"embed_dim": 5, "vision_cfg": vision, **({"quick_gelu": True} if quick else {})}
        pixel = {"mean": [0.1] * 3, "std": [0.2] * 3, "resize_mode": "squash", "interpolation": "bicubic"}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": pixel}))
        images = pixels(64, 64)
        description, ours = logits(folder / "open_clip_model.safetensors", images)
        assert_same(ours, theirs(images).detach())
        assert (description.eval.mean, description.eval.resize) == ((0.1, 0.1, 0.1), "square")
        results[quick] = ours
    assert not torch.allclose(results[True], results[False], atol=1e-4)


def test_big_vision_s_pooling_by_attention(tmp_path: Path) -> None:
    """timm loads the same arrays."""
    theirs = stirred(
        timm.create_model("vit_base_patch16_siglip_224", **WIDTHS, img_size=64, patch_size=8, act_layer="gelu_tanh")
    )
    np.savez(tmp_path / "siglip.npz", **big_vision_arrays(theirs.state_dict(), 3))
    fresh = timm.create_model(
        "vit_base_patch16_siglip_224", **WIDTHS, img_size=64, patch_size=8, act_layer="gelu_tanh"
    ).eval()
    fresh.load_pretrained(str(tmp_path / "siglip.npz"))
    images = pixels(64, 64)
    with torch.no_grad():
        assert_same(fresh(images), theirs(images))
    _, ours = logits(tmp_path / "siglip.npz", images)
    assert_same(ours, theirs(images).detach())


def big_vision_arrays(state: dict[str, Tensor], heads: int) -> dict[str, np.ndarray]:
    """As google-research/big_vision models/vit.py names them."""
    found: dict[str, Tensor] = {
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "MAPHead_0/probe": state["attn_pool.latent"],
        "MAPHead_0/LayerNorm_0/scale": state["attn_pool.norm.weight"],
        "MAPHead_0/LayerNorm_0/bias": state["attn_pool.norm.bias"],
    }

    def attention(place: str, parts: dict[str, tuple[Tensor, Tensor]], out: tuple[Tensor, Tensor]) -> None:
        for name, (weight, bias) in parts.items():
            found[f"{place}/{name}/kernel"] = weight.t().unflatten(1, (heads, -1))
            found[f"{place}/{name}/bias"] = bias.unflatten(0, (heads, -1))
        found[f"{place}/out/kernel"] = out[0].t().unflatten(0, (heads, -1))
        found[f"{place}/out/bias"] = out[1]

    def mlp(place: str, stem: str) -> None:
        for i in (0, 1):
            found[f"{place}/Dense_{i}/kernel"] = state[f"{stem}.fc{i + 1}.weight"].t()
            found[f"{place}/Dense_{i}/bias"] = state[f"{stem}.fc{i + 1}.bias"]

    for i in range(2):
        ours, theirs = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for n in (0, 1):
            found[f"{theirs}/LayerNorm_{n}/scale"] = state[f"{ours}.norm{n + 1}.weight"]
            found[f"{theirs}/LayerNorm_{n}/bias"] = state[f"{ours}.norm{n + 1}.bias"]
        three = zip(state[f"{ours}.attn.qkv.weight"].chunk(3), state[f"{ours}.attn.qkv.bias"].chunk(3), strict=True)
        attention(
            f"{theirs}/MultiHeadDotProductAttention_0",
            dict(zip(("query", "key", "value"), three, strict=True)),
            (state[f"{ours}.attn.proj.weight"], state[f"{ours}.attn.proj.bias"]),
        )
        mlp(f"{theirs}/MlpBlock_0", f"{ours}.mlp")
    two = zip(state["attn_pool.kv.weight"].chunk(2), state["attn_pool.kv.bias"].chunk(2), strict=True)
    parts = {"query": (state["attn_pool.q.weight"], state["attn_pool.q.bias"])} | dict(
        zip(("key", "value"), two, strict=True)
    )
    attention(
        "MAPHead_0/MultiHeadDotProductAttention_0",
        parts,
        (state["attn_pool.proj.weight"], state["attn_pool.proj.bias"]),
    )
    mlp("MAPHead_0/MlpBlock_0", "attn_pool.mlp")
    return {key: tensor.numpy() for key, tensor in found.items()}


# --- what arrays do not tell -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("clip", {"hidden_act": "gelu"}),
        ("clip", {"num_attention_heads": 2}),
        ("siglip", {"hidden_act": "gelu"}),
        ("siglip", {"num_attention_heads": 6}),
        ("dinov3", {"rope_theta": 20.0}),
        ("dinov3", {"num_attention_heads": 6}),
        ("clip", {"layer_norm_eps": 0.1}),
    ],
    ids=str,
)
def test_the_same_arrays_with_another_configuration(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    """Give each its own result, or, where there is none, an error."""
    images, found = pixels(32, 32), []
    theirs = of_transformers(tmp_path / "first", name)
    for place, more in (("first", {}), ("second", changes)):
        other = of_transformers(tmp_path / place, name, **more)
        other.load_state_dict(theirs.state_dict())
        other.save_pretrained(tmp_path / place)
        _, ours = logits(tmp_path / place, images)
        with torch.no_grad():
            assert_same(ours, computed_by_transformers(other, name, images))
        found.append(ours)
    assert not torch.allclose(*found, rtol=0, atol=1e-5)
    (tmp_path / "second" / "config.json").unlink()
    if not name.startswith("siglip"):  # of which there is one activation by its own code, which is said to be a guess
        with pytest.raises(CheckpointError, match=r"model\.heads"):
            describe(tmp_path / "second" / "model.safetensors")


@pytest.mark.parametrize("architecture", ["vit_base_patch16_clip_224", "vit_base_patch16_clip_quickgelu_224"])
def test_a_bare_file_of_timm_goes_by_its_name_or_not_at_all(tmp_path: Path, architecture: str) -> None:
    theirs = stirred(timm.create_model(architecture, img_size=64, depth=12, num_classes=5))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / f"{architecture}.openai.safetensors")
    images = pixels(64, 64)
    description, ours = logits(tmp_path / f"{architecture}.openai.safetensors", images)
    assert_same(ours, theirs(images).detach())
    assert description.model.gelu == ("quick" if "quick" in architecture else "erf")
    assert ("quick" in architecture) != any("trained with quick GELU" in note for note in description.notes)
    (tmp_path / f"{architecture}.openai.safetensors").rename(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"norm_pre\..*model\.gelu"):
        describe(tmp_path / "w.safetensors")


def test_what_timm_has_and_vit_has_not_is_refused_by_its_argument(tmp_path: Path) -> None:
    for name, argument in (
        ("vit_base_patch16_sapiens2", "num_kv_heads"),
        ("vit_base_patch16_xp_224", "block_fn"),
        ("eva02_enormous_patch14_clip_224", "use_post_norm"),
    ):
        with torch.device("meta"):
            model = timm.create_model(name)
        state = {
            key: torch.zeros(1).expand(tensor.shape).contiguous()
            for key, tensor in model.state_dict().items()
            if tensor.numel() < 10**5
        }
        folder = tmp_path / name
        folder.mkdir()
        safetensors.torch.save_file(state, folder / "model.safetensors")
        config = {"architecture": name, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=rf"{argument}|does not read"):
            describe(folder / "model.safetensors")


def vit5_state(width: int, heads: int, depth: int, grid: int, patch: int, classes: int) -> dict[str, Tensor]:
    """As wangf3014/ViT-5 models_vit5.py names them, with its buffers."""
    generator = torch.Generator().manual_seed(5)
    d = width // heads
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "reg_token": (1, 4, width),
        "pos_embed": (1, grid * grid, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    for i in range(depth):
        for name, shape in {
            "norm1.weight": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.q_norm.weight": (d,),
            "attn.k_norm.weight": (d,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "gamma_1": (width,),
            "norm2.weight": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
            "gamma_2": (width,),
            "attn.rope.freqs": (d // 4,),
            "attn.rope_reg.freqs": (d // 4,),
        }.items():
            shapes[f"blocks.{i}.{name}"] = shape
    scale = {name: 1.0 if "norm" in name or "gamma" in name else 0.1 for name in shapes}
    return {
        name: scale[name] * (torch.randn(shape, generator=generator) * 0.5 + (scale[name] == 1.0))
        for name, shape in shapes.items()
    }


def vit5_logits(state: dict[str, Tensor], images: Tensor, heads: int, patch: int) -> Tensor:
    """Class token, patches, registers, by the equations of its paper one after the other."""
    s = {key: tensor.double() for key, tensor in state.items()}
    width = s["cls_token"].shape[2]
    d = width // heads
    x = torch.nn.functional.conv2d(images.double(), s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], patch)
    grid = x.shape[2]
    x = x.flatten(2).transpose(1, 2) + s["pos_embed"]
    batch = len(x)
    x = torch.cat([s["cls_token"].expand(batch, -1, -1), x, s["reg_token"].expand(batch, -1, -1)], dim=1)

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def complex_turn(x: Tensor, side: int, theta: float) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (d // 2, 2)).contiguous())
        f = theta ** -(torch.arange(d // 4, dtype=torch.float64) / (d // 4))
        row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        angles = torch.cat([row.reshape(-1, 1) * f, column.reshape(-1, 1) * f], dim=1)
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    def placed(x: Tensor) -> Tensor:
        patches = complex_turn(x[:, :, 1:-4], grid, 10_000.0)
        return torch.cat([x[:, :, :1], patches, complex_turn(x[:, :, -4:], 2, 100.0)], dim=2)

    for i in range(sum(key.endswith("gamma_1") for key in s)):
        b = {key.removeprefix(f"blocks.{i}."): tensor for key, tensor in s.items() if key.startswith(f"blocks.{i}.")}
        q, k, v = (
            (rms(x, b["norm1.weight"]) @ b["attn.qkv.weight"].t()).unflatten(2, (3, heads, d)).permute(2, 0, 3, 1, 4)
        )
        q, k = placed(rms(q, b["attn.q_norm.weight"])), placed(rms(k, b["attn.k_norm.weight"]))
        mixed = ((q @ k.transpose(2, 3)) / d**0.5).softmax(-1) @ v
        x = x + b["gamma_1"] * (mixed.transpose(1, 2).flatten(2) @ b["attn.proj.weight"].t() + b["attn.proj.bias"])
        h = torch.nn.functional.gelu(rms(x, b["norm2.weight"]) @ b["mlp.fc1.weight"].t() + b["mlp.fc1.bias"])
        x = x + b["gamma_2"] * (h @ b["mlp.fc2.weight"].t() + b["mlp.fc2.bias"])
    return (rms(x, s["norm.weight"])[:, 0] @ s["head.weight"].t() + s["head.bias"]).float()


def test_vit_5(tmp_path: Path) -> None:
    state = vit5_state(96, 3, 2, 6, 8, 7)
    torch.save({"model": state}, tmp_path / "vit5.pth")
    images = pixels(48, 48)
    description, model = loaded(str(tmp_path / "vit5.pth"), overrides={"model.heads": 3})
    with torch.no_grad():
        assert_same(model(images), vit5_logits(state, images, 3, 8))
    assert description.layout == "ViT-5"
    assert (description.model.rope_registers, description.model.rope_grid) == (100.0, (6, 6))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of timm's own interpolation
@pytest.mark.parametrize(("one", "other"), [((64, 64), (96, 96)), ((64, 64), (48, 64)), ((64, 96), (96, 64))])
def test_a_relative_bias_at_another_size_as_timm_has_it(
    tmp_path: Path, one: tuple[int, int], other: tuple[int, int]
) -> None:
    theirs = of_timm(tmp_path, "beit_base_patch16_224", img_size=one)
    _, model = loaded(str(tmp_path), other)
    theirs.set_input_size(img_size=other)
    images = pixels(*other)
    with torch.no_grad():
        assert_same(model(images), theirs(images))


@pytest.mark.parametrize("name", ["vit_huge_patch14_224", "vit_giant_patch14_224"])
def test_a_gated_mlp_that_a_configuration_cannot_say(tmp_path: Path, name: str) -> None:
    """As Virchow2 and UNI2-h lie on the hub: the MLP is a class, which their readers give in code."""
    kept = {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 2, "num_heads": 3, "init_values": 1e-5, "mlp_ratio": 5.3375,
            "reg_tokens": 4, "global_pool": ""}  # fmt: skip
    made = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    theirs = stirred(timm.create_model(name, num_classes=0, **kept, **made))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": name, "model_args": kept, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    images = pixels(64, 64)
    description, ours = logits(tmp_path, images)
    with torch.no_grad():
        assert_same(ours, theirs(images)[:, 0])
    assert description.model.gated and description.model.register_positions
    assert any("silu" in note for note in description.notes)
