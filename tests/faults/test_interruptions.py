"""Rows 1 to 8: kills and signals. Whatever stops a run, the same command goes on to the same bits."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest

from processes import SLOW_STEPS, Started, assert_same_run, has_logged, last_step, pretrain, run, saved_steps
from vitcli import files, runs
from vitcli.train import state

OPTIMIZERS = ("adamw", "lamb", "sgd", "muon")


def alone(data: Path, folder: Path, *more: object, steps: int = 12) -> Path:
    """The run left alone."""
    folder.mkdir(exist_ok=True)
    done = run(pretrain(data, *more, steps=steps), folder)
    assert done.code == 0, done.err
    assert done.json["resumed_from"] is None
    return folder / "run"


@pytest.fixture(scope="module")
def reference(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps, nine of which are an epoch, left alone."""
    return alone(class_folders, tmp_path_factory.mktemp("alone"))


def finish(command: list[object], folder: Path) -> dict[str, object]:
    done = run(command, folder)
    assert done.code == 0, done.err
    report: dict[str, object] = done.json
    return report


def has_saved_more(folder: Path, before: int) -> bool:
    return max(state.steps(folder / "state"), default=0) > before


def is_time(until: float, folder: Path, step: int) -> bool:
    return time.monotonic() > until or has_logged(folder, step)


# --- 1: kill -9 at random moments ----------------------------------------------------------------------------


def kill_at_random(data: Path, folder: Path, kills: int, optimizer: str, steps: int) -> int:
    """Kill a run `kills` times and let it end. Returns how many kills fell into a save."""
    command = pretrain(
        data, "--set", f"optim.name={optimizer}", "--set", "train.eval_every_steps=7", steps=steps,
    )  # fmt: skip
    draw, inside = random.Random(f"{optimizer} {kills}"), 0
    for number in range(kills):
        at = (number + 1) * (steps - 8) // kills  # never beyond this step, so that the kills spread over the run
        process = Started(command, folder)
        if draw.random() < 0.2:  # any moment from the start on, set-up included
            until = time.monotonic() + draw.uniform(0, 1.5)
        else:  # shortly after something new was saved
            before = max(state.steps(folder / "run" / "state"), default=0)
            process.until(has_saved_more, folder / "run", before)
            until = time.monotonic() + draw.uniform(0, 0.1)
        process.until(is_time, until, folder / "run", at)
        process.send(signal.SIGKILL)
        assert process.wait().code == -signal.SIGKILL, "the kill came too late"
        inside += bool(files.leftovers(folder / "run" / "state"))
    report = finish(command, folder)
    assert report["resumed_from"], "nothing had been saved"
    return inside


