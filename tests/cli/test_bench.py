"""`vit bench`: the fields, the choices, the errors."""

from __future__ import annotations

import json
import re

import pytest

from conftest import Vit

QUICK = ("--img-size", "16", "--batch-size", "4", "--set", "bench.seconds=0.05")


def test_each_model_is_measured_in_each_mode(vit: Vit) -> None:
    done = vit("bench", "mu/4", "ViT-w32d2h2/8", *QUICK, "--json")
    assert done.code == 0, done.err
    tree = json.loads(done.out)
    assert set(tree) == {"results", "peak_tflops"}
    assert [(r["model"], r["mode"]) for r in tree["results"]] == [
        ("ViT-mu/4", "train"),
        ("ViT-mu/4", "infer"),
        ("ViT-w32d2h2/8", "train"),
        ("ViT-w32d2h2/8", "infer"),
    ]
    ((precision, peak),) = tree["peak_tflops"].items()
    assert peak > 0
    for result in tree["results"]:
        fields = {"model", "mode", "precision", "compile", "batch_size", "images_per_second", "tflops", "share_of_peak"}
        assert fields | {"replay", "launch_share", "memory_share", "bound"} <= set(result)
        assert result["launch_share"] is None and result["bound"] in ("memory", "arithmetic")
        assert (result["memory_share"] > result["share_of_peak"]) == (result["bound"] == "memory")
        assert (result["precision"], result["compile"], result["batch_size"]) == (precision, False, 4)
        assert 0 < result["share_of_peak"] == pytest.approx(result["tflops"] / peak)
    train, infer = tree["results"][:2]
    assert infer["images_per_second"] > train["images_per_second"]
    per_image = [r["tflops"] / r["images_per_second"] for r in (train, infer)]
    assert per_image[0] == pytest.approx(3 * per_image[1])


def test_the_table_names_what_was_asked_for(vit: Vit) -> None:
    done = vit("bench", "mu/4", *QUICK, "--precision", "fp32", "--set", "bench.modes=infer", "--quiet")
    assert done.code == 0, done.err
    assert done.err == ""
    header, row, peak = done.out.splitlines()
    assert header.split() == ["model", "mode", "batch", "images/s", "TFLOP/s", "of", "peak", "bound", "by"]
    assert re.fullmatch(r"ViT-mu/4 +infer +4 +[\d,.]+ +[\d.e-]+ +\d+ % +(memory|arithmetic)", row)
    assert peak.startswith("peak of a matrix product in fp32: ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["q/16"], "unknown model"),
        (["mu/4", "--img-size", "30"], "not a multiple of the patch size"),
        (["mu/4", "--set", "bench.modes=trian"], "not one of train, infer"),
        (["mu/4", "--set", "bench.seconds=0"], "must be above 0"),
        (["mu/4", "--set", "augment.erase=0.1"], "does not concern a benchmark"),
        (["mu/4", "--set", "train.batch_size=0"], "must be above 0"),
        (["mu/4", "--device", "tpu"], "not one of auto, cpu, cuda, mps"),
    ],
)
def test_what_does_not_fit_is_a_usage_error(vit: Vit, arguments: list[str], named: str) -> None:
    done = vit("bench", *arguments)
    assert done.code == 2
    assert named in done.err
    assert done.out == ""


def test_a_run_takes_no_setting_of_bench(vit: Vit) -> None:
    done = vit("pretrain", "--set", "bench.seconds=3", "--dry-run")
    assert done.code == 2
    assert "bench.seconds does not concern a run" in done.err


def test_what_does_not_fit_into_memory_is_a_lack_of_resources(vit: Vit) -> None:
    done = vit("bench", "mu/4", "--img-size", "2048", "--batch-size", "8000000", "--set", "bench.modes=infer")
    assert done.code == 6
    assert "out of memory" in done.err
