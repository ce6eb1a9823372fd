"""Rows 10, 11, 38, 49 and 57 of the decode cache and of what a kill leaves: beside files, in caches, in temporary places."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from conftest import mounted_disk
from processes import SLOW_STEPS, Started, assert_same_run, has_logged, pretrain, run, saved_steps
from vitcli import __version__, files
from vitcli.config import DataConfig
from vitcli.data import identity
from vitcli.data.cache import FORMAT, open_images
from vitcli.data.decode import View
from vitcli.data.sources import open_source
from vitcli.weights.checkpoint import write_safetensors

READ_EACH_STEP = "from vitcli.data import loader\nloader._IMAGES_TOGETHER = 8\n"
"""Every step reads its images from the cache, not a hundred steps' at once."""
SLOW_DECODING = (
    "import time\nfrom vitcli.data import decode\nreal = decode.decode\n"
    "def slow(*a):\n    time.sleep(0.05)\n    return real(*a)\ndecode.decode = slow\n"
)
OWN_TMPDIR = "import tempfile\ntempfile.tempdir = None\n"
"""The process looks for its temporary folder anew; it is a fork of one that knows it."""
WITHOUT_ROOTS_RIGHTS = (
    "import ctypes\n"
    "assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0\n"
)
"""Root without capabilities (capset(2)): it still reads its own environment, as another user might not."""
NO_WORKERS = ("--set", "data.workers=0")


