"""The one working copy of the images: decoded once into a memory-mapped uint8 array at a working size.

The page cache of the operating system is the memory store. Where the disk has no room, images are decoded
whenever they are read, to the same pixels, so that a result never depends on it. A cache is written beside its
place and renamed, so readers see a whole one or none, and two writers do no harm.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitcli import files
from vitcli.config import AugmentConfig, DataConfig, Size
from vitcli.data import decode
from vitcli.data.decode import BadImage, View
from vitcli.data.split import Progress, Rows, Split
from vitcli.data.split import silent as silent
from vitcli.errors import DataError, ResourceError
from vitcli.files import cache_home

Pixels = NDArray[np.uint8]

CROP_MARGIN = 8 / 7
"""Side of the working copy over the training size, where crops are taken from it: 256 for 224."""
CHUNK = 16
_TRIAL = 8  # parts a core on which a number of threads is tried
_BAD_FLOOR, _BAD_PART = 10, 0.01


def working_view(native: Size, uniform: bool, img_size: Size, augment: AugmentConfig) -> View:
    """The working copy for training: squashed to the training size and the margin for crops, never above the native size.

    A crop is a box in parts of the image's sides, so a squashed copy loses no shape, only resolution along
    the longer side. Small images of one size are kept as they are and enlarged as batches are made.
    """
    margin = CROP_MARGIN if augment.crop in ("random", "resized") else 1.0
    wanted = (round(img_size[0] * margin), round(img_size[1] * margin))
    if uniform:
        wanted = (min(wanted[0], native[0]), min(wanted[1], native[1]))
    return View(wanted, "square", draft=True)


@dataclass(eq=False)
class Images:
    """Decoded images of a split. `valid` are the positions in the split that can be read, in order."""

    split: Split
    view: View
    config: DataConfig
    valid: Rows
    bad: list[tuple[int, str]]
    pixels: Pixels | None  # the cache; None decodes on every read
    sizes: NDArray[np.int32] | None

    def __len__(self) -> int:
        return len(self.valid)

    def read(self, positions: Rows) -> tuple[Pixels, NDArray[np.int32]]:
        """Pixels `[n, 3, height, width]` and original sizes `[n, 2]` at positions of the split. Raises DataError."""
        if self.pixels is not None and self.sizes is not None:
            return self.pixels[positions], self.sizes[positions]
        pixels = np.empty((len(positions), 3, *self.view.size), np.uint8)
        sizes = np.empty((len(positions), 2), np.int32)
        chunks = [slice(i, i + CHUNK) for i in range(0, len(positions), CHUNK)]
        faults = _map(
            lambda part: _decode_into(self.split, positions[part], self.view, self.config, pixels[part], sizes[part]),
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


Faults = list[tuple[int, str]]
Work = Callable[[slice], Faults]


def _map(work: Work, parts: list[slice], workers: int | None) -> Generator[Faults, None, None]:
    """`work` on each part in order, by threads: Pillow decodes without the interpreter's lock.

    None takes as many as are fastest on the first parts. Small images hold the lock for most of their time, and one
    thread may then be best; large ones gain from one a core.
    """
    if workers is None:
        cores = os.cpu_count() or 1
        share = _TRIAL * cores
        workers, best = cores, 0.0
        for count in sorted({cores, 1, 2 * cores}, key=lambda n: n != cores) if len(parts) >= 6 * share else ():
            trial, parts = parts[:share], parts[share:]
            started = time.perf_counter()
            done = list(_by_threads(work, trial, count))
            rate = share / (time.perf_counter() - started)
            workers, best = (count, rate) if rate > best else (workers, best)
            yield from done
    yield from _by_threads(work, parts, workers)


def _by_threads(work: Work, parts: list[slice], workers: int) -> Generator[Faults, None, None]:
    if workers <= 1 or len(parts) <= 1:
        yield from map(work, parts)
        return
    with ThreadPoolExecutor(workers) as pool:
        window = 4 * workers
        try:
            pending = [pool.submit(work, part) for part in parts[:window]]
        except RuntimeError as error:
            raise ResourceError(
                f"no thread can be started to decode images: {error}",
                "decode everything in the main thread with --set data.workers=0",
            ) from None
        for index in range(len(parts)):
            result = pending[index].result()
            if window + index < len(parts):
                pending.append(pool.submit(work, parts[window + index]))
            yield result


def _decode_into(
    split: Split,
    positions: Rows,
    view: View,
    config: DataConfig,
    pixels: Pixels,
    sizes: NDArray[np.int32],
    opened: NDArray[np.bool_] | None = None,
) -> list[tuple[int, str]]:
    """Fill `pixels` and `sizes`; returns the positions that cannot be read, with reasons.

    Raises DataError for one that could be `opened` before and now cannot: that passes, and says nothing of the image.
    """
    faults = []
    for index, (blob, path) in enumerate(split.blobs(positions)):
        try:
            if blob is None and opened is not None and opened[positions[index]]:
                raise DataError(
                    f"image {split.describe(int(positions[index]))} could be opened a moment ago and cannot now",
                    "is its disk there, and not too many files open? run the command again",
                )
            if blob is None:
                raise BadImage(f"{path} cannot be opened" if path else "no image")
            pixels[index], sizes[index] = decode.decode(blob, view, config.max_megapixels)
        except BadImage as error:
            pixels[index], sizes[index] = 0, view.size
            faults.append((int(positions[index]), str(error)))
    return faults


def _key(split: Split, view: View, config: DataConfig, progress: Progress) -> str:
    """Of what the images are, in order, and how they are decoded: whatever else is called by the same name has another."""
    text = f"{view}|{config.max_megapixels}|{decode.VERSION}|"
    return hashlib.sha256(text.encode() + split.digests(progress).tobytes()).hexdigest()[:32]


def open_images(
    split: Split,
    view: View,
    config: DataConfig,
    progress: Progress = silent,
    where: Literal["auto", "memory-mapped", "decode"] = "auto",
) -> Images:
    """The working copy of a split, decoded now unless a cache has it.

    Raises DataError at the first image that cannot be read, or with data.on_bad_image=skip where more than
    one in a hundred (and more than ten) cannot.
    """
    shape = (len(split), 3, *view.size)
    size = int(np.prod(shape))
    home = cache_home() / "images"
    if where != "decode":
        folder = home / _key(split, view, config, progress)
        where = "memory-mapped" if where != "auto" or folder.is_dir() or _has_room(home, size) else "decode"
    if where == "decode":
        bad = _scan(split, view, config, progress)
        return Images(split, view, config, _valid(split, bad), bad, None, None)
    images = _open(folder, shape)
    if images is None:
        home = _writable(home)
        folder = home / folder.name
        images = _open(folder, shape)
    if images is None:
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or not there
        _remove_leftovers(home)
        images = _build(folder, split, view, config, shape, progress)
    pixels, sizes, bad = images
    _check_bad(split, bad, config)
    return Images(split, view, config, _valid(split, bad), bad, pixels, sizes)


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


def _writable(home: Path) -> Path:
    """`home`, or a temporary folder where it cannot be written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            return home
    except OSError:
        return Path(tempfile.mkdtemp(prefix="vit-cache-"))


