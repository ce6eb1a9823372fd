"""Seconds from the command to its help, to `vit info`, and to the first training step on cached data; medians.

python benchmarks/startup.py [DATA]

Beside them a bare Typer application of the same version, and `import torch`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from opponents import alternate, show

BARE = """
import typer
app = typer.Typer()
@app.command()
def one(x: int = 1): "One."
@app.command()
def two(x: int = 1): "Two."
app()
"""


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], check=True, capture_output=True)


def first_step(data: str) -> float:
    """From the start of the process until the first step stands in metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        started = time.perf_counter()
        command = [sys.executable, "-m", "vitcli", "pretrain", "--data", data, "--steps", "1000", "--out", str(out)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = out / "metrics.jsonl"
        try:
            while not metrics.exists() or not metrics.stat().st_size:
                if process.poll() is not None:
                    raise SystemExit(f"vit pretrain ended with {process.returncode}")
                time.sleep(0.02)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="digits")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        taken = alternate(
            {
                "vit --help": lambda: run("-m", "vitcli", "--help"),
                "vit info": lambda: run("-m", "vitcli", "info", "ViT-B/16"),
                "bare Typer --help": lambda: run(str(bare), "--help"),
                "import torch": lambda: run("-c", "import torch"),
            },
            rounds=7,
        )
    first_step(asked.data)  # decodes, where there is no cache yet
    steps = sorted(first_step(asked.data) for _ in range(3))
    show(
        **{f"{name}, s": seconds for name, seconds in taken.items()},
        **{f"first step on {asked.data}, s": steps[1]},
        help_over_bare=taken["vit --help"] / taken["bare Typer --help"],
    )


if __name__ == "__main__":
    main()
