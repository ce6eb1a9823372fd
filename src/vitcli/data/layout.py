"""From the paths of image files to splits and classes: class folders, split folders of class folders, flat folders.

Nothing here opens a file. What a name does not decide is an error, what is left out is said.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitcli.classes import fold, spelled_as
from vitcli.data.arrays import ARRAY_ENDING
from vitcli.data.decode import IMAGE_ENDINGS
from vitcli.errors import DataError
from vitcli.text import unicode

Parts = tuple[str, ...]
"""A path below the root, part by part; the last is the file."""

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "trainval": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "eval": "test",
    "evaluation": "test",
    "holdout": "test",
}
"""What a word of a folder's, a file's or a split's name says it is."""
_FILLERS = frozenset(
    {"set", "sets", "data", "dataset", "split", "image", "images", "img", "imgs", "photos", "pictures"}
)
"""Words that say nothing beside a split's."""
_PARTS = frozenset({"fold", "part", "batch", "shard", "chunk", "subset", "cv"})
"""Words of folders that are parts of a whole and no classes: fold1, batch_2."""


def words_of(name: str) -> list[str]:
    """The words of a name: of `seg_train2017` seg and train, of `TestSet` test and set."""
    return re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())


@dataclass(frozen=True)
class Meaning:
    """What a folder's name says of splits: the split, and the words beside it."""

    split: str
    rest: tuple[str, ...]


def meaning_of(name: str) -> Meaning | None:
    """The one split that the words of a name say; None where they say none or several."""
    words = words_of(name)
    said = [word for word in words if word in SPLIT_WORDS]
    splits = {SPLIT_WORDS[word] for word in said}
    if said == ["train", "val"]:
        splits = {"train"}
    if len(splits) != 1:
        return None
    return Meaning(splits.pop(), tuple(w for w in words if w not in SPLIT_WORDS and w not in _FILLERS))


def split_of(path: str) -> str:
    """The split that a word of a file's name, or of its nearest folder, says; else empty."""
    for part in reversed(re.split(r"[/\\]", path)):
        meaning = meaning_of(part)
        if meaning is not None:
            return meaning.split
    return ""


@dataclass
class Arranged:
    """Images by split, as (number, class, path below the class); the class is empty where there is none."""

    splits: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    class_folders: list[Parts] = field(default_factory=list)  # where a class folder may lie


def arrange(what: str, paths: Sequence[Parts]) -> Arranged:
    """Which split and class each image has. Raises DataError where a name may be either, or an image has no class."""
    shift = 0
    while paths and _is_wrapper(what, [p[shift:] for p in paths]):
        shift += 1
    below = _splits_first([p[shift:] for p in paths])
    wrapper = paths[0][:shift] if paths else ()
    splits, left_out = _split_folders(what, below)
    found = Arranged()
    if left_out:
        counted = Counter(p[0] if len(p) > 1 else "." for p in below if p[0] in left_out or (splits and len(p) == 1))
        named = ", ".join(
            f"{'images beside the folders' if f == '.' else f + '/'} ({n:,})" for f, n in sorted(counted.items())
        )
        found.notes.append(f"left out, as no split: {named}")
    if not splits:
        found.notes += _not_told_apart(what, below)
        found.splits["train"] = _classed(what, list(enumerate(below)))
        found.class_folders = [wrapper]
    else:
        for split in sorted(dict.fromkeys(splits.values()), key=lambda s: s != "train"):
            known = {fold(label) for _, label, _ in found.splits.get("train", [])}
            tops = [top for top, s in splits.items() if s == split]
            members: list[tuple[int, Parts]] = []
            for top in tops:
                inside = [(i, p[1:]) for i, p in enumerate(below) if len(p) > 1 and p[0] == top]
                depth = _repeated(split, [p for _, p in inside], known)
                members += [(i, p[depth:]) for i, p in inside]
                if inside:
                    found.class_folders.append((*wrapper, top, *inside[0][1][:depth]))
            if len(tops) > 1:
                found.notes.append(f"split {split}: {', '.join(sorted(tops))} together")
            found.splits[split] = _classed(f"{what}, {tops[0]}", members)
    return _one_spelling(found)


