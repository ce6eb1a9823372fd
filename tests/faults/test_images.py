"""Rows 19 to 25 and 41: images that cannot be read, or not as they seem, and labels that fit nothing."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import pretrain, run

from conftest import Result, draw_image
from vitcli.cli import app
from vitcli.data.decode import BadImage, View, decode, open_rgb
from vitcli.train import runfolder

Command = Callable[..., Result]
SKIP = ("--set", "data.on_bad_image=skip")


@pytest.fixture
def vit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The command in this process."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> Result:
        capsys.readouterr()
        code = app.run([str(a) for a in arguments])
        return Result(code, *capsys.readouterr())

    return command


@pytest.fixture(scope="module")
def trained(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert run(pretrain(class_folders), folder).code == 0
    return folder / "run"


def images(root: Path, train: int = 16, test: int = 6) -> Path:
    for split, count in (("train", train), ("test", test)):
        for colour, name in enumerate(("red", "green", "blue")):
            (root / split / name).mkdir(parents=True)
            for index in range(count if split == "train" else test):
                draw_image(colour, 100 * (split == "test") + index).save(root / split / name / f"{index:02}.png")
    return root


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:70])


def data_error(done: Result, *words: str) -> None:
    assert done.code == 3, done
    error = done.json["error"]
    assert error["kind"] == "data" and error["hint"]
    assert all(word in error["message"] for word in words), error["message"]


# --- 19, 20: unreadable images -----------------------------------------------------------------------------------


def test_row_19_an_unreadable_training_image_is_named_before_the_first_step(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    bad = data / "train" / "green" / "05.png"  # blue comes first: row 16 + 5
    damage(bad)
    data_error(run(pretrain(data), tmp_path), str(bad), "row 21 of split 'train'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cached", [True, False])
def test_row_19_skipped_images_are_counted_and_change_nothing_else(tmp_path: Path, cached: bool) -> None:
    """The report says how many, wherever the pixels come from."""
    data = images(tmp_path / "data")
    for index in range(3):
        damage(data / "train" / "green" / f"{index:02}.png")
    no_room = "from vitcli.data import cache\ncache._has_room = lambda *a: False\ncache.cache_home = lambda: __import__('pathlib').Path('nowhere')"
    done = run(pretrain(data, *SKIP), tmp_path, before="" if cached else no_room)
    assert done.code == 0, done.err
    assert done.json["unreadable"] == {"train": 3} and done.json["images_seen"] == 96
    assert "3 unreadable training images are skipped" in done.err and "green/00.png" in done.err


def test_row_19_more_skips_than_the_cap_are_an_error(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    for index in range(11):
        damage(data / "train" / "red" / f"{index:02}.png")
    data_error(run(pretrain(data, *SKIP), tmp_path), "11 of 48 images cannot be read", "red/00.png")
    assert not (tmp_path / "run").exists()


def test_row_19_an_image_that_goes_bad_while_training_is_named(tmp_path: Path) -> None:
    """Without a cache images are read again and again; the state of the last save stays."""
    data = images(tmp_path / "data", train=8)
    bad = data / "train" / "red" / "03.png"
    before = (
        "from pathlib import Path\nfrom vitcli.data import cache\nfrom vitcli.train import loop\n"
        "cache._has_room = lambda *a: False\ncache.cache_home = lambda: Path('nowhere')\n"
        "step, calls = loop.train_step, 0\n"
        "def spoil(*arguments):\n    global calls\n    calls += 1\n"
        f"    if calls == 5: Path({str(bad)!r}).write_bytes(b'gone')\n    return step(*arguments)\nloop.train_step = spoil"
    )
    command = pretrain(data, "--set", "data.workers=0", steps=200)  # of which 128 are read at once
    done = run(command, tmp_path, before=before)
    data_error(done, str(bad), "row 19 of split 'train'")
    assert runfolder.status(tmp_path / "run")["code"] == 3
    draw_image(0, 3).save(bad)
    assert run(command, tmp_path).json["resumed_from"] == 128


def test_row_20_an_unreadable_image_in_evaluation(trained: Path, tmp_path: Path, vit: Command) -> None:
    data = images(tmp_path / "data")
    bad = data / "test" / "blue" / "03.png"
    whole = vit("eval", trained, "--data", data, "--json").json
    damage(bad)
    data_error(vit("eval", trained, "--data", data, "--json"), str(bad), "row 3 of split 'test'")
    skipped = vit("eval", trained, "--data", data, "--json", *SKIP)
    assert skipped.code == 0 and (whole["n"], skipped.json["n"], skipped.json["unreadable"]) == (18, 17, 1)
    assert [c["n"] for c in skipped.json["classes"]] == [5, 6, 6], "of the class that has it"
    assert "1 unreadable" in skipped.err


def test_row_20_the_same_in_the_evaluation_of_a_run(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    damage(data / "test" / "blue" / "03.png")
    data_error(run(pretrain(data), tmp_path), "blue/03.png")
    done = run(pretrain(data, *SKIP, out="skipped"), tmp_path)
    assert done.code == 0 and done.json["unreadable"] == {"test": 1} and done.json["eval"]["n"] == 17


# --- 21: images of too many pixels -------------------------------------------------------------------------------


def bomb(side: int) -> bytes:
    """A PNG of `side` x `side` black pixels in a few hundred kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8 + (side % 8 > 0))
    rows = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("side", "megapixels"), [(20_000, 400), (10_000, 100)])
