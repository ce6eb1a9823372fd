"""The layouts of other tools' checkpoints as tables: how each is recognised, its keys, what its numbers mean.

One more is a Layout and a line in LAYOUTS. keys.py is what reads a file by them.
"""

from __future__ import annotations

import re
from dataclasses import replace

from vitcli.config import IMAGENET_MEAN, IMAGENET_STD, EvalConfig
from vitcli.weights import residual
from vitcli.weights.layout import Layout
from vitcli.weights.layout_parts import (
    HALF,
    HF_ANCHOR,
    HF_BLOCK,
    HF_DROPPED,
    HF_EMBEDDINGS,
    HF_NEW_BLOCK,
    IMAGENET,
    SAME,
)
from vitcli.weights.layouts_rotary import (
    AIMV2,
    BEIT,
    DINOV3,
    DINOV3_MASKED,
    EVA,
    HF_AIMV2,
    HF_DINOV3,
    TIMM_MORE,
    TIMM_PLACED,
    VIT5,
)
from vitcli.weights.layouts_towers import (
    HF_CLIP,
    HF_CLIP_CLASSIFIER,
    HF_SIGLIP,
    HF_SIGLIP_POOLED,
    OPEN_CLIP,
    PE,
    PE_BARE,
)

# --- the families ------------------------------------------------------------------------------------------

TIMM = Layout(
    name="timm",
    markers=("blocks.{i}.attn.qkv.weight", "patch_embed.proj.weight"),
    table=SAME | residual.TIMM_BELOW,
    fixed=False,
    eval=IMAGENET,
    keys={"group_eps": 1e-5, "weight_eps": 1e-8, "weight_eps_to": "variance"},
)

DEIT3 = Layout(
    name="DeiT-III",  # facebookresearch/deit models_v2.py
    markers=("blocks.{i}.gamma_1",),
    also=("pos_embed",),
    table=SAME | {"blocks.{i}.gamma_1": "blocks.{i}.ls1.gamma", "blocks.{i}.gamma_2": "blocks.{i}.ls2.gamma"},
    eval=replace(IMAGENET, crop=1.0),
)

MAE = Layout(
    name="MAE",  # facebookresearch/mae models_mae.py
    markers=("decoder_blocks.{i}.attn.qkv.weight",),
    table=SAME,
    dropped={
        "mask_token": "the decoder's",
        "decoder_*": "the decoder's",
    },
    eval=IMAGENET,
)

DINOV2 = Layout(
    name="DINOv2",  # facebookresearch/dinov2 models/vision_transformer.py
    markers=("mask_token", "register_tokens"),
    table=SAME
    | {
        "register_tokens": "reg_token",
        "blocks.{i}.mlp.w12.{p}": "blocks.{i}.mlp.fc1.{p}",
        "blocks.{i}.mlp.w3.{p}": "blocks.{i}.mlp.fc2.{p}",
    },
    dropped={"mask_token": "stands for masked patches in training"},
    eval=IMAGENET,
)

TRANSFORMERS_VIT = Layout(
    name="transformers ViT",  # huggingface/transformers models/vit/modeling_vit.py
    markers=("encoder.layer.{i}.layernorm_before.weight", "layers.{i}.layernorm_before.weight"),
    table=HF_EMBEDDINGS | HF_BLOCK | HF_NEW_BLOCK | {"pooler.dense.{p}": "pre_logits.fc.{p}"},
    dropped=HF_DROPPED,
    prefixes=("vit.", "ijepa."),
    anchor=HF_ANCHOR,
    fixed=False,
    norm_eps=1e-12,
    eval=replace(EvalConfig(), resize="square", interpolation="bilinear"),
)

TRANSFORMERS_DEIT = Layout(
    name="transformers DeiT",  # models/deit/modeling_deit.py
    markers=("embeddings.distillation_token",),
    table={
        "embeddings.distillation_token": "dist_token",
        "cls_classifier.{p}": "head.{p}",
        "distillation_classifier.{p}": "head_dist.{p}",
    }
    | HF_EMBEDDINGS
    | HF_BLOCK
    | HF_NEW_BLOCK,
    dropped=HF_DROPPED | {"pooler.dense.{p}": "a layer that no head reads"},
    prefixes=("deit.",),
    anchor=HF_ANCHOR,
    fixed=False,
    norm_eps=1e-12,
    eval=IMAGENET,
)