def _is_wrapper(what: str, paths: Sequence[Parts]) -> bool:
    """Whether everything lies in one folder of folders that says nothing: an archive's own, say."""
    tops = {p[0] for p in paths}
    return len(tops) == 1 and all(len(p) > 2 for p in paths) and meaning_of(next(iter(tops))) is None


def _splits_first(paths: list[Parts]) -> list[Parts]:
    """cat/train/1.jpg and dog/test/2.jpg as train/cat/1.jpg and test/dog/2.jpg."""
    inner = {p[1]: meaning_of(p[1]) for p in paths if len(p) > 2}
    said = {m.split for m in inner.values() if m is not None and not m.rest}
    turned = len(said) > 1 and None not in inner.values() and all(len(p) > 2 and not meaning_of(p[0]) for p in paths)
    return [(p[1], p[0], *p[2:]) for p in paths] if turned else paths


def _split_folders(what: str, paths: Sequence[Parts]) -> tuple[dict[str, str], set[str]]:
    """The split of each top folder that is one, and the others; nothing where the folders are classes. Raises DataError.

    Split folders say a split and, beside it, the same words or none. Where they are not all there is, they hold class
    folders and are at least a training and a held-out one.
    """
    tops = sorted({p[0] for p in paths if len(p) > 1})
    meanings = {top: meaning for top in tops if (meaning := meaning_of(top)) is not None}
    others = {p[0] for p in paths} - meanings.keys()
    nested = {p[0] for p in paths if len(p) > 2}
    if not meanings:
        return {}, set()
    splits = {top: meaning.split for top, meaning in meanings.items()}
    alike = len({meaning.rest for meaning in meanings.values()}) == 1
    plain = alike and not next(iter(meanings.values())).rest
    roles, holds_classes = set(splits.values()), any(top in nested for top in splits)
    if not (others or holds_classes):
        _refuse_both(what, meanings)
    if not others and (plain or (alike and holds_classes and (len(roles) > 1))):
        return splits, set()
    if not plain and len(roles) == 1:
        return (splits, set()) if holds_classes and not others and len(splits) == 1 else ({}, set())
    if not holds_classes and not (plain and len(roles) > 1):
        return {}, set()  # folders of images, whatever they are called: a railway's train is a class
    if alike and "train" in roles and len(roles) > 1:
        return splits, others
    some = next(iter(meanings))
    beside = f", and {sorted(others)[0]!r} beside it like a class or something else" if others else ""
    raise DataError(
        f"{what}: {some!r} looks like a split ({splits[some]}){beside}",
        f"name the folder of one split (--data {what}/{some}), or rename: train/ and test/ are splits, other names classes",
    )


def _refuse_both(what: str, meanings: Mapping[str, Meaning]) -> None:
    """Raises DataError for folders of images that say a split and a class: train_cat, train_dog, test_cat, test_dog."""
    for top, meaning in meanings.items():
        twin = next((t for t, m in meanings.items() if m.rest == meaning.rest and m.split != meaning.split), None)
        if meaning.rest and twin is not None:
            raise DataError(
                f"{what}: {top!r} and {twin!r} say a split and something else, a class perhaps",
                "put the images in a folder a class within a folder a split, as train/cat and test/cat",
            )