def test_row_21_a_decompression_bomb_is_refused_with_the_limit(
    trained: Path, tmp_path: Path, vit: Command, side: int, megapixels: int
) -> None:
    data = images(tmp_path / "data", train=4, test=2)
    for split in ("train", "test"):
        (data / split / "red" / "bomb.png").write_bytes(bomb(side))
    words = (f"{megapixels} megapixels", "limit of 89", "data.max_megapixels", "bomb.png")
    data_error(vit("eval", trained, "--data", data, "--json"), *words)
    data_error(vit("pretrain", "--data", data, "--model", "mu/4", "--steps", "1", "--json"), *words)
    if megapixels == 100:  # who wants it may have it
        done = vit("eval", trained, "--data", data, "--json", "--set", "data.max_megapixels=101")
        assert done.code == 0 and done.json["n"] == 7


# --- 22, 23: modes and cut-off files -----------------------------------------------------------------------------


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 30, 0, 0, 255])
    image.putdata([0, 1])
    return image


def turned() -> bytes:
    """Red above blue, stored lying on its side."""
    image = Image.new("RGB", (2, 1))
    image.putdata([(255, 0, 0), (0, 0, 255)])
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "PNG", exif=exif)


GOLDEN: dict[str, tuple[bytes, list[list[tuple[int, int, int]]]]] = {
    "16 bits": (
        encoded(Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)), "PNG"),
        [[(0, 0, 0), (1, 1, 1), (128, 128, 128), (255, 255, 255)]],
    ),
    "CMYK": (
        encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"),
        [[(255, 0, 0)]],
    ),
    "palette": (encoded(palette(), "PNG"), [[(200, 10, 30), (0, 0, 255)]]),
    "palette with alpha": (encoded(palette(), "PNG", transparency=b"\xff\x80"), [[(200, 10, 30), (127, 127, 255)]]),
    "gray": (encoded(Image.new("L", (1, 1), 77), "PNG"), [[(77, 77, 77)]]),
    "gray with alpha": (encoded(Image.new("LA", (1, 1), (0, 0)), "PNG"), [[(255, 255, 255)]]),
    "alpha": (encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128)), "PNG"), [[(255, 127, 127)]]),
    "EXIF-rotated": (turned(), [[(255, 0, 0)], [(0, 0, 255)]]),
    "one bit": (encoded(Image.frombytes("1", (2, 1), b"\x40"), "PNG"), [[(0, 0, 0), (255, 255, 255)]]),
    "floats of 0..1": (
        encoded(Image.fromarray(np.array([[0, 0.25, 1]], np.float32)), "TIFF"),
        [[(0, 0, 0), (64, 64, 64), (255, 255, 255)]],
    ),
    "32-bit integers of 0..255": (
        encoded(Image.fromarray(np.array([[0, 7, 255]], np.int32)), "TIFF"),
        [[(0, 0, 0), (7, 7, 7), (255, 255, 255)]],
    ),
    "a colour key": (
        encoded(Image.frombytes("RGB", (2, 1), bytes([9, 8, 7, 1, 2, 3])), "PNG", transparency=(9, 8, 7)),
        [[(255, 255, 255), (1, 2, 3)]],
    ),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_row_22_each_mode_has_one_conversion(kind: str) -> None:
    blob, pixels = GOLDEN[kind]
    image, size = open_rgb(blob, 89.0)
    assert image.mode == "RGB" and size == (len(pixels), len(pixels[0]))
    assert np.asarray(image).tolist() == [[list(p) for p in row] for row in pixels]
    planes, _ = decode(blob, View(size), 89.0)
    assert planes.transpose(1, 2, 0).tolist() == [[list(p) for p in row] for row in pixels]


