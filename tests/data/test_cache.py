"""The working copy of the images: the same pixels whether cached or not, whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import draw_image, mounted_disk
from vitcli.config import AugmentConfig, DataConfig
from vitcli.data import cache, decode, decoders, identity
from vitcli.data import split as split_module
from vitcli.data.cache import Images, open_images, working_view
from vitcli.data.decode import View
from vitcli.data.sources import open_source
from vitcli.data.split import Split
from vitcli.errors import DataError, ResourceError

VIEW = View((10, 8))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test."""
    monkeypatch.setenv("VIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def write(root: Path, count: int, bad: tuple[int, ...] = ()) -> Path:
    """`count` images of different sizes in one class folder; the `bad` ones are truncated."""
    (root / "a").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = root / "a" / f"{index:03}.jpg"
        draw_image(index, index, 12 + index % 5).save(path, quality=95)
        if index in bad:
            path.write_bytes(path.read_bytes()[:300])
    return root


def split(root: Path) -> Split:
    return open_source(DataConfig(source=str(root))).split("all")


def config(**values: Any) -> DataConfig:
    return DataConfig(**values)


def everything(images: Images) -> tuple[np.ndarray, np.ndarray]:
    return images.read(images.valid)


def never(*arguments: object) -> None:
    raise AssertionError("an image was decoded again")


# --- the same pixels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("where", ["cached", "decode"])
def test_pixels_do_not_depend_on_the_cache_or_on_workers(tmp_path: Path, where: Any, workers: int) -> None:
    part = split(write(tmp_path / "data", 150))
    pixels, sizes = everything(open_images(part, VIEW, config(workers=workers), where=where))
    for index, (blob, _) in enumerate(part.blobs(np.arange(150))):
        assert blob is not None
        expected, size = decode.decode(blob, VIEW, 89)
        np.testing.assert_array_equal(pixels[index], expected)
        assert tuple(sizes[index]) == size == (12 + index % 5,) * 2


def test_rows_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    part = split(write(tmp_path / "data", 100))
    order = np.random.default_rng(0).permutation(100)[:90]
    cached = open_images(part, VIEW, config(), where="cached")
    decoded = open_images(part, VIEW, config(), where="decode")
    for images in (cached, decoded):
        pixels, sizes = images.read(order)
        np.testing.assert_array_equal(pixels, everything(cached)[0][order])
        np.testing.assert_array_equal(sizes, everything(cached)[1][order])


def test_a_subset_has_its_own_images(tmp_path: Path) -> None:
    part = split(write(tmp_path / "data", 20))
    whole = open_images(part, VIEW, config())
    rows = np.array([7, 3, 19])
    np.testing.assert_array_equal(everything(open_images(part.subset(rows), VIEW, config()))[0], whole.read(rows)[0])


def test_without_room_images_are_decoded_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = split(write(tmp_path / "data", 5))
    with monkeypatch.context() as patch:
        patch.setattr(cache.files, "free_bytes", lambda path: 2**30)
        images = open_images(part, VIEW, config())
    assert images.cached is None
    np.testing.assert_array_equal(
        everything(images)[0], everything(open_images(part, VIEW, config(), where="cached"))[0]
    )


# --- opening again -------------------------------------------------------------------------------------------


def test_opening_again_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "data", 70)
    steps: list[tuple[str, int, int]] = []
    first = everything(open_images(split(root), VIEW, config(), lambda *step: steps.append(step)))
    assert steps[-1][1:] == (70, 70)
    monkeypatch.setattr(decode, "decode", never)
    again = everything(open_images(split(root), VIEW, config(workers=3)))
    np.testing.assert_array_equal(again[0], first[0])
    np.testing.assert_array_equal(again[1], first[1])


def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    root = write(tmp_path / "data", 5)
    before = everything(open_images(split(root), VIEW, config()))[0].copy()
    time.sleep(0.02)
    Image.new("RGB", (9, 9), (1, 2, 3)).save(root / "a" / "002.jpg", quality=95)
    after = everything(open_images(split(root), VIEW, config()))[0]
    assert np.abs(after[2].astype(int) - np.array([1, 2, 3])[:, None, None]).max() <= 3
    keep = [0, 1, 3, 4]
    np.testing.assert_array_equal(after[keep], before[keep])


