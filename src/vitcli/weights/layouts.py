"""Whose names a file's weights have, how they become vit's, and the architecture that their shapes imply.

vit's own names are timm's. Each family is a table from the file's keys to these: `{i}` is a block's number, `{p}` is
weight or bias. After an `@` stands what happens to the array, after a `[` which part of a joined one it is:

| op          | the file's array       | vit's                                     |
|-------------|------------------------|-------------------------------------------|
| (none)      | [...]                  | the same, with axes of one added or left out |
| @transpose  | [in, out]              | [out, in]                                 |
| @hwio       | [height, width, in, out] | [out, in, height, width]                |
| @heads_in   | [in, heads, dim]       | [heads · dim, in]                         |
| @heads_out  | [heads, dim, out]      | [out, heads · dim]                        |
| @flat       | [heads, dim]           | [heads · dim]                             |

Loading is total: every key is used, renamed, or dropped by the name of a pattern that says why; anything else is an error.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from vitcli.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VARIANTS,
    Architecture,
    EvalConfig,
    ModelConfig,
    Size,
)
from vitcli.errors import CheckpointError, UsageError
from vitcli.weights.beside import Beside

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

_PREFIXES = ("module.", "_orig_mod.")
_WITHIN = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into keys, at any depth."""
_HALF = EvalConfig(crop=0.9)  # pixels in -1…1
_IMAGENET = EvalConfig(crop=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@dataclass(frozen=True)
class Layout:
    """A family of checkpoints: how it is recognised, its keys, and what its numbers mean."""

    name: str
    markers: tuple[str, ...]  # patterns of keys that only this family has; one of them is enough
    table: Mapping[str, str]
    dropped: Mapping[str, str] = field(default_factory=dict)  # patterns of keys that are left out, and what they are
    prefixes: tuple[str, ...] = ()  # of the encoder beside a head without it, taken off
    anchor: str = "patch_embed.proj.weight"  # every file has this key, after the layout's own prefixes
    norm_eps: float = 1e-6
    gelu: str = "erf"
    fixed: bool = True  # its code has one activation, one epsilon and one pooling; else they are guesses
    eval: EvalConfig = field(default_factory=EvalConfig)

    @cached_property
    def marks(self) -> list[re.Pattern[str]]:
        return [_pattern(marker) for marker in self.markers]

    @cached_property
    def rows(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(key), target) for key, target in self.table.items()]

    @cached_property
    def left_out(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(key), why) for key, why in self.dropped.items()]


def _pattern(key: str) -> re.Pattern[str]:
    """`{i}` a block, `{p}` weight or bias, `{s}` scale or bias, `*` anything."""
    escaped = re.escape(key).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{p\}", r"(?P<p>weight|bias)")
    return re.compile(escaped.replace(r"\{s\}", r"(?P<s>scale|bias)").replace(r"\*", ".*") + r"\Z")


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

TIMM = Layout("timm", ("blocks.{i}.attn.qkv.weight", "patch_embed.proj.weight"), _SAME, fixed=False, eval=_IMAGENET)

DEIT3 = Layout(
    "DeiT-III",  # facebookresearch/deit models_v2.py
    ("blocks.{i}.gamma_1",),
    _SAME | {"blocks.{i}.gamma_1": "blocks.{i}.ls1.gamma", "blocks.{i}.gamma_2": "blocks.{i}.ls2.gamma"},
    eval=replace(_IMAGENET, crop=1.0),
)

MAE = Layout(
    "MAE",  # facebookresearch/mae models_mae.py
    ("decoder_blocks.{i}.attn.qkv.weight",),
    _SAME,
    dropped={
        "mask_token": "the decoder's",
        "decoder_*": "the decoder's",
    },
    eval=_IMAGENET,
)

