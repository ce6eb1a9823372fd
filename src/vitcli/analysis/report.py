"""The inside of a model over images: the numbers that the command line prints, and the pictures that it writes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vitcli import files, plots
from vitcli.analysis import pictures
from vitcli.analysis.attention import AttentionDistance, Rollout
from vitcli.analysis.capture import reduce_attention
from vitcli.config import AnalysisConfig
from vitcli.data.decode import View, open_rgb, seen_part
from vitcli.data.split import Split
from vitcli.evaluate.inference import Inference
from vitcli.model.vit import ViT
from vitcli.progress import Progress, silent
from vitcli.text import last_names

SHEET_IMAGES = 40
"""Images on one contact sheet."""
_SHEET_PIXELS = 320  # the longer side of an image on it


def vit_of(inference: Inference) -> ViT:
    assert isinstance(inference.model, ViT)  # Description.vit was asked before
    return inference.model


def attention_distance(inference: Inference, split: Split, settings: AnalysisConfig) -> dict[str, Any]:
    """The fields of `vit attn-distance --json`. Raises DataError at an image that cannot be read."""
    model, machine = vit_of(inference), inference.machine
    config = model.config
    distance = AttentionDistance(config, machine.device, settings.include_prefix, settings.renormalise)
    images = inference.open(split)
    with inference.running():
        for _, pixels in inference.batches(images, images.valid, "attention"):
            reduce_attention(model, pixels, distance, machine.bf16)
    layers = distance.result()
    return {
        "unit": "px",
        "img_size": list(config.img_size),
        "patch_size": list(config.patch),
        "images": distance.images,
        "includes_cls": settings.include_prefix,
        "renormalised": settings.renormalise,
        "layers": [
            {"layer": layer, "heads": heads.tolist(), "mean": float(heads.mean())}
            for layer, heads in enumerate(layers, start=1)
        ],
    }


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Rollout up to each layer, of the images at `positions` of a split. The last layer's is the result."""

    split: Split
    positions: NDArray[np.int64]
    maps: Float[np.ndarray, "layers images rows columns"]


def attention_rollout(inference: Inference, split: Split, settings: AnalysisConfig) -> Rollouts:
    """Rollout of every image of a split. Raises DataError at an image that cannot be read."""
    model, machine = vit_of(inference), inference.machine
    images = inference.open(split)
    maps = [np.zeros((model.config.depth, 0, *model.config.grid), np.float32)]
    with inference.running():
        for _, pixels in inference.batches(images, images.valid, "attention"):
            rollout = Rollout(model.config, len(pixels), machine.device, settings.discard)
            reduce_attention(model, pixels, rollout, machine.bf16)
            maps.append(rollout.layers())
    return Rollouts(split, images.valid, np.concatenate(maps, axis=1))


def distance_table(tree: dict[str, Any]) -> dict[str, list[Any]]:
    """A row a head: the columns of `--csv`."""
    rows = [
        (layer["layer"], head, distance)
        for layer in tree["layers"]
        for head, distance in enumerate(layer["heads"], start=1)
    ]
    return dict(zip(("layer", "head", "distance_px"), map(list, zip(*rows, strict=True)), strict=True))


# --- overlays ----------------------------------------------------------------------------------------------


class OverlayPaths:
    """Where the pictures of a rollout go, below `out`.

    `<name>-rollout.png` an image, numbered where names repeat; `<name>-rollout-layers.png` beside it with `per_layer`;
    `contact-sheet.png`, `contact-sheet-2.png` … for more than one image.
    """

    def __init__(self, names: Sequence[str], out: Path, per_layer: bool) -> None:
        self.out = out
        taken: dict[str, None] = {}
        for stem in (Path(name).stem for name in names):
            numbered = (f"{stem}{f'-{n}' if n > 1 else ''}" for n in itertools.count(1))
            taken[next(name for name in numbered if name not in taken)] = None
        self.overlays = [out / f"{stem}-rollout.png" for stem in taken]
        self.layers = [path.with_name(f"{path.stem}-layers.png") for path in self.overlays] if per_layer else []
        sheets = -(-len(names) // SHEET_IMAGES) if len(names) > 1 else 0
        self.sheets = [out / f"contact-sheet{f'-{n}' if n > 1 else ''}.png" for n in range(1, sheets + 1)]

    def prepare(self, force: bool) -> None:
        """Make the folder. Raises UsageError for a file that is in the way, unless `force`, or ResourceError."""
        files.check_out(self.out, force=True, folder=True)
        with files.disk_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        for path in (*self.overlays, *self.layers, *self.sheets):
            files.check_out(path, force)


def write_overlays(
    rollouts: Rollouts,
    paths: OverlayPaths,
    view: View,
    title: str,
    max_megapixels: float,
    progress: Progress = silent,
) -> list[Path]:
    """An overlay an image at the size of the original, contact sheets, and pictures of all layers where `paths` has any.

    Returns the contact sheets. Raises ResourceError.
    """
    tiles: list[tuple[str, NDArray[np.uint8]]] = []
    for index, position in enumerate(rollouts.positions.tolist()):
        (blob, file), *_ = rollouts.split.blobs(np.array([position]))
        image, size = open_rgb(blob or b"", max_megapixels)
        pixels, box, maps = np.asarray(image), seen_part(size, view), rollouts.maps[:, index]
        overlay = pictures.overlay(pixels, maps[-1], box)
        plots.write_pixels(overlay, paths.overlays[position])
        name = last_names(file)
        if paths.layers:
            pictures.picture_tiles(_layer_tiles(pixels, maps, box), f"{name}: {title}", paths.layers[position])
        if paths.sheets:
            tiles.append((name, pictures.shrunk(overlay, _SHEET_PIXELS)))
        progress("overlays", index + 1, len(rollouts.positions))
    sheets = paths.sheets[: -(-len(tiles) // SHEET_IMAGES)]
    for number, path in enumerate(sheets):
        pictures.picture_tiles(tiles[number * SHEET_IMAGES : (number + 1) * SHEET_IMAGES], title, path)
    return sheets


def _layer_tiles(
    pixels: NDArray[np.uint8], maps: Float[np.ndarray, "layers rows columns"], box: pictures.Box
) -> list[tuple[str, NDArray[np.uint8]]]:
    small = pictures.shrunk(pixels, _SHEET_PIXELS)
    factor = small.shape[0] / pixels.shape[0]
    left, top, right, bottom = (side * factor for side in box)
    return [
        (f"up to layer {layer}", pictures.overlay(small, found, (left, top, right, bottom)))
        for layer, found in enumerate(maps, start=1)
    ]
