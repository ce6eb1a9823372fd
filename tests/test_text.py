"""Text made fit for where it is written: nothing moves a cursor or begins a line, and JSON gives back what it was made of."""

from __future__ import annotations

import csv
import io
import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitcli.text import as_json, cell, markdown, unicode, visible

ANY = st.text(st.characters(), max_size=40) | st.binary(max_size=40).map(os.fsdecode)
"""Letters of every kind, halves of pairs of UTF-16 too, and names of files of any bytes."""
MOVES = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@given(ANY)
def test_what_is_shown_is_one_line_of_letters(text: str) -> None:
    shown = visible(text)
    assert not MOVES.search(shown) and len(shown.splitlines()) <= 1
    shown.encode("utf-8")
    assert visible(shown) == shown
    if not MOVES.search(text) and "\ufeff" not in text:
        assert shown == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("caf\udcc3\udca9", "café"),
        ("\ud800", "\\ud800"),
        ("größe 🐈 ❤️", "größe 🐈 ❤️"),
    ],
)
def test_how_it_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(ANY)
def test_a_column_of_utf_8_takes_it(text: str) -> None:
    unicode(text).encode("utf-8")
    if not re.search("[\ud800-\udfff]", text):
        assert unicode(text) == text


@given(ANY)
def test_a_cell_is_no_formula_and_one_line(text: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([cell(text), "next"])
    ((first, second),) = csv.reader(io.StringIO(file.getvalue()))
    assert second == "next" and len(file.getvalue().splitlines()) == 1
    assert first[:1] not in ("=", "+", "-", "@") or float(first) is not None


@pytest.mark.parametrize("number", ["-1", "+2.5", "-.5e-3"])
def test_a_number_in_a_cell_stays_one(number: str) -> None:
    assert cell(number) == number


@pytest.mark.parametrize("formula", ["=1+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "+A1"])
def test_a_formula_in_a_cell_is_text(formula: str) -> None:
    assert cell(formula) == f"'{formula}"


@given(ANY)
def test_markdown_holds_no_markup(text: str) -> None:
    written = markdown(text)
    assert "\n" not in written and "<" not in written and ">" not in written
    assert not re.search(r"(?<!\\)(\\\\)*[`|*_\[\]~$]", written.replace("\\\\", ""))


@given(st.recursive(ANY | st.none() | st.booleans() | st.integers(), lambda inner: st.lists(inner, max_size=4)))
def test_json_gives_back_what_it_was_made_of(tree: object) -> None:
    written = as_json(tree)
    assert not MOVES.search(written)
    written.encode("utf-8")
    assert _joined(json.loads(written)) == _joined(tree)


def _joined(tree: object) -> object:
    """Bytes of a letter that stand side by side are that letter."""
    if isinstance(tree, list):
        return [_joined(item) for item in tree]
    try:
        return (
            tree.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
            if isinstance(tree, str)
            else tree
        )
    except UnicodeEncodeError:
        return tree


def test_json_of_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        as_json(float("nan"))
