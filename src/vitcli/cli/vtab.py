"""`vit vtab`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitcli.cli import completion, console, options
from vitcli.cli.command import print_result, reporting
from vitcli.cli.train import Checkpoint

Root = Annotated[
    str, typer.Option("--root", metavar="FOLDER", help="Where the data of the tasks lie, a folder a task.")
]
Tasks = Annotated[
    Path | None,
    typer.Option(
        "--tasks", metavar="FILE.toml", show_default=False, help="Tasks of your own. \\[default: VTAB's nineteen]"
    ),
]
Task = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="NAME", show_default=False, help="This task alone; repeatable."),
]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="finetune|linear|fewshot|knn",
        autocompletion=completion.of("finetune", "linear", "fewshot", "knn"),
        help="How the checkpoint is moved to a task.",
    ),
]
Out = Annotated[
    str,
    typer.Option(
        "--out",
        metavar="FOLDER",
        show_default=False,
        help="Where runs of finetune lie. \\[default: runs/vtab]",
        rich_help_panel="Output",
    ),
]


def vtab(
    checkpoint: Checkpoint = "",
    root: Root = ".",
    tasks: Tasks = None,
    task: Task = None,
    method: Method = "linear",
    img_size: options.ImgSize = "",
    recipe: options.Recipe = "",
    steps: options.Steps = None,
    set_: options.Set = None,
    out: Out = "",
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Move a checkpoint to each of VTAB's tasks, 1,000 training images each, and print the paper's table.

    Tasks whose data are not there are named; no mean is of some tasks alone without saying so. The same command goes on with runs that
    were stopped.
    """

    overrides = options.overrides(None, set_, run__recipe=recipe, train__steps=steps)
    options.check_machine(device, precision)
    from vitcli.data.entries import read_entries
    from vitcli.errors import DataError
    from vitcli.train.runlog import Log
    from vitcli.train.vtab import Suite, check_settings, run_suite
    from vitcli.weights.asked import located

    check_settings(overrides, method)
    place = Path(root).expanduser().resolve()
    if tasks is not None and not tasks.is_file():
        raise DataError(f"no file {tasks}", "--tasks takes a TOML file of data sets")
    entries = read_entries(tasks.expanduser().resolve() if tasks else None, tasks.resolve().parent if tasks else place)
    if not entries.by_name:
        raise DataError(f"{tasks} describes no data set", "a table a data set, such as [flowers] with train and test")
    path, notes = located(checkpoint)
    for note in () if quiet else notes:
        console.show_note(note)
    suite = Suite(
        checkpoint=checkpoint or str(path), entries=entries, tasks=tuple(dict.fromkeys(task or entries.by_name)), method=method,
        out=Path(out or "runs/vtab"), overrides=overrides, img_size=options.size(img_size), device=device, precision=precision,
    )  # fmt: skip
    with reporting(quiet) as reporter:
        say = (lambda text: None) if quiet else (lambda text: reporter("note", {"text": text}))
        tree = run_suite(suite, say, lambda: Log([reporter]), reporter.progress)
    for name in tree["failed"]:
        console.show_warning(f"{name} failed: {next(r['failed'] for r in tree['tasks'] if r['task'] == name)}")
    if not any(row["top1"] is not None for row in tree["tasks"]):
        if tree["failed"]:
            raise DataError(
                f"no task has a score: {', '.join(tree['failed'])} failed", "each alone, with --task, says what to do"
            )
        raise DataError(
            f"none of the {len(tree['tasks'])} tasks has its data below {entries.root}",
            f"each lies in a folder of its name, such as {entries.root / tree['tasks'][0]['task']}; see the guide",
        )
    print_result(tree, _text(tree), json=json)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _text(tree: dict[str, Any]) -> list[str]:
    width = max(len(row["task"]) for row in tree["tasks"])
    lines = []
    for group, mean in tree["groups"].items():
        for row in (r for r in tree["tasks"] if r["group"] == group):
            state = "absent" if "absent" in row else "failed" if "failed" in row else f"of {row['n']:,}"
            lines.append(f"{row['task']:<{width}}  {_percent(row['top1']):>6}  {state}")
        if group:
            lines.append(_line(group, mean, width))
    lines.append(_line("mean", tree, width))
    if tree["absent"]:
        lines.append(f"absent: {', '.join(tree['absent'])}")
    if tree["failed"]:
        lines.append(f"failed: {', '.join(tree['failed'])}")
    return lines


def _line(name: str, mean: dict[str, Any], width: int) -> str:
    if mean["mean"] is not None:
        return f"{name.upper():<{width}}  {_percent(mean['mean']):>6}  mean of {mean['tasks_of']}"
    there = f"{mean['tasks_present']} of {mean['tasks_of']} tasks"
    return f"{name.upper():<{width}}  {'–':>6}  {_percent(mean['mean_of_present'])} is the mean of {there}"
