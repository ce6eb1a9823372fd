"""Streams: every row once an epoch, for any number of processes and any place to go on from; files anywhere, flaky or gone."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from conftest import run_vit
from processes import Processes, Started
from vitcli.config import Config, apply
from vitcli.data import shards as shards_module
from vitcli.data.cache import working_view
from vitcli.data.loader import StreamLoader
from vitcli.data.shards import Groups, Remote, Traffic, expanded
from vitcli.data.stream import StreamOrder
from vitcli.data.stream_images import StreamImages
from vitcli.data.streaming import open_stream
from vitcli.errors import DataError
from vitcli.world import World

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 40, 210)}


def blob(label: str, number: int) -> bytes:
    out = io.BytesIO()
    pixels = np.full((8, 8, 3), COLOURS[label], np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = number % 256, number // 256 % 256, number // 65536
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write(path: Path, numbers: range, group: int, labels: str = "text") -> None:
    names = [list(COLOURS)[n % 3] for n in numbers]
    column = names if labels == "text" else [n % 3 for n in numbers]
    images = [{"bytes": blob(name, n), "path": f"{n}.png"} for name, n in zip(names, numbers, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": column, "number": list(numbers)}), path, row_group_size=group)


def make(folder: Path, rows: int = 210, files: int = 7, group: int = 9, test: int = 30) -> Path:
    """Files of unequal lengths."""
    cuts = [0, *sorted(random.Random(rows).sample(range(1, rows), files - 1)), rows]
    for index in range(files):
        write(folder / f"train-{index:05d}.parquet", range(cuts[index], cuts[index + 1]), group)
    if test:
        write(folder / "test-00000.parquet", range(rows, rows + test), 64)
    return folder


def number_of(pixels: NDArray[np.uint8]) -> int:
    """The number that `blob` wrote into an image."""
    low, middle, high = (int(pixels[0, i, 0]) for i in range(3))
    return low + 256 * middle + 65536 * high


# --- the order ---------------------------------------------------------------------------------------------


def groups_of(rows: list[int], size: int = 100) -> Groups:
    counts = np.array(rows, np.int64)
    return Groups(np.arange(len(rows)), np.zeros(len(rows), np.int64), counts, counts * size)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    batch=st.integers(1, 96),
    seed=st.integers(0, 2**40),
    window=st.integers(1, 64),
)
def test_each_row_comes_once_an_epoch_wherever_reading_begins(
    rows: list[int], batch: int, seed: int, window: int
) -> None:
    order = StreamOrder(groups_of(rows), batch, seed)
    order.window = max(order.chunk, window)
    n = sum(rows)
    whole, epochs = order.take(0, 3 * n)
    for epoch in range(3):
        assert sorted(whole[epochs == epoch].tolist()) == list(range(n))
    assert epochs.tolist() == [i // n for i in range(3 * n)]
    again = StreamOrder(groups_of(rows), batch, seed)
    again.window = order.window
    start = seed % (2 * n)
    assert again.take(start, n)[0].tolist() == whole[start : start + n].tolist()
    for first in range(0, 3 * n - batch, max(1, n // 3)):  # what is to be in memory has all that is read
        here = np.ones(batch, bool)
        found = np.searchsorted(order.groups.first, order.take(first, batch)[0], "right") - 1
        assert set(found.tolist()) <= order.windows(first, batch, here)


def test_an_epoch_is_shuffled_and_each_is_another() -> None:
    order = StreamOrder(groups_of([50] * 40), 64, 0)
    first, _ = order.take(0, 2000)
    second, _ = order.take(2000, 2000)
    assert (first != second).mean() > 0.9
    assert abs(np.corrcoef(first, np.arange(2000))[0, 1]) < 0.1
    batch = first[:64] // 50  # of sorted files, a batch has images of many groups
    assert len(set(batch.tolist())) >= 20


def test_repeats_come_in_a_row() -> None:
    order = StreamOrder(groups_of([10] * 6), 12, 0, repeats=3)
    rows, _ = order.take(0, 60)
    assert (rows.reshape(-1, 3) == rows.reshape(-1, 3)[:, :1]).all()
    assert len(set(rows.tolist())) == 20 and order.copies(0, 6).tolist() == [0, 1, 2, 0, 1, 2]


def test_a_process_reads_its_part_of_the_groups() -> None:
    order = StreamOrder(groups_of([100] * 256), 64, 0)
    own = np.arange(64) < 16
    needed = {group for step in range(order.n // 64) for group in order.windows(step * 64, 64, own)}
    assert len(needed) <= 0.25 * 256 + 17  # a quarter, and what lies across the ends of its lanes


# --- the rows ----------------------------------------------------------------------------------------------


def loader_of(folder: Path | str, world: World, **more: Any) -> StreamLoader:
    values = {"data.source": str(folder), "data.stream": True, "train.batch_size": 12, "augment.crop": "none"}
    values |= {"model.img_size": (8, 8), "model.patch": (4, 4), "augment.flip": False, "data.workers": 4}
    config = apply(Config(), values | {key.replace("__", "."): value for key, value in more.items()})
    stream = open_stream(config.data).stream
    assert stream is not None
    view = working_view((8, 8), True, (8, 8), config.augment)
    return StreamLoader(StreamImages(stream, view, config.data), config, torch.device("cpu"), True, world=world)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_of_four_workers_over_seven_files_read_each_image_once(tmp_path: Path, processes: int) -> None:
    folder, epochs, rows = make(tmp_path / "d"), 2, 204
    folder = make(tmp_path / "e", rows=rows)
    seen: Counter[int] = Counter()
    steps = epochs * rows // 12
    for rank in range(processes):
        loader = loader_of(folder, World(processes, rank, rank))
        batches = loader.batches(0)
        for step in range(steps):
            batch = next(batches)
            start = rank * 12 // processes
            ids = loader.ids(step)[start : start + 12 // processes]
            assert batch.ids.tolist() == ids.tolist()
            assert batch.labels is not None
            assert batch.labels.tolist() == [{"blue": 0, "green": 1, "red": 2}[list(COLOURS)[i % 3]] for i in ids]
            raw = loader.images.read(np.array(ids))[0]
            assert [number_of(image.transpose(1, 2, 0)) for image in raw] == ids.tolist()
            seen.update(ids.tolist())
        batches.close()
    assert seen == Counter(dict.fromkeys(range(rows), epochs))


def test_training_by_two_is_training_by_one(tmp_path: Path) -> None:
    make(tmp_path / "d")
    options = [
        "pretrain",
        "--data",
        "d",
        "--set",
        "data.stream=true",
        "--model",
        "mu/4",
        "--batch-size",
        "24",
        "--steps",
        "24",
    ]
    options += ["--device", "cpu", "--precision", "fp32", "--json", "--set", "train.log_every_steps=1"]
    options += ["--set", "optim.name=sgd", "--set", "optim.lr=0.02", "--set", "augment.mixup=0.4"]
    alone = run_vit(*options, "--out", "one", cwd=tmp_path)
    assert alone.code == 0, alone.err
    assert alone.json["eval"]["n"] == 30
    first, second = Processes([*options, "--out", "two"], 2, tmp_path).wait()
    assert (first.code, second.code) == (0, 0), first.err
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5, abs=1e-5)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_killed_and_resumed_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    make(tmp_path / "d")
    options = [
        "pretrain",
        "--data",
        "d",
        "--set",
        "data.stream=true",
        "--model",
        "mu/4",
        "--batch-size",
        "24",
        "--steps",
        "60",
    ]
    options += ["--device", "cpu", "--json", "--set", "train.log_every_steps=1", "--set", "train.save_every_steps=3"]
    whole = run_vit(*options, "--out", "whole", cwd=tmp_path)
    assert whole.code == 0, whole.err
    for number in range(3):
        started = Started([*options, "--out", "killed"], tmp_path)
        started.until(_has_lines, tmp_path / "killed", 10 * (number + 1))
        started.send(signal.SIGKILL)
        started.wait()
    done = run_vit(*options, "--out", "killed", cwd=tmp_path)
    assert done.code == 0 and done.json["resumed_from"], done.err
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert (tmp_path / "killed" / "model.safetensors").stat().st_size
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert a[-1000:] == b[-1000:]


def _has_lines(folder: Path, count: int) -> bool:
    path = folder / "metrics.jsonl"
    return path.exists() and len(path.read_text().splitlines()) >= count


# --- what is wrong with data -------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["text", "numbers"])
def test_classes_follow_the_files(tmp_path: Path, labels: str) -> None:
    write(tmp_path / "train-0.parquet", range(30), 7, labels)
    write(tmp_path / "validation-0.parquet", range(30, 42), 7, labels)
    source = open_stream(apply(Config(), {"data.source": str(tmp_path), "data.stream": True}).data)
    assert [c.name for c in source.classes] == (["blue", "green", "red"] if labels == "text" else ["0", "1", "2"])
    held = source.held_out()
    assert held.labels is not None and len(held) == 12 and source.held_out_split == "validation"


def refused(folder: Path, **more: Any) -> DataError:
    with pytest.raises(DataError) as raised:
        loader = loader_of(folder, World(), **more)
        for step in range(3):
            loader.batch(step)
    return raised.value


def test_an_image_that_cannot_be_read_is_named_by_file_and_row(tmp_path: Path) -> None:
    make(tmp_path / "d", rows=36, files=2)
    table = pq.read_table(tmp_path / "d" / "train-00001.parquet").to_pylist()
    table[3]["image"]["bytes"] = b"no image"
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "d" / "train-00001.parquet", row_group_size=5)
    error = refused(tmp_path / "d")
    assert re.search(r"row 3 of .*train-00001\.parquet", error.message) and "on_bad_image=skip" in error.hint
    loader = loader_of(tmp_path / "d", World(), data__on_bad_image="skip")
    for step in range(3):
        assert len(loader.batch(step)) == 12
    assert "row 3 of" in loader.images.damage and len(loader.images.replaced) == 1


def test_what_takes_a_bad_image_s_place_does_not_depend_on_what_is_read_with_it(tmp_path: Path) -> None:
    make(tmp_path / "d", rows=36, files=1, group=9)
    path = tmp_path / "d" / "train-00000.parquet"
    table = pq.read_table(path).to_pylist()
    for row in (3, 7, 8, 20):
        table[row]["image"]["bytes"] = b"no image"
    pq.write_table(pa.Table.from_pylist(table), path, row_group_size=9)
    loader = loader_of(tmp_path / "d", World(), data__on_bad_image="skip")
    together, _, labels = loader.images.read(np.arange(36))
    numbers = [number_of(image.transpose(1, 2, 0)) for image in together]
    assert [numbers[row] for row in (3, 7, 8, 20)] == [4, 0, 0, 21]  # the next of the nine that can be read
    assert labels is not None
    for row in range(36):
        alone, _, label = loader.images.read(np.array([row]))
        assert (alone[0] == together[row]).all() and label is not None and label[0] == labels[row]
    assert loader.images.replaced == {3, 7, 8, 20}


def test_a_label_that_is_no_class_is_named_by_file_and_row(tmp_path: Path) -> None:
    make(tmp_path / "d", rows=36, files=2)
    table = pq.read_table(tmp_path / "d" / "train-00000.parquet").to_pylist()
    table[2]["label"] = None
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "d" / "train-00000.parquet")
    assert re.search(r"row 2 of .*train-00000\.parquet has label None", refused(tmp_path / "d").message)


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "another schema"])
def test_a_file_that_is_not_a_whole_one_is_named(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "d", rows=36, files=3)
    path = tmp_path / "d" / "train-00001.parquet"
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif kind == "text":
        path.write_text("not a table" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        pq.write_table(pa.table({"other": [1, 2]}), path)
    assert "train-00001.parquet" in refused(tmp_path / "d").message


def test_pages_that_are_damaged_end_the_run_with_its_state(tmp_path: Path) -> None:
    make(tmp_path / "d", rows=2400, files=4, group=50)
    path = tmp_path / "d" / "train-00002.parquet"
    footer = pq.read_metadata(path)
    chunk = footer.row_group(footer.num_row_groups - 1).column(0)
    content = bytearray(path.read_bytes())
    at = chunk.data_page_offset
    content[at : at + 60] = b"\0" * 60
    path.write_bytes(bytes(content))
    done = run_vit(
        "pretrain", "--data", "d", "--set", "data.stream=true", "--model", "mu/4", "--batch-size", "8", "--steps", "400",
        "--out", "r", "--device", "cpu", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 3 and "train-00002.parquet" in done.err, done.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "data.fraction=0.5"], "data.fraction"),
        (["--set", "data.balanced=true"], "data.balanced"),
        (["--data", "d/../e"], "no Parquet files"),
        (["--set", "data.train_split=dev"], "there are: test, train"),
        (["--set", "data.label_column=none"], "no column 'none'"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(tmp_path: Path, more: list[str], said: str) -> None:
    make(tmp_path / "d", rows=30, files=2)
    (tmp_path / "e").mkdir()
    done = run_vit("pretrain", "--data", "d", "--set", "data.stream=true", "--dry-run", *more, cwd=tmp_path)
    assert done.code in (2, 3) and said in done.err, done.err


def test_a_plan_of_a_stream(tmp_path: Path) -> None:
    make(tmp_path / "d", rows=90, files=3)
    done = run_vit("pretrain", "--data", "d", "--set", "data.stream=true", "--dry-run", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["data"] == {"splits": [{"name": "train", "rows": 90}, {"name": "test", "rows": 30}], "classes": 3}


def test_a_new_head_on_a_stream_and_its_evaluation(tmp_path: Path) -> None:
    make(tmp_path / "d", rows=120, files=3)
    assert (
        run_vit("pretrain", "--data", "digits", "--model", "mu/4", "--steps", "4", "--out", "p", cwd=tmp_path).code == 0
    )
    done = run_vit(
        "finetune", "p", "--data", "d", "--set", "data.stream=true", "--steps", "30", "--batch-size", "16", "--out", "f", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0 and done.json["eval"]["n"] == 30, done.err
    again = run_vit("eval", "f", "--set", "data.stream=true", "--json", cwd=tmp_path)
    assert again.code == 0 and again.json["top1"] == done.json["eval"]["top1"], again.err


# --- elsewhere ---------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Files of a folder with ranges, slow, and failing now and then: `failing` is the part of requests that do, `gone` all of them."""

    daemon_threads = True
    failing, delay, gone, ranges = 0.0, 0.0, False, True

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.failed, self.random = folder, 0, 0, random.Random(0)
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, with_body: bool) -> None:
        server = self.server
        server.asked += 1
        time.sleep(server.delay)
        if server.gone or server.random.random() < server.failing:
            server.failed += 1
            kind = server.random.randrange(3)
            if kind == 0:
                self.connection.close()
                return
            self.send_error(503 if kind == 1 else 500)
            return
        content = (server.folder / self.path.lstrip("/")).read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if server.ranges else None
        part = content[int(asked[1]) : int(asked[2]) + 1] if asked else content
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {asked[1]}-{asked[2]}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if with_body:
            self.wfile.write(part)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    make(tmp_path / "served", rows=300, files=6, group=10)
    server = Server(tmp_path / "served")
    yield server
    server.shutdown()
    server.server_close()


