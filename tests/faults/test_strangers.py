"""Rows 39, 41, 42 and 52 on whole commands: what a stranger's files may make vit dial, open, wait for or allocate."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from conftest import Vit, draw_image
from listening import listening
from processes import run
from vitcli.config import DataConfig
from vitcli.data.identity import Contents
from vitcli.data.sources import open_source
from vitcli.data.split import Split, carve
from vitcli.errors import DataError
from vitcli.evaluate.named import NoImage, expand

SECONDS, MEGABYTES = 60, 700
"""In which a process answers, and that it may grow to beyond its libraries."""


@pytest.fixture
def listener() -> Iterator[tuple[str, list[bytes]]]:
    """An address on this machine, and what was said to it."""
    with listening() as found:
        yield found.address, found.calls


def dialling(here: str) -> dict[str, str]:
    """An environment in which whoever dials anything dials `here`."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "ftp_proxy"), f"http://{here}")
    online = {
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_ENDPOINT": f"http://{here}",
    }
    return (
        proxies | {name.upper(): value for name, value in proxies.items()} | {"no_proxy": "", "NO_PROXY": ""} | online
    )


def test_row_39_nothing_is_sent_anywhere(
    vit: Vit, class_folders: Path, tmp_path: Path, listener: tuple[str, list[bytes]]
) -> None:
    """Neither by commands on local data and checkpoints, nor for addresses in them."""
    here, heard = listener
    env = dialling(here)
    image = class_folders / "test" / "red" / "000.png"
    small = ["--model", "mu/4", "--steps", 2, "--set", "run.device=cpu"]
    rows = [{"bytes": path.read_bytes()} for path in sorted(class_folders.glob("test/*/*"))]
    table = pyarrow.table({"image": rows, "label": [i % 3 for i in range(len(rows))]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    commands: list[tuple[list[object], int]] = [
        (["pretrain", "--data", "t.parquet", *small], 0),
        (["pretrain", "--data", class_folders, *small, "--out", "run"], 0),
        (["eval", "run", "--json"], 0),
        (["predict", "run", image, "--json"], 0),
        (["info", "run", "--json"], 0),
        (["export", "run", "exported", "--format", "timm"], 0),
        (["export", "run", "model.onnx", "--format", "onnx"], 0),
    ]
    for arguments, code in commands:
        done = vit(*arguments, env=env)
        assert done.code == code, (arguments, done.err)
        assert not heard, (arguments, heard)
    addresses = class_folders / "addresses.csv"
    addresses.write_text(f"image,label\ntrain/red/000.png,a\nhttp://{here}/x.png,b\n")
    assert vit("pretrain", "--data", addresses, *small, env=env).code == 3
    addresses.unlink()
    assert not heard
    assert vit("predict", "run", f"http://{here}/x.png", "--json", env=env).code == 3
    assert heard, "an address that is named on the command line is asked for"


def test_row_39_the_listener_hears_who_asks_the_hub(vit: Vit, listener: tuple[str, list[bytes]]) -> None:
    """Or the test before this one would prove nothing."""
    here, heard = listener
    assert vit("pretrain", "--data", "someone/cats", "--steps", 1, env=dialling(here)).code == 3
    assert heard


# --- 42: what is no file -----------------------------------------------------------------------------------------

ODD: dict[str, Callable[[Path], Any]] = {
    "a pipe": os.mkfifo,
    "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "/dev/random": lambda path: path.symlink_to("/dev/random"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a file without end that is called empty": lambda path: path.symlink_to("/proc/self/pagemap"),
    "the memory of the machine": lambda path: path.symlink_to("/proc/kcore"),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a terabyte of nothing": lambda path: sparse(path),
    "a socket": lambda path: bind(path),
}


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def bind(path: Path) -> None:
    place = socket.socket(socket.AF_UNIX)
    with contextlib.chdir(path.parent):  # a socket's path has 107 bytes at most
        place.bind(path.name)
    place.close()


PLAN = """
import json
import resource
import signal
import sys
import time
from pathlib import Path
from vitcli import api
from vitcli.data.cache import open_images
from vitcli.data.decode import View
from vitcli.errors import VitError
from vitcli.train.plan import Request

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

used = 1024 * int(Path("/proc/self/statm").read_text().split()[0]) * 4
resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, resource.RLIM_INFINITY))  # not the machine's, if it comes to that
for path in sys.argv[1:]:
    signal.alarm(SECONDS)  # ends the process, whatever it waits for
    before, started, code, said = peak(), time.monotonic(), 0, "done"
    try:
        asked = {"data.source": path, "model.name": "mu/4", "train.steps": 1, "run.device": "cpu"}
        plan = api.plan(Request("pretrain", asked))
        for part in plan.splits:
            open_images(part, View((12, 12)), plan.config.data)
    except VitError as error:
        code, said = error.code, error.message
    print(json.dumps([code, said, peak() - before, time.monotonic() - started]), flush=True)
"""


def planned(*paths: Path) -> list[tuple[int, str]]:
    """The exit code and message of plans with all their images decoded, each in time and memory that are bounded."""
    command = [sys.executable, "-c", f"SECONDS = {SECONDS}\n{PLAN}", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS * (1 + len(paths)))
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(paths)
    for _, said, grown, seconds in answers:
        assert grown < MEGABYTES and seconds < SECONDS and len(said) < 2000 and "\n" not in said
    return [(code, said) for code, said, _, _ in answers]


def folder(root: Path, count: int = 4) -> Path:
    for colour, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for index in range(count):
            draw_image(colour, index).save(root / name / f"{index}.png")
    return root


def test_row_42_what_is_no_file_is_named_among_images(tmp_path: Path) -> None:
    roots = [folder(tmp_path / str(number)) for number in range(len(ODD) + 1)]
    for root, make in zip(roots, ODD.values(), strict=False):
        make(root / "cat" / "5.png")
    (roots[-1] / "cat" / "x.png").mkdir()  # a folder of no images
    *answers, last = planned(*roots)
    for name, (code, said) in zip(ODD, answers, strict=True):
        assert code == 3 and "cat/5.png" in said, (name, code, said)
    assert last[0] == 0


def test_row_42_what_is_no_table_is_named(tmp_path: Path) -> None:
    paths = []
    for ending in ("csv", "tsv", "jsonl", "parquet", "arrow", "tar", "zip"):
        for number, name in enumerate(("a pipe", "/dev/zero", "a terabyte of nothing", "a socket")):
            paths.append(tmp_path / f"data{number}.{ending}")
            ODD[name](paths[-1])
    for path, (code, said) in zip(paths, planned(*paths), strict=True):
        assert code == 3 and (str(path) in said or "/dev/zero" in said), said


def test_row_42_a_pipe_within_data_is_named(tmp_path: Path) -> None:
    """In place of a Parquet file of a folder, and of the table of a saved data set."""
    import datasets

    shards, saved = tmp_path / "shards", tmp_path / "saved"
    shards.mkdir()
    os.mkfifo(shards / "data.parquet")
    datasets.Dataset.from_dict({"image": [b"", b""], "label": [0, 1]}).save_to_disk(str(saved))
    table = next(saved.glob("*.arrow"))
    table.unlink()
    os.mkfifo(table)
    for code, said in planned(shards, saved):
        assert code == 3 and "pipe" in said, said


def test_row_42_links_do_not_multiply(tmp_path: Path) -> None:
    """Forty levels of two links each are a million million ways into one folder."""
    data = folder(tmp_path / "data")
    for level in range(40):
        (data / "links" / str(level)).mkdir(parents=True)
        for name in ("a", "b"):
            (data / "links" / str(level) / name).symlink_to(f"../{level + 1}")
    [(code, said)] = planned(data)
    assert code == 3 and "ways" in said


def test_row_42_folders_of_any_depth(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    try:
        with contextlib.chdir(data):
            for _ in range(1200):
                os.mkdir("d")  # noqa: PTH102 (by whole paths it would not fit)
                os.chdir("d")
        assert planned(data)[0][0] in (0, 3)
    finally:
        subprocess.run(["rm", "-rf", data], check=True)  # deeper than pytest goes


def test_row_42_a_folder_that_may_not_be_looked_into_is_no_missing_class(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    (data / "dog").chmod(0)
    for place in (tmp_path, *tmp_path.parents[:3]):
        place.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # an ordinary user
    try:
        with pytest.raises(DataError, match=r"cannot look into .*dog: Permission denied"):
            open_source(DataConfig(source=str(data)))
        named = list(expand([str(data)]))
    finally:
        os.seteuid(user)
        (data / "dog").chmod(0o755)
    faults = [name for name in named if isinstance(name, NoImage)]
    assert len(named) > 1 and [(fault.path, fault.reason) for fault in faults] == [
        (str(data / "dog"), "Permission denied")
    ]


def test_row_42_files_without_permission_are_named(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    (data / "cat" / "2.png").chmod(0)
    part = open_source(DataConfig(source=str(data))).split("all")
    for place in (tmp_path, *tmp_path.parents[:3]):
        place.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # an ordinary user
    try:
        blobs = part.blobs(np.arange(len(part)))
    finally:
        os.seteuid(user)
    assert [part.describe(i) for i, (blob, _) in enumerate(blobs) if blob is None] == [
        f"{data}/cat/2.png (row 2 of split 'train')"
    ]


# --- 52: absurd numbers ------------------------------------------------------------------------------------------


def pictures(root: Path, count: int) -> Path:
    root.mkdir()
    for index in range(count):
        (root / f"{index}.pgm").write_bytes(b"P5 2 2 255\n" + index.to_bytes(4, "big"))
    return root


@pytest.mark.parametrize("shared", [1, 2])
def test_row_52_a_hundred_thousand_classes_are_parted_in_seconds(shared: int) -> None:
    """Each with so many images, of which a class of one alone is trained on."""

    class Numbered(Split):
        def digests(self, progress: Any = None) -> Any:
            return np.uint64(7919) * (1 + self.rows.astype(np.uint64))

    count = 100_000 * shared
    part = Numbered("train", None, "image", np.arange(count), np.arange(count) // shared, Contents(rows=count))
    started = time.monotonic()
    rest, held = carve(part)
    assert time.monotonic() - started < 20
    assert len(rest) + len(held) == count and len(held) == (0 if shared == 1 else 100_000)


def test_row_52_many_classes_in_a_table(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 4000)
    (data / "t.csv").write_text("path,label\n" + "".join(f"{i}.pgm,class {i // 2}\n" for i in range(4000)))
    assert planned(data / "t.csv")[0][0] == 0


HUGE_TABLES: dict[str, Callable[[], str]] = {
    "a label of a megabyte": lambda: (
        "path,label\n" + "".join(f"{i}.pgm,{'x' * 10**6 if i == 3 else i % 2}\n" for i in range(4))
    ),
    "a label of 2,000 letters": lambda: (
        "path,label\n" + "".join(f"{i}.pgm,{'x' * 2000 if i == 3 else i % 2}\n" for i in range(4))
    ),
    "a row of 100 MB": lambda: "path,label\n0.pgm,a\n1.pgm," + "x," * (5 * 10**7) + "\n",
    "100,000 columns": lambda: "path,label" + "".join(f",c{i}" for i in range(10**5)) + "\n0.pgm,a\n1.pgm,b\n",
    "a label of 5,000 digits": lambda: f"path,label\n0.pgm,{'1' * 5000}\n1.pgm,2\n2.pgm,2\n3.pgm,{'1' * 5000}\n",
    "a quote that never ends": lambda: 'path,label\n0.pgm,"' + "a\n" * 10**7,
}


HUGE_ROWS = {
    "deep": '{"path": "0.pgm", "label": ' + "[" * 10**5,
    "deeper": "[" * 10**6,
    "digits": '{"path": "0.pgm", "label": ' + "9" * 10**5 + "}",
    "long": '{"path": "0.pgm", "label": "' + "x" * (2**24) + '"}',
    "a label of a megabyte": '{"path": "0.pgm", "label": "' + "x" * 10**6 + '"}',
    "a path of a megabyte": '{"path": "' + "x" * 10**6 + '.pgm", "label": "' + "x" * 10**6 + '"}',
}


def test_row_52_tables_of_absurd_size_are_refused(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 4)
    paths = []
    for number, content in enumerate(HUGE_TABLES.values()):
        paths.append(data / f"{number}.csv")
        paths[-1].write_text(content())
    for number, row in enumerate(HUGE_ROWS.values()):
        paths.append(data / f"{number}.jsonl")
        paths[-1].write_text('{"path": "1.pgm", "label": "a"}\n{"path": "2.pgm", "label": "a"}\n' + row + "\n")
    for path, (code, said) in zip(paths, planned(*paths), strict=True):
        assert code == 3 and path.name in said, said
        if max(map(len, path.read_bytes().splitlines())) > 2**24:
            assert "longer than" in said, said


def test_row_52_absurd_options_are_refused_on_the_command_line(tmp_path: Path) -> None:
    for arguments in (
        ["--set", "run.threads=100000"],
        ["--set", "run.seed=18446744073709551616"],
        ["--time-budget", "1e9h"],
    ):
        done = run(["pretrain", "--dry-run", *arguments, "--json"], tmp_path)
        assert done.code == 2 and done.json["error"]["kind"] == "usage", done
