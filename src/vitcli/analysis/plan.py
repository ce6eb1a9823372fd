"""What of a model is looked at, over which images: the plans of the commands that look inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcli.analysis import report
from vitcli.analysis.posemb import Filters, position_similarity, principal_filters
from vitcli.config import AnalysisConfig, DataConfig, ModelConfig, Overrides, Size
from vitcli.config_values import check_bounds
from vitcli.data.decode import eval_view
from vitcli.data.samples import files_split, sample_split
from vitcli.data.split import Split, stratified
from vitcli.errors import CheckpointError, DataError, UsageError
from vitcli.evaluate.subject import Subject, asked_machine, chosen_data, chosen_split, size_for
from vitcli.model.classifier import class_of
from vitcli.model.positions import places_of, position_table
from vitcli.progress import Progress, silent
from vitcli.weights import checkpoint
from vitcli.weights.asked import asked_checkpoint, check_fitting, opened_checkpoint, section_of
from vitcli.weights.describe import Description


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionPlan(Subject):
    """A look at a model's attention over images, resolved and checked."""

    data_name: str
    split: Split
    settings: AnalysisConfig

    def as_json(self) -> dict[str, Any]:
        """The fields of `vit attn-distance --dry-run`."""
        return super().as_json() | {"data": self.data_name, "images": len(self.split)}

    @property
    def model(self) -> ModelConfig:
        """The model, for images of `img_size`."""
        return replace(self.description.vit, img_size=self.img_size)

    def distance(self, progress: Progress = silent) -> dict[str, Any]:
        """The fields of `vit attn-distance --json`. Raises CheckpointError or DataError."""
        return report.attention_distance(self.inference(progress), self.split, self.settings)

    def rollout(self, progress: Progress = silent) -> report.Rollouts:
        """Rollout of every image. Raises CheckpointError or DataError."""
        return report.attention_rollout(self.inference(progress), self.split, self.settings)

    def overlays(
        self, names: Sequence[str], out: Path, force: bool = False, progress: Progress = silent
    ) -> dict[str, Any]:
        """Roll out the attention over the files `names`, which the plan was made of, and write a picture an image into
        the folder `out`: the fields of `vit attn-rollout --json`. Raises UsageError for a file that is in the way,
        CheckpointError, DataError, or ResourceError.
        """
        paths = report.OverlayPaths(names, out, self.settings.per_layer)
        paths.prepare(force)
        found = self.rollout(progress)
        view, title = eval_view(self.img_size, self.description.eval), f"attention rollout of {self.model.name}"
        sheets = report.write_overlays(found, paths, view, title, self.data.max_megapixels, progress)
        grid = list(found.maps.shape[2:])
        return {
            "images": [
                {"path": names[i], "overlay": str(paths.overlays[i]), "grid": grid} for i in found.positions.tolist()
            ],
            "contact_sheets": [str(path) for path in sheets],
        }


def plan_attention(
    reference: str = "",
    data: str = "",
    images: Sequence[str] = (),
    *,
    img_size: Size | None = None,
    device: str = "auto",
    precision: str = "auto",
    overrides: Overrides | None = None,
) -> AttentionPlan:
    """What a checkpoint's attention is looked at over: `data`, or the files `images`, or the data that the checkpoint was
    trained on, or sample photographs where that cannot be had.

    Raises CheckpointError, DataError or UsageError.
    """
    asked = overrides or {}
    described, data_config, notes = asked_checkpoint(reference, asked, ("eval.", "data.", "analysis.", "model."))
    settings = _settings(asked)
    if data and images:
        raise UsageError(f"--data {data} and image files are two sources", "give one of them")
    _ = described.vit
    size = size_for(described, img_size)
    most = settings.images if "analysis.images" in asked else len(images)
    name, part, found, warnings = (
        ("files", _first(files_split(list(images)), most), [], [])
        if images
        else _images_of(described, data, data_config, settings.images)
    )
    return AttentionPlan(
        description=described,
        img_size=size,
        data=data_config,
        machine=asked_machine(device, precision),
        notes=(*notes, *found, *described.notes),
        warnings=tuple(warnings),
        data_name=name,
        split=part,
        settings=settings,
    )


def _first(part: Split, most: int) -> Split:
    return part.subset(np.arange(min(most, len(part))))


def _images_of(
    described: Description, data: str, config: DataConfig, most: int
) -> tuple[str, Split, list[str], list[str]]:
    """The name of the data, at most `most` of its images, notes and warnings."""
    found: list[str] = []
    warnings: list[str] = []
    try:
        source, found = chosen_data(described, data, config)
        part, why, _ = chosen_split(source, "", described)
        name, found = source.id, [*found, *why]
    except (DataError, UsageError) as error:
        if data:
            raise
        name, part = "sample photographs", sample_split(described.model.channels)
        warnings.append(f"{error.message}; the images are {len(part)} sample photographs, --data names others")
    if len(part) > most:
        found.append(f"images: {most:,} of the {len(part):,} of split {part.name}")
        keys = part.labels if part.labels is not None else np.zeros(len(part), np.int64)
        part = part.subset(stratified(keys, most, "analysis"))
    return name, part, found, warnings


def _settings(asked: Overrides) -> AnalysisConfig:
    """What `analysis.` keys say, checked. Raises UsageError."""
    settings = AnalysisConfig(**section_of(asked, "analysis"))  # type: ignore[arg-type]
    check_bounds("analysis", settings)
    return settings


# --- weights alone -----------------------------------------------------------------------------------------


def similarity_of(
    reference: str = "", img_size: Size | None = None, overrides: Overrides | None = None
) -> tuple[Description, NDArray[np.float64], tuple[str, ...]]:
    """The checkpoint, at `img_size` where it is given, the cosine similarity of its position embeddings [rows, rows] in
    raster order, and what to say. Raises CheckpointError or UsageError."""
    check_fitting(overrides or {}, ("model.",))
    opened, notes = opened_checkpoint(reference, overrides or {})
    described = opened.description
    _check_added(described)
    resized, tensors = checkpoint.resized(described, checkpoint.Lazy(opened), img_size or described.vit.img_size)
    model = resized.vit
    tables = {name: tensors[name].float() for name in model.position_shapes()}
    found = position_similarity(position_table(tables, model, model.grid), model.prefix_rows)
    return resized, found, (*notes, *described.notes)


def _check_added(described: Description) -> None:
    """Raises CheckpointError where no positions are added to patches, and says where they are."""
    model = described.vit
    if model.positions == "none" or model.is_pairwise:
        nowhere = model.positions == "none" and model.rope == "none"
        raise CheckpointError(
            f"{described.path} adds no positions to its patches: {places_of(model)}",
            "there is nothing to compare" if nowhere else "vit attn-distance shows what its attention makes of them",
        )


def filters_of(reference: str = "", overrides: Overrides | None = None) -> tuple[Description, Filters, tuple[str, ...]]:
    """The checkpoint, the principal components of its filters of pixels, and what to say. Raises CheckpointError or UsageError."""
    asked = overrides or {}
    check_fitting(asked, ("analysis.", "model."))
    opened, notes = opened_checkpoint(reference, asked)
    model = opened.description.model
    if not model.reader:
        raise CheckpointError(
            f"{opened.description.path} is a {model.kind}, which has no filters of pixels",
            "there is nothing to look at",
        )
    kernel = class_of(model).taken_filters(checkpoint.Lazy(opened)[model.reader].float(), model)
    found = principal_filters(kernel, _settings(asked).components)
    return opened.description, found, (*notes, *opened.description.notes)
