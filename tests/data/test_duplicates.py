"""Duplicates that were planted are found, others are few; what `vit data` says of a folder."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import Vit, draw_image
from vitcli.data.duplicates import SIDE, equal_groups, groups_of, near_pairs, thumb_of
from vitcli.evaluate.features import Features
from vitcli.evaluate.suspects import held_out_chances, suspects_among


def scene(seed: int, size: tuple[int, int] = (90, 120)) -> Image.Image:
    """Coloured blobs of all scales on a gradient, as far from one another as photographs are."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[0], 0 : size[1]] / max(size)
    pixels = np.stack([random.random() * x + random.random() * y for _ in range(3)], 2)
    for _ in range(40):
        centre, width = random.random(2), 0.02 + 0.2 * random.random() ** 2
        blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / width**2)
        pixels += blob[..., None] * random.normal(0, 0.6, 3)
    return Image.fromarray((255 * (pixels - pixels.min()) / np.ptp(pixels)).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def changed(image: Image.Image, how: str, random: np.random.Generator) -> Image.Image:
    if "resized" in how:
        factor = random.uniform(0.5, 1.6)
        image = image.resize((round(image.width * factor), round(image.height * factor)))
    if "mirrored" in how:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if "encoded" in how:
        image = Image.open(io.BytesIO(encoded(image, "JPEG", quality=int(random.integers(35, 95))))).convert("RGB")
    return image


def test_what_was_encoded_anew_resized_or_mirrored_is_found_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    images = [scene(seed, (int(random.integers(60, 140)), int(random.integers(60, 140)))) for seed in range(250)]
    how = ["encoded", "resized", "mirrored", "mirrored resized encoded"]
    copies = [changed(images[i], how[i % 4], random) for i in range(120)]
    thumbs = np.stack([thumb_of(image) for image in images + copies])
    found = {tuple(pair) for pair in near_pairs(thumbs).tolist()}
    planted = {(i, 250 + i) for i in range(120)}
    assert planted <= found and len(found - planted) <= 1


def test_real_photographs_are_not_taken_for_one_another(shared_data: Path) -> None:
    paths = sorted((shared_data / "photos").rglob("*.jp*g"))
    thumbs = np.stack([thumb_of(Image.open(path).convert("RGB")) for path in paths])
    assert len(near_pairs(thumbs)) == 0


def test_images_of_one_colour_and_few_images_are_no_pairs() -> None:
    assert near_pairs(np.zeros((0, SIDE, SIDE, 3), np.uint8)).shape == (0, 2)
    assert near_pairs(np.full((1, SIDE, SIDE, 3), 9, np.uint8)).shape == (0, 2)
    flat = np.repeat(np.arange(40, dtype=np.uint8), SIDE * SIDE * 3).reshape(40, SIDE, SIDE, 3)
    assert near_pairs(flat).shape == (0, 2)


def test_many_copies_of_one_picture_are_all_found() -> None:
    random = np.random.default_rng(1)
    one = np.asarray(thumb_of(scene(3))).astype(np.int64)
    noisy = np.clip(one + random.integers(-1, 2, (100, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    others = np.stack([thumb_of(scene(seed)) for seed in range(10, 40)])
    groups = list(groups_of(near_pairs(np.concatenate([noisy, others])), 130))
    assert groups == [list(range(100))]


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)).filter(lambda p: p[0] != p[1]), max_size=12))
def test_groups_are_what_pairs_join(pairs: list[tuple[int, int]]) -> None:
    sets = [{i} for i in range(16)]
    for first, second in pairs:
        joined = next(s for s in sets if first in s) | next(s for s in sets if second in s)
        sets = [s for s in sets if not s & joined] + [joined]
    expected = sorted(sorted(s) for s in sets if len(s) > 1)
    assert list(groups_of(pairs, 16)) == expected


@given(st.lists(st.integers(0, 6), max_size=20))
def test_equal_groups_are_the_same_digests(digests: list[int]) -> None:
    found = list(equal_groups(np.array(digests, np.uint64)))
    expected = [[i for i, d in enumerate(digests) if d == v] for v in set(digests) if v and digests.count(v) > 1]
    assert found == sorted(expected)


# --- labels ------------------------------------------------------------------------------------------------