def test_row_01_kills_at_random_moments(class_folders: Path, tmp_path: Path) -> None:
    steps = 40
    same = alone(class_folders, tmp_path / "alone", "--set", "train.eval_every_steps=7", steps=steps)
    kill_at_random(class_folders, tmp_path, 5, "adamw", steps)
    assert_same_run(same, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_row_01_fifty_kills_at_random_moments(class_folders: Path, tmp_path: Path, optimizer: str) -> None:
    steps = 400
    changed = ("--set", f"optim.name={optimizer}", "--set", "train.eval_every_steps=7")
    same = alone(class_folders, tmp_path / "alone", *changed, steps=steps)
    inside = kill_at_random(class_folders, tmp_path, 50, optimizer, steps)
    assert inside >= 3, "hardly a kill fell into a save"
    assert_same_run(same, tmp_path / "run")


# --- 2: kill -9 inside a save ----------------------------------------------------------------------------------

AT_FLUSH = """
import os, signal
flush, calls = os.fsync, 0
def fsync(descriptor):
    global calls
    calls += 1
    if calls == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(descriptor)
os.fsync = fsync
"""
"""The process kills itself when it is about to bring something to the disk for the n-th time."""


def kill_at_flushes(data: Path, folder: Path, reference: Path, numbers: range) -> int:
    """Returns how many kills left a partial step."""
    partial = 0
    for number in numbers:
        here = folder / f"at-{number}"
        here.mkdir()
        killed = run(pretrain(data), here, before=AT_FLUSH.format(number=number))
        assert killed.code == -signal.SIGKILL, f"only {number - 1} flushes in the whole run: {killed.err}"
        left = [p.name for p in files.leftovers(here / "run" / "state")]
        steps = [name for name in left if "-step-" in name]
        partial += bool(steps)
        whole = saved_steps(here / "run")
        done = run(pretrain(data), here)
        assert done.code == 0, done.err
        assert done.json["resumed_from"] == (max(whole) if whole else None)
        assert all(name in done.err for name in left), "a partial step is to be named"
        assert files.leftovers(here / "run" / "state") == [] == files.leftovers(here / "run")
        assert_same_run(reference, here / "run")
    return partial


def test_row_02_killed_inside_a_save(class_folders: Path, reference: Path, tmp_path: Path) -> None:
    assert kill_at_flushes(class_folders, tmp_path, reference, range(13, 80, 13)) >= 1


@pytest.mark.slow
def test_row_02_killed_at_every_flush_of_a_run(class_folders: Path, reference: Path, tmp_path: Path) -> None:
    assert kill_at_flushes(class_folders, tmp_path, reference, range(1, 100)) >= 10


def test_row_02_the_older_step_is_used_and_the_partial_one_named(
    class_folders: Path, reference: Path, tmp_path: Path
) -> None:
    """The kill falls between the files of a step and its rename."""
    before = (
        "import os, signal\nfrom pathlib import Path\nrename = Path.rename\n"
        "def die(self, target):\n"
        "    if target.name == 'step-000000006' and 'writing' in self.name: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return rename(self, target)\n"
        "Path.rename = die"
    )
    assert run(pretrain(class_folders), tmp_path, before=before).code == -signal.SIGKILL
    (partial,) = files.leftovers(tmp_path / "run" / "state")
    assert {p.name for p in partial.iterdir()} >= {"model.safetensors", "optimizer.safetensors", files.MANIFEST}
    done = run(pretrain(class_folders), tmp_path)
    assert done.json["resumed_from"] == 4
    assert f"ignored {partial.name}" in done.err and any(partial.name in w for w in done.json["warnings"])
    assert_same_run(reference, tmp_path / "run")


# --- 3: kill inside a deletion ---------------------------------------------------------------------------------

AT_DELETION = """
import os, signal
calls = 0
def dying(real):
    def call(path, *arguments, dir_fd=None, **keywords):
        global calls
        inside = dir_fd is not None or "step-" in str(path)
        calls += inside
        if inside and calls == {number}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *arguments, dir_fd=dir_fd, **keywords)
    return call
os.unlink, os.rmdir = dying(os.unlink), dying(os.rmdir)
"""
"""The process kills itself at the n-th file or folder that it deletes from a step."""


@pytest.mark.parametrize("number", [1, 2, 4, 6])
def test_row_03_killed_while_an_old_step_is_deleted(
    class_folders: Path, reference: Path, tmp_path: Path, number: int
) -> None:
    killed = run(pretrain(class_folders), tmp_path, before=AT_DELETION.format(number=number))
    assert killed.code == -signal.SIGKILL, "nothing was deleted"
    whole = saved_steps(tmp_path / "run")
    assert len(whole) >= 2
    assert state.steps(tmp_path / "run" / "state") == whole, "what is half deleted is no longer called a step"
    report = finish(pretrain(class_folders), tmp_path)
    assert report["resumed_from"]
    assert_same_run(reference, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [10, 12]
    assert files.leftovers(tmp_path / "run" / "state") == []


def test_row_03_never_fewer_than_two_whole_steps(tmp_path: Path) -> None:
    """Where one of the newest two is damaged, the third stays, until two others are whole."""
    import torch

    def save(step: int) -> None:
        state.save(tmp_path, state.Saved(step, {"model": {"a": torch.full((64,), float(step))}}, {}))

    def whole() -> list[str]:
        return sorted(p.name for p in tmp_path.glob("step-*") if not files.folder_fault(p))

    save(1), save(2)
    file = tmp_path / "step-000000002" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    save(3)
    assert whole() == ["step-000000001", "step-000000003"]
    save(4)
    assert whole() == ["step-000000003", "step-000000004"]
    save(5)
    assert whole() == ["step-000000004", "step-000000005"] == sorted(p.name for p in tmp_path.glob("step-*"))


def test_row_03_a_step_folder_is_never_written_again(tmp_path: Path) -> None:
    import torch

    for value in (1.0, 2.0):
        state.save(tmp_path, state.Saved(5, {"model": {"a": torch.full((4,), value)}}, {}))
    found, _ = state.newest(tmp_path)
    assert found is not None and found.groups["model"]["a"].tolist() == [1.0] * 4


# --- 4, 5: exactness -------------------------------------------------------------------------------------------


def kill_at(command: list[object], folder: Path, step: int) -> None:
    process = Started(command, folder)
    process.until(has_logged, folder / "run", step)
    process.send(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL, "the kill came too late"


def test_row_04_two_interruptions_inside_one_epoch(class_folders: Path, reference: Path, tmp_path: Path) -> None:
    """An epoch is nine steps; both fall into the first, the second one past a step that was done twice."""
    for step in (3, 6):
        process = Started(pretrain(class_folders), tmp_path, before=SLOW_STEPS)
        process.until(has_logged, tmp_path / "run", step)
        process.send(signal.SIGKILL)
        assert process.wait().code == -signal.SIGKILL
        assert step <= last_step(tmp_path / "run") < 9
    report = finish(pretrain(class_folders), tmp_path)
    assert 2 <= int(str(report["resumed_from"])) < 9
    assert_same_run(reference, tmp_path / "run")


def test_row_05_another_number_of_workers(class_folders: Path, reference: Path, tmp_path: Path) -> None:
    for workers, step in ((0, 3), (3, 6)):
        process = Started(pretrain(class_folders, "--set", f"data.workers={workers}"), tmp_path, before=SLOW_STEPS)
        process.until(has_logged, tmp_path / "run", step)
        process.send(signal.SIGKILL)
        assert process.wait().code == -signal.SIGKILL
    report = finish(pretrain(class_folders, "--set", "data.workers=1"), tmp_path)
    assert report["resumed_from"]
    assert_same_run(reference, tmp_path / "run")


# --- 7, 8: signals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
def test_row_07_a_signal_finishes_the_step_and_saves(
    class_folders: Path, reference: Path, tmp_path: Path, name: str
) -> None:
    if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as under nohup, and a run keeps to that")
    process = Started(pretrain(class_folders, "--set", "train.save_every_steps=0"), tmp_path, before=SLOW_STEPS)
    process.until(lambda: last_step(tmp_path / "run") >= 4)
    process.send(getattr(signal, name))
    stopped = process.wait()
    assert stopped.code == 75, stopped.err
    assert stopped.json["error"]["kind"] == "interrupted" and name in stopped.json["error"]["message"]
    status = runs.status(tmp_path / "run")
    assert (status["status"], status["code"]) == ("saved", 75)
    assert 4 <= status["step"] < 12 and saved_steps(tmp_path / "run") == [status["step"]]
    assert last_step(tmp_path / "run") == status["step"], "the step is finished, and no other is begun"
    assert finish(pretrain(class_folders), tmp_path)["resumed_from"] == status["step"]
    assert_same_run(reference, tmp_path / "run")


def test_row_07_a_signal_while_it_evaluates_does_not_wait_for_the_end(class_folders: Path, tmp_path: Path) -> None:
    slow = (
        "import time\nfrom vitcli.evaluate import inference\nlogits = inference.logits_of\n"
        "def sleep(*arguments):\n    open('evaluating', 'w').close()\n    time.sleep(1)\n    return logits(*arguments)\n"
        "inference.logits_of = sleep"
    )
    settings = ("--set", "train.eval_every_steps=7", "--set", "eval.batch_size=1", "--set", "train.save_every_steps=3")
    same = alone(class_folders, tmp_path / "alone", *settings)
    process = Started(pretrain(class_folders, *settings), tmp_path, before=slow)
    process.until((tmp_path / "evaluating").exists)
    process.send(signal.SIGTERM)
    stopped = process.wait(15)  # of 24 that the evaluation takes
    assert stopped.code == 75, stopped.err
    assert runs.status(tmp_path / "run")["step"] == 7
    assert finish(pretrain(class_folders, *settings), tmp_path)["resumed_from"] == 7
    assert_same_run(same, tmp_path / "run")


def test_row_07_a_signal_before_the_first_step(class_folders: Path, reference: Path, tmp_path: Path) -> None:
    """Nothing to save in a new run: 143, and no folder. In one that goes on all is saved: 75."""
    wait = (
        "import time\nfrom vitcli.train import parts\nopen_images = parts.open_images\n"
        "def slow(*arguments):\n    open('at-work', 'w').close()\n    time.sleep(60)\n    return open_images(*arguments)\n"
        "parts.open_images = slow"
    )
    for code in (143, 75):
        (tmp_path / "at-work").unlink(missing_ok=True)
        process = Started(pretrain(class_folders), tmp_path, before=wait)
        process.until((tmp_path / "at-work").exists)
        process.send(signal.SIGTERM)
        stopped = process.wait()
        assert stopped.code == code, stopped.err
        if code == 143:
            assert not (tmp_path / "run").exists()
            kill_at(pretrain(class_folders), tmp_path, 5)
    assert runs.status(tmp_path / "run")["code"] == 75
    assert finish(pretrain(class_folders), tmp_path)["resumed_from"]
    assert_same_run(reference, tmp_path / "run")


SLOW_DISK = (
    "import os, time\nflush = os.fsync\ndef slow(descriptor):\n"
    "    if os.path.exists('slow'): time.sleep(0.5)\n    flush(descriptor)\nos.fsync = slow\n"
)


@pytest.mark.parametrize(("first", "second", "code"), [("SIGTERM", "SIGTERM", 143), ("SIGTERM", "SIGINT", 130)])
def test_row_08_a_second_signal_stops_at_once(
    class_folders: Path, reference: Path, tmp_path: Path, first: str, second: str, code: int
) -> None:
    """The second one falls into the save that the first one asked for, on a disk that takes its time."""
    settings = ("--set", "train.save_every_steps=3")
    process = Started(pretrain(class_folders, *settings), tmp_path, before=SLOW_DISK + SLOW_STEPS)
    process.until(lambda: saved_steps(tmp_path / "run") == [3] and last_step(tmp_path / "run") >= 4)
    (tmp_path / "slow").touch()
    process.send(getattr(signal, first))
    process.until(lambda: any("-step-" in p.name for p in files.leftovers(tmp_path / "run" / "state")))
    sent = time.monotonic()
    process.send(getattr(signal, second))
    assert process.wait().code == code
    assert time.monotonic() - sent < 2
    assert saved_steps(tmp_path / "run") == [3], "the step before is intact, the new one was not saved"
    (tmp_path / "slow").unlink()
    assert finish(pretrain(class_folders, *settings), tmp_path)["resumed_from"] == 3
    assert_same_run(reference, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "second"])
def test_row_07_fifty_signals_at_random_moments(class_folders: Path, tmp_path: Path, name: str) -> None:
    steps, draw, codes = 300, random.Random(name), []
    same = alone(class_folders, tmp_path / "alone", steps=steps)
    command = pretrain(class_folders, steps=steps)
    for number in range(50):
        at = (number + 1) * (steps - 8) // 50
        process = Started(command, tmp_path)
        before = last_step(tmp_path / "run")
        process.until(has_logged, tmp_path / "run", before + 1)
        until = time.monotonic() + draw.uniform(0, 0.1)
        process.until(is_time, until, tmp_path / "run", at)
        process.send(signal.SIGINT if name == "SIGINT" else signal.SIGTERM)
        if name == "second":
            time.sleep(draw.uniform(0, 0.02))
            if not process.is_over():
                process.send(signal.SIGINT)
        codes.append(process.wait().code)
    assert set(codes) <= ({75, 130, 143} if name == "second" else {75}), codes
    assert name != "second" or codes.count(130) >= 10, codes
    finish(command, tmp_path)
    assert_same_run(same, tmp_path / "run")


def test_a_folder_says_how_it_ended(class_folders: Path, reference: Path) -> None:
    status = json.loads((reference / "state" / "status.json").read_text())
    assert set(status) == {"status", "step", "code", "time"}
    assert (status["status"], status["step"], status["code"]) == ("done", 12, 0)
