"""What a run takes in time and money on other devices than this one, by what `vit bench … --json` measured there."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcli.config import Config, ScaleConfig, Size, format_size
from vitcli.config_values import shown
from vitcli.errors import UsageError
from vitcli.plain import read_plain

_LARGEST = 4 << 20
"""Bytes of a file of `vit bench`; a row has half a kilobyte."""
_SAME = 0.02
"""Part by which FLOPs of an image may differ between equal models: a head for 21,841 classes in place of 1,000 adds 0.1 % to ViT-B/16."""
_SLOWEST, _FASTEST = 1e-12, 1e12
"""Images a second and TFLOP/s that a machine may have: beyond them something else stands in the file."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of training, hours over all devices, and their price in the currency that was given; None where it is not known."""

    seconds: float | None = None
    device_hours: float | None = None
    price: float | None = None


NO_ESTIMATE = Estimate()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A row of `vit bench` in training: the image size (None in files that do not say it) and counted FLOPs of an image's update."""

    model: str
    img_size: Size | None
    precision: str
    batch_size: int
    images_per_second: float
    flops: float


# --- the file ----------------------------------------------------------------------------------------------


def read_bench(file: str) -> list[Measured]:
    """The rows in training of a file that `vit bench … --json` printed. Raises UsageError that says what it is not."""
    try:
        tree = json.loads(read_plain(Path(file), _LARGEST).decode("utf-8"))
    except OSError as error:
        raise _wrong(file, f"cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise _wrong(file, f"is not JSON: {str(error)[:200]}") from None
    results = tree.get("results") if isinstance(tree, dict) else None
    if not isinstance(results, list) or not all(isinstance(row, dict) for row in results):
        raise _wrong(file, "has no list of results")
    rows = [_measured(file, number, row) for number, row in enumerate(results) if row.get("mode") != "infer"]
    if not rows:
        raise _wrong(file, "has no row of mode train")
    return rows


def _measured(file: str, number: int, row: dict[str, Any]) -> Measured:
    where = f"has in row {number} of its results"
    batch = row.get("batch_size")
    fit = {name: isinstance(row.get(name), str) for name in ("model", "precision")}
    fit |= {"mode": row.get("mode") == "train", "batch_size": type(batch) is int and 0 < batch <= _FASTEST}
    for name, fits in fit.items():
        if not fits:
            raise _wrong(file, f"{where} no {name}")
    for name in ("images_per_second", "tflops"):
        value = row.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise _wrong(file, f"{where} no {name}")
        if not _SLOWEST <= value <= _FASTEST:
            raise _wrong(file, f"{where} {name} = {shown(value)}, which is no speed")
    size = row.get("img_size")
    known = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    return Measured(
        model=row["model"],
        img_size=(size[0], size[1]) if isinstance(size, list) and known else None,
        precision=row["precision"],
        batch_size=row["batch_size"],
        images_per_second=float(row["images_per_second"]),
        flops=1e12 * row["tflops"] / row["images_per_second"],
    )


def _wrong(file: str, what: str) -> UsageError:
    return UsageError(
        f"scale.bench = {shown(file) if len(file) > 300 or not file.isprintable() else file}: it {what}",
        "make it on the device meant: vit bench MODEL --json > bench.json, training included",
    )


# --- the estimate ------------------------------------------------------------------------------------------


def nearest(rows: Sequence[Measured], model: str, img_size: Size, flops: float) -> Measured:
    """The row of the same model at the same size, else of the same model, else of the next in FLOPs of an image."""
    return min(
        rows,
        key=lambda row: (row.model != model, row.img_size not in (img_size, None), abs(math.log(row.flops / flops))),
    )


def is_same(row: Measured, model: str, img_size: Size, flops: float) -> bool:
    """Whether a row is of the run's own model, image size and objective: then its speed is the run's, else FLOPs are converted."""
    return row.model == model and row.img_size in (img_size, None) and abs(row.flops / flops - 1) <= _SAME


def of_flops(total: float, row: Measured, scale: ScaleConfig) -> Estimate:
    """Of a run of `total` FLOPs: for images like the bench's own, their number over its images a second and over the devices."""
    return of_seconds(total / row.flops / row.images_per_second / scale.devices, scale)


def of_seconds(seconds: float, scale: ScaleConfig) -> Estimate:
    hours = seconds * scale.devices / 3600
    return Estimate(seconds=seconds, device_hours=hours, price=hours * scale.price if scale.price else None)


def said(found: Estimate, row: Measured, config: Config, flops: float) -> str:
    """How long a run takes that has `flops` an image, how that is known and what it leaves out."""
    model, devices, rate = config.model, config.scale.devices, row.images_per_second
    at = "" if row.img_size is None else f" at {format_size(row.img_size)} px"
    speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    if is_same(row, model.name, model.img_size, flops):
        how = ", of smaller images by their FLOPs" if config.train.low_res else ""
    else:
        how = f", which is not this run's {model.name} at {format_size(model.img_size)} px with its head and objective: converted by FLOPs"
    several = "" if devices == 1 else " and communication between devices, of which perfect scaling is assumed"
    return (
        f"estimate: {found.seconds:,.3g} s of training on {devices} device{'s' * (devices > 1)} by {speed} images/s, measured of "
        f"{row.model}{at} in {row.precision}, batches of {row.batch_size}{how}; not counted: start, reading and augmenting images, "
        f"evaluation, saving{several}"
    )


def unused(scale: ScaleConfig) -> list[str]:
    """A note where devices or a price were given, and nothing to estimate by."""
    asked = [name for name in ("devices", "price") if getattr(scale, name) != getattr(ScaleConfig(), name)]
    return [f"{' and '.join(f'scale.{name}' for name in asked)}: no estimate without scale.bench"] if asked else []
