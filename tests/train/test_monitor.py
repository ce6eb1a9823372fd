"""What a run without labels tells of itself: its numbers against numpy and scikit-learn, where they come from, and what they warn of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from conftest import train_run
from vitcli.data.split import Split
from vitcli.evaluate.features import Features
from vitcli.evaluate.inference import Inference
from vitcli.evaluate.nearest import nearest
from vitcli.train import monitor
from vitcli.train.monitor import effective_rank, ridge, spread
from vitcli.train.runlog import read_lines

Array = NDArray[np.float64]


def clusters(images: int, dim: int, classes: int, seed: int) -> Features:
    draw = np.random.default_rng([seed, images])
    labels = draw.integers(0, classes, images)
    centres = np.random.default_rng(seed).normal(0, 1, (classes, dim))
    return Features(centres[labels] + draw.normal(0, 1.5, (images, dim)), labels)


# --- numbers -----------------------------------------------------------------------------------------------


@given(images=st.integers(2, 30), dim=st.integers(1, 12), seed=st.integers(0, 999))
def test_the_effective_rank_is_the_entropy_of_centred_singular_values(images: int, dim: int, seed: int) -> None:
    """Roy and Vetterli, 2007; RankMe (Garrido et al., 2023). Singular values as roots of the covariance's eigenvalues."""
    values = np.random.default_rng(seed).normal(3, 1, (images, dim)) * np.arange(1, dim + 1)
    centred = values - values.mean(0)
    eigenvalues = np.linalg.eigvalsh(centred.T @ centred).clip(0)
    singular = np.sqrt(eigenvalues[eigenvalues > 1e-9 * eigenvalues.max()])
    parts = singular / singular.sum()
    assert effective_rank(values) == pytest.approx(math.exp(-sum(p * math.log(p) for p in parts)), rel=1e-4)
    assert effective_rank(values) == pytest.approx(effective_rank(7 * values + 100), rel=1e-6)
    assert 1 - 1e-9 <= effective_rank(values) <= min(images - 1, dim) + 1e-9 or images == 2


def test_the_effective_rank_of_known_embeddings() -> None:
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float)
    assert effective_rank(signs) == pytest.approx(2)
    assert effective_rank(signs[:, :1] @ np.ones((1, 5)) + 4) == pytest.approx(1)
    assert effective_rank(np.full((6, 3), 2.0)) == 0
    normal = np.random.default_rng(0).normal(size=(4000, 32))
    assert effective_rank(normal) == pytest.approx(32, rel=0.01)


