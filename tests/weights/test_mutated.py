"""Headers of the checkpoints that people use today with one thing changed: each is read rightly or refused with the name of the key."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from test_today import of_timm, of_transformers

from vitcli.errors import CheckpointError
from vitcli.weights.describe import Description, describe
from vitcli.weights.header import DTYPE_BYTES, read_header

Shapes = dict[str, tuple[int, ...]]

# --- what the families' files hold -------------------------------------------------------------------------


def block(stem: str, table: str) -> Shapes:
    """Of `name shape` pairs, those of two blocks."""
    return {f"{stem}.{i}.{key}": shape for i in range(2) for key, shape in listed(table).items()}


def listed(table: str) -> Shapes:
    """`a.weight+ 4,3; b 2`: keys and shapes, those with a plus with a bias beside."""
    found: Shapes = {}
    for entry in table.split(";"):
        key, sides = entry.split()
        shape = tuple(int(side) for side in sides.split(","))
        found[key.removesuffix("+")] = shape
        if key.endswith("+"):
            found[key.removesuffix("weight+") + "bias"] = shape[:1]
    return found


_RESBLOCK = "ln_1.weight+ {d}; attn.in_proj_weight {t},{d}; attn.in_proj_bias {t}; attn.out_proj.weight+ {d},{d}; ln_2.weight+ {d}; mlp.c_fc.weight+ {m},{d}; mlp.c_proj.weight+ {d},{m}"


def _resblocks(d: int) -> Shapes:
    return block("visual.transformer.resblocks", _RESBLOCK.format(d=d, t=3 * d, m=4 * d))


OPEN_CLIP = (
    listed("visual.class_embedding 768; visual.positional_embedding 50,768; visual.conv1.weight 768,3,32,32")
    | listed("visual.ln_pre.weight+ 768; visual.ln_post.weight+ 768; visual.proj 768,512")
    | _resblocks(768)
    | listed("transformer.resblocks.0.ln_1.weight+ 512; token_embedding.weight 99,512; text_projection 512,512")
    | {"logit_scale": ()}
)
PE = (
    listed("visual.class_embedding 192; visual.positional_embedding 50,192; visual.conv1.weight 192,3,16,16")
    | listed("visual.ln_pre.weight+ 192; visual.ln_post.weight+ 192; visual.proj 192,512")
    | _resblocks(192)
    | listed("visual.attn_pool.probe 1,1,192; visual.attn_pool.attn.in_proj_weight 576,192")
    | listed("visual.attn_pool.attn.in_proj_bias 576; visual.attn_pool.attn.out_proj.weight+ 192,192")
    | listed("visual.attn_pool.layernorm.weight+ 192; visual.attn_pool.mlp.c_fc.weight+ 768,192")
    | listed("visual.attn_pool.mlp.c_proj.weight+ 192,768")
)
DINOV3 = (
    listed("cls_token 1,1,192; storage_tokens 1,4,192; mask_token 1,192; patch_embed.proj.weight+ 192,3,16,16")
    | listed("rope_embed.periods 16; norm.weight+ 192")
    | block(
        "blocks",
        "norm1.weight+ 192; attn.qkv.weight+ 576,192; attn.qkv.bias_mask 576; attn.proj.weight+ 192,192; ls1.gamma 192;"
        "norm2.weight+ 192; mlp.fc1.weight+ 768,192; mlp.fc2.weight+ 192,768; ls2.gamma 192",
    )
)
EVA02 = (
    listed("cls_token 1,1,768; pos_embed 1,257,768; patch_embed.proj.weight+ 768,3,14,14; rope.freqs_cos 256,64")
    | listed("rope.freqs_sin 256,64; fc_norm.weight+ 768; head.weight+ 10,768")
    | block(
        "blocks",
        "norm1.weight+ 768; attn.q_bias 768; attn.v_bias 768; attn.q_proj.weight 768,768; attn.k_proj.weight 768,768;"
        "attn.v_proj.weight 768,768; attn.rope.freqs_cos 256,64; attn.rope.freqs_sin 256,64; attn.inner_attn_ln.weight+ 768;"
        "attn.proj.weight+ 768,768; norm2.weight+ 768; mlp.w1.weight+ 2048,768; mlp.w2.weight+ 2048,768;"
        "mlp.ffn_ln.weight+ 2048; mlp.w3.weight+ 768,2048",
    )
)
AIMV2 = (
    listed("preprocessor.patchifier.proj.weight+ 1024,3,14,14; preprocessor.patchifier.norm.weight 1024")
    | listed("preprocessor.pos_embed 1,256,1024; trunk.post_trunk_norm.weight 1024")
    | block(
        "trunk.blocks",
        "norm_1.weight 1024; attn.qkv.weight 3072,1024; attn.proj.weight 1024,1024; norm_2.weight 1024;"
        "mlp.fc1.weight 2816,1024; mlp.fc3.weight 2816,1024; mlp.fc2.weight 1024,2816",
    )
)
BARE = {
    "CLIP of open_clip": OPEN_CLIP,
    "PE of Meta": PE,
    "DINOv3 of Meta": DINOV3,
    "EVA02 of BAAI": EVA02,
    "AIMv2 of Apple": AIMV2,
}
TIMM = {
    "CLIP of timm": ("vit_base_patch16_clip_quickgelu_224", {}),
    "SigLIP of timm": ("vit_base_patch16_siglip_224", {}),
    "DINOv3 of timm": ("vit_small_patch16_dinov3_qkvb", {}),
    "DINOv3 of timm, gated": ("vit_small_plus_patch16_dinov3_qkvb", {}),
    "DINOv2 giant of timm": ("vit_giant_patch14_reg4_dinov2", {"patch_size": 16}),
    "EVA02 of timm": ("eva02_base_patch14_448", {"patch_size": 16}),
    "EVA02 of timm, packed": ("eva02_tiny_patch14_224", {"patch_size": 16}),
    "PE of timm": ("vit_pe_core_base_patch16_224", {}),
    "BEiT of timm": ("beit_base_patch16_224", {}),
    "AIMv2 of timm": ("aimv2_large_patch14_224", {"patch_size": 16}),
    "mixed RoPE of timm": ("vit_base_patch16_rope_mixed_224", {}),
}
TRANSFORMERS = {
    "CLIP of transformers": ("clip, projected", {}),
    "CLIP of transformers, classified": ("clip, classified", {}),
    "SigLIP of transformers": ("siglip", {}),
    "SigLIP of transformers, classified": ("siglip, classified", {}),
    "SigLIP 2 NaFlex": ("siglip 2", {}),
    "DINOv3 of transformers": ("dinov3", {}),
    "DINOv3 of transformers, gated": ("dinov3, gated", {}),
    "DINOv2 of transformers, gated": ("dinov2, gated", {}),
    "BEiT of transformers": ("beit", {}),
    "AIMv2 of transformers": ("aimv2", {}),
}
FAMILIES = (*BARE, *TIMM, *TRANSFORMERS)


@dataclass(frozen=True)
class Header:
    """A file's keys and shapes, the types of those that are not float32, and the folder with what stands beside it."""

    shapes: Shapes
    types: dict[str, str]
    beside: Path | None = None
    asked: dict[str, str] = field(default_factory=dict)  # what nothing tells

    def described(self, folder: Path) -> Description:
        return describe(self.written(folder), self.asked)

    def written(self, folder: Path) -> Path:
        """A file with this header and no numbers."""
        path = folder / ("weights.safetensors" if self.beside is None else "model.safetensors")
        if self.beside is not None:
            for file in self.beside.glob("*.json"):
                shutil.copy(file, folder)
        tree, end = {}, 0
        for key, shape in self.shapes.items():
            kind = self.types.get(key, "F32")
            start, end = end, end + math.prod(shape) * DTYPE_BYTES[kind]
            tree[key] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(tree).encode()
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        return path


