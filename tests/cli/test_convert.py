"""`vit resize-posemb`, and `vit info` of other people's files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from conftest import Vit
from google_files import google_arrays
from vitcli.config import EvalConfig, ModelConfig, model_config
from vitcli.model.posemb import METHODS, resize_position_embedding
from vitcli.model.vit import ViT, init_weights
from vitcli.weights.checkpoint import load, save
from vitcli.weights.describe import Description, describe


def written(path: Path, model: ModelConfig) -> Path:
    vit = ViT(model)
    init_weights(vit, 0)
    save(
        Description(path=path, model=model, classes=(), eval=EvalConfig(crop=0.9), scores={"top1": 0.5}),
        vit.state_dict(),
    )
    return path


@pytest.mark.parametrize("method", METHODS)
def test_the_new_file_says_its_size_and_has_the_interpolated_table(vit: Vit, tmp_path: Path, method: str) -> None:
    old = written(tmp_path / "old.safetensors", model_config("mu/16", (224, 224), 5))
    done = vit("resize-posemb", old, tmp_path / "new.safetensors", "--img-size", "384", "--method", method, "--json")
    assert done.code == 0, done.err
    tree = done.json
    assert (tree["from_grid"], tree["to_grid"], tree["method"]) == ([14, 14], [24, 24], method)
    assert tree["checkpoint"] == str(tmp_path / "new.safetensors")
    before, after = load(str(old))[1], load(tree["checkpoint"])[1]
    expected = resize_position_embedding(before["pos_embed"], (14, 14), (24, 24), 1, method)
    assert torch.equal(after.pop("pos_embed"), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    info = vit("info", tree["checkpoint"], "--json").json
    assert info["img_size"] == [384, 384] and info["scores"] is None
    assert describe(Path(tree["checkpoint"])).eval.crop == 0.9


def test_the_same_size_gives_the_same_bits(vit: Vit, tmp_path: Path) -> None:
    old = written(tmp_path / "old.safetensors", model_config("mu/4", (16, 24), 5))
    assert vit("resize-posemb", old, "new.safetensors", "--img-size", "16x24").code == 0
    before, after = (safetensors.torch.load_file(p) for p in (old, tmp_path / "new.safetensors"))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_not_square_registers_and_no_class_token(vit: Vit, tmp_path: Path) -> None:
    import dataclasses

    plain = model_config("mu/4", (16, 24), 5)
    for name, changes in {
        "registers": {"registers": 4},
        "none": {"class_token": False, "pool": "mean"},
        "distilled": {"distilled": True},
    }.items():
        old = written(tmp_path / f"{name}.safetensors", dataclasses.replace(plain, **changes))
        done = vit("resize-posemb", old, f"{name}-new.safetensors", "--img-size", "40x12", "--json")
        assert (done.json["from_grid"], done.json["to_grid"]) == ([4, 6], [10, 3])
        (before, one), (after, other) = load(str(old)), load(str(tmp_path / f"{name}-new.safetensors"))
        rows = before.model.prefix_rows
        assert torch.equal(one["pos_embed"][:, :rows], other["pos_embed"][:, :rows])
        for key in ("cls_token", "reg_token", "dist_token"):
            assert (key in one) == (key in other) and (key not in one or torch.equal(one[key], other[key]))
        assert after.model.img_size == (40, 12)


def test_another_patch_size_keeps_the_products_of_enlarged_patches(vit: Vit, tmp_path: Path) -> None:
    """Twice the patch on twice the image: as many tokens, and where images are smooth the same features."""
    old = written(tmp_path / "old.safetensors", model_config("mu/8", (32, 32), 5))
    done = vit("resize-posemb", old, "new.safetensors", "--img-size", "64", "--patch-size", "16", "--json")
    assert done.code == 0, done.err
    assert done.json["from_grid"] == done.json["to_grid"] == [4, 4]
    (_, one), (after, other) = load(str(old)), load(str(tmp_path / "new.safetensors"))
    assert after.model.name == "ViT-mu/16" and torch.equal(one["pos_embed"], other["pos_embed"])
    small = torch.randn(7, 3, 8, 8)
    large = torch.nn.functional.interpolate(small, (16, 16), mode="bilinear", align_corners=False, antialias=True)
    a = torch.einsum("bchw,dchw->bd", small, one["patch_embed.proj.weight"])
    b = torch.einsum("bchw,dchw->bd", large, other["patch_embed.proj.weight"])
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_what_is_in_the_way_and_what_does_not_fit(vit: Vit, tmp_path: Path) -> None:
    old = written(tmp_path / "old.safetensors", model_config("mu/4", (16, 16), 5))
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    for arguments in (
        ("there.safetensors", "--img-size", "32"),
        ("new.safetensors",),
        ("new.safetensors", "--img-size", "18"),
        ("new.safetensors", "--img-size", "32", "--method", "nearest"),
        ("new.npz", "--img-size", "32"),
    ):
        done = vit("resize-posemb", old, *arguments)
        assert done.code == 2, done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old.safetensors", "there.safetensors"]
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"
    assert vit("resize-posemb", old, "there.safetensors", "--img-size", "32", "--force").code == 0


def test_info_tells_what_became_of_every_key(vit: Vit, tmp_path: Path) -> None:
    model = ViT(model_config("mu/4", (16, 16), 3))
    init_weights(model, 0)
    state = {**model.state_dict(), "mask_token": torch.zeros(1, 32)}
    torch.save(state, tmp_path / "w.pth")
    short = vit("info", "w.pth", "--json").json
    assert short["layout"] == "DINOv2" and short["keys"] == {"used": len(state) - 1, "dropped": 1}
    long = vit("info", "w.pth", "--json", "--keys").json["keys"]
    assert {row["key"] for row in long} == set(state)
    assert [row["key"] for row in long if row["fate"] == "dropped"] == ["mask_token"]
    assert "mask_token" in vit("info", "w.pth", "--keys").out


@pytest.mark.parametrize("ending", ["safetensors", "pth", "npz"])
def test_info_of_any_file_does_not_import_torch(tmp_path: Path, ending: str) -> None:
    model = ViT(model_config("mu/4", (16, 16), 3))
    path = tmp_path / f"w.{ending}"
    if ending == "safetensors":
        safetensors.torch.save_file(model.state_dict(), path)
    elif ending == "pth":
        torch.save({"model": model.state_dict()}, path)
    else:
        arrays = google_arrays(linen=False, pre_logits=True)
        arrays["Transformer/posembed_input/pos_embedding"] = np.zeros((1, 10, 12), np.float32)
        np.savez(path, **arrays)
    script = (
        "import sys; from vitcli.cli.app import run; code = run(['info', sys.argv[1], '--json'])\n"
        "assert code == 0; assert not {'torch', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60, env=dict(os.environ))


def peak_anonymous_mb(*arguments: str, cwd: Path) -> float:
    """Peak of RssAnon of a command, polled; what is mapped from files is not in it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vitcli", *arguments], cwd=cwd, stdout=subprocess.DEVNULL, env=dict(os.environ)
    )
    peak = 0
    while process.poll() is None:
        try:
            found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        except OSError:
            found = None
        peak = max(peak, int(found[1]) if found else 0)
        time.sleep(0.005)
    assert process.returncode == 0
    return peak / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["b/16", pytest.param("l/16", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path, name: str) -> None:
    """A third of a gigabyte, or 1.2, is resized in the memory of the program and of the largest tensors."""
    written(tmp_path / "large.safetensors", model_config(name, (224, 224), 10))
    written(tmp_path / "small.safetensors", model_config("mu/16", (224, 224), 10))
    floor = peak_anonymous_mb("resize-posemb", "small.safetensors", "s.safetensors", "--img-size", "384", cwd=tmp_path)
    peak = peak_anonymous_mb("resize-posemb", "large.safetensors", "n.safetensors", "--img-size", "384", cwd=tmp_path)
    assert peak < floor + 60 and peak < 300, (peak, floor)
    assert peak_anonymous_mb("info", "large.safetensors", cwd=tmp_path) < 100


def test_bare_weights_become_a_checkpoint_that_describes_itself(vit: Vit, tmp_path: Path) -> None:
    model = ViT(model_config("mu/4", (16, 16), 3))
    init_weights(model, 0)
    torch.save(model.state_dict(), tmp_path / "deit_mu.pth")
    assert vit("resize-posemb", "deit_mu.pth", "new.safetensors", "--img-size", "32").code == 0
    header = json.loads(vit("info", "new.safetensors", "--json").out)
    assert header["layout"] == "vit" and header["img_size"] == [32, 32]
