"""Rows 44, 45 and 54: names from strangers, terminals without their letters, and lists of files with anything among them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from conftest import Result, draw_image, run_vit
from processes import Started, pretrain, run

NAMES = [
    b"evil\x1b[31mred", b"line\nbreak", b"=cmd|calc", b"<b>&\"`|*x*_y_[z](www.a)", b"caf\xe9", "größe $\\frac$".encode(),
    "\u202egnp".encode(), b"a\ttab",
]  # fmt: skip
FILE = b"i\x1b]0;title\x07 \xff"
MOVES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufffd]")
"""What no output for people has; and what stands for bytes that are no UTF-8."""


def shown(name: bytes) -> str:
    """A class: names of folders are text, JSON holds it."""
    return name.decode("utf-8", "backslashreplace")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data` with odd names of classes and files, and a run on them."""
    root = tmp_path_factory.mktemp("names")
    for split, count, offset in (("train", 6, 0), ("test", 2, 100)):
        for colour, name in enumerate(NAMES):
            folder = root / "data" / split / os.fsdecode(name)
            folder.mkdir(parents=True)
            for index in range(count):
                draw_image(colour, offset + index).save(folder / os.fsdecode(FILE + b"%d.png" % index), "PNG")
    done = run(pretrain("data", steps=2), root)
    assert done.code == 0, done.err
    assert not MOVES.search(done.err)
    return root


def said(place: Path, *arguments: object, before: str = "", code: int = 0) -> Result:
    done = run(arguments, place, before=before)
    assert done.code == code, done.err
    assert not MOVES.search(done.out) and not MOVES.search(done.err), done.out + done.err
    return done


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "run"], ["info", "run", "--keys"], ["eval", "run"], ["eval", "run", "--dry-run"], ["predict", "run", "data/test"],
        ["probe", "run"], ["attn-distance", "run"], ["eval", "run", "--data", "data", "--split", "train"],
        ["pretrain", "--data", "data", "--dry-run"],
    ],
)  # fmt: skip
def test_row_44_nothing_moves_the_cursor_of_a_terminal(place: Path, arguments: list[str]) -> None:
    done = said(place, *arguments)
    if arguments[0] == "predict":
        lines = done.out.splitlines()
        assert len(lines) == 2 * len(NAMES) and all(len(line.split("\t")) == 3 for line in lines)
    as_json = said(place, *arguments, "--json").out
    assert all(json.loads(line) for line in as_json.splitlines())


def test_row_44_errors_too(place: Path) -> None:
    for arguments, code in (
        (["eval", "no\x1b[31m\nsuch"], 4),
        (["eval", "run", "--data", "no\x1b[31m\nsuch"], 3),
        (["eval", "run", "--set", "no\x1b[31m.key=1"], 2),
        (["info", "--\x1b[31m"], 2),
    ):
        done = said(place, *arguments, code=code)
        assert len(done.err.splitlines()) <= 2
        assert json.loads(said(place, *arguments, "--json", code=code).out)["error"]["code"] == code


def test_row_44_json_is_exact(place: Path) -> None:
    classes = said(place, "info", "run", "--json").json["classes"]
    assert sorted(c["name"] for c in classes) == sorted(map(shown, NAMES))
    lines = said(place, "predict", "run", "data/test", "--json").out.splitlines()
    paths = {os.fsencode(json.loads(line)["path"]) for line in lines}
    assert paths == {b"data/test/" + name + b"/" + FILE + b"%d.png" % i for name in NAMES for i in range(2)}


