"""The write path: what is left behind is whole or absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import mounted_disk
from vitcli import files
from vitcli.errors import ResourceError, UsageError
from vitcli.plain import read_at, write_at


def names(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


def fill(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "optimizer.pt").write_bytes(b"moments" * 100)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    folder = tmp_path / "step-5"
    files.write_folder(folder, fill)
    return folder


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    with mounted_disk(tmp_path / "disk", "64k") as folder:
        yield folder


# --- files ---------------------------------------------------------------------------------------------------


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    files.write_json(path, {"top1": 0.5, "name": "größe"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"top1": 0.5, "name": "größe"}
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["report.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def half(temporary: Path) -> None:
        temporary.write_bytes(b"ne")
        assert temporary.parent == tmp_path  # a rename across disks would not be atomic
        raise RuntimeError("stopped half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        files.write_file(path, half)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["model.safetensors"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"new")
        seen.append(path.read_bytes())

    files.write_file(path, write)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"


def test_bytes_are_flushed_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    events: list[tuple[str, bool]] = []
    flush = files.fsync_path

    def record(flushed: Path) -> None:
        flush(flushed)
        events.append(("folder" if flushed.is_dir() else "file", path.exists()))

    monkeypatch.setattr(files, "fsync_path", record)
    files.write_text(path, "text")
    assert events == [("file", False), ("folder", True)]


def test_json_without_a_standard_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "report.json", {"loss": float("nan")})
    assert names(tmp_path) == []
    with pytest.raises(ValueError):
        files.append_line(tmp_path / "metrics.jsonl", {"loss": float("inf")})


def test_writing_below_a_file_or_a_missing_folder_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "report.json", tmp_path / "missing" / "report.json"):
        with pytest.raises(ResourceError) as caught:
            files.write_text(path, "text")
        assert str(path) in caught.value.message
        assert caught.value.hint
        assert caught.value.code == 6


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(3):
        files.append_line(path, {"step": step})
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(step + 1))
    with pytest.raises(ResourceError):
        files.append_line(tmp_path / "missing" / "metrics.jsonl", {"step": 0})


def test_an_existing_file_is_replaced_only_when_forced(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    files.check_out(path, False)
    path.touch()
    with pytest.raises(UsageError, match=r"out\.png") as caught:
        files.check_out(path, False)
    assert "--force" in caught.value.hint
    files.check_out(path, True)


# --- folders -------------------------------------------------------------------------------------------------


def test_a_folder_has_a_manifest_of_its_files(written: Path) -> None:
    entries = json.loads((written / files.MANIFEST).read_text())
    assert sorted(entries) == ["model.safetensors", "optimizer.pt"]
    for name, entry in entries.items():
        assert entry["bytes"] == (written / name).stat().st_size
        assert entry["sha256"] == files.sha256_file(written / name)
    assert files.folder_fault(written) == ""
    assert names(written.parent) == ["step-5"]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_folder(tmp_path / "step-5", half)
    assert names(tmp_path) == []


def test_a_written_folder_is_never_written_again(written: Path) -> None:
    before = {f.name: f.read_bytes() for f in written.iterdir()}

    def other(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"other")

    with pytest.raises((OSError, ResourceError)):
        files.write_folder(written, other)
    assert {f.name: f.read_bytes() for f in written.iterdir()} == before
    assert names(written.parent) == ["step-5"]


@pytest.mark.parametrize("position", [0, 5000, -1])
def test_a_flipped_bit_is_found(written: Path, position: int) -> None:
    path = written / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    assert "model.safetensors" in files.folder_fault(written)


def test_a_truncated_file_is_found(written: Path) -> None:
    path = written / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-1])
    assert "optimizer.pt" in files.folder_fault(written)
    assert "699" in files.folder_fault(written)


def test_a_missing_file_is_found(written: Path) -> None:
    (written / "optimizer.pt").unlink()
    assert "optimizer.pt" in files.folder_fault(written)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[1]", '{"model.safetensors": 3}', '{"model.safetensors": {}}', "\xff"]
)
def test_a_broken_manifest_is_found(written: Path, text: str) -> None:
    (written / files.MANIFEST).write_bytes(text.encode("latin-1"))
    fault = files.folder_fault(written)
    assert fault
    assert str(written) in fault


def test_a_folder_without_a_manifest_is_faulty(tmp_path: Path) -> None:
    assert files.folder_fault(tmp_path)
    assert files.folder_fault(tmp_path / "missing")


def test_leftovers_of_a_killed_write_are_named(tmp_path: Path, written: Path) -> None:
    script = """if True:
        import os, sys
        from pathlib import Path
        from vitcli import files

        def die(path):
            (path / "half" if path.is_dir() else path).write_bytes(b"half")
            os._exit(9)

        folder = Path(sys.argv[1])
        if sys.argv[2] == "folder":
            files.write_folder(folder / "step-6", die)
        files.write_file(folder / "report.json", die)
    """
    for kind in ("folder", "file"):
        assert subprocess.run([sys.executable, "-c", script, str(tmp_path), kind], check=False).returncode == 9
        (left,) = files.leftovers(tmp_path)  # the second write takes away what the first has left
        assert left.is_dir() == (kind == "folder")
        assert names(tmp_path) == sorted([left.name, "step-5"])
    assert files.folder_fault(written) == ""
    assert files.leftovers(tmp_path / "missing") == []


# --- disks ---------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file(tiny_disk: Path) -> None:
    path = tiny_disk / "model.safetensors"
    path.write_bytes(b"old")
    size = 200_000
    with pytest.raises(ResourceError, match=r"200,000 bytes are needed") as caught:
        files.write_file(path, lambda temporary: temporary.write_bytes(bytes(size)) and None, size)
    assert "free" in caught.value.message
    assert caught.value.code == 6
    assert path.read_bytes() == b"old"
    assert names(tiny_disk) == ["model.safetensors"]


def test_a_full_disk_leaves_the_old_folder(tiny_disk: Path) -> None:
    files.write_folder(tiny_disk / "step-1", fill)

    def large(folder: Path) -> None:
        fill(folder)
        (folder / "ema.safetensors").write_bytes(bytes(200_000))

    with pytest.raises(ResourceError, match="no space left"):
        files.write_folder(tiny_disk / "step-2", large)
    assert files.folder_fault(tiny_disk / "step-1") == ""
    assert names(tiny_disk) == ["step-1"]


def test_a_full_disk_fails_an_appended_line(tiny_disk: Path) -> None:
    path = tiny_disk / "metrics.jsonl"
    with pytest.raises(ResourceError, match="no space left"):
        for _ in range(100):
            files.append_line(path, {"text": "x" * 4000})


def test_free_bytes_of_a_folder_that_is_not_there_yet(tiny_disk: Path) -> None:
    assert files.free_bytes(tiny_disk / "runs" / "new") == files.free_bytes(tiny_disk)
    assert 0 < files.free_bytes(tiny_disk) <= 64 * 1024


@pytest.mark.parametrize("system", ["with", "without"])
def test_reading_and_writing_at_places_by_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    """On systems that can, and on those that read and write only at a file's own position."""
    if system == "without":
        monkeypatch.delattr("os.preadv", raising=False)
        monkeypatch.delattr("os.pwrite", raising=False)
    parts = [bytes([i]) * 1000 for i in range(50)]
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: write_at(descriptor, memoryview(parts[i]), 1000 * i), range(50)))
        buffers = [bytearray(1000) for _ in parts]
        counts = list(pool.map(lambda i: read_at(descriptor, memoryview(buffers[i]), 1000 * i), range(50)))
    assert counts == [1000] * 50 and list(map(bytes, buffers)) == parts
    assert read_at(descriptor, memoryview(bytearray(10)), 49_995) == 5
    os.close(descriptor)
