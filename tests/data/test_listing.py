"""Tables of paths and labels: what stands in them is text, and names files beside them alone."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import draw_image
from vitcli.config import DataConfig
from vitcli.data.sources import open_source
from vitcli.data.split import Source
from vitcli.errors import DataError


def opened(path: Path, **config: Any) -> Source:
    return open_source(DataConfig(source=str(path), **config))


def images(folder: Path, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw_image(index, index, 6).save(folder / name, "PNG")


def of(source: Source, split: str = "all") -> list[tuple[str, str]]:
    """(file name, class) of each image."""
    part = source.split(split)
    assert part.labels is not None
    paths = [Path(path).name for _, path in part.blobs(np.arange(len(part)))]
    return [(path, source.classes[label].name) for path, label in zip(paths, part.labels, strict=True)]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "semicolons", "no names"])
def test_a_table_of_paths_and_labels_is_data(tmp_path: Path, form: str) -> None:
    rows = [("a/1.png", "cat"), ("a/2.png", "dog"), ("b/3.png", "cat")]
    images(tmp_path, [path for path, _ in rows])
    file = tmp_path / f"list.{form if form in ('tsv', 'jsonl') else 'csv'}"
    if form == "jsonl":
        file.write_text("".join(json.dumps({"image": p, "label": c}) + "\n" for p, c in rows))
    else:
        mark = {"tsv": "\t", "semicolons": ";"}.get(form, ",")
        head = [] if form == "no names" else [f"path{mark}label"]
        file.write_text("\n".join([*head, *(f"{p}{mark}{c}" for p, c in rows)]))
    source = opened(file)
    assert of(source) == [("1.png", "cat"), ("2.png", "dog"), ("3.png", "cat")]
    assert source.name == "list" and source.held_out_split == ""


LABELS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(LABELS, st.sampled_from(["001", "1", "01", "NA", "None", "nan", "1e5", "0.0", "true"])),
        min_size=2,
        max_size=8,
    )
)
def test_labels_are_text_exactly_as_they_stand(tmp_path: Path, labels: list[str]) -> None:
    images(tmp_path, [f"{i}.png" for i in range(len(labels))])
    with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label"])
        writer.writerows((f"{i}.png", label) for i, label in enumerate(labels))
    for source in (opened(tmp_path), opened(tmp_path / "metadata.csv")):
        assert [label for _, label in of(source)] == labels
        assert {c.name for c in source.classes} == set(labels)


def test_splits_by_a_column_or_by_folders(tmp_path: Path) -> None:
    images(tmp_path, ["train/1.png", "train/2.png", "test/3.png"])
    (tmp_path / "a.csv").write_text("file,species\ntrain/1.png,x\ntrain/2.png,y\ntest/3.png,x\n")
    (tmp_path / "b.csv").write_text("file,species,split\ntrain/1.png,x,test\ntrain/2.png,y,train\ntest/3.png,x,train\n")
    assert of(opened(tmp_path / "a.csv"), "test") == [("3.png", "x")]
    assert of(opened(tmp_path / "b.csv", label_column="species"), "test") == [("1.png", "x")]
    for split in ("train", "test"):
        rows = [f"{p.name},{'xy'[i]}" for i, p in enumerate(sorted((tmp_path / split).glob("*.png")))]
        (tmp_path / split / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    for name in "ab":
        (tmp_path / f"{name}.csv").unlink()
    source = opened(tmp_path)
    assert of(source, "train") == [("1.png", "x"), ("2.png", "y")] and of(source, "test") == [("3.png", "x")]


def test_numbers_are_in_their_order_and_images_that_no_table_lists_are_counted(tmp_path: Path) -> None:
    images(tmp_path, ["1.png", "2.png", "3.png", "4.png"])
    (tmp_path / "metadata.csv").write_text("file_name,label\n1.png,10\n2.png,9\n3.png,2\n")
    source = opened(tmp_path)
    assert [c.name for c in source.classes] == ["2", "9", "10"]
    assert any("1 images that no table lists" in note for note in source.notes)


@pytest.mark.parametrize(
    "path", ["../out.png", "/etc/hostname", "http://127.0.0.1:9/x.png", "a/../../out.png", "file:///x.png"]
)
def test_a_row_names_nothing_outside_the_tables_folder(tmp_path: Path, path: str) -> None:
    images(tmp_path, ["out.png", "in/1.png"])
    (tmp_path / "in" / "list.csv").write_text(f"path,label\n1.png,a\n{path},b\n")
    with pytest.raises(DataError, match="row 2"):
        opened(tmp_path / "in" / "list.csv", image_column="path")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "path,label\n",
        "a,b\nc,d\n",
        "path,label\n1.png,a,extra\n",
        "path,path\n1.png,a\n",
        'path,label\n"1.png,a\n',
        "path,x,y\n1.png,a,b\n,c,d\n",
    ],
)
def test_a_table_that_cannot_be_read_is_an_error_of_the_data(tmp_path: Path, text: str) -> None:
    images(tmp_path, ["1.png"])
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError) as error:
        opened(tmp_path / "list.csv")
    assert error.value.hint and "list.csv" in error.value.message


def test_a_missing_label_is_an_error_that_names_the_row(tmp_path: Path) -> None:
    images(tmp_path, ["1.png", "2.png"])
    (tmp_path / "list.csv").write_text("path,label\n1.png,a\n2.png,\n")
    with pytest.raises(DataError, match="row 1"):
        opened(tmp_path / "list.csv")


ROWS = [("1.png", "cat"), ("2.png", "dog"), ("3.png", "cat"), ("4.png", "dog")]


def table(folder: Path, rows: Sequence[Sequence[str]] = ROWS, head: str = "path,label", **how: Any) -> Path:
    images(folder, [name for name, _ in ROWS])
    (folder / "list.csv").write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n", **how)
    return folder / "list.csv"


def test_an_image_that_is_named_again_counts_once(tmp_path: Path) -> None:
    source = opened(table(tmp_path, [*ROWS, *ROWS, ("./1.png", "cat")]))
    assert of(source) == ROWS
    assert any("5 rows that name an image again" in note for note in source.notes)


def test_an_image_with_two_labels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1\.png .* 'cat' and 'dog'"):
        opened(table(tmp_path, [*ROWS, ("1.png", "dog")]))


@pytest.mark.parametrize("odd", ["public", ""])
def test_a_column_of_splits_says_one_in_every_row(tmp_path: Path, odd: str) -> None:
    rows = [(*row, split) for row, split in zip(ROWS, ["train", "train", "test", odd], strict=True)]
    with pytest.raises(DataError, match=f"'split' says '{odd}'"):
        opened(table(tmp_path, rows, "path,label,split"))


def test_a_column_of_split_words_is_one_whatever_its_name_and_others_are_said_to_be_unused(tmp_path: Path) -> None:
    rows = [(*row, split, str(i)) for i, (row, split) in enumerate(zip(ROWS, ["train"] * 3 + ["Test"], strict=True))]
    source = opened(table(tmp_path, rows, "path,label,data set,fold"))
    assert of(source, "test") == ROWS[3:] and of(source, "train") == ROWS[:3]
    assert any("not used: fold" in note for note in source.notes)


def test_tables_as_spreadsheets_and_windows_write_them(tmp_path: Path) -> None:
    assert of(opened(table(tmp_path / "a", encoding="utf-16"))) == ROWS
    assert of(opened(table(tmp_path / "b", [(*row, "", "") for row in ROWS]))) == ROWS
    images(tmp_path / "c" / "in", [name for name, _ in ROWS])
    assert of(opened(table(tmp_path / "c", [(f"in\\{name}", label) for name, label in ROWS]))) == ROWS


def test_labels_in_another_encoding_are_names_that_can_be_written(tmp_path: Path) -> None:
    source = opened(table(tmp_path, [("1.png", "café"), ("2.png", "dog")], encoding="latin-1"))
    assert [c.name for c in source.classes] == [r"caf\xe9", "dog"]


def test_paths_that_lead_nowhere_are_said_to_be_relative_to_the_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none is there") as error:
        opened(table(tmp_path, [(f"data/{name}", label) for name, label in ROWS]))
    assert "relative to the table" in error.value.hint


def test_labels_of_two_kinds_are_an_error(tmp_path: Path) -> None:
    images(tmp_path, ["1.png", "2.png"])
    (tmp_path / "list.jsonl").write_text('{"image": "1.png", "label": 1}\n{"image": "2.png", "label": "1"}\n')
    with pytest.raises(DataError, match="int in row 1 and str in row 2"):
        opened(tmp_path / "list.jsonl")


def test_an_image_has_one_part_however_a_table_writes_its_path(tmp_path: Path) -> None:
    images(tmp_path, [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)])
    parts = []
    for before in ("", "./", f"{tmp_path}/"):
        rows = [f"{before}{c}/{i}.png,{c}" for c in ("cat", "dog") for i in range(10)]
        (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
        parts.append(of(opened(tmp_path / "list.csv"), "test"))
    (tmp_path / "list.csv").unlink()
    assert parts == [of(opened(tmp_path), "test")] * 3  # a folder of class folders, too


@pytest.mark.parametrize("columns", ["file_name,caption", "file_name,age,width", "id,other"])
def test_metadata_without_labels_leaves_the_classes_to_the_folders(tmp_path: Path, columns: str) -> None:
    images(tmp_path, ["cat/1.png", "cat/2.png", "dog/3.png"])
    cells = [[name, f"{i}", "x"][: columns.count(",") + 1] for i, name in enumerate(["cat/1.png", "dog/3.png"])]
    cells = [["1", "2"]] if columns.startswith("id") else cells
    (tmp_path / "metadata.csv").write_text("\n".join([columns, *(",".join(row) for row in cells)]))
    source = opened(tmp_path)
    assert of(source) == [("1.png", "cat"), ("2.png", "cat"), ("3.png", "dog")]
    assert any("metadata.csv" in note and "folders" in note for note in source.notes)


def test_a_pipe_in_place_of_a_table_is_not_waited_for(tmp_path: Path) -> None:
    images(tmp_path, ["1.png", "2.png"])
    os.mkfifo(tmp_path / "metadata.csv")
    with pytest.raises(DataError, match="a pipe"):
        opened(tmp_path)


def test_a_number_beyond_64_bits_is_no_class(tmp_path: Path) -> None:
    images(tmp_path, ["1.png"])
    (tmp_path / "list.jsonl").write_text('{"image": "1.png", "label": 99999999999999999999}')
    with pytest.raises(DataError, match="row 1"):
        opened(tmp_path / "list.jsonl")
