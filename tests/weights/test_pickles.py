"""The pickle reader: the same plain values as pickle, and of anything else an inert object, an error, and an end."""

from __future__ import annotations

import collections
import os
import pickle
import pickletools
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcli.weights import pickles
from vitcli.weights.pickles import Damaged, Inert, InertKey, Reader

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=20),
)
KEYS = st.one_of(st.text(max_size=8), st.integers(-1000, 1000), st.none())
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


def without_bytes(tree: Any) -> Any:
    """Before protocol 3 bytes are calls of functions."""
    if isinstance(tree, bytes):
        return None
    if isinstance(tree, dict):
        return {key: without_bytes(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(without_bytes(value) for value in tree)
    return tree


@settings(max_examples=150)
@given(tree=TREES, protocol=st.integers(0, 5))
def test_plain_trees_are_read_as_pickle_reads_them(tree, protocol):
    tree = without_bytes(tree) if protocol < 3 else tree
    data = pickle.dumps(tree, protocol)
    reader = Reader(data)
    assert reader.load() == tree
    assert reader.position == len(data)


def test_shared_and_circular_parts():
    shared: list[Any] = [1]
    shared.append(shared)
    found = Reader(pickle.dumps({"a": shared, "b": shared})).load()
    assert found["a"] is found["b"] and found["a"][1] is found["a"]


def test_pickles_one_after_another():
    data = pickle.dumps([1]) + pickle.dumps({"b": 2})
    first = Reader(data)
    assert first.load() == [1]
    assert Reader(data, first.position).load() == {"b": 2}


class Old:
    pass


class Reduced:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize("protocol", range(6))
def test_every_object_is_inert_and_says_what_it_would_have_been(protocol):
    thing = Old()
    thing.__dict__ = {"path": Path("/x"), "lr": 0.1}
    found = Reader(pickle.dumps([thing, Reduced(os.system, "false"), collections.Counter("aab")], protocol)).load()
    assert isinstance(found[0], Inert) and found[0].name.endswith("test_pickles.Old")
    assert found[0].state["lr"] == 0.1 and isinstance(found[0].state["path"], Inert)
    assert found[1].name in ("posix.system", "nt.system") and found[1].arguments == ("false",)
    assert isinstance(found[2], Inert)


def test_row_43_keys_whose_hash_is_not_plain_are_never_hashed():
    """A tuple of a tuple of … of itself twice, 10,000 deep: its hash takes 2^10,000 steps."""
    data = b"\x80\x02}K\x01q\x00" + b"h\x00\x86q\x00" * 34 + b"K\x02s."
    try:
        found = Reader(data).load()
        assert all(isinstance(key, (int, InertKey)) for key in found)
    except Damaged:
        pass
    deep = b"\x80\x02}K\x01q\x00" + b"h\x00h\x00\x86q\x00" * 10_000 + b"K\x02s."
    started = time.monotonic()
    with pytest.raises(Damaged):  # the stack is not what SETITEM needs
        Reader(deep).load()
    whole = b"\x80\x02}q\x01K\x01q\x000" + b"h\x00h\x00\x86q\x000" * 10_000 + b"h\x01h\x00K\x02s."
    (key,) = Reader(whole).load()
    assert isinstance(key, InertKey)
    assert time.monotonic() - started < 5


def test_row_43_integers_that_share_a_hash_are_no_keys():
    same = {n * (2**61 - 1): n for n in range(1, 300)}
    assert all(isinstance(key, InertKey) for key in Reader(pickle.dumps(same)).load())


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02" + b"]" * 3_000_000 + b".",  # more operations than any checkpoint
        b"\x80\x02" + b"}\x94" * 3_000_000 + b".",
        b"\x80\x02\x8a\xff" + b"\x01" * 10,  # an integer that is cut off
        b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\x01" * 10,  # of two gigabytes
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x80\x02I" + b"9" * 200_000 + b"\n.",  # of 200,000 digits
        b"\x80\x02.",
        b"\x80\x02u.",
        b"\x80\x02\x85\x86\x87.",
        b"\x80\x02}h\x09s.",
        b"",
        b"\xff",
        b"\x80\x02c os\nsystem\n\x93.",
    ],
    ids=range(14),
)
def test_row_43_bombs_and_nonsense_end_soon(data):
    started = time.monotonic()
    with pytest.raises(Damaged):
        Reader(data).load()
    assert time.monotonic() - started < 10


def test_row_43_deep_nesting_needs_no_recursion():
    found = Reader(b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".").load()
    depth = 0
    while found:
        found, depth = found[0], depth + 1
    assert depth == 299_999


def test_row_43_long_texts_are_passed_over():
    tree = {"a": "x" * (pickles.MAX_TEXT + 1), "b": b"y" * (pickles.MAX_TEXT + 1), "c": 2**9000, "d": 3}
    found = Reader(pickle.dumps(tree)).load()
    assert [type(found[key]) for key in "abc"] == [Inert] * 3 and found["d"] == 3


@settings(max_examples=400)
@given(data=st.data())
def test_mutated_bytes_are_read_or_refused_and_nothing_runs(data):
    tree = {"model": [Reduced(exec, "raise SystemExit"), collections.OrderedDict(a=1)], "n": (1.5, "é" * 9, 2**80)}
    stream = bytearray(pickle.dumps(tree, data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(stream) - 1))
        kind = data.draw(st.sampled_from(["byte", "opcode", "cut", "double"]))
        if kind == "byte":
            stream[at] = data.draw(st.integers(0, 255))
        elif kind == "opcode":
            stream[at] = ord(data.draw(st.sampled_from(pickletools.opcodes)).code)
        elif kind == "cut":
            del stream[at : at + 1 + data.draw(st.integers(0, 8))]
        else:
            stream[at:at] = stream[at : at + 9]
        if not stream:
            return
    try:
        Reader(bytes(stream)).load()
    except Damaged as error:
        assert "\n" not in str(error)
