"""The layouts of image towers that were trained with text: CLIP, SigLIP and SigLIP 2, Perception Encoder."""

from __future__ import annotations

from dataclasses import replace

from vitcli.config import EvalConfig
from vitcli.weights.layout import Layout
from vitcli.weights.layout_parts import CLIP_PIXELS

_SQUARE = EvalConfig(crop=1.0, resize="square")  # pixels in -1…1
_TEXT = {
    "text_model.*": "the text encoder's",
    "text_projection.*": "the text encoder's",
    "logit_scale": "of training",
    "logit_bias": "of training",
    "*position_ids": "row numbers",
}

# --- as openai/CLIP and open_clip write them -----------------------------------------------------------------

_RESBLOCKS = {
    f"transformer.resblocks.{{i}}.{key}": f"blocks.{{i}}.{to}"
    for key, to in {
        "ln_1.{p}": "norm1.{p}",
        "attn.in_proj_{p}": "attn.qkv.{p}",
        "attn.out_proj.{p}": "attn.proj.{p}",
        "ls_1.gamma": "ls1.gamma",
        "ln_2.{p}": "norm2.{p}",
        "mlp.c_fc.{p}": "mlp.fc1.{p}",
        "mlp.c_proj.{p}": "mlp.fc2.{p}",
        "ls_2.gamma": "ls2.gamma",
    }.items()
}
_TOWER = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1.weight": "patch_embed.proj.weight",
    "ln_pre.{p}": "norm_pre.{p}",
    **_RESBLOCKS,
    "ln_post.{p}": "norm.{p}",
    "proj": "head.weight@transpose",
}
_BLOCK = "transformer.resblocks.{i}.ln_1.weight|transformer.resblocks.{i}.ln_2.weight"
CLIP_HEADS = {768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}

OPEN_CLIP = Layout(
    name="CLIP",  # openai/CLIP clip/model.py, mlfoundations/open_clip src/open_clip/transformer.py
    markers=("ln_pre.weight", "ln_pre.bias"),
    also=("ln_post.weight|ln_post.bias", _BLOCK),
    table=_TOWER,
    anchor="conv1.weight",
    norm_eps=1e-5,
    gelu="",
    facts={"rope": "none", "pool": "cls"},
    heads=CLIP_HEADS,
    projects=True,
    strict=True,
    posemb="bicubic-antialias",
    eval=CLIP_PIXELS,
)

PE = Layout(
    name="Perception Encoder",  # facebookresearch/perception_models core/vision_encoder/pe.py
    markers=("attn_pool.probe", "attn_pool.attn.in_proj_weight"),
    also=(_BLOCK,),
    table=_TOWER
    | {
        "attn_pool.probe": "attn_pool.latent",
        "attn_pool.attn.in_proj_weight": "attn_pool.q.weight@q|attn_pool.kv.weight@kv",
        "attn_pool.attn.in_proj_bias": "attn_pool.q.bias@q|attn_pool.kv.bias@kv",
        "attn_pool.attn.out_proj.{p}": "attn_pool.proj.{p}",
        "attn_pool.layernorm.{p}": "attn_pool.norm.{p}",
        "attn_pool.mlp.c_fc.{p}": "attn_pool.mlp.fc1.{p}",
        "attn_pool.mlp.c_proj.{p}": "attn_pool.mlp.fc2.{p}",
    },
    dropped={"*rope.freqs*": "made of the grid", "*.freqs": "made of the grid"},
    anchor="conv1.weight",
    norm_eps=1e-5,
    facts={"rope": "index", "rope_order": "xy", "rope_offset": "cls", "pool_heads": 8, "pool_prefix": True},
    heads={192: 3, 384: 6, 768: 12, 1024: 16, 1536: 16},
    projects=True,
    strict=True,
    posemb="bilinear",
    eval=_SQUARE,
)
PE_BARE = replace(
    PE,
    markers=("ln_pre.weight", "ln_pre.bias"),
    without=("ln_post.weight", "ln_post.bias"),
    facts={"rope": "index", "rope_order": "xy", "rope_offset": "cls", "pool": "mean"},  # its authors' has none; timm's
)

