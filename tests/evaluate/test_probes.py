"""Every probe against an implementation of its own: few-shot in float64 numpy, k-NN and discriminant as scikit-learn has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from sklearn.covariance import EmpiricalCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from conftest import Vit, train_run
from vitcli import api
from vitcli.config import ProbeConfig
from vitcli.errors import UsageError
from vitcli.evaluate.features import Features
from vitcli.evaluate.fewshot import fewshot
from vitcli.evaluate.kept import embedded
from vitcli.evaluate.linear import L2, _Space, _Standard, linear_probe
from vitcli.evaluate.nearest import knn, voted


def clouds(n: int, classes: int, dim: int, distance: float, seed: int = 0) -> Features:
    """Clouds that are not Gaussian, around random centres, in correlated and stretched coordinates."""
    random = np.random.default_rng(seed)
    centres = distance * np.random.default_rng(99).normal(size=(classes, dim))
    mixing = np.random.default_rng(98).normal(size=(dim, dim))
    targets = random.integers(classes, size=n)
    return Features((centres[targets] + random.laplace(size=(n, dim))) @ mixing * np.geomspace(0.01, 100, dim), targets)


def by_the_paper(train: Features, test: Features, classes: int, shots: int, seed: int, l2: float) -> float:
    """§4.1 as big_vision's evaluators/fewshot_lsr.py has it, by an eigendecomposition, in float64."""
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(np.where(train.targets == c)[0])[:shots] for c in range(classes)]
    x, y = train.values[np.concatenate(chosen)], train.targets[np.concatenate(chosen)]
    centre, width = x.mean(axis=0), x.std(axis=0) + 1e-5
    x = np.hstack([(x - centre) / width, np.full((len(x), 1), 100.0)])
    z = np.hstack([(test.values - centre) / width, np.full((len(test), 1), 100.0)])
    wanted = np.where(y[:, None] == np.arange(classes), 1.0, -1.0)
    if len(x) >= x.shape[1]:
        values, axes = np.linalg.eigh(x.T @ x)
        weights = axes @ ((axes.T @ (x.T @ wanted)) / (values + l2)[:, None])
    else:
        values, axes = np.linalg.eigh(x @ x.T)
        weights = (x.T @ axes) @ ((axes.T @ wanted) / (values + l2)[:, None])
    return float(np.mean(np.argmax(z @ weights, axis=1) == test.targets))


@pytest.mark.parametrize(("classes", "dim", "l2"), [(4, 6, 1024.0), (7, 40, 1024.0), (10, 24, 0.5), (2, 100, 2.0**-6)])
def test_few_shot_scores_are_the_papers(classes: int, dim: int, l2: float) -> None:
    train, test = clouds(60 * classes, classes, dim, 1.0), clouds(500, classes, dim, 1.0, seed=1)
    found = fewshot(train, test, classes, ProbeConfig(l2=l2, shots=(1, 3, 10, 10_000)))
    assert found["left_out"] == [10_000] and [row["shots"] for row in found["results"]] == [1, 3, 10]
    for row in found["results"]:
        expected = [by_the_paper(train, test, classes, row["shots"], seed, l2) for seed in range(3)]
        assert row["draws"] == pytest.approx(expected, abs=1e-6)
        assert row["top1"] == pytest.approx(np.mean(expected), abs=1e-6)
        assert row["std"] == pytest.approx(np.std(expected), abs=1e-6)


@pytest.mark.parametrize("weights", ["softmax", "uniform", "distance"])
def test_nearest_neighbours_vote_as_scikit_learns_do(weights: str) -> None:
    bank, asked = clouds(300, 5, 8, 1.0), clouds(700, 5, 8, 1.0, seed=1)
    theirs = (lambda distance: np.exp((1 - distance - 1) / 0.07)) if weights == "softmax" else weights
    for k in (1, 4, 20, 299):
        judge = KNeighborsClassifier(k, metric="cosine", weights=theirs).fit(bank.values, bank.targets)
        expected = judge.predict(asked.values)
        found = voted(bank, asked.values, 5, k, weights)
        # whole votes can be equal, and are then in the order of the neighbours' distances
        assert (found == expected).mean() > 0.999
    found = knn(bank, asked, 5, ProbeConfig(k=(1, 20, 10_000)))
    assert [row["k"] for row in found["results"]] == [1, 20] and found["left_out"] == [10_000]


def test_a_neighbour_at_no_distance_counts_alone() -> None:
    bank = Features(np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [0.2, 1.0]]), np.array([0, 1, 1, 1]))
    assert voted(bank, np.array([[2.0, 0.0]]), 2, 4, "distance").tolist() == [0]
    assert voted(bank, np.array([[2.0, 0.0]]), 2, 4, "uniform").tolist() == [1]


class _Widened(EmpiricalCovariance):
    """The covariance of a class with `l2` added to each variance."""

    def __init__(self, l2: float = 0.0) -> None:
        super().__init__()
        self.l2 = l2

    def fit(self, values, y=None):
        self.covariance_ = np.cov(values.T, bias=True) + self.l2 * np.eye(values.shape[1])
        return self


