"""Features that are computed once: kept on disk from probe to probe, and written out for work beyond classification."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from vitcli import files
from vitcli.classes import Class
from vitcli.config import ModelConfig
from vitcli.data import decode
from vitcli.data.split import Split
from vitcli.errors import UsageError
from vitcli.evaluate.features import Features, embeddings_of
from vitcli.evaluate.inference import Inference
from vitcli.text import unicode

FORMATS = (".npz", ".parquet")
_FORMAT = 1
"""Raised whenever what is kept changes its meaning."""
_MOST_BYTES = 4 * 2**30
"""Of all features kept; the oldest go first."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """The features of a part of the data; `positions` are those of images that can be read."""

    split: Split
    values: Float[np.ndarray[Any, Any], "images dim"]
    positions: NDArray[np.int64]

    @property
    def features(self) -> Features:
        """Beside the class of each image."""
        assert self.split.labels is not None
        return Features(self.values, self.split.labels[self.positions])


def embedded(inference: Inference, split: Split, keep: bool) -> Embedded:
    """The features of a split, computed now or, with `keep`, by an earlier command. Raises DataError."""
    (found,) = embedded_parts(inference, [split], keep)
    return found


def embedded_parts(inference: Inference, splits: Sequence[Split], keep: bool) -> list[Embedded]:
    """As `embedded`, of several splits by the same weights. Raises DataError."""
    start = _of_model(inference) if keep else None
    return [_embedded(inference, split, start) for split in splits]


def _embedded(inference: Inference, split: Split, start: hashlib._Hash | None) -> Embedded:
    place = None
    if start is not None:
        digest = start.copy()
        digest.update(split.digests(inference.progress).tobytes())
        place = files.cache_home() / "features" / f"{digest.hexdigest()[:32]}.npz"
    found = _read(place) if place is not None else None
    if found is None:
        values, positions = embeddings_of(inference, split)
        found = values.astype(np.float32), positions
        if place is not None:
            _write(place, *found)
    return Embedded(split, found[0].astype(np.float64), found[1])


def _of_model(inference: Inference) -> hashlib._Hash:
    """Of whatever features depend on beside the images: the weights, how images are prepared, the arithmetic."""
    view, how, machine = inference.view, inference.preprocessing, inference.machine
    text = [
        _FORMAT,
        decode.VERSION,
        inference.model.config,
        view,
        how.mean,
        how.std,
        how.views,
        inference.data.max_megapixels,
    ]
    digest = hashlib.sha256(repr([*text, machine.device.type, machine.bf16, inference.data.on_bad_image]).encode())
    for name, tensor in sorted(inference.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest


def _read(place: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
    """What was kept, if it is whole: the archive has a checksum of each array."""
    with contextlib.suppress(Exception), np.load(place, allow_pickle=False) as kept:
        return kept["values"], kept["positions"]
    return None


def _write(place: Path, values: NDArray[np.float32], positions: NDArray[np.int64]) -> None:
    """Keep features where there is room; what cannot be kept is computed again."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, values=values, positions=positions)

    with contextlib.suppress(Exception):
        place.parent.mkdir(parents=True, exist_ok=True)
        _make_room(place.parent, values.nbytes)
        files.write_file(place, write)


def _make_room(folder: Path, size: int) -> None:
    files.remove_dead(folder)
    kept = sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime)
    total = size + sum(path.stat().st_size for path in kept)
    while kept and total > _MOST_BYTES:
        total -= kept[0].stat().st_size
        kept.pop(0).unlink(missing_ok=True)


# --- for others -----------------------------------------------------------------------------------------------


def check_file(path: Path, patches: bool) -> None:
    """Raises UsageError for an ending that features are not written with."""
    if path.suffix not in FORMATS:
        raise UsageError(f"--features {path}: unknown ending {path.suffix!r}", f"known: {', '.join(FORMATS)}")
    if patches and path.suffix != ".parquet":
        raise UsageError(
            f"--features {path}: features of patches are written as .parquet",
            "they are too many for one array in memory",
        )


def write_features(
    path: Path, parts: Sequence[Embedded], classes: Sequence[Class], about: dict[str, Any], inference: Inference | None
) -> None:
    """A row an image: `split`, `row`, `path`, `label` (the index of its class), `name` of the class and `features`; with
    `inference` also `patches`, `[patches, dim]` in reading order. As .npz the arrays of these names and `classes`. `about` is kept
    beside them. Raises ResourceError.
    """
    if path.suffix == ".npz":
        files.write_file(path, lambda temporary: _write_npz(temporary, parts, classes, about))
    else:
        files.write_file(path, lambda temporary: _write_parquet(temporary, parts, classes, about, inference))


def _columns(part: Embedded, classes: Sequence[Class], here: slice) -> dict[str, list[Any]]:
    split, positions = part.split, part.positions[here]
    assert split.labels is not None
    labels = split.labels[positions]
    return {
        "split": [split.name] * len(positions),
        "row": split.rows[positions].tolist(),
        "path": [unicode(path) if path else None for path in split.paths(positions)],
        "label": labels.tolist(),
        "name": [unicode(classes[label].name) for label in labels],
    }


def _write_npz(path: Path, parts: Sequence[Embedded], classes: Sequence[Class], about: dict[str, Any]) -> None:
    columns: dict[str, list[Any]] = {}
    for part in parts:
        for name, values in _columns(part, classes, slice(None)).items():
            columns.setdefault(name, []).extend(values)
    columns["path"] = [found or "" for found in columns["path"]]
    arrays: dict[str, Any] = {name: np.array(values) for name, values in columns.items()}
    arrays["features"] = np.concatenate([part.values for part in parts]).astype(np.float32)
    arrays |= {"classes": np.array([unicode(c.name) for c in classes]), "about": np.array(json.dumps(about))}
    with path.open("wb") as file:
        np.savez(file, **arrays)


_ROWS = 256  # of a group of rows


def _write_parquet(
    path: Path, parts: Sequence[Embedded], classes: Sequence[Class], about: dict[str, Any], inference: Inference | None
) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    text, whole, dim = pa.string(), pa.int64(), parts[0].values.shape[1]
    kinds = {
        "split": text,
        "row": whole,
        "path": text,
        "label": whole,
        "name": text,
        "features": pa.list_(pa.float32(), dim),
    }
    if inference is not None:
        model = inference.model.config
        assert isinstance(model, ModelConfig)
        kinds["patches"] = pa.list_(pa.list_(pa.float32(), model.width), model.grid[0] * model.grid[1])
    schema = pa.schema(kinds).with_metadata({"vit": json.dumps(about)})
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for part in parts:
            for here, patches in _groups(part, inference):
                table = (
                    _columns(part, classes, here) | {"features": list(part.values[here].astype(np.float32))} | patches
                )
                writer.write_table(pa.table(table, schema=schema))


def _groups(part: Embedded, inference: Inference | None) -> Iterator[tuple[slice, dict[str, Any]]]:
    """The rows of each group, and their features of patches."""
    if inference is None:
        yield from ((slice(start, start + _ROWS), {}) for start in range(0, len(part.positions), _ROWS))
        return
    images, start = inference.open(part.split), 0
    with inference.running():
        for here, pixels in inference.batches(images, part.positions, "patches"):
            found = inference.patch_features(pixels).flatten(1, 2).cpu().numpy()
            yield slice(start, start + len(here)), {"patches": [list(rows) for rows in found]}
            start += len(here)