# --- as transformers writes them -----------------------------------------------------------------------------

_ENCODER = {
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight@pixels",  # of SigLIP 2 NaFlex rows of pixels
    "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
    "embeddings.position_embedding.weight": "pos_embed",
    "encoder.layers.{i}.layer_norm1.{p}": "blocks.{i}.norm1.{p}",
    "encoder.layers.{i}.self_attn.q_proj.{p}": "blocks.{i}.attn.qkv.{p}[q",
    "encoder.layers.{i}.self_attn.k_proj.{p}": "blocks.{i}.attn.qkv.{p}[k",
    "encoder.layers.{i}.self_attn.v_proj.{p}": "blocks.{i}.attn.qkv.{p}[v",
    "encoder.layers.{i}.self_attn.out_proj.{p}": "blocks.{i}.attn.proj.{p}",
    "encoder.layers.{i}.layer_norm2.{p}": "blocks.{i}.norm2.{p}",
    "encoder.layers.{i}.mlp.fc1.{p}": "blocks.{i}.mlp.fc1.{p}",
    "encoder.layers.{i}.mlp.fc2.{p}": "blocks.{i}.mlp.fc2.{p}",
    "post_layernorm.{p}": "norm.{p}",
    "classifier.{p}": "head.{p}",
}
_ANCHOR = "embeddings.patch_embedding.weight"

HF_CLIP = Layout(
    name="transformers CLIP",  # models/clip/modeling_clip.py
    markers=("pre_layrnorm.weight", "pre_layrnorm.bias", "embeddings.class_embedding"),
    table={"visual_projection.weight": "head.weight"}
    | _ENCODER
    | {"embeddings.class_embedding": "cls_token", "pre_layrnorm.{p}": "norm_pre.{p}"},
    dropped=_TEXT,
    prefixes=("vision_model.",),
    anchor=_ANCHOR,
    norm_eps=1e-5,
    gelu="",
    facts={"rope": "none", "pool": "cls"},
    heads=CLIP_HEADS,
    projects=True,
    strict=True,
    eval=CLIP_PIXELS,
)
HF_CLIP_CLASSIFIER = replace(
    HF_CLIP,
    also=("classifier.weight|classifier.bias",),
    table={key: to for key, to in HF_CLIP.table.items() if not key.startswith(("post_layernorm", "visual_projection"))},
    dropped=_TEXT | {"post_layernorm.*": "a norm that its classifier does not read"},
    facts={"rope": "none", "pool": "mean"},
)

HF_SIGLIP = Layout(
    name="transformers SigLIP vision encoder",  # models/siglip: what export writes for models without a class token
    markers=(
        "embeddings.patch_embedding.weight",
        "embeddings.patch_embedding.bias",
        "encoder.layers.{i}.layer_norm1.weight",
    ),
    table=_ENCODER,
    dropped=_TEXT | {"head.*": "pooling that its classifier does not read"},
    prefixes=("vision_model.",),
    anchor=_ANCHOR,
    gelu="tanh",
    fixed=False,
)
HF_SIGLIP_POOLED = replace(
    HF_SIGLIP,
    name="transformers SigLIP",
    markers=("head.probe", "head.attention.in_proj_weight", "head.layernorm.weight"),
    without=("classifier.weight", "classifier.bias"),
    table=_ENCODER
    | {
        "head.probe": "attn_pool.latent",
        "head.attention.in_proj_weight": "attn_pool.q.weight@q|attn_pool.kv.weight@kv",
        "head.attention.in_proj_bias": "attn_pool.q.bias@q|attn_pool.kv.bias@kv",
        "head.attention.out_proj.{p}": "attn_pool.proj.{p}",
        "head.layernorm.{p}": "attn_pool.norm.{p}",
        "head.mlp.fc1.{p}": "attn_pool.mlp.fc1.{p}",
        "head.mlp.fc2.{p}": "attn_pool.mlp.fc2.{p}",
    },
    dropped=_TEXT,
    eval=_SQUARE,
)
