"""What the configuration files beside somebody else's weights say, and what a training script kept in its file.

timm's and transformers' config.json, preprocessor_config.json, the args.yaml of a folder that timm's train.py wrote, and
the arguments in a checkpoint. What changes the numbers of a model is used or refused by name, never passed over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitcli import files
from vitcli.classes import Class, from_json
from vitcli.config import EvalConfig, Size, parse_value
from vitcli.config_values import check_bounds
from vitcli.errors import CheckpointError, UsageError
from vitcli.weights import names as named
from vitcli.weights.header import check_nodes

_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_GELU = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_accurate": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_python_tanh": "tanh",
    "gelu_tanh": "tanh",
    "gelu_erf": "erf",
}
_POOLS = {"token": "cls", "avg": "mean"}
_OTHERS = "timm and transformers run it; vit has none of it"


@dataclass(frozen=True)
class Beside:
    """None, or nothing, where the files are silent or say what vit does not have."""

    heads: int | None = None
    img_size: Size | None = None
    norm_eps: float | None = None
    gelu: str | None = None
    pool: str | None = None
    eval: EvalConfig | None = None
    classes: Sequence[Class] = ()
    names: tuple[str, ...] = ()  # of the architecture, the surest first

    def over(self, below: Beside) -> Beside:
        """This, and where it is silent what `below` says."""
        values = {
            key: getattr(self, key) if getattr(self, key) not in (None, ()) else getattr(below, key)
            for key in self.__dataclass_fields__
        }
        return Beside(**values | {"names": (*self.names, *below.names)})


def read_beside(weights: Path, usual: EvalConfig, pooler: bool = False) -> Beside:
    """What stands beside a file that a folder or the hub gives its usual name; `usual` is its layout's preprocessing.
    `pooler`: the file has a layer between class token and head.

    Raises CheckpointError where it names an activation, a pooling or a layer that vit does not have: the numbers would be others.
    Likewise for a value that cannot be, and for a file that is none or too large.
    """
    said = Beside()
    if is_usual(weights):
        path = weights.parent / "config.json"
        steps = weights.parent / "preprocessor_config.json"
        config, processor = _json(path), _json(steps)
        if isinstance(config.get("pretrained_cfg"), dict):
            said = _timm(config, usual, path)
        else:
            said = _transformers(config, usual, path, pooler)
            said = replace(said, eval=_processor(processor, usual, steps) if processor else None)
    if is_of_training(weights):
        path = weights.parent / "args.yaml"
        said = said.over(from_training(read_flat_yaml(path), usual, path))
    return said


def is_usual(weights: Path) -> bool:
    """Whether a file has one of the names for the weights of the folder that it is in."""
    return weights.name.partition(".")[0] in ("model", "pytorch_model") and weights.suffix in (
        ".safetensors", ".bin", ".json", ".pth", ".pt",
    )  # fmt: skip


def is_of_training(weights: Path) -> bool:
    """Whether a file has a name that timm's train.py gives."""
    return re.fullmatch(r"(model_best|last|checkpoint-\d+|recovery-\d+-\d+)\.pth\.tar", weights.name) is not None


_LARGEST = 8 << 20  # bytes of a file of configuration; one with the names of ImageNet-21k has two megabytes