@pytest.mark.parametrize("command", [["predict", "run", "data/test", "--out"], ["eval", "run", "--predictions"]])
def test_row_44_tables(place: Path, tmp_path: Path, command: list[str]) -> None:
    for ending in ("csv", "parquet", "jsonl"):
        said(place, *command, tmp_path / f"t.{ending}")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_bytes().decode(), newline="")))
    exact = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert len(rows) == len(exact) == len(kept) == 2 * len(NAMES)
    assert len((tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()) == 1 + len(rows)
    for row in rows:
        for text in row.values():
            assert not MOVES.search(text or "") and (text or "")[:1] not in ("=", "+", "-", "@")
    assert {os.fsencode(row["path"]).rpartition(b"/")[2] for row in exact} == {FILE + b"%d.png" % i for i in range(2)}
    assert kept[0]["path"].endswith("i\x1b]0;title\x07 \\xff0.png"), "all but bytes that Parquet has no room for"


def test_row_44_a_model_card_holds_no_markup_of_a_strangers(place: Path) -> None:
    text = (place / "run" / "README.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| classes"))
    assert not MOVES.search(text) and "<b>" not in text and "(www." not in text
    assert len(re.findall(r"(?<!\\)\|", line)) == 3, "a row of two cells"
    assert "\\*x\\*" in line and "line\\\\nbreak" in line


def test_row_44_pictures_show_any_name(place: Path, tmp_path: Path) -> None:
    said(place, "eval", "run", "--confusion", tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size[0] > 200
    said(place, "attn-rollout", "run", "data/test", "--out", tmp_path / "o")
    assert len(list((tmp_path / "o").glob("*-rollout*.png"))) == 2 * len(NAMES)


@pytest.mark.parametrize("name", [b"caf\xe9", "größe".encode(), b"a\nb"])
def test_row_45_data_and_runs_may_lie_anywhere(place: Path, tmp_path: Path, name: bytes) -> None:
    """And a checkpoint says where: it is found again without --data."""
    odd = os.fsdecode(name)
    shutil.copytree(place / "data", tmp_path / odd)
    said(tmp_path, *pretrain(odd, steps=2, out=f"run-{odd}"))
    assert run(["eval", f"run-{odd}", "--json"], tmp_path).json["n"] == 2 * len(NAMES)
    tuned = ["finetune", f"run-{odd}", "--steps", "1", "--out", f"tuned-{odd}", "--set", "train.dev=0"]
    path = Started(tuned, tmp_path).ended()
    assert path == (0, os.fsencode(f"tuned-{odd}/model.safetensors\n")), "as it is, for the next command"
    said(tmp_path, "resize-posemb", f"run-{odd}", f"{odd}.safetensors", "--img-size", "16", "--json")
    code = 2 if name == b"caf\xe9" else 0  # the tool that it is for has no such names
    said(tmp_path, "export", f"run-{odd}", f"exported-{odd}", "--format", "timm", "--json", code=code)
    assert said(tmp_path, "info", f"{odd}.safetensors", "--json").json["provenance"]["data"]["id"].endswith(odd)


STREAMS = "import sys\nfor s in (sys.stdout, sys.stderr): s.reconfigure(encoding={!r}, errors='strict')"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "run"], ["eval", "run"], ["predict", "run", "data/test"], ["predict", "run", "nö.png"], ["--help"],
        ["pretrain", "--help"], ["eval", "nö"],
    ],
)  # fmt: skip
def test_row_45_a_terminal_without_the_letters_loses_no_row(place: Path, encoding: str, arguments: list[str]) -> None:
    before, kept = STREAMS.format(encoding), 4 if "nö" in arguments else 3 if "nö.png" in arguments else 0
    plain = said(place, *arguments, code=kept)
    done = Started(arguments, place, before=before).ended()
    assert done[0] == kept
    assert done[1].count(b"\n") == plain.out.encode().count(b"\n") or "--help" in arguments
    if arguments[-1] != "--help":
        as_json = Started([*arguments, "--json"], place, before=before).ended()[1]
        assert as_json.isascii() or encoding == "latin-1"
        assert [json.loads(line) for line in as_json.decode("ascii").splitlines()]