def remote(server: Server, steps: int = 25) -> list[str]:
    data = f"{server.address}/train-{{00000..00005}}.parquet,{server.address}/test-00000.parquet"
    options = ["pretrain", "--data", data, "--set", "data.stream=true", "--model", "mu/4", "--batch-size", "24"]
    return [
        *options,
        "--steps",
        str(steps),
        "--device",
        "cpu",
        "--json",
        "--out",
        "r",
        "--set",
        "train.log_every_steps=1",
    ]


def test_a_slow_and_flaky_source(server: Server, tmp_path: Path) -> None:
    server.failing, server.delay = 0.05, 0.02
    done = run_vit(*remote(server), cwd=tmp_path)
    assert done.code == 0, done.err
    assert server.failed > 0
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    reads = [(line["read_bytes"], line["read_retries"]) for line in lines if "read_bytes" in line]
    assert reads == sorted(reads) and reads[-1][0] > 10_000 and reads[-1][1] > 0
    assert "reads tried again so far" in done.err


def test_a_server_without_ranges_is_read_as_well(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    done = run_vit(*remote(server, 6), cwd=tmp_path)
    assert done.code == 0, done.err


def test_a_source_that_is_gone(server: Server, tmp_path: Path) -> None:
    images = pa.array([{"bytes": blob(name, 0), "path": None} for name in COLOURS])
    for index in range(6):  # more than waits in memory
        rows = np.arange(8000) % 3
        table = pa.table({"image": images.take(pa.array(rows)), "label": np.array(list(COLOURS))[rows]})
        pq.write_table(table, server.folder / f"train-{index:05d}.parquet", row_group_size=100)
    started = Started([*remote(server, 4000), "--set", "data.retries=2"], tmp_path)
    started.until(_has_lines, tmp_path / "r", 5)
    server.gone = True
    done = started.wait()
    assert server.address in done.err and "tried 3 times" in done.err, done.err
    said = json.loads((tmp_path / "r" / "state" / "status.json").read_text())
    assert done.code == 3 and said["code"] == 3 and said["step"] >= 5
    assert (tmp_path / "r" / "state" / f"step-{said['step']:09d}" / "model.safetensors").exists()


def test_what_is_not_there_is_not_asked_for_again(tmp_path: Path) -> None:
    traffic = Traffic()
    with pytest.raises(DataError, match="tried 1 time"):
        _ = Remote(str(tmp_path / "none.parquet"), 5, traffic).size
    assert traffic.retries == 0


def test_reads_are_tried_as_often_as_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(shards_module.time, "sleep", waited.append)
    file = Remote(str(tmp_path / "x.parquet"), 3, Traffic())
    (tmp_path / "x.parquet").write_bytes(b"abc")
    with pytest.raises(DataError, match="tried 4 times"):
        file.read(0, 10)
    assert len(waited) == 3 and waited == sorted(waited)


@pytest.mark.parametrize(
    ("address", "count"), [("a-{000..003}.parquet", 4), ("a.parquet", 1), ("{1..2}/{5..7}", 6), ("a-{8..11}", 4)]
)
def test_ranges_of_names(address: str, count: int) -> None:
    names = expanded(address)
    assert len(set(names)) == count
    if address.startswith("a-{000"):
        assert names[0] == "a-000.parquet" and names[-1] == "a-003.parquet"
    with pytest.raises(DataError):
        expanded("a-{5..2}")


def test_a_signal_saves_a_stream_s_run(server: Server, tmp_path: Path) -> None:
    started = Started(remote(server, 4000), tmp_path)
    started.until(_has_lines, tmp_path / "r", 5)
    started.send(signal.SIGTERM)
    assert started.ended(120)[0] == 75


def test_a_held_out_file_that_changed_at_its_address_is_copied_once_more(tmp_path: Path) -> None:
    """To the byte as long as before: a label was corrected."""
    make(tmp_path / "d", test=0)
    images = [{"bytes": blob("red", n), "path": f"{n}.png"} for n in range(3)]
    seen = []
    for labels in (["red", "blue", "green"], ["blue", "red", "green"]):
        table = pa.table({"image": images, "label": labels})
        pq.write_table(table, tmp_path / "d" / "test-0.parquet", compression="none", use_dictionary=False)
        data = apply(Config(), {"data.source": f"file://{tmp_path / 'd'}", "data.stream": True}).data
        seen.append(
            ((tmp_path / "d" / "test-0.parquet").stat().st_size, open_stream(data).splits["test"].labels.tolist())
        )
    assert seen[0][0] == seen[1][0]
    assert [labels for _, labels in seen] == [[2, 0, 1], [0, 2, 1]]


def test_an_image_that_cannot_be_read_counts_once_whoever_reads_it(tmp_path: Path) -> None:
    names = [list(COLOURS)[n % 3] for n in range(60)]
    images = [{"bytes": b"none" if n in (7, 41) else blob(names[n], n), "path": f"{n}.png"} for n in range(60)]
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"image": images, "label": names}), tmp_path / "d" / "train-0.parquet", row_group_size=9)
    options = [
        "pretrain",
        "--data",
        "d",
        "--set",
        "data.stream=true",
        "--model",
        "mu/4",
        "--batch-size",
        "12",
        "--steps",
        "12",
    ]
    options += ["--device", "cpu", "--precision", "fp32", "--json", "--set", "data.on_bad_image=skip"]
    for count in (1, 2):
        first, *others = Processes([*options, "--out", f"run-{count}"], count, tmp_path).wait()
        assert [first.code, *(p.code for p in others)] == [0] * count, first.err
        assert json.loads(first.out)["unreadable"] == {"train": 2}


