"""Keys that several layouts share."""

from __future__ import annotations

from vitcli.config import IMAGENET_MEAN, IMAGENET_STD, EvalConfig

HALF = EvalConfig(crop=0.9)  # pixels in -1…1
IMAGENET = EvalConfig(crop=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD)
CLIP_PIXELS = EvalConfig(crop=1.0, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))

OWN_KEYS = (
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
    "patch_embed.norm.{p}",
    "norm_pre.{p}",
    "blocks.{i}.attn.norm.{p}",
    "blocks.{i}.attn.q_norm.{p}",
    "blocks.{i}.attn.k_norm.{p}",
    "blocks.{i}.mlp.norm.{p}",
    "attn_pool.latent",
    "attn_pool.q.{p}",
    "attn_pool.kv.{p}",
    "attn_pool.proj.{p}",
    "attn_pool.norm.{p}",
    "attn_pool.mlp.fc1.{p}",
    "attn_pool.mlp.fc2.{p}",
)
SAME = {key: key for key in OWN_KEYS}

HF_BLOCK = {
    "encoder.layer.{i}.layernorm_before.{p}": "blocks.{i}.norm1.{p}",
    "encoder.layer.{i}.attention.attention.query.{p}": "blocks.{i}.attn.qkv.{p}[q",
    "encoder.layer.{i}.attention.attention.key.{p}": "blocks.{i}.attn.qkv.{p}[k",
    "encoder.layer.{i}.attention.attention.value.{p}": "blocks.{i}.attn.qkv.{p}[v",
    "encoder.layer.{i}.attention.output.dense.{p}": "blocks.{i}.attn.proj.{p}",
    "encoder.layer.{i}.layernorm_after.{p}": "blocks.{i}.norm2.{p}",
    "encoder.layer.{i}.intermediate.dense.{p}": "blocks.{i}.mlp.fc1.{p}",
    "encoder.layer.{i}.output.dense.{p}": "blocks.{i}.mlp.fc2.{p}",
}
HF_NEW_BLOCK = {  # the names in memory from 5.x on; files keep the old ones
    "layers.{i}.layernorm_before.{p}": "blocks.{i}.norm1.{p}",
    "layers.{i}.attention.q_proj.{p}": "blocks.{i}.attn.qkv.{p}[q",
    "layers.{i}.attention.k_proj.{p}": "blocks.{i}.attn.qkv.{p}[k",
    "layers.{i}.attention.v_proj.{p}": "blocks.{i}.attn.qkv.{p}[v",
    "layers.{i}.attention.o_proj.{p}": "blocks.{i}.attn.proj.{p}",
    "layers.{i}.layernorm_after.{p}": "blocks.{i}.norm2.{p}",
    "layers.{i}.mlp.fc1.{p}": "blocks.{i}.mlp.fc1.{p}",
    "layers.{i}.mlp.fc2.{p}": "blocks.{i}.mlp.fc2.{p}",
}
HF_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.{p}": "patch_embed.proj.{p}",
    "layernorm.{p}": "norm.{p}",
    "classifier.{p}": "head.{p}",
}
HF_ANCHOR = "embeddings.patch_embeddings.projection.weight"
HF_DROPPED = {
    "embeddings.mask_token": "stands for masked patches in training",
    "decoder.*": "the decoder's",
    "*position_ids": "row numbers",
}