def header_of(family: str, folder: Path) -> Header:
    """Of a file as the family's code writes it."""
    if family in BARE:
        return Header(BARE[family], {}, asked={"model.gelu": "quick"} if family == "CLIP of open_clip" else {})
    if family in TIMM:
        name, arguments = TIMM[family]
        of_timm(folder, name, img_size=(64, 64), **arguments)
    else:
        name, arguments = TRANSFORMERS[family]
        of_transformers(folder, name, **arguments)
    header = read_header(folder / "model.safetensors")
    return Header(dict(header.shapes), {}, folder)


# --- what is changed ---------------------------------------------------------------------------------------

Mutation = tuple[Header, tuple[str, ...], str]
"""The header, the keys of which one must be named, and what was done."""


def removed(header: Header, random: random.Random) -> Mutation:
    key = random.choice(list(header.shapes))
    return replace(header, shapes={k: s for k, s in header.shapes.items() if k != key}), (key,), "removed"


def renamed(header: Header, random: random.Random) -> Mutation:
    key = random.choice([key for key in header.shapes if len(key) > 3])
    place = random.randrange(len(key) - 1)
    wrong = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
    wrong = wrong if wrong != key and wrong not in header.shapes else f"{key}s"
    return (
        replace(header, shapes={wrong if k == key else k: s for k, s in header.shapes.items()}),
        (key, wrong),
        "renamed",
    )


def resized(header: Header, random: random.Random) -> Mutation:
    key = random.choice([key for key, shape in header.shapes.items() if shape])
    shape = list(header.shapes[key])
    axis = random.randrange(len(shape))
    shape[axis] = max(0, shape[axis] + random.choice([-1, 1, 2, shape[axis]]))
    return replace(header, shapes=header.shapes | {key: tuple(shape)}), (key,), "resized"


def reshaped(header: Header, random: random.Random) -> Mutation:
    key = random.choice(list(header.shapes))
    shape = header.shapes[key]
    shape = random.choice([(1, *shape), (*shape, 1), (*shape, 2), shape[1:], shape[:-1]])
    shape = (2, *shape) if shape == header.shapes[key] else shape
    return replace(header, shapes=header.shapes | {key: shape}), (key,), "reshaped"