def test_a_changed_parquet_file_is_decoded_again(tmp_path: Path) -> None:
    def pictures(offset: int) -> list[bytes]:
        folder = write(tmp_path / f"images{offset}", 4 + offset) / "a"
        return [path.read_bytes() for path in sorted(folder.iterdir())][offset:]

    path = tmp_path / "data.parquet"
    results = []
    for offset in (0, 1):
        pq.write_table(pa.table({"image": pictures(offset)}), path)
        results.append(everything(open_images(split(path), VIEW, config()))[0].copy())
        time.sleep(0.02)
    np.testing.assert_array_equal(results[1][:3], results[0][1:])


@pytest.mark.parametrize("layout", ["saved", "metadata", "zip", "folder"])
def test_row_50_splits_of_one_data_set_never_share_pixels(tmp_path: Path, layout: str) -> None:
    """All files of one size and date, so that only what is in them differs."""
    root = tmp_path / "data"
    for split, colour in (("train", 10), ("test", 200)):
        for i in range(3):
            path = root / split / ("" if layout == "metadata" else "a") / f"{i}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (colour, i, 0)).save(path)
            os.utime(path, (1_600_000_000, 1_600_000_000))
        if layout == "metadata":
            (root / split / "metadata.csv").write_text("file_name,label\n" + "".join(f"{i}.bmp,a\n" for i in range(3)))
    if layout == "zip":
        root = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", root))
    if layout == "saved":
        tables = {
            s: datasets.Dataset.from_dict(
                {"image": [str(p) for p in sorted((root / s / "a").iterdir())], "label": [0] * 3}
            )
            for s in ("train", "test")
        }
        datasets.DatasetDict(tables).cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
        root = tmp_path / "saved"
    source = open_source(DataConfig(source=str(root)))
    reds = {s: everything(open_images(source.splits[s], VIEW, config()))[0][:, 0].mean() for s in ("train", "test")}
    assert reds == {"train": 10, "test": 200}


def test_row_48_an_image_replaced_by_one_of_equal_size_and_time_is_decoded_anew(tmp_path: Path) -> None:
    for colour in (10, 200):
        path = tmp_path / "data" / "a" / "1.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (colour, 0, 0)).save(path)
        os.utime(path, (1_600_000_000, 1_600_000_000))
        assert everything(open_images(split(tmp_path / "data"), VIEW, config()))[0][:, 0].mean() == colour


def test_row_47_what_cannot_be_opened_for_a_moment_is_not_remembered_as_bad(tmp_path: Path) -> None:
    root = write(tmp_path / "data", 12)
    hidden = root / "a" / "005.jpg"
    away = hidden.rename(tmp_path / "away.jpg")
    hidden.symlink_to(tmp_path / "nowhere.jpg")  # a name that is there and cannot be opened
    skipping = config(on_bad_image="skip")
    first = open_images(split(root), VIEW, skipping)
    assert [position for position, _ in first.bad] == [5]
    hidden.unlink()
    away.rename(hidden)
    assert open_images(split(root), VIEW, skipping).bad == []


