"""Row 43: files of weights, of what stands beside them and of labels that never end, unpack to gigabytes or say that they do.

Each is refused within 10 seconds and 500 MB, by `vit info` in a process of its own and in what a test takes in this one.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from vitcli.config import model_config
from vitcli.model.vit import ViT, init_weights

SECONDS, MEGABYTES = 10, 500

MEASURED = """
import atexit, re, sys
from pathlib import Path
from vitcli.cli import app
memory = lambda: re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]
atexit.register(lambda: print('peak', memory(), file=sys.stderr))
sys.exit(app.run(sys.argv[1:]))
"""


def refused(*arguments: object) -> str:
    """The error that the command ends with, in time and within its memory."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments), "--json"], capture_output=True, text=True, timeout=60
    )
    seconds = time.monotonic() - started
    assert done.returncode == 4, (done.stdout[-300:], done.stderr[-300:])
    assert seconds < SECONDS, seconds
    peak = int(re.search(r"peak (\d+)", done.stderr)[1]) / 1024  # type: ignore[index]
    assert peak < MEGABYTES, peak
    error = json.loads(done.stdout)["error"]
    assert error["hint"] and len(error["message"]) < 1000
    return str(error["message"])


def state() -> dict[str, torch.Tensor]:
    model = ViT(model_config("mu/4", (8, 8), 3))
    init_weights(model, 0)
    return model.state_dict()


def packed(path: Path, head: bytes) -> Path:
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    return path