def strayed(header: Header, random: random.Random) -> Mutation:
    inside = [key for key in header.shapes if re.search(r"\.\d+\.", key)]
    key = random.choice(inside)
    stem = key[: re.search(r"\.\d+\.", key).end()]  # type: ignore[union-attr]
    stray = stem + random.choice(["adapter.weight", "attn.lora_a.weight", "norm3.weight", "mlp.fc9.bias", "gate"])
    return (
        replace(header, shapes=header.shapes | {stray: random.choice([(), (1,), (7,), (96, 96)])}),
        (stray,),
        "a stray key",
    )


def beyond(header: Header, random: random.Random) -> Mutation:
    key = random.choice([key for key in header.shapes if re.search(r"\.1\.", key)])
    far = re.sub(r"\.1\.", f".{random.choice([2, 3, 17])}.", key, count=1)
    return replace(header, shapes=header.shapes | {far: header.shapes[key]}), (far,), "a block beyond"


def swapped(header: Header, random: random.Random) -> Mutation:
    one = random.choice(list(header.shapes))
    other = random.choice([key for key, shape in header.shapes.items() if shape != header.shapes[one]])
    shapes = header.shapes | {one: header.shapes[other], other: header.shapes[one]}
    return replace(header, shapes=shapes), (one, other), "swapped"


def quantised(header: Header, random: random.Random) -> Mutation:
    key = random.choice(list(header.shapes))
    return replace(header, types={key: "I8"}), (key,), "quantised"


MUTATIONS: tuple[Callable[[Header, random.Random], Mutation], ...] = (
    removed, renamed, resized, reshaped, strayed, beyond, swapped, quantised,
)  # fmt: skip

# --- each is read rightly or refused by name ---------------------------------------------------------------

ANOTHER = {"visual.proj": {"classes"}, "storage_tokens": {"registers", "posemb"}}
"""Keys without which a file alone is another model's as well, and what is other of it."""
PATCHES = ("visual.conv1.weight", "patch_embed.proj.weight", "preprocessor.patchifier.proj.weight")
"""Of files alone, of which nothing tells the patch but this array."""


def dropped(description: Description) -> set[str]:
    return {row.key for row in description.report if row.fate == "dropped"}


def plain(shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Without leading axes of one, which a token has or not."""
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def is_right(header: Header, new: Header, keys: tuple[str, ...], before: Description, after: Description) -> bool:
    """Whether a changed file is the same model, the change being in what is left out, or rightly another one."""
    left_out = dropped(before) | dropped(after)
    same = all(key in left_out or plain(new.shapes.get(key)) == plain(header.shapes.get(key)) for key in keys)
    if before.model == after.model:
        return same
    if header.beside is not None:
        return False
    changed = {key for key, value in vars(before.model).items() if getattr(after.model, key) != value}
    if keys[0] in PATCHES:
        return changed <= {"patch", "img_size", "name"} and after.model.patch == new.shapes[keys[0]][2:]  # type: ignore[union-attr]
    return changed == ANOTHER.get(keys[0], set())


def check(family: str, folder: Path, rounds: int) -> int:
    """Every mutation `rounds` times: how many were refused, each with the name of a changed key."""
    made, changed = folder / "made", folder / "changed"
    made.mkdir()
    changed.mkdir()
    header, chance, refused = header_of(family, made), random.Random(family), 0
    before = header.described(changed)
    for mutate in MUTATIONS * rounds:
        new, keys, what = mutate(header, chance)
        try:
            after = new.described(changed)
        except CheckpointError as error:
            assert any(key in error.message for key in keys), f"{what}: {keys}: {error.message}"
            refused += 1
        else:
            assert is_right(header, new, keys, before, after), f"{what}: {keys} is read as {after.model}"
    return refused


@pytest.mark.parametrize("family", FAMILIES)
def test_a_header_with_one_change_is_read_rightly_or_refused_by_name(tmp_path, family):
    assert check(family, tmp_path, 3) > 12


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("aimv2_large_patch14_224", {"patch_size": 16, "global_pool": "map"}, "global_pool"),
        ("vit_small_patch16_dinov3", {"rope_grid_offset": 1.0}, "rope_grid_offset"),
        ("vit_giant_patch14_clip_224", {"patch_size": 16, "fc_norm": True}, "fc_norm"),
    ],
)
def test_an_argument_of_timm_that_vit_cannot_follow_is_named(tmp_path, name, arguments, said):
    of_timm(tmp_path, name, img_size=(64, 64), **arguments)
    with pytest.raises(CheckpointError, match=said):
        describe(tmp_path / "model.safetensors")


def test_a_pooling_that_vit_has_not_is_replaced_only_on_request(tmp_path):
    of_transformers(tmp_path, "aimv2", use_head=True)
    with pytest.raises(CheckpointError, match=r"head\.cls_token"):
        describe(tmp_path / "model.safetensors")
    assert describe(tmp_path / "model.safetensors", {"model.pool": "mean"}).vit.pool == "mean"