@pytest.mark.parametrize("labels", [pa.array([True, False] * 5), pa.array(["b", "a"] * 5).dictionary_encode()])
def test_kinds_of_labels_that_a_stream_reads_as_any_other_data(tmp_path: Path, labels: pa.Array) -> None:
    images = [{"bytes": blob("red", n), "path": f"{n}.png"} for n in range(10)]
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "train-0.parquet")
    loader = loader_of(tmp_path, World(), train__batch_size=10)
    batch = next(batches := loader.batches(0))
    batches.close()
    assert batch.labels is not None
    assert batch.labels.tolist() == [1 - i % 2 for i in batch.ids.tolist()]


@pytest.mark.parametrize("command", [("data",), ("probe", "run", "--data")])
def test_commands_that_look_at_images_refuse_a_stream(tmp_path: Path, command: tuple[str, ...]) -> None:
    make(tmp_path / "d")
    options = ["pretrain", "--model", "mu/4", "--batch-size", "12", "--steps", "1", "--out", "run", "--device", "cpu"]
    if "probe" in command:
        assert run_vit(*options, "--data", "d", cwd=tmp_path).code == 0
    done = run_vit(*command, "d", "--set", "data.stream=true", cwd=tmp_path)
    assert done.code == 2 and "leave data.stream out" in done.err


