"""Linear probes: against scikit-learn, on features that are known, from the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from conftest import Vit, draw_image, run_vit, train_run
from vitcli import api
from vitcli.errors import DataError, UsageError
from vitcli.evaluate.features import Features
from vitcli.evaluate.linear import L2, linear_probe, refitted


def clouds(n: int, classes: int, dim: int, distance: float, seed: int = 0) -> Features:
    """Gaussian clouds around random centres, shifted and stretched, so that standardising matters."""
    random = np.random.default_rng(seed)
    centres = distance * np.random.default_rng(99).normal(size=(classes, dim))
    targets = random.integers(classes, size=n)
    values = centres[targets] + random.normal(size=(n, dim))
    return Features(values * np.geomspace(0.01, 100, dim) + 7, targets)


def test_the_head_is_scikit_learns_on_standardised_features() -> None:
    iris = load_iris()
    features = Features(iris.data, iris.target)
    probe = refitted(linear_probe(features, 3), features)
    scaler = StandardScaler().fit(iris.data)
    theirs = LogisticRegression(C=1 / (probe.l2 * 150), max_iter=10_000, tol=1e-8)
    theirs.fit(scaler.transform(iris.data), iris.target)
    expected = theirs.predict_proba(scaler.transform(iris.data))
    logits = iris.data @ probe.weight.double().numpy().T + probe.bias.double().numpy()
    ours = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(ours, expected, atol=5e-3)
    assert probe.top1_on(features) > 0.95


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_objective_is_the_stated_one(classes: int, balanced: bool) -> None:
    """Mean cross-entropy + l2/2 · ‖W‖² on standardised features, minimised by torch directly."""
    random = np.random.default_rng(1)
    targets = np.sort(random.integers(0, classes, 90) * (random.random(90) < 0.8))
    features = Features(random.normal(size=(90, 4)) * [1, 5, 0.2, 9] + targets[:, None] + 3, targets)
    probe = refitted(replace(linear_probe(features, classes, balanced), l2=0.1), features)
    mean, scale = features.values.mean(0), features.values.std(0) + 1e-5
    standard, labels = torch.from_numpy((features.values - mean) / scale), torch.from_numpy(targets)
    weights = 90 / (classes * torch.bincount(labels).double()) if balanced else torch.ones(classes).double()
    weight = torch.zeros(classes, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        each = torch.nn.functional.cross_entropy(standard @ weight.T + bias, labels, reduction="none")
        value = (each * weights[labels]).mean() + 0.05 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    ours = torch.from_numpy(features.values) @ probe.weight.double().T + probe.bias.double()
    theirs = (standard @ weight.T + bias).detach()
    torch.testing.assert_close(ours.softmax(1), theirs.softmax(1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("classes", [2, 5])
def test_clouds_far_apart_are_told_apart_and_chance_stays_chance(classes: int) -> None:
    apart = linear_probe(clouds(200, classes, 8, 5.0), classes)
    assert apart.top1_on(clouds(300, classes, 8, 5.0, seed=1)) > 0.97
    mixed = linear_probe(clouds(200, classes, 8, 0.0), classes)
    assert abs(mixed.top1 - 1 / classes) < 0.15


def test_the_penalty_is_the_best_by_cross_validation_and_matters() -> None:
    few = clouds(120, 4, 60, 0.35)
    probe = linear_probe(few, 4)
    scores = {row["l2"]: row["top1"] for row in probe.tried}
    assert probe.l2 in L2 and scores[probe.l2] == max(scores.values()) == probe.top1
    fresh = clouds(4000, 4, 60, 0.35, seed=1)
    by_l2 = [refitted(linear_probe(few, 4), few).top1_on(fresh)]
    assert abs(by_l2[0] - probe.top1) < 0.12  # cross-validation tells what new images will give


def test_a_class_without_images_is_never_predicted() -> None:
    features = clouds(100, 3, 6, 4.0)
    present = Features(features.values, np.where(features.targets == 1, 4, features.targets))
    probe = linear_probe(present, 6)
    assert probe.weight.shape == (6, 6)
    logits = present.values @ probe.weight.double().numpy().T + probe.bias.double().numpy()
    assert set(logits.argmax(1)) <= {0, 2, 4}


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(DataError, match="one class"):
        linear_probe(Features(np.ones((5, 3)), np.zeros(5, np.int64)), 2)


@pytest.fixture(scope="module")
def checkpoint(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "run"
    return train_run("pretrain", data=str(class_folders), out=str(folder), model="mu/4", steps=5, batch_size=16)[0]


def test_the_command_reports_its_choice(checkpoint: Path, class_folders: Path, vit: Vit) -> None:
    done = vit("probe", checkpoint, "--data", class_folders, "--json")
    assert done.code == 0, done.err
    tree = done.json
    ((row),) = tree["results"]
    assert set(row) == {"l2", "top1", "n"} and row["n"] == 24 and row["top1"] > 0.8
    assert tree["method"] == "linear" and tree["train_n"] == 72 and tree["split"] == "test"
    assert row["l2"] in [tried["l2"] for tried in tree["cross_validation"]]
    text = vit("probe", checkpoint, "--quiet", "--set", "probe.images=30")
    assert text.code == 0 and "fitted on 30 images" in text.out and text.err == ""
    again = vit("probe", checkpoint, "--data", class_folders, "--json").json
    assert again == tree


def test_a_dry_run_says_what_it_would_use(checkpoint: Path, tmp_path: Path) -> None:
    tree = run_vit("probe", checkpoint, "--dry-run", "--json", "--img-size", "16", cwd=tmp_path).json
    assert (tree["img_size"], tree["train"], tree["n"], tree["classes"]) == ([16, 16], 72, 24, 3)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "linaer"}, "unknown method"),
        ({"overrides": {"probe.images": 1}}, "at least 2"),
        ({"overrides": {"optim.lr": 1.0}}, "does not concern"),
        ({"img_size": (13, 12)}, "multiple of the patch size"),
    ],
)
def test_what_does_not_fit_is_a_usage_error(checkpoint: Path, options: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        api.probe(str(checkpoint), **options)


def test_a_balanced_probe_serves_the_rare_classes() -> None:
    random = np.random.default_rng(0)
    counts = [400, 20, 20]
    centres = np.eye(3, 6) * 1.6

    def draw(counts: list[int]) -> Features:
        targets = np.repeat(np.arange(3), counts)
        return Features(centres[targets] + random.normal(size=(len(targets), 6)), targets)

    train, test = draw(counts), draw([500, 500, 500])
    plain, balanced = linear_probe(train, 3), linear_probe(train, 3, balanced=True)
    assert balanced.top1_on(test) > plain.top1_on(test) + 0.05
    assert abs(balanced.top1 - balanced.top1_on(test)) < 0.1  # its own score weighs classes alike
    assert refitted(balanced, train).top1_on(test) == balanced.top1_on(test)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_handful_of_images_is_enough(count: int) -> None:
    features = clouds(count, 2, 3, 8.0)
    features.targets[:2] = 0, 1
    assert 0 <= linear_probe(features, 2).top1 <= 1


def test_nothing_to_measure_on_is_an_error_of_the_data(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("red", "green", "blue"):
        (tmp_path / "one" / name).mkdir(parents=True)
        draw_image(0, 1).save(tmp_path / "one" / name / "0.png")
    with pytest.raises(DataError, match="no images"):
        api.probe(str(checkpoint), str(tmp_path / "one"))
