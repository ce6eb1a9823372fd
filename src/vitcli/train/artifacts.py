"""What a finished run leaves: the checkpoint, and beside it the files that people and other tools read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitcli import files, flops, plots
from vitcli.config import ModelConfig, TrainConfig, format_size
from vitcli.data.identity import Record
from vitcli.data.origin import seals
from vitcli.errors import ResourceError, Stopped
from vitcli.runs import WEIGHTS
from vitcli.text import markdown
from vitcli.train import page
from vitcli.train.objectives.table import objective_named
from vitcli.train.page import Shown
from vitcli.train.plan import Plan
from vitcli.train.runlog import Event, Log
from vitcli.weights import checkpoint
from vitcli.weights.card import public
from vitcli.weights.checkpoint import Tensors
from vitcli.weights.describe import Description
from vitcli.weights.formats_timm import timm_config


def describe_run(
    plan: Plan, folder: Path, steps: int, images_seen: int, train_flops: int, scores: dict[str, Any]
) -> Description:
    """The document that goes into the checkpoint's header."""
    config, source = plan.config, plan.source
    parent = (
        {}
        if plan.parent is None
        else {
            "parent": {
                "path": str(plan.parent.path),
                "sha256": plan.parent.sha256,
                "data": plan.parent.provenance.get("data"),
            }
        }
    )
    data = (
        {}
        if source is None
        else {
            "id": source.id,
            "seals": seals(source.id),
            "name": source.name,
            "revision": source.revision,
            "identity": source.identity(),
            "train_split": config.data.train_split or _trained_on(plan),
            "held_out": source.held_out_split
            or ("none" if plan.train is None else f"a fifth, {plan.train.contents.rule}"),
        }
    )
    provenance: dict[str, Any] = {
        "command": config.run.command,
        "data": data,
        "recipe": config.run.recipe,
        "seed": config.run.seed,
        "steps": steps,
        "images_seen": images_seen,
        "train_flops": train_flops,
        **parent,
    }
    if config.train.teacher:
        provenance["teacher"] = {"path": config.train.teacher, "sha256": config.train.teacher_digest}
    if config.train.objective != TrainConfig().objective:
        provenance["objective"] = config.train.objective
    if plan.parent is not None:
        provenance["ancestry"] = _ancestry(plan.parent)
    return Description(
        path=folder / WEIGHTS,
        model=config.model,
        classes=plan.classes,
        eval=config.eval,
        provenance=provenance,
        scores=scores,
        trained_images=_trained(plan).as_json() if source is not None else {},
    )


def _trained_on(plan: Plan) -> str:
    assert plan.source is not None
    return plan.source.train_split if plan.stream is None else plan.stream.name


def _ancestry(parent: Description) -> list[dict[str, Any]]:
    """The runs before this one, newest first, each with its data, rule of parts and seed."""
    before = parent.provenance.get("ancestry")
    own = {k: v for k, v in parent.provenance.items() if k not in ("ancestry", "parent")}
    own |= {"sha256": parent.sha256, "path": str(parent.path)}
    return [own, *(before if isinstance(before, list) else [])]


def _trained(plan: Plan) -> Record:
    """What trained the parent, and what this run trained on or chose by."""
    record = plan.record
    for part in (plan.train, plan.unlabelled, plan.dev):
        if part is not None:
            digests = part.digests()
            record = record.and_(digests, digests[part.contents.held_out(part.rows, digests)])
    return record


_MOST_CLASSES = 50


