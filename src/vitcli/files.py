"""The write path: every file and folder that vit leaves behind is whole or absent.

A file is written beside its place under a temporary name, flushed to the disk and renamed; a folder
likewise, with a manifest of its files (name, bytes, sha256). Whoever writes holds a lock on what has the temporary
name, so whoever writes there next can tell what a kill left from what is at work.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vitcli.errors import ResourceError, UsageError
from vitcli.text import as_json

MANIFEST = "manifest.json"
_TEMPORARY = ".writing-"
_OWN = re.compile(rf"{re.escape(_TEMPORARY)}([0-9a-f]{{8}}){{1,2}}-.+", re.DOTALL)
"""What vit calls what it is writing: after the machine, where that is said, a random number."""
_PATIENCE = 86_400.0
"""Seconds after which a leftover is dead of which nothing better can be known: another machine's, or on a disk without locks."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk, or a user's share of it, that is full."""


def cache_home() -> Path:
    """$VIT_CACHE, else vit under $XDG_CACHE_HOME or ~/.cache. Raises UsageError where VIT_CACHE can be no folder."""
    given = os.environ.get("VIT_CACHE")
    if given:
        return _usable_cache(Path(given))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit"


def _usable_cache(path: Path) -> Path:
    try:
        there, _ = _standing_at(path), _standing_at(path / ("x" * 100))
    except UsageError as error:
        raise UsageError(f"VIT_CACHE: {error.message}", "let it name a folder, or leave it out") from None
    if there is not None and not stat.S_ISDIR(there):
        raise UsageError(f"VIT_CACHE: {path} is no folder", "let it name a folder, or leave it out")
    return path


def inside(folder: str, path: str) -> str:
    """Where `path`, taken from `folder` on, lies, if that is below it; else empty. By the names alone: links in it may lead away."""
    root = os.path.normpath(folder)
    full = os.path.normpath(os.path.join(root, path))  # noqa: PTH118 (as fast as the rows of a table are read)
    return full if full.startswith(root.rstrip(os.sep) + os.sep) else ""


def fsync_path(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn a full, read-only, broken or missing disk into a ResourceError that says what is needed and free.

    That something stands at `path` already is left as it is: it says who was first, not how the disk is.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            size = f"{needed:,} bytes are needed, " if needed else ""
            raise ResourceError(
                f"no space left for {path}: {size}{free_bytes(path):,} are free",
                "free some space, or choose another folder with --out",
            ) from None
        if error.errno is None or error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        raise ResourceError(
            f"cannot write {path}: {error.strerror}", "choose a folder that can be written, with --out"
        ) from None


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that holds `path`, or would hold it."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _place_beside(path: Path) -> Path:
    """A temporary name in the same folder, which `leftovers` finds and which says on which machine it was given."""
    return path.with_name(f"{_TEMPORARY}{_machine()}{secrets.token_hex(4)}-{path.name[-50:]}")


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@contextlib.contextmanager
def _temporary(path: Path, mode: int | None = None) -> Iterator[Path]:
    """A file beside `path`, or with `mode` a folder, which `remove_dead` leaves alone as long as this process is at work on it.

    What has the name at the end is removed.
    """
    remove_dead(path.parent)
    while (descriptor := _created(temporary := _place_beside(path), mode)) is None:
        pass
    try:
        yield temporary
    finally:
        if temporary.exists():
            _remove(temporary)
        os.close(descriptor)


def _created(temporary: Path, mode: int | None) -> int | None:
    """A descriptor of a new file or folder, locked; None where another process took it for a leftover before it was."""
    if mode is None:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    else:
        temporary.mkdir(mode, parents=True)
        try:
            descriptor = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:
            return None
    if _lock(descriptor) is False or not temporary.exists():
        os.close(descriptor)
        return None
    return descriptor


def temporary_folder(path: Path) -> contextlib.AbstractContextManager[Path]:
    """A folder beside `path` for this user alone, removed at the end, or where that is a kill by `remove_dead`."""
    return _temporary(path, 0o700)


def _lock(descriptor: int) -> bool | None:
    """Whether a lock was to be had that dies with the process; None on a disk, or a system, without such locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None


