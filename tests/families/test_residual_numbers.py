"""BiT networks and hybrids as numbers: names, parameters, multiply-accumulates, and the compute of the paper's Table 6."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vitcli.config import Config, apply, check, layer, model_config
from vitcli.errors import UsageError
from vitcli.families.bit import BiTConfig
from vitcli.families.hybrid import HybridConfig
from vitcli.model.classifier import build

SOURCE = Path(__file__).parents[2] / "src" / "vitcli"


@pytest.mark.parametrize(
    ("name", "bare", "of_1000", "of_21843", "gigamacs"),
    [
        ("R50x1", 23_500_352, 25_549_352, 68_256_659, "4.09"),
        ("R50x3", 211_174_080, 217_319_080, 345_399_315, "36.1"),
        ("R101x1", 42_492_480, 44_541_480, 87_248_787, "7.80"),
        ("R101x3", 381_789_888, 387_934_888, 516_015_123, "69.5"),
        ("R152x2", 232_238_208, 236_335_208, 321_728_979, "45.8"),
        ("R152x4", 928_340_224, 936_533_224, 1_107_299_923, "182.8"),
    ],
)
def test_bit_s_parameters_and_products(name, bare, of_1000, of_21843, gigamacs):
    """google-research/big_transfer bit_pytorch/models.py, counted."""
    counts = [model_config(name, (224, 224), classes).cost().parameters for classes in (0, 1000, 21_843)]
    assert counts == [bare, of_1000, of_21843]
    decimals = len(gigamacs.partition(".")[2])
    assert f"{model_config(name).cost().macs / 1e9:.{decimals}f}" == gigamacs
    if name == "R152x4":
        assert round(model_config(name, (480, 480)).cost().macs / 1e9) == 839


@pytest.mark.parametrize(
    ("name", "parameters", "gigamacs", "tokens"),
    [
        ("R50+ViT-B/16", 97_890_112, 21.5, 197),
        ("R26+ViT-S/32", 36_046_912, None, 50),
        ("R50+ViT-L/32", 327_969_856, None, 50),
        ("R+ViT-Ti/16", 6_144_704, 0.43, 50),
    ],
)
def test_hybrids_parameters_and_products(name, parameters, gigamacs, tokens):
    """google-research/vision_transformer configs/models.py, as timm builds them."""
    model = model_config(name)
    assert (model.cost().parameters, model.tokens) == (parameters, tokens)
    if gigamacs:
        assert float(f"{model.cost().macs / 1e9:.3g}") == pytest.approx(gigamacs, abs=0.005)
    if name == "R50+ViT-B/16":
        assert model_config(name, (224, 224), 1000).cost().parameters == 98_659_112
        assert f"{model_config(name, (384, 384), 1000).cost().macs / 1e9:.1f}" == "67.2"


JFT = 303e6
TABLE_6 = {
    ("R50x1", 7): 50, ("R50x2", 7): 199, ("R101x1", 7): 96, ("R152x1", 7): 141, ("R152x2", 7): 563, ("R152x2", 14): 1126,
    ("R200x3", 14): 3306, ("R50+ViT-B/32", 7): 106, ("R50+ViT-B/16", 7): 274, ("R50+ViT-L/32", 7): 246,
    ("R50+ViT-L/16", 7): 859, ("R50+ViT-L/16", 14): 1668,
}  # fmt: skip
"""exaFLOPs of pre-training (Dosovitskiy et al., 2021, Table 6): 6 times multiply-accumulates of an image, images, epochs."""


@pytest.mark.parametrize(("row", "exaflops"), TABLE_6.items())
def test_the_compute_of_table_6(row, exaflops):
    """Hybrids are within 3 %. ResNets are 3.0 to 4.0 % above: the table leaves out products with the zeros around a map, as a
    compiler's count does. Without them they are within 1 %.
    """
    name, epochs = row
    model = model_config(name)
    counted = 6 * model.cost().macs * JFT * epochs / 1e18 / exaflops
    if isinstance(model, HybridConfig):
        assert counted == pytest.approx(1, abs=0.03)
        return
    assert 1.03 <= counted <= 1.041
    assert 6 * products_inside(model) * JFT * epochs / 1e18 / exaflops == pytest.approx(1, abs=0.01)


def taps(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """How often a filter's row lies on a pixel along one axis of a padded map, and the results along it."""
    pad = kernel // 2
    results = (side + 2 * pad - kernel) // stride + 1
    return sum(0 <= r * stride - pad + k < side for r in range(results) for k in range(kernel)), results