def archive(path: Path, entries: dict[str, bytes | tuple[bytes, int]]) -> Path:
    """A zip file of entries, some of them a beginning and so many megabytes of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, content in entries.items():
            start, zeros = content if isinstance(content, tuple) else (content, 0)
            with file.open(name, "w", force_zip64=True) as entry:
                entry.write(start)
                for _ in range(zeros):
                    entry.write(bytes(1 << 20))
    return path


def npy(shape: tuple[int, ...], claimed: int | None = None) -> bytes:
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", claimed or len(head)) + head


# --- headers ---------------------------------------------------------------------------------------------------

EMPTY = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'


def tensors(count: int, name: str) -> bytes:
    return ("{" + ",".join(f'"{name % n}":{EMPTY}' for n in range(count)) + "}").encode()


def document(text: str) -> bytes:
    return json.dumps({"__metadata__": {"vit": text}}).encode()


HEADERS: dict[str, Callable[[], bytes]] = {
    "a million tensors": lambda: tensors(1_000_000, "t%d"),
    "many keys by which layouts begin": lambda: tensors(9_900, "a%d.patch_embed.proj.weight"),
    "many long prefixes": lambda: tensors(9_900, "module." * 20 + "blocks.%d.norm1.weight"),
    "nested": lambda: b"[" * 10_000_000,
    "lists in lists": lambda: b'{"a":[' + (b"[" * 50 + b"]" * 50 + b",") * 166_000 + b"0]}",
    "a document of lists": lambda: document('{"a":[' + "[]," * 5_500_000 + "0]}"),
    "a document of numbers": lambda: document(
        '{"model":{},"classes":[],"preprocessing":{},"a":[' + "0," * 7_000_000 + "0]}"
    ),
    "a document of classes": lambda: document(
        '{"preprocessing":{},"model":{},"classes":[' + '"a",' * 2_000_000 + '"a"]}'
    ),
    "a document of keys": lambda: document(
        '{"preprocessing":{},"classes":[],"model":{' + ",".join(f'"{n:x}":1' for n in range(900_000)) + "}}"
    ),
    "a number of 4,000 digits": lambda: document(
        '{"preprocessing":{},"classes":[],"model":{"width":' + "9" * 4000 + "}}"
    ),
    "a number of 5,000 digits": lambda: document(
        '{"preprocessing":{},"classes":[],"model":{"width":' + "9" * 5000 + "}}"
    ),
    "a shape of very many axes": lambda: (
        b'{"a":{"dtype":"F32","shape":[' + b"9999999999999999," * 900_000 + b'1],"data_offsets":[0,0]}}'
    ),
    "a version of megabytes": lambda: document(json.dumps({"version": "v" * 9_000_000})),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_row_43_headers(tmp_path, kind):
    refused("info", packed(tmp_path / "w.safetensors", HEADERS[kind]()))


def test_row_43_tensors_that_share_their_bytes(tmp_path):
    """A file of a megabyte for a model of many."""
    head = {f"t{n}": {"dtype": "U8", "shape": [1 << 20], "data_offsets": [0, 1 << 20]} for n in range(1000)}
    path = packed(tmp_path / "w.safetensors", json.dumps(head).encode())
    with path.open("ab") as file:
        file.write(bytes(1 << 20))
    assert "does not lie behind" in refused("info", path)


# --- archives ----------------------------------------------------------------------------------------------------


def test_row_43_arrays_that_unpack_to_gigabytes(tmp_path):
    path = archive(tmp_path / "w.npz", {"embedding/kernel.npy": (npy((1 << 28,)), 1024)})
    assert "unpacks to" in refused("info", path)


def test_row_43_an_array_s_header_that_unpacks_to_gigabytes(tmp_path):
    refused("info", archive(tmp_path / "w.npz", {"embedding/kernel.npy": (npy((4,), 1 << 30), 1024)}))


def test_row_43_as_many_arrays_as_are_looked_at(tmp_path):
    refused("info", archive(tmp_path / "w.npz", {f"{n}.npy": npy((0,)) for n in range(19_000)}))


def pickled(path: Path, data: bytes, **entries: tuple[bytes, int]) -> Path:
    return archive(path, {"w/data.pkl": data} | {f"w/data/{key[1:]}": value for key, value in entries.items()})


PICKLES: dict[str, bytes] = {
    "lists": b"\x80\x02" + b"]" * 60_000_000 + b".",
    "memo": b"\x80\x02" + b"}\x94" * 3_000_000 + b".",
    "texts": b"\x80\x02](" + (b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)) * 63 + b"e.",
    "a tuple": b"\x80\x02((" + b"K\x01" * 400_000 + b"tq\x00" + b"h\x00" * 300_000 + b"t.",
    "lists within themselves": b"\x80\x02]q\x00" + b"(h\x00h\x00h\x00h\x00e" * 160_000 + b".",
    "tables": b"\x80\x02](ctorch._utils\n_rebuild_tensor_v2\nq\x01ctorch\nFloatStorage\nq\x02"
    + (b"}X\x09\x00\x00\x00cls_tokenh\x01((X\x07\x00\x00\x00storageh\x02X\x01\x00\x00\x000NK\x00tQK\x00))tRs") * 50_000
    + b"e.",
    "numbers": b"\x80\x02](" + b"\x8a\xff" * 2 + b"\x01" * 40_000_000 + b"e.",
}


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_row_43_pickles(tmp_path, kind, form):
    path = tmp_path / "w.pth"
    pickled(path, PICKLES[kind]) if form == "zip" else path.write_bytes(PICKLES[kind])
    refused("info", path)


def test_row_43_numbers_that_unpack_to_gigabytes(tmp_path):
    """A whole ViT whose storages are zeros, in a file of kilobytes."""
    torch.save({"head.weight": torch.zeros(1 << 28)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole:
        (tree,) = (whole.read(name) for name in whole.namelist() if name.endswith("data.pkl"))
    (tmp_path / "whole.pth").unlink()
    assert "unpacks to" in refused("info", pickled(tmp_path / "w.pth", tree, _0=(b"", 1024)))


def test_row_43_numbers_that_are_repeated_over_a_whole_model(tmp_path):
    """Each weight is one number with strides of 0."""
    repeated = {key: torch.zeros(1).expand(4096, 4096) for key in (f"blocks.{n}.attn.qkv.weight" for n in range(40))}
    torch.save(repeated, tmp_path / "w.pth")
    assert "unpacks to" in refused("info", tmp_path / "w.pth")


def test_row_43_weights_that_are_zeros_are_still_weights(tmp_path):
    """What shrinks well and is small is read."""
    from vitcli.weights.checkpoint import load

    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as small:
        torch.save({key: torch.zeros_like(t) for key, t in state().items()}, tmp_path / "plain.pth")
        with zipfile.ZipFile(tmp_path / "plain.pth") as plain:
            for name in plain.namelist():
                small.writestr(name, plain.read(name))
    assert len(load(str(tmp_path / "w.pth"))[1]) == len(state())
    table = state() | {"pos_embed": torch.zeros(1, 1, 1).expand(1, 5, 32)}
    torch.save(table, tmp_path / "expanded.pth")
    assert not load(str(tmp_path / "expanded.pth"))[1]["pos_embed"].any()


# --- shards --------------------------------------------------------------------------------------------------------


def index(folder: Path, where: Any, name: str = "model.safetensors.index.json") -> Path:
    (folder / name).write_text(where if isinstance(where, str) else json.dumps({"weight_map": where}))
    return folder / name


def test_row_43_an_index_of_thousands_of_shards(tmp_path):
    path = index(tmp_path, {f"k{n}": f"s{n}.safetensors" for n in range(5000)})
    assert "5,000 files" in refused("info", path)


INDICES: dict[str, Any] = {
    "itself": {"a": "model.safetensors.index.json"},
    "outside": {"a": "../w.safetensors"},
    "the folder above": {"a": ".."},
    "the folder": {"a": "."},
    "a whole path": {"a": "/etc/passwd"},
    "no name": {"a": ""},
    "a name that is none": {"a": "a\0b", "b": "\ud800"},
    "no text": {"a": ["one.safetensors"], "b": 3},
    "a pipe": {"a": "pipe.safetensors"},
    "nested": '{"weight_map":' + '{"a":' * 600_000,
    "a list": "[]",
    "huge": '{"weight_map":{"' + "a" * 5_000_000 + '":"x"}}',
}


@pytest.mark.parametrize("kind", INDICES)
def test_row_43_indices(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe.safetensors")
    refused("info", index(tmp_path, INDICES[kind]))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_row_43_shards_that_are_large_to_read(tmp_path, suffix):
    for n in range(64):
        path = tmp_path / f"s{n}{suffix}"
        if suffix == ".bin":
            torch.save({f"k{n}": torch.zeros(1), "junk": [1] * 400_000}, path)
        else:
            safetensors.torch.save_file({f"k{n}": torch.zeros(1)}, path, metadata={"junk": "1," * 1_000_000})
    name = "model.safetensors.index.json" if suffix == ".safetensors" else "pytorch_model.bin.index.json"
    refused("info", index(tmp_path, {f"k{n}": f"s{n}{suffix}" for n in range(64)}, name))


# --- files that are none, beside weights and as labels --------------------------------------------------------------


def no_files(path: Path) -> Iterator[str]:
    """What can stand at `path` that is not to be read to its end, one after another."""
    os.mkfifo(path)
    yield "pipe"
    path.unlink()
    for device in ("zero", "random", "tty"):
        path.symlink_to(f"/dev/{device}")
        yield device
        path.unlink()
    with path.open("wb") as file:
        file.truncate(5 << 30)
    yield "five gigabytes"
    path.unlink()
    path.mkdir()
    yield "folder"


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_row_43_what_stands_beside_weights(tmp_path, name):
    safetensors.torch.save_file(state(), tmp_path / "model.safetensors")
    for _ in no_files(tmp_path / name):
        assert name in refused("info", tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "text",
    ["[" * 7_000_000, '{"image_size":' + "9" * 5001 + "}", '{"image_size":[' + "[]," * 2_000_000 + "1]}"],
    ids=["nested", "digits", "lists"],
)
def test_row_43_bombs_of_json_beside_weights(tmp_path, text):
    safetensors.torch.save_file(state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    assert "config.json" in refused("info", tmp_path / "model.safetensors")


def test_row_43_an_endless_args_yaml(tmp_path):
    torch.save({"state_dict": state()}, tmp_path / "last.pth.tar")
    (tmp_path / "args.yaml").write_text("a:\n" + "- 1\n" * 260_000)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "vitcli", "info", str(tmp_path / "last.pth.tar")], timeout=60)
    assert done.returncode == 0 and time.monotonic() - started < SECONDS


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".safetensors.index.json"])
def test_row_43_what_is_no_file_as_weights(tmp_path, suffix):
    for kind in no_files(tmp_path / f"w{suffix}"):
        if kind != "five gigabytes":
            refused("info", tmp_path / f"w{suffix}")


def test_row_43_what_is_no_file_as_labels(tmp_path):
    safetensors.torch.save_file(state(), tmp_path / "w.safetensors")
    for _ in no_files(tmp_path / "labels"):
        message = refused("eval", tmp_path / "w.safetensors", "--data", "digits", "--labels", tmp_path / "labels")
        assert "labels" in message


@pytest.mark.parametrize(
    "text", ["a\n" * 1_900_000, "[" * 3_000_000, '["a",' * 700_000], ids=["lines", "nested", "lists"]
)
def test_row_43_labels_that_are_very_many(tmp_path, text):
    safetensors.torch.save_file(state(), tmp_path / "w.safetensors")
    (tmp_path / "labels").write_text(text)
    refused("eval", tmp_path / "w.safetensors", "--data", "digits", "--labels", tmp_path / "labels")


# --- types that are no weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "I4", "C64", "I8", "U64", "X" * 19])
@pytest.mark.parametrize("own", [False, True])
def test_types_of_safetensors_that_are_no_plain_numbers(tmp_path, kind, own):
    from vitcli.classes import Class
    from vitcli.config import EvalConfig
    from vitcli.errors import CheckpointError
    from vitcli.weights import checkpoint
    from vitcli.weights.describe import Description, describe

    path = tmp_path / "w.safetensors"
    names = tuple(map(Class, "abc"))
    description = Description(path=path, model=model_config("mu/4", (8, 8), 3), classes=names, eval=EvalConfig())
    checkpoint.write_safetensors(path, state(), description.document() if own else None)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    tree = json.loads(content[8 : 8 + size])
    entry = tree["blocks.0.mlp.fc1.weight"]
    width = {"F8": 1, "I8": 1, "U6": 8}.get(kind[:2], 4)
    entry["dtype"] = kind
    entry["shape"] = [(entry["data_offsets"][1] - entry["data_offsets"][0]) // width // 32, 32]
    head = json.dumps(tree).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + size :])
    with pytest.raises(CheckpointError, match=kind) as caught:
        describe(path)
    assert "fc1.weight" in caught.value.message and caught.value.hint


def odd_arrays() -> dict[str, Any]:
    return {
        "objects": np.array([{}], object),
        "texts": np.array(["a"]),
        "complex": np.zeros((4, 4), np.complex64),
        "structured": np.zeros(4, [("a", "<f4"), ("b", "<i2")]),
        "long doubles": np.zeros((4, 4), np.longdouble),
        "dates": np.zeros(4, "M8[s]"),
        "booleans": np.zeros((4, 4), bool),
        "void": np.zeros(4, "V3"),
    }


@pytest.mark.parametrize("kind", odd_arrays())
def test_arrays_of_odd_types_are_refused(tmp_path, kind):
    from test_stored import small_arrays

    from vitcli.errors import CheckpointError
    from vitcli.weights.checkpoint import load

    arrays = small_arrays()
    arrays["embedding/kernel"] = odd_arrays()[kind]
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(CheckpointError) as caught:
        load(str(tmp_path / "w.npz"))
    assert caught.value.hint


def test_arrays_of_either_order_and_endianness_are_read(tmp_path):
    from test_stored import small_arrays

    from vitcli.weights.checkpoint import load

    arrays = {key: np.random.default_rng(0).random(a.shape, np.float32) for key, a in small_arrays().items()}
    np.savez(tmp_path / "w.npz", **arrays)
    odd = {
        key: np.asfortranarray(a.astype(">f4")) if n % 2 else a.astype(">f8")
        for n, (key, a) in enumerate(arrays.items())
    }
    np.savez(tmp_path / "odd.npz", **odd)
    _, plain = load(str(tmp_path / "w.npz"))
    _, other = load(str(tmp_path / "odd.npz"))
    assert all(torch.equal(plain[key], other[key]) for key in plain)


NPY = {
    "negative": b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -64)}\n",
    "huge": b"{'descr': '<f4', 'fortran_order': False, 'shape': (1" + b"0" * 3000 + b",)}\n",
    "floats": b"{'descr': '<f4', 'fortran_order': False, 'shape': (4.0,)}\n",
    "nested": b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * 5000 + b"}\n",
    "minuses": b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"-" * 5000 + b"1,)}\n",
    "a call": b"{'descr': '<f4', 'fortran_order': False, 'shape': exit(3)}\n",
    "an odd type": b"{'descr': [('a', [('b', '<f4', (1000000, 1000000))])], 'fortran_order': False, 'shape': (1,)}\n",
    "no type": b"{'descr': 'zz', 'fortran_order': False, 'shape': (1,)}\n",
    "version 9": b"",
}


@pytest.mark.parametrize("kind", NPY)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_odd_headers_of_arrays_are_refused(tmp_path, kind, version):
    form = "<H" if version == 1 else "<I"
    start = b"\x93NUMPY" + bytes([9 if kind == "version 9" else version, 0]) + struct.pack(form, len(NPY[kind]))
    refused("info", archive(tmp_path / "w.npz", {"embedding/kernel.npy": start + NPY[kind] + bytes(256)}))


def test_archives_with_odd_members_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "twice.npz", "w") as file:
        for _ in range(2):
            file.writestr("embedding/kernel.npy", npy((4,)) + bytes(16))
    refused("info", tmp_path / "twice.npz")
    with zipfile.ZipFile(tmp_path / "folder.npz", "w") as file:
        file.mkdir("embedding")
    refused("info", tmp_path / "folder.npz")
    for name in ("w.npz", "w.pth"):
        np.savez(tmp_path / "w.npz", a=np.zeros(4)) if name == "w.npz" else torch.save(state(), tmp_path / name)
        content = bytearray((tmp_path / name).read_bytes())
        for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            at = content.find(signature)
            while at >= 0:
                content[at + flags] |= 1  # encrypted
                at = content.find(signature, at + 4)
        (tmp_path / name).write_bytes(content)
        refused("info", tmp_path / name)


def odd_tensors() -> dict[str, Callable[[torch.Tensor], Any]]:
    return {
        "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        "sparse": lambda t: t.to_sparse(),
        "compressed rows": lambda t: t.to_sparse_csr(),
        "fp8": lambda t: t.to(torch.float8_e4m3fn),
        "meta": lambda t: t.to("meta"),
        "complex": lambda t: t.to(torch.complex64),
        "empty": lambda t: t[:0],
        "no tensor": lambda t: t.tolist(),
        "whole numbers": lambda t: t.to(torch.int64),
        "nested": lambda t: torch.nested.nested_tensor([t]),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", odd_tensors())
@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_odd_kinds_are_refused(tmp_path, kind, legacy):
    from vitcli.errors import CheckpointError
    from vitcli.weights.checkpoint import load

    table: dict[str, Any] = state()
    try:
        table["blocks.0.mlp.fc1.weight"] = odd_tensors()[kind](table["blocks.0.mlp.fc1.weight"])
        torch.save(table, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        pytest.skip(f"torch does not write it: {error}")
    with pytest.raises(CheckpointError) as caught:
        load(str(tmp_path / "w.pth"))
    assert caught.value.hint and str(tmp_path) in caught.value.message


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_files_of_no_arrays_are_refused(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    if suffix == ".npz":
        np.savez(path)
    else:
        (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)({}, path)
    refused("info", path)
