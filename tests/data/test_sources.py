"""What DATA names: every way to name a data set leads to the same splits, classes and pixels."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import fsspec
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conftest import draw_image
from listening import listening
from vitcli.classes import Class, imagenet_1k
from vitcli.config import DataConfig
from vitcli.data import sources
from vitcli.data.sources import open_source
from vitcli.data.split import Source, Split, fraction_of, typical_size
from vitcli.errors import DataError, UsageError


def png(colour: int = 0, index: int = 0, size: int = 6) -> bytes:
    buffer = io.BytesIO()
    draw_image(colour, index, size).save(buffer, "PNG")
    return buffer.getvalue()


def opened(source: object, **config: Any) -> Source:
    return open_source(DataConfig(source=str(source), **config))


def names(source: Source) -> list[str]:
    return [c.name for c in source.classes]


def labels(split: Split) -> list[int]:
    assert split.labels is not None
    return [int(label) for label in split.labels]


def blobs(split: Split) -> list[bytes]:
    found = [blob for blob, _ in split.blobs(np.arange(len(split)))]
    assert all(blob is not None for blob in found)
    return [blob for blob in found if blob is not None]


def write_parquet(
    path: Path,
    columns: dict[str, Sequence[Any]],
    class_names: dict[str, list[str]] | None = None,
    image: str = "image",
    typed: bool = True,
) -> Path:
    """A Parquet file; `typed` adds the features as `datasets` writes them."""
    count = len(next(iter(columns.values()))) if columns else 0
    pictures = [{"bytes": png(0, i), "path": None} for i in range(count)]
    arrays: dict[str, Any] = {}
    if image:
        arrays[image] = pa.array(pictures, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    for name, values in columns.items():
        arrays[name] = pa.array(values, pa.int64() if class_names and name in class_names else None)
    table = pa.table(arrays)
    if typed:
        features = {image: {"_type": "Image"}} if image else {}
        for name in columns:
            if class_names and name in class_names:
                features[name] = {"names": class_names[name], "_type": "ClassLabel"}  # type: ignore[dict-item]
            else:
                features[name] = {"dtype": str(table.schema.field(name).type), "_type": "Value"}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def labelled(path: Path, values: Sequence[int], class_names: list[str], **options: Any) -> Path:
    return write_parquet(path, {"label": values}, {"label": class_names}, **options)


def write_images(root: Path, paths: Sequence[str]) -> Path:
    for index, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(png(index, index))
    return root


CATS = ["cat", "dog"]


# --- digits --------------------------------------------------------------------------------------------------


def test_digits() -> None:
    from sklearn.datasets import load_digits

    source = opened("digits")
    assert names(source) == [str(d) for d in range(10)]
    assert list(source.splits) == ["train"]
    assert len(source.split("all")) == 1797
    assert labels(source.split("all")) == load_digits().target.tolist()
    image = np.asarray(Image.open(io.BytesIO(blobs(source.split("all"))[7])))
    np.testing.assert_array_equal(image, np.rint(load_digits().images[7] * 255 / 16))
    assert typical_size(source.train(), 89) == ((8, 8), True)
    assert not source.mirror
    assert len(source.notes) == 1
    train, held_out = source.train(), source.held_out()
    assert len(train) + len(held_out) == 1797
    assert abs(len(held_out) / 1797 - 0.2) < 0.01
    assert np.bincount(labels(held_out)).min() > 30
    assert opened("digits").identity() == source.identity()


# --- folders of images ---------------------------------------------------------------------------------------


def test_train_and_test_folders(class_folders: Path) -> None:
    source = opened(class_folders)
    assert names(source) == ["blue", "green", "red"]
    assert {s: len(part) for s, part in source.splits.items()} == {"train": 72, "test": 24}
    assert source.held_out_split == "test"
    assert len(source.train()) == 72
    assert labels(source.held_out()) == [0] * 8 + [1] * 8 + [2] * 8
    paths = [Path(path) for _, path in source.held_out().blobs(np.arange(24))]
    assert [p.parent.name for p in paths] == ["blue"] * 8 + ["green"] * 8 + ["red"] * 8
    assert blobs(source.held_out()) == [p.read_bytes() for p in paths]
    assert source.held_out().describe(3) == f"{paths[3]} (row 3 of split 'test')"
    assert source.notes == ()


@pytest.mark.parametrize("word", ["val", "valid", "validation", "Val", "dev"])
def test_a_validation_folder_is_held_out(tmp_path: Path, word: str) -> None:
    write_images(tmp_path, ["train/cat/1.png", "train/dog/1.png", "train/dog/2.png", f"{word}/dog/1.png"])
    source = opened(tmp_path)
    assert source.held_out_split == "validation"
    assert labels(source.held_out()) == [1]
    assert len(source.train()) == 3


def test_test_is_preferred_to_validation(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/a/1.png", "train/b/1.png", "val/a/1.png", "test/a/1.png", "test/b/1.png"])
    source = opened(tmp_path)
    assert source.held_out_split == "test"
    assert len(source.split("validation")) == 1


def test_data_of_one_split_whatever_its_name_is_carved(tmp_path: Path) -> None:
    write_images(tmp_path, [f"val/{c}/{i}.png" for c in "ab" for i in range(5)])
    source = opened(tmp_path)
    assert (len(source.train()), len(source.held_out())) == (8, 2)
    assert labels(source.held_out()) == [0, 1]


def carved(root: Path) -> tuple[set[str], set[str]]:
    source = opened(root)
    return tuple({p for _, p in part.blobs(np.arange(len(part)))} for part in (source.train(), source.held_out()))  # type: ignore[return-value]


def test_without_splits_a_fifth_of_every_class_is_held_out(tmp_path: Path) -> None:
    counts = {"a": 10, "b": 25, "c": 2, "d": 1}
    write_images(tmp_path, [f"{c}/{i}.png" for c, n in counts.items() for i in range(n)])
    source = opened(tmp_path)
    assert np.bincount(labels(source.held_out()), minlength=4).tolist() == [2, 5, 1, 0]
    assert np.bincount(labels(source.train())).tolist() == [8, 20, 1, 1]
    train, held_out = carved(tmp_path)
    assert not train & held_out
    assert len(train | held_out) == 38
    assert carved(tmp_path) == (train, held_out)
    assert len(source.split("all")) == 38
    assert len(source.split("train")) == 30
    assert len(source.split("test")) == 8
    assert "a fifth" in source.notes[0]


def test_what_is_held_out_does_not_depend_on_a_seed(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in range(10)])
    held_out = opened(tmp_path).held_out()
    np.random.seed(123)
    np.testing.assert_array_equal(opened(tmp_path).held_out().rows, held_out.rows)


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{i}.png" for i in range(10)])
    source = opened(tmp_path)
    assert source.classes == ()
    assert source.train().labels is None
    assert (len(source.train()), len(source.held_out())) == (8, 2)


def test_loose_images_beside_class_folders_are_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat/1.png", "dog/1.png", "stray.png"])
    with pytest.raises(DataError, match=r"stray\.png") as caught:
        opened(tmp_path)
    assert caught.value.code == 3


def test_hidden_files_and_other_files_are_ignored(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat/1.png", "dog/1.png", "cat/.2.png", ".git/x/3.png", "__MACOSX/cat/1.png"])
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    source = opened(tmp_path)
    assert names(source) == CATS
    assert labels(source.split("all")) == [0, 1]


def test_endings_in_capitals_and_folders_in_class_folders_count(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat/1.PNG", "cat/more/2.png", "dog/3.jpeg"])
    assert labels(opened(tmp_path).split("all")) == [0, 0, 1]


def test_links_are_followed_once(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere", ["1.png", "2.png"])
    write_images(tmp_path / "data", ["cat/1.png"])
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert labels(opened(tmp_path / "data").split("all")) == [0, 1, 1]


def test_a_link_to_nowhere_is_an_error_of_the_data(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat/1.png", "dog/1.png"])
    (tmp_path / "dog" / "2.png").symlink_to(tmp_path / "gone.png")
    try:
        source = opened(tmp_path)
    except DataError as error:
        assert "2.png" in error.message
    else:
        missing = source.split("all").blobs(np.array([2]))[0]
        assert missing == (None, str(tmp_path / "dog" / "2.png"))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        opened(tmp_path)


def test_metadata_names_the_classes(tmp_path: Path) -> None:
    write_images(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "metadata.csv").write_text("file_name,label\n1.png,dog\n2.png,cat\n3.png,dog\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # `datasets` leaves the file open
        source = opened(tmp_path)
        gc.collect()
    assert names(source) == CATS
    assert labels(source.split("all")) == [1, 0, 1]
    assert blobs(source.split("all")) == [(tmp_path / f"{i}.png").read_bytes() for i in (1, 2, 3)]


def test_a_zip_of_class_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for index, name in enumerate(("pets/cat/1.png", "pets/dog/1.png", "pets/dog/2.png")):
            archive.writestr(name, png(index))
    source = opened(tmp_path / "pets.zip")
    assert source.name == "pets"
    assert names(source) == CATS
    assert labels(source.split("all")) == [0, 1, 1]
    assert blobs(source.split("all")) == [png(0), png(1), png(2)]


def test_row_35_a_zip_of_another_version_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1.png", png())
    blob = bytearray(path.read_bytes())
    blob[blob.index(b"PK\1\2") + 6] = 226  # the version that is needed to extract
    path.write_bytes(blob)
    with pytest.raises(DataError, match=r"t\.zip"):
        opened(path)


def test_a_tar_in_the_layout_of_webdataset(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        for index, label in enumerate((3, 5, 5)):
            for ending, content in (("png", png(index)), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{index:04}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    source = opened(tmp_path / "pets.tar")
    assert names(source) == ["3", "5"]
    assert labels(source.split("all")) == [0, 1, 1]
    assert blobs(source.split("all")) == [png(0), png(1), png(2)]


# --- Parquet -------------------------------------------------------------------------------------------------


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    labelled(tmp_path / "train.parquet", [0, 1, 1], CATS)
    labelled(tmp_path / "test.parquet", [1], CATS)
    source = opened(tmp_path)
    assert source.classes == (Class("cat"), Class("dog"))
    assert labels(source.train()) == [0, 1, 1]
    assert labels(source.held_out()) == [1]
    assert blobs(source.train()) == [png(0, i) for i in range(3)]


def test_a_single_parquet_file(tmp_path: Path) -> None:
    source = opened(labelled(tmp_path / "pets.parquet", [0, 1] * 5, CATS))
    assert source.name == "pets"
    assert len(source.train()) + len(source.held_out()) == 10
    assert set(labels(source.train())) == set(labels(source.held_out())) == {0, 1}


def test_shards_in_a_subfolder_are_put_together_in_order(tmp_path: Path) -> None:
    labelled(tmp_path / "data" / "train-00001-of-00002.parquet", [1, 1], CATS)
    labelled(tmp_path / "data" / "train-00000-of-00002.parquet", [0, 0, 1], CATS)
    labelled(tmp_path / "data" / "validation-00000-of-00001.parquet", [0], CATS)
    source = opened(tmp_path)
    assert labels(source.train()) == [0, 0, 1, 1, 1]
    assert source.held_out_split == "validation"


def test_split_folders_of_shards(tmp_path: Path) -> None:
    labelled(tmp_path / "train" / "0000.parquet", [0, 1], CATS)
    labelled(tmp_path / "test" / "0000.parquet", [1], CATS)
    source = opened(tmp_path)
    assert (len(source.train()), len(source.held_out())) == (2, 1)


@pytest.mark.parametrize("form", ["pets-{}.parquet", "pets_{}.parquet", "{}.parquet", "{}-0000.parquet"])
def test_a_split_is_read_from_anywhere_in_a_files_name(tmp_path: Path, form: str) -> None:
    """As `datasets` does: test images that are taken for training images would spoil every result."""
    labelled(tmp_path / form.format("train"), [0, 1, 0], CATS)
    labelled(tmp_path / form.format("test"), [1], CATS)
    assert {s: len(part) for s, part in opened(tmp_path).splits.items()} == {"train": 3, "test": 1}


@pytest.mark.parametrize("values", [["dog", "cat", "dog"], [7, 3, 7], [True, False, True]])
def test_untyped_parquet(tmp_path: Path, values: list[Any]) -> None:
    write_parquet(tmp_path / "train.parquet", {"label": values}, typed=False)
    source = opened(tmp_path)
    assert names(source) == [str(v) for v in sorted(set(values))]
    assert labels(source.split("all")) == [1, 0, 1]
    assert blobs(source.split("all"))[2] == png(0, 2)


def test_untyped_splits_share_their_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", {"label": ["dog", "bird"]}, typed=False)
    write_parquet(tmp_path / "test.parquet", {"label": ["cat", "dog"]}, typed=False)
    source = opened(tmp_path)
    assert names(source) == ["bird", "cat", "dog"]
    assert labels(source.train()) == [2, 0]
    assert labels(source.held_out()) == [1, 2]


def test_a_column_of_plain_bytes_is_an_image_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [png(0), png(1)], "cls": [0, 1]}), tmp_path / "train.parquet")
    source = opened(tmp_path)
    assert blobs(source.split("all")) == [png(0), png(1)]
    assert labels(source.split("all")) == [0, 1]


def test_columns_are_found_by_their_type(tmp_path: Path) -> None:
    columns = {"id": [5, 6], "label": ["x", "y"], "breed": [1, 0], "fold": [0, 1]}
    write_parquet(tmp_path / "train.parquet", columns, {"breed": CATS}, image="photo")
    source = opened(tmp_path)
    assert names(source) == CATS
    assert labels(source.split("all")) == [1, 0]
    assert source.split("all").image_column == "photo"


def test_two_columns_of_class_labels_must_be_chosen_from(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "train.parquet", {"breed": [1, 0], "sex": [0, 0]}, {"breed": CATS, "sex": ["female", "male"]}
    )
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    for word in ("breed", "sex"):
        assert word in caught.value.message
    assert "data.label_column" in caught.value.hint
    assert names(opened(tmp_path, label_column="sex")) == ["female", "male"]


def test_of_two_columns_of_class_labels_the_one_called_label_is_taken(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", {"kind": [0, 0], "label": [1, 0]}, {"kind": ["pet"], "label": CATS})
    assert names(opened(tmp_path)) == CATS


def test_two_columns_of_images_must_be_chosen_from(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"left": [png(0)] * 4, "right": [png(1)] * 4, "label": [0, 1, 0, 1]}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match="left, right") as caught:
        opened(tmp_path)
    assert "data.image_column" in caught.value.hint
    assert blobs(opened(tmp_path, image_column="right").split("all"))[0] == png(1)


@pytest.mark.parametrize("key", ["image_column", "label_column"])
def test_an_unknown_column_is_an_error_that_names_the_nearest(tmp_path: Path, key: str) -> None:
    labelled(tmp_path / "train.parquet", [0, 1], CATS)
    wrong = {"image_column": "imgae", "label_column": "lable"}[key]
    with pytest.raises(DataError, match=wrong) as caught:
        opened(tmp_path, **{key: wrong})
    assert {"image_column": "image", "label_column": "label"}[key] in caught.value.hint


def test_a_column_that_holds_no_images_is_an_error(tmp_path: Path) -> None:
    labelled(tmp_path / "train.parquet", [0, 1], CATS)
    with pytest.raises(DataError, match="label"):
        opened(tmp_path, image_column="label", label_column="label")
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"no column of images.*text"):
        opened(tmp_path)


def test_a_split_without_the_column_of_images_is_an_error(tmp_path: Path) -> None:
    labelled(tmp_path / "train.parquet", [0, 1], CATS, image="image")
    labelled(tmp_path / "test.parquet", [0, 1], CATS, image="img")
    with pytest.raises(DataError, match="image"):
        opened(tmp_path)


@pytest.mark.parametrize("wrong", [2, -5, 1000, -1])
def test_a_label_out_of_range_is_an_error_that_names_the_row(tmp_path: Path, wrong: int) -> None:
    labelled(tmp_path / "train.parquet", [0, 1, 0], CATS)
    labelled(tmp_path / "test.parquet", [0, 1, wrong, 1], CATS)
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    for word in ("'test'", "row 2", str(wrong), "2 classes"):
        assert word in caught.value.message


@pytest.mark.parametrize("typed", [True, False])
def test_a_missing_label_is_an_error_that_names_the_row(tmp_path: Path, typed: bool) -> None:
    write_parquet(tmp_path / "train.parquet", {"label": [0, None, 1]}, {"label": CATS}, typed=typed)
    with pytest.raises(DataError, match=r"row 1 has label None"):
        opened(tmp_path)


def test_labels_all_out_of_range_are_wrong_not_missing(tmp_path: Path) -> None:
    labelled(tmp_path / "train.parquet", [0, 1, 0], CATS)
    labelled(tmp_path / "test.parquet", [7, 8, 9], CATS)
    with pytest.raises(DataError, match="row 0"):
        opened(tmp_path)


@pytest.mark.parametrize("missing", [-1, None])
def test_a_split_without_any_label_is_not_held_out(tmp_path: Path, missing: int | None) -> None:
    labelled(tmp_path / "train.parquet", [0, 1, 0], CATS)
    labelled(tmp_path / "validation.parquet", [0, 1], CATS)
    labelled(tmp_path / "test.parquet", [missing] * 3, CATS)  # type: ignore[list-item]
    source = opened(tmp_path)
    assert source.splits["test"].labels is None
    assert len(source.split("test")) == 3
    assert source.held_out_split == "validation"


@pytest.mark.parametrize("values", [[[0.5], [1.5, 2.0], [0.5]], [0.5, 1.5, 0.5], [{"a": 1}, {"a": 2}, {"a": 1}]])
def test_labels_that_are_no_classes_are_an_error(tmp_path: Path, values: list[Any]) -> None:
    write_parquet(tmp_path / "train.parquet", {"label": values}, typed=False)
    with pytest.raises(DataError, match="label"):
        opened(tmp_path)


def test_splits_that_list_the_classes_in_another_order_agree_by_name(tmp_path: Path) -> None:
    labelled(tmp_path / "train.parquet", [0, 1, 0], ["cat", "dog"])
    labelled(tmp_path / "test.parquet", [0, 0, 1], ["dog", "cat"])
    try:
        source = opened(tmp_path)
    except DataError as error:
        assert "test" in error.message
    else:
        assert names(source) == CATS
        assert labels(source.held_out()) == [1, 1, 0]


def test_a_split_with_text_beside_one_with_class_labels_agrees_by_name(tmp_path: Path) -> None:
    labelled(tmp_path / "train.parquet", [0, 1, 0], ["cat", "dog"])
    write_parquet(tmp_path / "test.parquet", {"label": ["dog", "cat"]})
    try:
        source = opened(tmp_path)
    except DataError as error:
        assert "label" in error.message
    else:
        assert labels(source.held_out()) == [1, 0]


def test_a_row_of_the_test_shards_is_described_as_such(tmp_path: Path) -> None:
    labelled(tmp_path / "train.parquet", [0, 1, 0], CATS)
    labelled(tmp_path / "test.parquet", [0, 1, 0], CATS)
    source = opened(tmp_path)
    assert "row 2 of split 'train'" in source.train().describe(2)
    assert "row 1 of split 'test'" in source.held_out().describe(1)


def test_a_carved_row_is_described_by_its_row_of_the_file(tmp_path: Path) -> None:
    source = opened(labelled(tmp_path / "pets.parquet", [0, 1] * 10, CATS))
    held_out = source.held_out()
    assert f"row {held_out.rows[0]} " in held_out.describe(0)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"<html>not found</html>", b"version https://git-lfs.github.com\n"])
def test_a_file_that_is_no_parquet_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message


def test_empty_parquet_is_an_error(tmp_path: Path) -> None:
    labelled(tmp_path / "train.parquet", [], CATS)
    with pytest.raises(DataError):
        opened(tmp_path)


def test_real_parquet(shared_data: Path) -> None:
    source = opened(shared_data / "pets")
    assert {s: len(part) for s, part in source.splits.items()} == {"train": 914, "test": 148}
    assert len(source.classes) == 37
    assert np.bincount(labels(source.held_out())).tolist() == [4] * 37
    (height, width), uniform = typical_size(source.train(), 89)
    assert min(height, width) == 256
    assert not uniform


# --- saved data sets -----------------------------------------------------------------------------------------


def table(values: Sequence[int], class_names: list[str] = CATS) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)})
    pictures = [{"bytes": png(0, i), "path": None} for i in range(len(values))]
    return datasets.Dataset.from_dict({"image": pictures, "label": list(values)}, features=features)


def save(saved: datasets.Dataset | datasets.DatasetDict, path: Path) -> Path:
    datasets.disable_progress_bars()
    saved.save_to_disk(str(path))
    return path


def test_saved_data_sets(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": table([0, 1, 1]), "test": table([1])})
    source = opened(save(both, tmp_path / "both"))
    assert labels(source.train()) == [0, 1, 1]
    assert labels(source.held_out()) == [1]
    assert blobs(source.train()) == [png(0, i) for i in range(3)]
    one = opened(save(table([0, 1] * 5), tmp_path / "one"))
    assert len(one.train()) + len(one.held_out()) == 10
    assert set(labels(one.train())) == set(labels(one.held_out())) == {0, 1}


def test_splits_of_like_names_do_not_hide_each_other(tmp_path: Path) -> None:
    saved = datasets.DatasetDict({"train": table([0, 1, 1]), "trainval": table([0] * 5), "test": table([1])})
    assert len(opened(save(saved, tmp_path / "data")).train()) == 3


def test_the_note_names_the_split_that_is_carved(tmp_path: Path) -> None:
    saved = datasets.DatasetDict({"test": table([-1, -1]), "train": table([0, 1] * 5)})
    source = opened(save(saved, tmp_path / "data"))
    assert set(labels(source.held_out())) == {0, 1}
    assert "'train'" in source.notes[0]


# --- what rows name ------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[tuple[str, list[Any]]]:
    """An address on this machine, and who has called there."""
    with listening() as found:
        yield found.address, found.calls


ELSEWHERE = [
    "http://HERE/x.png", "https://HERE/x.png", "ftp://HERE/x.png", "s3://HERE/x.png", "gs://HERE/x.png", "hf://HERE/x.png",
    "file:///OUT", "//HERE/x.png", "zip://a.png::http://HERE/x.zip", "simplecache::http://HERE/x.png", "zip://out.png::OUT",
    "OUT", "../out.png", "in/../../out.png",
]  # fmt: skip


def naming(folder: Path, kind: str, names: Sequence[str]) -> Path:
    """Data in `folder` whose rows name images, of one of a few kinds."""
    rows = {"image": [{"bytes": None, "path": path} for path in names], "label": [i % 2 for i in range(len(names))]}
    path = folder / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({k: pa.array(v) for k, v in rows.items()}), path)
    elif kind == "csv":
        path.write_text("image,label\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names)))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"image": n, "label": i % 2}) + "\n" for i, n in enumerate(names)))
    elif kind == "metadata":
        (folder / "metadata.csv").write_text("file_name,label\n" + "".join(f"{n},a{i}\n" for i, n in enumerate(names)))
        return folder
    else:
        datasets.Dataset.from_dict(rows).save_to_disk(str(folder / "saved"))
        shard = next((folder / "saved").glob("*.arrow"))
        if kind == "saved":
            (folder / "saved" / "in.png").write_bytes((folder / "in.png").read_bytes())
            return folder / "saved"
        shard.rename(path)
        shutil.rmtree(folder / "saved")
    return path


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved"])
def test_row_39_a_row_names_no_address_and_no_file_elsewhere(
    tmp_path: Path, listener: tuple[str, list[Any]], name: str, kind: str
) -> None:
    here, calls = listener
    write_images(tmp_path, ["out.png", "data/in.png"])
    named = name.replace("HERE", here).replace("OUT", str(tmp_path / "out.png"))
    path = naming(tmp_path / "data", kind, ["in.png", named])
    part = opened(path, image_column="image", label_column="label").split("all")
    assert part.blobs(np.array([0]))[0][0] == png(1, 1)
    for reading in (lambda: part.blobs(np.arange(2)), part.digests):
        with pytest.raises(DataError, match="row 1"):
            reading()
    assert not calls


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "metadata"])
def test_row_39_a_listed_row_names_no_address_and_no_file_elsewhere(
    tmp_path: Path, listener: tuple[str, list[Any]], name: str, kind: str
) -> None:
    here, calls = listener
    write_images(tmp_path, ["out.png", "data/in.png"])
    named = name.replace("HERE", here).replace("OUT", str(tmp_path / "out.png"))
    with pytest.raises(DataError, match=r"row 2 names|no column of image files"):
        opened(naming(tmp_path / "data", kind, ["in.png", named]))
    assert not calls


@pytest.mark.parametrize("name", ["/OUT", "../other/data-00000-of-00001.arrow", "http://HERE/x.arrow"])
@pytest.mark.parametrize("form", ["table", "tables"])
def test_row_39_a_saved_data_set_names_its_own_files(
    tmp_path: Path, listener: tuple[str, list[Any]], name: str, form: str
) -> None:
    here, calls = listener
    other = save(table([0, 1, 1]), tmp_path / "other")
    named = name.replace("HERE", here).replace("/OUT", str(next(other.glob("*.arrow"))))
    path = tmp_path / "data"
    save(table([0, 1, 1]) if form == "table" else datasets.DatasetDict({"train": table([0, 1, 1])}), path)
    state = path / ("state.json" if form == "table" else "train/state.json")
    written = json.loads(state.read_text())
    written["_data_files"][0]["filename"] = named
    state.write_text(json.dumps(written))
    with pytest.raises(DataError, match=r"does not lie in it|cannot read"):
        opened(path)
    assert not calls


def test_row_39_a_saved_data_set_has_its_splits_in_its_folder(tmp_path: Path) -> None:
    save(table([0, 1, 1]), tmp_path / "other")
    path = tmp_path / "data"
    path.mkdir()
    (path / "dataset_dict.json").write_text('{"splits": ["../other"]}')
    with pytest.raises(DataError, match="does not lie in it"):
        opened(path)


# --- addresses -----------------------------------------------------------------------------------------------


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # offline, `datasets` reads local files only
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def test_parquet_in_memory(tmp_path: Path, memory: Any) -> None:
    for split, values in (("train", [0, 1, 1]), ("test", [1])):
        memory.pipe(f"/pets/{split}.parquet", labelled(tmp_path / "x.parquet", values, CATS).read_bytes())
    source = opened("memory://pets")
    assert source.name == "pets"
    assert labels(source.train()) == [0, 1, 1]
    assert labels(source.held_out()) == [1]
    assert blobs(source.train()) == [png(0, i) for i in range(3)]


def test_parquet_at_a_file_address(tmp_path: Path) -> None:
    labelled(tmp_path / "data" / "train-0.parquet", [0, 1, 1], CATS)
    labelled(tmp_path / "data" / "test-0.parquet", [1], CATS)
    source = opened(f"file://{tmp_path}/data")
    assert (len(source.train()), len(source.held_out())) == (3, 1)
    assert len(opened(f"file://{tmp_path}/data/train*.parquet").split("all")) == 3
    assert len(opened(f"file://{tmp_path}/data/test-0.parquet").split("all")) == 1


def test_images_at_an_address(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat/1.png", "cat/2.png", "dog/1.png"])
    source = opened(f"file://{tmp_path}")
    assert names(source) == CATS
    assert labels(source.split("all")) == [0, 0, 1]
    assert blobs(source.split("all")) == blobs(opened(tmp_path).split("all"))


def test_split_folders_of_images_at_an_address_stay_apart(class_folders: Path) -> None:
    source = opened(f"file://{class_folders}")
    assert names(source) == ["blue", "green", "red"]
    assert {s: len(part) for s, part in source.splits.items()} == {"train": 72, "test": 24}


def test_an_address_without_data_is_an_error(tmp_path: Path, memory: Any) -> None:
    for address in (
        "memory://nothing",
        "nosuchprotocol://host/data",
        f"file://{tmp_path}/missing",
        f"file://{tmp_path}",
    ):
        with pytest.raises(DataError) as caught:
            opened(address)
        assert address in caught.value.message


# --- the hub's cache -----------------------------------------------------------------------------------------

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A local cache in the layout of the hub's client."""

    root: Path

    def add(self, hub_id: str, revision: str = REVISION, main: bool = True) -> Path:
        """The folder of a new snapshot."""
        repository = self.root / f"datasets--{hub_id.replace('/', '--')}"
        snapshot = repository / "snapshots" / revision
        snapshot.mkdir(parents=True)
        if main:
            (repository / "refs").mkdir(exist_ok=True)
            (repository / "refs" / "main").write_text(revision)
        return snapshot


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    root = tmp_path / "hub"
    root.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return Hub(root)


