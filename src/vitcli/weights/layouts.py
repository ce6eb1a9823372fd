"""The layouts of other tools' checkpoints as tables: how each is recognised, its keys, what its numbers mean.

One more is a Layout and a line in LAYOUTS. keys.py is what reads a file by them.
"""

from __future__ import annotations

import re
from dataclasses import replace

from vitcli.config import IMAGENET_MEAN, IMAGENET_STD, EvalConfig
from vitcli.weights import residual
from vitcli.weights.layout import Layout

_HALF = EvalConfig(crop=0.9)  # pixels in -1…1
_IMAGENET = EvalConfig(crop=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD)


# --- the families ------------------------------------------------------------------------------------------

_OWN_KEYS = (
    "cls_token",
    "dist_token",
    "reg_token",
    "pos_embed",
    "patch_embed.proj.{p}",
    "blocks.{i}.norm1.{p}",
    "blocks.{i}.attn.qkv.{p}",
    "blocks.{i}.attn.proj.{p}",
    "blocks.{i}.ls1.gamma",
    "blocks.{i}.norm2.{p}",
    "blocks.{i}.mlp.fc1.{p}",
    "blocks.{i}.mlp.fc2.{p}",
    "blocks.{i}.ls2.gamma",
    "norm.{p}",
    "fc_norm.{p}",
    "pre_logits.fc.{p}",
    "head.{p}",
    "head_dist.{p}",
)
_SAME = {key: key for key in _OWN_KEYS}

TIMM = Layout(
    name="timm",
    markers=("blocks.{i}.attn.qkv.weight", "patch_embed.proj.weight"),
    table=_SAME | residual.TIMM_BELOW,
    fixed=False,
    eval=_IMAGENET,
    keys={"group_eps": 1e-5, "weight_eps": 1e-8, "weight_eps_to": "variance"},
)

DEIT3 = Layout(
    name="DeiT-III",  # facebookresearch/deit models_v2.py
    markers=("blocks.{i}.gamma_1",),
    table=_SAME | {"blocks.{i}.gamma_1": "blocks.{i}.ls1.gamma", "blocks.{i}.gamma_2": "blocks.{i}.ls2.gamma"},
    eval=replace(_IMAGENET, crop=1.0),
)

MAE = Layout(
    name="MAE",  # facebookresearch/mae models_mae.py
    markers=("decoder_blocks.{i}.attn.qkv.weight",),
    table=_SAME,
    dropped={
        "mask_token": "the decoder's",
        "decoder_*": "the decoder's",
    },
    eval=_IMAGENET,
)

DINOV2 = Layout(
    name="DINOv2",  # facebookresearch/dinov2 models/vision_transformer.py
    markers=("mask_token", "register_tokens"),
    table=_SAME | {"register_tokens": "reg_token"},
    dropped={"mask_token": "stands for masked patches in training"},
    eval=_IMAGENET,
)

_HF_BLOCK = {
    "encoder.layer.{i}.layernorm_before.{p}": "blocks.{i}.norm1.{p}",
    "encoder.layer.{i}.attention.attention.query.{p}": "blocks.{i}.attn.qkv.{p}[q",
    "encoder.layer.{i}.attention.attention.key.{p}": "blocks.{i}.attn.qkv.{p}[k",
    "encoder.layer.{i}.attention.attention.value.{p}": "blocks.{i}.attn.qkv.{p}[v",
    "encoder.layer.{i}.attention.output.dense.{p}": "blocks.{i}.attn.proj.{p}",
    "encoder.layer.{i}.layernorm_after.{p}": "blocks.{i}.norm2.{p}",
    "encoder.layer.{i}.intermediate.dense.{p}": "blocks.{i}.mlp.fc1.{p}",
    "encoder.layer.{i}.output.dense.{p}": "blocks.{i}.mlp.fc2.{p}",
}
_HF_NEW_BLOCK = {  # the names in memory from 5.x on; files keep the old ones
    "layers.{i}.layernorm_before.{p}": "blocks.{i}.norm1.{p}",
    "layers.{i}.attention.q_proj.{p}": "blocks.{i}.attn.qkv.{p}[q",
    "layers.{i}.attention.k_proj.{p}": "blocks.{i}.attn.qkv.{p}[k",
    "layers.{i}.attention.v_proj.{p}": "blocks.{i}.attn.qkv.{p}[v",
    "layers.{i}.attention.o_proj.{p}": "blocks.{i}.attn.proj.{p}",
    "layers.{i}.layernorm_after.{p}": "blocks.{i}.norm2.{p}",
    "layers.{i}.mlp.fc1.{p}": "blocks.{i}.mlp.fc1.{p}",
    "layers.{i}.mlp.fc2.{p}": "blocks.{i}.mlp.fc2.{p}",
}
_HF_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.{p}": "patch_embed.proj.{p}",
    "layernorm.{p}": "norm.{p}",
    "classifier.{p}": "head.{p}",
}
_HF_ANCHOR = "embeddings.patch_embeddings.projection.weight"
_HF_DROPPED = {
    "embeddings.mask_token": "stands for masked patches in training",
    "decoder.*": "the decoder's",
    "*position_ids": "row numbers",
}

