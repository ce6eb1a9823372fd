"""Images by their names: files, folders, patterns, addresses, lines of a stream; what cannot be read is a result too."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcli.data.arrays import ARRAY_ENDING
from vitcli.data.colour import BadImage
from vitcli.data.decode import IMAGE_ENDINGS, View, decode, read_file
from vitcli.data.layout import UNREAD, Listing, images_among, list_folder
from vitcli.errors import VitError

_LONGEST_LINE = 2**16
_LARGEST_FILE = 2**30


@dataclass(frozen=True)
class NoImage:
    """A name that stands for no image, and why."""

    path: str
    reason: str


def lines_of(stream: BufferedReader) -> Iterator[str | NoImage]:
    """The paths on a stream, one a line, in whatever bytes they are. What is no list of paths is one result, an error."""
    nothing = NoImage("-", "stdin holds no paths, one a line; an image is named by its path")
    try:
        if b"\0" in stream.peek():
            yield nothing
            return
        while line := stream.readline(_LONGEST_LINE):
            if b"\0" in line or len(line) == _LONGEST_LINE:
                yield nothing
                return
            name = os.fsdecode(line.rstrip(b"\r\n"))
            if name.strip():
                yield name
    except OSError as error:
        yield NoImage("-", f"stdin cannot be read: {error.strerror}")


def expand(names: Iterable[str | NoImage]) -> Iterator[str | NoImage]:
    """Files as they are, folders as the images below them, patterns as what they match; in the order named, sorted within. Addresses
    (s3://…, hf://…, https://…) likewise, where fsspec can list them.

    A name that is none of these is kept: that it cannot be read is then its result.
    """
    for name in names:
        yield from [name] if isinstance(name, NoImage) else _expanded(name)


def _without(listing: Listing) -> str:
    """Why a folder gives no image."""
    there = listing.kinds()
    return f"a folder without images that can be read: {there}; {UNREAD}" if there else "a folder without images"


def _expanded(name: str) -> Iterable[str | NoImage]:
    if "://" in name:
        return _at_address(name)
    path = Path(name)
    try:
        if path.is_dir():
            listing = list_folder(path)
            faults = [NoImage(listing.at(folder), reason) for folder, reason in listing.unlisted]
            none = [] if listing.images or faults else [NoImage(name, _without(listing))]
            return itertools.chain(map(listing.at, listing.images), faults, none)
        if not path.exists() and glob.has_magic(name):
            return sorted(glob.glob(name, recursive=True)) or [name]  # noqa: PTH207 (absolute patterns too)
    except OSError as error:
        return [NoImage(name, error.strerror or str(error))]
    except (VitError, ValueError, re.error) as error:
        return [NoImage(name, str(error))]
    return [name]


def _at_address(name: str) -> Iterable[str | NoImage]:
    """An address of an image, or those that a pattern or a folder at an address stands for."""
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 (no path)
    if ending in (*IMAGE_ENDINGS, ARRAY_ENDING) and not glob.has_magic(name):
        return [name]
    import fsspec.core

    try:
        system, root = fsspec.core.url_to_fs(name)
        if glob.has_magic(root) and system.isfile(root):
            return [name]
        if glob.has_magic(root):
            found = [path for path in system.glob(root) if not system.isdir(path)]
        elif system.isdir(root):
            found = images_among(system.find(root))
        else:
            return [name]
        chain = name[name.index("::") :] if "::" in name else ""  # what an archive lies in
        return [system.unstrip_protocol(path) + chain for path in sorted(found)] or [NoImage(name, "no images there")]
    except Exception as error:  # each kind of address has errors of its own
        return [NoImage(name, _said(error))]


def read_named(path: str | NoImage, view: View, max_megapixels: float) -> NDArray[np.uint8] | str:
    """Pixels, or why there are none."""
    if isinstance(path, NoImage):
        return path.reason
    try:
        return decode(_fetched(path) if "://" in path else read_file(path), view, max_megapixels)[0]
    except BadImage as error:
        return str(error)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or _said(error)


def named_bytes(path: str) -> bytes | None:
    """The bytes of an image that is named, or None where they cannot be had."""
    try:
        return _fetched(path) if "://" in path else read_file(path)
    except (OSError, ValueError):
        return None


def _fetched(address: str) -> bytes:
    """The bytes at an address. Raises OSError."""
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            blob = file.read(_LARGEST_FILE + 1)
    except OSError:
        raise
    except (
        Exception
    ) as error:  # each kind of address has errors of its own, and each means that the image cannot be had
        raise OSError(_said(error)) from None
    if len(blob) > _LARGEST_FILE:
        raise OSError(f"over {_LARGEST_FILE:,} bytes")
    return bytes(blob)


def _said(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