def _content(path: Path, most: int = _LARGEST) -> bytes:
    """What stands in a file; nothing where there is none. Raises CheckpointError where it cannot be read."""
    try:
        return files.read_plain(path, most)
    except FileNotFoundError:
        return b""
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}",
            "it stands beside the weights: remove it",
        ) from None


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is no file, or no object in it. Raises CheckpointError as `_content`, and
    for what is no JSON.
    """
    text = _content(path)
    try:
        check_nodes(text)
        tree = json.loads(text or b"{}")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not JSON that can be read: {error!s:.80}", "copy or download it again, or remove it"
        ) from None
    return tree if isinstance(tree, dict) else {}


def read_flat_yaml(path: Path) -> dict[str, Any]:
    """The top level of what yaml.safe_dump writes of a script's arguments: numbers, texts, lists of these and one more level.

    Whatever else is in the file is left out; nothing is built from tags. Raises CheckpointError as `_content`.
    """
    lines = _content(path, 1 << 20).decode("utf-8", "replace").splitlines()
    tree: dict[str, Any] = {}
    key = ""
    for line in lines:
        top, item, inner = (
            re.fullmatch(pattern, line) for pattern in (r"(\w+):(?: (.*))?", r" *- (.*)", r" +(\w+): (.*)")
        )
        if top is not None:
            key = top[1]
            tree[key] = _scalar(top[2] or "")
        elif item is not None and key:
            tree[key] = tree[key] if isinstance(tree[key], list) else []
            tree[key].append(_scalar(item[1]))
        elif inner is not None and key:
            tree[key] = tree[key] if isinstance(tree[key], dict) else {}
            tree[key][inner[1]] = _scalar(inner[2])
    return tree


def _scalar(text: str) -> Any:
    plain: dict[str, Any] = {"null": None, "~": None, "": None, "true": True, "false": False, "{}": {}, "[]": []}
    if text.strip().lower() in plain:
        return plain[text.strip().lower()]
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text.strip().strip("'\"")


def _as_key(path: Path, name: str, key: str, value: Any) -> Any:
    """`value`, that a file has under `name`, as that of a key of the configuration. Raises CheckpointError where it cannot be."""
    try:
        read = parse_value(key, value)
        if key.startswith("eval."):
            check_bounds("eval", replace(EvalConfig(), **{key.partition(".")[2]: read}))
        return read
    except (UsageError, ValueError) as error:
        text = error.message if isinstance(error, UsageError) else f"{key}: {error!s:.80}"
        raise CheckpointError(f"{path}: {text.replace(key, name, 1)}", "is the file damaged?") from None


def _checked(path: Path, usual: EvalConfig, said: dict[str, tuple[str, Any]]) -> EvalConfig | None:
    """`usual` with what a file says: for each field the file's own name of it and its value. None where the interpolation is
    one that vit does not have. Raises CheckpointError for a value that cannot be.
    """
    method = said["interpolation"][1]
    other = isinstance(method, str) and method not in _RESAMPLE.values()
    values = {
        field: _as_key(path, name, f"eval.{field}", value)
        for field, (name, value) in said.items()
        if value is not None and not (field == "interpolation" and other)
    }
    return None if other else replace(usual, **values)


_MOST_PIXELS = 100_000


def _size(path: Path, name: str, value: Any) -> Size | None:
    """A side, or height and width. Raises CheckpointError for anything else but None."""
    if isinstance(value, dict) and {"height", "width"} <= value.keys():
        value = [value["height"], value["width"]]
    size: Size | None = None if value is None else _as_key(path, name, "model.img_size", value)
    if size and max(size) > _MOST_PIXELS:
        raise CheckpointError(f"{path}: {name} = {_shown(max(size))} is the side of no image", "is the file damaged?")
    return size


def _count(path: Path, name: str, value: Any) -> int | None:
    """A number of heads or pixels. Raises CheckpointError for anything else but None."""
    if value is None or (type(value) is int and 0 < value <= _MOST_PIXELS):
        return value
    raise CheckpointError(f"{path}: {name} = {_shown(value)} is no such number", "is the file damaged?")


def _shown(value: Any) -> str:
    """A value for an error. What is nested may be a stranger's, and endless."""
    return json.dumps(value)[:60] if isinstance(value, (str, int, float, bool, type(None))) else "an object"


# --- timm --------------------------------------------------------------------------------------------------

_ANY = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init",
        "fix_init", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "num_classes", "device", "dtype", "img_size",
        "patch_size", "embed_dim", "depth", "mlp_ratio", "class_token", "reg_tokens", "init_values", "no_embed_class",
        "fc_norm", "scriptable", "exportable", "no_jit", "pretrained", "checkpoint_path", "cache_dir")  # fmt: skip
"""Arguments of timm's VisionTransformer that change nothing outside training, and those that the arrays tell."""

_ONLY: dict[str, tuple[Any, ...]] = {
    "in_chans": (3,),
    "global_pool": ("token", "avg", ""),
    "qkv_bias": (True,),
    "qk_norm": (False,),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "proj_bias": (True,),
    "pos_embed": ("learn",),
    "pre_norm": (False,),
    "final_norm": (True,),
    "pool_include_prefix": (False,),
    "embed_layer": (),
    "embed_norm_layer": (),
    "norm_layer": ("layernorm", "layernormfp32"),
    "act_layer": ("gelu", "gelu_tanh"),
    "block_fn": (),
    "mlp_layer": (),
    "attn_layer": ("", "attn"),
}
"""The values of the others that vit can compute, beside None, with which timm takes its own."""


def _check_arguments(arguments: Mapping[Any, Any], where: Path) -> None:
    """Raises CheckpointError for an argument of timm's VisionTransformer that vit does not know or cannot follow."""
    for key, value in arguments.items():
        name = str(key)[:40]
        if value is None or name in _ANY:
            continue
        if name == "num_heads":
            _count(where, name, value)
            continue
        if name not in _ONLY:
            raise CheckpointError(f"{where}: {name} = {_shown(value)} is an argument that vit does not know", _OTHERS)
        plain = value.replace("_", "").lower() if name == "norm_layer" and isinstance(value, str) else value
        if not any(type(plain) is type(known) and plain == known for known in _ONLY[name]):
            raise CheckpointError(f"{where}: {name} = {_shown(value)} is nothing that vit can compute", _OTHERS)


