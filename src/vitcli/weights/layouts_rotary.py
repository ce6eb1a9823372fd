"""The layouts of checkpoints with rotary positions, relative bias and gated MLPs: timm's further classes, DINOv3, EVA, BEiT, AIMv2, ViT-5."""

from __future__ import annotations

from dataclasses import replace

from vitcli.weights.layout import PLACELESS, UNREAD_POOL, VIT_NEEDS, Layout
from vitcli.weights.layout_parts import (
    CLIP_PIXELS,
    HALF,
    HF_ANCHOR,
    HF_BLOCK,
    HF_DROPPED,
    HF_EMBEDDINGS,
    IMAGENET,
    SAME,
)

_RMS = {"norm_kind": "rms"}

# --- timm's EVA, BEiT and ViT with more than the paper's parts -----------------------------------------------

_MORE = SAME | {
    "blocks.{i}.gamma_1": "blocks.{i}.ls1.gamma",
    "blocks.{i}.gamma_2": "blocks.{i}.ls2.gamma",
    "blocks.{i}.attn.q_bias": "blocks.{i}.attn.qkv.bias[q",
    "blocks.{i}.attn.v_bias": "blocks.{i}.attn.qkv.bias[v",
    **{f"blocks.{{i}}.attn.{x}_proj.{{p}}": f"blocks.{{i}}.attn.qkv.{{p}}[{x}" for x in "qkv"},
    "blocks.{i}.attn.relative_position_bias_table": "blocks.{i}.attn.relative_position_bias_table",
    "rel_pos_bias.relative_position_bias_table": "blocks.*.attn.relative_position_bias_table",
    "blocks.{i}.mlp.fc1_g.{p}": "blocks.{i}.mlp.fc1.{p}[g",
    "blocks.{i}.mlp.fc1_x.{p}": "blocks.{i}.mlp.fc1.{p}[x",
    "rope.freqs": "rope.freqs",
}
_BUFFERS = {
    "*relative_position_index": "row numbers",
    "*attn.k_bias": "zeros",
    "*rope.freqs_cos": "made of the grid",
    "*rope.freqs_sin": "made of the grid",
    "rope.pos_embed*": "made of the grid",
    "rope.bands": "made of the grid",
    "mask_token": "stands for masked patches in training",
    "lm_head.*": "of training",
}

TIMM_MORE = Layout(
    name="timm",
    markers=(
        "blocks.{i}.attn.q_bias",
        "blocks.{i}.attn.v_bias",
        "blocks.{i}.attn.q_proj.weight",
        "blocks.{i}.attn.k_proj.weight",
        "blocks.{i}.attn.relative_position_bias_table",
        "rel_pos_bias.relative_position_bias_table",
        "blocks.{i}.attn.norm.weight",
        "blocks.{i}.attn.q_norm.weight",
        "blocks.{i}.mlp.fc1_g.weight",
        "blocks.{i}.mlp.norm.weight",
        "norm_pre.weight",
        "norm_pre.bias",
        "attn_pool.latent",
        "attn_pool.q.weight",
        "patch_embed.norm.weight",
        "rope.freqs",
    ),
    without=("register_tokens", "storage_tokens"),
    table=_MORE,
    dropped=_BUFFERS,
    needed=PLACELESS,
    strict=True,
    fixed=False,
    posemb="bicubic-antialias",
    eval=replace(IMAGENET, crop=1.0),
)
TIMM_PLACED = replace(
    TIMM_MORE, markers=("blocks.{i}.gamma_1", "blocks.{i}.gamma_2"), without=("pos_embed", "storage_tokens")
)

# --- EVA02 ---------------------------------------------------------------------------------------------------

EVA = Layout(
    name="EVA02",  # baaivision/EVA EVA-02/asuka/modeling_finetune.py, EVA-CLIP/rei/eva_clip/eva_vit_model.py
    markers=(
        "blocks.{i}.attn.rope.freqs_cos",
        "rope.freqs_cos",
        "blocks.{i}.attn.inner_attn_ln.weight",
        "blocks.{i}.mlp.ffn_ln.weight",
    ),
    table=_MORE
    | {
        "blocks.{i}.attn.inner_attn_ln.{p}": "blocks.{i}.attn.norm.{p}",
        "blocks.{i}.mlp.ffn_ln.{p}": "blocks.{i}.mlp.norm.{p}",
        "blocks.{i}.mlp.w1.{p}": "blocks.{i}.mlp.fc1.{p}[g",
        "blocks.{i}.mlp.w2.{p}": "blocks.{i}.mlp.fc1.{p}[x",
        "blocks.{i}.mlp.w12.{p}": "blocks.{i}.mlp.fc1.{p}",
        "blocks.{i}.mlp.w3.{p}": "blocks.{i}.mlp.fc2.{p}",
    },
    dropped=_BUFFERS,
    needed=PLACELESS,
    gelu="silu",
    facts={"rope": "index", "rope_grid": (16, 16)},
    heads={192: 3, 384: 6, 768: 12, 1024: 16},
    strict=True,
    eval=CLIP_PIXELS,
)

