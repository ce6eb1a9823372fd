"""Distillation (Hinton et al., 2015, §2; Touvron et al., 2021, DeiT, §3 and §4): losses in numpy, and what the teacher sees."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from conftest import Vit
from processes import run
from vitcli import flops
from vitcli.classes import Class
from vitcli.config import Config, DistillConfig, EvalConfig, ModelConfig, TrainConfig
from vitcli.data.batch import Batch
from vitcli.errors import CheckpointError
from vitcli.model.vit import ViT, init_weights
from vitcli.train.objectives.base import Noise
from vitcli.train.objectives.distill import Distill
from vitcli.weights import checkpoint
from vitcli.weights.describe import Description

Array = NDArray[np.float64]
IMAGENET = EvalConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
COLOURS = ("blue", "green", "red")


def small(size: int = 12, classes: int = 3, **values: Any) -> ModelConfig:
    dimensions: dict[str, Any] = {
        "name": "ViT-w16d2h2/4",
        "width": 16,
        "depth": 2,
        "heads": 2,
        "mlp": 64,
        "patch": (4, 4),
        "img_size": (size, size),
        "classes": classes,
        "pool": "mean",
    }
    return ModelConfig(**dimensions | values)


def weighted(model: ModelConfig, seed: int) -> ViT:
    """With heads that say something."""
    made = ViT(model)
    init_weights(made, seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for head in made.heads:
            head.weight.normal_(std=2, generator=draw)
            head.bias.normal_(generator=draw)
    return made


def teacher_file(
    path: Path, names: tuple[str, ...] = COLOURS, size: int = 12, evaluation: EvalConfig | None = None, seed: int = 7
) -> Path:
    model = weighted(small(size, len(names), drop_path=0.5, dropout=0.3), seed)
    classes = tuple(Class(name) for name in names)
    save(path, model, classes, evaluation or EvalConfig())
    return path


def save(path: Path, model: ViT, classes: tuple[Class, ...], evaluation: EvalConfig) -> None:
    described = Description(
        path=path, model=model.config, classes=classes, eval=evaluation, provenance={"command": "pretrain"}
    )
    checkpoint.save(described, dict(model.state_dict()))


def config_of(teacher: Path, model: ModelConfig | None = None, **values: Any) -> Config:
    train = TrainConfig(objective="distill", teacher=str(teacher), steps=4)
    return Config(model=model or small(), train=train, settings={"distill": DistillConfig(**values)})


def images_of(count: int, size: int, seed: int = 0) -> tuple[NDArray[np.uint8], Tensor]:
    """Smooth images as bytes [n, h, w, 3], and as a student with the usual means sees them: far from black and white, where
    Pillow cuts off between its two passes what a bicubic kernel overshoots.
    """
    draw = np.random.default_rng(seed)
    coarse = draw.integers(70, 190, (count, 4, 4, 3)).astype(np.uint8)
    bytes_ = np.stack([np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in coarse])
    return bytes_, torch.from_numpy((bytes_.transpose(0, 3, 1, 2) / 255.0 - 0.5) / 0.5).float()


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    scaled: Array = e / e.sum(1, keepdims=True)
    return scaled


def double(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


# --- losses ------------------------------------------------------------------------------------------------


@given(
    images=st.integers(1, 5),
    classes=st.integers(2, 6),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 7.0]),
    seed=st.integers(0, 10**6),
)
def test_soft_labels_are_compared_by_their_divergence_and_hard_ones_by_cross_entropy(
    images: int, classes: int, temperature: float, seed: int
) -> None:
    """τ² · KL of tempered softmaxes, a mean over images; DeiT's code divides by the classes too."""
    draw = np.random.default_rng(seed)
    student, teacher = draw.normal(0, 3, (2, images, classes))
    objective = Distill.__new__(Distill)
    torch.nn.Module.__init__(objective)
    logits = torch.from_numpy(student), torch.from_numpy(teacher)
    objective.settings = DistillConfig(labels="soft", temperature=temperature)
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    expected = temperature**2 * float((p * (np.log(p) - np.log(q))).sum()) / images
    assert float(objective.of_teacher(*logits)) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    objective.settings = DistillConfig(labels="hard", temperature=temperature)
    picked = softmax(student)[np.arange(images), teacher.argmax(1)]
    assert float(objective.of_teacher(*logits)) == pytest.approx(-float(np.log(picked).mean()), rel=1e-6)


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_weighs_labels_against_the_teacher_each_with_its_own_head(
    labels: str, distilled: bool, mixed: bool, tmp_path: Path
) -> None:
    """A distilled student learns labels with the class token's head, and the teacher with the other (DeiT §4.2)."""
    teacher = teacher_file(tmp_path / "teacher.safetensors")
    model = small(distilled=True, pool="cls") if distilled else small()
    config = config_of(teacher, model, labels=labels, weight=0.7, temperature=3.0)
    config = replace(config, train=replace(config.train, label_smoothing=0.1))
    student = weighted(model, 1)
    objective = Distill(student, config)
    objective.begin([Class(name) for name in COLOURS])
    _, images = images_of(6, 12)
    own = torch.tensor([0, 1, 2, 0, 1, 2])
    batch = Batch((images,), own, torch.arange(6))
    if mixed:
        batch = replace(batch, partner_labels=own.roll(1), weight=0.8)
    described, trained = checkpoint.load(str(teacher))
    opinion = double(checkpoint.model_with(described.model, trained)(images))
    read = student.read(images)
    of_labels = double(student.head(read[0]))
    of_teacher = of_labels
    if distilled:
        assert student.head_dist is not None
        of_teacher = double(student.head_dist(read[1]))
        assert not np.allclose(of_labels, of_teacher)
    target = np.eye(3)[own] if not mixed else 0.8 * np.eye(3)[own] + 0.2 * np.eye(3)[own.roll(1)]
    target = 0.9 * target + 0.1 / 3
    first = -float((target * np.log(softmax(of_labels))).sum(1).mean())
    if labels == "soft":
        p, q = softmax(opinion / 3), softmax(of_teacher / 3)
        second = 9 * float((p * np.log(p / q)).sum(1).mean())
    else:
        second = -float(np.log(softmax(of_teacher)[np.arange(6), opinion.argmax(1)]).mean())
    found = objective(student, batch, Noise(None))
    assert float(found.loss.detach()) == pytest.approx(0.3 * first + 0.7 * second, rel=1e-4)
    metrics = {name: float(torch.as_tensor(value).detach()) for name, value in found.metrics.items()}
    agree = float((of_teacher.argmax(1) == opinion.argmax(1)).mean())
    assert metrics == pytest.approx({"labels": first, "teacher": second, "agree": agree}, rel=1e-4)


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn_from_it(tmp_path: Path) -> None:
    teacher = teacher_file(tmp_path / "teacher.safetensors")
    student = weighted(small(), 7)
    objective = Distill(student, config_of(teacher, weight=1.0))
    objective.begin([Class(name) for name in COLOURS])
    _, images = images_of(4, 12)
    found = objective(student, Batch((images,), torch.zeros(4, dtype=torch.int64), torch.arange(4)), Noise(None))
    assert abs(float(found.loss.detach())) < 1e-6 and float(found.metrics["agree"]) == 1