def into_blobs(file: Path) -> None:
    """The file as the client stores it: a blob and a link to it."""
    blob = file.parents[2] / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
    blob.parent.mkdir(exist_ok=True)
    file.rename(blob)
    file.symlink_to(os.path.relpath(blob, file.parent))


PRESET_TABLE = {  # preset: hub id, image column, label column, test split, configuration
    "cifar10": ("uoft-cs/cifar10", "img", "label", "test", ""),
    "cifar100": ("uoft-cs/cifar100", "img", "fine_label", "test", ""),
    "pets": ("timm/oxford-iiit-pet", "image", "label", "test", ""),
    "flowers": ("nelorth/oxford-flowers", "image", "label", "test", ""),
    "fashion-mnist": ("zalando-datasets/fashion_mnist", "image", "label", "test", ""),
    "mnist": ("ylecun/mnist", "image", "label", "test", ""),
    "imagenet": ("ILSVRC/imagenet-1k", "image", "label", "validation", ""),
    "imagenet-21k": ("timm/imagenet-22k-wds", "jpg", "cls", "validation", ""),
    "imagenette": ("frgfm/imagenette", "image", "label", "validation", "full_size"),
}


def test_every_preset_is_tested() -> None:
    assert set(PRESET_TABLE) == set(sources.PRESETS)


