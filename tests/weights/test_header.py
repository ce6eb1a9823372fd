"""The header of a safetensors file, whole, damaged and made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vitcli.errors import CheckpointError
from vitcli.weights.describe import describe
from vitcli.weights.header import not_weights, read_header

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 22884312\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"


def packed(header: Any, data: bytes = b"", pad: bool = True) -> bytes:
    """A safetensors file with this header, be it JSON-able or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if pad:
        text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(folder: Path, content: bytes) -> Path:
    path = folder / "w.safetensors"
    path.write_bytes(content)
    return path


def refused(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.code == 4
    return caught.value


def test_a_file_of_the_safetensors_library(tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "scalar": torch.tensor(1.0)}
    tensors["empty"] = torch.zeros(0, 5)
    save_file(tensors, path, metadata={"format": "pt", "note": "ünïcode"})
    header = read_header(path)
    assert header.path == path
    assert header.shapes == {"a": (2, 3), "b": (4,), "scalar": (), "empty": (0, 5)}
    assert header.dtypes == {"a": "F32", "b": "BF16", "scalar": "F32", "empty": "F32"}
    assert header.metadata == {"format": "pt", "note": "ünïcode"}
    assert path.stat().st_size - header.data_start == 24 + 8 + 4
    assert header.document() is None


def test_the_document_is_the_metadata_s_json(tmp_path):
    document = {"model": {"width": 3}, "name": "é"}
    path = write(tmp_path, packed({"__metadata__": {"vit": json.dumps(document)}}))
    assert read_header(path).document() == document


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"text"', "[" * 5000])
def test_a_document_that_is_no_json_object_is_refused(tmp_path, text):
    header = read_header(write(tmp_path, packed({"__metadata__": {"vit": text}})))
    with pytest.raises(CheckpointError, match="'vit'"):
        header.document()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty file"),
        (LFS, "git-LFS pointer"),
        (PAGE, "web page"),
        (b"  \n<html lang='en'>", "web page"),
        (b"<?xml version='1.0'?><Error/>", "web page"),
        (b"1234567", "cut off or not a safetensors file"),
        (b"\xff" * 64, "cut off or not a safetensors file"),
        (b"PK\x03\x04" + b"\0" * 60, "not a safetensors file"),
        (packed(b"{}") + b"rest", "bytes"),
        (packed({"a": entry([2], 0, 8)}, b"\0" * 7), "cut off"),
        (packed({"a": entry([2], 0, 8)}, b"\0" * 9), "bytes"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_what_a_file_is_instead_of_weights_is_said(tmp_path, content, said):
    assert said in refused(write(tmp_path, content)).message


def test_a_pointer_and_a_page_come_with_a_way_out(tmp_path):
    for content in (LFS, PAGE):
        assert "download" in refused(write(tmp_path, content)).hint


def test_what_looks_like_weights_is_not_taken_for_a_page():
    assert not_weights(packed({"a": entry([1], 0, 4)}, b"\0" * 4)[:64]) == ""
    assert not_weights(b"\x80\x02") == ""


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"3",
        b"[" * 100_000,
        b"\xff\xfe\xfd",
        {"a": None},
        {"a": []},
        {"a": {}},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": entry([1], 0, 4, None)},
        {"a": entry([1], 0, 4, [])},
        {"a": entry([2], 0, 4)},
        {"a": entry([-1], 0, -4)},
        {"a": entry([-1, -1], 0, 4)},
        {"a": entry([1], -4, 0)},
        {"a": entry(["x"], 0, 4)},
        {"a": entry([1], "0", "4")},
        {"a": entry([1], None, 4)},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}},
        {"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}},
        {"__metadata__": None},
        {"__metadata__": []},
        {"__metadata__": "x"},
        {"a": entry([float("inf")], 0, 4)},
        {"a": entry([float("nan")], 0, 4)},
        b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}',
    ],
    ids=lambda h: (h if isinstance(h, bytes) else json.dumps(h).encode())[:60].decode("latin1"),
)
def test_a_made_up_header_is_refused(tmp_path, header):
    refused(write(tmp_path, packed(header, b"\0" * 4)))


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path):
    path = write(tmp_path, (2**40).to_bytes(8, "little") + b"{}" * 100)
    assert f"{2**40 + 8:,}" in refused(path).message


def test_a_missing_file_and_a_folder(tmp_path):
    refused(tmp_path / "absent.safetensors")
    refused(tmp_path)


def test_every_shorter_file_is_refused(tmp_path):
    whole = packed({"a": entry([2, 3], 0, 24), "b": entry([], 24, 28)}, bytes(range(28)))
    assert read_header(write(tmp_path, whole)).shapes == {"a": (2, 3), "b": ()}
    for length in range(len(whole)):
        refused(write(tmp_path, whole[:length]))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["F32", "BF16", 1e999]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BOOL"]) | JSON,
        "shape": st.lists(st.integers(-1, 4) | JSON, max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 64) | JSON, min_size=1, max_size=3) | JSON,
    }
)
NAMES = st.sampled_from(
    ["patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight", "__metadata__", "norm.weight"]
)


def read_or_refuse(path: Path) -> None:
    """Reading ends in a description or in CheckpointError."""
    try:
        describe(path)
    except CheckpointError as error:
        assert error.message


@settings(deadline=None, max_examples=250)
@given(
    header=st.dictionaries(NAMES | st.text(max_size=5), ENTRIES | JSON, max_size=4) | JSON, data=st.binary(max_size=40)
)
def test_any_json_as_a_header_is_read_or_refused(header, data, tmp_path_factory):
    read_or_refuse(write(tmp_path_factory.mktemp("h"), packed(header, data)))


@settings(deadline=None, max_examples=150)
@given(content=st.binary(max_size=100), sized=st.booleans())
def test_any_bytes_are_read_or_refused(content, sized, tmp_path_factory):
    read_or_refuse(write(tmp_path_factory.mktemp("b"), packed(content) if sized else content))
