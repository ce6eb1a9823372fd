"""Whether the Hugging Face hub can be asked, decided by one short request instead of a library's many retries."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
from pathlib import Path
from typing import Any

from vitcli import progress

for _name, _value in (
    (
        "HF_HUB_DISABLE_TELEMETRY",
        "1",
    ),  # huggingface_hub describes the caller in its requests, and asks for a list of callers
    ("HF_UPDATE_DOWNLOAD_COUNTS", "0"),  # datasets asks a server for the name of each format that it reads, to count it
    ("ORT_DISABLE_TELEMETRY", "1"),  # onnxruntime reports to its maker
):
    os.environ.setdefault(_name, _value)
# Nothing is sent anywhere. Each library reads its own when it is imported, which vit does later than this module.

PROBE_SECONDS = 5.0


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def obstacle(repository: str, kind: str, revision: str) -> Exception | None:
    """What is in the way of a download: no network, no such repository or revision, no access; None if nothing is."""
    from huggingface_hub import HfApi

    try:
        HfApi().repo_info(repository, repo_type=kind, revision=revision or None, timeout=PROBE_SECONDS)
    except Exception as error:  # the hub's errors are many, and each means that nothing can be had
        return error
    return None


def hint(error: BaseException) -> str:
    """What to do about an obstacle."""
    text = f"{type(error).__name__} {error}".lower()
    network = (
        "connect",
        "resolution",
        "resolve",
        "timeout",
        "timed out",
        "offline",
        "network",
        "unreachable",
        "retries",
        "server error",
        "service unavailable",
        "too many requests",
    )
    if re.search(r"\bgated\b|(?<![\d:.])40[13]\b|authenticated|\bprivate\b", text):  # not a port such as :40123
        return "check the id; for a private or gated repository ask for access on its page, then log in with: hf auth login"
    if any(word in text for word in network):
        return "no network, or the hub is down? HF_HUB_OFFLINE=1 uses cached copies only; a local file or folder needs neither"
    return "check the id (user/name), its configuration (user/name:config) and revision (user/name@rev)"


CARD = "README.md"


def download(repository: str, file: str, revision: str, cached: bool) -> Path:
    """A file of a model, from the hub, or from its local copy alone if `cached`. Raises the hub's errors."""
    from huggingface_hub import hf_hub_download

    takes = "tqdm_class" in inspect.signature(hf_hub_download).parameters
    shows: dict[str, Any] = {"tqdm_class": _bar()} if takes else {}
    return Path(hf_hub_download(repository, file, revision=revision or None, local_files_only=cached, **shows))


@functools.cache
def _bar() -> type:
    """A bar of huggingface_hub's that tells whoever listens, in MB."""
    from huggingface_hub.utils import tqdm

    class Told(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{k: v for k, v in options.items() if k != "name"} | {"file": _Nowhere()})

        def update(self, n: float | None = 1) -> bool | None:
            moved: bool | None = super().update(n)
            if self.total:
                progress.listener()("downloading MB", round(self.n / 1e6), round(self.total / 1e6))
            return moved

    return Told


class _Nowhere:
    """A stream that takes everything."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...


def is_cached(repository: str) -> bool:
    """Whether weights of a model lie in the hub's cache on this machine. Asks nobody."""
    from huggingface_hub import constants

    kept = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}", "snapshots")
    return any(f.suffix in (".safetensors", ".bin", ".npz", ".pth") for f in kept.glob("*/*"))


_CACHED = re.compile(r"models--(.+?)--(.+?)/snapshots/([0-9a-f]{40})/")


def id_of(path: Path) -> str:
    """`user/name` of a file in the hub's cache; empty for any other."""
    place = _CACHED.search(path.as_posix())
    return f"{place[1]}/{place[2]}" if place else ""


def origin(path: Path) -> str:
    """`user/name at revision 0123456, licence apache-2.0` of a file in the hub's cache; empty for any other."""
    place = _CACHED.search(path.as_posix())
    if place is None:
        return ""
    licence = ""
    with contextlib.suppress(OSError):
        card = (path.parent / CARD).read_text(encoding="utf-8", errors="replace")[:20_000]
        head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
        stated = re.search(r"^license:\s*['\"]?([\w.+-]+)", head[1], re.MULTILINE) if head else None
        licence = stated[1] if stated else ""
    return f"{id_of(path)} at revision {place[3][:7]}, licence {licence or 'not stated'}"
