"""Rows 19 to 25 and 41: images that cannot be read, or not as they seem, and labels that fit nothing."""

from __future__ import annotations

import functools
import io
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Result, draw_image
from processes import pretrain, run
from vitcli import runs
from vitcli.data.colour import BadImage
from vitcli.data.decode import View, decode, open_rgb

Command = Callable[..., Result]
SKIP = ("--set", "data.on_bad_image=skip")


@pytest.fixture
def vit(in_process: Command) -> Command:
    return in_process


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
    assert runs.status(tmp_path / "run")["code"] == 3
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
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "gzip": b"\x1f\x8b\x08\0" + bytes(30),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(30),
    "FITS": b"SIMPLE  =                    T" + bytes(2880),
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(100),
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


def chunks(*pairs: tuple[bytes, bytes], side: int = 32) -> bytes:
    """A black PNG with these chunks before its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = zlib.compress(bytes(side * (1 + 3 * side)))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    inner = b"".join(chunk(*pair) for pair in pairs)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + inner + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@functools.cache
def packed(size: int) -> bytes:
    """So many zeros, deflated."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(size // 2**20)) + packer.flush()


def tiff(entries: list[tuple[int, int, int, int]], rest: bytes = bytes(2000), following: int = 0) -> bytes:
    """A TIFF of one page with these tags: number, type, count, value."""
    tags = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + struct.pack("<I", following) + rest


def gray_tiff(width: int, height: int, *more: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    usual = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: height, 279: 1024}
    return [(tag, 4, 1, value) for tag, value in usual.items() if tag not in {entry[0] for entry in more}] + list(more)


def within(content: bytes, start: bytes, inner: bytes) -> bytes:
    """`inner` put behind the first bytes `start` of `content`."""
    assert content.startswith(start)
    return start + inner + content[len(start) :]


def many_scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: half a megabyte that takes minutes."""
    blob = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    return blob[:-2] + blob[blob.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"


def patched(blob: bytes, before: bytes, behind: int, content: bytes) -> bytes:
    at = blob.index(before) + behind
    return blob[:at] + content + blob[at + len(content) :]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
JPEG, GIF = encoded(NOISE, "JPEG"), encoded(NOISE.convert("P"), "GIF")

BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a text of a gigabyte": (lambda: chunks((b"zTXt", b"c\0\0" + packed(2**30))), "too large"),
    "an international text of a gigabyte": (lambda: chunks((b"iTXt", b"c\0\1\0\0\0" + packed(2**30))), "too large"),
    "a colour profile of a gigabyte": (lambda: chunks((b"iCCP", b"c\0\0" + packed(2**30))), "too large"),
    "a hundred texts of a megabyte": (lambda: chunks(*[(b"zTXt", b"c\0\0" + packed(2**20))] * 100), "too much memory"),
    "three million chunks": (lambda: chunks(*[(b"tEXt", b"a\0b")] * 3 * 10**6), "pieces"),
    "a header that is not the one that was written": (lambda: patched(chunks(), b"IHDR", 4, struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 1)), "not an image"),
    "a million fill bytes, often": (lambda: within(JPEG, JPEG[:2], b"\xff" * 10**7), "pieces"),
    "millions of segments": (lambda: within(JPEG, JPEG[:2], b"\xff\xe5\0\2" * 3 * 10**6), "pieces"),
    "two thousand scans": (lambda: many_scans(9000, 2000), "scans"),
    "fifty scans of 81 megapixels": (lambda: many_scans(9000, 50), "scans"),
    "a million frames of GIF": (lambda: GIF[:-1] + b"\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0" * 10**6 + b";", ""),
    "a giant screen": (lambda: patched(GIF, b"GIF8", 6, b"\xff\xff\xff\xff"), "megapixels"),
    "a million strips": (
        lambda: tiff(gray_tiff(32, 10**6, (273, 4, 10**6, 200), (279, 4, 10**6, 200)), bytes(5 * 10**6)), "strips",
    ),
    "pages that follow each other in a ring": (lambda: tiff(gray_tiff(32, 32), following=8), ""),
    "65,000 tags": (lambda: tiff(gray_tiff(32, 32) + [(51000 + i % 9000, 3, 1, 1) for i in range(65000)]), ""),
    "a tag of two gigabytes": (lambda: tiff(gray_tiff(32, 32, (40000, 1, 2**31 - 1, 8))), ""),
    "a tile of 3,600 megapixels": (lambda: tiff(gray_tiff(32, 32, (322, 4, 1, 60000), (323, 4, 1, 60000), (324, 4, 1, 200), (325, 4, 1, 1024))), "|"),
    "a TIFF of 3,600 megapixels": (lambda: tiff(gray_tiff(60000, 60000)), "megapixels"),
    "a JPEG 2000 of 3,600 megapixels": (
        lambda: patched(encoded(NOISE, "JPEG2000", no_jp2=True), b"\xff\x4f", 8, struct.pack(">II", 60000, 60000)), "megapixels",
    ),
    "a JPEG 2000 of 81 million tiles": (
        lambda: patched(
            patched(encoded(NOISE, "JPEG2000", no_jp2=True), b"\xff\x4f", 8, struct.pack(">II", 9000, 9000)),
            b"\xff\x4f", 24, struct.pack(">II", 1, 1),
        ), ".",
    ),
    "a WebP of 268 megapixels": (
        lambda: patched(encoded(NOISE, "WEBP", save_all=True, append_images=[NOISE.rotate(90)]), b"VP8X", 12, b"\xff\x3f\0" * 2),
        "megapixels",
    ),
    "text for pixels": (lambda: b"P3 9000 9000 255\n" + b"1 " * (2**25 + 1), "text"),
    "a comment without end": (lambda: b"P6 #" + b"x" * 10**7 + b"\n9 9 255\n", "pieces"),
    "runs of one pixel": (
        lambda: b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + struct.pack("<IiiHHIIiiII", 40, 9000, 9000, 1, 8, 1, 0, 0, 0, 256, 0)
        + bytes(1024) + b"\1\1" * 4 * 10**6, "pieces",
    ),
    "pixels one by one": (lambda: b"qoif" + struct.pack(">II", 3000, 3000) + b"\4\0" + bytes(9 * 10**6 + 8), "pieces"),
}  # fmt: skip
"""Small files that would take minutes or gigabytes, and a pattern of what is said of them; an empty one where they are read."""

MEASURED = """
import resource, sys, time
from pathlib import Path
from vitcli.data.decode import View, decode
from vitcli.data.colour import BadImage

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024