@pytest.mark.parametrize("l2", [1.0, 0.03, 1e-4])
def test_the_closed_form_is_scikit_learns_discriminant(l2: float) -> None:
    train, test = clouds(400, 6, 12, 0.7), clouds(300, 6, 12, 0.7, seed=1)
    scaler = StandardScaler().fit(train.values)
    judge = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=_Widened(l2))
    judge.fit(scaler.transform(train.values), train.targets)
    standard = _Standard(train)
    space = _Space(standard, np.ones(400, bool), balanced=False)
    weight, bias = standard.head(*space.fit("closed", l2), 6)
    logits = test.values @ weight.double().numpy().T + bias.double().numpy()
    theirs = judge.decision_function(scaler.transform(test.values))
    np.testing.assert_allclose(logits - logits[:, :1], theirs - theirs[:, :1], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_no_penalty_of_scikit_learns_is_better(seed: int) -> None:
    train, test = clouds(1500, 8, 40, 0.25, seed), clouds(4000, 8, 40, 0.25, seed + 50)
    ours = linear_probe(train, 8, solvers=("closed", "softmax")).top1_on(test)
    scaler = StandardScaler().fit(train.values)
    x, z = scaler.transform(train.values), scaler.transform(test.values)
    scores = [
        LogisticRegression(C=1 / (l2 * len(x)), max_iter=300).fit(x, train.targets).score(z, test.targets) for l2 in L2
    ]
    assert ours > max(scores) - 0.006  # of 4,000 images two thirds of a standard error


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probes") / "run"
    return train_run("pretrain", data=str(class_folders), out=str(folder), model="mu/4", steps=5, batch_size=16)[0]


def test_features_are_written_with_what_they_are_of(checkpoint: Path, class_folders: Path, in_process: Vit) -> None:
    given = ["probe", checkpoint, "--data", class_folders, "--json", "--method", "knn"]
    done = in_process(*given, "--features", "f.npz")
    assert done.code == 0, done.err
    assert done.json["features"] == "f.npz"
    found = np.load("f.npz", allow_pickle=False)
    assert found["features"].shape == (96, 32) and found["features"].dtype == np.float32
    assert found["split"].tolist() == ["train"] * 72 + ["test"] * 24
    names = found["classes"][found["label"]]
    assert names.tolist() == found["name"].tolist()
    assert [Path(path).parent.name for path in found["path"]] == names.tolist()
    again = in_process(*given, "--features", "f.npz")
    assert again.code == 2 and "exists" in again.err
    assert in_process(*given, "--features", "f.txt").code == 2
    assert in_process(*given, "--features", "g.npz", "--set", "probe.patches=true").code == 2
    done = in_process(*given, "--features", "f.parquet", "--set", "probe.patches=true")
    assert done.code == 0, done.err
    table = pyarrow.parquet.read_table("f.parquet")
    assert table.num_rows == 96 and b"vit" in table.schema.metadata
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), np.float32), found["features"])
    patches = np.array(table["patches"].to_pylist())
    assert patches.shape == (96, 9, 32)
    planned = api.plan_probe(str(checkpoint), str(class_folders))
    inference = planned.inference()
    with inference.running():
        _, pixels = next(inference.batches(inference.open(planned.train), np.arange(4)))
        tokens = inference.model.encode(pixels)[:, inference.model.config.prefix_tokens :]
    np.testing.assert_allclose(patches[:4], tokens.float().numpy(), atol=0.03)


def test_features_are_computed_once_and_a_damaged_file_is_computed_again(
    checkpoint: Path, class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIT_CACHE", str(tmp_path))
    planned = api.plan_probe(str(checkpoint), str(class_folders))
    first = embedded(planned.inference(), planned.train, keep=True)
    (file,) = (tmp_path / "features").iterdir()
    inference = planned.inference()
    monkeypatch.setattr(type(inference), "features", lambda *_: pytest.fail("computed again"))
    again = embedded(inference, planned.train, keep=True)
    np.testing.assert_array_equal(first.values, again.values)
    monkeypatch.undo()
    monkeypatch.setenv("VIT_CACHE", str(tmp_path))
    blob = bytearray(file.read_bytes())
    blob[len(blob) // 2] ^= 1
    file.write_bytes(blob)
    whole = embedded(planned.inference(), planned.train, keep=True)
    np.testing.assert_array_equal(first.values, whole.values)
    assert file.read_bytes() != bytes(blob)
    other = api.plan_probe(str(checkpoint), str(class_folders), overrides={"eval.crop": 0.8})
    assert not np.array_equal(embedded(other.inference(), other.train, keep=True).values, first.values)


def test_the_solver_can_be_chosen(checkpoint: Path, class_folders: Path) -> None:
    for solver in ("closed", "softmax"):
        found = api.probe(str(checkpoint), str(class_folders), overrides={"probe.solver": solver})
        assert found["solver"] == solver == found["cross_validation"][0]["solver"]
        assert {row["solver"] for row in found["cross_validation"]} == {solver}
    with pytest.raises(UsageError, match=r"probe\.solver"):
        api.probe(str(checkpoint), str(class_folders), overrides={"probe.solver": "magic"})
