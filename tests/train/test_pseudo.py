"""Noisy Student (Xie et al., 2020, §2 and §3.1; google-research/noisystudent filter_unlabel.py): which images, how often, as what."""

from __future__ import annotations

import itertools
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from conftest import Vit, draw_image, train_run
from processes import run
from vitcli import api
from vitcli.config import PseudoConfig
from vitcli.data.batch import Batch
from vitcli.errors import DataError
from vitcli.train import pseudo
from vitcli.train.plan import Plan, Request
from vitcli.train.pseudo import PseudoLabels, chosen, targets_of
from vitcli.train.runlog import Log
from vitcli.train.session import Session
from vitcli.train.signals import Signals

COLOURS = ("red", "green", "blue")

# --- filter and balance ------------------------------------------------------------------------------------


def said(rows: list[tuple[int, float]], classes: int = 3) -> NDArray[np.float32]:
    """Probabilities with so much on one class, and the rest spread evenly."""
    table = np.empty((len(rows), classes), np.float32)
    for index, (label, confidence) in enumerate(rows):
        table[index] = (1 - confidence) / (classes - 1)
        table[index, label] = confidence
    return table


def times(found: PseudoLabels) -> dict[int, int]:
    return {int(place): int((found.places == place).sum()) for place in np.unique(found.places)}


def test_those_below_the_threshold_are_left_out_and_the_surest_come_first() -> None:
    """Of class 0 four are sure enough and two are wanted; class 1 has one for two; class 2 none."""
    table = said([(0, 0.6), (1, 0.9), (0, 0.95), (0, 0.45), (2, 0.4), (0, 0.7), (0, 0.65)])
    found = chosen(table, PseudoConfig(threshold=0.5, images=2), 0)
    assert times(found) == {2: 1, 5: 1, 1: 2}
    assert found.places.tolist() == [2, 5, 1, 1] and found.copies.tolist() == [0, 0, 0, 1]


def test_the_threshold_itself_is_sure_enough() -> None:
    table = np.array([[0.5, 0.25, 0.25], [0.25, 0.375, 0.375]], np.float32)
    assert times(chosen(table, PseudoConfig(threshold=0.5, balance=False), 0)) == {0: 1}
    assert times(chosen(table, PseudoConfig(threshold=0.375, balance=False), 0)) == {0: 1, 1: 1}
    with pytest.raises(DataError, match="sure of none of the 2"):
        chosen(table, PseudoConfig(threshold=0.6), 0)


def test_without_a_number_every_class_has_the_mean_of_what_is_kept() -> None:
    """5, 2 and 0 images: of two classes 3.5 each, rounded to even."""
    table = said([(0, 0.9 - i / 100) for i in range(5)] + [(1, 0.9), (1, 0.8)])
    found = chosen(table, PseudoConfig(threshold=0.5), 0)
    counts = times(found)
    assert {place: counts[place] for place in (0, 1, 2, 3)} == dict.fromkeys(range(4), 1) and 4 not in counts
    assert (counts[5], counts[6]) == (2, 2)


def test_without_balance_each_comes_once_in_its_place() -> None:
    table = said([(0, 0.9), (1, 0.2), (1, 0.9), (0, 0.8)])
    found = chosen(table, PseudoConfig(threshold=0.5, balance=False, images=7), 0)
    assert found.places.tolist() == [0, 2, 3] and not found.copies.any()


