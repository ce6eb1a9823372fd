"""Mistakes that people bring along from other tools: each ends with 2, 3 or 4 and a hint that has the right command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from conftest import Vit, run_vit
from vitcli import config
from vitcli.cli import habits
from vitcli.cli.app import make_app
from vitcli.cli.table import COMMANDS
from vitcli.families.pretrained import find, other_family, table

MISTAKES = [
    # what is typed, what the hint contains
    ("train --data photos", "vit pretrain --data DATA"),
    ("fit", "vit pretrain --data DATA"),
    ("fine-tune ckpt", "vit finetune CKPT --data DATA"),
    ("val", "vit eval CKPT"),
    ("test ckpt", "vit eval CKPT"),
    ("evaluate", "vit eval CKPT"),
    ("infer a.jpg", "vit predict CKPT IMAGE"),
    ("benchmark", "vit bench MODEL"),
    ("convert a.pth", "vit export CKPT OUT --format onnx"),
    ("visualize", "vit attn-rollout CKPT"),
    ("gradio", "vit demo CKPT"),
    ("list-models", "vit models"),
    ("help", "vit --help"),
    ("version", "vit --version"),
    ("finetun x", "finetune"),
    ("pretrain digits", "vit pretrain --data digits"),
    ("pretrain {photos}", "vit pretrain --data {photos}"),
    ("pretrain data=digits epochs=3", "vit pretrain --data digits"),
    ("pretrain optim.lr=0.1", "vit pretrain --set optim.lr=0.1"),
    ("pretrain -lr 0.1", "--lr"),
    ("pretrain --learning-rate 0.1", "--lr RATE"),
    ("pretrain --lr0 0.1", "--lr RATE"),
    ("pretrain --set lr=0.1", "optim.lr"),
    ("pretrain --bs 32", "--batch-size N"),
    ("pretrain -b 32", "--batch-size N"),
    ("pretrain --imgsz 64", "--img-size N"),
    ("pretrain --input-size 3 224 224", "--img-size N"),
    ("pretrain --img_size 64", "--img-size"),
    ("pretrain --data-dir {photos}", "--data DATA"),
    ("pretrain --dataset_name cifar10", "--data DATA"),
    ("pretrain --output_dir x", "--out FOLDER"),
    ("pretrain --project x", "--out FOLDER"),
    ("pretrain --num_train_epochs 3", "--epochs E"),
    ("pretrain -j 4", "--workers N"),
    ("pretrain --opt sgd", "--set optim.name="),
    ("pretrain --weight-decay 0.1", "--set optim.weight_decay="),
    ("pretrain --warmup-epochs 5", "--set optim.warmup_steps="),
    ("pretrain --clip-grad 1", "--set optim.clip="),
    ("pretrain --mixup 0.8", "--set augment.mixup="),
    ("pretrain --smoothing 0.1", "--set train.label_smoothing="),
    ("pretrain --drop-path 0.1", "--set model.drop_path="),
    ("pretrain --model-ema", "--set train.ema="),
    ("pretrain --amp", "--precision bf16"),
    ("pretrain --precision fp16", "--precision bf16"),
    ("pretrain --device gpu", "--device cuda"),
    ("pretrain --device 0", "--device cuda"),
    ("pretrain --pretrained", "vit finetune deit_tiny_patch16_224"),
    ("pretrain --num-classes 10", "classes come from the data"),
    ("pretrain --model convnext_tiny", "vit models"),
    ("pretrain --model {weights}", "vit finetune {weights}"),
    ("finetune --model deit_tiny_patch16_224 --data digits", "vit finetune NAME --data DATA"),
    ("finetune {photos}", "--data {photos}"),
    ("finetune {photos} {weights}", "vit finetune {weights} --data {photos}"),
    ("finetune swin_tiny_patch4_window7_224 --data digits", "vit models"),
    ("finetune deit_tny_patch16_224 --data digits", "deit_tiny_patch16_224"),
    ("eval --weights {weights}", "vit eval CKPT"),
    ("eval a.jpg", "vit predict CKPT a.jpg"),
    ("predict a.jpg {weights}", "{weights} a.jpg"),
    ("predict {weights} --source a.jpg", "vit predict CKPT IMAGE"),
    ("predict {weights}", "vit predict CKPT IMAGE"),
    ("export {weights}", "{weights} FOLDER"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("habits")
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "photos" / name / "1.jpg")
    (folder / "w.safetensors").write_bytes(b"")
    return {"photos": str(folder / "photos"), "weights": str(folder / "w.safetensors")}


@pytest.mark.parametrize(("typed", "right"), MISTAKES)
def test_a_mistake_ends_in_the_right_command(
    typed: str, right: str, places: dict[str, str], in_process: Vit, tmp_path: Path
) -> None:
    done = in_process(*typed.format(**places).split())
    assert done.code in (2, 3, 4), done.err
    hint = re.search(r"^hint: (.*)", done.err, re.MULTILINE)
    assert hint is not None and right.format(**places) in hint[1], done.err
    assert not list(tmp_path.iterdir())


def test_what_hints_name_is_there() -> None:
    known = set(config.known_keys())
    app = typer.main.get_command(make_app())
    options = {o for command in app.commands.values() for parameter in command.params for o in parameter.opts}  # type: ignore[attr-defined]
    for here in habits._SAME:
        option, _, rest = here.partition(" ")
        assert option == "--set" or option in options, option
        if option == "--set":
            assert rest.partition("=")[0] in known, rest
            config.parse_set([rest])
    for here in habits.COMMANDS:
        found = re.match(r"vit ([a-z-]+)", here)
        assert found is None or found[1] in COMMANDS or found[1].startswith("--"), here


def test_bare_vit_shows_what_there_is(tmp_path: Path) -> None:
    done = run_vit(cwd=tmp_path)
    assert done.code == 2 and "error" not in done.err
    assert "finetune" in done.out + done.err


def test_names_that_are_known_are_of_no_other_family() -> None:
    assert not [row.id for row in table() if other_family(row.id)]
    assert {find(row.id) for row in table()} == {*table()}
    for name in ("timm/swin_tiny_patch4_window7_224.ms_in1k", "convnext_tiny", "timm/resnet50.a1_in1k", "facebook/sam-vit-base",
                 "timm/vit_relpos_base_patch16_224.sw_in1k", "vit_base_patch16_sapiens2.fb", "timm/vit_base_mci_224.apple_mclip"):  # fmt: skip
        assert other_family(name), name
    for name in ("someone/my-clip-of-a-vit", "someone/resnet", "photos/cat"):
        assert not other_family(name), name