def _remove_leftovers(home: Path) -> None:
    """What killed writers left, once it is a day old: a living one may still be at work on anything younger."""
    for path in files.leftovers(home):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 86400:
                shutil.rmtree(path, ignore_errors=True)


def _open(folder: Path, shape: tuple[int, ...]) -> tuple[Pixels, NDArray[np.int32], list[tuple[int, str]]] | None:
    try:
        described = json.loads((folder / "images.json").read_text())
        if tuple(described["shape"]) != shape or (folder / "pixels.u8").stat().st_size != int(np.prod(shape)):
            return None
        pixels = np.memmap(folder / "pixels.u8", np.uint8, "r", shape=shape)
        sizes = np.load(folder / "sizes.npy")
        if sizes.shape != (shape[0], 2):
            return None
        return pixels, sizes, [(int(p), str(r)) for p, r in described["bad"]]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _build(
    folder: Path, split: Split, view: View, config: DataConfig, shape: tuple[int, ...], progress: Progress
) -> tuple[Pixels, NDArray[np.int32], list[tuple[int, str]]]:
    bad: list[tuple[int, str]] = []

    def fill(temporary: Path) -> None:
        _reserve(temporary / "pixels.u8", int(np.prod(shape)))
        pixels = np.memmap(temporary / "pixels.u8", np.uint8, "r+", shape=shape)
        sizes = np.zeros((len(split), 2), np.int32)
        parts = [slice(i, min(i + CHUNK, len(split))) for i in range(0, len(split), CHUNK)]

        opened = split.digests() != 0

        def work(part: slice) -> list[tuple[int, str]]:
            positions = np.arange(part.start, part.stop)
            return _decode_into(split, positions, view, config, pixels[part], sizes[part], opened)

        for index, faults in enumerate(_map(work, parts, config.workers)):
            bad.extend(faults)
            progress("decoding", min((index + 1) * CHUNK, len(split)), len(split))
            if faults and config.on_bad_image == "error":
                raise bad_image(split, *faults[0])
        pixels.flush()
        np.save(temporary / "sizes.npy", sizes)
        (temporary / "images.json").write_text(json.dumps({"shape": shape, "bad": bad}))

    with files.disk_errors(folder, int(np.prod(shape))):
        try:
            files.write_folder(folder, fill, int(np.prod(shape)))
        except OSError:
            if not folder.is_dir():
                raise
            # another process was first, with the same pixels
    opened = _open(folder, shape)
    if opened is None:
        raise DataError(f"the decode cache {folder} was removed while it was made", "run the command again")
    return opened


def _reserve(path: Path, size: int) -> None:
    """A file of `size` bytes that the disk really has: writing into a sparse map of a full disk would kill the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _scan(split: Split, view: View, config: DataConfig, progress: Progress) -> list[tuple[int, str]]:
    """With data.on_bad_image=skip and no cache: a pass that only finds what cannot be read."""
    if config.on_bad_image == "error":
        return []
    bad = []
    for start in range(0, len(split), CHUNK):
        positions = np.arange(start, min(start + CHUNK, len(split)))
        pixels = np.empty((len(positions), 3, *view.size), np.uint8)
        bad += _decode_into(split, positions, view, config, pixels, np.empty((len(positions), 2), np.int32))
        progress("checking", int(positions[-1]) + 1, len(split))
    _check_bad(split, bad, config)
    return bad