# --- DINOv3 --------------------------------------------------------------------------------------------------

_DINOV3_FACTS = {"rope": "centred", "rope_theta": 100.0, "rope_layout": "half"}

DINOV3 = Layout(
    name="DINOv3",  # facebookresearch/dinov3 models/vision_transformer.py
    markers=("storage_tokens", "rope_embed.periods", "blocks.{i}.attn.qkv.bias_mask"),
    table=SAME
    | {
        "storage_tokens": "reg_token",
        "blocks.{i}.mlp.w1.{p}": "blocks.{i}.mlp.fc1.{p}[g",
        "blocks.{i}.mlp.w2.{p}": "blocks.{i}.mlp.fc1.{p}[x",
        "blocks.{i}.mlp.w3.{p}": "blocks.{i}.mlp.fc2.{p}",
    },
    dropped={
        "mask_token": "stands for masked patches in training",
        "rope_embed.periods": "made of the width",
        "blocks.{i}.attn.qkv.bias_mask": "leaves out the bias of keys",
        "local_cls_norm.*": "of training",
        "projectors.*": "of training",
    },
    needed=PLACELESS,
    norm_eps=1e-5,
    facts=_DINOV3_FACTS,
    heads={192: 3, 384: 6, 768: 12, 1024: 16, 1280: 20, 1536: 24, 4096: 32},
    strict=True,
    img_size=(256, 256),
    eval=replace(IMAGENET, crop=1.0, resize="square"),
)
DINOV3_MASKED = replace(
    DINOV3,
    also=("blocks.{i}.attn.qkv.bias_mask",),
    table={"blocks.{i}.attn.qkv.bias": "blocks.{i}.attn.qkv.bias@qv"} | dict(DINOV3.table),
)

HF_DINOV3 = Layout(
    name="transformers DINOv3",  # models/dinov3_vit/modeling_dinov3_vit.py
    markers=("layer.{i}.layer_scale1.lambda1", "layer.{i}.layer_scale2.lambda1"),
    also=("embeddings.register_tokens|embeddings.patch_embeddings.weight",),
    table={
        "embeddings.cls_token": "cls_token",
        "embeddings.register_tokens": "reg_token",
        "embeddings.patch_embeddings.{p}": "patch_embed.proj.{p}",
        **{
            f"layer.{{i}}.{key}": f"blocks.{{i}}.{to}"
            for key, to in {
                "norm1.{p}": "norm1.{p}",
                "attention.q_proj.{p}": "attn.qkv.{p}[q",
                "attention.k_proj.{p}": "attn.qkv.{p}[k",
                "attention.v_proj.{p}": "attn.qkv.{p}[v",
                "attention.o_proj.{p}": "attn.proj.{p}",
                "layer_scale1.lambda1": "ls1.gamma",
                "norm2.{p}": "norm2.{p}",
                "mlp.gate_proj.{p}": "mlp.fc1.{p}[g",
                "mlp.up_proj.{p}": "mlp.fc1.{p}[x",
                "mlp.down_proj.{p}": "mlp.fc2.{p}",
                "layer_scale2.lambda1": "ls2.gamma",
            }.items()
        },
        "norm.{p}": "norm.{p}",
    },
    dropped={"embeddings.mask_token": "stands for masked patches in training"},
    prefixes=("model.",),
    anchor="embeddings.patch_embeddings.weight",
    needed=PLACELESS,
    norm_eps=1e-5,
    facts=_DINOV3_FACTS,
    heads=DINOV3.heads,
    strict=True,
    img_size=(256, 256),
    eval=DINOV3.eval,
)

# --- BEiT ----------------------------------------------------------------------------------------------------

BEIT = Layout(
    name="transformers BEiT",  # models/beit/modeling_beit.py, models/data2vec/modeling_data2vec_vision.py
    markers=("encoder.layer.{i}.lambda_1", "encoder.layer.{i}.lambda_2"),
    table=HF_EMBEDDINGS
    | HF_BLOCK
    | {
        "encoder.layer.{i}.lambda_1": "blocks.{i}.ls1.gamma",
        "encoder.layer.{i}.lambda_2": "blocks.{i}.ls2.gamma",
        "encoder.layer.{i}.attention.attention.relative_position_bias.relative_position_bias_table": "blocks.{i}.attn.relative_position_bias_table",
        "pooler.layernorm.{p}": "fc_norm.{p}",
    },
    dropped=HF_DROPPED | {"*relative_position_index": "row numbers", "lm_head.*": "of training"},
    prefixes=("beit.", "data2vec_vision."),
    anchor=HF_ANCHOR,
    needed=PLACELESS,
    norm_eps=1e-12,
    heads={768: 12, 1024: 16},
    facts={"rope": "none"},
    strict=True,
    eval=HALF,
)

