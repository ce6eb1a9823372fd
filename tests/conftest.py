"""What all tests share: real data where it is, a cache of their own, the command in a subprocess."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

if TYPE_CHECKING:
    from vitcli.config import ModelConfig

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores; before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a network
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

TEST_DEVICE = os.environ.get("VIT_TEST_DEVICE", "auto")
"""Where tests compute that do not say it themselves: auto (the best there is), cpu, cuda or mps.

Tests of bits name the CPU, since no other device promises them, and tests against other implementations name fp32. A GPU
that is not to be used is hidden from this process and those that it starts, so that the product needs no switch for it.
"""
ABSENT_DEVICE = "cuda" if sys.platform == "darwin" else "mps"
"""One that this machine cannot have."""
if TEST_DEVICE == "cpu":
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}


def pytest_configure(config: pytest.Config) -> None:
    """A device that is asked for and missing is an error, not a run of everything on the CPU."""
    if TEST_DEVICE in ("auto", "cpu"):
        return
    import torch

    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if TEST_DEVICE not in there or not there[TEST_DEVICE]():
        raise pytest.UsageError(f"VIT_TEST_DEVICE={TEST_DEVICE}: not here; leave it out, or take cpu")


settings.register_profile("vit", deadline=None, max_examples=50)
settings.load_profile("vit")


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither the user's decode cache nor their hub cache is read or written."""
    home = tmp_path_factory.mktemp("caches")
    os.environ["VIT_CACHE"] = str(home / "vit")
    os.environ["HF_DATASETS_CACHE"] = str(home / "datasets")
    import datasets

    datasets.config.HF_DATASETS_CACHE = home / "datasets"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images and weights, found through VIT_TEST_DATA."""
    folder = os.environ.get("VIT_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("VIT_TEST_DATA does not name a folder with the real images and weights")
    return Path(folder)


@pytest.fixture(scope="session")
def deit_weights(shared_data: Path) -> Path:
    return shared_data / "weights" / "deit_tiny_patch16_224.safetensors"


def draw_image(colour: int, index: int, size: int = 12, noise: int = 40) -> Image.Image:
    """A noisy square of one of a few colours: classes that a small model learns in seconds."""
    random = np.random.default_rng([colour, index])
    base = np.array([[220, 40, 40], [40, 200, 60], [50, 60, 220], [220, 200, 40], [180, 60, 200]][colour % 5])
    return Image.fromarray(np.clip(base + random.normal(0, noise, (size, size, 3)), 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with three classes of 12-pixel images: 24 and 8 of each."""
    root = tmp_path_factory.mktemp("colours") / "colours"
    for split, count, offset in (("train", 24, 0), ("test", 8, 1000)):
        for colour, name in enumerate(("red", "green", "blue")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                draw_image(colour, offset + index).save(folder / f"{index:03}.png")
    return root


@contextlib.contextmanager
def mounted_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of `size` mounted at `folder`; skips the test where that cannot be had."""
    folder.mkdir()
    mounted = None
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted is None or mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root and a kernel that allows it")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout; NaN and Infinity are errors."""

        def refuse(token: str) -> None:
            raise AssertionError(f"{token} in JSON")

        return json.loads(self.out, parse_constant=refuse)


Vit = Callable[..., Result]


def run_vit(
    *arguments: object,
    cwd: Path,
    env: dict[str, str] | None = None,
    timeout: float = 240,
    stdin: str | None = None,
    fresh: bool = False,
) -> Result:
    """`python -m vitcli` in a process of its own: forked from one that has imported everything, unless `fresh`, or where the environment
    is another.
    """
    from processes import Started, Zygote

    whole = {**os.environ, **(env or {})}
    if not fresh and Zygote.fits(whole):
        with tempfile.TemporaryDirectory() as folder:
            out, err, given = (Path(folder, name) for name in ("out", "err", "in"))
            given.write_text(stdin or "")
            started = Started(arguments, cwd, env=whole, out=str(out), err=str(err), stdin=str(given))
            code, _ = started.ended(timeout)
            return Result(code, *(path.read_text() if path.exists() else "" for path in (out, err)))
    done = subprocess.run(
        [sys.executable, "-m", "vitcli", *map(str, arguments)],
        cwd=cwd,
        env=whole,
        capture_output=True,
        text=True,
        timeout=timeout,
        input=stdin,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def vit(tmp_path: Path) -> Vit:
    """Runs the command in an empty folder."""

    def run(*arguments: object, **keywords: Any) -> Result:
        return run_vit(*arguments, **({"cwd": tmp_path} | keywords))

    return run


@pytest.fixture
def in_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Vit:
    """The command in this process, in an empty folder."""
    from vitcli.cli import app

    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> Result:
        capsys.readouterr()
        code = app.run([str(a) for a in arguments])
        return Result(code, *capsys.readouterr())

    return command


def small_vit(**values: Any) -> ModelConfig:
    """A ViT of two blocks that averages its patches, with these values."""
    from vitcli.config import ModelConfig

    dimensions: dict[str, Any] = {"name": "small", "width": 16, "depth": 2, "heads": 2, "mlp": 32, "pool": "mean"}
    return ModelConfig(**dimensions | values)


def train_run(command: Literal["pretrain", "finetune"], **options: Any) -> tuple[Path, dict[str, Any]]:
    """api.train, with `optim__lr=0.01` for the value of optim.lr."""
    overrides = {name.replace("__", "."): value for name, value in options.items() if "__" in name}
    from vitcli import api

    return api.train(command, **{n: v for n, v in options.items() if "__" not in n}, overrides=overrides)
