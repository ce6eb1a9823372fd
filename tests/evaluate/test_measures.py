"""What is measured beside top-1, against scikit-learn or code of its own: ties, parts, temperature, class subsets, ReaL, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix

from conftest import Vit, draw_image, train_run
from vitcli import api, sheets
from vitcli.classes import Class
from vitcli.errors import DataError, UsageError
from vitcli.evaluate.calibration import calibrated, fitted_temperature, reliability
from vitcli.evaluate.metrics import Tally, confusion, ranked
from vitcli.evaluate.outputs import asked_outputs
from vitcli.evaluate.real import read_real

# --- numbers ------------------------------------------------------------------------------------------------


@given(st.integers(0, 12), st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_with_ties_and_absent_classes_every_count_is_that_of_a_loop(n: int, classes: int, seed: int, cut: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.integers(-2, 3, size=(n, classes)).astype(np.float32)  # full of ties
    labels = random.integers(0, max(1, classes // 2), size=n)
    right = right5 = 0
    per_class: dict[int, list[bool]] = {}
    for row, label in zip(logits, labels, strict=True):
        order = sorted(range(classes), key=lambda c: (-row[c], c))
        right, right5 = right + (order[0] == label), right5 + (label in order[:5])
        per_class.setdefault(int(label), []).append(order[0] == label)
    whole, parts = Tally(classes), [Tally(classes), Tally(classes)]
    whole.add(torch.from_numpy(logits), torch.from_numpy(labels))
    for tally, part in zip(parts, (slice(0, cut), slice(cut, None)), strict=True):
        tally.add(torch.from_numpy(logits[part]), torch.from_numpy(labels[part]))
    parts[0].merge(parts[1])
    for tally in (whole, parts[0]):
        found = tally.result()
        assert found["n"] == n
        assert found["top1"] == (right / n if n else None)
        assert found["top5"] == (right5 / n if n and classes >= 5 else None)
        means = [sum(hits) / len(hits) for hits in per_class.values()]
        assert tally.balanced() == (pytest.approx(sum(means) / len(means)) if means else None)
    if n:
        assert parts[0].result()["ece"] == pytest.approx(whole.result()["ece"], abs=1e-12)
        rows = reliability(whole)
        assert sum(row["n"] for row in rows) == n
        gaps = [row["n"] / n * abs(row["confidence"] - row["top1"]) for row in rows if row["n"]]
        assert sum(gaps) == pytest.approx(whole.result()["ece"], abs=1e-12)
        assert ranked(torch.from_numpy(logits), 3).tolist() == [
            sorted(range(classes), key=lambda c: (-row[c], c))[:3] for row in logits
        ]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30))
def test_confusion_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    targets, predicted = (np.array([pair[i] for pair in pairs], np.int64) for i in (0, 1))
    present, counts = confusion(targets, predicted)
    assert present.tolist() == sorted({c for pair in pairs for c in pair})
    if len(present) > 1:
        np.testing.assert_array_equal(counts, confusion_matrix(targets, predicted, labels=present))


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_a_temperature_undoes_what_was_done_to_the_logits(true: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 6, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert fitted_temperature(logits * true, labels) == pytest.approx(true, rel=0.03)
    fields, before, after = calibrated(logits * true, labels)
    assert fields["n"] + fields["fitted_on"] == 20_000 and before.n == after.n == fields["n"]
    assert fields["loss"] <= fields["loss_before"] + 1e-3 and fields["ece"] < 0.02
    slope = fitted_temperature(logits * true, labels)
    for other in (0.97 * slope, 1.03 * slope):
        loss = torch.nn.functional.cross_entropy
        assert loss(logits * true / slope, labels) < loss(logits * true / other, labels)


def test_a_temperature_stays_within_its_bounds() -> None:
    logits, labels = torch.eye(4) * 3, torch.arange(4)
    assert fitted_temperature(logits, labels) == pytest.approx(0.05)
    assert fitted_temperature(logits, labels.flip(0)) == pytest.approx(20)


# --- which classes count -----------------------------------------------------------------------------------

KNOWN = (
    Class("tabby cat", "n1"),
    Class("tiger cat", "n2"),
    Class("beagle", "n3"),
    Class("boxer", "n4"),
    Class("bus", "n5"),
)


def test_a_class_of_several_outputs_has_the_sum_of_their_probabilities(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("n1\tcat\nTiger Cat\tcat\nn3\tdog\nboxer\tdog\n")
    (tmp_path / "map.json").write_text(json.dumps({"n1": "cat", "n2": "cat", "beagle": "dog", "n4": "dog"}))
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    chances = logits.double().softmax(1)
    wanted = torch.stack([chances[:, :2].sum(1), chances[:, 2:4].sum(1)], 1)
    for name in ("map.txt", "map.json"):
        found = asked_outputs(str(tmp_path / name), KNOWN, ())
        assert [c.name for c in found.classes] == ["cat", "dog"]
        torch.testing.assert_close(found.logits(logits.double()).softmax(1), wanted / wanted.sum(1, keepdim=True))


def test_a_part_of_the_classes_keeps_names_order_and_logits(tmp_path: Path) -> None:
    (tmp_path / "part.txt").write_text("boxer\nn1\n")
    found = asked_outputs(str(tmp_path / "part.txt"), KNOWN, ())
    assert found.classes == (KNOWN[0], KNOWN[3])
    logits = torch.randn(7, 5)
    torch.testing.assert_close(found.logits(logits), logits[:, [0, 3]])
    assert asked_outputs("data", KNOWN, [Class("n5"), Class("Beagle")]).classes == (KNOWN[2], KNOWN[4])


@pytest.mark.parametrize(
    ("text", "named"),
    [("cat\n", r"tabby cat|no output"), ("", "no class"), ("n1\nTabby Cat\n", "twice"), ("[1]", "cannot read")],
)
def test_a_name_that_no_output_has_is_refused(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "part.txt").write_text(text)
    with pytest.raises(UsageError, match=named):
        asked_outputs(str(tmp_path / "part.txt"), KNOWN, ())


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measures") / "run"
    return train_run("pretrain", data=str(class_folders), out=str(folder), model="mu/4", steps=20, batch_size=16)[0]


def test_real_labels_of_the_paper_are_counted_by_hand(shared_data: Path) -> None:
    labels = read_real(shared_data / "imagenet_meta" / "real.json")
    assert len(labels) == 50_000 and sum(map(bool, labels)) == 46_837


@pytest.mark.parametrize("by_name", [True, False])
def test_real_labels_find_their_images(checkpoint: Path, class_folders: Path, tmp_path: Path, by_name: bool) -> None:
    """In class folders the numbers are in another order than the files, without numbers the order of the table counts."""
    random, lists = np.random.default_rng(0), []
    data = tmp_path / "val"
    for index in range(24):
        colour = int(random.integers(3)) if by_name else index // 8
        folder = data / ("red", "green", "blue")[colour]
        folder.mkdir(parents=True, exist_ok=True)
        draw_image(colour, 9000 + index).save(
            folder / (f"ILSVRC2012_val_{index + 1:08}.png" if by_name else f"{index:03}.png")
        )
        lists.append([[], [0], [1, 2], [0, 1, 2]][index % 4])
    (tmp_path / "real.json").write_text(json.dumps(lists))
    planned = api.plan_evaluation(str(checkpoint), str(data), "all", real=str(tmp_path / "real.json"))
    found = planned.measure()
    assert planned.real is not None and any("outputs" in note for note in planned.notes)
    scores = planned.real.score(found.positions, found.top[:, 0])
    names = [Path(path or "").stem for path in planned.split.paths(found.positions)]
    order = [int(name.rpartition("_")[2]) - 1 for name in names] if by_name else range(24)
    pairs = [(lists[i], int(c)) for i, c in zip(order, found.top[:, 0], strict=True) if lists[i]]
    assert scores == {"real": sum(c in item for item, c in pairs) / len(pairs), "real_n": 18}


def test_real_labels_that_do_not_fit_are_refused(
    checkpoint: Path, class_folders: Path, tmp_path: Path, vit: Vit
) -> None:
    for name, tree in {"short": [[0]] * 3, "kind": {"a": 1}, "class": [[7]] * 24, "text": [["a"]] * 24}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(tree))
        with pytest.raises(DataError, match=r"--real|lists"):
            api.plan_evaluation(str(checkpoint), str(class_folders), real=str(tmp_path / f"{name}.json"))
    (tmp_path / "other.json").write_text(json.dumps([[2]] * 8 + [[0]] * 8 + [[1]] * 8))
    done = vit("eval", checkpoint, "--data", class_folders, "--real", "other.json", "--json")
    assert done.code == 0 and done.json["real_n"] == 24 and "in the order of the file" in done.err
    assert done.json["real"] == pytest.approx(0.0 if done.json["top1"] == 1 else done.json["real"])


def test_a_calibrated_checkpoint_predicts_with_its_temperature(
    checkpoint: Path, class_folders: Path, in_process: Vit
) -> None:
    done = in_process("eval", checkpoint, "--data", class_folders, "--calibrate", "cal.safetensors", "--json")
    assert done.code == 0, done.err
    fitted = done.json["calibration"]
    assert fitted["fitted_on"] == fitted["n"] == 12 and fitted["checkpoint"] == "cal.safetensors"
    again = in_process("eval", "cal.safetensors", "--data", class_folders, "--json").json
    assert again["top1"] == done.json["top1"]
    by_hand = in_process(
        "eval", checkpoint, "--data", class_folders, "--json", "--set", f"eval.temperature={fitted['temperature']!r}"
    ).json
    assert again["loss"] == pytest.approx(by_hand["loss"], rel=1e-9) != done.json["loss"]
    tuned = in_process("finetune", "cal.safetensors", "--data", class_folders, "--steps", "2", "--json", "--out", "t")
    assert tuned.code == 0, tuned.err
    assert "temperature = 1.0" in Path("t/run.toml").read_text()


def test_classes_and_sizes_of_an_evaluation(checkpoint: Path, class_folders: Path, in_process: Vit) -> None:
    Path("warm.txt").write_text("red\twarm\ngreen\tcold\nblue\tcold\n")
    Path("three.json").write_text(json.dumps({"red": "red", "green": "green", "blue": "blue"}))
    whole = in_process("eval", checkpoint, "--data", class_folders, "--json").json
    same = in_process("eval", checkpoint, "--data", class_folders, "--classes", "three.json", "--json").json
    assert same["loss"] == pytest.approx(whole["loss"], rel=1e-5) and same["top1"] == whole["top1"]
    done = in_process("eval", checkpoint, "--data", class_folders, "--classes", "warm.txt")
    assert done.code == 3 and "green" in done.err  # the data say green, which is no class of these two
    sizes = in_process("eval", checkpoint, "--data", class_folders, "--img-size", "12,16,8x12", "--json").json[
        "results"
    ]
    assert [row["img_size"] for row in sizes] == [[12, 12], [16, 16], [8, 12]]
    assert sizes[0]["loss"] == pytest.approx(whole["loss"], rel=1e-9)
    assert in_process("eval", checkpoint, "--img-size", "12,16", "--confusion", "c.png").code == 2
    assert in_process("eval", checkpoint, "--classes", "warm.txt", "--calibrate", "c.safetensors").code == 2


def test_pictures_of_an_evaluation(checkpoint: Path, class_folders: Path, in_process: Vit) -> None:
    given = ["--confusion", "c.png", "--reliability", "r.png", "--worst", "w.png", "--calibrate", "o.safetensors"]
    done = in_process("eval", checkpoint, "--data", class_folders, *given, "--json")
    assert done.code == 0 and sum(row["n"] for row in done.json["reliability"]) == 24
    for name in ("c.png", "r.png", "w.png"):
        picture = np.asarray(Image.open(name).convert("RGB"))
        assert min(picture.shape[:2]) > 250 and picture.std() > 10


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_thumbnail_fits_its_square_and_keeps_its_shape(width: int, height: int) -> None:
    found = sheets.thumbnail(Image.new("RGB", (width, height)))
    assert max(found.shape[:2]) <= sheets.SIDE and max(found.shape[:2]) > sheets.SIDE // 2
    assert (
        abs(found.shape[0] / found.shape[1] / (height / width) - 1)
        < max(width, height) / min(width, height) / 50 + 0.02
    )


# --- faults that were found -----------------------------------------------------------------------------------


def test_files_are_checked_before_anything_is_computed(checkpoint: Path, class_folders: Path, in_process: Vit) -> None:
    given = ["eval", checkpoint, "--data", class_folders]
    for wrong in (
        ["--confusion", "x.txt"], ["--reliability", "x.csv"], ["--worst", "x.svg"], ["--calibrate", "x.npz"],
        ["--predictions", "q.csv", "--calibrate", "q.csv"], ["--confusion", "a.png", "--worst", "./a.png"],
        ["--img-size", "12,"], ["--img-size", "12,13", "--dry-run"],
    ):  # fmt: skip
        assert in_process(*given, *wrong).code == 2, wrong
    assert list(Path().iterdir()) == []
    assert in_process("probe", checkpoint, "--data", class_folders, "--features", "f.txt", "--dry-run").code == 2
    assert in_process("probe", checkpoint, "--data", class_folders, "--set", "probe.patches=true").code == 2


def test_a_temperature_is_of_the_plain_logits_and_never_of_the_images_that_it_is_measured_on(
    checkpoint: Path, class_folders: Path, tmp_path: Path, in_process: Vit
) -> None:
    first = in_process("eval", checkpoint, "--data", class_folders, "--calibrate", "a.safetensors", "--json").json
    again = in_process("eval", "a.safetensors", "--data", class_folders, "--calibrate", "b.safetensors", "--json").json
    assert again["calibration"]["temperature"] == pytest.approx(first["calibration"]["temperature"], rel=1e-3)
    assert in_process("eval", "b.safetensors", "--data", class_folders).code == 0
    (tmp_path / "one" / "red").mkdir(parents=True)
    draw_image(0, 1).save(tmp_path / "one" / "red" / "1.png")
    (tmp_path / "one" / "red" / "2.png").write_text("broken")
    alone = in_process(
        "eval", checkpoint, "--data", tmp_path / "one", "--split", "all", "--calibrate", "c.safetensors",
        "--set", "data.on_bad_image=skip",
    )  # fmt: skip
    assert alone.code == 3 and "1 images that can be read" in alone.err and not Path("c.safetensors").exists()


def test_numbers_are_imagenets_only_where_all_classes_are(class_folders: Path, tmp_path: Path) -> None:
    for c, name in enumerate(("bee", "my own class", "orange")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(6):
            draw_image(c, 60 + index).save(tmp_path / "set" / name / f"{index}.png")
    run, _ = train_run(
        "pretrain", data=str(tmp_path / "set"), out=str(tmp_path / "run"), model="mu/4", steps=30, batch_size=8
    )
    (tmp_path / "real.json").write_text(json.dumps([[0]] * 6 + [[1]] * 6 + [[2]] * 6))
    planned = api.plan_evaluation(str(run), str(tmp_path / "set"), "all", real=str(tmp_path / "real.json"))
    found = planned.measure()
    assert planned.real is not None and planned.real.warnings == ()
    assert planned.real.score(found.positions, found.top[:, 0])["real"] == found.metrics["top1"]


def test_a_table_s_ending_is_taken_as_it_is_written(checkpoint: Path, class_folders: Path, in_process: Vit) -> None:
    given = ["eval", checkpoint, "--data", class_folders]
    assert in_process(*given, "--predictions", "p.CSV").code == 2
    assert in_process(*given, "--calibrate", "c.SAFETENSORS").code == 2
    assert in_process("predict", checkpoint, class_folders, "--out", "p.Parquet").code == 2
    assert list(Path().iterdir()) == []
    assert in_process(*given, "--confusion", "c.PNG").code == 0