def write_file(path: Path, write: Callable[[Path], None], size: int = 0) -> None:
    """Have `write` fill a temporary file, then put it in `path`'s place. Raises ResourceError."""
    with disk_errors(path, size):
        with _temporary(path) as temporary:
            write(temporary)
            fsync_path(temporary)
            temporary.replace(path)
        fsync_path(path.parent)


def write_text(path: Path, text: str) -> None:
    """A file in UTF-8; names of files that are none are given back byte by byte. Raises ResourceError."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")

    write_file(path, write)


def write_json(path: Path, tree: Any) -> None:
    write_text(path, as_json(tree, indent=2) + "\n")


def append_line(path: Path, tree: Any) -> None:
    """Add a JSON line and flush it to the disk."""
    with disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(tree, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def is_writable(folder: Path) -> bool:
    """Whether this user may write into `folder`, or make it."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def check_out(path: Path, force: bool, folder: bool = False) -> None:
    """Raises UsageError where no file, or `folder`, can come to `path`, or one is there and --force was not given, and
    ResourceError where nothing can be written. Long work asks before it begins.
    """
    there = _standing_at(path)
    if there is not None and not folder and not stat.S_ISREG(there):
        kind = "a folder" if stat.S_ISDIR(there) else "no regular file"
        raise UsageError(f"{path} is {kind}, and a file is to be written there", "give another name")
    if there is not None and folder and not stat.S_ISDIR(there):
        raise UsageError(f"{path} is a file, and a folder is to be written there", "give another name")
    if there is not None and not force:
        raise UsageError(f"{path} exists", "give another name, or --force to replace it")
    parent = path.parent
    while folder and _standing_at(parent) is None and parent != parent.parent:
        parent = parent.parent
    found = _standing_at(parent)
    if found is None or not stat.S_ISDIR(found):
        reason = "does not exist" if found is None else "is no folder"
        raise ResourceError(f"cannot write {path}: {parent} {reason}", "make the folder first, or give another name")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ResourceError(
            f"cannot write {path}: {parent} is read-only", "give --out, or OUT, a place that can be written"
        )