def _not_told_apart(what: str, paths: Sequence[Parts]) -> list[str]:
    """A note on folders within class folders, which make no classes.

    Raises DataError where all are called parts of a whole and hold the same folders: those of fold1 and fold2 may be the classes.
    """
    inside: dict[str, set[str]] = {p[0]: set() for p in paths}
    for p in paths:
        if len(p) > 2:
            inside[p[0]].add(p[1])
    several = [top for top, names in inside.items() if len(names) > 1]
    if not several or len(inside) < 2:
        return []
    top = several[0]
    example = f"{top}/{min(inside[top])}"
    parts = all(_PARTS & set(words_of(name)) for name in inside)
    if parts and len({frozenset(names) for names in inside.values()}) == 1:
        raise DataError(
            f"{what}: its {len(inside)} folders are called as parts are, and each holds the same, such as {example}",
            "merge them, or name one of them; split folders are called train, validation and test",
        )
    shown = ", ".join(sorted(inside)[:4]) + (" …" if len(inside) > 4 else "")
    return [f"classes are the outer folders: {shown}; those within, such as {example}, are not told apart"]


def _repeated(split: str, paths: Sequence[Parts], known: Container[str]) -> int:
    """How many folders below a split's only say the split again, as in seg_train/seg_train/forest.

    One of images alone may be a class too: it is where the training images `known` have a class of that name.
    """
    depth = 0
    while paths and all(len(p) > depth + 1 for p in paths) and len({p[depth] for p in paths}) == 1:
        name = paths[0][depth]
        if fold(name) in known and all(len(p) == depth + 2 for p in paths):
            break
        meaning = meaning_of(name)
        if not (meaning is not None and meaning.split == split) and not set(words_of(name)) <= _FILLERS:
            break
        depth += 1
    return depth


def _classed(what: str, members: Sequence[tuple[int, Parts]]) -> list[tuple[int, str, str]]:
    """Each image with its class and what identifies it within. Raises DataError for an image beside class folders."""
    named = [(i, unicode(p[0]) if len(p) > 1 else "", "/".join(p[1:] if len(p) > 1 else p)) for i, p in members]
    loose = [rest for _, label, rest in named if not label]
    if loose and len(loose) < len(named):
        raise DataError(
            f"{loose[0]} lies beside the class folders of {what}, so it has no class",
            "move it into the folder of its class",
        )
    return named


def _one_spelling(found: Arranged) -> Arranged:
    """Classes of other splits as the training images spell them: café is café in either Unicode form, Cat is cat."""
    train = found.splits.get("train", [])
    known = sorted({label for _, label, _ in train if label})
    for split, items in found.splits.items():
        if split != "train" and known:
            spelled = spelled_as(sorted({label for _, label, _ in items if label}), known)
            found.splits[split] = [(i, spelled.get(label, label), rest) for i, label, rest in items]
    return found


# --- a folder on disk ----------------------------------------------------------------------------------------


UNREAD = "of what are pictures, make JPEG or PNG"
"""What to do about files of formats that are not read."""


@dataclass(frozen=True)
class Listing:
    """What lies below a folder, as paths from there, in order: hidden files and __MACOSX left out, links followed but for
    those that lead back up. Text, not Path objects, which would take most of the time of a large folder.
    """

    root: Path
    files: tuple[str, ...]
    folders: tuple[str, ...]
    unlisted: tuple[tuple[str, str], ...] = ()  # folders that cannot be looked into, and why

    def check(self) -> None:
        """Raises DataError where a folder cannot be looked into: its images, and its class, would be missing unsaid."""
        for folder, reason in self.unlisted:
            raise DataError(
                f"cannot look into {unicode(self.at(folder))}: {reason}",
                "may you read it? else move it out of the data",
            )

    @property
    def images(self) -> list[str]:
        """The files that are images by their names."""
        return images_among(self.files)

    def at(self, file: str) -> str:
        """Where a file lies."""
        return os.path.join(self.root, file)  # noqa: PTH118

    def left_out(self, known: Iterable[str] = ()) -> tuple[tuple[str, int], ...]:
        """The endings of files that are no images, and how many there are, the commonest first."""
        used = {*known, *self.images}
        others = [f.rpartition(os.sep)[2] for f in self.files if f not in used]
        endings = Counter("." + f.rpartition(".")[2].lower() if "." in f else "no ending" for f in others)
        return tuple(endings.most_common())

    def kinds(self, known: Iterable[str] = ()) -> str:
        """The commonest endings of files that are no images, each with its number."""
        return ", ".join(f"{n:,} {ending}" for ending, n in self.left_out(known)[:8])

    def unread(self, known: Iterable[str] = ()) -> list[str]:
        """A note on the files that are no images, by their endings; empty where there are none."""
        shown = self.kinds(known)
        return [f"left out, as no images that can be read: {shown}"] if shown else []

    def empty(self, class_folders: Sequence[Parts]) -> list[str]:
        """A note on folders without an image, but for those within a class."""
        folders = {parts_of(f)[:-1] for f in self.images}
        filled = {p[:n] for p in folders for n in range(len(p) + 1)}
        outer = [p for p in map(parts_of, self.folders) if p not in filled and p[:-1] in filled]
        bare = sorted(p for p in outer if not any(p[: len(r)] == r and len(p) > len(r) + 1 for r in class_folders))
        shown = ", ".join("/".join(p) + "/" for p in bare[:8]) + (f" and {len(bare) - 8} more" if len(bare) > 8 else "")
        return [f"no image in {shown}: left out"] if bare else []


