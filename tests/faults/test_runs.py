"""Rows 26 to 34: what surrounds a run: its configuration, its neighbours, threads, memory, network, logs, streams."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import run_vit, train_run
from processes import PATIENCE, SLOW_STEPS, Started, assert_same_run, has_logged, pretrain, run, saved_steps
from vitcli import api, files, runs
from vitcli.config import read_toml
from vitcli.errors import DataError, UsageError
from vitcli.train import runlog
from vitcli.weights.checkpoint import load

# --- 48, 59: data that change between two commands --------------------------------------------------------------


def bitmaps(root: Path, count: int = 10) -> Path:
    """Two classes of files of one size and one date, which differ in nothing but their bytes."""
    for c in range(2):
        for i in range(count):
            put_bitmap(root / f"c{c}" / f"{i}.bmp", (200 * c, 20 * i, 0))
    return root


def put_bitmap(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    os.utime(path, (1_600_000_000, 1_600_000_000))


QUICK = {"model": "mu/4", "img_size": 8, "steps": 2, "batch_size": 4, "device": "cpu"}


def test_row_48_images_replaced_by_others_of_equal_size_and_time_are_noticed(tmp_path: Path) -> None:
    data, out = bitmaps(tmp_path / "data"), str(tmp_path / "run")
    _, first = train_run("pretrain", data=str(data), out=out, **QUICK)
    assert train_run("pretrain", data=str(data), out=out, **QUICK)[1] == first, "a finished equal run is not done again"
    put_bitmap(data / "c0" / "3.bmp", (9, 9, 9))
    with pytest.raises(UsageError, match=r"the images of .*data: as many, but not the same"):
        train_run("pretrain", data=str(data), out=out, **QUICK)
    put_bitmap(data / "c0" / "3.bmp", (0, 60, 0))
    put_bitmap(data / "c0" / "extra.bmp", (9, 9, 9))
    with pytest.raises(UsageError, match="train 20 there, 21 now"):
        train_run("pretrain", data=str(data), out=out, **QUICK)
    (data / "c0" / "extra.bmp").unlink()
    (data / "c0" / "3.bmp").touch()
    assert train_run("pretrain", data=str(data), out=out, **QUICK)[1] == first, "when a file was written says nothing"


def test_row_48_images_replaced_between_start_and_resume_are_noticed(tmp_path: Path) -> None:
    data = bitmaps(tmp_path / "data")
    process = Started(pretrain(data), tmp_path, before=SLOW_STEPS)
    process.until(has_logged, tmp_path / "run", 5)
    process.send(signal.SIGTERM)
    assert process.wait().code == 75
    put_bitmap(data / "c0" / "3.bmp", (9, 9, 9))
    refused = run(pretrain(data), tmp_path)
    assert refused.code == 2 and "as many, but not the same" in refused.json["error"]["message"], refused.err
    put_bitmap(data / "c0" / "3.bmp", (0, 60, 0))
    assert run(pretrain(data), tmp_path).json["resumed_from"]


# --- 51: a run that the system killed ---------------------------------------------------------------------------


def test_row_51_the_next_command_says_that_a_run_was_killed(class_folders: Path, tmp_path: Path) -> None:
    """As the system kills for want of memory: without a word. A signal before it changes nothing."""
    process = Started(pretrain(class_folders), tmp_path, before=SLOW_STEPS.replace("0.05", "0.3"))
    process.until(has_logged, tmp_path / "run", 3)
    alive = run(["info", "run"], tmp_path)
    assert "killed" not in alive.err
    process.send(signal.SIGTERM)
    process.send(signal.SIGKILL)
    process.wait()
    assert runs.status(tmp_path / "run")["status"] == "running"
    ended = r"the run in run was killed after step \d without a word: .*for want of memory"
    assert re.search(ended, run(["info", "run"], tmp_path).err)
    done = run(pretrain(class_folders), tmp_path)
    assert done.code == 0 and re.search(ended, done.err) and f"resumed at step {done.json['resumed_from']}" in done.err
    assert "killed" not in run(["info", "run"], tmp_path).err


def test_row_59_of_data_that_grew_no_trained_image_is_measured(tmp_path: Path) -> None:
    data = bitmaps(tmp_path / "data")
    folder, report = train_run("pretrain", data=str(data), out=str(tmp_path / "run"), **QUICK)
    assert report["eval"]["n"] == 4
    trained = set(api.plan_evaluation(str(folder), split="train").split.digests())
    for i in range(10, 20):
        put_bitmap(data / "c0" / f"{i}.bmp", (5, 5, i))
    (data / "c1" / "1.bmp").unlink()
    measured = api.plan_evaluation(str(folder)).split.digests()
    assert len(measured) >= 5 and not set(measured) & trained
    for number, path in enumerate(sorted(data.rglob("*.bmp"))):
        path.rename(path.with_name(f"renamed-{7 * number}.bmp"))
    measured = api.plan_evaluation(str(folder)).split.digests()
    assert len(measured) and not set(measured) & trained


def test_row_37_a_run_without_a_step_takes_away_what_it_made_and_nothing_else(tmp_path: Path) -> None:
    data, out = bitmaps(tmp_path / "data"), tmp_path / "run"
    for path in (data / "c0").glob("[1-9].bmp"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError):
        train_run("pretrain", data=str(data), out=str(out), **QUICK)
    assert not out.exists()
    (out / "state").mkdir(parents=True)  # as a run that was killed at once leaves it, beside files of somebody's own
    (out / "state" / "lock").touch()
    (out / "thesis.txt").write_text("precious")
    (out / "state" / "notes.txt").write_text("precious")
    with pytest.raises(DataError):
        train_run("pretrain", data=str(data), out=str(out), **QUICK)
    assert {str(p.relative_to(out)) for p in out.rglob("*")} == {"thesis.txt", "state", "state/notes.txt"}


# --- 26, 27: configuration and neighbours -----------------------------------------------------------------------


def test_row_26_a_changed_configuration_is_refused_with_the_differences(class_folders: Path, tmp_path: Path) -> None:
    process = Started(pretrain(class_folders), tmp_path, before=SLOW_STEPS)
    process.until(has_logged, tmp_path / "run", 5)
    process.send(signal.SIGTERM)
    assert process.wait().code == 75
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "lock"}
    refused = run(pretrain(class_folders, "--set", "optim.lr=0.5", "--seed", "3"), tmp_path)
    assert refused.code == 2
    message = refused.json["error"]["message"]
    assert re.search(r"optim\.lr: \S+ there, 0\.5 now", message) and re.search(r"run\.seed: 0 there, 3 now", message)
    assert "--resume never" in refused.json["error"]["hint"]
    assert {p: p.read_bytes() for p in before} == before, "nothing of the run is touched"
    same = run(pretrain(class_folders, "--set", "data.workers=1", "--set", "train.accumulate=2"), tmp_path)
    assert same.code == 0 and same.json["resumed_from"], "what changes only how it is done is not compared"


def test_row_27_the_second_of_two_runs_into_one_folder_is_told_who_is_there(
    class_folders: Path, tmp_path: Path
) -> None:
    command = pretrain(class_folders)
    first = Started(command, tmp_path, before=SLOW_STEPS.replace("0.05", "0.5"))
    first.until(has_logged, tmp_path / "run", 2)
    second = run(command, tmp_path)
    assert second.code == 2
    assert f"in use by process {first.pid} on {os.uname().nodename}" in second.json["error"]["message"]
    first.send(signal.SIGKILL)  # which leaves no lock behind
    first.wait()
    assert run(command, tmp_path).json["resumed_from"] >= 2


def test_row_27_of_two_that_start_at_once_one_has_the_folder_to_itself(class_folders: Path, tmp_path: Path) -> None:
    """Both find no folder there; the configuration that is written is the winner's."""
    meet = (
        "import time\nfrom vitcli.train import runfolder\nchoose = runfolder.choose\n"
        "def late(*arguments):\n    place = choose(*arguments)\n    time.sleep(max(0, {until} - time.time()))\n    return place\n"
        "runfolder.choose = late\n"
    )
    for seed in (0, 10):
        meeting = meet.format(until=time.time() + 4) + SLOW_STEPS
        both = [
            Started(pretrain(class_folders, "--seed", seed + i, out=f"run-{seed}"), tmp_path, before=meeting)
            for i in range(2)
        ]
        codes = [process.wait().code for process in both]
        assert sorted(codes) == [0, 2], [process.said() for process in both]
        stored = read_toml(tmp_path / f"run-{seed}" / "run.toml")
        assert stored["run.seed"] == seed + codes.index(0)


