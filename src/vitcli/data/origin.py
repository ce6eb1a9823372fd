"""Whether what a checkpoint says of its own data may be opened.

A checkpoint can be anybody's, and the data that it names any address or folder. Beside the name of the data a run writes
seals, digests of that name with a key that only this machine, or only this user, has. Where one of them fits, the name was
written here, and the data are opened unasked; otherwise they are opened when the user names them.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitcli import files
from vitcli.data.sources import by_name
from vitcli.errors import UsageError

EMBEDDED = "digits"
"""Data of scikit-learn's own, which anybody's checkpoint may name."""
_KEY_BYTES = 32
_MACHINE_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")


def seals(id_: str) -> list[str]:
    """Of data that a run here was trained on; none where there is no key to be had."""
    return [_digest(id_, key) for key in _keys()]


def own_source(provenance: Mapping[str, Any], checkpoint: str) -> str:
    """What --data would be for a checkpoint's own data. Raises UsageError where it names none, or was not written here."""
    data = provenance.get("data")
    data = data if isinstance(data, Mapping) else {}
    id_, sealed = data.get("id"), data.get("seals")
    if not isinstance(id_, str) or not id_:
        raise UsageError(f"{checkpoint} does not say what data it was trained on", "name the data with --data")
    own = set(seals(id_))
    if id_ != EMBEDDED and not (isinstance(sealed, list) and own & {seal for seal in sealed if isinstance(seal, str)}):
        raise UsageError(
            f"{checkpoint} was not trained here, and what it says of its data is not opened unasked",
            f"name the data; if they are what it says: --data {id_}",
        )
    return by_name(id_)


def _digest(text: str, key: bytes) -> str:
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]


def _keys() -> list[bytes]:
    """Of this user on this machine, and of this user's cache, which a folder of the network shares between machines."""
    found = []
    for place in _MACHINE_IDS:
        with contextlib.suppress(OSError):
            text = Path(place).read_bytes().strip()
            if len(text) == _KEY_BYTES:
                found.append(hashlib.sha256(text + str(_user()).encode()).digest())
                break
    with contextlib.suppress(OSError):
        found.append(_kept_key(files.cache_home() / "key"))
    return found


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _kept_key(path: Path) -> bytes:
    """The key of a cache, made where there is none, whole and by one process. Raises OSError."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.temporary_folder(path) as folder:
            (folder / "key").touch(0o600)
            (folder / "key").write_bytes(secrets.token_bytes(_KEY_BYTES))
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(folder / "key")
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise OSError(f"{path} is no key")
    return key
