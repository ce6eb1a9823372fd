"""From paths to splits and classes: names are matched as words, what they do not decide is an error, what is left out is said."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitcli.data.layout import Parts, arrange, list_folder, meaning_of, shards_by_split, split_of
from vitcli.errors import DataError


def found(*paths: str) -> dict[str, dict[str, int]]:
    """Images by split and class."""
    arranged = arrange("data", [tuple(p.split("/")) for p in paths])
    counts: dict[str, dict[str, int]] = {}
    for split, items in arranged.splits.items():
        for _, label, _ in items:
            counts.setdefault(split, {}).setdefault(label, 0)
            counts[split][label] += 1
    return counts


def notes(*paths: str) -> str:
    return "; ".join(arrange("data", [tuple(p.split("/")) for p in paths]).notes)


@pytest.mark.parametrize(
    ("train", "held_out", "split"),
    [
        ("train", "test", "test"),
        ("training_set", "test_set", "test"),
        ("seg_train/seg_train", "seg_test/seg_test", "test"),
        ("train2017", "val2017", "validation"),
        ("TrainingSet", "ValidationSet", "validation"),
        ("Training Data", "Testing Data", "test"),
        ("asl_alphabet_train/asl_alphabet_train", "asl_alphabet_test/asl_alphabet_test", "test"),
        ("TRAIN", "Eval", "test"),
        ("train/images", "test/images", "test"),
        ("data/train", "data/valid", "validation"),
        ("archive/dataset/train", "archive/dataset/test", "test"),
        ("train_val", "test", "test"),
    ],
)
def test_split_folders_by_their_words(train: str, held_out: str, split: str) -> None:
    paths = [f"{train}/{c}/{i}.png" for c in ("cat", "dog") for i in range(3)]
    paths += [f"{held_out}/{c}/{i}.png" for c in ("cat", "dog") for i in range(2)]
    assert found(*paths) == {"train": {"cat": 3, "dog": 3}, split: {"cat": 2, "dog": 2}}


@pytest.mark.parametrize(
    "classes",
    [
        ("cat", "dog"),
        ("car", "bus", "train"),
        ("test_tube", "beaker"),
        ("train_station", "airport", "test_site"),
        ("dev_board", "laptop"),
        ("test_positive", "test_negative"),
        ("latest", "oldest"),
        ("001", "002"),
    ],
)
def test_folders_of_images_are_classes_whatever_their_names(classes: tuple[str, ...]) -> None:
    assert found(*[f"{c}/{i}.png" for c in classes for i in range(2)]) == {"train": dict.fromkeys(classes, 2)}
    deep = [c for c in classes if meaning_of(c) is None or "_" in c]
    if len(deep) == len(classes) and "station" not in str(classes):
        assert set(found(*[f"{c}/2019/{i}.png" for c in classes for i in range(2)])["train"]) == set(classes)


def test_other_folders_beside_splits_are_left_out_and_named() -> None:
    paths = ("train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "predict/1.png", "unlabeled/a/2.png", "x.png")
    assert found(*paths) == {"train": {"cat": 1, "dog": 1}, "validation": {"cat": 1}}
    assert all(name in notes(*paths) for name in ("predict/", "unlabeled/", "beside"))


def test_a_flat_test_folder_is_unlabelled() -> None:
    assert found("train/cat/1.png", "train/dog/1.png", "test/1.png", "test/2.png") == {
        "train": {"cat": 1, "dog": 1},
        "test": {"": 2},
    }
    assert found("train/1.png", "test/2.png") == {"train": {"": 1}, "test": {"": 1}}
    assert found("1.png", "2.png") == {"train": {"": 2}}


@pytest.mark.parametrize(
    "paths",
    [
        ("train/steam/1.png", "car/2019/1.png", "bus/2020/1.png"),
        ("train/cat/1.png", "extra/dog/1.png"),
        ("cat/1.png", "loose.png"),
        ("train/cat/1.png", "train/loose.png", "test/cat/1.png"),
        ("test_a/x/1.png", "train_b/x/1.png"),
    ],
)
def test_what_names_do_not_decide_is_an_error(paths: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as error:
        found(*paths)
    assert error.value.hint


def test_split_folders_inside_class_folders() -> None:
    assert found("cat/train/1.png", "dog/train/1.png", "cat/test/2.png") == {
        "train": {"cat": 1, "dog": 1},
        "test": {"cat": 1},
    }


def test_folders_of_one_split_are_put_together_and_said() -> None:
    paths = ("train.X1/cat/1.png", "train.X2/dog/1.png", "val.X/cat/1.png")
    assert found(*paths) == {"train": {"cat": 1, "dog": 1}, "validation": {"cat": 1}}
    assert "train.X1, train.X2 together" in notes(*paths)


def test_splits_spell_a_class_as_the_training_images_do() -> None:
    composed, apart = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    paths = (f"train/{composed}/1.png", "train/Polar Bear/1.png", f"test/{apart}/1.png", "test/polar_bear/1.png")
    assert found(*paths)["test"] == {composed: 1, "Polar Bear": 1}
    both = ("train/Cat/1.png", "train/cat/1.png", "test/cat/1.png", "test/CAT/1.png")
    assert found(*both) == {"train": {"Cat": 1, "cat": 1}, "test": {"cat": 1, "CAT": 1}}


def test_the_name_of_an_image_is_its_path_below_its_class() -> None:
    paths: list[Parts] = [("train", "cat", "a", "1.png"), ("test", "dog", "2.png")]
    arranged = arrange("data", paths)
    assert arranged.splits == {"train": [(0, "cat", "a/1.png")], "test": [(1, "dog", "2.png")]}


names = st.text("abcXY 12_", min_size=1, max_size=6).filter(lambda n: meaning_of(n) is None)


@given(
    st.lists(names, min_size=2, max_size=4, unique_by=str.casefold),
    st.sampled_from([("train", "test"), ("training_set", "test_set"), ("Train2017", "Val2017"), ("x_train", "x_test")]),
    st.integers(1, 4),
)
def test_every_image_lands_in_its_split_and_class(classes: list[str], tops: tuple[str, str], count: int) -> None:
    paths = [f"{top}/{c}/{i}.png" for top in tops for c in classes for i in range(count)]
    counts = found(*paths)
    assert len(counts) == 2 and "train" in counts
    assert all(set(part) == set(classes) and set(part.values()) == {count} for part in counts.values())


def test_shards_without_a_split_beside_known_ones_are_left_out() -> None:
    groups, unknown = shards_by_split([(n, n) for n in ("train-0.parquet", "my_test.parquet", "extra-0.parquet")])
    assert groups == {"train": ["train-0.parquet"], "test": ["my_test.parquet"]} and unknown == ["extra-0.parquet"]
    assert shards_by_split([("a.parquet", "a.parquet"), ("b.parquet", "b.parquet")])[0] == {
        "train": ["a.parquet", "b.parquet"]
    }
    assert split_of("contest-0.parquet") == split_of("latest.parquet") == ""


def test_files_that_are_no_images_and_empty_classes_are_named(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.jfif", "fox/1.HEIC", "fox/2.HEIC", "notes.txt", ".hidden/x.png", "cat/.DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "owl").mkdir()
    listing = list_folder(tmp_path)
    assert listing.images == ["cat/1.png", "dog/1.jfif"]
    assert "2 .heic" in listing.unread()[0] and "1 .txt" in listing.unread()[0]
    assert "fox/, owl/" in listing.empty([()])[0]


def test_split_folders_that_say_themselves_again_around_images_alone() -> None:
    assert found("train/cat/1.png", "train/dog/1.png", "test/test/1.png", "test/test/2.png")["test"] == {"": 2}
    assert found("train/train/cat/1.png", "test1/test1/1.png") == {"train": {"cat": 1}, "test": {"": 1}}
    assert found("train/test/1.png", "train/cat/1.png", "test/test/1.png")["test"] == {
        "test": 1
    }  # a class of that name
    assert found("train/photos/1.png", "train/art/1.png", "val/photos/1.png")["validation"] == {"photos": 1}


@pytest.mark.parametrize(
    "tops", [("fold1", "fold2", "fold3"), ("batch_1", "batch_2"), ("trainA", "testA"), ("train_x", "train_y", "test_x")]
)
def test_parts_and_splits_are_not_taken_for_classes(tops: tuple[str, ...]) -> None:
    inside = ["cat/", "dog/"] if "train" not in tops[0] else [""]
    with pytest.raises(DataError) as error:
        found(*[f"{top}/{c}{i}.png" for top in tops for c in inside for i in range(2)])
    assert error.value.hint


def test_folders_within_class_folders_are_said_to_make_no_classes() -> None:
    assert "cat/2019" in notes("cat/2019/1.png", "cat/2020/1.png", "dog/1.png")
    assert not notes("cat/2019/1.png", "dog/2019/1.png") and not notes("cat/1.png", "dog/1.png")


def test_a_split_folder_without_images_is_named(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("test/cat", "test/dog", "train/owl", "train/cat/empty"):
        (tmp_path / name).mkdir(parents=True)
    assert list_folder(tmp_path).empty([("train",)]) == ["no image in test/, train/owl/: left out"]


def test_links_that_lead_to_each_other_are_followed_once(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"x")
        (tmp_path / name / "other").symlink_to(tmp_path / ("dog" if name == "cat" else "cat"))
    assert list_folder(tmp_path).images == ["cat/1.png", "cat/other/1.png", "dog/1.png", "dog/other/1.png"]


def test_a_class_whose_name_is_not_utf_8_has_a_name_that_can_be_written() -> None:
    assert found("caf\udce9/1.png", "café/1.png") == {"train": {r"caf\xe9": 1, "café": 1}}
