"""Whether the Hugging Face hub can be asked, decided by one short request instead of a library's many retries."""

from __future__ import annotations

import os
import re

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
