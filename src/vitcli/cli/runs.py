"""`vit runs` and `vit compare`: runs as their files tell of them, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitcli import files, runs
from vitcli.cli import console, options
from vitcli.cli.command import print_result
from vitcli.errors import CheckpointError

Folder = Annotated[
    str, typer.Argument(metavar="[FOLDER]", show_default=False, help="Where the run folders lie. \\[default: ./runs]")
]
Compared = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]…",
        show_default=False,
        help="Run folders or checkpoints. Left out: the finished runs under ./runs.",
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE.png",
        show_default=False,
        help="Top-1 against training FLOPs, images, seconds and parameters.",
        rich_help_panel="Output",
    ),
]


def runs_(folder: Folder = "", json: options.Json = False) -> None:
    """List the runs, newest first: score, data, model, status, size."""
    root = Path(folder) if folder else runs.RUNS
    if folder and not root.is_dir():
        raise CheckpointError(f"{folder} is no folder", "name the folder that the run folders lie in")
    found = runs.newest_first(root.glob("*"))
    rows = [run.as_json() for run in found]
    print_result({"runs": rows}, _table(rows) if rows else [f"no runs under {root}"], json=json)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    shown = [
        (
            str(row["run"]), row["model"] or "?", Path(row["data"] or "?").name or "?", console.percent(row["top1"]), row["status"],
            (row["time"] or "")[:16].replace("T", " "), _bytes(row["bytes"]),
        )
        for row in rows
    ]  # fmt: skip
    return _aligned([("run", "model", "data", "top-1", "status", "time (UTC)", "size"), *shown], right={3, 6})


def _aligned(rows: list[tuple[str, ...]], right: set[int]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:>{w}}" if i in right else f"{cell:<{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _bytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def compare(run: Compared = None, plot: Plot = None, force: options.Force = False, json: options.Json = False) -> None:
    """Put runs side by side: the score against what training it took.

    `on_front` are those that no other run beats with as few training FLOPs. Costs are those of the run itself, without the run that it
    started from.
    """
    from vitcli import plots

    if plot is not None:
        plots.check_picture(plot)
        files.check_out(plot, force)
        console.asked_for.append(plot)
    names = run or [str(r.folder) for r in reversed(runs.newest_first(runs.RUNS.glob("*"))) if r.status == "done"]
    if not names:
        raise CheckpointError("no run given, and no finished run under ./runs", "name run folders or checkpoints")
    subjects = [_subject(name) for name in names]
    for row, _, about in subjects:
        if row["top1"] is None:
            console.show_warning(f"{row['run']} has no top-1 and is on no front")
        if about.get("parent"):
            console.show_note(f"{row['run']} started from other weights, whose training is not counted")
    measured = {
        (about.get("data"), about.get("split"), about.get("n")) for row, _, about in subjects if row["top1"] is not None
    }
    if len(measured) > 1:
        shown = "; ".join(sorted(f"{data}, {n} images of {split}" for data, split, n in measured))
        console.show_warning(f"the scores are of different images: {shown}")
    rows = [row for row, _, _ in subjects]
    for row in rows:
        row["on_front"] = _is_on_front(row, rows)
    if plot is not None:
        _draw(rows, [kind for _, kind, _ in subjects], plot)
    print_result({"runs": rows}, _compared(rows), json=json)


def _subject(name: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """A row, the kind of model, and what its score is of. Raises CheckpointError."""
    if runs.is_run(Path(name)):
        found = runs.read_run(Path(name))
        if found.model is not None and found.report:
            scores = found.scores
            row = _row(name, found.model.name, found.model.cost().parameters, found.report, found.top1)
            own = runs.settings(Path(name)).get("run")
            parent = own.get("init") if isinstance(own, dict) else None
            return row, found.model.kind, {"data": found.data, "parent": parent, **scores}
        if found.model is not None:
            return _row(name, found.model.name, found.model.cost().parameters, {}, None), found.model.kind, {}
    from vitcli.weights.describe import describe
    from vitcli.weights.locate import locate

    described = describe(locate(name))
    source, scores = described.provenance, described.scores
    row = _row(name, described.model.name, described.model.cost().parameters, source, scores.get("top1"))
    return (
        row,
        described.model.kind,
        {"data": (source.get("data") or {}).get("id"), "parent": source.get("parent"), **scores},
    )


def _row(name: str, model: str, params: int, costs: dict[str, Any], top1: float | None) -> dict[str, Any]:
    return {
        "run": name,
        "model": model,
        "params": params,
        **{key: runs.number(costs.get(key)) for key in ("train_flops", "images_seen", "seconds")},
        "top1": runs.number(top1),
    }


def _is_on_front(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Whether no other has a better score with as few FLOPs, or the same with fewer."""
    if row["top1"] is None or row["train_flops"] is None:
        return False
    others = [(o["train_flops"], o["top1"]) for o in rows if o["top1"] is not None and o["train_flops"] is not None]
    flops, top1 = row["train_flops"], row["top1"]
    return not any(f <= flops and t >= top1 and (f < flops or t > top1) for f, t in others)


def _compared(rows: list[dict[str, Any]]) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "–" if value is None else f"{value:{form}}"

    shown = [
        (
            row["run"], row["model"], number(row["params"], ",.0f"), number(row["train_flops"], ".3g"),
            number(row["images_seen"], ",.0f"), number(row["seconds"], ",.0f"), console.percent(row["top1"]), "*" if row["on_front"] else "",
        )
        for row in rows
    ]  # fmt: skip
    heads = ("run", "model", "parameters", "train FLOPs", "images seen", "seconds", "top-1", "front")
    return _aligned([heads, *shown], right={2, 3, 4, 5, 6})


def _draw(rows: list[dict[str, Any]], kinds: list[str], path: Path) -> None:
    from vitcli import plots

    scored = [i for i, row in enumerate(rows) if row["top1"] is not None]
    if not scored:
        raise CheckpointError("no run has a top-1", "there is nothing to draw")
    costs = {
        "train_flops": "training FLOPs",
        "images_seen": "training images seen",
        "seconds": "seconds",
        "params": "parameters",
    }
    plots.compared(
        [f"{rows[i]['run'].removeprefix('runs/')}" for i in scored],
        [kinds[i] for i in scored],
        [rows[i]["top1"] for i in scored],
        [(label, [rows[i][key] for i in scored]) for key, label in costs.items()],
        "top-1 against what training took; the line joins those that nothing cheaper reaches",
        path,
    )
