"""Labels that are sets, and classes that count more than others: losses by hand, average precision as scikit-learn has it, runs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score

from conftest import Vit, small_vit, train_run
from vitcli import api
from vitcli.classes import Class
from vitcli.config import Config, TrainConfig
from vitcli.data.batch import Batch
from vitcli.errors import DataError, UsageError
from vitcli.evaluate.sets import SetTally, average_precision
from vitcli.model.classifier import build
from vitcli.train.objectives.classify import Classify, weights_of
from vitcli.train.plan import Request

NAMES = ("red", "green", "blue")


def scene(shown: tuple[int, ...], index: int) -> Image.Image:
    """A gray field with a bar of each colour that is shown, at its own height."""
    random = np.random.default_rng([index, *shown])
    pixels = random.normal(90, 20, (12, 12, 3))
    for c in shown:
        pixels[4 * c : 4 * c + 4, :, :] = random.normal(60, 15, (4, 12, 3))
        pixels[4 * c : 4 * c + 4, :, c] = 230
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


SETS = [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "bars"
    folder.mkdir()
    for split, count, first in (("train", 96, 0), ("test", 40, 1000)):
        shown = [SETS[i % 8] for i in range(count)]
        images = []
        for i, s in enumerate(shown):
            stream = io.BytesIO()
            scene(s, first + i).save(stream, "PNG")
            images.append({"bytes": stream.getvalue(), "path": None})
        labels = [[NAMES[c] for c in s] for s in shown]
        pyarrow.parquet.write_table(pa.table({"image": images, "labels": labels}), folder / f"{split}.parquet")
    return folder


# --- numbers ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=1, max_size=25))
def test_average_precision_is_scikit_learns_with_ties_too(pairs: list[tuple[int, bool]]) -> None:
    scores, shown = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    found = average_precision(scores, shown)
    assert found == (pytest.approx(average_precision_score(shown, scores)) if shown.any() else None)


@given(st.integers(0, 12), st.integers(1, 6), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_parts_merged_are_the_whole(n: int, classes: int, cut: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.integers(-2, 3, (n, classes)).astype(np.float32))
    shown = torch.from_numpy(random.random((n, classes)) < 0.4)
    whole, first, second = SetTally(classes), SetTally(classes), SetTally(classes)
    whole.add(logits, shown)
    first.add(logits[:cut], shown[:cut])
    second.add(logits[cut:], shown[cut:])
    first.merge(second)
    assert first.result() == whole.result()
    found = whole.result()
    assert found["n"] == n
    if n:
        hits = [bool(shown[i, int(logits[i].argmax())]) for i in range(n)]
        assert found["top1"] == pytest.approx(np.mean(hits))
        x, y = logits.double().numpy(), shown.numpy()
        by_hand = np.where(y, np.log1p(np.exp(-x)), np.log1p(np.exp(x))).sum(1).mean()
        assert found["loss"] == pytest.approx(by_hand)
        precisions = [average_precision_score(y[:, c], x[:, c]) for c in range(classes) if y[:, c].any()]
        assert found["map"] == (pytest.approx(np.mean(precisions)) if precisions else None)


def objective(loss: str, weights: str = "", smoothing: float = 0.0) -> Classify:
    config = Config(model=small_vit(img_size=(8, 8), patch=(4, 4), classes=3),
                    train=TrainConfig(loss=loss, class_weights=weights, label_smoothing=smoothing, steps=1))  # fmt: skip
    return Classify(build(config.model), config)


COUNTS = np.array([50, 30, 20])


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "bce"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_losses_by_hand(loss: str, smoothing: float) -> None:
    smoothing = 0.0 if loss == "bce" else smoothing
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(7, 3)), random.integers(0, 3, 7)
    made = objective(loss, "balanced", smoothing)
    made.counted([Class(n) for n in NAMES], COUNTS)
    weights = (1 / COUNTS) / np.average(1 / COUNTS, weights=COUNTS)
    targets = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    each = targets * np.log1p(np.exp(-logits)) + (1 - targets) * np.log1p(np.exp(logits))
    expected = {
        "softmax": np.mean(-(weights * targets * logs).sum(1)),
        "sigmoid": (each * weights).sum(1).mean(),
        "bce": (each * weights).mean(),
    }[loss]
    found = made.loss_of(
        torch.from_numpy(logits).float(), Batch((torch.zeros(7, 3, 8, 8),), torch.from_numpy(labels), torch.arange(7))
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert np.average(weights, weights=COUNTS) == pytest.approx(1)


@pytest.mark.parametrize("weights", ["", "balanced"])
@pytest.mark.parametrize("loss", ["sigmoid", "bce"])
def test_losses_of_sets_by_hand(loss: str, weights: str) -> None:
    random = np.random.default_rng(1)
    logits, shown = random.normal(size=(6, 3)), random.random((6, 3)) < 0.5
    made = objective(loss, weights)
    made.counted([Class(n) for n in NAMES], COUNTS)
    own = (1 / COUNTS) / np.average(1 / COUNTS, weights=COUNTS) if weights else np.ones(3)
    each = np.where(shown, np.log1p(np.exp(-logits)), np.log1p(np.exp(logits))) * own
    batch = Batch((torch.zeros(6, 3, 8, 8),), None, torch.arange(6), targets=torch.from_numpy(shown).float())
    found = made.loss_of(torch.from_numpy(logits).float(), batch)
    assert float(found) == pytest.approx(each.sum(1).mean() if loss == "sigmoid" else each.mean(), rel=1e-5)


def test_weights_of_a_file(tmp_path: Path) -> None:
    classes = [Class(n) for n in NAMES]
    (tmp_path / "w.tsv").write_text("Green\t2\nred\t1\nblue\t4\n")
    (tmp_path / "w.json").write_text(json.dumps({"red": 1, "green": 2, "blue": 4}))
    for name in ("w.tsv", "w.json"):
        found = weights_of(str(tmp_path / name), classes, COUNTS)
        np.testing.assert_allclose(found, np.array([1, 2, 4]) * 100 / (50 + 60 + 80), rtol=1e-6)
    for text, named in (
        ("red\t1\n", "green"),
        ("red\t1\ngreen\t1\nblue\t1\npink\t1", "pink"),
        ("red\t-1", "positive"),
        ("red", "read"),
    ):
        (tmp_path / "x.tsv").write_text(text)
        with pytest.raises(UsageError, match=named):
            weights_of(str(tmp_path / "x.tsv"), classes, COUNTS)


# --- runs ---------------------------------------------------------------------------------------------------

ASKED: dict[str, Any] = {"model": "mu/4", "steps": 150, "batch_size": 32, "optim__lr": 0.01}


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return train_run("pretrain", data=str(data), out=str(tmp_path_factory.mktemp("set-run") / "run"), **ASKED)


def test_a_run_learns_sets_and_says_how_well(trained: tuple[Path, dict[str, Any]], data: Path, in_process: Vit) -> None:
    folder, report = trained
    assert report["eval"]["map"] > 0.9 and report["eval"]["n"] == 40 and report["eval"]["ece"] is None
    done = in_process("eval", folder, "--json")
    assert done.code == 0, done.err
    assert done.json["map"] == report["eval"]["map"] and [c["name"] for c in done.json["classes"]] == [
        "blue",
        "green",
        "red",
    ]
    assert {c["n"] for c in done.json["classes"]} == {20}
    assert "mAP" in in_process("eval", folder).out
    assert in_process("eval", folder, "--confusion", "c.png").code == 2
    assert in_process("probe", folder).code == 3
    tree = in_process("data", data, "--json", "--no-near").json
    assert [c["n"] for split in tree["splits"] if split["name"] == "test" for c in split["classes"]] == [20, 20, 20]


def test_predictions_name_every_class_that_is_sure_enough(
    trained: tuple[Path, dict[str, Any]], in_process: Vit
) -> None:
    folder, _ = trained
    Path("in").mkdir()
    for i, shown in enumerate(SETS):
        scene(shown, 5000 + i).save(f"in/{i}.png")
    rows = [json.loads(line) for line in in_process("predict", folder, "in", "--json").out.splitlines()]
    found = [{item["label"] for item in row["labels"]} for row in rows]
    assert sum(f == {NAMES[c] for c in s} for f, s in zip(found, SETS, strict=True)) >= 7
    for row in rows:
        assert all(item["score"] >= 0.5 for item in row["labels"]) and 0 <= row["score"] <= 1
        assert row["label"] == (row["labels"][0]["label"] if row["labels"] else None)
    sure = [
        json.loads(line) for line in in_process("predict", folder, "in", "--json", "--min-score", "0").out.splitlines()
    ]
    assert all(len(row["labels"]) == 3 for row in sure)
    assert in_process("predict", folder, "in", "--out", "p.parquet").code == 0
    table = pyarrow.parquet.read_table("p.parquet").to_pylist()
    assert [{item["label"] for item in row["labels"]} for row in table] == found
    text = in_process("predict", folder, "in").out.splitlines()
    assert "none of these" in text[0] and len(text[7].split("\t")) == 7


def test_a_trained_classifier_moves_to_sets_and_back(
    trained: tuple[Path, dict[str, Any]], data: Path, class_folders: Path, tmp_path: Path
) -> None:
    single, _ = train_run(
        "pretrain", data=str(class_folders), out=str(tmp_path / "one"), model="mu/4", steps=5, batch_size=16
    )
    folder, report = train_run(
        "finetune", init=str(single), data=str(data), out=str(tmp_path / "two"), steps=20, batch_size=32
    )
    assert report["eval"]["map"] > 0.4
    back, _ = train_run(
        "finetune", init=str(folder), data=str(class_folders), out=str(tmp_path / "three"), steps=3, batch_size=16
    )
    assert 'scores = "softmax"' in (back / "run.toml").read_text()
    assert 'scores = "sigmoid"' in (folder / "run.toml").read_text()


def test_micro_batches_and_a_stop_change_nothing(data: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "data": str(data),
        "model": "mu/4",
        "steps": 4,
        "batch_size": 16,
        "device": "cpu",
        "precision": "fp32",
        "augment__mixup": 0.5,
    }
    _, whole = train_run("pretrain", out=str(tmp_path / "a"), **given)
    _, parts = train_run("pretrain", out=str(tmp_path / "b"), train__accumulate=4, **given)
    assert parts["eval"]["loss"] == pytest.approx(whole["eval"]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "asked",
    [{"train__loss": "softmax"}, {"train__label_smoothing": 0.1}, {"train__dev": 0.2}, {"data__balanced": True}],
)
def test_what_takes_one_label_an_image_is_refused(data: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="one label an image"):
        train_run("pretrain", data=str(data), out=str(tmp_path / "run"), model="mu/4", steps=2, **asked)


def test_class_weights_stand_in_the_report_beside_balanced_top1(class_folders: Path, tmp_path: Path) -> None:
    _, report = train_run(
        "pretrain", data=str(class_folders), out=str(tmp_path / "run"), model="mu/4", steps=3, batch_size=16,
        train__class_weights="balanced",
    )  # fmt: skip
    assert report["class_weights"] == [{"name": name, "weight": 1.0} for name in ("blue", "green", "red")]
    assert report["eval"]["balanced_top1"] == pytest.approx(report["eval"]["top1"])
    (tmp_path / "w.tsv").write_text("red\t3\ngreen\t1\nblue\t1\n")
    folder, report = train_run(
        "pretrain", data=str(class_folders), out=str(tmp_path / "file"), model="mu/4", steps=3, batch_size=16,
        train__class_weights=str(tmp_path / "w.tsv"),
    )  # fmt: skip
    assert [row["weight"] for row in report["class_weights"]] == pytest.approx([0.6, 0.6, 1.8])
    assert str(tmp_path / "w.tsv") in (folder / "run.toml").read_text()
    with pytest.raises(UsageError, match="class_weights"):
        api.train("pretrain", data=str(class_folders), steps=1, overrides={"train.class_weights": "nowhere.tsv"})


# --- faults that were found -----------------------------------------------------------------------------------


def parquet_of(folder: Path, **splits: pa.Array) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, labels in splits.items():
        images = []
        for i in range(len(labels)):
            stream = io.BytesIO()
            scene(SETS[i % 8], i).save(stream, "PNG")
            images.append({"bytes": stream.getvalue(), "path": None})
        pyarrow.parquet.write_table(pa.table({"image": images, "labels": labels}), folder / f"{split}.parquet")
    return folder


def sets_of(folder: Path, split: str) -> list[set[str]] | None:
    from vitcli.config import DataConfig
    from vitcli.data.sources import open_source

    source = open_source(DataConfig(source=str(folder)))
    part = source.splits[split]
    return None if part.sets is None else [{source.classes[c].name for c in np.flatnonzero(row)} for row in part.sets]


def test_text_beside_lists_is_a_set_of_one_and_spellings_are_matched(tmp_path: Path) -> None:
    folder = parquet_of(
        tmp_path / "a", train=pa.array([["red"], ["green", "blue"], []]), test=pa.array(["Red", "green"])
    )
    assert sets_of(folder, "train") == [{"red"}, {"green", "blue"}, set()]
    assert sets_of(folder, "test") == [{"red"}, {"green"}]
    folder = parquet_of(tmp_path / "b", train=pa.array([[3], [1, 2]]), test=pa.array([1, 2]))
    assert sets_of(folder, "test") == [{"1"}, {"2"}]
    folder = parquet_of(
        tmp_path / "c", train=pa.array([["red"], []]), test=pa.array([None, None], pa.list_(pa.string()))
    )
    assert sets_of(folder, "test") is None


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (pa.array([["red"], None]), "row 1 has no label"),
        (pa.array([["red"], [None]]), "None among its labels"),
        (pa.array([[1], [-1]]), "-1 among its labels"),
        (pa.array([[], []], pa.list_(pa.string())), "names no class"),
        (pa.array([[1.5], [2.0]]), "not classes"),
        (pa.array([[["a"]], [["b"]]]), "not classes"),
    ],
)
def test_rows_that_are_no_sets_are_refused(tmp_path: Path, labels: pa.Array, named: str) -> None:
    with pytest.raises(DataError, match=named):
        sets_of(parquet_of(tmp_path / "a", train=labels), "train")


def test_json_lines_of_mixed_kinds_are_refused(tmp_path: Path) -> None:
    scene((0,), 1).save(tmp_path / "1.png")
    for row, named in (
        ([1, "red"], "str in row|int in row"),
        ([True, 1], "bool in row|int in row"),
        ([["a"]], "has the label"),
    ):
        (tmp_path / "x.jsonl").write_text(json.dumps({"path": "1.png", "labels": row}) + "\n")
        with pytest.raises(DataError, match=named):
            sets_of(tmp_path / "x.jsonl", "train")


def test_an_edited_file_of_weights_is_another_run(class_folders: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "data": str(class_folders),
        "out": str(tmp_path / "run"),
        "model": "mu/4",
        "steps": 2,
        "batch_size": 16,
    }
    (tmp_path / "w.tsv").write_text("red\t3\ngreen\t1\nblue\t1\n")
    train_run("pretrain", train__class_weights=str(tmp_path / "w.tsv"), **given)
    (tmp_path / "w.tsv").write_text("red\t9\ngreen\t1\nblue\t1\n")
    with pytest.raises(UsageError, match="class weights"):
        train_run("pretrain", train__class_weights=str(tmp_path / "w.tsv"), **given)
    (tmp_path / "short.tsv").write_text("red\t9\n")
    with pytest.raises(UsageError, match="no weight for"):
        api.plan(
            Request(
                "pretrain",
                {
                    "data.source": str(class_folders),
                    "train.steps": 1,
                    "train.class_weights": str(tmp_path / "short.tsv"),
                },
                dry_run=True,
            )
        )
    (tmp_path / "twice.json").write_text('{"red": 1, "red": 50, "green": 1, "blue": 1}')
    with pytest.raises(UsageError, match="one a class"):
        weights_of(str(tmp_path / "twice.json"), [Class(n) for n in NAMES], COUNTS)


def test_weighted_targets_and_labels_have_one_loss() -> None:
    made = objective("softmax", "balanced", 0.1)
    made.counted([Class(n) for n in NAMES], COUNTS)
    logits, labels = torch.randn(9, 3), torch.arange(9) % 3
    smoothed = torch.eye(3)[labels] * 0.9 + 0.1 / 3
    torch.testing.assert_close(made.of(logits, labels), made.of_targets(logits, smoothed))


def test_transformers_is_told_that_labels_are_sets(trained: tuple[Path, dict[str, Any]], in_process: Vit) -> None:
    folder, _ = trained
    from vitcli.weights.describe import describe
    from vitcli.weights.formats import transformers_labels
    from vitcli.weights.locate import locate

    assert transformers_labels(describe(locate(str(folder))))["problem_type"] == "multi_label_classification"