# --- 30: those who read ahead ------------------------------------------------------------------------------------

# vit decodes in threads, so no process of a data worker can be killed and no shared memory can run out. What is left
# of the row is a thread that dies, and a system that gives none.

BATCHES = ("--batch-size", "64", "--set", "train.save_every_steps=20")
KILL_READER = """
import ctypes, threading
from vitcli.train import loop
step, calls = loop.train_step, 0
def kill(*arguments):
    global calls
    calls += 1
    if calls == 5:
        for thread in threading.enumerate():
            if thread.name == "vit-ahead":
                assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
                open("killed", "w").close()
    return step(*arguments)
loop.train_step = kill
"""
NO_THREADS = """
import resource, threading
threading.stack_size(2**38)
resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
"""


def test_row_30_a_reader_that_dies_is_no_hang(class_folders: Path, tmp_path: Path) -> None:
    command = pretrain(class_folders, *BATCHES, steps=120)
    stopped = run(command, tmp_path, before=KILL_READER)
    assert stopped.code == 6, stopped.err
    assert (tmp_path / "killed").exists()
    error = stopped.json["error"]
    assert "has died" in error["message"] and "--set data.workers=0" in error["hint"]
    done = run([*command, "--set", "data.workers=0"], tmp_path)
    assert done.code == 0 and done.json["resumed_from"], done.err