def products_inside(model: BiTConfig) -> int:
    """Multiply-accumulates of the convolutions but those with padding, square images."""
    on, side = taps(model.img_size[0], 7, 2)
    total = on**2 * 3 * model.stem_channels
    _, side = taps(side, 3, 2)
    for stage in model.stages():
        for unit in stage:
            on, after = taps(side, 3, unit.stride)
            total += side**2 * unit.inputs * unit.inner + on**2 * unit.inner**2 + after**2 * unit.inner * unit.outputs
            total += after**2 * unit.inputs * unit.outputs if unit.projects else 0
            side = after
    return total


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("r50x1", "R50x1"), ("R50", "R50x1"), ("R152x4", "R152x4"), ("resnetv2_101x3_bit", "R101x3"),
        ("resnetv2_50x1_bit.goog_in21k_ft_in1k", "R50x1"), ("vit_base_r50_s16_384.orig_in21k_ft_in1k", "R50+ViT-B/16"), ("r26x0.5", "R26x0.5"),
        ("R1-2x0.5", "R1-2x0.5"), ("R2-2-2-2x1", "R26x1"), ("BiT-R50x1", "R50x1"),
        ("r50+vit-b/16", "R50+ViT-B/16"), ("R26+S/32", "R26+ViT-S/32"), ("R50x1+ViT-L/32", "R50+ViT-L/32"),
        ("R+ViT-Ti/16", "R+ViT-Ti/16"), ("vit_base_r50_s16_224", "R50+ViT-B/16"), ("vit_small_r26_s32_384", "R26+ViT-S/32"),
        ("vit_tiny_r_s16_p8_224", "R+ViT-Ti/16"), ("vit_large_r50_s32_224", "R50+ViT-L/32"), ("R1-1+ti/8", "R1-1+ViT-Ti/8"),
        ("R101+ViT-B/16", "R101+ViT-B/16"), ("R50+w192d3h3/32", "R50+ViT-w192d3h3/32"),
    ],
)  # fmt: skip
def test_names_are_read_and_written(name, spelled):
    model = model_config(name, (64, 64), 3)
    assert model.name == spelled
    assert model_config(model.name, (64, 64), 3) == model


def test_the_stages_of_a_hybrid():
    """§4.1: of a stride of 16 the fourth stage's units belong to the third."""
    assert model_config("R50+ViT-B/16").units == (3, 4, 9)
    assert model_config("R50+ViT-B/32").units == (3, 4, 6, 3)
    root = model_config("R+ViT-Ti/16")
    assert (root.units, root.patch, root.patch_shape()) == ((), (32, 32), (192, 64, 8, 8))


@pytest.mark.parametrize(
    "name",
    [
        "R51x1",
        "R50x0",
        "R50+ViT-X/16",
        "R51+ViT-B/16",
        "R50+ViT-B/20",
        "R+ViT-Ti/3",
        "R50x1+R50x1",
        "R0-1x1",
        "R50x0.3",
    ],
)
def test_names_of_what_cannot_be(name):
    with pytest.raises(UsageError):
        model_config(name, (320, 320)).check()


@settings(deadline=None, max_examples=25)
@given(
    units=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    factor=st.sampled_from([0.25, 0.5, 0.75]),
    root=st.sampled_from(["large", "small"]),
    sides=st.tuples(st.integers(9, 40), st.integers(9, 40)),
    classes=st.integers(0, 4),
)
def test_counts_are_the_module_s_own(units, factor, root, sides, classes):
    name = f"R{'-'.join(map(str, units))}x{factor}" if len(units) > 1 else f"R{units[0]}-1x{factor}"
    model = replace(model_config(name, sides, classes), root=root, groups=8)
    check_counts(model)


