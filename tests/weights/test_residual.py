"""Checkpoints of BiT networks and hybrids: Google's files from a writer of its own, timm's and transformers' from their objects."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import Vit
from vitcli.config import EvalConfig, model_config
from vitcli.errors import CheckpointError
from vitcli.model.classifier import build
from vitcli.weights.checkpoint import load, model_with, save
from vitcli.weights.describe import Description, describe

TOLERANCE = 1e-6  # of the logits' spread, float64: float32 in such networks has 1e-5


def pixels(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(2).uniform(-1, 1, (2, rows, columns, 3))


def assert_reads(path: Path, images: np.ndarray, wanted: np.ndarray, tolerance: float = TOLERANCE) -> Description:
    description, tensors = load(str(path))
    description = dataclasses.replace(
        description, model=dataclasses.replace(description.model, img_size=images.shape[1:3])
    )
    with torch.no_grad():
        found = model_with(description.model, tensors).double()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    spread = float(wanted.max() - wanted.min())
    assert spread > 0.1
    assert float(np.abs(found.numpy() - wanted).max()) <= tolerance * spread
    return description


# --- Google's files, written here from the description of them -----------------------------------------------


class Writer:
    """Arrays by name, and what a convolution and a norm of those names compute, in float64 as TensorFlow has them: HWIO filters, NHWC
    maps.
    """

    def __init__(self) -> None:
        self.random, self.arrays = np.random.default_rng(0), {}

    def array(self, name: str, *shape: int, around: float = 0.0) -> np.ndarray:
        if name not in self.arrays:
            self.arrays[name] = (around + self.random.normal(0, 0.3, shape)).astype(np.float32)
        return self.arrays[name].astype(np.float64)

    def convolved(self, x: np.ndarray, kernel: np.ndarray, stride: int, pads: tuple[int, int] | None) -> np.ndarray:
        """`pads` before and after each axis; None: SAME."""
        size = kernel.shape[0]
        rows, columns = x.shape[1:3]
        around = []
        for side in (rows, columns):
            whole = max(0, (-(-side // stride) - 1) * stride + size - side)
            around.append(pads or (whole // 2, whole - whole // 2))
        x = np.pad(x, ((0, 0), *around, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
        return np.einsum("nrcihw,hwio->nrco", windows, kernel)

    def normed(self, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float) -> np.ndarray:
        n, rows, columns, channels = x.shape
        grouped = x.reshape(n, rows, columns, 32, channels // 32)
        mean = grouped.mean((1, 2, 4), keepdims=True)
        variance = grouped.var((1, 2, 4), keepdims=True)
        return ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape) * gamma.ravel() + beta.ravel()


def pooled(x: np.ndarray, pads: tuple[int, int], value: float) -> np.ndarray:
    x = np.pad(x, ((0, 0), pads, pads, (0, 0)), constant_values=value)
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max((-1, -2))


def bit(writer: Writer, images: np.ndarray, units: tuple[int, ...], classes: int, numbered: bool = False) -> np.ndarray:
    """Logits by the rules of bit_pytorch/models.py over the npz files' names."""
    count = iter(range(1, 100))

    def conv(x: np.ndarray, name: str, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> np.ndarray:
        number = f"_{next(count)}" if numbered and not name.startswith("root") else ""
        kernel = writer.array(f"resnet/{name}/standardized_conv2d{number}/kernel", size, size, inputs, outputs)
        kernel = (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-10)
        return writer.convolved(x, kernel, stride, (size // 2, size // 2))

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        place = f"resnet/{name}group_norm"
        gamma = writer.array(f"{place}/gamma", x.shape[-1], around=1.0)
        return np.maximum(0, writer.normed(x, gamma, writer.array(f"{place}/beta", x.shape[-1]), 1e-5))

    x = pooled(conv(images, "root_block", 3, 64, 7, 2), (1, 1), 0.0)
    for stage, number in enumerate(units, start=1):
        outputs = 128 * 2**stage
        for unit in range(1, number + 1):
            stride, place = (2 if stage > 1 and unit == 1 else 1), f"block{stage}/unit{unit:02}"
            read = norm(x, f"{place}/a/")
            shortcut = x
            if unit == 1:
                shortcut = conv(read, f"{place}/a/proj", x.shape[-1], outputs, 1, stride)
            y = conv(read, f"{place}/a", x.shape[-1], outputs // 4)
            y = conv(norm(y, f"{place}/b/"), f"{place}/b", outputs // 4, outputs // 4, 3, stride)
            x = shortcut + conv(norm(y, f"{place}/c/"), f"{place}/c", outputs // 4, outputs)
    features = norm(x, "").mean((1, 2))
    kernel = writer.array("resnet/head/conv2d/kernel", 1, 1, features.shape[1], classes)
    return features @ kernel[0, 0] + writer.array("resnet/head/conv2d/bias", classes)


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("sides", [(40, 40), (37, 50)])
def test_bit_s_npz(tmp_path, sides, numbered):
    writer, images = Writer(), pixels(*sides)
    wanted = bit(writer, images, (1, 2), 5, numbered)
    np.savez(tmp_path / "bit.npz", **writer.arrays)
    description = assert_reads(tmp_path / "bit.npz", images, wanted)
    assert (description.layout, description.model.name, description.model.weight_eps) == ("Google BiT", "R1-2x1", 1e-10)
    assert description.eval.mean == (0.5, 0.5, 0.5) and description.eval.resize == "square"
    assert any("a guess" in note and "--img-size" in note for note in description.notes)


def hybrid(writer: Writer, images: np.ndarray, units: tuple[int, ...], patch: int, old: bool) -> np.ndarray:
    """The tokens' logits by vit_jax/models_resnet.py, then a transformer of one block as test_families has it."""

    def conv(x: np.ndarray, name: str, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> np.ndarray:
        kernel = writer.array(f"{name}/kernel", size, size, inputs, outputs)
        kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
        return writer.convolved(x, kernel, stride, None)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        shape = (1, 1, 1, x.shape[-1]) if old else (x.shape[-1],)
        return writer.normed(
            x, writer.array(f"{name}/scale", *shape, around=1.0), writer.array(f"{name}/bias", *shape), 1e-6
        )

    x = np.maximum(0, norm(conv(images, "conv_root", 3, 64, 7, 2), "gn_root"))
    x = pooled(x, (0, 1), -np.inf)
    for stage, number in enumerate(units, start=1):
        outputs = 128 * 2**stage
        for unit in range(1, number + 1):
            stride, place = (2 if stage > 1 and unit == 1 else 1), f"block{stage}/unit{unit}"
            shortcut = x
            if unit == 1:
                shortcut = norm(conv(x, f"{place}/conv_proj", x.shape[-1], outputs, 1, stride), f"{place}/gn_proj")
            y = np.maximum(0, norm(conv(x, f"{place}/conv1", x.shape[-1], outputs // 4), f"{place}/gn1"))
            y = np.maximum(0, norm(conv(y, f"{place}/conv2", outputs // 4, outputs // 4, 3, stride), f"{place}/gn2"))
            x = np.maximum(0, norm(conv(y, f"{place}/conv3", outputs // 4, outputs), f"{place}/gn3") + shortcut)
    width, heads = 12, 3
    kernel, bias = (
        writer.array("embedding/kernel", patch, patch, x.shape[-1], width),
        writer.array("embedding/bias", width),
    )
    n, rows, columns, _ = x.shape
    cells = x.reshape(n, rows // patch, patch, columns // patch, patch, -1)
    tokens = np.einsum("nrhcwi,hwio->nrco", cells, 0.1 * kernel).reshape(n, -1, width)
    writer.arrays["embedding/kernel"] = (0.1 * kernel).astype(np.float32)
    tokens = tokens + bias
    tokens = np.concatenate([np.broadcast_to(writer.array("cls", 1, 1, width), (n, 1, width)), tokens], axis=1)
    tokens = tokens + writer.array("Transformer/posembed_input/pos_embedding", 1, tokens.shape[1], width)

    def layer_norm(x: np.ndarray, name: str) -> np.ndarray:
        scale, bias = writer.array(f"{name}/scale", width, around=1.0), writer.array(f"{name}/bias", width)
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias

    block = "Transformer/encoderblock_0"
    y, size = layer_norm(tokens, f"{block}/LayerNorm_0"), width // heads
    place = f"{block}/MultiHeadDotProductAttention_1"
    q, k, v = (
        np.einsum("ntd,dhe->nthe", y, writer.array(f"{place}/{name}/kernel", width, heads, size))
        + writer.array(f"{place}/{name}/bias", heads, size)
        for name in ("query", "key", "value")
    )
    logits = np.einsum("nqhe,nkhe->nhqk", q, k) / np.sqrt(size)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = np.einsum("nhqk,nkhe->nqhe", weights / weights.sum(-1, keepdims=True), v)
    tokens = tokens + np.einsum("nqhe,hed->nqd", mixed, writer.array(f"{place}/out/kernel", heads, size, width))
    tokens = tokens + writer.array(f"{place}/out/bias", width)
    y = layer_norm(tokens, f"{block}/LayerNorm_2") @ writer.array(f"{block}/MlpBlock_3/Dense_0/kernel", width, 20)
    y = y + writer.array(f"{block}/MlpBlock_3/Dense_0/bias", 20)
    y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    tokens = tokens + y @ writer.array(f"{block}/MlpBlock_3/Dense_1/kernel", 20, width)
    tokens = tokens + writer.array(f"{block}/MlpBlock_3/Dense_1/bias", width)
    read = layer_norm(tokens, "Transformer/encoder_norm")[:, 0]
    return read @ writer.array("head/kernel", width, 5) + writer.array("head/bias", 5)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("units", "patch", "side"), [((1, 2), 1, 24), ((2, 1, 1), 1, 32), ((), 2, 24)])
def test_hybrids_npz(tmp_path, units, patch, side, old):
    writer, images = Writer(), pixels(side, side)
    wanted = hybrid(writer, images, units, patch, old)
    np.savez(tmp_path / "hybrid.npz", **writer.arrays)
    model = assert_reads(tmp_path / "hybrid.npz", images, wanted).model
    assert (model.family, model.units, model.heads, model.gelu) == ("hybrid", units, 3, "tanh")
    assert (model.group_eps, model.weight_eps, model.weight_eps_to) == (1e-6, 1e-5, "deviation")
    assert model.img_size == (side, side)


# --- from other tools' objects -------------------------------------------------------------------------------


def stirred(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def logits(module: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found = module.double()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return (found if isinstance(found, Tensor) else found.logits).numpy()


@pytest.mark.parametrize(
    ("architecture", "arguments", "name"),
    [
        ("resnetv2_50x1_bit", {}, "R50x1"),
        ("vit_small_r26_s32_224", {"img_size": 64, "depth": 2}, "R26+ViT-w384d2h6/32"),
        ("vit_tiny_r_s16_p8_224", {"img_size": 64, "depth": 2}, "R+ViT-w192d2h3/16"),
        ("vit_base_r50_s16_224", {"img_size": 64, "depth": 2, "embed_dim": 192, "num_heads": 3}, "R50+ViT-w192d2h3/16"),
    ],
)
def test_timm_s_state(tmp_path, architecture, arguments, name):
    pytest.importorskip("torchvision_shim", reason="timm imports torchvision")
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = stirred(timm.create_model(architecture, num_classes=5, **arguments))
    torch.save(theirs.state_dict(), tmp_path / f"{architecture}.pth")
    images = pixels(64, 64)
    description = assert_reads(tmp_path / f"{architecture}.pth", images, logits(theirs, images))
    assert description.model.name == name
    assert description.eval.mean == (0.5, 0.5, 0.5)


def bit_of_transformers(**values: Any) -> nn.Module:
    pytest.importorskip("torchvision_shim", reason="transformers imports torchvision")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = {"num_labels": 5, "depths": [1, 2], "hidden_sizes": [128, 256], "embedding_size": 32, "num_groups": 16}
    return stirred(transformers.BitForImageClassification(transformers.BitConfig(**settings | values)))


def test_transformers_folder(tmp_path):
    theirs = bit_of_transformers()
    theirs.save_pretrained(tmp_path / "bit")
    images = pixels(37, 50)
    model = assert_reads(tmp_path / "bit", images, logits(theirs, images)).model
    assert (model.name, model.groups, model.weight_eps) == ("R1-2x0.5", 16, 1e-8)


@pytest.mark.parametrize(
    "values",
    [
        {"layer_type": "bottleneck"},
        {"hidden_act": "gelu"},
        {"global_padding": "SAME"},
        {"embedding_dynamic_padding": True},
    ],
)
def test_what_transformers_bit_may_be_and_vit_is_not(tmp_path, values):
    theirs = bit_of_transformers(**values)
    theirs.save_pretrained(tmp_path / "bit")
    with pytest.raises(CheckpointError):
        describe(tmp_path / "bit" / "model.safetensors")


def test_a_file_that_is_no_whole_network(tmp_path):
    model = build(dataclasses.replace(model_config("R1-2x0.5", (32, 32), 3)))
    model.initialise(0)
    state = {f"{name.replace('head.', 'head.fc.')}": p.detach() for name, p in model.named_parameters()}
    state["head.fc.weight"] = state["head.fc.weight"][:, :, None, None]
    del state["stages.1.blocks.0.conv2.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"missing: stages\.1\.blocks\.0\.conv2\.weight"):
        load(str(tmp_path / "w.pth"))


# --- for other tools -----------------------------------------------------------------------------------------

EXPORTS = {
    "R50x0.5": ("timm", "transformers"),
    "R1-2x0.5": ("transformers", "onnx"),
    "R26+ViT-w64d2h2/32": ("timm", "onnx"),
    "R+ViT-w64d2h2/16": ("timm",),
    "R50+ViT-w64d2h2/16": ("timm",),
}


def written(path: Path, name: str, **values: Any) -> Path:
    model = dataclasses.replace(model_config(name, (64, 64), 3), **values)
    module = build(model)
    module.initialise(0)
    with torch.no_grad():
        for index, (_, parameter) in enumerate(module.named_parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    save(Description(path=path, model=model, classes=(), eval=EvalConfig()), module.state_dict())
    return path


@pytest.mark.parametrize(("name", "form"), [(name, form) for name, forms in EXPORTS.items() for form in forms])
def test_exports_are_read_by_the_tool_and_by_vit(tmp_path, vit: Vit, name, form):
    pytest.importorskip("torchvision_shim", reason="timm and transformers import torchvision")
    pytest.importorskip({"timm": "timm", "transformers": "transformers", "onnx": "onnxruntime"}[form])
    path = written(tmp_path / "w.safetensors", name, **({"groups": 32} if name == "R50x0.5" else {}))
    out = tmp_path / ("w.onnx" if form == "onnx" else "folder")
    result = vit("export", str(path), str(out), "--format", form, "--json")
    assert result.code == 0, result.err
    assert result.json["max_abs_difference"] < 1e-3
    if form != "onnx":
        own, tensors = load(str(out))
        described, before = load(str(path))
        images = pixels(64, 64).transpose(0, 3, 1, 2).copy()
        with torch.no_grad():
            wanted = model_with(described.model, before)(torch.from_numpy(images).float())
            found = model_with(own.model, tensors)(torch.from_numpy(images).float())
        assert own.model.name == name
        assert float((wanted - found).abs().max()) < 1e-3 * float(wanted.abs().max())


@pytest.mark.parametrize(
    ("name", "form", "values", "what"),
    [
        ("R1-2x0.5", "timm", {"groups": 32}, "units"),
        ("R1-2x0.5", "timm", {"root": "small"}, "root of small images"),
        ("R1-2x0.5", "transformers", {"root": "small"}, "root of small images"),
        ("R1-2x0.5", "timm", {}, "groups"),
        ("R26+ViT-w64d2h2/32", "transformers", {}, "no hybrids"),
        ("R1-1+ViT-w64d2h2/8", "timm", {}, "units"),
    ],
)
def test_what_another_tool_has_not_is_refused_with_the_reason(tmp_path, vit: Vit, name, form, values, what):
    path = written(tmp_path / "w.safetensors", name, **values)
    result = vit("export", str(path), str(tmp_path / "folder"), "--format", form, "--json")
    assert result.code == 4 and what in result.json["error"]["message"]
    assert not (tmp_path / "folder").exists()


def test_groups_and_epsilons_that_are_asked_for(tmp_path):
    theirs = bit_of_transformers(num_groups=32, hidden_sizes=[256, 512], embedding_size=64)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    described = describe(tmp_path / "w.pth", {"model.groups": 16, "model.weight_eps": 1e-4})
    assert (described.model.groups, described.model.weight_eps) == (16, 1e-4)


def test_vit_s_own_weights_without_their_header(tmp_path, vit: Vit):
    """A state's or a script's: what the arrays do not tell is said to be a guess, and can be given."""
    for name, keys in (
        ("R1-2x0.5", {"weight_eps": 1e-10}),
        ("R1-1+ViT-w64d2h1/8", {"weight_eps_to": "deviation", "weight_eps": 1e-5, "group_eps": 1e-6}),
    ):
        path = written(tmp_path / "w.safetensors", name)
        own, tensors = load(str(path))
        torch.save(tensors, tmp_path / "bare.pth")
        described = describe(tmp_path / "bare.pth")
        assert described.model.name == name
        assert all(key in " ".join(described.notes) for key in keys)
        given = describe(tmp_path / "bare.pth", {f"model.{key}": value for key, value in keys.items()})
        assert dataclasses.replace(given.model, img_size=own.model.img_size) == own.model
        path.unlink()


@pytest.mark.parametrize("number", ["9" * 5000, "1000000", "999999", "0"])
def test_a_stranger_s_numbers_of_stages_and_units(tmp_path, number):
    shapes = {"root.conv.weight": (64, 3, 7, 7), f"body.block1.unit{number}.conv3.weight": (256, 64, 1, 1),
              f"body.block{number}.unit01.conv1.weight": (64, 64, 1, 1), "head.gn.weight": (256,)}  # fmt: skip
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError):
        describe(tmp_path / "w.pth")


def test_a_stranger_s_npz_of_endless_empty_axes(tmp_path):
    shape = (7, 7, 0, 10**18)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr(
            "resnet/root_block/standardized_conv2d/kernel.npy",
            b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header,
        )
    with pytest.raises(CheckpointError):
        describe(tmp_path / "w.npz")


def test_a_distilled_hybrid_is_not_timm_s(tmp_path, vit: Vit):
    path = written(tmp_path / "w.safetensors", "R26+ViT-w64d2h2/32", distilled=True)
    result = vit("export", str(path), str(tmp_path / "folder"), "--format", "timm", "--json")
    assert result.code == 4 and "distillation token" in result.json["error"]["message"]