TRANSFORMERS_DINOV2 = Layout(
    name="transformers DINOv2",  # models/dinov2, models/dinov2_with_registers
    markers=("encoder.layer.{i}.layer_scale1.lambda1", "layers.{i}.layer_scale1.lambda1"),
    table=HF_EMBEDDINGS
    | {
        "embeddings.register_tokens": "reg_token",
        **{
            f"{stem}.{{i}}.{key}": target
            for stem in ("encoder.layer", "layers")
            for key, target in {
                "norm1.{p}": "blocks.{i}.norm1.{p}",
                "attention.attention.query.{p}": "blocks.{i}.attn.qkv.{p}[q",
                "attention.attention.key.{p}": "blocks.{i}.attn.qkv.{p}[k",
                "attention.attention.value.{p}": "blocks.{i}.attn.qkv.{p}[v",
                "attention.output.dense.{p}": "blocks.{i}.attn.proj.{p}",
                "attention.q_proj.{p}": "blocks.{i}.attn.qkv.{p}[q",
                "attention.k_proj.{p}": "blocks.{i}.attn.qkv.{p}[k",
                "attention.v_proj.{p}": "blocks.{i}.attn.qkv.{p}[v",
                "attention.o_proj.{p}": "blocks.{i}.attn.proj.{p}",
                "layer_scale1.lambda1": "blocks.{i}.ls1.gamma",
                "norm2.{p}": "blocks.{i}.norm2.{p}",
                "mlp.fc1.{p}": "blocks.{i}.mlp.fc1.{p}",
                "mlp.fc2.{p}": "blocks.{i}.mlp.fc2.{p}",
                "mlp.weights_in.{p}": "blocks.{i}.mlp.fc1.{p}",
                "mlp.weights_out.{p}": "blocks.{i}.mlp.fc2.{p}",
                "layer_scale2.lambda1": "blocks.{i}.ls2.gamma",
            }.items()
        },
    },
    dropped=HF_DROPPED,
    prefixes=("dinov2.", "dinov2_with_registers."),
    anchor=HF_ANCHOR,
    fixed=False,
    eval=IMAGENET,
)

TORCHVISION = Layout(
    name="torchvision",  # torchvision/models/vision_transformer.py
    markers=("encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight",),
    table={
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "conv_proj.{p}": "patch_embed.proj.{p}",
        "encoder.layers.encoder_layer_{i}.ln_1.{p}": "blocks.{i}.norm1.{p}",
        "encoder.layers.encoder_layer_{i}.self_attention.in_proj_{p}": "blocks.{i}.attn.qkv.{p}",
        "encoder.layers.encoder_layer_{i}.self_attention.out_proj.{p}": "blocks.{i}.attn.proj.{p}",
        "encoder.layers.encoder_layer_{i}.ln_2.{p}": "blocks.{i}.norm2.{p}",
        "encoder.layers.encoder_layer_{i}.mlp.0.{p}": "blocks.{i}.mlp.fc1.{p}",
        "encoder.layers.encoder_layer_{i}.mlp.3.{p}": "blocks.{i}.mlp.fc2.{p}",
        "encoder.layers.encoder_layer_{i}.mlp.linear_1.{p}": "blocks.{i}.mlp.fc1.{p}",
        "encoder.layers.encoder_layer_{i}.mlp.linear_2.{p}": "blocks.{i}.mlp.fc2.{p}",
        "encoder.ln.{p}": "norm.{p}",
        "heads.pre_logits.{p}": "pre_logits.fc.{p}",
        "heads.head.{p}": "head.{p}",
    },
    anchor="conv_proj.weight",
    eval=replace(IMAGENET, interpolation="bilinear"),
)


def _google(norm2: str, attention: str, mlp: str) -> dict[str, str]:
    """Flax's arrays; before Linen its modules were numbered in one count, so the second LayerNorm has the number 2."""
    block = "Transformer/encoderblock_{i}/"
    heads = {
        f"{block}{attention}/{name}/{what}": f"blocks.{{i}}.attn.qkv.{ours}[{name[0]}{op}"
        for name in ("query", "key", "value")
        for what, ours, op in (("kernel", "weight", "@heads_in"), ("bias", "bias", "@flat"))
    }
    return {
        "cls": "cls_token",
        "embedding/kernel": "patch_embed.proj.weight@hwio",
        "embedding/bias": "patch_embed.proj.bias",
        f"{block}LayerNorm_0/{{s}}": "blocks.{i}.norm1.{s}",
        **heads,
        f"{block}{attention}/out/kernel": "blocks.{i}.attn.proj.weight@heads_out",
        f"{block}{attention}/out/bias": "blocks.{i}.attn.proj.bias",
        f"{block}{norm2}/{{s}}": "blocks.{i}.norm2.{s}",
        f"{block}{mlp}/Dense_0/kernel": "blocks.{i}.mlp.fc1.weight@transpose",
        f"{block}{mlp}/Dense_0/bias": "blocks.{i}.mlp.fc1.bias",
        f"{block}{mlp}/Dense_1/kernel": "blocks.{i}.mlp.fc2.weight@transpose",
        f"{block}{mlp}/Dense_1/bias": "blocks.{i}.mlp.fc2.bias",
        "Transformer/encoder_norm/{s}": "norm.{s}",
        "pre_logits/kernel": "pre_logits.fc.weight@transpose",
        "pre_logits/bias": "pre_logits.fc.bias",
        "head/kernel": "head.weight@transpose",
        "head/bias": "head.bias",
    }