def test_row_47_what_fails_between_two_looks_stops_and_leaves_no_cache(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = split(write(tmp_path / "data", 12))
    part.digests()
    (tmp_path / "data" / "a" / "005.jpg").rename(tmp_path / "away.jpg")
    with pytest.raises(DataError, match=r"005\.jpg.*a moment ago"):
        open_images(part, VIEW, config(on_bad_image="skip"))
    assert not any(p.is_dir() for p in home.glob("*"))
    (tmp_path / "away.jpg").rename(tmp_path / "data" / "a" / "005.jpg")
    assert open_images(part, VIEW, config(on_bad_image="skip")).bad == []


def test_digests_are_remembered_for_files_that_did_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_ALWAYS_READ", 3)
    monkeypatch.setattr(identity, "_SETTLED_SECONDS", -1.0)
    root = write(tmp_path / "data", 12)
    first = split(root).digests()
    read: list[str] = []
    real = split_module._read
    monkeypatch.setattr(split_module, "_read", lambda path: read.append(path) or real(path))
    assert (split(root).digests() == first).all() and read == []
    time.sleep(0.02)
    stat = (root / "a" / "003.jpg").stat()
    blob = (root / "a" / "003.jpg").read_bytes()
    (root / "a" / "003.jpg").write_bytes(blob[:-3] + b"abc")
    os.utime(root / "a" / "003.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = split(root).digests()
    assert [Path(p).name for p in read] == ["003.jpg"] and (second != first).sum() == 1


def test_row_50_another_view_rows_or_limit_has_another_cache(tmp_path: Path, home: Path) -> None:
    part = split(write(tmp_path / "data", 6))
    views = [
        VIEW,
        View((8, 10)),
        View((10, 8), "short"),
        View((10, 8), "short", 0.9),
        replace(VIEW, interpolation="bilinear"),
        replace(VIEW, draft=True),
    ]
    for view in views:
        assert everything(open_images(part, view, config()))[0].shape[1:] == (3, *view.size)
    assert len(list(home.iterdir())) == len(views)
    open_images(part.subset(np.array([1, 2])), VIEW, config())
    open_images(part.subset(np.array([2, 1])), VIEW, config())
    open_images(part, VIEW, config(max_megapixels=50))
    assert len(list(home.iterdir())) == len(views) + 3
    open_images(part, VIEW, config(workers=0, memory_mb=7))
    assert len(list(home.iterdir())) == len(views) + 3


SPECS = st.tuples(
    st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
    st.builds(
        View,
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        st.sampled_from(["square", "short"]),
        st.sampled_from([0.5, 0.9, 1.0]),
        st.sampled_from(["bilinear", "bicubic"]),
        st.booleans(),
    ),
    st.sampled_from([1.0, 89.0]),
)
"""What a cache is of: images, in order, and how they are decoded."""


@given(SPECS, SPECS)
def test_row_50_what_differs_never_has_the_same_entry(one: Any, other: Any) -> None:
    def entry(spec: Any) -> str:
        images, view, limit = spec
        part = SimpleNamespace(digests=lambda progress: np.array(images, np.uint64))
        return cache._key(cast(Split, part), view, config(max_megapixels=limit), lambda *step: None)

    assert (entry(one) == entry(other)) == (one == other)


@pytest.mark.parametrize("damage", ["short", "empty sizes", "short sizes", "no json", "other json", "gone"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, home: Path, damage: str) -> None:
    part = split(write(tmp_path / "data", 6))
    expected = everything(open_images(part, VIEW, config(), where="decode"))
    open_images(part, VIEW, config())
    (folder,) = home.iterdir()
    if damage == "short":
        os.truncate(folder / "pixels.u8", 100)
    elif damage == "empty sizes":
        os.truncate(folder / "sizes.npy", 0)
    elif damage == "short sizes":
        np.save(folder / "sizes.npy", np.zeros((2, 2), np.int32))
    elif damage == "no json":
        (folder / "images.json").write_bytes(b"\0\0\0")
    elif damage == "other json":
        (folder / "images.json").write_text(json.dumps([1, 2]))
    else:
        (folder / "pixels.u8").unlink()
    images = open_images(part, VIEW, config())
    np.testing.assert_array_equal(everything(images)[0], expected[0])
    np.testing.assert_array_equal(everything(images)[1], expected[1])


def test_a_leftover_of_a_killed_writer_does_no_harm(tmp_path: Path, home: Path) -> None:
    part = split(write(tmp_path / "data", 6))
    expected = everything(open_images(part, VIEW, config()))[0].copy()
    (folder,) = home.iterdir()
    leftover = home / f".writing-0badcafe-{folder.name}"
    shutil.copytree(folder, leftover)
    os.truncate(leftover / "pixels.u8", 3)
    shutil.rmtree(folder)
    np.testing.assert_array_equal(everything(open_images(part, VIEW, config()))[0], expected)


def test_two_writers_at_once(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = split(write(tmp_path / "data", 80))
    expected = everything(open_images(part, VIEW, config(), where="decode"))[0]
    both = threading.Barrier(2, timeout=20)
    build = cache._build

    def together(*arguments: Any) -> Any:
        both.wait()
        return build(*arguments)

    monkeypatch.setattr(cache, "_build", together)
    results: list[Any] = [None, None]

    def work(index: int) -> None:
        try:
            results[index] = everything(open_images(part, VIEW, config(workers=2)))[0]
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for result in results:
        assert isinstance(result, np.ndarray), result
        np.testing.assert_array_equal(result, expected)
    assert [p for p in home.iterdir() if p.name.startswith(".")] == []


WRITER = """
import sys
from pathlib import Path
from vitcli.config import DataConfig
from vitcli.data import cache, decode
from vitcli.data.sources import open_source
import time
slowly = decode.decode
def wait(*arguments):
    time.sleep(0.002)
    return slowly(*arguments)
decode.decode = wait
part = open_source(DataConfig(source=sys.argv[1])).split("all")
print("ready", flush=True)
sys.stdin.readline()
images = cache.open_images(part, decode.View((10, 8)), DataConfig())
print(int(images.read(images.valid)[0].astype(int).sum()), flush=True)
"""


def test_processes_that_write_at_once_and_are_killed(tmp_path: Path, home: Path) -> None:
    root = write(tmp_path / "data", 400)
    part = split(root)
    expected = everything(open_images(part, VIEW, config(), where="decode"))[0]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer, delay in zip(writers[:2], (0.05, 0.15), strict=True):
        time.sleep(delay)
        writer.kill()
    for writer in writers[2:]:
        out, _ = writer.communicate(timeout=120)
        assert writer.returncode == 0
        assert int(out) == expected.astype(int).sum()
    for writer in writers[:2]:
        writer.communicate()
        assert writer.returncode == -9
    np.testing.assert_array_equal(everything(open_images(part, VIEW, config()))[0], expected)


@pytest.mark.parametrize("count", [3, 400])
def test_threads_are_chosen_by_measurement_and_change_no_pixel(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = split(write(tmp_path / "data", count))
    expected = everything(open_images(part, VIEW, config(workers=0), where="decode"))[0]
    tried: list[int] = []
    by_threads = decoders._by_threads

    def note(work: Any, parts: Any, workers: int, decode_many: Any) -> Any:
        tried.append(workers)
        return by_threads(work, parts, workers, decode_many)

    monkeypatch.setattr(decoders, "_by_threads", note)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(decoders, "_TRIAL", 2)
    np.testing.assert_array_equal(everything(open_images(part, VIEW, config()))[0], expected)
    if count == 3:
        assert tried == [2]
    else:
        assert tried[:3] == [2, 1, 4]
        assert tried[3] in (1, 2, 4)


def test_where_threads_do_not_help_processes_decode_to_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = split(write(tmp_path / "data", 60, bad=(3, 50)))
    settings = config(on_bad_image="skip")
    expected = open_images(part, VIEW, settings)
    shutil.rmtree(cache.cache_home())
    monkeypatch.setattr(os, "cpu_count", lambda: 8)  # threads of this machine are far from eight times as fast as one
    monkeypatch.setattr(cache, "CHUNK", 1)
    monkeypatch.setattr(decoders, "_TRIAL", 1)
    monkeypatch.setattr(decoders, "_WORTH_PROCESSES", 0)
    used: list[int] = []

    def note(count: int) -> Any:
        used.append(count)
        return by_processes(2)

    by_processes = decoders.processes
    monkeypatch.setattr(decoders, "processes", note)
    found = open_images(part, VIEW, settings)
    assert used == [8] and found.bad == expected.bad and len(found.bad) == 2
    for one, other in zip(everything(found), everything(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_process_that_is_gone_is_done_without(tmp_path: Path) -> None:
    blobs = [path.read_bytes() for path in sorted((write(tmp_path, 6, bad=(2,)) / "a").iterdir())]
    here = decoders.decode_here(blobs, VIEW, 89.0)
    assert isinstance(here[2], str)
    with decoders.processes(1) as there:
        for attempt in range(3):
            found = there(blobs, VIEW, 89.0)
            assert [type(f) for f in found] == [type(f) for f in here] and found[2] == here[2]
            np.testing.assert_array_equal(found[1][0], here[1][0])  # type: ignore[arg-type]
            if attempt == 0:
                mine = subprocess.run(
                    ["pgrep", "-P", str(os.getpid()), "-f", "vitcli.data.decoders"], capture_output=True
                )
                for process in mine.stdout.split():
                    os.kill(int(process), 9)


def test_a_cache_that_cannot_be_written_lies_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vit").write_text("in the way")
    (tmp_path / "temporary").mkdir()
    monkeypatch.delenv("VIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    part = split(write(tmp_path / "data", 6))
    images = open_images(part, VIEW, config())
    assert everything(images)[0].shape == (6, 3, 10, 8)
    assert images.cached is not None and list((tmp_path / "temporary").iterdir()) == []


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_home() == tmp_path / "cache"
    monkeypatch.delenv("VIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_home() == tmp_path / "xdg" / "vit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache.cache_home() == tmp_path / "me" / ".cache" / "vit"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    with mounted_disk(tmp_path / "disk", "256k") as folder:
        yield folder


def test_a_disk_that_fills_up_is_an_error_not_a_crash(tmp_path: Path, tiny_disk: Path) -> None:
    """In a process of its own, as writing to a mapped page without a block behind it ends a process."""
    root = write(tmp_path / "data", 8)
    script = (
        "import sys\n"
        "from vitcli.config import DataConfig\n"
        "from vitcli.data.cache import open_images\n"
        "from vitcli.data.decode import View\n"
        "from vitcli.data.sources import open_source\n"
        "from vitcli.errors import ResourceError\n"
        "part = open_source(DataConfig(source=sys.argv[1])).split('all')\n"
        "try:\n    open_images(part, View((300, 300)), DataConfig(), where='cached')\n"
        "except ResourceError as error:\n    print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(root)],
        env={**os.environ, "VIT_CACHE": str(tiny_disk)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert "no space left" in done.stdout
    assert f"{8 * 300 * 300 * 3:,} bytes are needed" in done.stdout
    assert ResourceError.code == 6


def test_a_disk_without_room_is_not_written_to(
    tmp_path: Path, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIT_CACHE", str(tiny_disk))
    images = open_images(split(write(tmp_path / "data", 8)), View((300, 300)), config())
    assert images.cached is None
    assert everything(images)[0].shape == (8, 3, 300, 300)
    assert list(tiny_disk.iterdir()) == []


# --- images that cannot be read ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("where", ["cached", "decode"])
def test_a_bad_image_is_an_error_that_names_its_path(tmp_path: Path, where: Any, workers: int) -> None:
    root = write(tmp_path / "data", 80, bad=(70, 75))
    with pytest.raises(DataError) as caught:
        everything(open_images(split(root), VIEW, config(workers=workers), where=where))
    assert str(root / "a" / "070.jpg") in caught.value.message
    assert "data.on_bad_image=skip" in caught.value.hint
    assert caught.value.code == 3


@pytest.mark.parametrize("where", ["cached", "decode"])
def test_a_bad_image_leaves_no_thread(tmp_path: Path, where: Any) -> None:
    """Also while the error, and so what was at work, is still held."""
    part = split(write(tmp_path / "data", 200, bad=(3,)))
    before = set(threading.enumerate())
    with pytest.raises(DataError) as caught:
        everything(open_images(part, VIEW, config(workers=2), where=where))
    assert set(threading.enumerate()) <= before
    assert caught.value.code == 3


def test_a_bad_image_of_a_parquet_file_is_named_by_its_row(tmp_path: Path) -> None:
    root = write(tmp_path / "data", 6, bad=(4,)) / "a"
    pq.write_table(pa.table({"image": [p.read_bytes() for p in sorted(root.iterdir())]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"row 4 of split 'train'"):
        open_images(split(tmp_path / "train.parquet"), VIEW, config())


def test_a_failed_build_leaves_nothing(tmp_path: Path, home: Path) -> None:
    part = split(write(tmp_path / "data", 6, bad=(4,)))
    with pytest.raises(DataError):
        open_images(part, VIEW, config())
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("where", ["cached", "decode"])
def test_bad_images_are_skipped_and_counted(tmp_path: Path, where: Any) -> None:
    part = split(write(tmp_path / "data", 30, bad=(3, 17)))
    images = open_images(part, VIEW, config(on_bad_image="skip"), where=where)
    assert len(images) == 28
    assert [position for position, _ in images.bad] == [3, 17]
    assert all(reason for _, reason in images.bad)
    np.testing.assert_array_equal(images.valid, [i for i in range(30) if i not in (3, 17)])
    good = split(write(tmp_path / "good", 30))
    expected = open_images(good, VIEW, config()).read(images.valid)[0]
    np.testing.assert_array_equal(everything(images)[0], expected)


def test_a_cache_with_skipped_images_still_stops_a_strict_run(tmp_path: Path) -> None:
    part = split(write(tmp_path / "data", 30, bad=(3,)))
    open_images(part, VIEW, config(on_bad_image="skip"))
    with pytest.raises(DataError, match=r"003\.jpg"):
        open_images(part, VIEW, config())
    assert len(open_images(part, VIEW, config(on_bad_image="skip"))) == 29


@pytest.mark.parametrize("where", ["cached", "decode"])
def test_more_bad_images_than_the_cap_are_an_error(tmp_path: Path, where: Any) -> None:
    ten = split(write(tmp_path / "ten", 30, bad=tuple(range(10))))
    assert len(open_images(ten, VIEW, config(on_bad_image="skip"), where=where)) == 20
    eleven = split(write(tmp_path / "eleven", 30, bad=tuple(range(2, 13))))
    with pytest.raises(DataError) as caught:
        open_images(eleven, VIEW, config(on_bad_image="skip"), where=where)
    for word in ("11 of 30", "002.jpg"):
        assert word in caught.value.message
    none = split(write(tmp_path / "none", 3, bad=(0, 1, 2)))
    with pytest.raises(DataError, match="3 of 3"):
        open_images(none, VIEW, config(on_bad_image="skip"), where=where)


def test_a_file_that_vanished_is_a_bad_image(tmp_path: Path) -> None:
    part = split(write(tmp_path / "data", 12))
    (tmp_path / "data" / "a" / "005.jpg").unlink()
    with pytest.raises(DataError, match=r"005\.jpg.*cannot be opened"):
        open_images(part, VIEW, config())


def test_a_huge_image_is_a_bad_image_with_the_limit(tmp_path: Path) -> None:
    part = split(write(tmp_path / "data", 3))
    Image.new("1", (400, 300)).save(tmp_path / "data" / "a" / "001.jpg", "PNG")
    with pytest.raises(DataError, match=r"001\.jpg.*limit of 0\.1 \(data\.max_megapixels\)"):
        open_images(part, VIEW, config(max_megapixels=0.1))


# --- the working size ----------------------------------------------------------------------------------------


def test_the_working_copy_has_a_margin_where_crops_are_taken() -> None:
    for crop in ("resized", "random"):
        assert working_view((400, 500), False, (224, 224), AugmentConfig(crop=crop)).size == (256, 256)  # type: ignore[arg-type]
    wide = AugmentConfig(crop="random", margin=1.25)
    assert working_view((400, 500), False, (128, 128), wide).size == (160, 160)
    for crop in ("none", "pad"):
        assert working_view((400, 500), False, (224, 160), AugmentConfig(crop=crop)).size == (224, 160)  # type: ignore[arg-type]


def test_small_images_of_one_size_are_not_enlarged() -> None:
    assert working_view((32, 32), True, (224, 224), AugmentConfig()).size == (32, 32)
    assert working_view((32, 400), True, (224, 224), AugmentConfig()).size == (32, 256)
    assert working_view((32, 32), False, (224, 224), AugmentConfig()).size == (256, 256)


@pytest.mark.parametrize("where", ["cached", "decode"])
def test_the_working_copy_of_large_photographs_has_their_full_sizes(tmp_path: Path, where: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "data").mkdir()
    noisy = draw_image(0, 0, 40).resize((2000, 1600), Image.Resampling.BICUBIC)
    noisy.save(tmp_path / "data" / "0.jpg", quality=90)
    noisy.save(tmp_path / "data" / "1.jpg", quality=90, exif=exif)
    view = working_view((1600, 2000), False, (64, 48), AugmentConfig())
    assert view.draft
    part = split(tmp_path / "data")
    pixels, sizes = everything(open_images(part, view, config(), where=where))
    whole, whole_sizes = everything(open_images(part, replace(view, draft=False), config(), where=where))
    assert sizes.tolist() == whole_sizes.tolist() == [[1600, 2000], [2000, 1600]]
    for quick, slow in zip(pixels, whole, strict=True):
        assert 10 * np.log10(255**2 / np.mean((quick.astype(float) - slow) ** 2)) >= 40
