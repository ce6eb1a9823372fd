"""From a file's keys to vit's, and back: which layout a file has, where in it the weights are, what becomes of each key."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from vitcli.errors import CheckpointError
from vitcli.families.base import Shape
from vitcli.weights.layout import Keys, Layout, filled, pattern
from vitcli.weights.layouts import LAYOUTS
from vitcli.weights.spelled import Spelling, prefix_of

Shapes = Mapping[str, Shape]

_PREFIXES = ("module.", "_orig_mod.")
_WITHIN = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into keys, at any depth."""


# --- what vit writes ---------------------------------------------------------------------------------------

_FILE_KEYS = ("embeddings.", "encoder.", "layernorm.", "pooler.", "pre_layrnorm.", "post_layernorm.", "head.")


def keys_for(name: str, layout: Layout, prefix: str = "") -> list[tuple[str, str]]:
    """The keys that a file of `layout` has for vit's tensor `name`, each with its part (q, k, v, or empty for all of it).

    `prefix` is put before what is not a head. Where a table has several keys for one, its first is what files have.
    """
    keys: dict[str, str] = {}
    for key, target in layout.table.items():
        target, _, which = target.partition("@")[0].partition("[")
        match = pattern(target).match(name)
        if match is not None and which not in keys:
            keys[which] = (prefix if key.startswith(_FILE_KEYS) else "") + filled(key, match)
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
    whole: bool = True  # what no such model is without is there


@dataclass(frozen=True)
class Found:
    """A recognised file: where each of vit's tensors comes from, and the report on every key."""

    layout: Layout
    parts: Mapping[str, tuple[Part, ...]]  # by vit's name; several are joined along the first axis
    report: tuple[Row, ...]
    strays: Mapping[str, Shape]  # keys that are no part of the layout: an error once the architecture is known
    spelling: Spelling
    heads: int | None = None  # where the arrays say so

    @property
    def prefix(self) -> str:
        """Before all keys of the model."""
        return self.spelling.outer

    def spelt(self, name: str) -> str:
        """The file's own key for one of vit's tensors."""
        return self.spelling.of(name)

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


WHOLE = "the file must hold a whole model"
_MOST_PLACES = 32  # students, teachers and averages in one table: a training script has a handful


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
            place = Place(prefix, recognise(inside, "", prefix), False)
        except CheckpointError:
            continue
        try:
            parts = find(inside, "", place).parts
            found.append(replace(place, whole=parts.keys() >= set(place.layout.needed)))
        except CheckpointError:
            found.append(place)  # what is wrong with it is said where nothing else is whole
    return found


def best_place(shapes: Shapes) -> tuple[Place | None, list[Place]]:
    """Where the weights are, and where else there is a whole ViT: averages over training first, as timm takes them."""
    found = places(shapes)
    whole = [place for place in found if place.whole] or found[:1]
    first = next((place for place in whole if is_average(place.prefix)), whole[0] if whole else None)
    return first, [place for place in whole if place is not first]


def _beginless(shapes: Shapes, where: str) -> Place:
    """Where a ViT is that lacks the key by which its layout begins. Raises CheckpointError."""
    usual = Counter(key.partition(".")[0] for key in shapes).most_common(1)
    try:
        return Place("", recognise(shapes, where), False)
    except CheckpointError:
        before = f"{usual[0][0]}." if usual and 2 * usual[0][1] >= len(shapes) else ""
        if before not in ("", *_PREFIXES):
            with contextlib.suppress(CheckpointError):
                return Place(before, recognise(shapes, where, before), False)
        raise


def recognise(keys: Iterable[str], where: str, prefix: str = "") -> Layout:
    """The family of which a marker is among the keys. Raises CheckpointError."""
    keys = list(keys)
    known: dict[tuple[str, ...], Keys] = {}
    for layout in LAYOUTS:
        if layout.prefixes not in known:
            known[layout.prefixes] = Keys(_names(keys, layout, prefix).values())
        if layout.is_of(known[layout.prefixes]):
            return layout
    raise CheckpointError(
        f"{where} has weights of an unknown layout: {len(keys)} keys, such as {', '.join(keys[:4])}",
        "vit reads ViT weights as timm, transformers, torchvision, Google, DeiT, MAE and DINOv2 write them, and BiT's",
    )


