"""What is asked of an objective and does not concern it is refused, with what would; and what a benchmark of one counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conftest import Vit
from vitcli.config import PseudoConfig
from vitcli.errors import UsageError
from vitcli.train.pseudo import chosen

TINY = ("--model", "mu/4", "--img-size", 8, "--steps", 2)


@pytest.mark.parametrize(
    ("asked", "said", "way"),
    [
        (("--set", "mae.mask=0.3"), "mae.mask has no part in this run", "--objective mae"),
        (("--set", "distill.weight=0.3", "--objective", "mae"), "distill.weight has no part", "--objective distill"),
        (("--set", "pseudo.threshold=0.9"), "pseudo.threshold has no part", "--unlabelled"),
        (("--set", "train.label_smoothing=0.1", "--objective", "mae"), "train.label_smoothing concerns labels", ""),
        (("--set", "train.loss=bce", "--objective", "visreg"), "train.loss concerns labels", ""),
        (("--set", "augment.mixup=0.2", "--objective", "visreg"), "augment.mixup concerns labels", ""),
        (("--set", "train.dev=0.1", "--objective", "mae"), "train.dev concerns labels", ""),
        (("--set", "train.freeze=backbone", "--objective", "mae"), "leaves nothing to train", ""),
        (("--set", "augment.views=2", "--objective", "mae"), "learns from one view", ""),
        (("--set", "augment.views=1", "--objective", "visreg"), "learns from 2 views or more", ""),
        (("--objective", "distill"), "has no teacher", "--teacher"),
        (("--unlabelled", "digits", "--set", "data.fraction=0.5"), "needs a teacher", "--teacher"),
        (("--objective", "mae", "--set", "model.positions=relative"), "leaves patches out", ""),
        (("--objective", "mae", "--set", "mae.mask=0.9"), "nothing to see or nothing to guess", ""),
    ],
)
def test_what_an_objective_has_no_use_for_is_refused(
    asked: tuple[str, ...], said: str, way: str, in_process: Vit
) -> None:
    result = in_process("pretrain", "--data", "digits", *TINY, *asked)
    assert result.code == 2 and said in result.err and way in result.err, result.err


def test_a_sweep_over_objectives_is_refused_before_its_first_run(in_process: Vit, tmp_path: Path) -> None:
    grid = ("--grid", "train.objective=classify,mae", "--seeds", 1, "--out", tmp_path / "swept")
    result = in_process("sweep", "pretrain", "--data", "digits", *TINY, *grid)
    assert result.code == 2 and "train.objective = mae has none" in result.err
    assert not (tmp_path / "swept").exists()


def test_a_benchmark_refuses_what_training_refuses(in_process: Vit) -> None:
    for asked, said in (
        (("train.objective=mae", "model.positions=relative"), "leaves patches out"),
        (("train.objective=distill",), "has no teacher"),
        (("train.objective=mae", "augment.views=4"), "learns from one view"),
    ):
        settings = [part for value in asked for part in ("--set", value)]
        result = in_process("bench", "mu/4", "--img-size", 8, "--batch-size", 8, *settings)
        assert result.code == 2 and said in result.err, result.err


def test_a_benchmark_counts_all_views(in_process: Vit) -> None:
    def flops(*more: str) -> float:
        settings = ("--set", "train.objective=visreg", "--set", "bench.modes=train", "--set", "bench.seconds=0.01")
        found = in_process("bench", "mu/4", "--img-size", 8, "--batch-size", 8, "--json", *settings, *more)
        (row,) = found.json["results"]
        return float(row["tflops"] / row["images_per_second"])

    assert flops() == pytest.approx(flops("--set", "augment.views=2"))
    assert flops("--set", "augment.views=4") == pytest.approx(2 * flops(), rel=1e-3)


def test_numbers_alone_have_no_unlabelled_images(in_process: Vit) -> None:
    none = ("--data", "none", "--set", "data.images=1000", "--dry-run", "--json")
    result = in_process("pretrain", *none, "--set", "data.classes=10", "--unlabelled", "digits", "--teacher", "x")
    assert result.code == 2 and "numbers alone" in result.err
    plan = in_process("pretrain", *none, "--objective", "mae", "--steps", 3)
    assert plan.code == 0 and plan.json["data"]["classes"] == 0


def test_more_images_of_a_class_than_any_epoch_are_refused() -> None:
    probabilities = np.eye(4, dtype=np.float32)
    with pytest.raises(UsageError, match=r"pseudo.images = 1,000,000,000 of 4 classes"):
        chosen(probabilities, PseudoConfig(images=10**9), 0)