def test_row_22_pillow_alone_would_have_saturated() -> None:
    """Why 16 bits have a conversion of vit's own."""
    image = Image.open(io.BytesIO(GOLDEN["16 bits"][0]))
    assert np.asarray(image.convert("RGB"))[0, :, 0].tolist() != [0, 1, 128, 255]


def test_row_23_a_truncated_jpeg_is_an_error_never_gray(trained: Path, tmp_path: Path, vit: Command) -> None:
    data = images(tmp_path / "data", train=4, test=2)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    blob = encoded(Image.fromarray(noise), "JPEG", quality=90)
    for kept in (0.3, 0.6, 0.95):
        cut = blob[: int(kept * len(blob))]
        with pytest.raises(BadImage, match="truncated"):
            decode(cut, View((32, 32)), 89.0)
    for split in ("train", "test"):
        (data / split / "red" / "cut.jpg").write_bytes(blob[: len(blob) // 2])
    data_error(vit("eval", trained, "--data", data, "--json"), "cut.jpg", "truncated")
    data_error(vit("pretrain", "--data", data, "--model", "mu/4", "--steps", "1", "--json"), "cut.jpg", "truncated")


# --- 41: what hides behind an ending -----------------------------------------------------------------------------


def head_of_png(side: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


SMUGGLED = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (ran) (w) file pop showpage\n",
    "PDF": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "ICO": struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, 2000, 22) + head_of_png(60_000) + bytes(2000),
    "ICNS": b"icns" + struct.pack(">I", 2016) + b"ic10" + struct.pack(">I", 2008) + head_of_png(60_000) + bytes(2000),
}


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("kind", SMUGGLED)
def test_row_41_what_is_no_picture_is_refused_from_its_first_bytes(
    trained: Path, tmp_path: Path, vit: Command, kind: str, ending: str
) -> None:
    import resource

    path = tmp_path / f"innocent.{ending}"
    path.write_bytes(SMUGGLED[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = vit("predict", trained, path, "--json")
    assert done.code == 3 and "not a picture that is read" in done.out, done
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    assert not (tmp_path / "ran").exists()


# --- 24, 25: classes and labels ----------------------------------------------------------------------------------


def test_row_24_classes_are_mapped_by_name(trained: Path, class_folders: Path, tmp_path: Path, vit: Command) -> None:
    def measured(*names: tuple[str, str]) -> Result:
        root = tmp_path / "-".join(new for _, new in names)
        root.mkdir()
        for old, new in names:
            (root / new).symlink_to(class_folders / "test" / old)
        return vit("eval", trained, "--data", root, "--json", "--precision", "fp32")

    same = vit("eval", trained, "--json", "--precision", "fp32").json
    accuracy = {c["name"]: c["top1"] for c in same["classes"]}
    other_case = measured(("red", "RED"), ("green", "Green"), ("blue", "blue"))  # which sorts RED before blue
    assert other_case.json["top1"] == same["top1"] and other_case.json["classes"] == same["classes"]
    lacking = measured(("red", "red"), ("green", "green"))
    assert lacking.code == 0 and lacking.json["n"] == 16
    assert {c["name"]: c["top1"] for c in lacking.json["classes"]} == accuracy | {"blue": None}
    data_error(measured(("red", "red"), ("green", "violet")), "'violet'", "does not know")


def parquet(path: Path, labels: list[int | None], names: list[str]) -> Path:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    blobs = [{"bytes": encoded(draw_image(0, i), "PNG"), "path": None} for i in range(len(labels))]
    table = datasets.Dataset.from_dict({"image": blobs, "label": [0] * len(labels)}, features=features)
    import pyarrow as pa
    import pyarrow.parquet

    arrow = table.data.table.set_column(1, "label", pa.array(labels, pa.int64())).replace_schema_metadata(
        table.data.schema.metadata
    )
    pyarrow.parquet.write_table(arrow, path)
    return path


@pytest.mark.parametrize("wrong", [7, -2, None])
def test_row_25_a_label_out_of_range_or_missing_is_found_before_training(tmp_path: Path, wrong: int | None) -> None:
    labels: list[int | None] = [0, 1] * 10
    good = run(pretrain(parquet(tmp_path / "good.parquet", labels, ["a", "b"]), out="good"), tmp_path)
    assert good.code == 0, good.err
    labels[6] = wrong
    done = run(pretrain(parquet(tmp_path / "bad.parquet", labels, ["a", "b"])), tmp_path)
    data_error(done, "row 6", repr(wrong))
    assert not (tmp_path / "run").exists()