TRANSFORMERS_VIT = Layout(
    name="transformers ViT",  # huggingface/transformers models/vit/modeling_vit.py
    markers=("encoder.layer.{i}.layernorm_before.weight", "layers.{i}.layernorm_before.weight"),
    table=_HF_EMBEDDINGS | _HF_BLOCK | _HF_NEW_BLOCK | {"pooler.dense.{p}": "pre_logits.fc.{p}"},
    dropped=_HF_DROPPED,
    prefixes=("vit.",),
    anchor=_HF_ANCHOR,
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
    | _HF_EMBEDDINGS
    | _HF_BLOCK
    | _HF_NEW_BLOCK,
    dropped=_HF_DROPPED | {"pooler.dense.{p}": "a layer that no head reads"},
    prefixes=("deit.",),
    anchor=_HF_ANCHOR,
    fixed=False,
    norm_eps=1e-12,
    eval=_IMAGENET,
)

TRANSFORMERS_DINOV2 = Layout(
    name="transformers DINOv2",  # models/dinov2, models/dinov2_with_registers
    markers=("encoder.layer.{i}.layer_scale1.lambda1", "layers.{i}.layer_scale1.lambda1"),
    table=_HF_EMBEDDINGS
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
                "layer_scale2.lambda1": "blocks.{i}.ls2.gamma",
            }.items()
        },
    },
    dropped=_HF_DROPPED,
    prefixes=("dinov2.", "dinov2_with_registers."),
    anchor=_HF_ANCHOR,
    fixed=False,
    eval=_IMAGENET,
)

TRANSFORMERS_SIGLIP = Layout(
    name="transformers SigLIP vision encoder",  # models/siglip: what export writes for models without a class token
    markers=("vision_model.embeddings.patch_embedding.weight",),
    table={
        "vision_model.embeddings.patch_embedding.{p}": "patch_embed.proj.{p}",
        "vision_model.embeddings.position_embedding.weight": "pos_embed",
        "vision_model.encoder.layers.{i}.layer_norm1.{p}": "blocks.{i}.norm1.{p}",
        "vision_model.encoder.layers.{i}.self_attn.q_proj.{p}": "blocks.{i}.attn.qkv.{p}[q",
        "vision_model.encoder.layers.{i}.self_attn.k_proj.{p}": "blocks.{i}.attn.qkv.{p}[k",
        "vision_model.encoder.layers.{i}.self_attn.v_proj.{p}": "blocks.{i}.attn.qkv.{p}[v",
        "vision_model.encoder.layers.{i}.self_attn.out_proj.{p}": "blocks.{i}.attn.proj.{p}",
        "vision_model.encoder.layers.{i}.layer_norm2.{p}": "blocks.{i}.norm2.{p}",
        "vision_model.encoder.layers.{i}.mlp.fc1.{p}": "blocks.{i}.mlp.fc1.{p}",
        "vision_model.encoder.layers.{i}.mlp.fc2.{p}": "blocks.{i}.mlp.fc2.{p}",
        "vision_model.post_layernorm.{p}": "norm.{p}",
        "classifier.{p}": "head.{p}",
    },
    anchor="vision_model.embeddings.patch_embedding.weight",
    gelu="tanh",
    fixed=False,
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
    eval=replace(_IMAGENET, interpolation="bilinear"),
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
    eval=_HALF,
)

BIG_VISION = Layout(
    name="big_vision",  # google-research/big_vision models/vit.py
    markers=("Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0/query/kernel",),
    table=_google("LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0")
    | {"pos_embedding": "pos_embed", "Transformer/posembed_input/pos_embedding": "pos_embed"},
    dropped=_FLAX_DROPPED,
    anchor="embedding/kernel",
    gelu="tanh",
    eval=_HALF,
)

LAYOUTS: list[Layout] = [
    *residual.LAYOUTS,
    DEIT3,
    MAE,
    TRANSFORMERS_DEIT,
    TRANSFORMERS_DINOV2,
    TRANSFORMERS_VIT,
    TRANSFORMERS_SIGLIP,
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