def _timm(config: dict[str, Any], usual: EvalConfig, path: Path) -> Beside:
    """A folder that timm wrote, or vit: `model_args` overrides what the architecture's name implies."""
    cfg = config["pretrained_cfg"]
    given = config.get("model_args")
    arguments: dict[str, Any] = given if isinstance(given, dict) else {}
    _check_arguments({"global_pool": config.get("global_pool")} | arguments, path)
    mode = cfg.get("crop_mode") or "center"
    resize = {"squash": "square", "center": "short"}.get(mode if isinstance(mode, str) else "")
    said = _checked(
        path,
        usual,
        {
            "crop": ("crop_pct", cfg.get("crop_pct")),
            "resize": ("crop_mode", resize),
            "interpolation": ("interpolation", cfg.get("interpolation", "bicubic")),
            "mean": ("mean", cfg.get("mean")),
            "std": ("std", cfg.get("std")),
        },
    )
    size = cfg.get("input_size")
    size = size[1:] if isinstance(size, list) and len(size) == 3 else size
    name = config["architecture"] if isinstance(config.get("architecture"), str) else ""
    act = named.activation(name)
    return Beside(
        heads=arguments.get("num_heads"),
        img_size=_size(path, "img_size", arguments.get("img_size")) or _size(path, "input_size", size),
        norm_eps=_TIMM_EPS if act and arguments else None,
        gelu=_GELU.get(str(arguments.get("act_layer"))) or (act if arguments else None),
        pool=_POOLS.get(str(arguments.get("global_pool") or config.get("global_pool")))
        or (named.pooling(name, arguments.get("class_token") is not False) if act and arguments else None),
        eval=said if "mean" in cfg and resize else None,
        classes=_named(config.get("label_names"), path),
        names=(name,) if name else (),
    )


_TIMM_EPS = 1e-6  # of its LayerNorm, and so of every model that neither an argument nor its name gives another


def _named(names: Any, path: Path) -> tuple[Class, ...]:
    if not isinstance(names, list) or not names:
        return ()
    try:
        return from_json(names)
    except ValueError as error:
        raise CheckpointError(f"{path}: label_names: {error}", "is the file damaged?") from None


def from_training(arguments: Mapping[Any, Any], usual: EvalConfig, where: Path) -> Beside:
    """What the arguments of a training script say: timm's train.py (`model`, `gp`, `model_kwargs`, `mean` …), and the names
    that DeiT, torchvision and Lightning have for a model. Raises CheckpointError for a pooling or layer that vit does not have.
    """
    extra = arguments.get("model_kwargs")
    kwargs = dict(extra) if isinstance(extra, dict) else {}
    pool = arguments.get("gp")
    if isinstance(pool, str) and pool:
        kwargs["global_pool"] = pool
    if kwargs:
        _check_arguments(kwargs, where)
    given = [arguments.get(key) for key in ("model", "arch", "model_name", "architecture", "backbone", "net")]
    names = tuple(name for name in given if isinstance(name, str))
    act = next(filter(None, map(named.activation, names)), None) if kwargs else None
    mean, std, crop = (arguments.get(key) for key in ("mean", "std", "crop_pct"))
    whole = mean is not None and std is not None
    said = _checked(
        where,
        usual,
        {
            "mean": ("mean", mean if whole else None),
            "std": ("std", std if whole else None),
            "crop": ("crop_pct", crop),
            "interpolation": ("interpolation", arguments.get("interpolation") or None),
        },
    )
    sizes = (_size(where, "img_size", table.get("img_size")) for table in (kwargs, arguments))
    return Beside(
        heads=kwargs.get("num_heads"),
        img_size=next(filter(None, sizes), None),
        norm_eps=_TIMM_EPS if act else None,
        gelu=(_GELU.get(kwargs["act_layer"]) if isinstance(kwargs.get("act_layer"), str) else None) or act,
        pool=_POOLS.get(str(kwargs.get("global_pool"))),
        eval=said if whole else None,
        names=names,
    )


# --- transformers ------------------------------------------------------------------------------------------

_CLASSES: dict[str, tuple[str, float]] = {
    # model_type: the activation and epsilon of a configuration that says nothing (models/*/configuration_*.py)
    "vit": ("gelu", 1e-12),
    "vit_mae": ("gelu", 1e-12),
    "deit": ("gelu", 1e-12),
    "vit_msn": ("gelu", 1e-6),
    "dinov2": ("gelu", 1e-6),
    "dinov2_with_registers": ("gelu", 1e-6),
    "siglip": ("gelu_pytorch_tanh", 1e-6),
    "siglip_vision_model": ("gelu_pytorch_tanh", 1e-6),
}
_HEADS = 12  # of all of them