@pytest.fixture(scope="module")
def reference(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    assert run(pretrain(class_folders), folder).code == 0
    return folder / "run"


def own_cache(folder: Path) -> dict[str, str]:
    """An environment with caches and a temporary place of its own."""
    (folder / "temporary").mkdir(exist_ok=True)
    return {"VIT_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "temporary")}


def no_home(folder: Path) -> dict[str, str]:
    """The same, with a file where the caches would be."""
    (folder / "xdg").mkdir()
    (folder / "xdg" / "vit").write_text("in the way")
    return own_cache(folder) | {"VIT_CACHE": "", "XDG_CACHE_HOME": str(folder / "xdg")}


def entries(folder: Path) -> list[Path]:
    """Caches of images, whole or not."""
    return sorted(p for p in (folder / "cache" / "images").glob("*") if not p.name.startswith("."))


# --- 49: what happens to the cache while it is read -------------------------------------------------------------


def cut_off(pixels: Path) -> None:
    os.truncate(pixels, 1000)


def overwrite(pixels: Path) -> None:
    with pixels.open("r+b") as file:
        file.write(bytes(pixels.stat().st_size))


def flip_one_bit_of_each(pixels: Path) -> None:
    content = np.fromfile(pixels, np.uint8)
    content[:: 3 * 12 * 12] ^= 4
    with pixels.open("r+b") as file:
        file.write(content.tobytes())


def delete(pixels: Path) -> None:
    for file in pixels.parent.iterdir():
        file.unlink()
    pixels.parent.rmdir()


@pytest.mark.parametrize("damage", [cut_off, overwrite, flip_one_bit_of_each, delete])
def test_row_49_the_cache_is_damaged_while_it_is_read(
    class_folders: Path, reference: Path, tmp_path: Path, damage: object
) -> None:
    assert callable(damage)
    env = own_cache(tmp_path)
    process = Started(pretrain(class_folders, *NO_WORKERS), tmp_path, before=READ_EACH_STEP + SLOW_STEPS, env=env)
    process.until(has_logged, tmp_path / "run", 3)
    (cache,) = entries(tmp_path)
    damage(cache / "pixels.u8")
    done = process.wait()
    assert done.code == 0, (done.code, done.err)
    assert_same_run(reference, tmp_path / "run")
    said = [text for text in done.json["warnings"] if "decode cache" in text]
    assert len(said) == (damage is not delete) and all(str(cache) in text for text in said)
    assert entries(tmp_path) == [], "what was damaged is made anew by the next command"


def test_row_49_the_cache_was_damaged_before(class_folders: Path, reference: Path, tmp_path: Path) -> None:
    """One bit of an image, which changes no size: nothing is read that was not written."""
    env = own_cache(tmp_path)
    assert run(pretrain(class_folders, out="first"), tmp_path, env=env).code == 0
    (cache,) = entries(tmp_path)
    flip_one_bit_of_each(cache / "pixels.u8")
    done = run(pretrain(class_folders), tmp_path, env=env)
    assert done.code == 0 and any("was damaged" in text for text in done.json["warnings"])
    assert_same_run(reference, tmp_path / "run")
    again = run(pretrain(class_folders, out="again"), tmp_path, env=env)
    assert not any("cache" in text for text in again.json["warnings"]) and len(entries(tmp_path)) == 1


# --- 10, 11: where the cache cannot be written ------------------------------------------------------------------


def test_row_10_the_disk_of_the_cache_fills_up(class_folders: Path, reference: Path, tmp_path: Path) -> None:
    """After it was asked how much is free: images are decoded as they are read, and nothing half-written is left."""
    crowded = "from vitcli.data import cache\ncache._has_room = lambda *a: True"
    with mounted_disk(tmp_path / "cache", "16k") as disk:
        done = run(pretrain(class_folders), tmp_path, before=crowded, env=own_cache(tmp_path))
        assert done.code == 0, done.err
        assert list((disk / "images").iterdir()) == []
    assert_same_run(reference, tmp_path / "run")


TELLS = (
    "from vitcli.data import cache\nreal = cache.Cached\n"
    "def tell(folder, shape):\n    opened = real(folder, shape)\n    open('where', 'w').write(str(folder))\n    return opened\n"
    "cache.Cached = tell\n"
)
"""Writes down where the cache is that is opened."""


@pytest.mark.parametrize("home", ["a file", "read-only disk", "somebody else's"])
def test_row_11_a_cache_home_that_cannot_be_written(
    class_folders: Path, reference: Path, tmp_path: Path, home: str
) -> None:
    """The cache lies in the temporary folder for as long as it is read, and no longer than that."""
    env, cache, before = own_cache(tmp_path), tmp_path / "cache", OWN_TMPDIR + TELLS
    if home == "a file":
        env = no_home(tmp_path)
    elif home == "read-only disk":
        with mounted_disk(cache, "64k") as disk:
            os.system(f"mount -o remount,ro {disk}")
            done = run(pretrain(class_folders), tmp_path, before=before, env=env)
    else:
        cache.mkdir(mode=0o555)
        if os.geteuid() == 0:
            os.chown(cache, 65534, 65534)
            before += WITHOUT_ROOTS_RIGHTS
    if home != "read-only disk":
        done = run(pretrain(class_folders), tmp_path, before=before, env=env)
    assert done.code == 0, done.err
    assert_same_run(reference, tmp_path / "run")
    assert Path((tmp_path / "where").read_text()).parent.parent == tmp_path / "temporary"
    assert not any("vit-cache" in path.name for path in (tmp_path / "temporary").iterdir())


# --- 38: what a kill leaves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["cache", "temporary"])
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_row_38_what_a_kill_leaves_of_a_cache_is_removed_by_the_next_command(
    class_folders: Path, tmp_path: Path, place: str, ending: signal.Signals
) -> None:
    env = own_cache(tmp_path) if place == "cache" else no_home(tmp_path)
    where = tmp_path / ("cache/images" if place == "cache" else "temporary")
    process = Started(pretrain(class_folders), tmp_path, before=OWN_TMPDIR + SLOW_DECODING, env=env)
    process.until(lambda: any(p.is_dir() and any(p.rglob("pixels.u8")) for p in files.leftovers(where)))
    process.send(ending)
    process.wait()
    assert bool(files.leftovers(where)) == (ending == signal.SIGKILL)
    assert run(pretrain(class_folders), tmp_path, before=OWN_TMPDIR, env=env).code == 0
    assert files.leftovers(where) == []


def test_row_38_what_another_process_is_writing_stays(class_folders: Path, tmp_path: Path) -> None:
    env, home = own_cache(tmp_path), tmp_path / "cache" / "images"
    slow = Started(pretrain(class_folders, out="slow"), tmp_path, before=SLOW_DECODING, env=env)
    slow.until(files.leftovers, home)
    (writing,) = files.leftovers(home)
    assert run(pretrain(class_folders, out="quick"), tmp_path, env=env).code == 0
    assert files.leftovers(home) == [writing] or slow.is_over()
    assert slow.wait().code == 0
    assert files.leftovers(home) == [] and len(entries(tmp_path)) == 1
    assert_same_run(tmp_path / "slow", tmp_path / "quick")


def test_row_38_leftovers_beside_what_a_command_writes(class_folders: Path, tmp_path: Path) -> None:
    dying = "import os, signal\nos.fsync = lambda d: os.kill(os.getpid(), signal.SIGKILL)\n"
    assert run(pretrain(class_folders), tmp_path).code == 0
    out = tmp_path / "results"
    out.mkdir()
    command = ["eval", "run", "--predictions", "results/p.csv", "--json"]
    assert run(command, tmp_path, before=dying).code == -signal.SIGKILL
    (left,) = files.leftovers(out)
    kept = [
        out / ".writing-notes.txt",
        out / f"{left.name[:24]}0-linked",
        out / left.name.replace(files._machine(), "00000000"),
    ]
    kept[0].write_text("the user's")
    kept[1].symlink_to(kept[0])
    kept[2].write_text("of another machine, a moment ago")
    old = out / ".writing-00000000ffffffff-p.csv"
    old.write_text("of another machine, long ago")
    for path in (old, kept[0]):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    if os.geteuid() == 0:
        other = out / left.name.replace("p.csv", "q.csv")
        other.write_text("another user's")
        os.chown(other, 65534, 65534)
        kept.append(other)
    assert run(command, tmp_path).code == 0
    assert sorted(out.iterdir()) == sorted([*kept, out / "p.csv"])


# --- 57: two versions of vit -------------------------------------------------------------------------------------


def test_row_57_a_cache_of_another_version_is_not_read(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIT_CACHE", str(tmp_path / "cache"))
    part = open_source(DataConfig(source=str(class_folders))).split("test")
    expected = open_images(part, View((12, 12)), DataConfig()).read(np.arange(len(part)))[0]
    (cache,) = entries(tmp_path)
    described = json.loads((cache / "images.json").read_text())
    assert described["format"] == FORMAT
    pixels = cache / "pixels.u8"
    pixels.write_bytes(bytes(255 - value for value in pixels.read_bytes()))  # what the other version means by them
    (cache / "images.json").write_text(json.dumps(described | {"format": FORMAT + 1}))
    (cache / files.MANIFEST).unlink()
    images = open_images(part, View((12, 12)), DataConfig())
    np.testing.assert_array_equal(images.read(np.arange(len(part)))[0], expected)
    assert not images.damage, "it was made anew at once"


def test_row_57_remembered_digests_of_another_version_are_not_believed(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "_ALWAYS_READ", 1)
    monkeypatch.setattr(identity, "_SETTLED_SECONDS", -1.0)
    digests = open_source(DataConfig(source=str(class_folders))).split("test").digests()
    (memory,) = (tmp_path / "cache" / "digests").glob("*.npy")
    whole = np.load(memory)
    for wrong in ("another format", "one digest", "no head", "a table of text"):
        table = whole.copy()
        table[1:, 1] += np.uint64(7)
        if wrong == "another format":
            table[0] = [identity._MEMORY + 1, table[1:].sum()]
        elif wrong == "one digest":
            table[1:, 1] = whole[1:, 1]
            table[1, 1] += np.uint64(1)
        np.save(memory, {"no head": table[1:], "a table of text": np.array(["x"])}.get(wrong, table))
        again = open_source(DataConfig(source=str(class_folders))).split("test").digests()
        np.testing.assert_array_equal(again, digests, err_msg=wrong)


def interrupted(data: Path, folder: Path) -> Path:
    process = Started(pretrain(data), folder, before=SLOW_STEPS)
    process.until(has_logged, folder / "run", 5)
    process.send(signal.SIGTERM)
    assert process.wait().code == 75
    return folder / "run"


def test_row_57_a_run_of_another_version_is_refused_with_both_versions(class_folders: Path, tmp_path: Path) -> None:
    out = interrupted(class_folders, tmp_path)
    identity_file, toml = out / "state" / "identity.json", out / "run.toml"
    stored, text = json.loads(identity_file.read_text()), toml.read_text()
    identity_file.write_text(json.dumps(stored | {"vit": "9.9.0"}))
    toml.write_text(text.replace("[model]", '[model]\nexperts = "many"'))
    identity_file.write_text(json.dumps(stored | {"vit": "9.9.0", "asked": {"model.experts": "many"}}))
    refused = run(pretrain(class_folders), tmp_path)
    assert refused.code == 2, refused.err
    message = refused.json["error"]["message"]
    assert "experts" in message and "vit 9.9.0" in message and f"vit {__version__}" in message
    toml.write_text(text)
    identity_file.write_text(json.dumps(stored | {"vit": "9.9.0"}))
    done = run(pretrain(class_folders), tmp_path)
    assert done.code == 0 and done.json["resumed_from"], "another version, and nothing that is not understood"


def test_row_57_a_saved_step_of_another_version_is_refused_with_both_versions(
    class_folders: Path, tmp_path: Path
) -> None:
    out = interrupted(class_folders, tmp_path)
    for step in (out / "state").glob("step-*"):
        values = step / "values.json"
        values.write_text(json.dumps(json.loads(values.read_text()) | {"format": 2, "vit": "9.9.0"}))
        manifest = json.loads((step / files.MANIFEST).read_text())
        manifest["values.json"] = {"bytes": values.stat().st_size, "sha256": files.sha256_file(values)}
        (step / files.MANIFEST).write_text(json.dumps(manifest))
    before = saved_steps(out)
    refused = run(pretrain(class_folders), tmp_path)
    assert refused.code == 4, refused.err
    message = refused.json["error"]["message"]
    assert "vit 9.9.0 in format 2" in message and f"vit {__version__} reads 1" in message
    assert saved_steps(out) == before


def test_row_57_a_checkpoint_of_another_version_is_refused_with_both_versions(
    class_folders: Path, tmp_path: Path
) -> None:
    assert run(pretrain(class_folders), tmp_path).code == 0
    path = tmp_path / "run" / "model.safetensors"
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["vit"])
    document |= {"version": "9.9.0", "model": document["model"] | {"experts": 8}}
    document.pop("sha256")
    write_safetensors(tmp_path / "newer.safetensors", load_file(path), document)
    for command in (["info", "newer.safetensors", "--json"], ["eval", "newer.safetensors", "--json"]):
        refused = run(command, tmp_path)
        assert refused.code == 4, refused.err
        error = refused.json["error"]
        assert "experts" in error["message"] and f"vit {__version__}" in error["message"] and "9.9.0" in error["hint"]
