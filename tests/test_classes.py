"""Classes are matched by id or name, never by position."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcli.classes import Class, fold, from_json, imagenet_1k, map_labels, match, read_labels, same_set
from vitcli.errors import CheckpointError, DataError

BIRD, MACHINE = Class("crane", "n02012849"), Class("crane", "n03126707")


def named(*names: str) -> list[Class]:
    return [Class(name) for name in names]


# --- match ---------------------------------------------------------------------------------------------------


def test_names_match_whatever_their_order() -> None:
    assert match(named("dog", "cat"), named("cat", "bird", "dog")) == [2, 0]


@pytest.mark.parametrize("wanted", ["Golden Retriever", "golden_retriever", "golden-retriever", "GoldenRetriever"])
def test_case_spaces_and_dashes_are_ignored(wanted: str) -> None:
    assert match(named(wanted), named("cat", "golden retriever")) == [1]


def test_an_exact_name_wins_over_one_in_another_case() -> None:
    assert match(named("Cat", "cat"), named("cat", "Cat")) == [1, 0]


def test_a_name_that_folds_to_two_classes_matches_neither() -> None:
    assert match(named("CAT"), named("cat", "Cat")) == [None]
    assert match(named("sea-lion"), named("sea lion", "sea_lion")) == [None]


def test_classes_of_one_name_are_told_apart_by_id() -> None:
    known = [Class("tench", "n01440764"), BIRD, MACHINE]
    assert match([MACHINE, BIRD], known) == [2, 1]
    assert match(named("crane"), known) == [None]


def test_an_id_is_tried_before_a_name() -> None:
    known = [Class("drake", "n01"), Class("duck", "n02")]
    assert match([Class("duck", "n01")], known) == [0]


def test_a_folder_may_be_named_by_a_synset() -> None:
    known = imagenet_1k()
    assert match(named("n02012849", "N03126707", "n01440764"), known) == [134, 517, 0]
    assert match(known, named("n01443537"))[:2] == [None, 0]


def test_another_id_is_another_class_whatever_the_name() -> None:
    """The machine is not the bird, even where only one of them is known."""
    assert match([MACHINE], [Class("tench", "n01440764"), BIRD]) == [None]


def test_unknown_names_match_nothing() -> None:
    assert match(named("ca", "cats", ""), named("cat")) == [None, None, None]
    assert match([], named("cat")) == []
    assert match(named("cat"), []) == [None]


@given(order=st.permutations(range(40)), upper=st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_order_is_undone(order: list[int], upper: bool) -> None:
    known = [Class(f"class {i}", f"n{i:08}") for i in range(40)]
    wanted = [Class(known[i].name.upper() if upper else known[i].name) for i in order]
    assert match(wanted, known) == order
    assert same_set(wanted, known) == order
    assert map_labels(wanted, [1] * 40, known, "data") == order


@given(st.lists(st.text(min_size=1), unique_by=fold))
@settings(max_examples=60, deadline=None)
def test_every_set_of_names_matches_itself(names: list[str]) -> None:
    known = named(*[n for n in names if fold(n)])
    assert match(known, known) == list(range(len(known)))


# --- same_set ------------------------------------------------------------------------------------------------


def test_the_same_set_has_the_same_classes() -> None:
    assert same_set(named("b", "A"), named("a", "b")) == [1, 0]
    assert same_set(named("a"), named("a", "b")) is None
    assert same_set(named("a", "c"), named("a", "b")) is None
    assert same_set(named("a", "A"), named("a", "b")) is None
    assert same_set(named("a_b", "a-b"), named("ab", "b")) is None
    assert same_set([], []) == []


# --- map_labels ----------------------------------------------------------------------------------------------


def test_a_class_without_images_need_not_be_known() -> None:
    assert map_labels(named("dog", "unicorn", "cat"), [3, 0, 1], named("cat", "dog"), "pets") == [1, -1, 0]


def test_classes_with_images_that_are_not_known_are_named() -> None:
    with pytest.raises(DataError) as caught:
        map_labels(named("dog", "unicorn", "griffin"), [3, 2, 1], named("cat", "dog"), "pets, split 'test'")
    for word in ("pets, split 'test'", "unicorn", "griffin", "2"):
        assert word in caught.value.message
    assert "'dog'" not in caught.value.message
    assert "--labels" in caught.value.hint
    assert caught.value.code == 3


def test_many_unknown_classes_are_counted_in_one_short_line() -> None:
    with pytest.raises(DataError) as caught:
        map_labels(named(*(f"new{i}" for i in range(300))), [1] * 300, named("cat"), "data")
    assert "300" in caught.value.message
    assert "295 more" in caught.value.message
    assert len(caught.value.message) < 300


def test_two_classes_of_the_data_for_one_of_the_checkpoint_are_an_error() -> None:
    with pytest.raises(DataError, match=r"cat.*Cat|Cat.*cat"):
        map_labels(named("cat", "Cat"), [1, 1], named("cat", "dog"), "data")


# --- labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog\nred fox\n",
        "cat\r\ndog\r\n\r\nred fox",
        "\ufeffcat\n dog \nred fox\n",
        '["cat", "dog", "red fox"]',
        '{"2": "red fox", "0": "cat", "1": "dog"}',
        '{"id2label": {"0": "cat", "1": "dog", "2": "red fox"}}',
        '[{"name": "cat"}, {"name": "dog"}, "red fox"]',
    ],
)
def test_labels_are_read_in_every_form(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels"
    path.write_bytes(text.encode())
    assert read_labels(str(path), 3) == tuple(named("cat", "dog", "red fox"))


def test_ten_and_more_indices_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({str(i): f"class {i}" for i in sorted(range(12), key=str)}))
    assert [c.name for c in read_labels(str(path), 12)] == [f"class {i}" for i in range(12)]


def test_labels_with_ids_are_read(tmp_path: Path) -> None:
    path = tmp_path / "imagenet_class_index.json"
    path.write_text(json.dumps({"0": ["n02012849", "crane"], "1": ["n03126707", "crane"]}))
    assert read_labels(str(path), 2) == (BIRD, MACHINE)
    path.write_text(json.dumps([BIRD.as_json(), {"name": "tench"}]))
    assert read_labels(str(path), 2) == (BIRD, Class("tench"))


def test_the_imagenet_classes_are_in_the_order_of_their_synsets() -> None:
    known = read_labels("imagenet-1k", 1000)
    assert [c.id for c in known] == sorted(c.id for c in known)
    assert len({c.id for c in known}) == 1000
    assert known[0] == Class("tench", "n01440764")
    assert known[1].name == "goldfish"
    assert [i for i, c in enumerate(known) if c.name == "crane"] == [134, 517]
    assert (known[134], known[517]) == (BIRD, MACHINE)


def test_the_imagenet_classes_are_those_of_the_published_index(shared_data: Path) -> None:
    listed = (shared_data / "imagenet_meta" / "imagenet_synsets.txt").read_text().split()
    assert [c.id for c in imagenet_1k()] == listed
    index = json.loads((shared_data / "imagenet_meta" / "imagenet_class_index.json").read_text())
    named_alike = sum(fold(index[str(i)][1]) == fold(c.name) for i, c in enumerate(imagenet_1k()))
    assert named_alike > 600  # the lists spell some classes differently


@pytest.mark.parametrize("outputs", [2, 4, 0])
def test_a_wrong_number_of_labels_is_an_error(tmp_path: Path, outputs: int) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("cat\ndog\nfox\n")
    with pytest.raises(CheckpointError, match=rf"3 classes.*{outputs} outputs"):
        read_labels(str(path), outputs)


@pytest.mark.parametrize(
    "content",
    [
        b'{"0": "cat", "2": "dog"}',
        b'{"zero": "cat"}',
        b'["cat", 3]',
        b'["cat", null]',
        b'[["n1"]]',
        b'[{"id": "n1"}]',
        b'["cat"',
        b"{",
        b"[" * 20_000,
        b"\x89PNG\r\n\x1a\n\xff\xfe",
        b'{"id2label": ["a", 1]}',
        b'{"id2label": 3}',
        b"",
    ],
)
def test_a_file_that_is_not_labels_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_labels(str(path), 1)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_labels_file_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(CheckpointError, match=str(path)):
            read_labels(str(path), 2)


@given(st.binary(max_size=200) | st.text(max_size=60).map(lambda t: json.dumps([t, {t: [t]}]).encode()))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_labels_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed-labels"
    path.write_bytes(content)
    try:
        assert len(read_labels(str(path), 2)) == 2
    except CheckpointError as error:
        assert error.message


def test_classes_survive_json() -> None:
    known = (BIRD, Class("cat"), MACHINE)
    assert from_json(json.loads(json.dumps([c.as_json() for c in known]))) == known
