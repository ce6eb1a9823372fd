"""What is measured: a checkpoint, the data that it is measured on, the machine that does it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from vitcli.classes import Class
from vitcli.config import DataConfig, RunConfig, Size, parse_value
from vitcli.data.identity import Record
from vitcli.data.origin import own_source
from vitcli.data.sources import open_source
from vitcli.data.split import Source, Split
from vitcli.errors import DataError
from vitcli.evaluate.inference import Inference
from vitcli.machine import Machine, set_up
from vitcli.progress import Progress, silent
from vitcli.weights.asked import loaded
from vitcli.weights.describe import Description


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """A checkpoint at an image size on a machine, resolved and checked: what every plan of a measurement begins with."""

    description: Description
    img_size: Size
    data: DataConfig
    machine: Machine
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[Class, ...]:
        return self.description.classes

    def as_json(self) -> dict[str, Any]:
        """The fields that every --dry-run of a measurement has."""
        return {
            "checkpoint": str(self.description.path),
            "model": self.description.model.name,
            "img_size": list(self.img_size),
        }

    def at(self, img_size: Size) -> Self:
        """The same at another image size. Raises UsageError for one that the model cannot take."""
        return replace(self, img_size=size_for(self.description, img_size))

    def inference(self, progress: Progress = silent) -> Inference:
        """With the weights loaded. Raises CheckpointError."""
        _, model = loaded(self.description, self.img_size)
        return Inference(model.to(self.machine.device), self.description.eval, self.data, self.machine, progress)


def size_for(description: Description, img_size: Size | None) -> Size:
    """The image size asked for, else the checkpoint's. Raises UsageError for one that the model cannot take."""
    size = img_size or description.model.img_size
    replace(description.model, img_size=size).check()
    return size


def asked_machine(device: str, precision: str) -> Machine:
    """Raises UsageError for a name that there is not, ResourceError for what this machine lacks."""
    asked = {name: parse_value(f"run.{name}", value) for name, value in (("device", device), ("precision", precision))}
    return set_up(RunConfig(**asked))


# --- data --------------------------------------------------------------------------------------------------


def chosen_data(described: Description, asked: str, config: DataConfig) -> tuple[Source, list[str]]:
    """The data asked for, else the checkpoint's own, and what to say. Raises UsageError or DataError."""
    if asked:
        source = open_source(replace(config, source=asked))
        return source, list(source.notes)
    source = open_source(replace(config, source=own_source(described.provenance, str(described.path))))
    return source, [f"data: {source.id}, the checkpoint's own", *source.notes]


def chosen_split(
    source: Source, name: str, described: Description, progress: Progress = silent
) -> tuple[Split, tuple[str, ...], tuple[str, ...]]:
    """The split asked for; else the held-out one, or all of data that has one split and trained nothing. With notes and warnings.

    Images that trained the checkpoint are left out of a part that vit itself holds out, and are named in a warning where
    a split is measured as it is. Raises DataError where it cannot be told what was held out.
    """
    record = described.record()
    part, notes = (
        _default_part(source, described, record, progress) if not name else (source.split(name, record, progress), ())
    )
    seen = record.among(part.digests(progress)) if len(record.digests) else 0
    about = "" if record.is_complete else "about "
    warning = f"{about}{seen:,} of the {len(part):,} images of {part.name!r} trained this checkpoint: a score on them is too high"
    return part, notes, (warning,) if seen else ()


def _default_part(
    source: Source, described: Description, record: Record, progress: Progress
) -> tuple[Split, tuple[str, ...]]:
    if source.held_out_split:
        return source.held_out(), ()
    whole = source.split("all") if len(source.splits) == 1 else source.train()
    seen = len(record.digests) and record.contains(whole.digests(progress)).any()
    if not seen and not _is_ancestral(source, described):
        part = whole if len(source.splits) == 1 else source.held_out(record, progress)
        unknown = f"; what {', '.join(record.unknown)} was trained on is not recorded" if record.unknown else ""
        by = (
            "by their content, the checkpoint was trained on none"
            if record.images
            else "none is recorded to have trained it"
        )
        return part, (f"split: {part.name}, {len(part):,} images; {by}{unknown}",)
    part = source.held_out(record, progress)
    if whole.contents.held is None and (
        not record.images or (not record.is_complete and record.contains(source.held_out().digests()).any())
    ):
        raise DataError(
            f"{described.path} was trained on {source.id}, and does not record well enough which images were held out",
            "name what is to be measured: --split all includes images that trained it",
        )
    if not len(part):
        raise DataError(f"every image of {source.id} trained {described.path}", "give other images with --data")
    return part, (f"split: the {len(part):,} images of {source.id} that training held out",)


def _is_ancestral(source: Source, described: Description) -> bool:
    """Whether the checkpoint, or a run before it, says that it was trained on data of this id, path or name."""
    runs = [
        described.provenance,
        *(described.provenance.get("ancestry") or []),
        described.provenance.get("parent") or {},
    ]
    data = [tree for run in runs if isinstance(run, dict) and isinstance(tree := run.get("data"), dict)]
    known = {str(tree.get(key)) for tree in data for key in ("id", "name", "identity") if tree.get(key)}
    return bool(known & {source.id, source.name, source.known_as})