@pytest.mark.parametrize("preset", PRESET_TABLE)
def test_a_preset_is_found_in_the_hubs_cache(hub: Hub, preset: str) -> None:
    hub_id, image, label, held_out, config = PRESET_TABLE[preset]
    snapshot = hub.add(hub_id)
    if preset == "imagenet":
        class_names = [f"{c.name}, {c.id} in other words" for c in imagenet_1k()]
    elif preset == "cifar100":
        class_names = ["cockroach", "cra", "crocodile"]
    else:
        class_names = ["one", "two"]
    columns: dict[str, Sequence[Any]] = {label: [0, 1, 1]}
    features = {label: class_names}
    if preset == "cifar100":
        columns["coarse_label"], features["coarse_label"] = [0, 0, 0], ["animals"]
    if preset == "pets":
        columns |= {"image_id": ["a", "b", "c"], "label_cat_dog": [0, 1, 1]}
        features["label_cat_dog"] = CATS
    folder = snapshot / (config or "data")
    write_parquet(folder / "train-00000-of-00001.parquet", columns, features, image=image)
    write_parquet(folder / f"{held_out}-00000-of-00001.parquet", columns, features, image=image)
    if preset == "imagenet":
        write_parquet(folder / "test-00000-of-00001.parquet", {label: [-1, -1]}, features, image=image)
    if config:
        entries = "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in ("train", held_out))
        (snapshot / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{entries}---\n")
    source = opened(preset)
    assert source.held_out_split == held_out
    assert labels(source.train()) == labels(source.held_out()) == [0, 1, 1]
    assert blobs(source.train())[1] == png(0, 1)
    assert (source.name, source.id, source.revision) == (preset, preset, REVISION)
    assert source.mirror == (preset != "mnist")
    if preset == "imagenet":
        assert source.classes == imagenet_1k()
        assert source.splits["test"].labels is None
    elif preset == "cifar100":
        assert names(source) == ["cockroach", "crab", "crocodile"]
    else:
        assert names(source) == class_names
    assert any("official" in note for note in source.notes) == (preset in ("flowers", "imagenet-21k"))


def test_a_hub_id_is_found_in_the_cache_as_the_client_stores_it(hub: Hub) -> None:
    snapshot = hub.add("user/pets")
    into_blobs(labelled(snapshot / "train.parquet", [0, 1, 1], CATS))
    into_blobs(labelled(snapshot / "test.parquet", [1], CATS))
    source = opened("user/pets")
    assert (source.name, source.id, source.revision) == ("pets", "user/pets", REVISION)
    assert labels(source.train()) == [0, 1, 1]
    assert labels(source.held_out()) == [1]


@pytest.mark.parametrize(
    "name", ["http://HERE/*.parquet", "OUT/*.parquet", "../../*/out.parquet", "zip://*::http://HERE/a.zip"]
)
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_row_39_a_card_names_its_own_files(
    tmp_path: Path, hub: Hub, listener: tuple[str, list[Any]], name: str, card: str
) -> None:
    here, calls = listener
    folder = hub.add("someone/cats")
    labelled(folder / "data" / "train.parquet", [0, 1, 1], CATS)
    named = name.replace("HERE", here).replace("OUT", str(tmp_path))
    text = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {json.dumps(named)}\n"
    (folder / card).write_text(f"---\n{text}---\n" if card == "README.md" else text)
    with pytest.raises(DataError, match=r"its card .* names"):
        opened("someone/cats")
    assert not calls


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["http://HERE/x.png", "OUT", "../../../../out.png", None])
@pytest.mark.parametrize("kind", ["parquet", "metadata"])
def test_row_39_a_row_of_the_hub_names_its_own_files(
    tmp_path: Path, hub: Hub, listener: tuple[str, list[Any]], name: str | None, kind: str
) -> None:
    here, calls = listener
    folder = hub.add("someone/cats")
    write_images(tmp_path, ["out.png"])
    write_images(folder, ["in.png", "in2.png"])
    named = name.replace("HERE", here).replace("OUT", str(tmp_path / "out.png")) if name else "in2.png"
    if kind == "parquet":
        naming(folder, "parquet", [str(folder / "in.png"), named if name else str(folder / named)])
        (folder / "in.png").rename(folder / "in.bin")
        (folder / "in2.png").rename(folder / "in2.bin")
    else:
        (folder / "metadata.csv").write_text(f"file_name,label\nin.png,a\n{named},b\n")
    if name is None:
        assert len(opened("someone/cats").split("all").blobs(np.arange(2))) == 2
    else:
        with pytest.raises(DataError, match=r"row 1|cannot read"):
            opened("someone/cats")
    gc.collect()  # `datasets` leaves the table open
    assert not calls


