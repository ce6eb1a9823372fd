"""`vit models`: the trained weights that go by name."""

from __future__ import annotations

import fnmatch
from typing import Annotated, Any

import typer

from vitcli import hub
from vitcli.cli import completion, console, options
from vitcli.cli.command import print_result
from vitcli.errors import UsageError, did_you_mean
from vitcli.families.pretrained import Pretrained, names, table

Pattern = Annotated[
    str,
    typer.Argument(
        metavar="[PATTERN]",
        autocompletion=completion.pretrained,
        show_default=False,
        help="Part of a name, or a pattern such as 'vit_small*384*'.",
    ),
]


def models(pattern: Pattern = "", json: options.Json = False) -> None:
    """The pretrained weights that go by name: parameters, image size, accuracy where published, whether they are here.

    Such a name stands wherever a checkpoint is asked for: vit finetune deit_tiny_patch16_224 --data photos. Other weights of the
    hub go by their id, user/name.
    """
    rows = [row for row in table() if _fits(row, pattern.lower())]
    if not rows:
        raise UsageError(
            f"no model that vit knows is called {pattern!r}",
            did_you_mean(
                pattern.lower(), names(), "vit models lists all; other weights of the hub go by their id, user/name"
            ),
        )
    tree = [_as_json(row) for row in rows]
    print_result({"models": tree}, _text(tree), json=json)
    if not json:
        console.show_note(
            f"{len(rows)} models; the first of each architecture is what its name alone means, without what follows the point"
        )


def _fits(row: Pretrained, pattern: str) -> bool:
    """Whether `pattern` is a part of the name, or a pattern of the whole."""
    whole = any(letter in pattern for letter in "*?[")
    return any(fnmatch.fnmatch(name.lower(), pattern if whole else f"*{pattern}*") for name in (row.name, row.id))


def _as_json(row: Pretrained) -> dict[str, Any]:
    return {
        "name": row.name,
        "id": row.id,
        "model": row.spelled,
        "params": row.params,
        "img_size": list(row.img_size),
        "classes": row.classes,
        "top1": row.top1,
        "licence": row.licence or None,
        "cached": hub.is_cached(row.id),
    }


def _text(tree: list[dict[str, Any]]) -> list[str]:
    rows = [("name", "model", "params", "px", "classes", "ImageNet", "licence", "here")]
    rows += [
        (
            row["name"],
            row["model"],
            f"{row['params'] / 1e6:.1f} M",
            str(row["img_size"][0]),
            f"{row['classes']:,}" if row["classes"] else "none",
            console.percent(row["top1"]),
            row["licence"] or "not stated",
            "yes" if row["cached"] else "",
        )
        for row in tree
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = (2, 3, 4, 5)
    return [
        "  ".join(
            f"{c:>{w}}" if i in right else f"{c:<{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