def _after(op: str, shape: Shape) -> tuple[str, Shape]:
    """The shape that `op` makes. Raises ValueError where the array has not the axes for it."""
    axes = {"": None, "transpose": 2, "hwio": 4, "hwio_matrix": 4, "matrix": 4, "heads_in": 3, "heads_out": 3, "flat": 2,
            "vector": None, "pixels": None, "q": None, "kv": None, "qv": None}[op]  # fmt: skip
    if axes is not None and len(shape) != axes:
        raise ValueError(f"an array of shape {shape}, not of {axes} axes")
    if op == "transpose":
        return op, shape[::-1]
    if op == "hwio":
        return op, (shape[3], shape[2], shape[0], shape[1])
    if op in ("matrix", "hwio_matrix"):
        if (ones := shape[2:] if op == "matrix" else shape[:2]) != (1, 1):
            raise ValueError(f"a convolution of {ones}, not of one pixel")
        return op, shape[:2] if op == "matrix" else shape[:1:-1]
    if op == "vector":
        return op, (math.prod(shape),)
    if op == "pixels":
        return _as_filters(shape)
    if op in THIRDS:
        if not shape or shape[0] % 3:
            raise ValueError(f"an array of shape {shape}, not of three parts")
        return op, (shape[0] // 3 * len(THIRDS[op]), *shape[1:])
    if op == "heads_in":
        return op, (shape[1] * shape[2], shape[0])
    if op == "heads_out":
        return op, (shape[2], shape[0] * shape[1])
    if op == "flat":
        return op, (shape[0] * shape[1],)
    return op, shape


THIRDS = {"q": (0,), "kv": (1, 2), "qv": (0, 2)}
"""Which of three parts along the first axis an operation takes: of q, k and v in one array."""


def _as_filters(shape: Shape) -> tuple[str, Shape]:
    """Rows of the pixels of square patches, channels innermost, as filters; filters as they are. Raises ValueError."""
    if len(shape) == 4:
        return "", shape
    side = math.isqrt(shape[-1] // 3) if len(shape) == 2 else 0
    if not side or 3 * side * side != shape[1]:
        raise ValueError(f"an array of shape {shape}, not of patches of three channels")
    return "pixels", (shape[0], 3, side, side)


_AXES = {"cls_token": 3, "dist_token": 3, "reg_token": 3, "pos_embed": 3}
_FEWEST = {"reg_token": 2, "pos_embed": 2}


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
            "embeddings", "layernorm", "pooler", "classifier", "heads", "vision_model", "Transformer", "cls",
            "stem", "stages", "root", "body", "resnet", "bit", "embedder", "layer", "transformer", "trunk", "preprocessor", "rope",
            "pre_layrnorm", "post_layernorm", "ln_pre", "ln_post"}  # fmt: skip


def find(shapes: Shapes, where: str, place: Place | None = None) -> Found:
    """Recognise a file by its keys and account for each of them. Raises CheckpointError."""
    shapes = unscanned(shapes)
    place = place or best_place(shapes)[0] or _beginless(shapes, where)
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
        for written in filled(row[1], row[0]).split("|"):
            target, _, op = written.partition("@")
            target, _, which = target.partition("[")
            try:
                op, shape = _after(op, shapes[key])
                if which == "q" and op == "heads_in":
                    heads = shapes[key][1]
            except ValueError as error:
                raise CheckpointError(f"{where}: {key} is {error}", WHOLE) from None
            if len(shape) >= _FEWEST.get(target, 0):
                shape = (1,) * (_AXES.get(target, 0) - len(shape)) + shape
            if which in parts.get(target, {}):
                raise CheckpointError(f"{where}: {key} and {parts[target][which].key} are both {target}", WHOLE)
            parts.setdefault(target, {})[which] = Part(key, op, shape)
        report.append(Row(key, "used" if key == target else "renamed", target))
    parts = _spread(parts)
    keys_of = {name: {which: part.key for which, part in found.items()} for name, found in parts.items()}
    spelling = Spelling(layout, keys_of, prefix_of(names), place.prefix)
    gated = any("g" in found for found in parts.values())
    keyed = any("k" in found for name, found in parts.items() if name.endswith("attn.qkv.bias"))
    joined = {name: _joined(found, name, where, spelling, (gated, keyed)) for name, found in parts.items()}
    return Found(layout, joined, tuple(report), strays, spelling, heads)


def is_wanted(key: str, place: Place) -> bool:
    """Whether the layout has `key`, so that a file in which it cannot be read is not whole."""
    name = _names([key], place.layout, place.prefix).get(key)
    return name is not None and any(pattern.match(name) for pattern, _ in place.layout.rows)


def _spread(parts: dict[str, dict[str, Part]]) -> dict[str, dict[str, Part]]:
    """What a file has once for all blocks, `blocks.*.…`, as each block's."""
    blocks = {name.split(".")[1] for name in parts if name.startswith("blocks.")} - {"*"}
    spread = {name: found for name, found in parts.items() if ".*." not in name}
    for name in parts.keys() - spread.keys():
        for i in blocks:
            spread.setdefault(name.replace("*", i), parts[name])
    return spread


def _joined(
    parts: Mapping[str, Part], name: str, where: str, spelling: Spelling, has: tuple[bool, bool]
) -> tuple[Part, ...]:
    """q, k and v in this order, gate and value, or the one part. Raises CheckpointError where some are missing or do not fit."""
    if "" in parts:
        if len(parts) > 1:
            raise CheckpointError(f"{where}: {', '.join(p.key for p in parts.values())} are all {name}", WHOLE)
        return (parts[""],)
    gated, keyed = has  # whether some block has a gate, and a bias of keys
    if (
        parts.keys() == {"x"} and not gated
    ):  # transformers' DINOv3 calls a plain MLP's first layer as a gated one's values
        return (parts["x"],)
    order = "gx" if "g" in parts or "x" in parts else "kv" if name.startswith("attn_pool.") else "qkv"
    if name.endswith("attn.qkv.bias") and "k" not in parts and not keyed:
        order = "qv"
    missing = [which for which in order if which not in parts]
    if missing:
        held = ", ".join(part.key for part in parts.values())
        words = " and ".join({"g": "gate", "x": "value"}.get(which, which) for which in missing)
        keys = " and ".join(spelling.missing(name, which) for which in missing)
        raise CheckpointError(f"{where}: {name} lacks its {words}, {keys}, beside {held}", WHOLE)
    if len({p.shape for p in parts.values()}) > 1:
        shapes = ", ".join(f"{p.key} {p.shape}" for p in parts.values())
        raise CheckpointError(f"{where}: the parts of {name} have different shapes: {shapes}", WHOLE)
    return tuple(parts[which] for which in order)


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