def test_row_39_a_script_is_not_run(tmp_path: Path, hub: Hub) -> None:
    folder = hub.add("someone/cats")
    (folder / "cats.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (folder / "dataset_infos.json").write_text('{"default": {"download_checksums": {"http://127.0.0.1:1/x": {}}}}')
    with pytest.raises(DataError):
        opened("someone/cats")
    assert not (tmp_path / "ran").exists()


def test_a_revision_is_chosen_by_name_or_configuration(hub: Hub) -> None:
    other = "fedcba9876543210fedcba9876543210fedcba98"
    labelled(hub.add("user/pets") / "train.parquet", [0, 1, 1], CATS)
    labelled(hub.add("user/pets", other, main=False) / "train.parquet", [0, 1, 1, 1], CATS)
    (hub.root / "datasets--user--pets" / "refs" / "v2").write_text(other)
    assert len(opened("user/pets").split("all")) == 3
    for source in (opened(f"user/pets@{other}"), opened("user/pets@v2"), opened("user/pets", revision=other)):
        assert len(source.split("all")) == 4
        assert source.revision == other
    assert opened("user/pets").identity != opened("user/pets@v2").identity


def test_a_configuration_is_chosen_after_the_colon(hub: Hub) -> None:
    snapshot = hub.add("user/pets")
    for config, count in (("small", 2), ("large", 4)):
        labelled(snapshot / config / "train.parquet", [0, 1] * (count // 2), CATS)
    (snapshot / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: small\n  data_files: small/train.parquet\n  default: true\n"
        "- config_name: large\n  data_files: large/train.parquet\n---\n"
    )
    assert len(opened("user/pets").split("all")) == 2
    assert len(opened("user/pets:large").split("all")) == 4
    assert len(opened(f"user/pets@{REVISION}:large").split("all")) == 4
    with pytest.raises(DataError, match="user/pets"):
        opened("user/pets:huge")


@pytest.mark.parametrize("name", ["user/never-seen", "cifar10", "user/pets@v9"])
def test_offline_and_not_cached_fails_at_once(hub: Hub, name: str) -> None:
    started = time.perf_counter()
    with pytest.raises(DataError) as caught:
        opened(name)
    assert time.perf_counter() - started < 5
    assert caught.value.code == 3
    assert "HF_HUB_OFFLINE" in caught.value.message + caught.value.hint


def test_without_a_network_what_is_not_cached_fails_soon(tmp_path: Path) -> None:
    """A hub that refuses connections, in a process of its own: the client reads its settings once."""
    script = (
        "from vitcli.config import DataConfig\n"
        "from vitcli.data.sources import open_source\n"
        "from vitcli.errors import DataError\n"
        "try:\n    open_source(DataConfig(source='user/never-seen'))\n"
        "except DataError as error:\n    print(error.message, '|', error.hint)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    environment |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=12, check=False
    )
    assert done.returncode == 0, done.stderr
    message, hint = done.stdout.strip().split("|")
    assert "user/never-seen" in message
    assert "HF_HUB_OFFLINE" in hint
    assert done.stderr.count("Retrying") == 0


def test_the_revision_is_the_one_that_was_loaded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network the newest revision is loaded, whatever the cache held before."""
    newest = "fedcba9876543210fedcba9876543210fedcba98"
    labelled(hub.add("user/pets") / "train.parquet", [0, 1], CATS)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)

    def load_dataset(*arguments: Any, **keywords: Any) -> datasets.DatasetDict:
        labelled(hub.add("user/pets", newest) / "train.parquet", [0, 1, 1], CATS)
        return datasets.DatasetDict({"train": table([0, 1, 1])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = opened("user/pets")
    assert len(source.split("all")) == 3
    assert source.revision == newest


# --- names and splits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("cifar1O", "cifar10"), ("imagenete", "imagenette"), ("digit", "digits")]
)
def test_an_unknown_name_is_an_error_that_names_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(DataError, match=wrong) as caught:
        opened(wrong)
    assert nearest in caught.value.hint


@pytest.mark.parametrize("wrong", ["./missing", "../missing/folder", "/missing/folder", "a/b/c", "x" * 5000, "none"])
def test_what_is_not_there_is_an_error(wrong: str) -> None:
    with pytest.raises(DataError):
        opened(wrong)


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(DataError, match=r"notes\.txt"):
        opened(tmp_path / "notes.txt")


def test_splits_are_chosen_by_name(class_folders: Path) -> None:
    source = opened(class_folders)
    assert len(source.split("train")) == 72
    assert len(source.split("test")) == 24
    for wrong in ("tset", "all", "validation"):
        with pytest.raises(DataError, match=wrong) as caught:
            source.split(wrong)
        assert caught.value.hint
    with pytest.raises(DataError, match="tset") as caught:
        source.train("tset")
    assert "did you mean test" in caught.value.hint


def test_training_may_use_another_split(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/a/1.png", "train/b/1.png", "val/a/1.png", "test/a/1.png"])
    source = opened(tmp_path)
    assert source.train("validation").name == "validation"
    assert len(source.train("validation")) == 1


def test_subsets_keep_labels_and_images_together(class_folders: Path) -> None:
    part = opened(class_folders).train()
    chosen = part.subset(np.array([70, 3, 40]))
    assert labels(chosen) == [labels(part)[i] for i in (70, 3, 40)]
    assert blobs(chosen) == [blobs(part)[i] for i in (70, 3, 40)]
    assert chosen.describe(0) == part.describe(70)


def test_a_smaller_fraction_lies_within_a_larger(class_folders: Path) -> None:
    part = opened(class_folders).train()
    few, more = fraction_of(part, 0.1, 3), fraction_of(part, 0.5, 3)
    assert (len(few), len(more)) == (7, 36)
    assert np.bincount(more.labels).tolist() == [12, 12, 12]
    assert sorted(np.bincount(few.labels).tolist()) == [2, 2, 3]
    assert set(few.rows) < set(more.rows)
    assert set(fraction_of(part, 0.5, 4).rows) != set(more.rows)
    assert fraction_of(part, 1, 3) is part
    assert np.bincount(fraction_of(part, 1e-9, 3).labels).tolist() == [1, 1, 1]


def test_the_typical_size_is_the_median_of_upright_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in range(3):
        folder = tmp_path / "a"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20)).save(folder / f"{index}.jpg", exif=exif)
    part = opened(tmp_path).split("all")
    assert typical_size(part, 89) == ((30, 20), True)
    Image.new("RGB", (500, 400)).save(tmp_path / "a" / "9.png")
    (tmp_path / "a" / "8.png").write_bytes(b"broken")
    assert typical_size(opened(tmp_path).split("all"), 89) == ((30, 20), False)


def test_data_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="none of the images"):
        typical_size(opened(tmp_path).split("all"), 89)


# --- identity ------------------------------------------------------------------------------------------------


def bitmaps(root: Path, colour: int) -> Path:
    """Files of one size with one date, which differ in nothing but their bytes."""
    for name in ("train/a/1.bmp", "train/b/1.bmp", "test/a/1.bmp"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (colour, len(name), 0)).save(path)
        os.utime(path, (1_000_000, 1_000_000))
    return root


def test_an_image_is_its_bytes_and_no_path_size_or_time(tmp_path: Path) -> None:
    bitmaps(tmp_path / "here", 10)
    before = opened(tmp_path / "here")
    assert opened(bitmaps(tmp_path / "copy", 10)).identity() == before.identity()
    assert opened(bitmaps(tmp_path / "here", 11)).identity() != before.identity()
    assert opened(bitmaps(tmp_path / "here", 10)).identity() == before.identity()
    (tmp_path / "here").rename(tmp_path / "there")
    assert opened(tmp_path / "there").identity() == before.identity()
    (tmp_path / "there" / "train" / "a").rename(tmp_path / "there" / "train" / "c")
    assert opened(tmp_path / "there").identity() != before.identity()


def test_a_split_is_known_by_its_images_alone(tmp_path: Path) -> None:
    root = bitmaps(tmp_path / "here", 10)
    before = {name: part.digests() for name, part in opened(root).splits.items()}
    Image.new("RGB", (8, 8), (0, 0, 200)).save(root / "test" / "a" / "1.bmp")
    os.utime(root / "test" / "a" / "1.bmp", (1_000_000, 1_000_000))
    after = {name: part.digests() for name, part in opened(root).splits.items()}
    assert (after["test"] != before["test"]).all()
    assert (after["train"] == before["train"]).all()


def test_a_source_is_immutable(class_folders: Path) -> None:
    source = opened(class_folders)
    with pytest.raises(AttributeError):
        source.name = "other"  # type: ignore[misc]
    assert replace(source, notes=("a",)).splits is source.splits


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path, ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"])
    if kind == "pipe":
        os.mkfifo(tmp_path / "cat" / "3.png")
    else:
        (tmp_path / "cat" / "3.png").symlink_to("/dev/zero")
    part = opened(tmp_path).split("all")
    assert [blob is None for blob, _ in part.blobs(np.arange(5))] == [False, False, True, False, False]
    assert (part.digests() == 0).sum() == 1


def test_names_that_are_not_utf_8_lose_no_row(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat/1.png", "dog/1.png", "dog/2.png"])
    odd = os.fsdecode(os.fsencode(tmp_path / "cat") + b"/\xe9.png")
    (tmp_path / "cat" / "1.png").rename(odd)
    part = opened(tmp_path).split("all")
    assert part.blobs(np.arange(1))[0] == (Path(odd).read_bytes(), odd)
    assert (part.digests() != 0).all()
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    (tmp_path / "dog").rename(root)
    (blob, path), *_ = opened(root).split("all").blobs(np.arange(1))
    assert path == str(root / "1.png") and blob == Path(path).read_bytes()


def saved(path: Path, *splits: str) -> Path:
    table = dict_of([png(i, i) for i in range(4)])
    datasets.DatasetDict(dict.fromkeys(splits, table)).save_to_disk(str(path))
    return path


def dict_of(blobs: Sequence[bytes]) -> datasets.Dataset:
    rows = {"image": [{"bytes": blob, "path": None} for blob in blobs], "label": [i % 2 for i in range(len(blobs))]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CATS)})
    return datasets.Dataset.from_dict(rows, features=features)


def test_splits_of_tables_are_matched_by_their_words_and_unused_ones_are_said(tmp_path: Path) -> None:
    source = opened(saved(tmp_path / "a", "Train", "Test_Set"))
    assert set(source.splits) == {"train", "test"} and source.held_out_split == "test"
    source = opened(saved(tmp_path / "b", "train_small", "train_large"))
    assert any("'train_small'; not used: train_large" in note for note in source.notes)


def test_splits_are_named_as_the_folders_are(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "test/cat/1.png"])
    source = opened(tmp_path)
    assert source.split("val").name == source.train("val").name == "validation"
    with pytest.raises(UsageError, match="train_split = testing"):
        source.train("testing")


@pytest.mark.parametrize("name", ["test", "Testing", "all"])
def test_what_is_held_out_of_one_split_cannot_be_trained_on(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, ["cat/1.png", "dog/1.png"])
    source = opened(tmp_path)
    with pytest.raises(UsageError, match=f"train_split = {name}"):
        source.train(name)
    assert len(source.split("TRAIN")) == len(source.split("train"))


def test_classes_that_differ_in_spelling_alone_are_said(tmp_path: Path) -> None:
    write_images(tmp_path, ["Cat/1.png", "cat/2.png", "dog/1.png"])
    assert any("'Cat' and 'cat'" in note for note in opened(tmp_path).notes)


def test_what_an_archive_holds_beside_images_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name in ("d/cat/1.png", "d/dog/1.png"):
            archive.writestr(name, png(1, 1))
        archive.writestr("d/cat/2.heic", b"x")
        archive.writestr("d/fox/", b"")
    said = "; ".join(opened(tmp_path / "d.zip").notes)
    assert "1 .heic" in said and "fox/" in said


def test_archives_at_an_address_are_splits_by_their_names(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for index in range(count):
                for ending, blob in (("png", png(index, index)), ("cls", str(index % 2).encode())):
                    member = tarfile.TarInfo(f"{index}.{ending}")
                    member.size = len(blob)
                    archive.addfile(member, io.BytesIO(blob))
    source = opened(f"file://{tmp_path}")
    assert {name: len(part) for name, part in source.splits.items()} == {"train": 3, "test": 2}


@pytest.mark.parametrize("splits", [("test", "extra"), ("test", "val"), ("val", "test"), ("validation", "other")])
def test_what_results_are_reported_on_is_never_trained_on(tmp_path: Path, splits: tuple[str, str]) -> None:
    source = opened(saved(tmp_path / "a", *splits))
    assert source.train().name != source.held_out_split == source.held_out().name
    assert any(f"trained on is {source.train().name!r}" in note for note in source.notes)