def _map_head(head: str) -> dict[str, str]:
    attention = f"{head}MultiHeadDotProductAttention_0"
    ours = {"kernel": ("weight", "@heads_in"), "bias": ("bias", "@flat")}
    return {
        f"{head}probe": "attn_pool.latent",
        **{f"{attention}/query/{what}": f"attn_pool.q.{to}{op}" for what, (to, op) in ours.items()},
        **{
            f"{attention}/{name}/{what}": f"attn_pool.kv.{to}[{name[0]}{op}"
            for name in ("key", "value")
            for what, (to, op) in ours.items()
        },
        f"{attention}/out/kernel": "attn_pool.proj.weight@heads_out",
        f"{attention}/out/bias": "attn_pool.proj.bias",
        f"{head}LayerNorm_0/{{s}}": "attn_pool.norm.{s}",
        f"{head}MlpBlock_0/Dense_0/kernel": "attn_pool.mlp.fc1.weight@transpose",
        f"{head}MlpBlock_0/Dense_0/bias": "attn_pool.mlp.fc1.bias",
        f"{head}MlpBlock_0/Dense_1/kernel": "attn_pool.mlp.fc2.weight@transpose",
        f"{head}MlpBlock_0/Dense_1/bias": "attn_pool.mlp.fc2.bias",
    }


_FLAX_DROPPED = {"opt/state/*": "the optimizer's", "state/*": "the optimizer's", "step": "the step number"}

GOOGLE = Layout(
    name="Google ViT and AugReg",  # google-research/vision_transformer vit_jax/models_vit.py
    markers=("Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/query/kernel",),
    table=_google("LayerNorm_2", "MultiHeadDotProductAttention_1", "MlpBlock_3")
    | {"Transformer/posembed_input/pos_embedding": "pos_embed"}
    | residual.GOOGLE_BELOW,
    dropped=_FLAX_DROPPED,
    anchor="embedding/kernel",
    gelu="tanh",
    eval=HALF,
)

BIG_VISION = Layout(
    name="big_vision",  # google-research/big_vision models/vit.py
    markers=("Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0/query/kernel",),
    table=_google("LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0")
    | {"pos_embedding": "pos_embed", "Transformer/posembed_input/pos_embedding": "pos_embed"}
    | _map_head("MAPHead_0/"),
    dropped=_FLAX_DROPPED,
    anchor="embedding/kernel",
    gelu="tanh",
    eval=HALF,
)

LAYOUTS: list[Layout] = [
    *residual.LAYOUTS,
    VIT5,
    EVA,
    DINOV3_MASKED,
    DINOV3,
    PE,
    PE_BARE,
    OPEN_CLIP,
    HF_CLIP_CLASSIFIER,
    HF_CLIP,
    HF_SIGLIP_POOLED,
    AIMV2,
    HF_AIMV2,
    HF_DINOV3,
    BEIT,
    TIMM_MORE,
    TIMM_PLACED,
    DEIT3,
    MAE,
    TRANSFORMERS_DEIT,
    TRANSFORMERS_DINOV2,
    TRANSFORMERS_VIT,
    HF_SIGLIP,
    TORCHVISION,
    GOOGLE,
    BIG_VISION,
    DINOV2,
    TIMM,
]
"""In the order in which they are tried: one with more particular keys before one whose keys it shares."""


def preprocessing_by_name(name: str, layout: Layout = TIMM) -> tuple[EvalConfig, str]:
    """The pixel statistics and crop of a bare file, from its layout and a name that timm gives, and why.

    timm's configurations: DeiT takes ImageNet statistics and a 0.9 crop, the Google weights (`augreg`,
    `orig_in21k`) 0.5 and 0.9; both 1.0 at 384 px.
    """
    if layout is not TIMM:
        crop = 1.0 if layout in (GOOGLE, BIG_VISION) and "384" in name else layout.eval.crop
        return replace(layout.eval, crop=crop), f"the pixel range and crop that are usual for {layout.name}"
    crop = 1.0 if "384" in name else 0.9
    if re.search(r"augreg|orig_in21k|in21k|sam_in1k|_r\d*_s\d\d", name):
        return EvalConfig(crop=crop), "Google's pixel range -1…1, as the file's name says"
    why = (
        "DeiT's ImageNet pixel statistics, as the file's name says"
        if "deit" in name
        else "ImageNet pixel statistics, a guess: the file does not say"
    )
    return EvalConfig(crop=crop, mean=IMAGENET_MEAN, std=IMAGENET_STD), why