# --- the teacher -------------------------------------------------------------------------------------------


def test_the_teacher_s_classes_are_found_by_name(tmp_path: Path) -> None:
    one = teacher_file(tmp_path / "one.safetensors")
    student = weighted(small(), 1)
    objective = Distill(student, config_of(one))
    _, images = images_of(5, 12)
    objective.begin([Class(name) for name in COLOURS])
    own = objective.opinion(images)
    objective.begin([Class(name) for name in ("red", "Blue", "green")])
    assert torch.equal(objective.opinion(images), own[:, [2, 0, 1]])
    with pytest.raises(CheckpointError, match="3 classes"):
        objective.begin([Class(name) for name in ("red", "blue", "yellow")])


@pytest.mark.parametrize("size", [8, 12, 24])
def test_the_teacher_sees_what_its_own_preprocessing_would_give(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size by Pillow's bicubic resize, and its own means."""
    teacher = teacher_file(tmp_path / "teacher.safetensors", size=size, evaluation=IMAGENET)
    objective = Distill(weighted(small(), 1), config_of(teacher))
    bytes_, images = images_of(6, 12)
    seen: list[Tensor] = []
    forward = ViT.forward

    def watched(self: ViT, images: Tensor, keep: Tensor | None = None) -> Tensor:
        seen.append(images)
        return forward(self, images, keep)

    monkeypatch.setattr(ViT, "forward", watched)
    logits = objective.opinion(images)
    resized = np.stack([np.asarray(Image.fromarray(b).resize((size, size), Image.Resampling.BICUBIC)) for b in bytes_])
    expected = (resized / 255.0 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    assert seen[0].shape == (6, 3, size, size)
    levels = np.abs(double(seen[0]).transpose(0, 2, 3, 1) - expected) * np.array(IMAGENET.std) * 255
    assert levels.max() < (1e-3 if size == 12 else 1.5), "Pillow rounds to whole levels, in between and at the end"
    described, tensors = checkpoint.load(str(teacher))
    model = checkpoint.model_with(described.model, tensors)
    own = model(torch.from_numpy(expected.transpose(0, 3, 1, 2)).float()).detach()
    assert torch.allclose(logits, own, atol=0.05 * float(own.std()))


def test_smaller_images_of_a_growing_run_are_enlarged_for_the_teacher(tmp_path: Path) -> None:
    objective = Distill(weighted(small(), 1), config_of(teacher_file(tmp_path / "teacher.safetensors")))
    _, images = images_of(3, 8)
    assert objective.opinion(images).shape == (3, 3)


def test_the_teacher_is_no_part_of_the_student_and_is_asked_without_noise(tmp_path: Path) -> None:
    """Its dropout and DropPath are off even where the run trains, and no gradient reaches it."""
    objective = Distill(weighted(small(), 1), config_of(teacher_file(tmp_path / "teacher.safetensors")))
    assert not objective.state_dict() and not list(objective.parameters()) and not list(objective.modules())[1:]
    objective.train()
    _, images = images_of(4, 12)
    one, other = objective.opinion(images), objective.opinion(images)
    assert torch.equal(one, other) and not one.requires_grad
    assert not objective._teacher[0].training
    assert not any(p.requires_grad for p in objective._teacher[0].parameters())


def test_the_teacher_s_passes_are_counted(tmp_path: Path) -> None:
    """A forward pass an image at its own size, beside three of the student's."""
    config = config_of(teacher_file(tmp_path / "teacher.safetensors", size=24))
    teacher = small(24)
    assert Distill.extra(config).held == flops.parameters(teacher) == sum(p.numel() for p in ViT(teacher).parameters())
    assert Distill.extra(config).parameters == 0
    assert Distill.training_flops(config, 5) == 5 * (6 * flops.macs(config.model) + 2 * flops.macs(teacher))


# --- commands ----------------------------------------------------------------------------------------------

SHORT = (
    "--model", "ViT-w16d2h2/4", "--img-size", "12", "--batch-size", "16", "--steps", "4", "--device", "cpu", "--precision", "fp32",
    "--set", "run.threads=1", "--set", "data.workers=0", "--set", "train.log_every_steps=1", "--json",
)  # fmt: skip


def test_a_run_without_a_teacher_is_refused(class_folders: Path, in_process: Vit) -> None:
    refused = in_process("pretrain", "--data", class_folders, *SHORT, "--objective", "distill", "--out", "run")
    assert refused.code == 2 and "no teacher" in refused.err and "--teacher" in refused.err
    assert not Path("run").exists()


@pytest.mark.parametrize("objective", ["classify", "mae", "masked-patch", "visreg"])
def test_a_teacher_of_an_objective_that_has_none_is_refused(
    objective: str, class_folders: Path, in_process: Vit, tmp_path: Path
) -> None:
    teacher = teacher_file(tmp_path / "teacher.safetensors")
    words = ("--objective", objective, "--teacher", teacher, "--out", "run")
    refused = in_process("pretrain", "--data", class_folders, *SHORT, *words)
    assert refused.code == 2 and objective in refused.err and "distill" in refused.err
    assert not Path("run").exists()


@pytest.mark.parametrize("names", [("blue", "green", "yellow"), ("blue", "green"), (*COLOURS, "yellow")])
def test_a_teacher_of_other_classes_is_refused(
    names: tuple[str, ...], class_folders: Path, in_process: Vit, tmp_path: Path
) -> None:
    teacher = teacher_file(tmp_path / "teacher.safetensors", names)
    words = ("--objective", "distill", "--teacher", teacher, "--out", "run")
    refused = in_process("pretrain", "--data", class_folders, *SHORT, *words)
    assert refused.code == CheckpointError.code == 4
    assert f"{len(names)} classes" in refused.err and "finetune" in refused.err
    assert not Path("run").exists()


def test_a_teacher_that_is_not_there_or_has_no_head_is_refused(
    class_folders: Path, in_process: Vit, tmp_path: Path
) -> None:
    headless = tmp_path / "headless.safetensors"
    save(headless, weighted(small(classes=0), 1), (), EvalConfig())
    for teacher in ("nowhere.safetensors", headless):
        words = ("--objective", "distill", "--teacher", teacher, "--out", "run")
        refused = in_process("pretrain", "--data", class_folders, *SHORT, *words)
        assert refused.code == 4, refused.err


def stopped_at(step: int) -> str:
    """Python that ends a run with SIGTERM in its step of this number."""
    return (
        "from vitcli.train import loop\nimport signal\nstep, calls = loop.train_step, [0]\n"
        f"def stop(*a):\n    calls[0] += 1\n    if calls[0] == {step}: signal.raise_signal(signal.{signal.SIGTERM.name})\n"
        "    return step(*a)\nloop.train_step = stop"
    )


def test_a_teacher_that_changed_between_two_sessions_is_refused(class_folders: Path, tmp_path: Path) -> None:
    teacher = teacher_file(tmp_path / "teacher.safetensors")
    words = (
        "pretrain",
        "--data",
        class_folders,
        *SHORT,
        "--objective",
        "distill",
        "--teacher",
        teacher,
        "--out",
        "run",
    )
    stopped = run(words, tmp_path, before=stopped_at(2))
    assert stopped.code == 75, stopped.err
    first = teacher.read_bytes()
    teacher_file(teacher, seed=8)
    refused = run(words, tmp_path)
    assert refused.code == 2 and "teacher" in refused.err, (refused.code, refused.err)
    # by the configuration of the run, too
    again = run(("pretrain", "--config", tmp_path / "run" / "run.toml", "--out", "again", "--json"), tmp_path)
    assert again.code == 2 and "is not the teacher" in again.err, again.err
    # and goes on where it is put back
    teacher.write_bytes(first)
    done = run(words, tmp_path)
    assert done.code == 0 and done.json["resumed_from"] == 2, done.err


def test_a_teacher_that_was_moved_is_the_same_teacher(class_folders: Path, tmp_path: Path) -> None:
    """It is what it holds; a new run by the old one's configuration, with another --teacher, is the same run."""
    teacher = teacher_file(tmp_path / "teacher.safetensors")
    words = ["pretrain", "--data", class_folders, *SHORT, "--objective", "distill"]
    one = run((*words, "--teacher", teacher, "--out", "one"), tmp_path)
    assert one.code == 0, one.err
    moved = teacher.rename(tmp_path / "moved.safetensors")
    config = tmp_path / "one" / "run.toml"
    two = run(("pretrain", "--config", config, "--teacher", moved, "--out", "two", "--json"), tmp_path)
    assert two.code == 0, two.err
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    info = json.loads(run(("info", "two", "--json"), tmp_path).out)
    assert info["provenance"]["teacher"]["path"] == str(moved)