def parts_of(path: str) -> Parts:
    return tuple(path.split(os.sep))  # noqa: PTH206


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def images_among(names: Sequence[str]) -> list[str]:
    """Those that end as images do; where there are none, those that end as arrays do, which may be anything beside pictures."""
    return [name for name in names if is_image(name)] or [n for n in names if n.lower().endswith(ARRAY_ENDING)]


_MOST_WAYS = 100
"""Ways by which links may lead into one folder: with two links a level, thirty levels would be a billion folders."""


def list_folder(root: Path) -> Listing:
    """Everything below `root`, by the rules that training, evaluation and prediction share. Raises DataError for links without end."""
    found: list[str] = []
    folders: list[str] = []
    unlisted: list[tuple[str, str]] = []
    waiting = [("", False)]
    ways: Counter[tuple[int, int]] = Counter()
    while waiting:
        below, by_link = waiting.pop()
        folder, prefix = Path(root, below), below + os.sep if below else ""
        try:
            if by_link:
                at = folder.stat()
                ways[at.st_dev, at.st_ino] += 1
                if ways[at.st_dev, at.st_ino] > _MOST_WAYS:
                    raise DataError(
                        f"{root}: links lead into {unicode(below)} in more than {_MOST_WAYS} ways", "remove such links"
                    )
            with os.scandir(folder) as entries:
                inside = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            unlisted.append((below, error.strerror or str(error)))
            continue
        for entry in inside:
            name = entry.name
            if not _is_folder(entry):
                found += [prefix + name] * (name not in ("Thumbs.db", "desktop.ini"))
            elif not name.startswith("__MACOSX") and not (entry.is_symlink() and _leads_up(root, folder, name)):
                folders.append(prefix + name)
                waiting.append((prefix + name, by_link or entry.is_symlink()))
    found.sort(key=parts_of)
    folders.sort(key=parts_of)
    return Listing(root, tuple(found), tuple(folders), tuple(sorted(unlisted)))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _leads_up(root: Path, folder: Path, name: str) -> bool:
    """Whether the link `name` leads to a folder on the way to itself, by other links too, and so for ever."""
    target = (folder / name).resolve()
    way = (place for place in (folder, *folder.parents) if place.is_relative_to(root))
    return any(place.resolve().is_relative_to(target) for place in way)


def shards_by_split(shards: Sequence[tuple[str, str]]) -> tuple[dict[str, list[str]], list[str]]:
    """Addresses by split of Parquet files given as (address, path below the root), and those that are left out: where
    some names say a split, one that says none is no training data.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for address, path in shards:
        groups[split_of(path)].append(address)
    unknown = groups.pop("", [])
    return (dict(groups), unknown) if groups else ({"train": unknown} if unknown else {}, [])
