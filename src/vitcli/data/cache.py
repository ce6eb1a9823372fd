"""The one working copy of the images: decoded once into a uint8 array on disk at a working size, and read row by row.

The page cache of the operating system is the memory store. Where the disk has no room, images are decoded
whenever they are read, to the same pixels, so that a result never depends on it. A cache is written beside its
place and renamed, so readers see a whole one or none, and two writers do no harm.

It is held open while it is used, so that whoever deletes it takes nothing away. It is read, not mapped: what is cut off
in place would end a process that maps it. Every image has a checksum; one that is not as it was written is decoded anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitcli import files
from vitcli.config import AugmentConfig, DataConfig, Size
from vitcli.config_values import RGB
from vitcli.data import decode
from vitcli.data.decode import View
from vitcli.data.decoders import DecodeMany, decode_here, mapped
from vitcli.data.split import Rows, Split
from vitcli.errors import DataError, ResourceError
from vitcli.files import cache_home
from vitcli.plain import read_at, write_at
from vitcli.progress import Progress, silent

Pixels = NDArray[np.uint8]

CROP_MARGIN = 8 / 7
"""Side of the working copy over the training size, where crops are taken from it: 256 for 224."""
CHUNK = 16
FORMAT = 2
"""Raised whenever the files of a cache change. It is part of a cache's name, so versions of vit do not take each other's."""
_BAD_FLOOR, _BAD_PART = 10, 0.01


def working_view(native: Size, uniform: bool, img_size: Size, augment: AugmentConfig, channels: int = RGB) -> View:
    """The working copy for training: squashed to the training size and the margin for crops, never above the native size.

    A crop is a box in parts of the image's sides, so a squashed copy loses no shape, only resolution along
    the longer side. Small images of one size are kept as they are and enlarged as batches are made.
    """
    margin = {"random": augment.margin, "resized": CROP_MARGIN}.get(augment.crop, 1.0)
    wanted = (round(img_size[0] * margin), round(img_size[1] * margin))
    if uniform:
        wanted = (min(wanted[0], native[0]), min(wanted[1], native[1]))
    return View(wanted, "square", draft=True, channels=channels)


class Cached:
    """Decoded images on disk. `bad` are the positions that could not be read when they were decoded, with reasons."""

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        """Raises OSError, or ValueError and its like for what is not a whole cache of this shape."""
        self.folder, self.shape = folder, shape
        described = json.loads(_whole(folder / "images.json").read_text())
        if (described["format"], tuple(described["shape"])) != (FORMAT, shape):
            raise ValueError("another format or shape")
        self.bad = [(int(position), str(reason)) for position, reason in described["bad"]]
        self.sizes: NDArray[np.int32] = np.load(_whole(folder / "sizes.npy"))
        self._sums: NDArray[np.uint64] = np.load(_whole(folder / "sums.npy"))
        self._file = os.open(folder / "pixels.u8", os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        lengths = (os.fstat(self._file).st_size, self.sizes.shape, self._sums.shape)
        if lengths != (math.prod(shape), (shape[0], 2), (shape[0],)):
            raise ValueError("another size")

    def read(self, positions: Rows) -> tuple[Pixels, NDArray[np.bool_]]:
        """Pixels at positions, and whether each image's are those that were written."""
        pixels = np.empty((len(positions), *self.shape[1:]), np.uint8)
        size = math.prod(self.shape[1:])
        with contextlib.suppress(OSError):  # then what comes next is not what was written
            for position, image in zip(positions.tolist(), pixels, strict=True):
                read_at(self._file, image.data, position * size)
        return pixels, checksums(pixels) == self._sums[positions]

    def discard(self) -> None:
        """Delete it, unless another has been put in its place: the next command makes it anew."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._file), (self.folder / "pixels.u8").stat()):
                files.remove_folder(self.folder)


def _whole(path: Path) -> Path:
    """`path`. Raises ValueError where it has not the sha256 that it was written with."""
    fault = files.file_fault(path)
    if fault:
        raise ValueError(fault)
    return path


def checksums(pixels: Pixels) -> NDArray[np.uint64]:
    """A number an image, which any changed bit changes: the sum of its bytes, taken eight at a time."""
    flat = pixels.reshape(len(pixels), math.prod(pixels.shape[1:]))
    whole = flat.shape[1] // 8 * 8
    return flat[:, :whole].view(np.uint64).sum(1) + flat[:, whole:].sum(1, dtype=np.uint64)


@dataclass(eq=False, kw_only=True)
class Images:
    """Decoded images of a split. `valid` are the positions in the split that can be read, in order."""

    split: Split
    view: View
    config: DataConfig
    valid: Rows
    bad: list[tuple[int, str]]
    cached: Cached | None  # None decodes on every read
    damage: str = ""  # what was found of the cache while it was read

    def __len__(self) -> int:
        return len(self.valid)

    def read(self, positions: Rows) -> tuple[Pixels, NDArray[np.int32]]:
        """Pixels `[n, channels, height, width]` and original sizes `[n, 2]` at positions of the split. Raises DataError."""
        if self.cached is None:
            return self._decoded(positions)
        pixels, whole = self.cached.read(positions)
        if not whole.all():
            pixels[~whole], _ = self._decoded(positions[~whole])
            if not self.damage:
                self.damage = f"the decode cache {self.cached.folder} was damaged, and is made anew the next time; "
                self.damage += "until then images are decoded as they are read"
                self.cached.discard()
        return pixels, self.cached.sizes[positions]

    @property
    def is_cached(self) -> bool:
        """Whether each image was decoded once for all."""
        return self.cached is not None

    def ids(self, positions: Rows) -> Rows:
        """Their rows in the table."""
        return self.split.rows[positions]

    def _decoded(self, positions: Rows) -> tuple[Pixels, NDArray[np.int32]]:
        pixels = np.empty((len(positions), *self.view.shape), np.uint8)
        sizes = np.empty((len(positions), 2), np.int32)
        chunks = [slice(i, i + CHUNK) for i in range(0, len(positions), CHUNK)]
        faults = mapped(
            lambda part, decode_many: _decode_into(
                self.split, positions[part], self.view, self.config, pixels[part], sizes[part], decode_many
            ),
            chunks,
            self.config.workers,
        )
        with contextlib.closing(faults):
            for fault in faults:
                for position, reason in fault:
                    raise bad_image(self.split, position, reason)
        return pixels, sizes


def bad_image(split: Split, position: int, reason: str) -> DataError:
    return DataError(
        f"cannot read image {split.describe(position)}: {reason}",
        "repair or remove it, or go on without with --set data.on_bad_image=skip",
    )


def _decode_into(
    split: Split,
    positions: Rows,
    view: View,
    config: DataConfig,
    pixels: Pixels,
    sizes: NDArray[np.int32],
    decode_many: DecodeMany = decode_here,
    opened: NDArray[np.bool_] | None = None,
) -> list[tuple[int, str]]:
    """Fill `pixels` and `sizes`; returns the positions that cannot be read, with reasons.

    Raises DataError for one that could be `opened` before and now cannot: that passes, and says nothing of the image.
    """
    faults, found = [], split.blobs(positions)
    for position, (blob, _) in zip(positions.tolist(), found, strict=True):
        if blob is None and opened is not None and opened[position]:
            raise DataError(
                f"image {split.describe(position)} could be opened a moment ago and cannot now",
                "is its disk there, and not too many files open? run the command again",
            )
    decoded = iter(decode_many([blob for blob, _ in found if blob is not None], view, config.max_megapixels))
    for index, (blob, path) in enumerate(found):
        missing = f"{path} cannot be opened" if path else "no image"
        result = missing if blob is None else next(decoded)
        if isinstance(result, str):
            pixels[index], sizes[index] = 0, view.size
            faults.append((int(positions[index]), result))
        else:
            pixels[index], sizes[index] = result
    return faults


def _key(split: Split, view: View, config: DataConfig, progress: Progress) -> str:
    """Of what the images are, in order, and how they are decoded: whatever else is called by the same name has another."""
    text = f"{FORMAT}|{view}|{config.max_megapixels}|{decode.VERSION}|"
    text += f"{view.channels}|" if view.channels != RGB else ""
    return hashlib.sha256(text.encode() + split.digests(progress).tobytes()).hexdigest()[:32]


def open_images(
    split: Split,
    view: View,
    config: DataConfig,
    progress: Progress = silent,
    where: Literal["auto", "cached", "decode"] = "auto",
) -> Images:
    """The working copy of a split, decoded now unless a cache has it; `cached` insists on one.

    Raises DataError at the first image that cannot be read, or with data.on_bad_image=skip where more than
    one in a hundred (and more than ten) cannot, and ResourceError.
    """
    cached = None if where == "decode" else _cached(split, view, config, progress, where == "cached")
    if cached is None:
        bad = _scan(split, view, config, progress)
    else:
        bad = cached.bad
        _check_bad(split, bad, config)
    return Images(split=split, view=view, config=config, valid=_valid(split, bad), bad=bad, cached=cached)


def _cached(split: Split, view: View, config: DataConfig, progress: Progress, insists: bool) -> Cached | None:
    """The cache, made now where there is none; None where no disk has room for it. Raises DataError, ResourceError."""
    shape = (len(split), *view.shape)
    home = cache_home() / "images"
    name = _key(split, view, config, progress)
    found = _open(home / name, shape)
    files.remove_dead(home)
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        if not files.is_writable(home):
            with contextlib.suppress(OSError):
                home = stack.enter_context(files.temporary_folder(Path(tempfile.gettempdir()) / "vit-cache"))
        if not insists and not (files.is_writable(home) and _has_room(home, math.prod(shape))):
            return None
        try:
            return _build(home / name, split, view, config, shape, progress)
        except ResourceError as error:
            reason = error.__context__
            if not isinstance(reason, OSError):
                raise
            if reason.errno in files.FULL and not insists:
                return None  # another was faster, or what the user may have is less than what the disk has
            raise ResourceError(error.message, "name another folder in VIT_CACHE") from None


def _valid(split: Split, bad: list[tuple[int, str]]) -> Rows:
    return np.setdiff1d(np.arange(len(split)), [position for position, _ in bad])


def _check_bad(split: Split, bad: list[tuple[int, str]], config: DataConfig) -> None:
    if not bad:
        return
    if config.on_bad_image == "error":
        raise bad_image(split, *bad[0])
    if len(bad) > max(_BAD_FLOOR, _BAD_PART * len(split)) or len(bad) == len(split):
        position, reason = bad[0]
        raise DataError(
            f"{len(bad)} of {len(split)} images cannot be read, the first is {split.describe(position)}: {reason}",
            f"at most {_BAD_PART:.0%}, or {_BAD_FLOOR} images, are skipped",
        )


def _has_room(home: Path, size: int) -> bool:
    """Whether the disk keeps a tenth and a gigabyte free beside a cache of `size` bytes."""
    try:
        free = files.free_bytes(home)
    except OSError:
        return False
    return size <= 0.9 * free - 2**30


def _open(folder: Path, shape: tuple[int, ...]) -> Cached | None:
    try:
        return Cached(folder, shape)
    except (OSError, ValueError, KeyError, TypeError, EOFError, RecursionError):
        return None


def _build(
    folder: Path, split: Split, view: View, config: DataConfig, shape: tuple[int, ...], progress: Progress
) -> Cached:
    bad: list[tuple[int, str]] = []

    def fill(temporary: Path) -> None:
        size = math.prod(shape[1:])
        sizes, sums = np.zeros((len(split), 2), np.int32), np.zeros(len(split), np.uint64)
        parts = [slice(i, min(i + CHUNK, len(split))) for i in range(0, len(split), CHUNK)]
        opened = split.digests() != 0

        def work(part: slice, decode_many: DecodeMany) -> list[tuple[int, str]]:
            positions = np.arange(part.start, part.stop)
            pixels = np.empty((len(positions), *shape[1:]), np.uint8)
            faults = _decode_into(split, positions, view, config, pixels, sizes[part], decode_many, opened)
            sums[part] = checksums(pixels)
            write_at(file.fileno(), pixels.data.cast("B"), part.start * size)
            return faults

        with (temporary / "pixels.u8").open("wb") as file:
            _reserve(file.fileno(), math.prod(shape))
            with contextlib.closing(mapped(work, parts, config.workers)) as done:
                for index, faults in enumerate(done):
                    bad.extend(faults)
                    progress("decoding", min((index + 1) * CHUNK, len(split)), len(split))
                    if faults and config.on_bad_image == "error":
                        raise bad_image(split, *faults[0])
        np.save(temporary / "sizes.npy", sizes)
        np.save(temporary / "sums.npy", sums)
        (temporary / "images.json").write_text(json.dumps({"format": FORMAT, "shape": shape, "bad": bad}))

    if folder.is_dir():
        files.remove_folder(folder)  # damaged
    with files.disk_errors(folder, math.prod(shape)):
        try:
            files.write_folder(folder, fill, math.prod(shape))
        except OSError:
            if not folder.is_dir():
                raise
            # another process was first, with the same pixels
    cached = _open(folder, shape)
    if cached is None:
        raise DataError(f"the decode cache {folder} was removed while it was made", "run the command again")
    return cached


def _reserve(descriptor: int, size: int) -> None:
    """Space that the disk really has, so that one that is full says so before anything is decoded."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)


def _scan(split: Split, view: View, config: DataConfig, progress: Progress) -> list[tuple[int, str]]:
    """With data.on_bad_image=skip and no cache: a pass that only finds what cannot be read."""
    if config.on_bad_image == "error":
        return []
    bad = []
    for start in range(0, len(split), CHUNK):
        positions = np.arange(start, min(start + CHUNK, len(split)))
        pixels = np.empty((len(positions), *view.shape), np.uint8)
        bad += _decode_into(split, positions, view, config, pixels, np.empty((len(positions), 2), np.int32))
        progress("checking", int(positions[-1]) + 1, len(split))
    _check_bad(split, bad, config)
    return bad
