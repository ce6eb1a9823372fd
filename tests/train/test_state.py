from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitcli.errors import CheckpointError
from vitcli.train import state
from vitcli.train.state import Saved


def saved(step: int) -> Saved:
    generator = torch.Generator().manual_seed(step)
    return Saved(
        step,
        {"model": {"a": torch.randn(3, 4, generator=generator)}, "optimizer": {"a/step": torch.tensor(float(step))}},
        {"x": step},
    )


def steps(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("step-*"))


def test_round_trip_and_the_two_newest_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        state.save(tmp_path, saved(step))
    assert steps(tmp_path) == ["step-000000020", "step-000000030"]
    assert (tmp_path / "latest").read_text().strip() == "step-000000030"
    found, faults = state.newest(tmp_path)
    assert found is not None and faults == []
    assert found.step == 30 and found.values == {"x": 30}
    assert torch.equal(found.groups["model"]["a"], saved(30).groups["model"]["a"])
    assert torch.equal(found.groups["optimizer"]["a/step"], torch.tensor(30.0))


def test_a_flipped_bit_sends_resume_to_the_older_step(tmp_path: Path) -> None:
    state.save(tmp_path, saved(10))
    state.save(tmp_path, saved(20))
    file = tmp_path / "step-000000020" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found, faults = state.newest(tmp_path)
    assert found is not None and found.step == 10
    assert len(faults) == 1 and "sha256" in faults[0]
    state.save(tmp_path, saved(20))  # the damaged folder is out of the way
    assert state.newest(tmp_path)[0].step == 20  # type: ignore[union-attr]


def test_a_folder_that_a_kill_left_is_named_and_ignored(tmp_path: Path) -> None:
    state.save(tmp_path, saved(10))
    partial = tmp_path / ".writing-0123abcd-step-000000020"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    found, faults = state.newest(tmp_path)
    assert found is not None and found.step == 10
    assert any(partial.name in fault for fault in faults)


def test_a_process_that_only_reads_takes_the_step_it_was_told_and_leaves_the_rest(tmp_path: Path) -> None:
    """What the one that writes is writing meanwhile is no leftover, nor is a step that is newer, or broken, any of its business."""
    state.save(tmp_path, saved(10))
    state.save(tmp_path, saved(20))
    (tmp_path / ".writing-0123abcd-step-000000030").mkdir()
    (tmp_path / "step-000000020" / "model.safetensors").write_bytes(b"half")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert state.named(tmp_path, 10).values == {"x": 10}
    for step in (20, 30):  # one that is broken, one that this machine does not see
        with pytest.raises(CheckpointError):
            state.named(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_nothing_saved(tmp_path: Path) -> None:
    assert state.newest(tmp_path) == (None, [])