def test_the_last_repetition_of_a_class_is_of_a_part_by_chance() -> None:
    """Three images for five: each once, and two of them, chosen by the seed, once more."""
    table = said([(0, 0.9), (0, 0.8), (0, 0.7)], classes=2)
    seen = set()
    for seed in range(40):
        counts = times(chosen(table, PseudoConfig(images=5), seed))
        assert sorted(counts.values()) == [1, 2, 2]
        assert counts == times(chosen(table, PseudoConfig(images=5), seed))
        seen.add(min(counts, key=lambda place: counts[place]))
    assert seen == {0, 1, 2}, "not the surest alone"


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.floats(0.26, 1)), min_size=1, max_size=40),
    unreadable=st.sets(st.integers(0, 39), max_size=4),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    images=st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_every_class_has_as_many_images_the_surest_or_all_as_often_as_each_other(
    rows: list[tuple[int, float]], unreadable: set[int], threshold: float, images: int, seed: int
) -> None:
    table = said(rows, classes=4)
    gone = [place for place in unreadable if place < len(rows)]
    table[gone] = np.nan
    sure: dict[int, list[int]] = defaultdict(list)
    for place, line in enumerate(table):
        if place not in gone and line.max() >= np.float32(threshold):
            sure[int(line.argmax())].append(place)
    settings = PseudoConfig(threshold=threshold, images=images)
    if not sure:
        with pytest.raises(DataError):
            chosen(table, settings, seed)
        return
    found = chosen(table, settings, seed)
    counts = times(found)
    wanted = images or round(sum(map(len, sure.values())) / len(sure))
    for members in sure.values():
        own = [counts.get(place, 0) for place in members]
        assert sum(own) == wanted
        if len(members) >= wanted:
            taken = sorted((table[p].max() for p in members if counts.get(p)), reverse=True)
            assert set(own) <= {0, 1} and taken == sorted((table[p].max() for p in members), reverse=True)[:wanted]
        else:
            assert set(own) <= {wanted // len(members), -(-wanted // len(members))}
    assert set(counts) <= set(itertools.chain(*sure.values()))
    for place in counts:
        assert sorted(found.copies[found.places == place]) == list(range(counts[place]))


def test_students_learn_the_probabilities_or_the_most_likely_class() -> None:
    table = said([(2, 0.5), (0, 0.9)])
    table = np.concatenate([table, np.full((1, 3), np.nan, np.float32)])
    found = chosen(table, PseudoConfig(), 0)
    assert np.array_equal(targets_of(found, PseudoConfig(labels="soft"))[:2], table[:2])
    assert np.array_equal(targets_of(found, PseudoConfig(labels="hard"))[:2], [[0, 0, 1], [1, 0, 0]])
    assert np.isfinite(targets_of(found, PseudoConfig())).all()
    assert str(found).startswith("pseudo-labels: 2 of 3 images, 0 to 1 a class, seen as 2")


# --- of real images ----------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "model.name": "ViT-w16d2h2/4",
    "model.img_size": (12, 12),
    "model.pool": "mean",
    "train.steps": 6,
    "train.batch_size": 16,
    "train.low_res": 0.0,
    "run.threads": 1,
    "run.device": "cpu",
    "run.precision": "fp32",
    "data.workers": 0,
}
PLAIN: dict[str, Any] = {
    "augment.crop": "none",
    "augment.flip": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.randaugment_layers": 0,
    "augment.erase": 0.0,
}
"""Without augmentation."""