_REQUIRED: dict[str, Any] = {
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "use_mean_pooling": False,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "use_absolute_position_embeddings": True,
    "num_channels": 3,
}
"""What vit computes, of what changes the numbers of one of these classes."""


def _transformers(config: dict[str, Any], usual: EvalConfig, path: Path, pooler: bool) -> Beside:
    vision = config.get("vision_config") if isinstance(config.get("vision_config"), dict) else config
    assert isinstance(vision, dict)
    kind = vision.get("model_type", config.get("model_type"))
    act, eps = vision.get("hidden_act"), vision.get("layer_norm_eps")
    usual_act, usual_eps = _CLASSES.get(kind, (None, None)) if isinstance(kind, str) else (None, None)
    act, eps = usual_act if act is None else act, usual_eps if eps is None else eps
    if act is not None and (not isinstance(act, str) or act not in _GELU):
        raise CheckpointError(
            f"{path}: hidden_act {_shown(act)} is not a GELU that vit has", f"known: {', '.join(sorted(_GELU))}"
        )
    for key, wanted in _REQUIRED.items():
        if vision.get(key, wanted) not in (wanted, None):
            raise CheckpointError(f"{path}: {key} = {_shown(vision[key])} is nothing that vit can compute", _OTHERS)
    if pooler and vision.get("pooler_act") not in (None, "tanh"):
        raise CheckpointError(
            f"{path}: pooler_act = {_shown(vision['pooler_act'])}, and vit's layer before the head is tanh", _OTHERS
        )
    if eps is not None and (type(eps) not in (int, float) or not 0 < eps < 1):
        raise CheckpointError(f"{path}: layer_norm_eps = {_shown(eps)} is no small number", "is the file damaged?")
    return Beside(
        heads=_count(path, "num_attention_heads", vision.get("num_attention_heads"))
        or (None if usual_act is None else _HEADS),
        img_size=_size(path, "image_size", vision.get("image_size")),
        norm_eps=eps,
        gelu=_GELU.get(str(act)),
        classes=_labels(config.get("id2label"), path),
    )


def _labels(names: Any, path: Path) -> tuple[Class, ...]:
    """The classes that a table from index to name has; none where all have the name that transformers makes up."""
    if not isinstance(names, dict):
        return ()
    wrong = next((key for key, name in names.items() if not isinstance(name, (str, int, float))), None)
    if wrong is not None:
        raise CheckpointError(f"{path}: id2label.{wrong[:80]} is no name", "is the file damaged?")
    if all(str(name).startswith("LABEL_") for name in names.values()):
        return ()
    try:
        return tuple(Class(str(names[key])) for key in sorted(names, key=int))
    except ValueError:
        return ()


def _processor(tree: dict[str, Any], usual: EvalConfig, path: Path) -> EvalConfig | None:
    """An image processor's steps: resized to a size or to a short side, the centre cut out. Raises CheckpointError."""
    size, cut = tree.get("size"), _size(path, "crop_size", _sides(tree.get("crop_size")))
    short = _count(path, "size.shortest_edge", size.get("shortest_edge")) if isinstance(size, dict) else None
    square = None if short else _size(path, "size", _sides(size))
    config = usual
    if short is not None or square is not None:
        side = short or (square[0] if square else 0)
        crops = bool(tree.get("do_center_crop")) and cut is not None and 0 < cut[0] <= side
        config = replace(
            usual,
            resize="short" if square is None else "square",
            crop=_part(cut[0], side) if crops and cut is not None else 1.0,
        )
    plain = tree.get("do_normalize", True) is False
    resample, factor = tree.get("resample", 2), tree.get("rescale_factor", 1 / 255)
    if type(resample) is not int or type(factor) not in (int, float) or not 0 <= factor < 1e6:
        name = "rescale_factor" if type(resample) is int else "resample"
        raise CheckpointError(f"{path}: {name} = {_shown(tree[name])} is no number", "is the file damaged?")
    said = _checked(
        path,
        config,
        {
            "interpolation": ("resample", _RESAMPLE.get(resample, "none")),
            "crop": ("crop_size", config.crop),
            "mean": ("image_mean", [0.0] * 3 if plain else tree.get("image_mean")),
            "std": ("image_std", [1.0] * 3 if plain else tree.get("image_std")),
        },
    )
    if tree.get("do_rescale", True) is not True or abs(factor - 1 / 255) > 1e-6:
        return None  # pixels in another range than the statistics of vit's are of
    return said


def _sides(value: Any) -> Any:
    """None for a size of another kind, such as a longest edge."""
    return None if isinstance(value, dict) and not {"height", "width"} <= value.keys() else value


def _part(cut: int, side: int) -> float:
    """cut / side, so that the size over it, rounded down, is `side` again."""
    part = cut / side
    return part if int(cut / part) == side else math.nextafter(part, 0)
