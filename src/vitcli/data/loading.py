"""The datasets library at work: quietly, and with its caches where there is room."""

from __future__ import annotations

import atexit
import contextlib
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcli import files
from vitcli.errors import DataError, ResourceError
from vitcli.text import first_line

if TYPE_CHECKING:
    import datasets


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """`datasets` without its progress bars and log lines, and with a cache that can be written."""
    import datasets

    if not files.is_writable(Path(datasets.config.HF_DATASETS_CACHE)):
        datasets.config.HF_DATASETS_CACHE = _passing_cache()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    import huggingface_hub.utils as hub

    hub.disable_progress_bars()
    yield


def files_at(address: str) -> tuple[str, list[tuple[str, str]]]:
    """(the path of an fsspec address, or of a pattern of them, and its files as (address, path below it)). Raises DataError."""
    import fsspec

    protocol = address.partition("://")[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        found = sorted(filesystem.glob(path) if "*" in path else filesystem.find(path))
    except Exception as error:
        raise DataError(
            f"cannot reach {address}: {first_line(error)}",
            "is the address right, its fsspec package installed, and the network there?",
        ) from None
    root = path.partition("*")[0] if "*" in path else path.rstrip("/") + "/"
    return path, [(f if "://" in f else f"{protocol}://{f}", f.removeprefix(root)) for f in found]


@functools.cache
def _passing_cache() -> Path:
    """A folder that goes when this process ends: what datasets reads it writes as Arrow files first."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(files.temporary_folder(Path(tempfile.gettempdir()) / "vit-datasets"))


def load_quietly(builder: str, what: str, **arguments: Any) -> datasets.Dataset:
    import datasets

    try:
        with quiet():
            return datasets.load_dataset(builder, **arguments)
    except Exception as error:  # datasets raises many types; each is a fault of the data named, or of the disk
        if _found_no_room(error):
            raise ResourceError(
                f"no space left for {what}, which datasets copies to {datasets.config.HF_DATASETS_CACHE}",
                "free some space, or let HF_DATASETS_CACHE name a folder on another disk",
            ) from None
        raise DataError(
            f"cannot read {what}: {first_line(error)}", "is it whole, and in the format its name says?"
        ) from None


def _found_no_room(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is a disk that is full."""
    while error is not None:
        if isinstance(error, OSError) and (error.errno in files.FULL or "Not enough disk space" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
