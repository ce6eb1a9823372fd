"""Row 35: bytes that nobody meant. Each is read, or refused by an error of vit's own."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import resource
import shutil
import signal
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import draw_image
from vitcli import api, files, runs
from vitcli.classes import read_labels
from vitcli.config import DataConfig, read_toml
from vitcli.data.colour import BadImage
from vitcli.data.decode import View, decode
from vitcli.data.sources import open_source
from vitcli.errors import VitError
from vitcli.train import state
from vitcli.train.plan import Request
from vitcli.train.runlog import read_lines, rewind
from vitcli.weights import checkpoint

FIXTURE = Path(__file__).parents[1] / "fixtures" / "0.1"
MEMORY = 3 * 2**30
"""Bytes of address space that reading a mutated file of kilobytes may take at most."""
GROWTH_MB = 400
"""Of a process that reads all of them; allocators keep what single ones took for a moment."""
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
    for content in contents if contents is not NAMES else ():
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


# --- data: names, tables, containers ---


def filled(folder: Path) -> list[str]:
    """Eight small images of two classes."""
    names = [f"{name}/{index}.png" for name in ("cat", "dog") for index in range(4)]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw_image(number // 4, number, 8).save(folder / name)
    return names


def all_of(path: Path) -> None:
    """What a plan does with data: found, arranged, parted, every image decoded."""
    source = open_source(DataConfig(source=str(path)))
    for part in (source.train(), source.held_out()):
        for position, (blob, _) in enumerate(part.blobs(np.arange(len(part)))):
            part.describe(position)
            with suppress(BadImage):
                decode(blob or b"", View((8, 8)), 1.0)
    json.dumps([source.identity(), *source.notes, *(c.as_json() for c in source.classes)]).encode()


def of_table(folder: Path, name: str) -> Read:
    filled(folder)
    return from_file(folder / name, lambda path: all_of(folder if path.stem == "metadata" else path))


def of_name(folder: Path, form: str) -> Read:
    """A file, a class or a class in a table that is called as the bytes say."""
    names = filled(folder / "kept")

    def read(blob: bytes) -> None:
        name = os.fsdecode(blob.replace(b"/", b"").replace(b"\0", b"")[:255]) or "x"
        root = folder / "named"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(folder / "kept", root)
        if form == "table":
            text = io.StringIO()
            csv.writer(text).writerows([("path", "label"), *((n, name if i < 3 else "b") for i, n in enumerate(names))])
            (root / "t.csv").write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape", newline="")
            all_of(root / "t.csv")
            return
        with suppress(OSError):  # no disk takes . and .., or what is too long with an ending
            if form == "file":
                (root / "cat" / "0.png").rename(root / "cat" / (name[:251] + ".png"))
            else:
                (root / "cat").rename(root / name)
        all_of(root)

    return read


NAMES = [
    b"cat", b"train", b"test", b"-rf", b"--help", b"a\nb", b"\x1b[31mred\x1b[0m", b"\xff\xfe", b"\xed\xa0\x80", b" ", b".", b"..", b"~", b"$HOME",
    b"x" * 255, "größe".encode(), b"a=b,c;d\te", b"'\"`|<>&", b"http:", b"zip:::x", b"*?[a]", b"\\host\\x", b"0001", b"1e5", b"NaN", b"%00%s{}",
    "\u202e\u0085\u2028".encode(),
]  # fmt: skip


def tables(folder: Path) -> dict[str, tuple[list[bytes], Read]]:
    names = filled(folder)
    labels = ["cat"] * 4 + ["dog"] * 4
    comma, tab = (
        "".join(f"{n}{mark}{c}\n" for n, c in zip(["path", *names], ["label", *labels], strict=True)) for mark in ",\t"
    )
    lines = "".join(json.dumps({"path": n, "label": c}) + "\n" for n, c in zip(names, labels, strict=True))
    splits = "".join(
        f"{n};{c};{'train' if i % 2 else 'test'}\n" for i, (n, c) in enumerate(zip(names, labels, strict=True))
    )
    blobs = [{"bytes": (folder / n).read_bytes(), "path": n} for n in names]
    columns = pa.table({"image": pa.array(blobs), "label": pa.array(labels)})
    parquet = pa.BufferOutputStream()
    pq.write_table(columns, parquet)
    arrow = pa.BufferOutputStream()
    with pa.ipc.new_stream(arrow, columns.schema) as writer:
        writer.write_table(columns)
    archive, tape = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped, tarfile.open(fileobj=tape, mode="w") as taped:
        for number, (name, label) in enumerate(zip(names, labels, strict=True)):
            zipped.write(folder / name, name)
            taped.add(folder / name, f"{number}.png")
            entry = tarfile.TarInfo(f"{number}.cls")
            entry.size = 1
            taped.addfile(entry, io.BytesIO(b"0" if label == "cat" else b"1"))
    contents = {
        "t.csv": [comma.encode(), b"path;label;split\n" + splits.encode(), comma.encode("utf-16")], "t.tsv": [tab.encode()],
        "t.jsonl": [lines.encode()], "metadata.csv": [comma.replace("path", "file_name").encode()],
        "t.parquet": [parquet.getvalue().to_pybytes()], "t.arrow": [arrow.getvalue().to_pybytes()],
        "t.zip": [archive.getvalue()], "t.tar": [tape.getvalue()],
    }  # fmt: skip
    return {
        name: (blobs, of_table(folder / Path(name).suffix[1:] / Path(name).stem, name))
        for name, blobs in contents.items()
    }


STARTS = [
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\xffWEBPVP8X", b"GIF89a\xff\xff\xff\xff", b"BM", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08",
    b"II+\0\x08\0\0\0\x10", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"DDS \x7c\0\0\0", b"qoif\0\0\xea\x60\0\0\xea\x60\4\0",
    b"\x59\xa6\x6a\x95", b"8BPS\0\1", b"\0\0\0\x20ftypavif", b"\0\0\0\x20ftypheic", b"P6 60000 60000 255\n", b"P1\n", b"Pf\n9 9\n-1\n", b"\x0a\5\1\x08",
    b"\x01\xda\1\1", b"\0\0\2\0\0\0\0\0", b"\0\0\1\0\1\0", b"icns", b"%!PS-Adobe", b"%PDF-1.4", b"\xd7\xcd\xc6\x9a", b"SIMPLE  =", b"\x89HDF\r\n\x1a\n",
    b"BUFR", b"GRIB", b"<svg", b"\x1f\x8b\x08", b"PK\3\4", b"FLIF", b"\xff\x0a", b"BLP2", b"MThd", b"\x93NUMPY",
]  # fmt: skip


def glued(blob: bytes) -> None:
    """The start of one format on the body of another."""
    decoded(blob)
    start = STARTS[len(blob) % len(STARTS)]
    with suppress(BadImage):
        decoded(start + blob[len(start) :])
    with suppress(BadImage):
        decoded(start + blob)


HEADER = "vit"
"""The key of vit's own document in the header of a safetensors file."""