decode(Path(sys.argv[1]).read_bytes(), View((8, 8)), 89.0)  # what is imported late is no growth
resource.setrlimit(resource.RLIMIT_AS, (2**34, resource.RLIM_INFINITY))  # not the machine's, if it comes to that
for path in sys.argv[2:]:
    blob, said = Path(path).read_bytes(), ""
    before, started = peak(), time.monotonic()
    try:
        decode(blob, View((8, 8)), 89.0)
    except BadImage as error:
        said = str(error)
    print(peak() - before, time.monotonic() - started, said, flush=True)
"""


def test_row_41_bombs_take_seconds_and_little_memory(tmp_path: Path) -> None:
    (tmp_path / "first.png").write_bytes(chunks())
    paths = [tmp_path / f"{number}.png" for number in range(len(BOMBS))]
    for path, (make, _) in zip(paths, BOMBS.values(), strict=True):
        path.write_bytes(make())
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "first.png"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for (kind, (_, words)), line in zip(BOMBS.items(), done.stdout.splitlines(), strict=True):
        grown, seconds, said = line.split(" ", 2)
        assert int(grown) < 400 and float(seconds) < 30, (kind, line)
        assert re.search(words, said, re.IGNORECASE) if words else not said, (kind, line)


@pytest.mark.parametrize(
    "start",
    [b"BUFR" + bytes(100), b"GRIB" + bytes(100), bytes(257) + b"ustar\0" + bytes(300), b"\1\0\0\0" + bytes(36) + b" EMF", b"SDPX", b"\0\0\2\0",
     b"MThd", b"/* XPM */\n", b"#define x_width 60000\n#define x_height 60000\n", b"\x0a\5\1\1" + b"\xff" * 200, b"BLP2" + bytes(200)],
)  # fmt: skip
def test_row_41_what_no_plugin_should_see(start: bytes) -> None:
    with pytest.raises(BadImage):
        decode(start, View((8, 8)), 89.0)


def test_row_41_of_several_pictures_in_a_jpeg_the_first_is_read() -> None:
    several = encoded(NOISE, "MPO", save_all=True, append_images=[NOISE.rotate(90)])
    assert decode(several, View((32, 32)), 89.0)[1] == (32, 32)


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