def test_files_whose_labels_mean_something_else_are_refused(tmp_path: Path) -> None:
    def numbered(names: list[str], path: Path) -> None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = pa.table({"image": [{"bytes": blob("red", 1), "path": "a.png"}] * 3, "label": [0, 1, 2]})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)

    numbered(["red", "green", "blue"], tmp_path / "a" / "train-0.parquet")
    numbered(["blue", "green", "red"], tmp_path / "a" / "train-1.parquet")
    write(tmp_path / "b" / "train-0.parquet", range(9), 9, "numbers")
    write(tmp_path / "b" / "train-1.parquet", range(9), 9)
    for folder, said in (("a", "names other classes"), ("b", "holds text, not integers as")):
        with pytest.raises(DataError, match=said):
            open_stream(apply(Config(), {"data.source": str(tmp_path / folder), "data.stream": True}).data)


def test_the_name_of_an_addressed_folder_says_no_split(tmp_path: Path) -> None:
    write(tmp_path / "test" / "train-0.parquet", range(9), 9)
    write(tmp_path / "test" / "more-0.parquet", range(9, 12), 9)
    write(tmp_path / "test" / "test-0.parquet", range(12, 18), 9)
    for address in (f"file://{tmp_path / 'test'}", f"file://{tmp_path / 'test'}/"):
        source = open_stream(apply(Config(), {"data.source": address, "data.stream": True}).data)
        assert {name: len(part) for name, part in source.splits.items()} == {"test": 6}