@pytest.mark.parametrize("what", ["decode images", "read images ahead"])
def test_row_30_a_reader_that_cannot_be_started(class_folders: Path, tmp_path: Path, what: str) -> None:
    """Where the images have been decoded before, the first thread that is wanted is another."""
    env = {"VIT_CACHE": str(tmp_path / "cache")}
    if what == "read images ahead":
        assert run(pretrain(class_folders, out="before"), tmp_path, env=env).code == 0
    stopped = run(pretrain(class_folders), tmp_path, before=NO_THREADS, env=env)
    assert stopped.code == 6, stopped.err
    error = stopped.json["error"]
    assert f"no thread can be started to {what}" in error["message"] and "--set data.workers=0" in error["hint"]
    done = run(pretrain(class_folders, "--set", "data.workers=0"), tmp_path, before=NO_THREADS, env=env)
    assert done.code == 0, done.err


def test_row_30_a_tiny_shared_memory_is_enough(class_folders: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitcli", *map(str, pretrain(class_folders, "--set", "data.workers=2"))]
    script = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && dd if=/dev/zero of=/dev/shm/full bs=4k count=1 && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("a namespace of its own needs root and a kernel that allows it")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 12


# --- 31: memory --------------------------------------------------------------------------------------------------


def limited(megabytes: int) -> str:
    """Python that leaves so much address space beyond what the process has when training starts."""
    return (
        "import resource\nfrom vitcli.train import loop\nrun = loop.Loop._train\n"
        "def limit(self):\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"    resource.setrlimit(resource.RLIMIT_AS, (used + {megabytes} * 2**20,) * 2)\n    run(self)\n"
        "loop.Loop._train = limit"
    )


def test_row_31_out_of_memory_on_the_cpu_and_the_hint_leads_out(class_folders: Path, tmp_path: Path) -> None:
    command = [
        "pretrain", "--data", class_folders, "--model", "s/4", "--img-size", "48", "--batch-size", "48", "--steps", "1",
        "--set", "model.depth=3", "--set", "data.workers=0", "--device", "cpu", "--precision", "fp32",
        "--set", "eval.batch_size=8", "--out", "run", "--json",
    ]  # fmt: skip
    hints, limit = [], limited(340)
    while (done := run([*command, *(("--set", hints[-1]) if hints else ())], tmp_path, before=limit)).code:
        assert done.code == 6 and "out of memory on cpu with" in done.json["error"]["message"], done.err
        found = re.search(r"--set (train\.accumulate=(\d+))", done.json["error"]["hint"])
        assert found and 48 % int(found[2]) == 0, done.json
        assert found[1] not in hints
        hints.append(found[1])
    assert hints, "it never ran out of memory"


def test_row_31_out_of_memory_on_cuda(class_folders: Path, tmp_path: Path) -> None:
    """The one fault that is imitated: its exception, at the step where it comes."""
    before = (
        "import torch\nfrom vitcli.train import loop\nstep, calls = loop.train_step, 0\n"
        "def full(*arguments):\n    global calls\n    calls += 1\n"
        "    if calls == 6: raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')\n"
        "    return step(*arguments)\nloop.train_step = full"
    )
    done = run(pretrain(class_folders, "--batch-size", "9"), tmp_path, before=before)
    assert done.code == 6, done.err
    assert "with 9 images at a time" in done.json["error"]["message"]
    assert "train.accumulate=3" in done.json["error"]["hint"], "2 does not divide 9"
    assert saved_steps(tmp_path / "run") == [2, 4]
    again = run(pretrain(class_folders, "--batch-size", "9", "--set", "train.accumulate=3"), tmp_path)
    assert again.code == 0 and again.json["resumed_from"] == 4


# --- 32: network -------------------------------------------------------------------------------------------------


class _Refusing(http.server.BaseHTTPRequestHandler):
    asked = 0
    silent = threading.Event()  # set: requests are taken and not answered
    over = threading.Event()

    def do_GET(self) -> None:
        type(self).asked += 1
        if self.silent.is_set():
            self.over.wait(PATIENCE)
        with contextlib.suppress(OSError):
            self.send_error(503)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    """A hub that is there and answers nothing."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    _Refusing.asked = 0
    _Refusing.over.clear()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    _Refusing.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("state", ["unreachable", "failing", "silent"])
def test_row_32_no_network_is_said_at_once_without_a_storm_of_retries(tmp_path: Path, hub: str, state: str) -> None:
    (_Refusing.silent.set if state == "silent" else _Refusing.silent.clear)()
    endpoint = "http://127.0.0.1:9" if state == "unreachable" else hub
    env = {
        "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "NO_PROXY": "*",
        "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_CACHE": str(tmp_path / "hf" / "datasets"),
    }  # fmt: skip
    started = time.monotonic()
    done = run_vit("pretrain", "--data", "cifar10", "--json", cwd=tmp_path, env=env)
    assert done.code == 3, done.err
    assert time.monotonic() - started < 60
    assert "uoft-cs/cifar10" in done.json["error"]["message"]
    assert "HF_HUB_OFFLINE" in done.json["error"]["hint"], done.json
    assert _Refusing.asked == (0 if state == "unreachable" else 1), "one question, and no other after it"
    assert "Traceback" not in done.err and not (tmp_path / "runs").exists()


# --- 33: those who listen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_row_33_a_sink_that_fails_is_one_warning(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Trackers are sinks; these are of a test's own, and fail."""
    monkeypatch.setattr(runlog, "PATIENCE", 0.5)
    heard: list[str] = []
    release = threading.Event()

    def broken(event: str, fields: dict[str, Any]) -> None:
        if event == "step":
            heard.append("broken")
            if how == "raises":
                raise ConnectionError("the tracker is gone")
            release.wait()

    def good(event: str, fields: dict[str, Any]) -> None:
        heard.append(event)

    settings = {"model": "mu/4", "batch_size": 8, "steps": 6, "precision": "fp32", "train__log_every_steps": 1}
    folder, report = train_run(
        "pretrain", data=str(class_folders), out=str(tmp_path / "run"), sinks=[broken, good], **settings
    )
    release.set()
    assert heard.count("broken") == 1 and heard.count("step") == 6
    stopped = [text for text in report["warnings"] if "a log stopped" in text]
    assert len(stopped) == 1
    assert ("the tracker is gone" if how == "raises" else "no answer for 0.5 s") in stopped[0]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 7


def test_row_33_a_sink_that_hangs_does_not_keep_the_process(class_folders: Path, tmp_path: Path) -> None:
    before = (
        "import time\nfrom vitcli.cli import console\nfrom vitcli.train import runlog\nrunlog.PATIENCE = 0.5\n"
        "said = console.Reporter.__call__\n"
        "def hang(self, event, fields):\n    if event == 'step': time.sleep(1e6)\n    said(self, event, fields)\n"
        "console.Reporter.__call__ = hang"
    )
    done = Started(pretrain(class_folders), tmp_path, before=before).wait(60)
    assert done.code == 0, done.err
    assert any("no answer" in warning for warning in done.json["warnings"])


# --- 34: streams -------------------------------------------------------------------------------------------------


def shell(script: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f'vit() {{ {sys.executable} -m vitcli "$@"; }}; {script}', "bash", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_row_34_a_closed_stream_changes_nothing(class_folders: Path, tmp_path: Path, closed: str) -> None:
    """And the next file that is opened does not take its number, to be written notes into."""
    done = shell(f'vit "$@" {closed}; exit $?', tmp_path, *pretrain(class_folders))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    load(str(tmp_path / "run"))  # digest and all
    assert json.loads((tmp_path / "run" / "report.json").read_text())["steps"] == 12
    assert not files.folder_fault(max((tmp_path / "run" / "state").glob("step-*")))


def test_row_34_the_exit_status_is_true_where_nobody_reads(class_folders: Path, tmp_path: Path) -> None:
    """Whoever has the other end of the pipe is gone before anything is written."""
    closed = 'vit "$@" 2>&1 | (exec <&-; sleep 0.1); exit ${PIPESTATUS[0]}'
    for arguments, code in (
        (pretrain(class_folders), 0),
        (["eval", "missing.safetensors", "--json"], 4),
        (["pretrain", "--set", "optim.lrr=1", "--json"], 2),
    ):
        done = shell(closed, tmp_path, *arguments)
        assert (done.returncode, done.stderr) == (code, "")
    assert runs.status(tmp_path / "run")["status"] == "done"


@pytest.mark.parametrize(("arguments", "code"), [(["info", "b/16"], 6), (["eval", "missing.safetensors"], 4)])
def test_row_34_stdout_on_a_full_disk(tmp_path: Path, arguments: list[str], code: int) -> None:
    done = shell('vit "$@" --json > /dev/full; exit $?', tmp_path, *arguments)
    assert done.returncode == code
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_row_34_runs_are_the_same_however_loud(class_folders: Path, tmp_path: Path) -> None:
    assert run(pretrain(class_folders, out="a"), tmp_path).code == 0
    assert run(pretrain(class_folders, "--quiet", out="b"), tmp_path).code == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_row_34_notes_on_a_full_disk_are_not_missed(class_folders: Path, tmp_path: Path) -> None:
    assert run(pretrain(class_folders), tmp_path).code == 0
    done = shell('vit "$@" 2> /dev/full; exit $?', tmp_path, "eval", "run", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["n"] == 24


def test_a_port_is_no_refusal() -> None:
    """The numbers of HTTP's refusals also stand in addresses."""
    from vitcli import hub

    for text in ("503 for url 'http://127.0.0.1:40143/api'", "connection to 10.4.0.1:403 timed out"):
        assert "HF_HUB_OFFLINE" in hub.hint(RuntimeError(f"Server error {text}"))
    for text in ("401 Client Error: Unauthorized", "Client error '403 Forbidden'", "GatedRepoError: gated repo"):
        assert "hf auth login" in hub.hint(RuntimeError(text))
