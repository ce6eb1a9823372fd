"""The weights file that CKPT names."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from pathlib import Path

from vitcli import hub
from vitcli.config_values import shown
from vitcli.errors import CheckpointError, did_you_mean
from vitcli.families import pretrained
from vitcli.runs import WEIGHTS
from vitcli.weights.names import check_read
from vitcli.weights.sidecars import is_of_training
from vitcli.weights.stored import INDICES, PICKLES, read_index

_USUAL = (
    *(WEIGHTS, "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)

_BY_TIMM = ("model_best.pth.tar", "last.pth.tar")


def locate(reference: str) -> Path:
    """The weights file that CKPT names: a file, a run or export folder, or a hub id. Raises CheckpointError."""
    try:
        path = Path(reference).expanduser()
        folder = path.is_dir()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"no checkpoint {reference[:200]!r}: {str(error)[:100]}", "give a weights file, a run folder or a hub id"
        ) from None
    if folder:
        for name in _USUAL:
            if (path / name).is_file():
                return path / name
        kept = left_by_training(path)
        if kept:
            return kept[0]
        alone = [f for f in sorted(path.iterdir()) if f.is_file() and f.suffix in (".safetensors", ".npz", *PICKLES)]
        if len(alone) == 1:
            return alone[0]
        if not (path / "state").is_dir() and _holds_images(path):
            raise CheckpointError(
                f"{path} is a folder of images, not a checkpoint",
                f"data follow --data, as in vit finetune deit_tiny_patch16_224 --data {path}",
            )
        unfinished = " yet: the run is unfinished" if (path / "state").is_dir() else ""
        raise CheckpointError(
            f"{path} holds no {WEIGHTS}{unfinished}" if len(alone) < 2 else f"{path} holds {len(alone)} weights files",
            "run the same command again to finish it" if unfinished else "give a weights file or a run folder",
        )
    if path.is_file() and path.suffix.lower() not in _IMAGES:
        return path
    if path.suffix.lower() in _IMAGES:
        raise CheckpointError(
            f"{shown(reference)} is an image, not a checkpoint" + ("" if path.exists() else ", and is not there"),
            f"vit predict CKPT {reference} names what is on it",
        )
    known = pretrained.find(reference)
    if known is not None:
        return _from_hub(known.id)
    if path.suffix not in (".safetensors", ".npz", *PICKLES):
        check_read(reference)
        if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", reference):
            return _from_hub(reference)
    raise CheckpointError(f"no checkpoint {shown(reference)}: not a file, a folder or a hub id", _nearest(reference))


_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def _holds_images(folder: Path) -> bool:
    """Whether there are images in it or in one of its folders."""
    with contextlib.suppress(OSError):
        places = [folder, *[f for f in sorted(folder.iterdir())[:20] if f.is_dir()]]
        return any(f.suffix.lower() in _IMAGES for place in places for f in itertools.islice(place.iterdir(), 50))
    return False


def _nearest(reference: str) -> str:
    """What to do about a name that nothing has."""
    if pretrained.generic(reference):
        return "no weights go by that name; vit models lists those that do, and vit pretrain --model takes it as an architecture"
    if "_" in reference and "/" not in reference:
        return did_you_mean(reference.lower(), pretrained.names(), "vit models lists the names that it knows")
    return "give a .safetensors file, a run folder, a name that vit models lists, or a hub id such as user/name"


def left_by_training(folder: Path) -> list[Path]:
    """The checkpoints that timm's train.py left in a folder: the best, the last, the others from the latest on."""
    found = [file for file in folder.glob("*.pth.tar") if is_of_training(file) and file.is_file()]
    numbers = {file: [int(n) for n in re.findall(r"\d+", file.name)] for file in found}
    return sorted(
        found,
        key=lambda f: (_BY_TIMM.index(f.name) if f.name in _BY_TIMM else 9, [-n for n in numbers[f]], f.name),
    )


def _from_hub(reference: str) -> Path:
    """The weights of a hub id, from the hub or from its local cache where the hub cannot be asked. What stands beside them is read
    first, so that nothing large is downloaded of a model that vit does not read. Raises CheckpointError.
    """
    from huggingface_hub.utils import disable_progress_bars

    name, _, revision = reference.partition("@")
    disable_progress_bars()
    offline = hub.is_offline()
    error = None if offline else hub.obstacle(name, "model", revision)
    cached = offline or error is not None

    def get(file: str) -> Path:
        return hub.download(name, file, revision, cached)

    for beside in ("config.json", "preprocessor_config.json", "open_clip_config.json", hub.CARD):
        with contextlib.suppress(Exception):  # a bare file: its layout is recognised by its keys
            get(beside)
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
        said = json.loads(get("config.json").read_text(encoding="utf-8"))
        for kind in (said.get("architecture"), said.get("model_type")):
            if isinstance(kind, str):
                check_read(kind, reference)
    for file in _USUAL:
        try:
            found = get(file)
            for shard in _shards(found):
                get(shard)
        except Exception as problem:  # the hub's errors are many; the next file may be there
            error = error or problem
            continue
        return found
    assert error is not None
    first = "it is not in the cache" if offline else (str(error).splitlines() or [type(error).__name__])[0]
    hint = "HF_HUB_OFFLINE is set: unset it to download, or give a file" if offline else hub.hint(error)
    raise CheckpointError(f"cannot get {reference} from the hub or its local cache: {first}", hint) from None


def _shards(path: Path) -> list[str]:
    """The files that an index of shards names."""
    if not path.name.endswith(INDICES):
        return []
    return [shard for shard in read_index(path)[1] if Path(shard).name == shard]