def config_of(source: object, **more: Any) -> Any:
    return apply(Config(), {"data.source": str(source), "data.stream": True} | more).data


def test_a_pattern_names_files(tmp_path: Path) -> None:
    make(tmp_path / "d", rows=60, files=4)
    stream = open_stream(config_of(f"{tmp_path}/d/train-0000[01]*.parquet")).stream
    assert stream is not None and len(stream.shards.files) == 2
    stream = open_stream(config_of(f"{tmp_path}/d/train-*1.parquet")).stream
    assert stream is not None and len(stream.shards.files) == 1


def test_what_is_held_out_is_not_trained_on_because_nothing_else_is_there(tmp_path: Path) -> None:
    write(tmp_path / "d" / "test-0.parquet", range(12), 6)
    with pytest.raises(DataError, match="no files to train on"):
        open_stream(config_of(tmp_path / "d"))
    write(tmp_path / "d" / "extra_unlabeled-0.parquet", range(12), 6)
    stream = open_stream(config_of(tmp_path / "d", **{"data.train_split": "test"})).stream
    assert stream is not None and stream.name == "test"


def test_labels_that_are_none_do_not_stop_what_learns_without(tmp_path: Path) -> None:
    images = [{"bytes": blob("red", n), "path": None} for n in range(48)]
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"image": images, "label": [-1] * 48}), tmp_path / "d" / "train-0.parquet")
    options = [
        "pretrain",
        "--data",
        "d",
        "--set",
        "data.stream=true",
        "--model",
        "mu/4",
        "--steps",
        "3",
        "--batch-size",
        "8",
    ]
    done = run_vit(*options, "--objective", "mae", "--json", cwd=tmp_path)
    assert done.code == 0 and done.json["eval"] is None and "train.monitor" in done.err, done.err
    refused = run_vit(*options, "--out", "r", cwd=tmp_path)
    assert refused.code == 3 and "no labels" in refused.err


def test_one_class_is_none(tmp_path: Path) -> None:
    images = [{"bytes": blob("red", n), "path": None} for n in range(48)]
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"image": images, "label": ["red"] * 48}), tmp_path / "d" / "train-0.parquet")
    done = run_vit("pretrain", "--data", "d", "--set", "data.stream=true", "--dry-run", cwd=tmp_path)
    assert done.code == 3 and "a classifier needs two" in done.err


def test_files_that_lie_elsewhere_are_the_same_and_others_are_not(tmp_path: Path) -> None:
    make(tmp_path / "a", rows=60, files=3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = (open_stream(config_of(tmp_path / name)).stream for name in ("a", "b"))
    assert first is not None and second is not None and first.identity == second.identity
    write(
        tmp_path / "b" / "train-00000.parquet",
        range(100, 100 + pq.read_metadata(tmp_path / "b" / "train-00000.parquet").num_rows),
        9,
    )
    third = open_stream(config_of(tmp_path / "b")).stream
    assert third is not None and third.identity != first.identity