@given(images=st.integers(2, 20), dim=st.integers(1, 8), seed=st.integers(0, 999))
def test_the_spread_is_the_mean_deviation_of_unit_embeddings_times_the_root_of_their_length(
    images: int, dim: int, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(1, 1, (images, dim))
    unit = [row / math.sqrt(sum(x * x for x in row)) for row in values]
    deviations = []
    for column in zip(*unit, strict=True):
        mean = sum(column) / images
        deviations.append(math.sqrt(sum((x - mean) ** 2 for x in column) / images))
    assert spread(values) == pytest.approx(math.sqrt(dim) * sum(deviations) / dim, rel=1e-6)


def test_the_spread_of_known_embeddings() -> None:
    directions = np.random.default_rng(0).normal(size=(5000, 64))
    assert spread(directions) == pytest.approx(1, rel=0.02)
    assert spread(np.full((9, 4), 3.0)) == pytest.approx(0, abs=1e-12)
    assert spread(np.arange(1.0, 5)[:, None] * np.ones((4, 3))) == pytest.approx(0, abs=1e-7), (
        "lengths are of no account"
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("images", "classes"), [(15, 3), (200, 5)])
def test_neighbours_vote_as_in_scikit_learn(images: int, classes: int, seed: int) -> None:
    """facebookresearch/dino eval_knn.py: the twenty nearest by cosine, each counting exp(cosine / 0.07)."""
    bank, asked = clusters(images, 6, classes, seed), clusters(images + 1, 6, classes, seed)
    k = min(20, images)
    model = KNeighborsClassifier(k, weights=lambda distance: np.exp((1 - distance) / 0.07), metric="cosine")
    model.fit(bank.values, bank.targets)
    assert nearest(bank, asked, classes, 20) == pytest.approx(model.score(asked.values, asked.targets), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("images", "classes"), [(15, 3), (200, 5)])
def test_the_linear_probe_is_scikit_learn_s_ridge(images: int, classes: int, seed: int) -> None:
    """On standardised features, one-hot targets, the penalty 0.1 times the images."""
    bank, asked = clusters(images, 6, classes, seed), clusters(images + 1, 6, classes, seed)
    scaler = StandardScaler().fit(bank.values)
    model = Ridge(alpha=0.1 * images).fit(scaler.transform(bank.values), np.eye(classes)[bank.targets])
    scores = model.predict(scaler.transform(asked.values))
    assert ridge(bank, asked, classes) == pytest.approx((scores.argmax(1) == asked.targets).mean(), abs=1e-9)


def test_a_probe_takes_features_that_do_not_vary() -> None:
    bank = Features(np.ones((6, 3)), np.array([0, 1, 0, 1, 0, 0]))
    assert ridge(bank, bank, 2) == nearest(bank, bank, 2, 20) == pytest.approx(4 / 6)


# --- runs --------------------------------------------------------------------------------------------------


def mae(data: Path, out: Path, sinks: Any = (), steps: int = 20, **values: Any) -> tuple[Path, dict[str, Any]]:
    options = {
        "model__img_size": (12, 12),
        "run__threads": 1,
        "data__workers": 0,
        "train__low_res": 0.0,
        "train__log_every_steps": 1,
    }
    return train_run(
        "pretrain", data=str(data), out=str(out), model="ViT-w16d2h2/4", objective="mae", steps=steps, batch_size=16,
        device="cpu", precision="fp32", sinks=sinks, **options | values,
    )  # fmt: skip


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run looks at all of its images, however short it is."""
    monkeypatch.setattr(monitor, "_SHARE", math.inf)


def test_a_run_looks_at_its_embeddings_and_writes_it_down(class_folders: Path, tmp_path: Path, patient: None) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    folder, report = mae(class_folders, tmp_path / "run", [lambda e, f: heard.append((e, f))], train__monitor=4)
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "monitor" in line]
    assert [line["step"] for line in lines][:3] == [5, 10, 15]
    for line in lines:
        assert line["monitor"].keys() == {"rank", "spread", "knn", "linear"} and "loss" not in line
        assert 1 <= line["monitor"]["rank"] <= 16 and 0 < line["monitor"]["spread"] <= 1.01
        assert 0 <= line["monitor"]["knn"] <= 1 and 0 <= line["monitor"]["linear"] <= 1
        assert line["images_seen"] == 16 * line["step"] and line["epoch"] == pytest.approx(line["images_seen"] / 72)
    assert [f["step"] for event, f in heard if event == "monitor"] == [line["step"] for line in lines]
    assert report["eval"] is None and lines[-1]["monitor"]["linear"] > 0.5, "colours are easy"


@pytest.mark.parametrize("times", [1, 4])
def test_a_run_looks_as_often_as_it_is_asked_to(times: int, class_folders: Path, tmp_path: Path, patient: None) -> None:
    folder, _ = mae(class_folders, tmp_path / "run", train__monitor=times)
    lines = [line["step"] for line in read_lines(folder / "metrics.jsonl") if "monitor" in line]
    assert lines == [20 * part // times for part in range(1, times + 1)]


def test_looking_changes_no_weight(class_folders: Path, tmp_path: Path, patient: None) -> None:
    found = []
    for times in (0, 7):
        folder, _ = mae(class_folders, tmp_path / f"run-{times}", train__monitor=times, model__drop_path=0.2)
        lines = read_lines(folder / "metrics.jsonl")
        assert any("monitor" in line for line in lines) == (times > 0)
        found.append(([line["loss"] for line in lines if "loss" in line], (folder / "model.safetensors").read_bytes()))
    assert found[0][0] == found[1][0] and found[0][1][-1000:] == found[1][1][-1000:]


def test_a_run_with_labels_does_not_look(class_folders: Path, tmp_path: Path, patient: None) -> None:
    folder, _ = train_run(
        "pretrain", data=str(class_folders), out=str(tmp_path / "run"), model="ViT-w16d2h2/4", steps=10, batch_size=16,
        model__img_size=(12, 12), run__threads=1, data__workers=0, train__monitor=5,
    )  # fmt: skip
    assert not any("monitor" in line for line in read_lines(folder / "metrics.jsonl"))


def test_it_looks_at_training_images_alone(
    class_folders: Path, tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the half that is asked about is not the half that answers."""
    opened: list[Split] = []
    real = Inference.open

    def watched(self: Inference, split: Split) -> Any:
        opened.append(split)
        return real(self, split)

    pairs: list[tuple[Features, Features]] = []
    probe = monitor.ridge

    def probed(bank: Features, asked: Features, classes: int) -> float:
        pairs.append((bank, asked))
        return probe(bank, asked, classes)

    held_out: list[Split] = []
    look = monitor.Monitor.look_if_due

    def looking(self: monitor.Monitor) -> bool:
        before, found = len(opened), look(self)
        assert self.session.plan.held_out is not None
        held_out[:] = [self.session.plan.held_out]
        looked.extend(opened[before:])
        return found

    looked: list[Split] = []
    monkeypatch.setattr(Inference, "open", watched)
    monkeypatch.setattr(monitor, "ridge", probed)
    monkeypatch.setattr(monitor.Monitor, "look_if_due", looking)
    mae(class_folders, tmp_path / "run", train__monitor=3)
    assert len(looked) >= 2 and len(pairs) == len(looked)
    forbidden = held_out[0].digests()
    for split, (bank, asked) in zip(looked, pairs, strict=True):
        assert not np.isin(split.digests(), forbidden).any() and len(split) == 72
        assert len(bank) == len(asked) == 36
        rows = {row.tobytes() for row in bank.values}
        assert not rows & {row.tobytes() for row in asked.values}


def test_a_large_set_is_looked_at_in_part_the_same_every_time(
    class_folders: Path, tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_LEAST", 30)
    monkeypatch.setattr(monitor, "_MOST", 30)
    seen: list[tuple[int, ...]] = []
    real = monitor._sample

    def sampled(split: Split, most: int) -> Split:
        found = real(split, most)
        seen.append(tuple(found.rows.tolist()))
        assert found.labels is not None and np.bincount(found.labels).tolist() == [10, 10, 10]
        return found

    monkeypatch.setattr(monitor, "_sample", sampled)
    mae(class_folders, tmp_path / "run", train__monitor=4)
    assert len(seen) >= 3 and len(set(seen)) == 1 and len(seen[0]) == 30


def test_images_without_labels_have_rank_and_spread_alone(class_folders: Path, tmp_path: Path, patient: None) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted((class_folders / "train").glob("*/*.png")):
        (flat / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    folder, report = mae(flat, tmp_path / "run", train__monitor=4)
    lines = [line["monitor"] for line in read_lines(folder / "metrics.jsonl") if "monitor" in line]
    assert len(lines) >= 3 and all(line.keys() == {"rank", "spread"} for line in lines)
    assert not [text for text in report["warnings"] if "collapsed" in text]


@pytest.mark.parametrize("kind", ["all the same", "one direction"])
def test_a_model_that_collapses_is_warned_of_once(
    kind: str, class_folders: Path, tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before a fifth of the run, when random weights are hardly better."""
    steps: list[int] = []

    def collapsed(self: Inference, images: torch.Tensor) -> torch.Tensor:
        numbers = images.flatten(1).sum(1, keepdim=True)
        flat = torch.ones(len(images), 16)
        return flat + 1e-4 * numbers * flat if kind == "all the same" else numbers * flat + torch.eye(16)[0]

    warn = monitor.Monitor._warn

    def watched(self: monitor.Monitor, seen: dict[str, float]) -> None:
        warn(self, seen)
        if self.warned and not steps:
            steps.append(self.session.at.step)

    monkeypatch.setattr(Inference, "features", collapsed)
    monkeypatch.setattr(monitor.Monitor, "_warn", watched)
    _, report = mae(class_folders, tmp_path / "run", train__monitor=20)
    warnings = [text for text in report["warnings"] if "collapsed" in text]
    assert len(warnings) == 1 and "optim.lr" in warnings[0]
    assert steps == [4]
