"""Configurations: strict reading, exact writing, layers, and the checks of what fits together."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import types
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from vitcli.config import (
    COMMAND_SECTIONS,
    FAMILIES,
    LENGTHS,
    OBJECTIVE_SECTIONS,
    SECTIONS,
    VARIANTS,
    Config,
    ModelConfig,
    Size,
    apply,
    as_dict,
    check,
    check_alone,
    format_size,
    from_dict,
    known_keys,
    layer,
    model_config,
    parse_seconds,
    parse_set,
    parse_size,
    parse_value,
    read_toml,
    to_toml,
)
from vitcli.config_values import Seconds, key_of, keys
from vitcli.errors import UsageError, VitError
from vitcli.train.plan import Request
from vitcli.train.planning import make_plan

VALID = apply(Config(), {"train.epochs": 1.0})


# --- writing and reading -----------------------------------------------------------------------------------


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type can hold."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    if origin in (typing.Union, types.UnionType):
        return st.none() | values_of(next(a for a in args if a is not type(None)))
    if origin is Literal:
        return st.sampled_from(args)
    if hint == Seconds:
        return numbers
    if hint == Size:
        return st.tuples(st.integers(1, 10**6), st.integers(1, 10**6))
    if origin is tuple:
        if args[1:] == (Ellipsis,):
            return st.lists(numbers if args[0] is float else values_of(args[0]), max_size=4).map(tuple)
        return st.tuples(*[numbers] * len(args))
    return {
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**63 - 1),
        float: numbers,
        str: st.text(st.characters(exclude_categories=["Cs"])),
    }[hint]


@st.composite
def configs(draw: st.DrawFn) -> Config:
    sections = {}
    for name, cls in SECTIONS.items():
        hints = typing.get_type_hints(cls, include_extras=True)
        drawn = {f.name: draw(values_of(hints[f.name])) for f in dataclasses.fields(cls) if f.name != "family"}
        sections[name] = cls(**{k: v for k, v in drawn.items() if not dict(keys(cls))[k].fault(v)})
    return Config(**sections)


def read_text(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return read_toml(path)


@settings(deadline=None, max_examples=60)
@given(config=configs())
def test_what_is_written_is_read_back_exactly(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("toml")
    overrides = read_text(folder, to_toml(config))
    sections = {
        name: cls(**{k.partition(".")[2]: v for k, v in overrides.items() if k.startswith(f"{name}.")})
        for name, cls in SECTIONS.items()
    }
    assert Config(**sections) == config


def test_a_configuration_survives_being_applied_from_its_file(tmp_path):
    config = apply(Config(), {"train.time_budget": 90.0, "model.img_size": (96, 128), "optim.milestones": (0.5,)})
    assert apply(Config(), read_text(tmp_path, to_toml(config))) == config


@settings(deadline=None, max_examples=40)
@given(config=configs())
def test_as_dict_is_json_and_leaves_out_what_is_none(config):
    tree = json.loads(json.dumps(as_dict(config), allow_nan=False))
    assert set(tree) - set(OBJECTIVE_SECTIONS) == set(SECTIONS)
    for name, cls in SECTIONS.items():
        section = getattr(config, name)
        filled = {f.name for f in dataclasses.fields(cls) if getattr(section, f.name) is not None}
        filled -= {f.name for f in dataclasses.fields(cls) if key_of(f).quiet and getattr(section, f.name) == f.default}
        assert set(tree[name]) == filled
        assert from_dict(name, tree[name]) == section


def test_every_key_says_what_it_is_and_the_reference_has_it():
    reference = (Path(__file__).parents[1] / "docs" / "reference.md").read_text(encoding="utf-8")
    sections = SECTIONS | OBJECTIVE_SECTIONS | COMMAND_SECTIONS
    for section, cls in [*sections.items(), *(("model", family.config) for family in FAMILIES.values())]:
        for name, about in keys(cls):
            assert about.text.strip(), f"{section}.{name}"
            assert f"| `{section}.{name}` |" in reference and about.text.replace("|", "\\|") in reference, name


def test_every_field_is_a_known_key():
    assert "optim.lr" in known_keys()
    sections = {
        name: cls for name, cls in (SECTIONS | OBJECTIVE_SECTIONS | COMMAND_SECTIONS).items() if name != "model"
    }
    models = {line.name for family in FAMILIES.values() for line in dataclasses.fields(family.config)}
    assert len(known_keys()) == len(models) + sum(len(dataclasses.fields(cls)) for cls in sections.values())


def test_a_command_s_own_setting_is_read_but_is_no_part_of_a_run():
    assert parse_set(["bench.modes=infer, train", "bench.seconds=3"]) == {
        "bench.modes": ("infer", "train"),
        "bench.seconds": 3.0,
    }
    with pytest.raises(UsageError, match="not one of train, infer"):
        parse_set(["bench.modes=trian"])
    with pytest.raises(UsageError, match=r"bench.seconds does not concern a run"):
        apply(Config(), {"bench.seconds": 3.0})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[train]\nbatch_sise = 3\n", "train.batch_sise"),
        ("[trian]\nsteps = 3\n", "trian.steps"),
        ("steps = 3\n", "steps"),
        ("[train]\nsteps = 2.5\n", "train.steps"),
        ("[train]\nsteps = true\n", "train.steps"),
        ("[train]\nsteps = [1]\n", "train.steps"),
        ("[data]\nbalanced = 'maybe'\n", "data.balanced"),
        ("[model]\npatch = 'large'\n", "large"),
        ("[model]\npatch = [16]\n", "model.patch"),
        ("[model]\npatch = [16, 0]\n", "model.patch"),
        ("[model]\npatch = [16.0, 16.0]\n", "model.patch"),
        ("[model]\npool = 'max'\n", "model.pool"),
        ("[eval]\nmean = ['a', 'b', 'c']\n", "eval.mean"),
        ("[optim]\nlr = nan\n", "optim.lr"),
        ("[optim]\nlr = inf\n", "optim.lr"),
        ("[train\n", "not TOML"),
        ("[train]\nsteps = 1\nsteps = 2\n", "not TOML"),
    ],
)
def test_a_faulty_file_is_named_with_its_fault(tmp_path, text, named):
    with pytest.raises(UsageError) as caught:
        read_text(tmp_path, text)
    assert "run.toml" in caught.value.message
    assert named in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "[model]\npatch = 16.0\n",
        "[model]\npatch = true\n",
        "[model]\nimg_size = 1979-05-27\n",
        "[augment]\nscale = 0.5\n",
        "[augment]\nscale = true\n",
        "[optim]\nmilestones = 0.5\n",
        "[optim]\nbetas = 1979-05-27\n",
    ],
)
def test_one_value_where_several_belong_is_a_usage_error(tmp_path, text):
    with pytest.raises(UsageError, match=r"run\.toml"):
        read_text(tmp_path, text)


@pytest.mark.parametrize("value", ["[1]", "{a = 1}", "true", "1979-05-27"], ids=["list", "table", "true", "date"])
def test_what_is_not_text_is_refused_where_text_belongs(tmp_path, value):
    with pytest.raises(UsageError, match=r"data\.source"):
        read_text(tmp_path, f"[data]\nsource = {value}\n")


@pytest.mark.parametrize("key", ["train.steps", "optim.lr", "train.time_budget", "run.seed"])
def test_a_number_of_four_hundred_digits_is_a_usage_error(tmp_path, key):
    section, _, name = key.partition(".")
    with pytest.raises(UsageError):
        read_text(tmp_path, f"[{section}]\n{name} = 1{'0' * 400}\n")


@pytest.mark.parametrize(
    "text",
    [f"[train]\nsteps = {'9' * 5000}\n", f"[optim]\nmilestones = {'[' * 5000}\n"],
    ids=["a number of 5,000 digits", "5,000 brackets"],
)
def test_toml_beyond_the_parser_s_limits_is_a_usage_error(tmp_path, text):
    with pytest.raises(UsageError, match=r"run\.toml"):
        read_text(tmp_path, text)


@settings(deadline=None, max_examples=150)
@given(
    text=st.text(max_size=80)
    | st.sampled_from(["[train]\nsteps = ", "[model]\npatch = "]).flatmap(
        lambda start: st.sampled_from(
            ["1", "1.5", "true", "'a'", "[1, 2]", "{}", "[]", "07:32:00", "''", "-0.0", "[[1]]"]
        ).map(lambda value: start + value)
    )
)
def test_any_text_in_a_file_is_read_or_refused(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "run.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        overrides = read_toml(path)
    except UsageError as error:
        assert "run.toml" in error.message
    else:
        assert set(overrides) <= set(known_keys())


@settings(deadline=None, max_examples=80)
@given(content=st.binary(max_size=60))
def test_any_bytes_in_a_file_are_read_or_refused(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "run.toml"
    path.write_bytes(content)
    try:
        read_toml(path)
    except UsageError as error:
        assert "run.toml" in error.message


def test_a_missing_file_and_a_folder_are_usage_errors(tmp_path):
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            read_toml(path)


# --- --set -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("train.steps=100", 100),
        ("train.steps = 100 ", 100),
        ("train.steps=1e3", 1000),
        ("train.steps=none", None),
        ("train.epochs=2.5", 2.5),
        ("optim.lr=1e-3", 0.001),
        ("optim.lr=3", 3.0),
        ("run.seed=9007199254740993", 9007199254740993),  # above 2**53: not by way of a float
        ("train.time_budget=10m", 600.0),
        ("train.time_budget=90", 90.0),
        ("data.balanced=true", True),
        ("data.balanced=No", False),
        ("data.balanced=1", True),
        ("data.source=a=b", "a=b"),
        ("data.source=", ""),
        ("model.patch=8", (8, 8)),
        ("model.patch=8x16", (8, 16)),
        ("model.img_size=96x128", (96, 128)),
        ("model.pool=MEAN", "mean"),
        ("model.drop_path_rule=constant", "constant"),
        ("augment.scale=0.1,0.9", (0.1, 0.9)),
        ("augment.scale=(0.1, 0.9)", (0.1, 0.9)),
        ("eval.mean=0.1,0.2,0.3", (0.1, 0.2, 0.3)),
        ("optim.milestones=0.5", (0.5,)),
        ("optim.milestones=0.1,0.2,0.3,0.4", (0.1, 0.2, 0.3, 0.4)),
        ("train.freeze=", ""),
        ("train.freeze=backbone", "backbone"),
    ],
)
def test_values_of_each_type(item, value):
    ((_, parsed),) = parse_set([item]).items()
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "item",
    [
        "train.steps=1.5",
        "train.steps=many",
        "train.steps=true",
        "train.steps=inf",
        "train.steps=" + "9" * 5000,
        "optim.lr=nan",
        "optim.lr=",
        "optim.lr=1e-3e",
        "data.balanced=maybe",
        "data.balanced=2",
        "model.patch=0",
        "model.patch=8x8x8",
        "model.patch=-8",
        "model.pool=max",
        "augment.scale=0.5",
        "augment.scale=0.1,0.2,0.3",
        "train.time_budget=10 minutes",
        "optim.milestones=a",
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_key_or_text(item):
    with pytest.raises(UsageError) as caught:
        parse_set([item])
    key, _, value = item.partition("=")
    assert key in caught.value.message or value in caught.value.message


def test_a_wrong_choice_names_the_choices():
    with pytest.raises(UsageError) as caught:
        parse_set(["optim.schedule=cosin"])
    assert "cosine" in caught.value.message
    assert "did you mean cosine?" in caught.value.hint


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("optim.learning_rate", "optim."),
        ("train.batchsize", "train.batch_size"),
        ("trian.steps", "train.steps"),
        ("model.patc", "model.patch"),
        ("lr", "optim.lr"),
        ("augment.mixupp", "augment.mixup"),
    ],
)
def test_an_unknown_key_names_the_nearest(wrong, right):
    with pytest.raises(UsageError) as caught:
        parse_set([f"{wrong}=1"])
    assert wrong in caught.value.message
    assert right in caught.value.hint


def test_a_later_value_wins_and_an_equals_sign_is_needed():
    assert parse_set(["optim.lr=1", "optim.lr=2"]) == {"optim.lr": 2.0}
    with pytest.raises(UsageError, match="="):
        parse_set(["optim.lr"])


@pytest.mark.parametrize("key", ["run.command", "run.init", "model.classes"])
def test_what_follows_from_elsewhere_cannot_be_set(key):
    with pytest.raises(UsageError, match="cannot be set"):
        parse_set([f"{key}=1"])


def test_saving_by_time_can_be_switched_off():
    """0 is off, as in a configuration file."""
    assert parse_set(["train.save_every_seconds=0"]) == {"train.save_every_seconds": 0.0}


# --- sizes, times, names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [("384", (384, 384)), ("96x128", (96, 128)), (" 7X9 ", (7, 9))])
def test_sizes_are_height_times_width(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0x5", "5x0", "x5", "5x", "-5", "1.5", "5*5", "5 x 5", "123456", "a"])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)


@given(size=st.tuples(st.integers(1, 99_999), st.integers(1, 99_999)))
def test_sizes_are_read_as_they_are_written(size):
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1d", 86400),
        ("0.5h", 1800),
        (" 2M ", 120),
        ("1m30", 90),
    ],
)
def test_times(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5", "5 m", "1w", "ten", "1:30", "0", "0s", "1e3", "nan", "inf"])
def test_what_is_no_time(text):
    with pytest.raises(UsageError):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("name", "variant", "patch"),
    [
        ("ViT-B/16", "B", (16, 16)),
        ("vit-b/16", "B", (16, 16)),
        ("b/16", "B", (16, 16)),
        ("TI/4", "Ti", (4, 4)),
        ("ti/4", "Ti", (4, 4)),
        ("s/32", "S", (32, 32)),
        ("L/16", "L", (16, 16)),
        ("h/14", "H", (14, 14)),
        ("mu/1", "mu", (1, 1)),
        ("M/16", "M", (16, 16)),
        ("B/14x16", "B", (14, 16)),
        (" ViT-S/16 ", "S", (16, 16)),
    ],
)
def test_model_names_in_any_case_with_or_without_vit(name, variant, patch):
    model = model_config(name)
    assert (model.width, model.depth, model.mlp, model.heads) == VARIANTS[variant]
    assert model.patch == patch
    assert model.name == f"ViT-{variant}/{format_size(patch)}"
    assert model_config(model.name) == model


@pytest.mark.parametrize(("name", "hint"), [("x/16", "L"), ("tiny/16", "Ti"), ("base/16", "B"), ("hh/14", "h")])
def test_an_unknown_size_lists_or_names_the_known(name, hint):
    with pytest.raises(UsageError) as caught:
        model_config(name)
    assert name.partition("/")[0] in caught.value.message
    assert hint.lower() in caught.value.hint.lower()


@pytest.mark.parametrize(
    "name", ["", "b", "b/", "/16", "b16", "b/x", "b/16/16", "b/-1", "b/1.5", "ViT-B-16", "b/0", "b/0x4"]
)
def test_what_is_no_model_name(name):
    with pytest.raises(UsageError):
        model_config(name)


def test_models_of_other_dimensions_are_named_by_them():
    model = dataclasses.replace(model_config("s/16"), width=128, depth=6, heads=2, mlp=512, patch=(4, 4))
    assert model.spelled() == "ViT-w128d6h2/4"
    assert dataclasses.replace(model, mlp=100).spelled() == "ViT-w128d6h2m100/4"
    assert dataclasses.replace(model_config("b/16"), patch=(8, 16)).spelled() == "ViT-B/8x16"


@given(
    heads=st.integers(1, 32),
    head=st.integers(1, 128),
    depth=st.integers(1, 99),
    mlp=st.integers(1, 20_000),
    patch=st.tuples(st.integers(1, 99), st.integers(1, 99)),
)
def test_a_model_of_any_dimensions_is_read_back_from_its_name(heads, head, depth, mlp, patch):
    model = ModelConfig(name="", width=heads * head, depth=depth, heads=heads, mlp=mlp, patch=patch)
    model = dataclasses.replace(model, name=model.spelled())
    assert model_config(model.name) == model
    assert model_config(model.name.lower().removeprefix("vit-")) == model


def test_table_1_of_the_paper():
    for name, dimensions in {
        "B/16": (12, 768, 3072, 12),
        "L/16": (24, 1024, 4096, 16),
        "H/14": (32, 1280, 5120, 16),
    }.items():
        model = model_config(name)
        assert (model.depth, model.width, model.mlp, model.heads) == dimensions
        assert (model.pool, model.class_token, model.gelu, model.norm_eps) == ("cls", True, "erf", 1e-6)


@pytest.mark.parametrize("function", [parse_size, parse_seconds, model_config])
@settings(deadline=None, max_examples=200)
@given(text=st.text() | st.from_regex(r"(vit-)?[a-z]{0,3}/?\d{0,5}[xsmhd./]?\d{0,5}", fullmatch=True))
@example(text="9" * 5000)
@example(text="b/" + "9" * 5000)
@example(text="٣x٤")
@example(text="b/٣")
@example(text="²")
def test_any_text_is_read_or_refused(function, text):
    try:
        result = function(text)
    except UsageError as error:
        assert error.message
    else:
        assert result is not None
        if function is parse_seconds:
            assert math.isfinite(result)
            assert result > 0


@settings(deadline=None, max_examples=300)
@given(
    key=st.sampled_from(known_keys()),
    value=st.text(max_size=20)
    | st.sampled_from(["inf", "-inf", "nan", "1e999", "none", "()", ",", "1,2", "1,2,3", "1_0", "0x10", " 5", "１２"]),
)
def test_any_text_as_a_value_is_read_or_refused(key, value):
    try:
        parsed = parse_set([f"{key}={value}"])[key]
    except UsageError:
        return
    assert parse_value(key, parsed) == parsed  # what was read is of the field's type
    if isinstance(parsed, float):
        assert math.isfinite(parsed)


@settings(deadline=None, max_examples=300)
@given(
    key=st.sampled_from(known_keys()),
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=6,
    ),
)
def test_any_json_as_a_value_is_read_or_refused(key, value):
    try:
        parse_value(key, value)
    except UsageError:
        pass


@settings(deadline=None, max_examples=100)
@given(item=st.text(max_size=30))
def test_any_text_after_set_is_read_or_refused(item):
    assume(item.partition("=")[0].strip() not in known_keys())
    with pytest.raises(UsageError):
        parse_set([item])


# --- layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("above", LENGTHS)
@pytest.mark.parametrize("below", LENGTHS)
def test_a_length_replaces_any_length_below(above, below):
    assert layer({below: 5, "optim.lr": 1.0}, {above: 7}) == {above: 7, "optim.lr": 1.0}


def test_what_is_no_length_leaves_lengths_alone():
    assert layer({"train.steps": 5}, {"optim.lr": 1.0}) == {"train.steps": 5, "optim.lr": 1.0}


def test_a_model_s_name_replaces_the_dimensions_below_but_not_beside_it():
    below = {f"model.{name}": 1 for name in ModelConfig.DIMENSIONS} | {"model.name": "ViT-S/16", "model.pool": "mean"}
    assert layer(below, {"model.name": "ViT-B/16"}) == {"model.name": "ViT-B/16", "model.pool": "mean"}
    beside = {"model.name": "ViT-B/16", "model.depth": 3}
    assert layer(below, beside) == beside | {"model.pool": "mean"}


def test_layers_are_not_changed():
    below, above = {"train.steps": 5}, {"train.epochs": 1.0}
    layer(below, above)
    assert (below, above) == ({"train.steps": 5}, {"train.epochs": 1.0})


def test_applying_a_length_clears_the_others():
    steps = apply(VALID, {"train.steps": 9})
    assert (steps.train.epochs, steps.train.steps, steps.train.time_budget) == (None, 9, None)
    assert apply(steps, {"optim.lr": 1.0}).train.steps == 9
    assert apply(VALID, {"train.steps": None}).train.epochs == 1.0


def test_applying_an_unknown_key_is_refused():
    with pytest.raises(UsageError, match=r"train\.stepz"):
        apply(VALID, {"train.stepz": 1})


# --- checks ------------------------------------------------------------------------------------------------


def test_the_defaults_with_a_length_pass():
    assert check(VALID) is VALID


POSITIVE = (
    "train.batch_size train.accumulate train.epochs train.steps train.time_budget train.log_every_steps optim.lr "
    "data.memory_mb data.max_megapixels augment.views eval.crop eval.top_k model.width model.depth model.heads model.mlp"
)
NOT_NEGATIVE = (
    "data.workers augment.randaugment_layers augment.randaugment_magnitude augment.mixup augment.cutmix optim.clip "
    "optim.weight_decay optim.warmup_steps optim.muon_lr run.threads run.seed train.save_every_steps "
    "train.save_every_seconds eval.batch_size train.eval_every_steps"
)
PARTS = "augment.flip augment.erase augment.pad data.fraction optim.layer_decay eval.crop optim.warmup optim.final_lr"
BELOW_ONE = "train.ema train.label_smoothing model.dropout model.drop_path"


def refused(key: str, value: Any, named: str = "") -> None:
    with pytest.raises(UsageError) as caught:
        check(apply(VALID, {key: value}))
    assert (named or key) in caught.value.message


@pytest.mark.parametrize("key", POSITIVE.split())
@pytest.mark.parametrize("value", [0, -1])
def test_what_must_be_above_zero(key, value):
    refused(key, value)


@pytest.mark.parametrize("key", NOT_NEGATIVE.split())
def test_what_must_not_be_negative(key):
    refused(key, -1)
    check(apply(VALID, {key: 0}))


@pytest.mark.parametrize("key", PARTS.split())
def test_what_must_lie_between_zero_and_one(key):
    refused(key, 1.01)
    refused(key, -0.01)
    check(apply(VALID, {key: 1.0}))


@pytest.mark.parametrize("key", BELOW_ONE.split())
def test_what_must_be_below_one(key):
    """At 1 an average never moves, a label says nothing, a branch is never computed."""
    for value in (-0.01, 1.0, 1.01):
        refused(key, value)
    for value in (0.0, 0.9999):
        check(apply(VALID, {key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run.seed", 2**63),
        ("run.seed", 2**64),
        ("run.seed", 10**400),
        ("run.threads", 1025),
        ("run.threads", 100_000),
        ("data.workers", 100_000),
        ("model.depth", 1001),
        ("model.depth", 100_000),
        ("model.mlp", 10**9),
        ("model.registers", 10**6),
        ("augment.randaugment_layers", 100_000),
        ("train.steps", 10**30),
        ("train.epochs", 1e300),
        ("train.time_budget", 1e300),
    ],
)
def test_absurd_numbers_are_refused_by_their_bound(key, value):
    refused(key, value)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model.width": 384 * 10**6}, "model.width"),
        ({"model.img_size": (99_999, 99_999), "model.patch": (1, 1)}, "tokens"),
        ({"model.img_size": (99_999, 99_999), "model.patch": (99_999, 99_999)}, "parameters"),
        ({"model.width": 96_000, "model.depth": 1000}, "parameters"),
        ({"model.classes": 10**10}, "parameters"),
    ],
)
def test_a_model_that_no_machine_holds_is_refused(values, named):
    with pytest.raises(UsageError, match=named) as caught:
        check(apply(VALID, values))
    assert caught.value.hint


@pytest.mark.parametrize(
    "values",
    [
        {"model.depth": 100_000},
        {"run.seed": 2**64},
        {"run.threads": 100_000, "bench.seconds": 1.0},
        {"train.steps": 10**30},
        {"model.name": "ViT-w128d9999h1/4"},
    ],
)
def test_what_is_absurd_by_itself_is_found_before_anything_is_opened(values):
    with pytest.raises(UsageError):
        check_alone(values)


@pytest.mark.parametrize("name", ["b/16", "ViT-S/16", "google/vit-base-patch16-224", "R50x1", "nonsense"])
def test_what_a_name_means_is_not_decided_early(name):
    check_alone({"model.name": name})


@pytest.mark.parametrize("key", ["run.seed", "run.threads", "data.workers", "model.depth"])
def test_the_largest_that_is_taken(key):
    largest = {"run.seed": 2**63 - 1, "run.threads": 1024, "data.workers": 1024, "model.depth": 1000}[key]
    config = check(apply(VALID, {key: largest}))
    assert parse_value(key, str(largest)) == largest
    section, name = key.split(".")
    assert getattr(getattr(config, section), name) == largest


def test_the_largest_vision_transformers_pass():
    """ViT-22B (Dehghani et al., 2023, Table 1), ViT-G/14 (Zhai et al., 2022), H/14 at 21,843 classes, 4096 px."""
    for width, depth, mlp, heads in ((6144, 48, 24576, 48), (1664, 48, 8192, 16), (1280, 32, 5120, 16)):
        ModelConfig(
            name="x",
            width=width,
            depth=depth,
            heads=heads,
            mlp=mlp,
            patch=(14, 14),
            img_size=(518, 518),
            classes=21_843,
        ).check()
    ModelConfig(img_size=(4096, 4096), classes=100_000).check()


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("data.fraction", 0.0, "data.fraction"),
        ("optim.milestones", (0.5, 30.0), "optim.milestones"),
        ("train.accumulate", 7, "train.accumulate"),
        ("augment.scale", (0.5, 0.1), "augment.scale"),
        ("augment.scale", (0.0, 1.0), "augment.scale"),
        ("augment.scale", (0.5, 1.1), "augment.scale"),
        ("augment.ratio", (2.0, 1.0), "augment.ratio"),
        ("augment.ratio", (0.0, 1.0), "augment.ratio"),
        ("optim.betas", (0.9, 1.0), "optim.betas"),
        ("optim.betas", (-0.1, 0.9), "optim.betas"),
        ("optim.momentum", 1.0, "momentum"),
        ("optim.muon_momentum", 1.0, "momentum"),
        ("eval.std", (0.5, 0.0, 0.5), "eval.std"),
        ("eval.views", 3, "eval.views"),
        ("eval.views", 0, "eval.views"),
        ("model.heads", 5, "model.heads"),
        ("model.img_size", (225, 224), "height 225"),
        ("model.img_size", (224, 100), "width 100"),
        ("model.class_token", False, "model.class_token"),
    ],
)
def test_what_does_not_fit_together(key, value, named):
    refused(key, value, named)


def test_a_run_has_as_many_views_as_its_objective_learns_from():
    asked = {"data.source": "none", "data.images": 100, "data.classes": 3, "train.epochs": 1.0, "augment.views": 2}
    with pytest.raises(UsageError, match=r"augment.views = 2: .* learns from one view"):
        make_plan(Request("pretrain", asked, dry_run=True))


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_there_is_a_mean_and_a_deviation_for_each_channel(channels):
    fitting = {"model.channels": channels, "eval.mean": (0.4,) * channels, "eval.std": (0.2,) * channels}
    check(apply(VALID, fitting))
    for key in ("eval.mean", "eval.std"):
        with pytest.raises(UsageError, match=rf"{key} has 3 numbers.*model\.channels = {channels}"):
            check(apply(VALID, fitting | {key: (0.5, 0.5, 0.5)}))


@pytest.mark.parametrize("name", ["R50x1", "R50+ViT-B/16"])
def test_networks_with_a_stem_take_three_channels(name):
    with pytest.raises(UsageError, match=r"model\.channels = 1.*3 channels alone"):
        dataclasses.replace(model_config(name), channels=1).check()


def test_three_channels_stand_in_no_file():
    assert not [key for key in as_dict(VALID)["model"] if key.startswith("channels")]
    assert as_dict(apply(VALID, {"model.channels": 4}))["model"]["channels"] == 4


def test_a_run_has_one_length():
    with pytest.raises(UsageError, match="none given"):
        check(Config())
    two = dataclasses.replace(VALID, train=dataclasses.replace(VALID.train, steps=5))
    with pytest.raises(UsageError, match=r"train\.epochs, train\.steps"):
        check(two)


@pytest.mark.parametrize(("side", "near"), [(225, 224), (230, 224), (233, 240), (3, 16)])
def test_the_nearest_image_size_that_fits_is_named(side, near):
    with pytest.raises(UsageError) as caught:
        ModelConfig(img_size=(side, 224)).check()
    assert str(near) in caught.value.hint


def test_mean_pooling_needs_no_class_token():
    check(apply(VALID, {"model.class_token": False, "model.pool": "mean"}))


def test_grids_and_tokens():
    model = ModelConfig(img_size=(96, 128), patch=(16, 32))
    assert model.grid == (6, 4)
    assert (model.tokens, model.prefix_tokens) == (25, 1)
    model = dataclasses.replace(model, class_token=False, pool="mean")
    assert (model.tokens, model.prefix_tokens) == (24, 0)


EXTREMES = [
    "-1", "0", "1", "1e308", "-1e308", "1e-320", "1e400", "nan", "-inf", "18446744073709551616", "9223372036854775807",
    "1099511627776", "1" + "0" * 400, "1e9h", "0.0000001s", "99999", "0x0", "1x99999", "1,1", "1e308,1e308", "nan,nan", "0,0,0",
    "1e-320,1e-320,1e-320", ",".join(["0.5"] * 10**5), "", "x" * 10**6, "\0", "\ud800",
]  # fmt: skip
"""Of numbers, sizes, times, lists and texts: what is the wrong type for a key is refused by it."""


@pytest.mark.parametrize(
    "key", [key for key in known_keys() if key.partition(".")[0] in SECTIONS and key not in ("run.init", "data.source")]
)
def test_row_52_any_key_with_an_extreme_value_is_planned_or_refused(key):
    """Within seconds, by one line."""
    base = {"data.source": "none", "data.images": 10**5, "data.classes": 10, "run.device": "cpu"}
    for value in EXTREMES:
        started = time.monotonic()
        try:
            overrides = base | {key: parse_value(key, value)}
            planned = make_plan(Request("pretrain", overrides, dry_run=True))
            json.dumps(planned.as_json(), allow_nan=False)
        except VitError as error:
            assert error.code in (2, 3, 6) and len(error.message) < 1000 and "\n" not in error.message, error.message[
                :300
            ]
        assert time.monotonic() - started < 20, value[:100]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.depth", "100000"), ("model.width", "1000000000"), ("model.heads", "1000000"), ("model.img_size", "1000000"),
        ("model.patch", "0"), ("model.patch", "-1"), ("run.threads", "100000"), ("data.workers", "1000000"),
        ("run.seed", "18446744073709551616"), ("train.epochs", "1e18"), ("train.steps", "9223372036854775808"),
        ("train.batch_size", "1099511627776"), ("train.accumulate", "1000000000"), ("optim.lr", "nan"), ("optim.lr", "inf"),
        ("optim.lr", "-1"), ("train.time_budget", "1e9h"), ("data.fraction", "1.5"), ("data.fraction", "-1e308"),
        ("data.classes", "2000000"),
    ],
)  # fmt: skip
def test_row_52_absurd_numbers_are_refused(key, value):
    base = {"data.source": "none", "data.images": 10**5, "data.classes": 10, "run.device": "cpu", "model.name": "ti/16"}
    with pytest.raises(UsageError) as caught:
        make_plan(Request("pretrain", base | {key: parse_value(key, value)}, dry_run=True))
    words = (key.partition(".")[2], "parameters", "tokens", "patch")
    assert any(word in caught.value.message for word in words)