def _standing_at(path: Path) -> int | None:
    """The mode of what a name leads to; None for nothing. Raises UsageError for a name that cannot be, or a link to nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise UsageError(f"{path} is a link to nothing", "remove it, or give another name") from None
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"nothing can be written to {str(path)[:200]}: {reason}", "give another name") from None


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_folder(path: Path, fill: Callable[[Path], None], size: int = 0) -> None:
    """Have `fill` write files into a temporary folder, add the manifest, put the folder at `path`.

    `path` must not exist: a step that was written is never written again. Raises ResourceError.
    """
    with disk_errors(path, size):
        with _temporary(path, 0o777) as temporary:
            fill(temporary)
            files = sorted(f for f in temporary.iterdir() if f.is_file())
            entries = {f.name: {"bytes": f.stat().st_size, "sha256": sha256_file(f)} for f in files}
            (temporary / MANIFEST).write_text(json.dumps(entries, indent=1), encoding="utf-8")
            for file in [*files, temporary / MANIFEST, temporary]:
                fsync_path(file)
            temporary.rename(path)
        fsync_path(path.parent)


def write_into_folder(path: Path, fill: Callable[[Path], None], size: int = 0) -> None:
    """Have `fill` write files into a temporary folder, then put them into `path`, which is made where it is not there.

    Files of the same names are replaced, each whole or not at all, and nothing else in `path` is touched. Raises
    UsageError where a folder stands in a file's place, ResourceError.
    """
    with disk_errors(path, size):
        with _temporary(path, 0o777) as temporary:
            fill(temporary)
            written = sorted(f for f in temporary.iterdir() if f.is_file())
            for file in [*written, temporary]:
                fsync_path(file)
            if not path.exists():
                temporary.rename(path)
            else:
                taken = next((path / f.name for f in written if (path / f.name).is_dir()), None)
                if taken is not None:
                    raise UsageError(f"{taken} is a folder, and a file would be written there", "give another OUT")
                for file in written:
                    file.replace(path / file.name)
                fsync_path(path)
        fsync_path(path.parent)


def folder_fault(path: Path) -> str:
    """What is wrong with a folder that `write_folder` wrote; empty if it is whole."""
    try:
        entries = _manifest(path)
        there = {f.name for f in path.iterdir()} - {MANIFEST}
        if there != set(entries) or not entries:
            odd = sorted(there ^ set(entries)) or ["no file"]
            return f"{path} does not hold what its manifest lists ({odd[0]})"
        return next(filter(None, (_file_fault(path / name, entry) for name, entry in entries.items())), "")
    except _BROKEN as error:
        return f"{path} has no readable manifest ({str(error)[:200]})"


def file_fault(path: Path) -> str:
    """What is wrong with a file of a folder that `write_folder` wrote; empty if it is whole, or in no such folder."""
    if not (path.parent / MANIFEST).is_file():
        return ""
    try:
        entries = _manifest(path.parent)
        return _file_fault(path, entries[path.name]) if path.name in entries else ""
    except _BROKEN as error:
        return f"{path.parent} has no readable manifest ({str(error)[:200]})"


_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _manifest(folder: Path) -> dict[str, Any]:
    entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(entries, dict):
        raise ValueError("not a table of files")
    return entries


def _file_fault(file: Path, entry: dict[str, Any]) -> str:
    if file.stat().st_size != entry["bytes"]:
        return f"{file} has {file.stat().st_size} bytes, not {entry['bytes']}"
    return "" if sha256_file(file) == entry["sha256"] else f"{file} does not have the sha256 it was written with"


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders that a killed write, or a killed deletion, left in `folder`."""
    found = folder.glob(f"{_TEMPORARY}*") if folder.is_dir() else ()
    return sorted(path for path in found if _OWN.fullmatch(path.name))


def remove_dead(folder: Path) -> None:
    """Delete the leftovers in `folder`, in which others may be writing, whose writers are dead.

    That is one of this user and machine that nobody has locked, or any of this user's that did not change for a day.
    """
    for path in leftovers(folder):
        with contextlib.suppress(OSError):
            seen = path.lstat()
            is_own = not hasattr(os, "geteuid") or seen.st_uid == os.geteuid()
            if not is_own or not (stat.S_ISREG(seen.st_mode) or stat.S_ISDIR(seen.st_mode)):
                continue
            descriptor = os.open(path, os.O_RDWR if stat.S_ISREG(seen.st_mode) else os.O_RDONLY)
            try:
                is_free = _lock(descriptor) if path.name.startswith(_TEMPORARY + _machine()) else None
                if is_free or (is_free is None and _age(path) > _PATIENCE):
                    _remove(path)
            finally:
                os.close(descriptor)


def _age(path: Path) -> float:
    """Seconds since a file, or anything that lies in a folder, last changed."""
    parts = [path, *(path.iterdir() if path.is_dir() else ())]
    return time.time() - max(part.lstat().st_mtime for part in parts)


def remove_leftovers(folder: Path) -> list[str]:
    """Delete what `leftovers` finds; only for a folder that nobody else writes into. Returns the names."""
    left = leftovers(folder)
    for path in left:
        _remove(path)
    return [path.name for path in left]


def remove_folder(path: Path) -> None:
    """Delete a folder in such a way that a kill leaves it whole or leaves a leftover. Raises no error."""
    doomed = _place_beside(path)
    with contextlib.suppress(OSError):
        path.rename(doomed)
        _remove(doomed)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