@settings(deadline=None, max_examples=10)
@given(
    units=st.sampled_from(["", "1-1", "1-2-1"]),
    cells=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    classes=st.integers(0, 4),
)
def test_counts_of_hybrids_are_the_module_s_own(units, cells, classes):
    side = {"": 4, "1-1": 8, "1-2-1": 16}[units]
    model = model_config(f"R{units}+ViT-w64d2h2/{side}", (48, 48), classes)
    check_counts(replace(model, img_size=(cells[0] * model.patch[0], cells[1] * model.patch[1])))


def check_counts(model: BiTConfig | HybridConfig) -> None:
    module = build(model)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == model.shapes()
    assert sum(map(math.prod, model.shapes().values())) == model.cost().parameters


def test_nothing_asks_for_a_residual_network_by_name():
    """What is particular to them stands in their own files."""
    own = {"families/bit.py", "families/hybrid.py", "families/resnet.py", "model/bit.py", "model/hybrid.py", "model/resnet.py",
           "weights/residual.py", "weights/formats_residual.py"}  # fmt: skip
    asks = re.compile(
        r"\bif\b.*(resnet|hybrid|\bbit\b|BiT)|(==|in|isinstance)\W.*(\"bit\"|\"hybrid\"|BiTConfig|HybridConfig)"
    )
    found = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        if str(path.relative_to(SOURCE)) not in own
        for line in path.read_text(encoding="utf-8").splitlines()
        if asks.search(line.partition("#")[0]) and '"""' not in line
    ]
    assert not found, found


@settings(deadline=None, max_examples=60)
@given(
    units=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    channels=st.integers(1, 300),
    patch=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
@example(units=[50], channels=64, patch=(1, 1))
@example(units=[2], channels=10, patch=(1, 1))
@example(units=[3, 4, 9], channels=65, patch=(2, 2))
@example(units=[3, 4, 6, 3], channels=16, patch=(1, 2))
def test_any_dimensions_have_a_name_that_stands_for_them(units, channels, patch):
    bit = BiTConfig(name="", units=tuple(units), factor=channels / 64)
    read = model_config(bit.spelled())
    assert (read.family, read.units, read.factor) == ("bit", bit.units, bit.factor)
    assert channels % read.groups == 0
    hybrid = HybridConfig(name="", units=tuple(units))
    hybrid = replace(hybrid, patch=(patch[0] * hybrid.stride, patch[1] * hybrid.stride))
    read = model_config(hybrid.spelled())
    assert (read.family, read.units, read.patch, read.width) == ("hybrid", hybrid.units, hybrid.patch, hybrid.width)


def test_timm_s_batch_norm_networks_are_no_bit():
    for name in ("resnetv2_50", "resnetv2_101", "resnetv2_50x1", "resnet50"):
        with pytest.raises(UsageError, match="unknown model"):
            model_config(name)


def test_a_factor_takes_its_groups_along_and_a_name_replaces_what_follows_from_it():
    small = apply(Config(model=model_config("R50x1")), {"model.factor": 0.25})
    assert small.model.completed({"factor": 0.25}) == {"factor": 0.25, "groups": 8}
    assert model_config("R50x1.25").groups == 20
    below = {
        "model.family": "bit",
        "model.groups": 8,
        "model.root": "small",
        "model.norm_eps": 1e-4,
        "model.weight_eps": 1e-3,
    }
    assert layer(below, {"model.name": "R50x1"}) == {
        "model.name": "R50x1",
        "model.norm_eps": 1e-4,
        "model.weight_eps": 1e-3,
    }
    assert layer(below, {"model.name": "ViT-S/16"}) == {"model.name": "ViT-S/16", "model.norm_eps": 1e-4}
    assert layer({"model.pool": "mean", "model.width": 9}, {"model.name": "R50x1"}) == {"model.name": "R50x1"}


@pytest.mark.parametrize("setting", [{"train.init": "mimetic"}, {"run.attention": "recompute"}])
def test_settings_of_attention_are_refused_without_any(setting):
    config = apply(Config(model=model_config("R26x1", (32, 32), 10)), {"train.steps": 1} | setting)
    with pytest.raises(UsageError, match="of attention"):
        check(config)
    check(replace(config, model=model_config("R26+ViT-S/32", (32, 32), 10)))
