from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from vitcli.cli import app, completion
from vitcli.config import choices, known_keys, parse_value

COMMAND: Any = typer.main.get_command(app.make_app())


def offered(place: Path, *words: str) -> list[str]:
    """What bash is told of the last of the words."""
    env = {**os.environ, "COMP_WORDS": " ".join(["vit", *words]), "COMP_CWORD": str(len(words)), "_VIT_COMPLETE": "complete_bash"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from vitcli.cli.app import main; main()"],
        env=env, cwd=place, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not re.search(r"\| +(torch|datasets|transformers)$", done.stderr, re.M), "a shell waits for it"
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (("finetune", "deit_t"), {"deit_tiny_patch16_224.fb_in1k"}),
        (("eval", "runs/p"), {"runs/photos"}),
        (("pretrain", "--model", "ViT-S"), {"ViT-S/16", "ViT-S/32"}),
        (("pretrain", "--set", "optim.l"), {"optim.lr="}),
        (("pretrain", "--data", "ci"), {"cifar10", "cifar100"}),
        (("predict", "pa"), {"pages/"}),
    ],
)
def test_a_shell_is_offered_values(words: tuple[str, ...], some: set[str], tmp_path: Path) -> None:
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    (tmp_path / "runs" / "photos" / "model.safetensors").touch()
    (tmp_path / "pages").mkdir()
    found = offered(tmp_path, *words)
    assert some <= set(found) and all(value.startswith(words[-1]) for value in found)


def test_what_an_option_names_is_what_it_offers() -> None:
    seen = 0
    for name, command in COMMAND.commands.items():
        context = typer.Context(command, info_name=name)
        for parameter in command.params:
            listed = re.fullmatch(r"[a-z0-9-]+(\|[a-z0-9-]+)+", parameter.metavar or "")
            if listed is not None:
                given = [item.value for item in parameter.shell_complete(context, "")]
                assert given == (parameter.metavar or "").split("|"), (name, parameter.name)
                seen += 1
    assert seen > 25


def test_every_value_that_is_offered_is_taken() -> None:
    with_choices = [key for key in known_keys() if choices(key)]
    assert len(with_choices) > 30 and choices("optim.lr") == choices("no.key") == choices("") == ()
    for key in with_choices:
        assert completion.keys(f"{key}=") == [f"{key}={value}" for value in choices(key)]
        for value in choices(key):
            parse_value(key, value)
