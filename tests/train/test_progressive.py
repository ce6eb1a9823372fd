"""Images that grow: which size a step has, what it costs, and that a run which does it resumes bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import train_run
from vitcli import flops
from vitcli.config import model_config
from vitcli.model.vit import ViT, init_weights
from vitcli.train.clock import Clock
from vitcli.train.progressive import size_at, slower, stages
from vitcli.weights.checkpoint import load

MODEL = model_config("mu/4", (32, 48), 3)


@given(st.floats(0.01, 1.0), st.integers(1, 9), st.integers(1, 9))
def test_stages_grow_in_whole_patches_up_to_the_size_of_the_model(low_res: float, rows: int, columns: int) -> None:
    model = dataclasses.replace(MODEL, img_size=(4 * rows, 4 * columns))
    found = stages(model, low_res)
    assert [until for until, _ in found] == sorted(until for until, _ in found)
    assert found[-1] == (1.0, model.img_size)
    for (_, one), (_, other) in itertools.pairwise(found):
        assert 4 <= one[0] <= other[0] and 4 <= one[1] <= other[1] and one[0] % 4 == one[1] % 4 == 0


def test_the_size_of_a_step() -> None:
    assert [size_at(MODEL, 0.5, p) for p in (0.0, 0.17, 0.19, 0.49, 0.5, 1.0)] == [
        (16, 24), (16, 24), (24, 36), (24, 36), (32, 48), (32, 48),
    ]  # fmt: skip
    assert size_at(MODEL, 0.0, 0.0) == (32, 48)
    assert slower(MODEL, (16, 24), (32, 48)) > 3.5


def test_a_change_of_speed_keeps_progress_and_the_budget() -> None:
    """Steps of 0.1 s become steps of 0.4 s: progress stays continuous, and the time used stays near the budget."""
    clock, step, seconds, last, slow = Clock(None, 200.0), 0, 0.0, 0.0, False
    while not clock.finished(step):
        if not slow and clock.progress(step) >= 0.3:
            slow = True
            assert clock.change_speed(step, seconds, 4.0) is not None
        seconds += 0.4 if slow else 0.1
        step += 1
        if clock.is_due(step, seconds):
            clock.estimate(step, seconds, 0.0)
        assert last <= clock.progress(step) + 1e-12
        last = clock.progress(step)
    assert slow and 195 <= seconds <= 202
    assert 0.25 <= clock.anchors[[a.seconds > 55 for a in clock.anchors].index(True)].progress <= 0.35
    assert Clock(10).change_speed(3, 1.0, 2.0) is None, "a number of steps needs no estimate"


@torch.no_grad()
def test_a_model_takes_the_other_size_with_interpolated_positions() -> None:
    model = ViT(MODEL).eval()
    init_weights(model, 0)
    torch.nn.init.normal_(model.head.weight)
    small = torch.randn(2, 3, 16, 24)
    with pytest.raises(ValueError, match="takes"):
        model(small)
    from vitcli.model.posemb import resize_position_embedding

    other = ViT(dataclasses.replace(MODEL, img_size=(16, 24))).eval()
    table = resize_position_embedding(model.pos_embed, MODEL.grid, other.config.grid, 1)
    other.load_state_dict(model.state_dict() | {"pos_embed": table})
    with model.taking((16, 24)):
        torch.testing.assert_close(model(small), other(small))
    with pytest.raises(ValueError, match="takes"):
        model(small)


def run(folder: Path, class_folders: Path, **values: Any) -> dict[str, Any]:
    return train_run("pretrain", data=str(class_folders), out=str(folder), model="mu/2", img_size=(12, 12), batch_size=8,
        train__low_res=0.6, train__log_every_steps=1, run__threads=1, device="cpu", **values,
    )[1]  # fmt: skip


def test_flops_count_the_size_of_each_step(tmp_path: Path, class_folders: Path) -> None:
    report = run(tmp_path / "run", class_folders, steps=25)
    model = dataclasses.replace(model_config("mu/2", (12, 12), 3))
    expected = 0
    for step in range(25):
        size = size_at(model, 0.6, step / 25)
        expected += flops.training_flops(dataclasses.replace(model, img_size=size), 8)
    assert math.isclose(report["train_flops"], expected, rel_tol=1e-9)


@pytest.mark.parametrize("stopped", [6, 14, 15, 16])
def test_a_run_that_stops_anywhere_goes_on_bit_for_bit(tmp_path: Path, class_folders: Path, stopped: int) -> None:
    """Also between the last small step and the first large one (step 15 of 25)."""
    run(tmp_path / "whole", class_folders, steps=25)

    class Stop(Exception):
        pass

    from vitcli.train import loop

    step = loop.Loop._step

    def stopping(self: Any, batch: Any) -> Any:
        if self.session.at.step == stopped:
            self.session.save("running")
            raise Stop
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(loop.Loop, "_step", stopping)
        run(tmp_path / "parts", class_folders, steps=25)
    report = run(tmp_path / "parts", class_folders, steps=25)
    assert report["resumed_from"] == stopped
    one, other = (load(str(tmp_path / name))[1] for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