def test_wrong_labels_come_first() -> None:
    random = np.random.default_rng(0)
    targets = np.repeat(np.arange(5), 80)
    values = np.eye(5, 20)[targets] * 4 + random.normal(size=(400, 20))
    wrong = random.choice(400, 20, replace=False)
    labels = targets.copy()
    labels[wrong] = (labels[wrong] + random.integers(1, 5, 20)) % 5
    chances = held_out_chances(Features(values, labels), 5)
    np.testing.assert_allclose(chances.sum(1), 1)
    found = suspects_among(labels, chances)
    assert np.isin(found[:20], wrong).mean() >= 0.9 and np.isin(wrong, found).mean() >= 0.7
    assert len(suspects_among(targets, held_out_chances(Features(values, targets), 5))) < 20


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ and test/ of two classes, a leak of each kind, a broken image and files that are none."""
    root = tmp_path / "set"
    for split, count, first in (("train", 12, 0), ("test", 5, 100)):
        for c, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                scene(first + 1000 * c + index).save(root / split / name / f"{index:02}.png")
    (root / "test" / "cat" / "copy.png").write_bytes((root / "train" / "cat" / "00.png").read_bytes())
    scene(1001).transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((70, 60)).save(
        root / "test" / "dog" / "near.jpg", quality=80
    )
    scene(2).save(root / "train" / "cat" / "again.jpg", quality=70)
    (root / "train" / "dog" / "broken.png").write_bytes(b"\x89PNG and no more")
    (root / "notes.txt").write_text("hello")
    (root / "more.txt").write_text("hello")
    return root


def test_what_is_in_a_folder(folder: Path, in_process: Vit) -> None:
    done = in_process("data", folder, "--json", "--sheet", "s.png", "--duplicates", "d.png")
    assert done.code == 0, done.err
    tree = done.json
    splits = {split["name"]: split for split in tree["splits"]}
    assert {n: s["rows"] for n, s in splits.items()} == {"train": 26, "test": 12}
    assert splits["train"]["classes"] == [{"name": "cat", "n": 13}, {"name": "dog", "n": 13}]
    (bad,) = tree["unreadable"]
    assert bad["path"].endswith("broken.png") and bad["split"] == "train" and bad["reason"]
    assert tree["left_out"] == [{"ending": ".txt", "n": 2}]
    groups = [(g["kind"], g["across"], sorted(Path(r["path"]).name for r in g["rows"])) for g in tree["duplicates"]]
    assert sorted(groups) == [
        ("exact", True, ["00.png", "copy.png"]), ("near", False, ["02.png", "again.jpg"]), ("near", True, ["01.png", "near.jpg"]),
    ]  # fmt: skip
    assert tree["leaked"] == 2
    assert tree["sizes"]["commonest"] == [90, 120] and tree["sizes"]["smallest"] == [60, 70]
    for name in ("s.png", "d.png"):
        assert np.asarray(Image.open(name).convert("RGB")).std() > 10
    text = in_process("data", folder)
    assert "2 held-out images are among the training images" in text.out and "broken.png" in text.out
    assert not [g for g in in_process("data", folder, "--json", "--no-near").json["duplicates"] if g["kind"] == "near"]
    assert in_process("data", folder, "--sheet", "s.png").code == 2
    assert in_process("data", folder, "--label-errors", "l.png").code == 2
    assert in_process("data", folder / "nothing").code == 3
    assert in_process("data", folder, "--set", "optim.lr=1").code == 2


def test_data_without_splits_are_told_apart_by_what_is_held_out(tmp_path: Path, in_process: Vit) -> None:
    for c, name in enumerate(("a", "b")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(15):
            scene(5000 + 100 * c + index).save(tmp_path / "set" / name / f"{index}.png")
    for index in range(15):
        scene(5000 + index).save(tmp_path / "set" / "a" / f"other-{index}.jpg", quality=60)
    tree = in_process("data", tmp_path / "set", "--json").json
    assert len(tree["duplicates"]) == 15
    across = [g for g in tree["duplicates"] if g["across"]]
    assert tree["leaked"] == len(across) > 0
    assert {row["part"] for g in tree["duplicates"] for row in g["rows"]} == {"train", "test"}
    assert in_process("data", "digits", "--json", "--no-near").json["splits"][0]["rows"] > 1000


def test_unlabelled_images_have_no_classes(tmp_path: Path, in_process: Vit) -> None:
    (tmp_path / "flat").mkdir()
    for index in range(6):
        draw_image(index, index).save(tmp_path / "flat" / f"{index}.png")
    tree = in_process("data", tmp_path / "flat", "--json").json
    assert tree["splits"] == [{"name": "train", "rows": 6, "classes": []}]


def test_labels_that_are_likely_wrong_are_named(class_folders: Path, tmp_path: Path, in_process: Vit) -> None:
    from conftest import train_run

    checkpoint, _ = train_run(
        "pretrain", data=str(class_folders), out=str(tmp_path / "run"), model="mu/4", steps=30, batch_size=16
    )
    root = tmp_path / "set"
    for c, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir(parents=True)
        for index in range(20):
            draw_image(c, 300 + index).save(root / name / f"{index:02}.png")
    draw_image(0, 999).save(root / "blue" / "wrong.png")
    done = in_process("data", root, "--checkpoint", checkpoint, "--json", "--label-errors", "l.png")
    assert done.code == 0, done.err
    first = done.json["label_errors"][0]
    assert first["path"].endswith("wrong.png") and (first["label"], first["suggested"]) == ("blue", "red")
    assert len(done.json["label_errors"]) <= 3 and json.dumps(first)


def test_files_that_are_no_images_are_no_copies_of_each_other(tmp_path: Path, in_process: Vit) -> None:
    for split in ("train", "test"):
        (tmp_path / "set" / split / "a").mkdir(parents=True)
        scene(len(split)).save(tmp_path / "set" / split / "a" / "1.png")
        (tmp_path / "set" / split / "a" / "2.png").write_bytes(b"")
    tree = in_process("data", tmp_path / "set", "--json").json
    assert tree["duplicates"] == [] and tree["leaked"] == 0 and len(tree["unreadable"]) == 2


@pytest.mark.parametrize("copies", [12, 60])
def test_copies_of_every_kind_are_found_however_many(copies: int) -> None:
    random = np.random.default_rng(copies)
    how = ["encoded", "resized", "mirrored", "mirrored resized encoded"]
    images = [scene(i) for i in range(30)] + [changed(scene(0), how[i % 4], random) for i in range(copies)]
    assert list(groups_of(near_pairs(np.stack(list(map(thumb_of, images)))), len(images))) == [
        [0, *range(30, 30 + copies)]
    ]