@pytest.fixture(scope="module")
def teacher(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It knows its colours, but is not sure of all."""
    folder, report = train_run(
        "pretrain", data=str(class_folders), out=str(tmp_path_factory.mktemp("teacher") / "run"), model="ViT-w16d2h2/4",
        steps=60, batch_size=16, device="cpu", precision="fp32", model__img_size=(12, 12), optim__name="adamw",
        run__threads=1, data__workers=0, train__low_res=0.0,
    )  # fmt: skip
    assert report["eval"]["top1"] > 0.8
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def pool(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty new images under labels that are wrong, among copies of all images that are trained and reported on."""
    root = tmp_path_factory.mktemp("pool") / "pool"
    for index in range(60):
        colour = index % 3
        folder = root / "train" / ("nonsense" if index < 40 else COLOURS[(colour + 1) % 3])
        folder.mkdir(parents=True, exist_ok=True)
        draw_image(colour, 5000 + index, noise=60).save(folder / f"new-{index:03}.png")
    for split in ("train", "test"):
        for path in sorted((class_folders / split).glob("*/*.png")):
            shutil.copy(path, root / "train" / "nonsense" / f"{split}-{path.parent.name}-{path.name}")
    (root / "test" / "nonsense").mkdir(parents=True)
    draw_image(0, 9000).save(root / "test" / "nonsense" / "not-trained-on.png")
    return root


def planned(data: Path, pool: Path, teacher: Path, **values: Any) -> Plan:
    asked = SMALL | PLAIN | {"data.source": str(data), "data.unlabelled": str(pool), "train.teacher": str(teacher)}
    return api.plan(Request("pretrain", asked | {name.replace("__", "."): value for name, value in values.items()}))


Opened = Callable[..., Session]


@pytest.fixture
def opened(class_folders: Path, pool: Path, teacher: Path, tmp_path: Path) -> Opened:
    """A session of a run that has not begun."""
    number = itertools.count()

    def make(**values: Any) -> Session:
        folder = tmp_path / f"run-{next(number)}"
        (folder / "state").mkdir(parents=True)
        data, images, of = (
            values.pop(name, own) for name, own in (("data", class_folders), ("pool", pool), ("by", teacher))
        )
        return Session(planned(data, images, of, **values), folder, Log([]), Signals())

    return make


def epoch_of(session: Session) -> list[Batch]:
    """The whole batches of the first epoch."""
    return [session.loader.batch(step) for step in range(len(session.loader.drawn.positions) // 16)]


def names_of(session: Session) -> list[str]:
    unlabelled = session.plan.unlabelled
    assert unlabelled is not None
    return [Path(path).name for _, path in unlabelled.blobs(np.arange(len(unlabelled)))]


def opinion_by_hand(teacher: Path, files: list[Path]) -> NDArray[np.float64]:
    """softmax of the teacher's logits of whole images, and their mirror images where it looks at these, as red, green, blue."""
    described, model = api.load(str(teacher))
    bytes_ = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    pixels = (bytes_ / 255 - np.array(described.eval.mean)) / np.array(described.eval.std)
    images, model = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float(), model.eval()
    with torch.no_grad():
        seen = [model(view).double().numpy() for view in (images, images.flip(3))[: described.eval.views]]
    logits = np.mean(seen, axis=0)
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = [c.name for c in described.classes]
    return likely[:, [names.index(name) for name in COLOURS]]


def test_images_that_are_trained_or_reported_on_are_not_in_the_pool(opened: Opened, class_folders: Path) -> None:
    session = opened()
    plan, names = session.plan, names_of(session)
    assert sorted(names) == [f"new-{index:03}.png" for index in range(60)]
    assert plan.unlabelled is not None and plan.train is not None and plan.held_out is not None
    assert plan.unlabelled.labels is None
    pool = set(plan.unlabelled.digests().tolist())
    assert not pool & {*plan.train.digests().tolist(), *plan.held_out.digests().tolist()}
    assert any("60 images" in note and "without 96 that are in --data" in note for note in plan.notes)
    assert plan.images == 72 + 60


@pytest.mark.parametrize("dev", [0.0, 0.25])
def test_nor_where_the_held_out_part_is_carved_out_of_the_data(
    dev: float, class_folders: Path, teacher: Path, tmp_path: Path
) -> None:
    """The pool is the data's own folder with some new images: neither the part that is reported on nor the dev part."""
    data, pool = tmp_path / "data", tmp_path / "pool"
    shutil.copytree(class_folders / "train", data)
    shutil.copytree(data, pool / "train" / "x", dirs_exist_ok=True)
    (pool / "test" / "x").mkdir(parents=True)
    draw_image(0, 9000).save(pool / "test" / "x" / "0.png")
    for index in range(9):
        draw_image(index % 3, 7000 + index).save(pool / "train" / "x" / f"new-{index}.png")
    plan = planned(data, pool, teacher, train__dev=dev)
    assert plan.unlabelled is not None and len(plan.unlabelled) == 9
    assert plan.held_out is not None and len(plan.held_out) > 6
    assert (plan.dev is not None) == (dev > 0)
    for part in (plan.held_out, plan.dev):
        assert part is None or not np.isin(part.digests(), plan.unlabelled.digests()).any()


def test_a_pool_without_new_images_is_refused(class_folders: Path, teacher: Path) -> None:
    with pytest.raises(DataError, match="no images beside"):
        planned(class_folders, class_folders, teacher)


def test_pseudo_labels_are_the_teacher_s_probabilities_without_noise(opened: Opened, pool: Path, teacher: Path) -> None:
    session = opened(augment__crop="resized", augment__flip=0.5, augment__mixup=0.8)
    names = names_of(session)
    stored = load_file(session.folder / pseudo.FILE)["probabilities"]
    files = [next(pool.glob(f"train/*/{name}")) for name in names]
    own = [c.name for c in session.plan.classes]
    expected = opinion_by_hand(teacher, files)[:, [COLOURS.index(name) for name in own]]
    assert np.allclose(stored, expected, atol=1e-5)
    assert stored.argmax(1).tolist() != [own.index("red")] * 60
    right = [own[label] == COLOURS[int(name[4:7]) % 3] for label, name in zip(stored.argmax(1), names, strict=True)]
    assert np.mean(right) > 0.6, "by what is on them, not by the folder"


@pytest.mark.parametrize(
    ("labels", "smoothing", "mixing"),
    [
        ("soft", 0.0, ""),
        ("soft", 0.1, ""),
        ("hard", 0.1, ""),
        ("soft", 0.1, "mixup"),
        ("hard", 0.1, "mixup"),
        ("soft", 0.1, "cutmix"),
    ],
)
def test_labelled_and_pseudo_labelled_images_have_targets_side_by_side(
    labels: str, smoothing: float, mixing: str, opened: Opened, class_folders: Path, pool: Path, teacher: Path
) -> None:
    """Smoothing is of labels alone, not of what a teacher said; mixtures of any two are mixed in the same parts."""
    settings: dict[str, Any] = {"pseudo.labels": labels, "train.label_smoothing": smoothing}
    session = opened(**settings, **({f"augment.{mixing}": 0.8} if mixing else {}))
    plain = opened(**settings)
    own = [c.name for c in session.plan.classes]
    order = [COLOURS.index(name) for name in own]
    train, names = session.plan.train, names_of(session)
    assert train is not None and train.labels is not None and session.plan.unlabelled is not None
    pooled = dict(zip(session.plan.unlabelled.rows.tolist(), names, strict=True))
    truth = dict(zip(train.rows.tolist(), session.plan.outputs[train.labels].tolist(), strict=True))
    files = {name: next(pool.glob(f"train/*/{name}")) for name in names}
    opinions = dict(zip(names, opinion_by_hand(teacher, [files[name] for name in names])[:, order], strict=True))
    kinds = [0, 0]
    for step in range(5):
        batch, before = session.loader.batch(step), plain.loader.batch(step)
        assert torch.equal(batch.ids, before.ids) and batch.targets is not None and before.targets is not None
        targets = np.zeros((16, 3))
        for row, (identity, image) in enumerate(zip(batch.ids.tolist(), before.images, strict=True)):
            if identity < len(train.table):
                targets[row] = smoothing / 3
                targets[row, truth[identity]] += 1 - smoothing
                path = Path(train.blobs(np.flatnonzero(train.rows == identity))[0][1])
                kinds[0] += 1
            else:
                name = pooled[identity - len(train.table)]
                path, likely = files[name], opinions[name]
                targets[row] = likely if labels == "soft" else np.eye(3)[likely.argmax()]
                kinds[1] += 1
            seen = np.rint((image.numpy().transpose(1, 2, 0) * 0.5 + 0.5) * 255)
            assert np.array_equal(seen, np.asarray(Image.open(path))), "the image is the one that has this target"
        assert np.allclose(before.targets.numpy(), targets, atol=1e-5)
        weight = float(batch.weight)
        assert (weight != 1) == bool(mixing) or mixing == "cutmix"
        mixed = weight * targets + (1 - weight) * np.roll(targets, 1, axis=0)
        assert np.allclose(batch.targets.numpy(), mixed, atol=1e-5)
        if mixing == "mixup":
            pixels = weight * before.images + (1 - weight) * before.images.roll(1, 0)
            assert torch.allclose(batch.images, pixels, atol=1e-5)
        # the loss is cross-entropy with these
        with torch.no_grad():
            model = session.trainer.model.eval()
            found = session.trainer.objective(model, batch, session.trainer.objective.draw(model, batch, 0, 0)).loss
            logits = model(batch.images).double().numpy()
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        assert float(found) == pytest.approx(-float((mixed * logs).sum(1).mean()), rel=1e-4)
    assert min(kinds) > 15, "both kinds are in these batches"


def test_the_sigmoid_loss_takes_distributions_too(opened: Opened) -> None:
    session = opened(train__loss="sigmoid", train__label_smoothing=0.1)
    batch, model = session.loader.batch(0), session.trainer.model.eval()
    assert batch.targets is not None
    with torch.no_grad():
        found = session.trainer.objective(model, batch, session.trainer.objective.draw(model, batch, 0, 0)).loss
        logits = model(batch.images).double().numpy()
    t, p = batch.targets.double().numpy(), 1 / (1 + np.exp(-logits))
    assert float(found) == pytest.approx(-float((t * np.log(p) + (1 - t) * np.log(1 - p)).sum(1).mean()), rel=1e-4)


def test_an_epoch_has_every_image_as_often_as_it_was_chosen(opened: Opened) -> None:
    session = opened(pseudo__images=40, train__batch_size=1)
    drawn = session.loader.drawn
    assert len(drawn.positions) == 72 + 3 * 40
    table = load_file(session.folder / pseudo.FILE)["probabilities"]
    expected = chosen(table, PseudoConfig(images=40), 0)
    counts: dict[int, int] = defaultdict(int)
    for step in range(len(drawn.positions)):
        counts[int(session.loader.batch(step).ids[0])] += 1
    first, second = session.plan.train, session.plan.unlabelled
    assert first is not None and second is not None
    assert all(counts.pop(row) == 1 for row in first.rows.tolist())
    assert counts == {len(first.table) + int(second.rows[place]): n for place, n in times(expected).items()}


def test_copies_of_an_image_are_augmented_differently(opened: Opened) -> None:
    """In one epoch, where the address of an image alone would give the same crop."""
    session = opened(pseudo__images=60, augment__crop="resized", augment__jitter=(0.4, 0.4, 0.4, 0.0))
    first = session.plan.train
    assert first is not None
    seen: dict[int, list[torch.Tensor]] = defaultdict(list)
    for batch in epoch_of(session):
        for identity, image in zip(batch.ids.tolist(), batch.images, strict=True):
            seen[identity].append(image)
    repeated = [views for identity, views in seen.items() if identity >= len(first.table) and len(views) > 1]
    assert len(repeated) > 10
    for views in repeated:
        assert all(not torch.equal(a, b) for a, b in itertools.combinations(views, 2))


def test_repeats_of_copies_are_different_too(opened: Opened) -> None:
    session = opened(
        pseudo__images=60, augment__crop="resized", augment__repeats=2, augment__jitter=(0.4, 0.4, 0.4, 0.0)
    )
    images = torch.cat([batch.images for batch in epoch_of(session)])
    assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_labels_of_the_pool_are_not_looked_at(opened: Opened, pool: Path, tmp_path: Path) -> None:
    """The same images under other ones: as many are learned from, with the same targets."""
    renamed = tmp_path / "renamed"
    for split in ("train", "test"):
        for index, path in enumerate(sorted((pool / split).glob("*/*.png"))):
            folder = renamed / split / (COLOURS[index % 3] if split == "train" else "red")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.name)
    found, learned = [], []
    for session in (opened(), opened(pool=renamed)):
        table, names = load_file(session.folder / pseudo.FILE)["probabilities"], names_of(session)
        found.append(dict(zip(names, table.tolist(), strict=True)))
        drawn = session.loader.drawn
        places = drawn.positions[drawn.positions >= drawn.start] - drawn.start
        learned.append(sorted(names[place] for place in places))
        assert [c.name for c in session.plan.classes] == sorted(COLOURS)
    assert found[0] == found[1] and learned[0] == learned[1]


@pytest.mark.parametrize("where", ["pool", "both"])
def test_an_unreadable_image_of_the_pool_is_left_out(
    where: str, class_folders: Path, pool: Path, teacher: Path, tmp_path: Path, in_process: Vit
) -> None:
    broken, data = tmp_path / "broken", tmp_path / "data"
    shutil.copytree(pool, broken)
    shutil.copytree(class_folders, data)
    whole = sorted(broken.glob("train/nonsense/new-*.png"))[5].read_bytes()
    (broken / "train" / "nonsense" / "aaa.png").write_bytes(whole[: len(whole) // 2])
    (broken / "train" / "nonsense" / "zzz.png").write_bytes(b"no picture")
    if where == "both":
        (data / "train" / "red" / "half.png").write_bytes(whole[: len(whole) // 2 + 7])
    words = ["pretrain", "--data", data, "--unlabelled", broken, "--teacher", teacher, "--json", "--out", "run"]
    for name, value in (SMALL | PLAIN).items():
        words += ["--set", f"{name}={value}".replace("(12, 12)", "12")]
    refused = in_process(*words)
    assert refused.code == 3 and "cannot read image" in refused.err, refused.err
    done = in_process(*words, "--set", "data.on_bad_image=skip")
    assert done.code == 0, done.err
    assert done.json["unreadable"] == {"unlabelled": 2} | ({"train": 1} if where == "both" else {})
    table = load_file(Path("run") / pseudo.FILE)["probabilities"]
    assert len(table) == 62 and int(np.isnan(table).all(1).sum()) == 2
    assert not np.isin(chosen(table, PseudoConfig(), 0).places, np.flatnonzero(np.isnan(table[:, 0]))).any()


# --- commands ----------------------------------------------------------------------------------------------


def test_finetune_takes_what_it_starts_from_as_the_teacher(
    class_folders: Path, pool: Path, teacher: Path, tmp_path: Path
) -> None:
    asked = {k: v for k, v in SMALL.items() if not k.startswith("model.")} | {"data.unlabelled": str(pool)}
    asked |= {"data.source": str(class_folders)}
    plan = api.plan(Request("finetune", asked, init=str(teacher)))
    assert plan.config.train.teacher == str(teacher.resolve()) and plan.config.train.teacher_digest
    other = tmp_path / "other.safetensors"
    shutil.copy(teacher, other)
    plan = api.plan(Request("finetune", asked | {"train.teacher": str(other)}, init=str(teacher)))
    assert plan.config.train.teacher == str(other)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "needs a teacher"),
        (("--teacher", "TEACHER", "--objective", "mae"), "objective = mae"),
        (("--teacher", "TEACHER", "--set", "train.loss=bce", "--set", "train.label_smoothing=0"), "bce"),
    ],
)
def test_what_does_not_go_with_a_pool_is_refused(
    words: tuple[str, ...], said: str, class_folders: Path, pool: Path, teacher: Path, in_process: Vit
) -> None:
    words = tuple(str(teacher) if word == "TEACHER" else word for word in words)
    size = ("--model", "ViT-w16d2h2/4", "--img-size", "12", "--steps", "2", "--out", "run")
    refused = in_process("pretrain", "--data", class_folders, "--unlabelled", pool, *size, *words)
    assert refused.code == 2 and said in refused.err, refused.err
    assert not Path("run").exists()


def test_a_pool_that_changed_between_two_sessions_is_refused(
    class_folders: Path, pool: Path, teacher: Path, tmp_path: Path
) -> None:
    """As many images, but not the same: what the teacher said is of the old ones."""
    own = tmp_path / "pool"
    shutil.copytree(pool, own)
    words: list[object] = ["pretrain", "--data", class_folders, "--unlabelled", own, "--teacher", teacher]
    words += ["--json", "--out", "run"]
    for name, value in (SMALL | PLAIN).items():
        words += ["--set", f"{name}={value}".replace("(12, 12)", "12")]
    stop = (
        "from vitcli.train import loop\nimport signal\nstep, calls = loop.train_step, [0]\n"
        "def stop(*a):\n    calls[0] += 1\n    if calls[0] == 2: signal.raise_signal(signal.SIGTERM)\n"
        "    return step(*a)\nloop.train_step = stop"
    )
    stopped = run(words, tmp_path, before=stop)
    assert stopped.code == 75, stopped.err
    for index, path in enumerate(sorted(own.glob("train/nonsense/new-*.png"))):
        draw_image((index + 1) % 3, 8000 + index).save(path)
    refused = run(words, tmp_path)
    assert refused.code == 2 and "unlabelled" in refused.err, (refused.code, refused.err)
