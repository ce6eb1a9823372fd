"""Reports of `vit` as lines, and lines as a table and a figure: mean and standard deviation over seeds.

vit … --json | python3 results.py note model=ti/4 images=500 seed=0      a line with these keys and the report's numbers
… | python3 results.py table --rows images --columns model --out FOLDER   FOLDER/table.md (also on stdout), FOLDER/figure.png
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from vitcli import plots

COLOURS = (plots.BLUE, plots.ORANGE, "#009E73", plots.GRAY)
Cells = dict[tuple[str, str], list[dict[str, Any]]]


def note(keys: list[str], cost: str) -> None:
    """A report has `eval.top1` (pretrain, finetune), `top1` (eval) or `results` (probe), a line each; a run that diverged has an error."""
    report = json.load(sys.stdin)
    if "error" in report and report["error"]["code"] != 5:
        sys.exit(report["error"]["code"])
    line: dict[str, Any] = dict(key.split("=", 1) for key in keys)
    line["seed"] = int(line.get("seed", 0))
    costs = json.loads(Path(cost).read_text(encoding="utf-8")) if cost else report
    line["train_flops"] = costs.get("train_flops")
    for found in report.get("results") or [report.get("eval") or report]:
        own = {"shots": f"{found['shots']} a class"} if "shots" in found else {}
        print(json.dumps(line | own | {"top1": found.get("top1"), "n": found.get("n")}), flush=True)


def cell(lines: list[dict[str, Any]], key: str = "top1") -> tuple[float, float] | None:
    """Mean and standard deviation over seeds; None where no seed has it."""
    values = [line[key] for line in lines if line[key] is not None]
    return (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0) if values else None


def shown(lines: list[dict[str, Any]]) -> str:
    found, failed = cell(lines), sum(line["top1"] is None for line in lines)
    text = "diverged" if found is None else f"{100 * found[0]:.1f} ± {100 * found[1]:.1f}"
    return text + (f" ({failed} of {len(lines)} diverged)" if found and failed else "")


def as_table(cells: Cells, rows: list[str], columns: list[str], heads: tuple[str, str], flops: bool) -> list[str]:
    """Markdown: top-1 in percent, and where asked for the training FLOPs of a run below it."""
    names = columns if columns != [""] else ["top-1 (%)"]
    table = [f"| {heads[0]} | {' | '.join(names)} |", "|---" * (1 + len(columns)) + "|"]
    for row in rows:
        texts = []
        for column in columns:
            lines = cells.get((row, column), [])
            cost = cell(lines, "train_flops") if flops and lines else None
            texts.append((shown(lines) if lines else "–") + (f" at {cost[0]:.2g} FLOPs" if cost else ""))
        table.append(f"| {row} | {' | '.join(texts)} |")
    return table


def draw(cells: Cells, rows: list[str], columns: list[str], asked: argparse.Namespace, title: str) -> None:
    """A line a column over the rows, which are numbers or names, or over training FLOPs; the bars are one standard deviation."""
    from matplotlib.ticker import LogLocator

    figure = plots.new_figure(7.2, 4.4)
    axes = figure.subplots()
    for index, column in enumerate(columns):
        points = []
        for place, row in enumerate(rows):
            lines = cells.get((row, column), [])
            score, cost = cell(lines), cell(lines, "train_flops") if asked.x == "flops" else None
            if score:
                x = (
                    cost[0]
                    if cost
                    else float(row)
                    if asked.x == "rows"
                    else place + 0.06 * (index - (len(columns) - 1) / 2)
                )
                points.append((x, 100 * score[0], 100 * score[1]))
        if not points:
            continue
        style: dict[str, Any] = {"linestyle": ""} if asked.x == "names" else {}
        xs, means, spreads = (list(values) for values in zip(*points, strict=True))
        axes.errorbar(
            xs, means, spreads, marker="osD^"[index % 4], capsize=4, color=COLOURS[index % 4], label=column, **style
        )  # fmt: skip
    if asked.x != "names":
        axes.set_xscale("log")
        axes.minorticks_off()
        if asked.x == "rows":
            axes.set_xticks([float(row) for row in rows], [f"{float(row):g}" for row in rows])
        else:
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:.0e}")
    else:
        axes.set_xticks(range(len(rows)), rows)
        axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set(xlabel=asked.xlabel or asked.rows, ylabel="top-1 (%)")
    if columns != [""]:
        axes.legend(frameon=False, title=asked.columns)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    plots.save(figure, Path(asked.out) / "figure.png")


def table(asked: argparse.Namespace) -> None:
    lines = [json.loads(line) for line in sys.stdin]
    if not lines:
        sys.exit("no run has ended")
    cells: Cells = {}
    for line in lines:
        cells.setdefault((line[asked.rows], line.get(asked.columns, "")), []).append(line)
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    numbers = sorted({line["seed"] for line in lines})
    seeds = f"seed{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
    counts = "/".join(f"{n:,}" for n in sorted({line["n"] for line in lines if line["n"]}))
    title = f"{asked.title}\n{counts} held-out images, {seeds}; bars are one standard deviation"
    text = as_table(cells, rows, columns, (asked.rows, asked.columns), asked.flops)
    text += ["", f"{asked.title}: top-1 on {counts} held-out images in percent, mean ± standard deviation of {seeds}."]
    out = Path(asked.out)
    (out / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (out / "table.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    draw(cells, rows, columns, asked, title)
    print("\n".join(text))
    print(f"{out / 'table.md'}, {out / 'figure.png'}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    noting = commands.add_parser("note")
    noting.add_argument("keys", nargs="*", metavar="KEY=VALUE")
    noting.add_argument("--cost", default="", help="the report whose training FLOPs count, where it is another")
    making = commands.add_parser("table")
    making.add_argument("--rows", required=True, help="the key of the rows")
    making.add_argument("--columns", default="", help="the key of the columns")
    making.add_argument("--x", choices=("rows", "names", "flops"), default="names", help="what the figure's axis is")
    making.add_argument("--xlabel", default="")
    making.add_argument("--flops", action="store_true", help="training FLOPs in the table, too")
    making.add_argument("--title", required=True)
    making.add_argument("--out", required=True)
    asked = parser.parse_args()
    if asked.command == "note":
        note(asked.keys, asked.cost)
    else:
        table(asked)


if __name__ == "__main__":
    main()