# --- AIMv2 ---------------------------------------------------------------------------------------------------

_AIM_HEADS = {1024: 8, 1536: 12, 2048: 16, 3072: 24}

AIMV2 = Layout(
    name="AIMv2",  # apple/ml-aim aim-v2/python/aim/v2/torch
    markers=("preprocessor.patchifier.proj.weight", "trunk.blocks.{i}.norm_1.weight"),
    table={
        "preprocessor.patchifier.proj.{p}": "patch_embed.proj.{p}",
        "preprocessor.patchifier.norm.{p}": "patch_embed.norm.{p}",
        "preprocessor.pos_embed": "pos_embed",
        "trunk.blocks.{i}.norm_1.{p}": "blocks.{i}.norm1.{p}",
        "trunk.blocks.{i}.attn.qkv.{p}": "blocks.{i}.attn.qkv.{p}",
        "trunk.blocks.{i}.attn.proj.{p}": "blocks.{i}.attn.proj.{p}",
        "trunk.blocks.{i}.norm_2.{p}": "blocks.{i}.norm2.{p}",
        "trunk.blocks.{i}.mlp.fc1.{p}": "blocks.{i}.mlp.fc1.{p}[g",
        "trunk.blocks.{i}.mlp.fc3.{p}": "blocks.{i}.mlp.fc1.{p}[x",
        "trunk.blocks.{i}.mlp.fc2.{p}": "blocks.{i}.mlp.fc2.{p}",
        "trunk.post_trunk_norm.{p}": "norm.{p}",
    },
    dropped={"head.*": UNREAD_POOL},
    anchor="preprocessor.patchifier.proj.weight",
    norm_eps=1e-5,
    gelu="silu",
    facts={"rope": "none"},
    heads=_AIM_HEADS,
    needed=(*VIT_NEEDS, "norm.weight", "patch_embed.norm.weight"),
    strict=True,
    eval=CLIP_PIXELS,
)
HF_AIMV2 = replace(
    AIMV2,
    name="transformers AIMv2",  # models/aimv2/modeling_aimv2.py
    markers=("encoder.layers.{i}.rms_norm1.weight", "encoder.layers.{i}.rms_norm2.weight"),
    table={
        "embeddings.patch_embed.{p}": "patch_embed.proj.{p}",
        "embeddings.rms_norm.{p}": "patch_embed.norm.{p}",
        "embeddings.position_embedding.weight": "pos_embed",
        "encoder.layers.{i}.rms_norm1.{p}": "blocks.{i}.norm1.{p}",
        **{f"encoder.layers.{{i}}.attention.{x}_proj.{{p}}": f"blocks.{{i}}.attn.qkv.{{p}}[{x}" for x in "qkv"},
        "encoder.layers.{i}.attention.out_proj.{p}": "blocks.{i}.attn.proj.{p}",
        "encoder.layers.{i}.rms_norm2.{p}": "blocks.{i}.norm2.{p}",
        "encoder.layers.{i}.ffn.gate_proj.{p}": "blocks.{i}.mlp.fc1.{p}[g",
        "encoder.layers.{i}.ffn.up_proj.{p}": "blocks.{i}.mlp.fc1.{p}[x",
        "encoder.layers.{i}.ffn.down_proj.{p}": "blocks.{i}.mlp.fc2.{p}",
        "rms_norm.{p}": "norm.{p}",
    },
    dropped=dict(AIMV2.dropped)
    | {
        "text_model.*": "the text encoder's",
        "*_projection.*": "to the space of text",
        "logit_scale": "of training",
        "*position_ids": "row numbers",
    },
    prefixes=("vision_model.",),
    anchor="embeddings.patch_embed.weight",
)

# --- ViT-5 ---------------------------------------------------------------------------------------------------

VIT5 = Layout(
    name="ViT-5",  # wangf3014/ViT-5 models_vit5.py
    markers=("blocks.{i}.attn.rope_reg.freqs*", "blocks.{i}.attn.rope.freqs*"),
    also=("reg_token", "blocks.{i}.attn.q_norm.weight"),
    table=_MORE,
    dropped={"blocks.{i}.attn.rope*": "made of the grid"},
    norm_eps=1e-6,
    facts={"rope": "index", "rope_registers": 100.0, "rope_grid": "own", "qk_norm": "rms"},
    heads={384: 6, 768: 12, 1024: 16},
    strict=True,
    eval=replace(IMAGENET, crop=1.0),
)
