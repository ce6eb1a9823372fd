"""Row 35: bytes that nobody meant. Each is read, or refused by an error of vit's own."""

from __future__ import annotations

import io
import json
import random
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import draw_image
from vitcli import api, files
from vitcli.classes import read_labels
from vitcli.config import read_toml
from vitcli.data.decode import BadImage, View, decode
from vitcli.errors import VitError
from vitcli.train import runfolder, state
from vitcli.train.plan import Request
from vitcli.train.runlog import read_lines, rewind
from vitcli.weights import checkpoint

FIXTURE = Path(__file__).parents[1] / "fixtures" / "0.1"
MEMORY = 3 * 2**30
"""Bytes of address space that reading a mutated file of kilobytes may take at most."""
GROWTH_MB = 200
SECONDS = 20.0

Read = Callable[[bytes], None]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One to four changes: a bit, a run of bytes, a part cut out, doubled or moved, an end cut off, a number replaced."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        if not data:
            break
        # half of the changes fall into the first and last hundred bytes, where the headers are
        near = draw.choice([0, max(0, len(data) - 100)]) + draw.randrange(100)
        at = min(near if draw.random() < 0.5 else draw.randrange(len(data)), len(data) - 1)
        stop = min(len(data), at + draw.choice([1, 2, 4, 8, 64]))
        kind = draw.randrange(9)
        if kind <= 1:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            data[at:stop] = draw.randbytes(stop - at)
        elif kind == 3:
            del data[at:stop]
        elif kind == 4:
            data[at:at] = data[at:stop]
        elif kind == 5:
            other = draw.randrange(len(data))
            data[at:stop] = data[other : other + stop - at]
        elif kind == 6:
            del data[at:]
        elif kind == 7:
            data[at:stop] = draw.choice([b"\xff", b"\x00", b"9", b"[", b"-", b'"']) * (stop - at)
        else:
            numbers = [i for i, b in enumerate(data) if 48 <= b <= 57]
            if numbers:
                place = draw.choice(numbers)
                data[place : place + 1] = draw.choice([b"-1", b"0", b"99999999999", b"1e400", b"NaN", b"null"])
    return bytes(data)