def _results(plan: Plan, report: dict[str, Any], shown: Shown) -> str:
    """The scores, and those of the classes, the worst first."""
    said = [*page.scores_said(report)]
    parts = ["", "## Results", "", *_table([markdown(name) for name, _ in said], [[text for _, text in said]])]
    measure, classes = page.classes_measured(plan, shown)
    if classes:
        rows = [[markdown(name), f"{n:,}", f"{100 * part:.1f} %"] for part, name, n in classes[:_MOST_CLASSES]]
        left = len(classes) - len(rows)
        parts += [
            "",
            *_table(["class", "images", measure], rows),
            *(["", f"{left:,} better ones are left out."] if left else []),
        ]
    return "\n".join([*parts, "", "![training curves](curves.png)", ""])


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _card(description: Description, report: dict[str, Any], plan: Plan, shown: Shown) -> str:
    model, config, classes = description.model, plan.config, description.classes
    names = ", ".join(markdown(c.name) for c in classes[:20])
    listed = names + (" …" if len(classes) > 20 else "")
    source, data = (
        (markdown(str(public(plan.source.id))), markdown(plan.source.name)) if plan.source else ("none", "none")
    )
    how = "fine-tuned" if config.run.command == "finetune" else "trained further"
    trained = f"{how} from {markdown(plan.parent.title)}" if plan.parent else "trained from random weights"
    base = f"base_model: {plan.parent.hub_id}\n" if plan.parent is not None and plan.parent.hub_id else ""
    result = "" if report["eval"] is None else _results(plan, report, shown)
    return f"""---
library_name: vit
pipeline_tag: image-classification
tags: [{markdown(model.kind).lower().replace(" ", "-")}, image-classification]
{base}---

# {markdown(model.name)} on {data}

A {markdown(model.kind)} {trained} on {source}.

| | |
|---|---|
| model | {markdown(model.name)}, {flops.parameters(model):,} parameters |
| input | {format_size(model.img_size)} px, {model.sized()}{", " if model.sized() else ""}{model.seen}, {2 * flops.macs(model) / 1e9:.3g} GFLOPs an image |
| classes | {f"{len(classes)}: {listed}" if classes else "none: what was learned has no labels"} |
| recipe | `{config.run.recipe}`, seed {config.run.seed} |
| training | {report["steps"]:,} steps, {report["images_seen"]:,} images, {report["train_flops"]:.3g} FLOPs, {report["seconds"]:,.0f} s |
{result}
## Use

```
{"vit predict model.safetensors photo.jpg" if classes else "vit finetune model.safetensors --data DATA"}
{"vit eval" if classes else "vit probe"} model.safetensors{"" if classes else " --data DATA"}
vit info model.safetensors
```

`run.toml` repeats the run: `vit {config.run.command} --config run.toml`.
"""


def write(
    plan: Plan,
    folder: Path,
    tensors: Tensors,
    report: dict[str, Any],
    lines: list[Event],
    shown: Shown,
    log: Log,
) -> None:
    """Everything but the state. The report comes last: where it stands, the run is whole. Raises ResourceError; a picture that cannot be
    drawn is a warning.
    """
    description = describe_run(
        plan, folder, report["steps"], report["images_seen"], report["train_flops"], report["eval"] or {}
    )
    checkpoint.save(description, tensors)
    if isinstance(description.model, ModelConfig) and description.model.is_plain:
        files.write_json(folder / "config.json", timm_config(description))
    title = (
        f"{plan.config.model.name} on {plan.source.name if plan.source else 'none'}, {plan.images:,} training images"
    )
    unit = objective_named(plan.config.train.objective).unit
    contained("curves.png", log, lambda: plots.curves(lines, title, folder / "curves.png", unit))
    for name, picture in shown.pictures.items():
        plots.write_pixels(picture, folder / f"{name}.png")
    files.write_text(folder / "README.md", _card(description, report, plan, shown))
    contained(page.FILE, log, lambda: page.write(plan, folder, report, lines, shown))
    files.write_json(folder / "report.json", report)


def contained(what: str, log: Log, draw: Callable[[], Any]) -> Any:
    """What `draw` returns; None where it fails, which is a warning and no reason to lose a run. Raises ResourceError."""
    try:
        return draw()
    except (ResourceError, Stopped):
        raise
    except Exception as error:
        log("warning", text=f"could not draw {what}: {type(error).__name__}: {error}")
        return None
