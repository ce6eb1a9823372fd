"""What a plan says of time and money: the arithmetic, the file of `vit bench` that it goes by, and a real run beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Vit, run_vit
from vitcli.config import ScaleConfig
from vitcli.errors import UsageError
from vitcli.train.estimate import Measured, is_same, nearest, of_flops, read_bench

MODEL = "ViT-w32d2h2/4"
ROW = {
    "model": MODEL, "img_size": [12, 12], "mode": "train", "precision": "fp32", "batch_size": 8, "images_per_second": 500.0,
    "tflops": 0.001,
}  # fmt: skip
PLAN = ("pretrain", "--data", "none", "--set", "data.images=1000", "--set", "data.classes=1000", "--model", MODEL, "--img-size", "12",
        "--device", "cpu", "--batch-size", "10", "--epochs", "2", "--set", "train.low_res=0", "--dry-run", "--json")  # fmt: skip


def measured(**values: Any) -> Measured:
    usual: dict[str, Any] = {"model": MODEL, "img_size": (12, 12), "precision": "fp32", "batch_size": 8}
    return Measured(**usual | {"images_per_second": 500.0, "flops": 2e6} | values)


def bench_file(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "bench.json"
    path.write_text(json.dumps({"results": list(rows), "peak_tflops": {"fp32": 0.1}}))
    return path


rates, numbers = st.floats(1e-3, 1e6), st.integers(1, 10**10)


@given(
    images=numbers, rate=rates, flops=st.floats(1e3, 1e15), devices=st.integers(1, 10**4), price=st.floats(0.01, 100)
)
def test_of_the_same_images_seconds_are_their_number_over_their_rate(images, rate, flops, devices, price):
    found = of_flops(
        images * flops, measured(images_per_second=rate, flops=flops), ScaleConfig(devices=devices, price=price)
    )
    assert found.seconds == pytest.approx(images / rate / devices)
    assert found.device_hours == pytest.approx(images / rate / 3600)
    assert found.price == pytest.approx(found.device_hours * price)


@given(
    total=st.floats(1e6, 1e22),
    flops=st.floats(1e3, 1e15),
    rate=rates,
    devices=st.integers(1, 10**4),
    k=st.integers(2, 50),
)
def test_the_estimate_scales(total, flops, rate, devices, k):
    """With the FLOPs of the run and against the bench's speed; devices share the time and leave their hours as they are."""
    row, scale = measured(images_per_second=rate, flops=flops), ScaleConfig(devices=devices)
    one = of_flops(total, row, scale)
    assert of_flops(k * total, row, scale).seconds == pytest.approx(k * one.seconds)
    assert of_flops(total, measured(images_per_second=k * rate, flops=flops), scale).seconds == pytest.approx(
        one.seconds / k
    )
    assert of_flops(total, measured(images_per_second=rate, flops=k * flops), scale).seconds == pytest.approx(
        one.seconds / k
    )
    more = of_flops(total, row, ScaleConfig(devices=k * devices))
    assert (more.seconds, more.device_hours) == (pytest.approx(one.seconds / k), pytest.approx(one.device_hours))
    assert one.price is None


def test_the_row_of_the_model_is_taken_before_that_of_the_same_cost():
    own, larger, other = measured(), measured(img_size=(24, 24), flops=8e6), measured(model="ViT-mu/4", flops=4e6)
    rows = [other, larger, own]
    assert nearest(rows, MODEL, (12, 12), 2e6) is own
    assert nearest(rows, MODEL, (24, 24), 8e6) is larger
    assert nearest(rows, MODEL, (20, 20), 7e6) is larger
    assert nearest([other, larger], "ViT-B/16", (224, 224), 9e6) is larger
    assert is_same(own, MODEL, (12, 12), 2.01e6) and not is_same(own, MODEL, (12, 12), 3e6)
    assert not is_same(own, MODEL, (24, 24), 2e6) and not is_same(own, "ViT-mu/4", (12, 12), 2e6)
    assert is_same(measured(img_size=None), MODEL, (12, 12), 2e6)  # a file that does not say the size


# --- the command -------------------------------------------------------------------------------------------


def test_without_a_bench_nothing_is_estimated(in_process: Vit) -> None:
    done = in_process(*PLAN, "--set", "scale.price=2", "--set", "scale.devices=8")
    assert done.code == 0, done.err
    assert not {"seconds", "device_hours", "price"} & done.json.keys()
    assert "scale.devices and scale.price: no estimate without scale.bench" in done.err


