"""The model against timm and transformers with copied weights, its initialisation, and what training adds."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchvision_shim  # noqa: F401
from vitcli.config import ModelConfig, model_config
from vitcli.errors import UsageError
from vitcli.model.positions import sines_and_cosines
from vitcli.model.vit import Block, ViT, drop_path_rates, init_mimetic, init_weights
from vitcli.weights import checkpoint

TOLERANCE = 2e-5  # of the spread of the logits, in fp32
SMALL = ModelConfig(name="small", width=24, depth=3, heads=3, mlp=40, patch=(4, 4), img_size=(8, 12), classes=5)


def vit(config: ModelConfig, seed: int = 0) -> ViT:
    """Initialised, with a head and biases that are not zero, so that nothing hides behind zeros."""
    model = ViT(config)
    init_weights(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)
    return model.eval()


def pixels(config: ModelConfig, batch: int = 2, seed: int = 7) -> Tensor:
    return torch.randn(batch, 3, *config.img_size, generator=torch.Generator().manual_seed(seed))


def assert_same_logits(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype == torch.float32
    spread = float(theirs.max() - theirs.min())
    assert spread > 0.1, "logits that hardly differ show nothing"
    assert float((ours - theirs).abs().max()) <= TOLERANCE * spread


# --- timm --------------------------------------------------------------------------------------------------


def timm_vit(config: ModelConfig) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=config.img_size,
        patch_size=config.patch,
        num_classes=config.classes,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp / config.width,
        class_token=config.class_token,
        global_pool="token" if config.pool == "cls" else "avg",
        fc_norm=False,
        act_layer="gelu_tanh" if config.gelu == "tanh" else "gelu",
    ).eval()


TIMM_CASES = {
    "Ti/16": model_config("ti/16", classes=1000),
    "S/32": model_config("s/32", classes=1000),
    "B/32": model_config("b/32", classes=1000),
    "Ti/16 tanh GELU": dataclasses.replace(model_config("ti/16", (64, 64), 10), gelu="tanh"),
    "Ti/16 erf GELU": dataclasses.replace(model_config("ti/16", (64, 64), 10), gelu="erf"),
    "image of 96 x 128": model_config("ti/16", (96, 128), 10),
    "patch of 8 x 16": model_config("ti/8x16", (64, 64), 10),
    "both": model_config("ti/14x8", (28, 64), 10),
    "mean of all tokens": dataclasses.replace(model_config("ti/16", (64, 96), 10), pool="mean", class_token=False),
}


@torch.no_grad()
@pytest.mark.parametrize("config", TIMM_CASES.values(), ids=TIMM_CASES.keys())
def test_logits_are_timm_s(config):
    ours, theirs = vit(config), timm_vit(config)
    theirs.load_state_dict(ours.state_dict(), strict=True)  # the same names, the same shapes
    images = pixels(config)
    assert_same_logits(ours(images), theirs(images))


@torch.no_grad()
def test_the_two_gelus_can_be_told_apart():
    config = dataclasses.replace(SMALL, gelu="erf")
    erf, tanh = vit(config), ViT(dataclasses.replace(config, gelu="tanh")).eval()
    tanh.load_state_dict(erf.state_dict())
    expected, other = erf(pixels(config)), tanh(pixels(config))
    assert float((expected - other).abs().max()) > 5 * TOLERANCE * float(expected.max() - expected.min())


@pytest.mark.parametrize(("name", "timm_name"), [("Ti/16", "vit_tiny_patch16_224"), ("S/32", "vit_small_patch32_224")])
def test_parameters_have_the_names_and_shapes_of_timm_s_own_models(name, timm_name):
    import timm

    with torch.device("meta"):
        theirs = {key: tuple(value.shape) for key, value in timm.create_model(timm_name).state_dict().items()}
        ours = {key: tuple(v.shape) for key, v in ViT(model_config(name, classes=1000)).state_dict().items()}
    assert ours == theirs


@torch.no_grad()
def test_the_released_deit_gives_timm_s_logits(deit_weights):
    import timm
    from safetensors.torch import load_file

    description, tensors = checkpoint.load(str(deit_weights))
    ours = checkpoint.model_with(description.model, tensors)
    theirs = timm.create_model("deit_tiny_patch16_224").eval()
    theirs.load_state_dict(load_file(deit_weights), strict=True)
    images = pixels(description.model)
    assert_same_logits(ours(images), theirs(images))


# --- transformers ------------------------------------------------------------------------------------------


def transformers_weights(config: ModelConfig, tensors: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """timm's names to those of transformers' live modules (renamed between 5.8 and 5.23)."""
    renamed = {
        "vit.embeddings.cls_token": tensors["cls_token"],
        "vit.embeddings.position_embeddings": tensors["pos_embed"],
    }
    new = any(".q_proj." in name for name in names)
    block = "vit.layers" if new else "vit.encoder.layer"
    q, k, v, o = (
        [f"attention.{x}_proj" for x in "qkvo"]
        if new
        else [*(f"attention.attention.{x}" for x in ("query", "key", "value")), "attention.output.dense"]
    )
    first, second = ("mlp.fc1", "mlp.fc2") if new else ("intermediate.dense", "output.dense")
    for kind in ("weight", "bias"):
        renamed[f"vit.embeddings.patch_embeddings.projection.{kind}"] = tensors[f"patch_embed.proj.{kind}"]
        renamed[f"vit.layernorm.{kind}"] = tensors[f"norm.{kind}"]
        renamed[f"classifier.{kind}"] = tensors[f"head.{kind}"]
        for i in range(config.depth):
            there, here = f"{block}.{i}", f"blocks.{i}"
            for name, part in zip((q, k, v), tensors[f"{here}.attn.qkv.{kind}"].chunk(3), strict=True):
                renamed[f"{there}.{name}.{kind}"] = part
            for name, source in {
                o: "attn.proj",
                first: "mlp.fc1",
                second: "mlp.fc2",
                "layernorm_before": "norm1",
                "layernorm_after": "norm2",
            }.items():
                renamed[f"{there}.{name}.{kind}"] = tensors[f"{here}.{source}.{kind}"]
    return renamed


@torch.no_grad()
@pytest.mark.parametrize(("gelu", "act"), [("erf", "gelu"), ("tanh", "gelu_pytorch_tanh")])
@pytest.mark.parametrize("img_size", [(64, 64), (32, 80)])
def test_logits_are_those_of_transformers(gelu, act, img_size):
    from transformers import ViTConfig, ViTForImageClassification

    config = dataclasses.replace(model_config("ti/16", img_size, 10), depth=4, gelu=gelu)
    ours = vit(config)
    theirs = ViTForImageClassification(
        ViTConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp,
            hidden_act=act,
            layer_norm_eps=1e-6,
            image_size=config.img_size,
            patch_size=config.patch,
            num_labels=config.classes,
        )
    ).eval()
    names = set(theirs.state_dict())
    theirs.load_state_dict(transformers_weights(config, ours.state_dict(), names), strict=True)
    images = pixels(config)
    assert_same_logits(ours(images), theirs(images).logits)


# --- the paper's equations ---------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("place", ["pre", "post"])
def test_the_paper_s_equations_written_out(pool, class_token, place):
    """Equations 1 to 4, one token at a time where that is simpler; the tanh layer of the pre-training head. With norms in the place
    of Vaswani et al. (2017) each follows a sum.
    """
    if pool == "cls" and not class_token:
        with pytest.raises(UsageError, match="class_token"):
            ViT(dataclasses.replace(SMALL, class_token=False))
        return
    config = dataclasses.replace(
        SMALL, pool=pool, class_token=class_token, pre_logits=True, gelu="tanh", norm_place=place
    )
    model, images = vit(config), pixels(SMALL, 1)
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def before(x: Tensor, name: str) -> Tensor:
        return norm(x, name) if place == "pre" else x

    def after(x: Tensor, name: str) -> Tensor:
        return norm(x, name) if place == "post" else x

    image, rows = images[0].double(), []
    for top in range(0, 8, 4):
        for left in range(0, 12, 4):  # raster order
            patch = image[:, top : top + 4, left : left + 4]
            rows.append((w["patch_embed.proj.weight"] * patch).sum((1, 2, 3)) + w["patch_embed.proj.bias"])
    x = torch.stack(([w["cls_token"][0, 0]] if class_token else []) + rows) + w["pos_embed"][0]
    for i in range(3):
        q, k, v = linear(before(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, -1)
        heads = []
        for h in range(3):
            part = slice(8 * h, 8 * h + 8)
            logits = q[:, part] @ k[:, part].T / math.sqrt(8)
            heads.append(logits.exp() / logits.exp().sum(-1, keepdim=True) @ v[:, part])
        x = after(x + linear(torch.cat(heads, -1), f"blocks.{i}.attn.proj"), f"blocks.{i}.norm1")
        hidden = linear(before(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        x = after(x + linear(gelu, f"blocks.{i}.mlp.fc2"), f"blocks.{i}.norm2")
    y = norm(x, "norm")
    feature = torch.tanh(linear(y[0] if pool == "cls" else y[int(class_token) :].mean(0), "pre_logits.fc"))
    assert_same_logits(model(images)[0], linear(feature, "head").float())
    torch.testing.assert_close(model.features(images)[0], feature.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encode(images)[0], y.float(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    down=st.integers(1, 4),
    across=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_the_patch_embedding_is_a_convolution(rows, columns, down, across, seed):
    config = dataclasses.replace(SMALL, patch=(rows, columns), img_size=(rows * down, columns * across))
    embed, images = vit(config, seed).patch_embed, pixels(config, seed=seed)
    expected = F.conv2d(images, embed.proj.weight, embed.proj.bias, stride=(rows, columns)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(12, 8), (8, 8), (16, 24), (8, 13)])
def test_images_of_another_size_are_refused(size):
    with pytest.raises(ValueError, match=r"8, 12"):
        vit(SMALL)(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"heads": 5}, "model.heads"),
        ({"img_size": (9, 12)}, "patch"),
        ({"depth": 0}, "model.depth"),
        ({"dropout": 1.5}, "model.dropout"),
    ],
)
def test_dimensions_that_do_not_fit_are_refused(changes, named):
    with pytest.raises(UsageError, match=named):
        ViT(dataclasses.replace(SMALL, **changes))


def test_without_classes_there_is_no_head():
    model = vit(dataclasses.replace(SMALL, classes=0))
    images = pixels(SMALL)
    assert torch.equal(model(images), model.features(images))
    assert not [name for name in model.state_dict() if name.startswith("head")]


@torch.no_grad()
def test_an_image_s_logits_do_not_depend_on_its_batch():
    model, images = vit(SMALL), pixels(SMALL, 5)
    torch.testing.assert_close(model(images)[3:4], model(images[3:4]), rtol=1e-4, atol=1e-5)


# --- initialisation ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh() -> ViT:
    model = ViT(dataclasses.replace(model_config("ti/16", (224, 224), 10), depth=2, pre_logits=True))
    init_weights(model, 3)
    return model


def assert_lecun(weight: Tensor, fan_in: int) -> None:
    """A normal cut at two of its standard deviations, of std 1/√fan_in after the cut."""
    std, values = 1 / math.sqrt(fan_in), weight.detach().flatten()
    raw = std / 0.87962566
    assert float(values.std()) == pytest.approx(std, rel=0.015)
    assert abs(float(values.mean())) < 5 * std / math.sqrt(len(values))
    assert 1.95 * raw < float(values.abs().max()) <= 2 * raw * (1 + 1e-6)
    inside = float((values.abs() < raw).double().mean())
    assert inside == pytest.approx(0.6827 / 0.9545, abs=0.01)  # uniform numbers would have 0.5


def assert_uniform(weight: Tensor, limit: float) -> None:
    values = weight.detach().flatten()
    assert 0.995 * limit < float(values.abs().max()) <= limit * (1 + 1e-6)
    assert float(values.std()) == pytest.approx(limit / math.sqrt(3), rel=0.01)
    assert float((values.abs() < limit / 2).double().mean()) == pytest.approx(0.5, abs=0.01)


def assert_normal(values: Tensor, std: float, rel: float) -> None:
    values = values.detach().flatten()
    assert float(values.std()) == pytest.approx(std, rel=rel)
    assert float(values.abs().max()) > 2.5 * std


def test_patch_embedding_starts_as_lecun_normal(fresh):
    assert_lecun(fresh.patch_embed.proj.weight, 3 * 16 * 16)
    assert not fresh.patch_embed.proj.bias.any()


def test_tanh_layer_starts_as_lecun_normal(fresh):
    assert_lecun(fresh.pre_logits.fc.weight, 192)
    assert not fresh.pre_logits.fc.bias.any()


def test_class_token_and_head_start_at_zero(fresh):
    assert not fresh.cls_token.any()
    assert not fresh.head.weight.any()
    assert not fresh.head.bias.any()


def test_position_embedding_starts_normal(fresh):
    assert_normal(fresh.pos_embed, 0.02, 0.02)


def test_q_k_and_v_start_as_three_xavier_matrices(fresh):
    for block in fresh.blocks:
        parts = block.attn.qkv.weight.chunk(3)
        for part in parts:
            assert_uniform(part, math.sqrt(6 / (2 * 192)))  # of the fused matrix it would be 1/√2 of this
        for one, other in itertools.combinations(parts, 2):
            assert not torch.equal(one, other)
        assert not block.attn.qkv.bias.any()
        assert_uniform(block.attn.proj.weight, math.sqrt(6 / (2 * 192)))
        assert not block.attn.proj.bias.any()


def test_mlps_start_as_xavier_with_tiny_biases(fresh):
    for block in fresh.blocks:
        for layer in (block.mlp.fc1, block.mlp.fc2):
            assert_uniform(layer.weight, math.sqrt(6 / (192 + 768)))
            assert_normal(layer.bias, 1e-6, 0.15)


def test_norms_start_as_the_identity(fresh):
    norms = [m for m in fresh.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 5
    for norm in norms:
        assert norm.eps == 1e-6
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


def test_every_parameter_is_initialised():
    """Including those that were made without a value."""
    model = ViT(dataclasses.replace(SMALL, pre_logits=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    init_weights(model, 0)
    assert [name for name, p in model.named_parameters() if not torch.isfinite(p).all()] == []


def test_blocks_do_not_start_alike(fresh):
    one, other = fresh.blocks
    assert not torch.equal(one.attn.qkv.weight, other.attn.qkv.weight)
    assert not torch.equal(one.mlp.fc1.weight, other.mlp.fc1.weight)


def test_the_seed_decides_the_weights_whatever_was_drawn_before():
    config = dataclasses.replace(SMALL, pre_logits=True)
    models = []
    for seed in (5, 5, 6):
        torch.rand(len(models) + 1)
        models.append(ViT(config))
        init_weights(models[-1], seed)
    one, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["pos_embed"], other["pos_embed"])
    assert not torch.equal(one["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_the_head_s_bias_can_be_set():
    model = vit(SMALL)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model.new_head(-6.9)
    assert (model.head.bias == torch.tensor(-6.9)).all()
    assert not model.head.weight.any()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items() if not n.startswith("head."))
    other = ViT(SMALL)
    init_weights(other, 0, head_bias=-10.0)
    assert (other.head.bias == -10).all()


# --- DropPath ----------------------------------------------------------------------------------------------


def test_rates_grow_linearly_from_zero_or_are_constant():
    config = dataclasses.replace(model_config("s/16"), drop_path=0.1)
    linear = drop_path_rates(config)
    assert linear == pytest.approx([0.1 * layer / 11 for layer in range(12)])
    assert linear[0] == 0
    assert linear[-1] == pytest.approx(0.1)
    assert drop_path_rates(dataclasses.replace(config, drop_path_rule="constant")) == [0.1] * 12
    assert [block.drop_path for block in ViT(config).blocks] == linear


def block_of(rate: float) -> Block:
    model = vit(dataclasses.replace(SMALL, depth=1, drop_path=rate, drop_path_rule="constant"))
    assert isinstance(model.blocks[0], Block)
    return model.blocks[0]


def tokens(batch: int = 4) -> Tensor:
    return torch.randn(batch, 7, SMALL.width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_kept_branches_are_scaled_by_the_probability_of_being_kept():
    block, x = block_of(0.4), tokens()
    expected = x + block.attention_branch(x) / 0.6
    expected = expected + block.mlp_branch(expected) / 0.6
    torch.testing.assert_close(block(x, torch.ones(2, 4, dtype=torch.bool)), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_without_a_mask_nothing_is_dropped_or_scaled():
    block, x = block_of(0.4), tokens()
    expected = x + block.attention_branch(x)
    torch.testing.assert_close(block(x), expected + block.mlp_branch(expected))


@torch.no_grad()
def test_rate_zero_ignores_the_mask():
    block, x = block_of(0.0), tokens()
    assert torch.equal(block(x, torch.zeros(2, 4, dtype=torch.bool)), block(x))


@torch.no_grad()
def test_dropped_rows_are_left_alone_and_rows_do_not_touch_each_other():
    block, x = block_of(0.25), tokens()
    keep = torch.tensor([[True, False, True, False], [True, True, False, False]])
    result = block(x, keep)
    assert torch.equal(result[3], x[3])
    for row in range(4):
        alone = block(x[row : row + 1], keep[:, row : row + 1])
        torch.testing.assert_close(result[row : row + 1], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result[2], x[2] + block.attention_branch(x[2:3])[0] / 0.75, rtol=1e-5, atol=1e-5)
    assert not torch.equal(result[1], x[1])


@pytest.mark.parametrize("branch", [0, 1], ids=["attention", "mlp"])
def test_in_expectation_over_masks_the_branch_and_its_gradient_are_whole(branch):
    """All masks of one branch for two images, each with its probability; the other branch is dropped."""
    rate, block = 0.3, block_of(0.3)
    function = block.mlp_branch if branch else block.attention_branch
    named = [p for n, p in block.named_parameters() if n.startswith(("norm2", "mlp") if branch else ("norm1", "attn"))]

    def gradients(output: Tensor, x: Tensor) -> list[Tensor]:
        found = torch.autograd.grad((output * weights).sum(), [x, *named], allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, [x, *named], strict=True)]

    x = tokens(2).requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    expected = x + function(x)
    mean, mean_gradients = torch.zeros_like(x), [torch.zeros_like(p) for p in [x, *named]]
    for rows in itertools.product([True, False], repeat=2):
        keep = torch.zeros(2, 2, dtype=torch.bool)
        keep[branch] = torch.tensor(rows)
        probability = math.prod(1 - rate if row else rate for row in rows)
        output = block(x, keep)
        mean = mean + probability * output.detach()
        for total, part in zip(mean_gradients, gradients(output, x), strict=True):
            total += probability * part
    torch.testing.assert_close(mean, expected.detach(), rtol=1e-4, atol=1e-5)
    for ours, whole in zip(mean_gradients, gradients(expected, x), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_many_random_masks_average_to_the_undropped_branch():
    """The mean of 4,000 draws lies within five standard errors."""
    rate, block, count = 0.5, block_of(0.5), 4000
    generator = torch.Generator().manual_seed(0)
    keep = torch.zeros(2, count, dtype=torch.bool)
    keep[0] = torch.rand(count, generator=generator) >= rate
    x = tokens(1)
    outputs = block(x.expand(count, -1, -1), keep)
    error = outputs.std(0) / math.sqrt(count)
    difference = (outputs.mean(0) - (x + block.attention_branch(x))[0]).abs()
    assert (difference <= 5 * error + 1e-5).all()


@torch.no_grad()
def test_after_a_sum_a_dropped_branch_leaves_its_norm():
    model, images = (
        vit(dataclasses.replace(SMALL, norm_place="post", drop_path=0.5, drop_path_rule="constant")),
        pixels(SMALL),
    )
    x = model.embed(images)
    for block in model.blocks:
        x = block.norm2(block.norm1(x))
    keep = torch.zeros(3, 2, len(images), dtype=torch.bool)
    torch.testing.assert_close(model.encode(images, keep), model.norm(x))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_with_checkpointing_little_more_than_the_blocks_inputs_is_kept(pool):
    config = dataclasses.replace(SMALL, depth=6, pool=pool)
    model, images = vit(config).train(), pixels(config)

    def kept(on: bool) -> tuple[int, list[Tensor]]:
        numbers = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal numbers
            numbers += tensor.numel() * (tensor.grad_fn is not None or not tensor.is_leaf)
            return tensor

        model.use_checkpointing(on)
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(images).square().sum()
        before = numbers
        loss.backward()
        return before, [p.grad for p in model.parameters()]

    (whole, gradients), (less, again) = kept(False), kept(True)
    stream = len(images) * config.tokens * config.width
    assert less < whole / 4 and less < (config.depth + 4) * stream
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
    with torch.no_grad():
        assert torch.isfinite(model(images)).all()


@torch.no_grad()
def test_blocks_whose_branches_are_all_dropped_are_the_identity():
    model = vit(dataclasses.replace(SMALL, drop_path=0.9, drop_path_rule="constant"))
    images = pixels(SMALL)
    keep = torch.zeros(3, 2, 2, dtype=torch.bool)
    torch.testing.assert_close(model.encode(images, keep), model.norm(model.embed(images)))
    assert torch.isfinite(model(images)).all()


def test_a_branch_that_is_dropped_for_all_images_gets_no_gradient():
    model = vit(dataclasses.replace(SMALL, drop_path=0.5, drop_path_rule="constant"))
    keep = torch.ones(3, 2, 2, dtype=torch.bool)
    keep[1, 0] = False
    model(pixels(SMALL), keep).sum().backward()
    assert model.blocks[1].attn.qkv.weight.grad is None or not model.blocks[1].attn.qkv.weight.grad.any()
    assert model.blocks[1].mlp.fc1.weight.grad.any()
    assert model.blocks[0].attn.qkv.weight.grad.any()


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_features_leave_out_only_what_the_head_does_not_read(pool, drop_path):
    model = vit(dataclasses.replace(SMALL, pool=pool, drop_path=drop_path, drop_path_rule="constant")).requires_grad_()
    images = pixels(SMALL, 5)
    keep = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0)) >= drop_path
    keep[2, 1] = False  # the last MLP for no image at all
    tokens = model.encode(images, keep if drop_path else None)
    whole = model.head(tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1))
    part = model(images, keep if drop_path else None)
    torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(whole.pow(2).sum(), parameters, allow_unused=True)
    for ours, theirs in zip(
        torch.autograd.grad(part.pow(2).sum(), parameters, allow_unused=True), expected, strict=True
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_block_reads_its_own_part_of_the_mask():
    model = vit(dataclasses.replace(SMALL, drop_path=0.5, drop_path_rule="constant"))
    images, keep = pixels(SMALL), torch.zeros(3, 2, 2, dtype=torch.bool)
    keep[2, 1, 1] = True
    x = model.embed(images)
    expected = x.clone()
    expected[1] += model.blocks[2].mlp_branch(x[1:])[0] / 0.5
    torch.testing.assert_close(model.encode(images, keep), model.norm(expected), rtol=1e-5, atol=1e-5)


# --- dropout -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_dropout_is_for_training_only():
    config = dataclasses.replace(SMALL, dropout=0.3)
    model, plain, images = vit(config), vit(SMALL), pixels(SMALL)
    assert torch.equal(model(images), plain(images))
    model.train()
    torch.manual_seed(0)
    one, other = model(images), model(images)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, plain(images))
    torch.manual_seed(0)
    assert torch.equal(model(images), one)


@torch.no_grad()
def test_without_dropout_training_mode_changes_nothing():
    model, images = vit(SMALL), pixels(SMALL)
    expected = model(images)
    assert torch.equal(model.train()(images), expected)


@torch.no_grad()
def test_dropout_follows_the_positions_and_every_dense_layer_but_qkv():
    """After adding positions, the attention's output, the GELU and the MLP's output (google-research models_vit.py)."""
    calls: list[tuple[int, ...]] = []
    model = vit(dataclasses.replace(SMALL, dropout=0.5)).train()

    def note(module: nn.Module, arguments: Any, output: Tensor) -> None:
        calls.append(tuple(output.shape[1:]))

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.5
            module.register_forward_hook(note)
    model(pixels(SMALL))
    last = [(1, 24), (1, 40), (1, 24)]  # of the last block, only the class token is read
    assert calls == [(7, 24)] + 2 * [(7, 24), (7, 40), (7, 24)] + last


def test_the_mimetic_start_has_the_products_that_its_table_states() -> None:
    model = ViT(model_config("ViT-w48d2h4/4", (12, 20), 3))
    init_weights(model, 0)
    init_mimetic(model, 0)
    identity = torch.eye(48)
    for block in model.blocks:
        assert isinstance(block, Block)
        q, k, v = block.attn.qkv.weight.chunk(3)
        torch.testing.assert_close(q.T @ k, 1.5 * identity, atol=1e-5, rtol=0)
        torch.testing.assert_close(block.attn.proj.weight @ v, -0.4 * identity, atol=1e-5, rtol=0)
    first = model.pos_embed[0, 1:].view(3, 5, 48)  # rows, columns, width
    columns, rows = first[..., :24], first[..., 24:]
    assert torch.equal(columns[0], columns[2]) and torch.equal(rows[:, 0], rows[:, 4])
    torch.testing.assert_close(columns[0, 3, 0], 0.5 * torch.tensor(3.0).sin())
    torch.testing.assert_close(rows[2, 0, 12], 0.5 * torch.tensor(2.0).cos())
    other = ViT(model_config("ViT-w48d2h4/4", (12, 20), 3))
    init_weights(other, 0)
    init_mimetic(other, 1)
    assert not torch.equal(other.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)  # type: ignore[union-attr]


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), width=st.integers(1, 40))
def test_sines_and_cosines_have_a_row_a_patch_whatever_the_width(rows: int, columns: int, width: int) -> None:
    table = sines_and_cosines((rows, columns), width)
    assert table.shape == (rows * columns, width) and table.abs().max() <= 1
    if width >= 8:
        assert len(torch.unique(table, dim=0)) == rows * columns
