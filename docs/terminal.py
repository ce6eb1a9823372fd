"""Write docs/terminal.md: what commands show in a real terminal while they work, and how long nothing moved.

python docs/terminal.py CKPT PHOTOS

Needs tmux. Each command runs in a window of its own, 80 and 200 columns wide; its screen is read five times a second. Fails where a
screen stood still for longer than two seconds and a half before its command was over (a screen is read a little late at times).
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE = Path(__file__).with_name("terminal.md")
STILL = 2.5
"""Seconds."""
_SHOWN = 4
"""Screens of a command that are kept: the first, the last, and others that differ most in their words between."""
_DONE = "exit code "


def tmux(*arguments: str) -> str:
    return subprocess.run(["tmux", "-L", "vit", *arguments], check=True, capture_output=True, text=True).stdout


def screens(command: str, columns: int, place: Path, env: dict[str, str]) -> tuple[list[tuple[float, str]], float]:
    """The screens of a command with the seconds at which each was first seen, and the longest that one stood still."""
    settings = "".join(f"{name}={shlex.quote(value)} " for name, value in env.items())
    line = f"cd {shlex.quote(str(place))}; {settings}{command}; echo {_DONE}$?; sleep 100"
    tmux("new-session", "-d", "-s", "one", "-x", str(columns), "-y", "30", line)
    found: list[tuple[float, str]] = []
    started = changed = time.monotonic()
    longest = 0.0
    try:
        while True:
            now, screen = time.monotonic(), tmux("capture-pane", "-p", "-e", "-t", "one").rstrip()
            if not found or screen != found[-1][1]:
                longest, changed = max(longest, now - changed), now
                found.append((now - started, screen))
            if _DONE in screen:
                return found, longest
            assert now - started < 600, f"no end: {screen}"
            time.sleep(0.2)
    finally:
        tmux("kill-session", "-t", "one")


def plain(screen: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", screen)


def colours(found: list[tuple[float, str]]) -> list[str]:
    """The colour and style codes that were used."""
    return sorted({code for _, screen in found for code in re.findall(r"\x1b\[([0-9;]*)m", screen) if code})


def chosen(found: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Screens whose last line has other words than that of the one before, at most so many."""
    phases: dict[str, tuple[float, str]] = {}
    for at, screen in found:
        last = next((line for line in reversed(plain(screen).splitlines()) if line.strip()), "")
        words = " ".join(re.findall(r"[a-z]{3,}", last))
        phases.setdefault(words, (at, screen))
    kept = list(phases.values())
    middle = kept[1:-1]
    step = max(1, -(-len(middle) // (_SHOWN - 2)))
    return [kept[0], *middle[::step], kept[-1]] if len(kept) > 1 else kept


def main() -> int:
    checkpoint, photos = (str(Path(path).resolve()) for path in sys.argv[1:])
    commands = [
        ("vit pretrain --epochs 12 --out runs/digits", {}),
        (f"vit finetune {checkpoint} --data {photos} --steps 12 --out runs/photos", {}),
        (f"vit eval runs/photos --data {photos} --split all", {}),
        (f"vit predict runs/photos {photos} --out guesses.csv", {}),
        ("vit pretrain --steps 60 --out runs/plain", {"NO_COLOR": "1"}),
        ("vit pretrain --steps 60 --out runs/piped 2>&1 | cat", {}),
    ]
    parts, is_still = (
        [
            "# In the terminal\n\nMade by `python docs/terminal.py CKPT PHOTOS` in tmux, 30 lines high. Colours are the terminal's own and two of the bar (197 and 237 of 256), "
            "which can be read on dark and on light; `NO_COLOR` leaves none.\n"
        ],
        False,
    )
    for columns in (80, 200):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            (place / "deit_tiny_patch16_224.safetensors").symlink_to(checkpoint)
            (place / "photos").symlink_to(photos)
            for command, env in commands:
                command = command.replace(checkpoint, "deit_tiny_patch16_224.safetensors").replace(photos, "photos")
                found, longest = screens(command, columns, place, env)
                is_still |= longest > STILL
                said = "".join(f"{name}={value} " for name, value in env.items())
                used = ", ".join(colours(found)) or "none"
                parts.append(
                    f"## {columns} columns: `{said}{command}`\n\n{len(found)} different screens in {found[-1][0]:.0f} s; none stood for longer "
                    f"than {longest:.1f} s. Colours and styles: {used}.\n"
                )
                for at, screen in chosen(found):
                    shown = plain(screen).replace(photos, "photos")
                    parts.append(f"After {at:.1f} s:\n\n```text\n{shown}\n```\n")
                print(
                    f"{columns} {command}: {len(found)} screens, still for {longest:.1f} s, colours {used}", flush=True
                )
    PAGE.write_text("\n".join(parts), encoding="utf-8")
    return int(is_still)


if __name__ == "__main__":
    sys.exit(main())