def test_a_plan_has_time_and_price(in_process: Vit, tmp_path: Path) -> None:
    own = in_process(*PLAN).json
    each = own["train_flops"] / own["images_seen"]
    path = bench_file(tmp_path, ROW | {"tflops": 500 * each / 1e12}, {"mode": "infer"})
    done = in_process(*PLAN, "--set", f"scale.bench={path}", "--set", "scale.devices=4", "--set", "scale.price=3")
    assert done.code == 0, done.err
    assert done.json["seconds"] == pytest.approx(2000 / 500 / 4)
    assert done.json["device_hours"] == pytest.approx(2000 / 500 / 3600)
    assert done.json["price"] == pytest.approx(3 * 2000 / 500 / 3600)
    assert "perfect scaling is assumed" in done.err and "not counted: " in done.err and "by FLOPs" not in done.err
    shown = in_process(*PLAN[:-1], "--set", f"scale.bench={path}")
    assert "time        about 4 s, 0.00111 device hours" in shown.out and "price" not in shown.out
    assert "perfect scaling" not in shown.err


def test_of_another_model_flops_are_converted_and_that_is_said(in_process: Vit, tmp_path: Path) -> None:
    own = in_process(*PLAN).json
    path = bench_file(tmp_path, ROW | {"model": "ViT-mu/4"})
    done = in_process(*PLAN, "--set", f"scale.bench={path}")
    assert done.json["seconds"] == pytest.approx(own["train_flops"] / 1e9)
    assert f"which is not this run's {MODEL} at 12 px" in done.err and "converted by FLOPs" in done.err


def test_a_time_budget_is_its_own_estimate(in_process: Vit, tmp_path: Path) -> None:
    path = bench_file(tmp_path, ROW)
    plan = [a for a in PLAN if a not in ("--epochs", "2")]
    done = in_process(*plan, "--time-budget", "1h", "--set", f"scale.bench={path}", "--set", "scale.devices=2")
    assert done.code == 0, done.err
    assert (done.json["seconds"], done.json["device_hours"], done.json["price"]) == (3600, 2, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"), ("{", "is not JSON"), ("[" * 100_000, "is not JSON"), ("[]", "no list of results"),
        ('{"error": {"code": 2}}', "no list of results"), ('{"results": [1]}', "no list of results"),
        ('{"results": []}', "no row of mode train"), ('{"results": [{"mode": "infer"}]}', "no row of mode train"),
        ('{"results": [{}]}', "no model"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_a_usage_error(in_process: Vit, tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(content)
    done = in_process(*PLAN, "--set", f"scale.bench={path}")
    assert done.code == 2
    assert said in done.err and str(path) in done.err and "vit bench MODEL --json" in done.err


def test_a_file_that_is_not_there_is_a_usage_error(in_process: Vit, tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        done = in_process(*PLAN, "--set", f"scale.bench={path}")
        assert done.code == 2 and "cannot be read" in done.err


@given(
    name=st.sampled_from([name for name in ROW if name != "img_size"]),
    value=st.sampled_from([None, True, [], {}, 0, 0.0, -1, float("nan"), float("inf"), 10**400, 1e300, 1e-300, "x"]),
)
def test_every_field_of_a_row_is_looked_at(tmp_path_factory, name, value):
    """What is no text, number or speed is refused by its name; what is one is taken, and finite."""
    path = bench_file(tmp_path_factory.mktemp("bench"), ROW | {name: value})
    try:
        (row,) = read_bench(str(path))
    except UsageError as error:
        assert name in error.message or (name, value) == ("mode", "infer")
    else:
        assert value == "x" and name in ("model", "precision")
        assert row.flops == pytest.approx(2e6)


@pytest.mark.slow
def test_a_bench_foretells_a_run(tmp_path: Path) -> None:
    """Within a factor: the run reads, saves and evaluates as well, and other processes share the machine."""
    model = (
        "ViT-w64d3h4/2",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--img-size",
        "8",
        "--batch-size",
        "64",
        "--set",
        "run.threads=1",
    )
    bench = run_vit("bench", *model, "--set", "bench.seconds=1", "--set", "data.classes=10", "--json", cwd=tmp_path)
    assert bench.code == 0, bench.err
    (tmp_path / "bench.json").write_text(bench.out)
    run = (
        "pretrain",
        "--model",
        *model,
        "--steps",
        "30",
        "--json",
        "--set",
        "optim.name=adamw",
        "--set",
        "train.low_res=0",
    )
    plan = run_vit(*run, "--set", "scale.bench=bench.json", "--dry-run", cwd=tmp_path)
    assert plan.code == 0, plan.err
    assert "by FLOPs" not in plan.err
    done = run_vit(*run, "--set", "scale.bench=bench.json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert 0.1 * done.json["seconds"] < plan.json["seconds"] < 3 * done.json["seconds"]
