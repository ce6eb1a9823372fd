"""The weights file that CKPT names."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from vitcli import hub
from vitcli.errors import CheckpointError
from vitcli.runs import WEIGHTS
from vitcli.weights.sidecars import is_of_training
from vitcli.weights.stored import INDICES, PICKLES, read_index

_USUAL = (WEIGHTS, "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

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
        unfinished = " yet: the run is unfinished" if (path / "state").is_dir() else ""
        raise CheckpointError(
            f"{path} holds no {WEIGHTS}{unfinished}" if len(alone) < 2 else f"{path} holds {len(alone)} weights files",
            "run the same command again to finish it" if unfinished else "give a weights file or a run folder",
        )
    if path.is_file():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", reference) and path.suffix not in (
        ".safetensors",
        ".npz",
        *PICKLES,
    ):
        return _from_hub(reference)
    raise CheckpointError(
        f"no checkpoint {reference!r}: not a file, a folder or a hub id",
        "give a .safetensors file, a run folder, or a hub id such as user/name",
    )


def left_by_training(folder: Path) -> list[Path]:
    """The checkpoints that timm's train.py left in a folder: the best, the last, the others from the latest on."""
    found = [file for file in folder.glob("*.pth.tar") if is_of_training(file) and file.is_file()]
    numbers = {file: [int(n) for n in re.findall(r"\d+", file.name)] for file in found}
    return sorted(
        found,
        key=lambda f: (_BY_TIMM.index(f.name) if f.name in _BY_TIMM else 9, [-n for n in numbers[f]], f.name),
    )


def _from_hub(reference: str) -> Path:
    """The weights of a hub id, from the hub or from its local cache where the hub cannot be asked."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    name, _, revision = reference.partition("@")
    disable_progress_bars()
    offline = hub.is_offline()
    error = None if offline else hub.obstacle(name, "model", revision)
    cached = offline or error is not None

    def get(file: str) -> Path:
        return Path(hf_hub_download(name, file, revision=revision or None, local_files_only=cached))

    for file in _USUAL:
        try:
            found = get(file)
            for shard in _shards(found):
                get(shard)
        except Exception as problem:  # the hub's errors are many; the next file may be there
            error = error or problem
            continue
        for beside in ("config.json", "preprocessor_config.json"):
            with contextlib.suppress(Exception):  # a bare file: its layout is recognised by its keys
                get(beside)
        return found
    assert error is not None
    first = (str(error).splitlines() or [type(error).__name__])[0]
    hint = "HF_HUB_OFFLINE is set: unset it to download, or give a file" if offline else hub.hint(error)
    raise CheckpointError(f"cannot get {reference} from the hub or its local cache: {first}", hint) from None


def _shards(path: Path) -> list[str]:
    """The files that an index of shards names."""
    if not path.name.endswith(INDICES):
        return []
    return [shard for shard in read_index(path)[1] if Path(shard).name == shard]