def provenance(path: Path) -> tuple[list[bytes], Read]:
    """The document in a checkpoint's header; the rest of the file is whole."""
    with safe_open(FIXTURE / "finished" / "model.safetensors", "np") as file:
        metadata = file.metadata()
    tensors = load_file(FIXTURE / "finished" / "model.safetensors")

    def read(blob: bytes) -> None:
        save_file(tensors, path, metadata | {HEADER: blob.decode("utf-8", "replace")})
        checkpoint.load(str(path))

    return [metadata[HEADER].encode()], read


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
        runs.status(folder)

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
    kinds["images"] = (images(), decoded, 3000, BadImage)
    kinds["toml"] = (toml, from_file(folder / "fuzzed.toml", read_toml), 900, VitError)
    kinds["labels"] = (LABELS, from_file(folder / "labels", lambda path: read_labels(str(path), 3)), 700, VitError)
    kinds["glued"] = (images(), glued, 2500, BadImage)
    kinds["provenance"] = (*provenance(folder / "said.safetensors"), 1000, VitError)
    for kind, pair in tables(folder / "tables").items():
        kinds[kind] = (*pair, 500, VitError)
    for form in ("file", "class", "table"):
        kinds[f"name of a {form}"] = (NAMES, of_name(folder / f"names of a {form}", form), 800, VitError)
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
def test_row_35_twenty_thousand_mutated_inputs_of_every_kind(tmp_path: Path) -> None:
    done = check(tmp_path, 1.0)
    print(json.dumps(done))
    assert sum(count for count, _ in done.values()) >= 20_000