DINOV2 = Layout(
    "DINOv2",  # facebookresearch/dinov2 models/vision_transformer.py
    ("mask_token", "register_tokens"),
    _SAME | {"register_tokens": "reg_token"},
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
    "transformers ViT",  # huggingface/transformers models/vit/modeling_vit.py
    ("encoder.layer.{i}.layernorm_before.weight", "layers.{i}.layernorm_before.weight"),
    _HF_EMBEDDINGS | _HF_BLOCK | _HF_NEW_BLOCK | {"pooler.dense.{p}": "pre_logits.fc.{p}"},
    dropped=_HF_DROPPED,
    prefixes=("vit.",),
    anchor=_HF_ANCHOR,
    fixed=False,
    norm_eps=1e-12,
    eval=replace(EvalConfig(), resize="square", interpolation="bilinear"),
)

TRANSFORMERS_DEIT = Layout(
    "transformers DeiT",  # models/deit/modeling_deit.py
    ("embeddings.distillation_token",),
    {
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
    "transformers DINOv2",  # models/dinov2, models/dinov2_with_registers
    ("encoder.layer.{i}.layer_scale1.lambda1", "layers.{i}.layer_scale1.lambda1"),
    _HF_EMBEDDINGS
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
    "transformers SigLIP vision encoder",  # models/siglip: what export writes for models without a class token
    ("vision_model.embeddings.patch_embedding.weight",),
    {
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
    "torchvision",  # torchvision/models/vision_transformer.py
    ("encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight",),
    {
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
    "Google ViT and AugReg",  # google-research/vision_transformer vit_jax/models_vit.py
    ("Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/query/kernel",),
    _google("LayerNorm_2", "MultiHeadDotProductAttention_1", "MlpBlock_3")
    | {"Transformer/posembed_input/pos_embedding": "pos_embed"},
    dropped=_FLAX_DROPPED,
    anchor="embedding/kernel",
    gelu="tanh",
    eval=_HALF,
)

BIG_VISION = Layout(
    "big_vision",  # google-research/big_vision models/vit.py
    ("Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0/query/kernel",),
    _google("LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0")
    | {"pos_embedding": "pos_embed", "Transformer/posembed_input/pos_embedding": "pos_embed"},
    dropped=_FLAX_DROPPED,
    anchor="embedding/kernel",
    gelu="tanh",
    eval=_HALF,
)

LAYOUTS = (
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
)
"""In the order in which they are tried: one with more particular keys before one whose keys it shares."""


# --- what vit writes ---------------------------------------------------------------------------------------

_FILE_KEYS = ("embeddings.", "encoder.", "layernorm.", "pooler.")


def keys_for(name: str, layout: Layout, prefix: str = "") -> list[tuple[str, str]]:
    """The keys that a file of `layout` has for vit's tensor `name`, each with its part (q, k, v, or empty for all of it).

    `prefix` is put before what is not a head. Where a table has several keys for one, its first is what files have.
    """
    keys: dict[str, str] = {}
    for key, target in layout.table.items():
        target, _, which = target.partition("[")
        match = _pattern(target).match(name)
        if match is not None and which not in keys:
            filled = _filled(key, match)
            keys[which] = (prefix if key.startswith(_FILE_KEYS) else "") + filled
    if not keys:
        raise KeyError(name)
    return [(key, which) for which, key in keys.items()]


# --- from a file's keys to vit's ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """An array of the file and what happens to it."""

    key: str
    op: str = ""
    shape: Shape = ()  # after `op`


@dataclass(frozen=True)
class Row:
    """What became of a key of the file: used, renamed or dropped; `to` is vit's key, or why it was dropped."""

    key: str
    fate: str
    to: str = ""


@dataclass(frozen=True)
class Place:
    """Where in a table of weights a ViT is: the keys that begin with `prefix`, with the names of `layout`."""

    prefix: str
    layout: Layout
    whole: bool = True  # what no ViT is without is there


@dataclass(frozen=True)
class Found:
    """A recognised file: where each of vit's tensors comes from, and the report on every key."""

    layout: Layout
    parts: Mapping[str, tuple[Part, ...]]  # by vit's name; several are joined along the first axis
    report: tuple[Row, ...]
    strays: Mapping[str, Shape]  # keys that are no part of the layout: an error once the architecture is known
    heads: int | None = None  # where the arrays say so
    prefix: str = ""

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of vit's tensors. Parts are joined along the first axis."""
        return {
            name: (sum(p.shape[0] for p in parts), *parts[0].shape[1:]) if parts[0].shape else ()
            for name, parts in self.parts.items()
        }


def strip_prefixes(names: Iterable[str], prefixes: tuple[str, ...] = _PREFIXES) -> dict[str, str]:
    """Each name without what DataParallel and torch.compile put before it."""
    stripped = {}
    for name in names:
        bare = name
        while bare.startswith(prefixes):
            bare = bare[len(next(p for p in prefixes if bare.startswith(p))) :]
        stripped[name] = bare
    if len(set(stripped.values())) < len(stripped):
        seen: set[str] = set()
        twice = next(bare for bare in stripped.values() if bare in seen or seen.add(bare))  # type: ignore[func-returns-value]
        raise CheckpointError(
            f"two keys are {twice[:80]} without their prefix", "save one model alone, without its wrapper"
        )
    return stripped


def _unwrapped(keys: Iterable[str]) -> dict[str, str]:
    """Each key without what DataParallel, torch.compile and FSDP add; as they are where two would be the same."""
    plain = {key: _WITHIN.sub("", key) for key in keys}
    for key, name in plain.items():
        while name.startswith(_PREFIXES):
            name = name[len(next(p for p in _PREFIXES if name.startswith(p))) :]
        plain[key] = name
    return plain if len(set(plain.values())) == len(plain) else {key: key for key in plain}


def _names(keys: Iterable[str], layout: Layout, prefix: str = "") -> dict[str, str]:
    """The keys that begin with `prefix`, each without it and the layout's own."""
    inside = {key: name[len(prefix) :] for key, name in _unwrapped(keys).items() if name.startswith(prefix)}
    names = strip_prefixes(inside.values(), (*_PREFIXES, *layout.prefixes)) if inside else {}
    return {key: names[name] for key, name in inside.items()}


_AVERAGED = {"ema", "teacher", "target", "average", "averaged", "avg", "swa", "shadow"}


def is_average(name: str) -> bool:
    """Whether a key or prefix says that weights are an average over training."""
    return not _AVERAGED.isdisjoint(re.split(r"[^a-z]+", name.lower()))


_WHOLE = "the file must hold a whole ViT"
_MOST_PLACES = 32
"""Students, teachers and averages in one table: a training script has a handful."""


def places(shapes: Shapes) -> list[Place]:
    """Where a table of weights holds the key by which a layout begins, in the table's order, up to _MOST_PLACES."""
    names = _unwrapped(shapes)
    own: dict[str, list[str]] = {}  # for each key that a layout begins by, the prefixes of all that begin by it
    for layout in LAYOUTS:
        own.setdefault(layout.anchor, []).extend(layout.prefixes)
    prefixes: dict[str, None] = {}
    for name in names.values():
        for anchor, encoders in own.items():
            before = name.removesuffix(anchor)
            if before != name and (not before or before[-1] in "./"):
                encoder = next((e for e in encoders if f".{before}".endswith(f".{e}")), "")
                prefixes[before.removesuffix(encoder)] = None
    found = []
    for prefix in itertools.islice(prefixes, _MOST_PLACES):
        inside = {key: shapes[key] for key, name in names.items() if name.startswith(prefix)}
        try:
            place = Place(prefix, recognise(inside, "", prefix))
            parts = find(inside, "", place).parts
        except CheckpointError:
            continue
        found.append(replace(place, whole=parts.keys() >= set(_NEEDED)))
    return found


def best_place(shapes: Shapes) -> tuple[Place | None, list[Place]]:
    """Where the weights are, and where else there is a whole ViT: averages over training first, as timm takes them."""
    found = places(shapes)
    whole = [place for place in found if place.whole] or found[:1]
    first = next((place for place in whole if is_average(place.prefix)), whole[0] if whole else None)
    return first, [place for place in whole if place is not first]


def recognise(keys: Iterable[str], where: str, prefix: str = "") -> Layout:
    """The family of which a marker is among the keys. Raises CheckpointError."""
    keys = list(keys)
    for layout in LAYOUTS:
        names = _names(keys, layout, prefix).values()
        if any(pattern.match(name) for pattern in layout.marks for name in names):
            return layout
    some = ", ".join(keys[:4])
    raise CheckpointError(
        f"{where} has weights of an unknown layout: {len(keys)} keys, such as {some}",
        "vit reads ViT weights as timm, transformers, torchvision, Google, DeiT, MAE and DINOv2 write them",
    )


def _after(op: str, shape: Shape) -> tuple[str, Shape]:
    """The shape that `op` makes. Raises ValueError where the array has not the axes for it."""
    axes = {"": None, "transpose": 2, "hwio": 4, "heads_in": 3, "heads_out": 3, "flat": 2}[op]
    if axes is not None and len(shape) != axes:
        raise ValueError(f"an array of shape {shape}, not of {axes} axes")
    if op == "transpose":
        return op, shape[::-1]
    if op == "hwio":
        return op, (shape[3], shape[2], shape[0], shape[1])
    if op == "heads_in":
        return op, (shape[1] * shape[2], shape[0])
    if op == "heads_out":
        return op, (shape[2], shape[0] * shape[1])
    if op == "flat":
        return op, (shape[0] * shape[1],)
    return op, shape


_AXES = {"cls_token": 3, "dist_token": 3, "reg_token": 3, "pos_embed": 3}


_BESIDE = re.compile(
    r"(?:\w*loss\w*|criterion\w*|\w*metrics?|\w*accuracy\w*|\w*acc[15]?|\w*meters?|n_averaged|num_batches_tracked|num_updates"
    r"|epoch|step|global_step|iteration|iter|lr|\w*decay|\w*best\w*|optimizer|scheduler)(?:\.\w+)*"
)
"""Keys of what trains or measures a model, in one table with its weights."""


def _stands_beside(name: str, shape: Shape) -> str:
    """Why a key that no layout has is no part of the model; empty where it may be one."""
    if _BESIDE.fullmatch(name):
        return "of training, by its name"
    inside = name.split(".")[0].split("/")[0] in _MODULES
    return "" if inside or shape not in ((), (1,)) else "a single number"


_MODULES = {"blocks", "patch_embed", "norm", "norm_pre", "fc_norm", "head", "head_dist", "attn_pool", "encoder", "layers",
            "embeddings", "layernorm", "pooler", "classifier", "heads", "vision_model", "Transformer", "cls"}  # fmt: skip


def find(shapes: Shapes, where: str, place: Place | None = None) -> Found:
    """Recognise a file by its keys and account for each of them. Raises CheckpointError."""
    shapes = unscanned(shapes)
    place = place or best_place(shapes)[0] or Place("", recognise(shapes, where), False)
    layout, names = place.layout, _names(shapes, place.layout, place.prefix)
    parts: dict[str, dict[str, Part]] = {}
    report: list[Row] = []
    strays: dict[str, Shape] = {}
    heads = None
    for key in shapes:
        if key not in names:
            report.append(Row(key, "dropped", f"not under {place.prefix}"))
            continue
        name = names[key]
        why = next((why for pattern, why in layout.left_out if pattern.match(name) or pattern.match(key)), None)
        row = next(((match, target) for pattern, target in layout.rows if (match := pattern.match(name))), None)
        if why is None and row is None:
            why = _stands_beside(name, shapes[key]) or None
        if why is not None:
            report.append(Row(key, "dropped", why))
            continue
        if row is None:
            strays[key] = shapes[key]
            continue
        target = _filled(row[1], row[0])
        target, _, op = target.partition("@")
        target, _, which = target.partition("[")
        try:
            op, shape = _after(op, shapes[key])
            if which == "q" and op == "heads_in":
                heads = shapes[key][1]
        except ValueError as error:
            raise CheckpointError(f"{where}: {key} is {error}", _WHOLE) from None
        shape = (1,) * (_AXES.get(target, 0) - len(shape)) + shape
        if which in parts.get(target, {}):
            raise CheckpointError(f"{where}: {key} and {parts[target][which].key} are both {target}", _WHOLE)
        parts.setdefault(target, {})[which] = Part(key, op, shape)
        report.append(Row(key, "used" if key == target else "renamed", target))
    joined = {name: _joined(found, name, where) for name, found in parts.items()}
    return Found(layout, joined, tuple(report), strays, heads, place.prefix)


def is_wanted(key: str, place: Place) -> bool:
    """Whether the layout has `key`, so that a file in which it cannot be read is not whole."""
    name = _names([key], place.layout, place.prefix).get(key)
    return name is not None and any(pattern.match(name) for pattern, _ in place.layout.rows)


def _filled(target: str, match: re.Match[str]) -> str:
    named = {"s": {"scale": "weight", "bias": "bias"}.get(match.groupdict().get("s", ""), ""), **{
        k: v for k, v in match.groupdict().items() if k != "s"
    }}  # fmt: skip
    for name, value in named.items():
        target = target.replace(f"{{{name}}}", value or "")
    return target


def _joined(parts: Mapping[str, Part], name: str, where: str) -> tuple[Part, ...]:
    """q, k and v in this order, or the one part. Raises CheckpointError where some are missing or do not fit."""
    if "" in parts:
        return (parts[""],)
    missing = [which for which in "qkv" if which not in parts]
    if missing:
        raise CheckpointError(f"{where}: {name} lacks its {' and '.join(missing)}", _WHOLE)
    if len({p.shape for p in parts.values()}) > 1:
        raise CheckpointError(
            f"{where}: the q, k and v of {name} have shapes {[p.shape for p in parts.values()]}", _WHOLE
        )
    return tuple(parts[which] for which in "qkv")


_SCANNED = re.compile(r"(.*Transformer/encoderblock)/(.*)")


def unscanned(shapes: Shapes) -> dict[str, Shape]:
    """Blocks that big_vision scans over lie in one array with a leading axis; each becomes a key of its own, `…_3/…#3`."""
    apart: dict[str, Shape] = {}
    for key, shape in shapes.items():
        match = _SCANNED.fullmatch(key)
        if match is None or not shape:
            apart[key] = shape
        else:
            apart |= {f"{match[1]}_{i}/{match[2]}": shape[1:] for i in range(min(shape[0], 1000))}
    return apart


def scanned_key(key: str, stored: Shapes) -> tuple[str, int | None]:
    """The file's own key for one that `unscanned` made, and the index along its first axis."""
    if key in stored:
        return key, None
    match = re.fullmatch(r"(.*Transformer/encoderblock)_(\d+)/(.*)", key)
    if match is None or f"{match[1]}/{match[3]}" not in stored:
        raise KeyError(key)
    return f"{match[1]}/{match[3]}", int(match[2])


# --- the architecture --------------------------------------------------------------------------------------


def check_shapes(found: Shapes, model: Architecture, where: str) -> None:
    """Raises CheckpointError naming the keys that are missing, unexpected or of another shape."""
    blocks = sum(re.fullmatch(r"blocks\.\d+\.norm1\.weight", key) is not None for key in found)
    if isinstance(model, ModelConfig) and model.depth > blocks + 1:
        raise CheckpointError(f"{where} has {blocks} blocks, not the {model.depth} of {model.name}", _WHOLE)
    wanted = model.shapes()
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    misfit = [
        f"{k} is {found[k]}, not {wanted[k]}" for k in sorted(wanted.keys() & found.keys()) if found[k] != wanted[k]
    ]
    faults = [
        f"{word}: {', '.join(keys[:4])}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}"
        for word, keys in (("missing", missing), ("unexpected", unexpected), ("shape", misfit))
        if keys
    ]
    if faults:
        raise CheckpointError(
            f"{where} does not fit {model.name}: {'; '.join(faults)}",
            "vit loads every weight of a file or none",
        )


_NEEDED = ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
"""What no ViT is without."""


@dataclass(frozen=True)
class Stored:
    """The architecture of a file, and how its position embedding lies there."""

    model: ModelConfig
    rows: int  # position rows of prefix tokens in the file, which may be more than the model has: they are added in
    registers_from: str = ""  # "dist_token": it is kept as a register, since no head reads it
    guessed: tuple[str, ...] = ()  # keys of the model that neither the arrays nor anything beside them tell


def architecture(found: Found, said: Beside, where: str) -> Stored:
    """The architecture of a recognised file, `said` by its configuration where that is there. Raises CheckpointError."""
    shapes, layout = found.shapes, found.layout
    missing = [key for key in _NEEDED if key not in shapes]
    if missing:
        strays = f" and has {', '.join(sorted(found.strays)[:4])} beside" if found.strays else ""
        raise CheckpointError(f"{where} has the layout of {layout.name}, but lacks {missing[0]}{strays}", _WHOLE)
    try:
        width, _, *sides = shapes["patch_embed.proj.weight"]
        patch = (sides[0], sides[1])
        if min(width, *patch) < 1:
            raise ValueError(f"patch embedding of shape {shapes['patch_embed.proj.weight']}")
        depth = 1 + max(int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", key) for key in shapes) if m)
        mlp = shapes["blocks.0.mlp.fc1.weight"][0]
        class_token, distilled = "cls_token" in shapes, "head_dist.weight" in shapes
        registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
        unread = "dist_token" in shapes and not distilled  # transformers' DeiT with one head, and DeiT without any
        prefix = class_token + ("dist_token" in shapes) + registers
        scaled = "blocks.0.ls1.gamma" in shapes
        counts = (prefix, int(class_token), 0) if registers or scaled or layout in _ROWLESS else (prefix,)
        rows, img_size = _grid(shapes["pos_embed"][1], counts, patch, said.img_size, where)
        after = "fc_norm.weight" in shapes
        head = shapes.get("head.weight", (0, width))
        pool = said.pool or ("mean" if after or not class_token else "cls")
        if head[0] and class_token and head[1:] == (2 * width,):
            pool = "cls+mean"
        model = ModelConfig(
            name="",
            width=width,
            depth=depth,
            heads=said.heads or found.heads or usual_heads(width, depth, mlp),
            mlp=mlp,
            patch=patch,
            img_size=img_size,
            classes=head[0],
            pool=pool,  # type: ignore[arg-type]
            class_token=class_token,
            pre_logits="pre_logits.fc.weight" in shapes,
            gelu=said.gelu or layout.gelu,  # type: ignore[arg-type]
            norm_eps=layout.norm_eps if said.norm_eps is None else said.norm_eps,
            norm="after" if after else "before",
            registers=registers + unread,
            distilled=distilled,
            layer_scale=1e-5 if scaled else 0.0,
            prefix_positions=rows > 0 or prefix == 0,
            posemb=_interpolation(layout, registers),  # type: ignore[arg-type]
        )
        if model.registers:
            model = replace(model, prefix_positions=False)
        model = replace(model, name=model.spelled())
        if width % model.heads:
            raise ValueError(f"a width of {width} has no {model.heads} heads")
        model.check()
    except (ValueError, IndexError, TypeError, UsageError, ZeroDivisionError) as error:
        text = error.message if isinstance(error, UsageError) else str(error)
        raise CheckpointError(f"{where} is not a ViT that vit can build: {text}", _WHOLE) from None
    guessed = _guessed(model, found, said)
    stored = Stored(model, rows, "dist_token" if unread else "", guessed)
    check_shapes(_folded(shapes, stored) | dict(found.strays), model, where)
    return stored


def _guessed(model: ModelConfig, found: Found, said: Beside) -> tuple[str, ...]:
    """Which keys of the model nothing told, in an order for people."""
    open_ = not found.layout.fixed
    reads_either = model.classes > 0 and model.class_token and model.norm == "before" and not model.distilled
    return tuple(
        key
        for key, told in {
            "heads": said.heads or found.heads,
            "gelu": said.gelu or not open_,
            "norm_eps": said.norm_eps is not None or not open_,
            "pool": said.pool or not open_ or not reads_either or model.pool == "cls+mean" or found.layout is not TIMM,
        }.items()
        if not told
    )


def usual_heads(width: int, depth: int, mlp: int) -> int:
    """A guess: those of a published model of this size or width, else heads of 64, or the nearest number that fits."""
    for known in VARIANTS.values():
        if known[:3] == (width, depth, mlp):
            return known[3]
    usual = {1152: 16, 1408: 16, 1664: 16, 1536: 24}.get(width, width // 64)  # so400m, giant, gigantic, DINOv2's giant
    return max((n for n in range(1, min(width, 256) + 1) if width % n == 0 and n <= max(1, usual)), default=1)


def _interpolation(layout: Layout, registers: int) -> str:
    """How the family's own code takes its positions to another grid, where that is not `auto`.

    Models with registers: antialiased (facebookresearch/dinov2 hub/backbones.py, transformers, timm). Facebook's DINOv2
    without: by a factor of (new + 0.1) / old.
    """
    if registers:
        return "bicubic-antialias"
    return "bicubic-offset" if layout is DINOV2 else "auto"


def _folded(shapes: Shapes, stored: Stored) -> dict[str, Shape]:
    """The shapes once prefix rows are added to their tokens and an unread distillation token is a register."""
    shapes, model = dict(shapes), stored.model
    if stored.rows > model.prefix_rows:
        one, rows, width = shapes["pos_embed"]
        shapes["pos_embed"] = (one, rows - stored.rows + model.prefix_rows, width)
    if stored.registers_from:
        shapes.pop(stored.registers_from)
        shapes["reg_token"] = (1, model.registers, model.width)
    return shapes


_ROWLESS = (BIG_VISION,)
"""Families whose class token may have no row in the position embedding, beside those with layer scale or registers."""


def _grid(rows: int, counts: tuple[int, ...], patch: Size, img_size: Size | None, where: str) -> tuple[int, Size]:
    """(position rows of prefix tokens, image size). `counts` are how many rows of prefix tokens there may be.

    The grid is the configuration's, or else a square: a grid that is none could be taken for one with other rows, so
    that tokens without rows of their own are only believed of families that have them.
    """
    if img_size is not None:
        cells = (img_size[0] // patch[0]) * (img_size[1] // patch[1])
        for count in (*counts, 0):
            if rows - count == cells:
                return count, (img_size[0] // patch[0] * patch[0], img_size[1] // patch[1] * patch[1])
    for count in counts:
        side = math.isqrt(max(0, rows - count))
        if side > 0 and side * side == rows - count:
            return count, (side * patch[0], side * patch[1])
    raise CheckpointError(
        f"{where} has {rows} position rows, not a square grid, and no configuration that gives its shape",
        "keep config.json beside the weights",
    )


def preprocessing_by_name(name: str, layout: Layout = TIMM) -> tuple[EvalConfig, str]:
    """The pixel statistics and crop of a bare file, from its layout and a name that timm gives, and why.

    timm's configurations: DeiT takes ImageNet statistics and a 0.9 crop, the Google weights (`augreg`,
    `orig_in21k`) 0.5 and 0.9; both 1.0 at 384 px.
    """
    if layout is not TIMM:
        crop = 1.0 if layout in (GOOGLE, BIG_VISION) and "384" in name else layout.eval.crop
        return replace(layout.eval, crop=crop), f"the pixel range and crop that are usual for {layout.name}"
    crop = 1.0 if "384" in name else 0.9
    if re.search(r"augreg|orig_in21k|in21k|sam_in1k", name):
        return EvalConfig(crop=crop), "Google's pixel range -1…1, as the file's name says"
    why = (
        "DeiT's ImageNet pixel statistics, as the file's name says"
        if "deit" in name
        else "ImageNet pixel statistics, a guess: the file does not say"
    )
    return EvalConfig(crop=crop, mean=IMAGENET_MEAN, std=IMAGENET_STD), why