def test_row_45_a_run_in_a_locale_of_ascii_is_the_same(place: Path, tmp_path: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
    shutil.copytree(place / "data", tmp_path / "data")
    done = run_vit(*pretrain("data", steps=2), cwd=tmp_path, env=locale)
    assert done.code == 0, done.err
    classes = run(["info", "run", "--json"], tmp_path).json["classes"]
    assert classes == said(place, "info", "run", "--json").json["classes"]
    rows = run_vit("predict", "run", "data/test", "--json", cwd=tmp_path, env=locale).out.splitlines()
    assert [json.loads(row) for row in rows] == [
        json.loads(row) for row in run(["predict", "run", "data/test", "--json"], tmp_path).out.splitlines()
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="takes root's rights over files away with Linux's setpriv")
def test_row_45_a_home_that_is_read_only(place: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    alone = [] if os.getuid() else ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
    if alone and not shutil.which("setpriv"):
        pytest.skip("setpriv is not there")
    env = {k: v for k, v in os.environ.items() if k not in ("VIT_CACHE", "HF_DATASETS_CACHE", "HF_HOME")}
    env |= {"HOME": str(home), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    images = [{"bytes": path.read_bytes()} for path in sorted((place / "data" / "test").glob("*/*"))]
    table = pyarrow.table({"image": images, "label": [i % 2 for i in range(len(images))]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    for arguments in (
        pretrain(place / "data", steps=2),
        pretrain("t.parquet", steps=2, out="rows"),
        ["eval", "run", "--json", "--confusion", "c.png"],
        ["predict", "run", place / "data" / "test", "--json"],
        ["export", "run", "exported", "--format", "timm", "--json"],
    ):
        command = [*alone, sys.executable, "-m", "vitcli", *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert str(home) not in done.stderr, "no library's complaint"
    assert list(home.iterdir()) == []
    assert [p.name for p in (tmp_path / "tmp").iterdir() if not p.name.startswith("torchinductor")] == []


# --- 54: what is named to predict --------------------------------------------------------------------------------


def predicted(place: Path, *images: object, stdin: bytes | None = None) -> tuple[int, list[dict[str, str]], str]:
    command = [sys.executable, "-m", "vitcli", "predict", "run", "--json", *map(os.fsencode, map(str, images))]
    done = subprocess.run(command, cwd=place, input=stdin, capture_output=True, timeout=240)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


def test_row_54_one_bad_name_is_one_line(place: Path) -> None:
    good = os.fsdecode(b"data/test/" + NAMES[0] + b"/" + FILE + b"0.png")
    (place / "empty").mkdir(exist_ok=True)
    bad = ["x" * 300, "y/" * 3000, "a[", "**/[", "missing.png", "~nobody/x", "empty", "data/test/*/nothing", "-0"]
    code, rows, err = predicted(place, "--", good, *bad, good)
    assert code == 3 and len(rows) == len(bad) + 2, err
    assert "label" in rows[0] and "label" in rows[-1]
    assert [row["path"] for row in rows[1:-1]] == bad and all("error" in row for row in rows[1:-1])


def test_row_54_names_on_stdin_may_be_any_bytes(place: Path) -> None:
    good = b"data/test/" + NAMES[4] + b"/" + FILE + b"1.png"
    code, rows, err = predicted(place, "-", stdin=good + b"\r\n\n\xff\xfe\n" + b"x" * 4000 + b"\n" + good)
    assert code == 3 and ["error" in row for row in rows] == [False, True, True, False], err
    assert os.fsencode(rows[0]["path"]) == good and os.fsencode(rows[1]["path"]) == b"\xff\xfe"


@pytest.mark.parametrize("what", ["png", "jpeg", "webp", "zeros", "one line"])
def test_row_54_bytes_of_an_image_on_stdin_are_one_error(place: Path, tmp_path: Path, what: str) -> None:
    good = os.fsdecode(b"data/test/" + NAMES[0] + b"/" + FILE + b"0.png")
    if what in ("zeros", "one line"):
        blob = (b"\0" if what == "zeros" else b"x") * 10_000_000
    else:
        draw_image(0, 0, 64).save(tmp_path / "image", what.upper())
        blob = (tmp_path / "image").read_bytes()
    code, rows, err = predicted(place, good, "-", good, stdin=blob)
    assert code == 3 and ["error" in row for row in rows] == [False, True, False], err
    assert rows[1]["path"] == "-" and "stdin" in rows[1]["error"]