@contextmanager
def limits() -> Iterator[None]:
    """No more address space than MEMORY beyond what is used now; warnings are no errors here."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no answer within {SECONDS:g} s")

    previous = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def fuzz(contents: list[bytes], read: Read, count: int, seed: str, expected: type[Exception] = VitError) -> int:
    """Returns how many of `count` were refused. Anything but a result or an `expected` error fails."""
    draw, refused = random.Random(seed), 0
    for content in contents:
        read(content)  # the unchanged ones are read
    for number in range(count):
        blob = mutated(draw.choice(contents), draw)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            read(blob)
        except expected:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{seed}, number {number}: {type(error).__name__}: {error}\n{blob[:300]!r}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return refused


# --- the kinds ---------------------------------------------------------------------------------------------------


def from_file(path: Path, read: Callable[[Path], Any]) -> Read:
    def reader(blob: bytes) -> None:
        path.write_bytes(blob)
        read(path)

    return reader


def loaded(path: Path) -> None:
    checkpoint.load(str(path))


def weights(folder: Path) -> dict[str, tuple[list[bytes], Read]]:
    tensors = load_file(FIXTURE / "finished" / "model.safetensors")
    bare, archive, packed = folder / "bare.safetensors", folder / "w.npz", folder / "packed.npz"
    save_file(tensors, bare)
    np.savez(archive, **{k: t.numpy() for k, t in tensors.items()})
    np.savez_compressed(packed, **{k: t.numpy() for k, t in tensors.items()})
    pickled, wrapped, legacy = folder / "w.pth", folder / "wrapped.pth", folder / "legacy.pth"
    torch.save(tensors, pickled)
    torch.save({"model": {f"module.{k}": t for k, t in tensors.items()}}, wrapped)
    torch.save(tensors, legacy, _use_new_zipfile_serialization=False)
    own = (FIXTURE / "finished" / "model.safetensors").read_bytes()
    return {
        "safetensors": ([own, bare.read_bytes()], from_file(folder / "fuzzed.safetensors", loaded)),
        "npz": ([archive.read_bytes(), packed.read_bytes()], from_file(folder / "fuzzed.npz", loaded)),
        "pth": (
            [pickled.read_bytes(), wrapped.read_bytes(), legacy.read_bytes()],
            from_file(folder / "fuzzed.pth", loaded),
        ),
    }


def images() -> list[bytes]:
    found = []
    picture = draw_image(0, 0, 24)
    for form, mode in (
        ("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P"), ("TIFF", "RGB"),
        ("WEBP", "RGB"), ("BMP", "RGB"), ("PPM", "RGB"), ("TIFF", "CMYK"), ("TIFF", "F"), ("JPEG2000", "RGB"),
    ):  # fmt: skip
        stream = io.BytesIO()
        picture.convert(mode).save(stream, form)
        found.append(stream.getvalue())
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    picture.save(stream, "JPEG", exif=exif)
    return [*found, stream.getvalue()]


def decoded(blob: bytes) -> None:
    pixels, _ = decode(blob, View((8, 8), draft=True), 89.0)
    assert pixels.shape == (3, 8, 8)


LABELS = [
    b"cat\ndog\nowl\n", b'["cat", "dog", "owl"]', b'{"0": "cat", "1": "dog", "2": ["n1", "owl"]}',
    b'{"id2label": {"0": "cat", "1": "dog", "2": "owl"}}', '﻿größe\nÄ\nß\n'.encode(),
]  # fmt: skip


def of_state(folder: Path, name: str, fits: bool) -> Read:
    """A saved step with one file changed; where it `fits`, its manifest is made for the change."""
    source = FIXTURE / "interrupted" / "state" / "step-000000010"

    def read(blob: bytes) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        step = folder / "step-000000010"
        if fits:

            def fill(temporary: Path) -> None:
                for file in source.iterdir():
                    if file.name != files.MANIFEST:
                        shutil.copy(file, temporary)
                (temporary / name).write_bytes(blob)

            folder.mkdir()
            files.write_folder(step, fill)
        else:
            shutil.copytree(source, step)
            (step / name).write_bytes(blob)
        state.newest(folder)

    return read


def beside_state(folder: Path) -> Read:
    """metrics.jsonl, clock.jsonl, status.json, identity.json and run.toml are read with care."""

    def read(blob: bytes) -> None:
        (folder / "state").mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "state/status.json", "state/identity.json"):
            (folder / name).write_bytes(blob)
        read_lines(folder / "metrics.jsonl")
        rewind(folder / "metrics.jsonl", 10)
        runfolder.status(folder)

    return read


def run_with(folder: Path, name: str, fits: bool) -> Read:
    """A whole run that goes on from a folder with one file changed."""
    asked = api.plan(Request("pretrain", read_toml(FIXTURE / "interrupted" / "run.toml") | {"run.device": "cpu"}))

    def read(blob: bytes) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(FIXTURE / "interrupted", folder)
        step = folder / "state" / "step-000000010"
        if fits:
            groups = {f.name: f.read_bytes() for f in step.iterdir() if f.name != files.MANIFEST}
            shutil.rmtree(step)

            def fill(temporary: Path) -> None:
                for file, content in (groups | {Path(name).name: blob}).items():
                    (temporary / file).write_bytes(content)

            files.write_folder(step, fill)
        else:
            (folder / name).write_bytes(blob)
        api.run(asked, str(folder))

    return read


def everything(folder: Path, scale: float) -> dict[str, tuple[int, int]]:
    """(inputs, refused) of each kind."""
    toml = [
        (FIXTURE / "finished" / "run.toml").read_bytes(),
        b"[train]\nepochs = 3\n[optim]\nlr = 1e-3\nbetas = [0.9, 0.99]\n",
    ]
    step = FIXTURE / "interrupted" / "state" / "step-000000010"
    beside = [
        (FIXTURE / "interrupted" / n).read_bytes()
        for n in ("metrics.jsonl", "state/status.json", "state/identity.json")
    ]
    kinds: dict[str, tuple[list[bytes], Read, int, type[Exception]]] = {
        kind: (*pair, 1700, VitError) for kind, pair in weights(folder).items()
    }
    kinds["images"] = (images(), decoded, 2600, BadImage)
    kinds["toml"] = (toml, from_file(folder / "fuzzed.toml", read_toml), 900, VitError)
    kinds["labels"] = (LABELS, from_file(folder / "labels", lambda path: read_labels(str(path), 3)), 700, VitError)
    for name in ("model.safetensors", "optimizer.safetensors", "values.json", files.MANIFEST):
        for fits in (True, False) if name != files.MANIFEST else (False,):
            content = [(step / name).read_bytes()]
            kinds[f"{name} {fits}"] = (content, of_state(folder / "state", name, fits), 70, VitError)
    kinds["beside"] = (beside, beside_state(folder / "beside"), 150, VitError)
    for name in ("run.toml", "metrics.jsonl", "state/status.json", "state/identity.json"):
        content = [(FIXTURE / "interrupted" / name).read_bytes()]
        kinds[f"run {name}"] = (content, run_with(folder / "run", name, False), 15, VitError)
    for name in ("values.json", "model.safetensors", "optimizer.safetensors"):
        kinds[f"run {name}"] = ([(step / name).read_bytes()], run_with(folder / "run", name, True), 15, VitError)
    done: dict[str, tuple[int, int]] = {}
    for kind, (contents, read, count, expected) in kinds.items():
        count = max(3, round(scale * count))
        done[kind] = (count, fuzz(contents, read, count, kind, expected))
    return done


def check(folder: Path, scale: float) -> dict[str, tuple[int, int]]:
    import matplotlib.figure  # noqa: F401 (what is imported late is no growth)
    import sklearn.linear_model  # noqa: F401
    import torch._dynamo  # noqa: F401

    everything(folder, 0.001)
    before = resident_mb()
    with limits():
        done = everything(folder, scale)
    assert resident_mb() - before < GROWTH_MB
    assert all(
        refused > 0
        for kind, (_, refused) in done.items()
        if kind in ("safetensors", "npz", "pth", "images", "toml", "labels")
    )
    return done


def test_row_35_some_mutated_inputs_of_every_kind(tmp_path: Path) -> None:
    check(tmp_path, 0.01)


@pytest.mark.slow
def test_row_35_ten_thousand_mutated_inputs_of_every_kind(tmp_path: Path) -> None:
    done = check(tmp_path, 1.0)
    print(json.dumps(done))
    assert sum(count for count, _ in done.values()) >= 10_000
