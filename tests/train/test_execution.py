"""Updates that are refused, recorded and replayed, compiled, and how the way of executing them is chosen."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitcli.classes import Class
from vitcli.config import Config, EvalConfig, apply, model_config
from vitcli.data.augment import mixed
from vitcli.data.batch import Batch
from vitcli.machine import Machine, Timing
from vitcli.model.classifier import build
from vitcli.train.clock import Clock
from vitcli.train.execution import Execution, Replay, chosen, compile_seconds, told
from vitcli.train.objectives.table import OBJECTIVES
from vitcli.train.step import Update, train_step
from vitcli.train.trainer import Trainer
from vitcli.weights import checkpoint
from vitcli.weights.describe import Description
from waits import Refusing, as_on_an_accelerator, on_tape

N, SIDE = 8, 16
OPTIMIZERS = ["adamw", "muon", "sgd", "lamb"]


def config_of(objective: str = "classify", optimizer: str = "muon", **values: Any) -> Config:
    model = replace(model_config("mu/4", (SIDE, SIDE), 3), depth=2, drop_path=0.3)
    if not OBJECTIVES[objective].needs_labels:
        model = model.with_head(0, kept=False)
    settings = {
        "train.objective": objective,
        "train.batch_size": N,
        "optim.name": optimizer,
        "optim.lr": 0.01,
        "optim.weight_decay": 0.1,
        "optim.clip": 1.0,
    }
    config = apply(Config(model=model), settings | {k.replace("__", "."): v for k, v in values.items()})
    return replace(config, augment=replace(config.augment, views=OBJECTIVES[objective].views))


def trainer_of(config: Config) -> Trainer:
    model = build(config.model)
    model.initialise(0)
    for head in model.heads:
        torch.nn.init.normal_(head.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return Trainer(model, config, Machine(torch.device("cpu"), False, 1))


def batch_of(config: Config, step: int, side: int = SIDE) -> Batch:
    numbers = torch.Generator().manual_seed(step)
    views = tuple(torch.randn(N, 3, side, side, generator=numbers) for _ in range(config.augment.views))
    whole = Batch(views, torch.randint(3, (N,), generator=numbers), torch.arange(N))
    return mixed(whole, config.augment, 0, torch.tensor([step]))[0]


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    groups = trainer.state()
    return {f"{group}/{name}": value.clone() for group, values in groups.items() for name, value in values.items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


# --- refusal -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_from_the_first_number_that_is_not_finite_nothing_changes_until_somebody_looks(
    optimizer: str, bad: float, deferred: bool
) -> None:
    config = config_of(optimizer=optimizer, train__ema=0.9)

    def run() -> None:
        trainer = trainer_of(config)
        assert trainer.optimizer.is_deferred == deferred
        for step in range(6):
            batch = batch_of(config, step)
            if step == 3:
                before = weights_of(trainer)
                batch.views[0][2, 0, 5, 5] = bad
            trainer.optimizer.set_factor(1.0)
            train_step(trainer, batch, step)
            trainer.after_update(step, step / 6)
            failure = trainer.watch.failure()
            assert (failure is None) == (step < 3)
        assert failure is not None and failure.step == 3
        assert not torch.isfinite(torch.tensor([failure.loss, failure.grad_norm])).all()
        now = weights_of(trainer)
        if not deferred:  # the loop looks before the average follows
            now = {name: value for name, value in now.items() if not name.startswith("average")}
        assert_same(now, {name: before[name] for name in now})

    if deferred:
        with as_on_an_accelerator():
            run()
    else:
        run()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_updates_that_nobody_waits_for_are_those_of_a_host_that_does(optimizer: str) -> None:
    """Rates are tensors there, and images that DropPath leaves out are computed."""
    config = config_of(optimizer=optimizer, train__ema=0.9, optim__layer_decay=0.8, augment__mixup=0.3)

    def after() -> tuple[list[float], dict[str, torch.Tensor]]:
        trainer, losses = trainer_of(config), []
        for step in range(5):
            trainer.optimizer.set_factor(1 - step / 5)
            losses.append(float(train_step(trainer, batch_of(config, step), step).loss))
            trainer.after_update(step, step / 5)
        return losses, weights_of(trainer)

    losses, waited = after()
    with as_on_an_accelerator():
        found_losses, found = after()
    assert found_losses == pytest.approx(losses, rel=1e-4)
    assert waited.keys() == found.keys()
    for name in waited:
        if name.startswith(("model/", "average/")) and name.endswith(
            "weight"
        ):  # a key's bias has a gradient of rounding alone
            assert float((found[name] - waited[name]).norm()) <= 2e-3 * float(waited[name].norm()) + 1e-6, name


def test_a_restored_state_goes_on_where_nobody_waits() -> None:
    for optimizer in OPTIMIZERS:
        config = config_of(optimizer=optimizer)
        with as_on_an_accelerator():
            whole, first, second = (trainer_of(config) for _ in range(3))
            for step in range(6):
                if step == 3:
                    second.restore(copy.deepcopy(first.state()))
                trainer = first if step < 3 else second
                for one in (whole, trainer):
                    one.optimizer.set_factor(0.7)
                    train_step(one, batch_of(config, step), step)
            assert_same(weights_of(second), weights_of(whole))


# --- replay --------------------------------------------------------------------------------------------------


def recording(trainer: Trainer) -> Callable[[Callable[[], Update]], Any]:
    """A tape, which unlike a CUDA graph computes while it records: the state is put back, in the memory where it lies."""

    def record(body: Callable[[], Update]) -> Any:
        kept = {id(t): (t, t.clone()) for group in trainer.state().values() for t in group.values()}
        watched = [(t, t.clone()) for t in (trainer.watch._step, trainer.watch._numbers, trainer.watch.admitted)]
        result = on_tape(body)
        with torch.no_grad():
            for tensor, before in [*kept.values(), *watched]:
                tensor.copy_(before)
        return result

    return record


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"distill"}))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_replayed_update_is_the_one_that_is_launched(objective: str, optimizer: str) -> None:
    """Steps, rates, batches, masks and refusals of the replay are its own, not those of the recording. Two sizes of images."""
    labelled = OBJECTIVES[objective].needs_labels
    config = config_of(
        objective, optimizer, augment__mixup=0.4 * labelled, augment__cutmix=1.0 * labelled, train__accumulate=2
    )
    with as_on_an_accelerator():
        launched, replayed = trainer_of(config), trainer_of(config)
        replay = Replay(replayed, recording(replayed), lambda body: body())
        for step in range(12):
            side = 8 if step in (4, 5, 6, 7, 10) and objective != "masked-patch" else SIDE
            batch = batch_of(config, step, side)
            if step == 11:
                batch.views[0][0] = float("nan")
            results = []
            for trainer, make in ((launched, train_step), (replayed, lambda _, *rest: replay(*rest))):
                trainer.optimizer.set_factor(1 - step / 12)
                with trainer.model.taking((side, side)):
                    update = make(trainer, batch, step)
                results.append([float(update.loss), float(update.grad_norm), *map(float, update.metrics.values())])
            if step < 11:
                assert results[0] == results[1], step
            assert_same(weights_of(replayed), weights_of(launched))
        assert replayed.watch.failure() is not None and replayed.watch.failure().step == 11  # type: ignore[union-attr]
        assert len(replay._recorded) == (1 if objective == "masked-patch" else 2)


# --- compiling -----------------------------------------------------------------------------------------------


def compile_each() -> None:
    """Raises where one is not one graph, or its loss another. Of a process without pytest, whose checks of shapes are wrapped around
    every function and cannot be compiled.
    """
    labelled = [("classify", loss) for loss in ("softmax", "sigmoid", "bce")]
    for objective, loss in [
        *labelled,
        *((name, "softmax") for name in OBJECTIVES if name not in ("classify", "distill")),
    ]:
        config = config_of(objective, augment__mixup=0.4 * (objective == "classify"), train__loss=loss)
        trainer, batch = trainer_of(config), batch_of(config, 0)
        noise = trainer.objective.draw(trainer.model, batch, 0, 0)
        with as_on_an_accelerator():
            expected = trainer.objective(trainer.model, batch, noise).loss
        torch.compiler.reset()
        compiled = torch.compile(trainer.objective, fullgraph=True, backend="aot_eager")
        found = compiled(trainer.model, batch, noise).loss
        found.backward()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert all(p.grad is not None for p in trainer.model.blocks.parameters()), objective
        print(objective, loss)
    with tempfile.TemporaryDirectory() as folder:
        compile_distillation(Path(folder))
    print("distill")


def compile_distillation(folder: Path) -> None:
    """Of a teacher that sees images at a size of its own."""
    config, batch = taught(folder), batch_of(config_of(), 0)
    for labels in ("soft", "hard"):
        trainer = trainer_of(apply(config, {"distill.labels": labels}))
        trainer.objective.begin(CLASSES)
        noise = trainer.objective.draw(trainer.model, batch, 0, 0)
        with as_on_an_accelerator():
            expected = trainer.objective(trainer.model, batch, noise).loss
        torch.compiler.reset()
        found = torch.compile(trainer.objective, fullgraph=True, backend="aot_eager")(trainer.model, batch, noise).loss
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


CLASSES = [Class(name) for name in ("green", "blue", "red")]


def taught(folder: Path) -> Config:
    """A run that learns from a checkpoint of other order and size."""
    model = replace(model_config("mu/4", (24, 24), 3), depth=1)
    made = build(model)
    made.initialise(3)
    for head in made.heads:
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(5))
    names = tuple(Class(name) for name in ("blue", "green", "red"))
    path = folder / "teacher.safetensors"
    described = Description(
        path=path, model=model, classes=names, eval=EvalConfig(), provenance={"command": "pretrain"}
    )
    checkpoint.save(described, dict(made.state_dict()))
    return config_of("distill", train__teacher=str(path))


def test_every_objective_compiles_into_one_graph() -> None:
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", "import test_execution; test_execution.compile_each()"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tests, tests / "train")))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(OBJECTIVES) + 2


# --- the choice ----------------------------------------------------------------------------------------------

GPU = Machine(torch.device("cuda"), True, 1, compile=None, replay=None)


@pytest.mark.parametrize(
    ("launched", "rest", "compiles", "replays"),
    [(0.9, 10_000, True, True), (0.9, 30, False, True), (0.1, 10_000, True, False), (0.1, 30, False, False)],
)
def test_what_is_left_open_is_chosen_by_what_was_measured(
    launched: float, rest: float, compiles: bool, replays: bool
) -> None:
    found = chosen(GPU, Timing(launched, 1.0), rest, 26.0, True)
    assert (found.compile, found.replay) == (compiles, replays)
    for asked in (True, False):
        fixed = chosen(replace(GPU, compile=asked, replay=asked), Timing(launched, 1.0), rest, 26.0, True)
        assert (fixed.compile, fixed.replay) == (asked, asked)
    assert chosen(GPU, Timing(launched, 1.0), rest, 26.0, False).replay is False


def test_compiling_pays_where_six_times_its_cost_is_to_come() -> None:
    large = replace(config_of(), model=model_config("L/16", (224, 224), 10))
    cost = compile_seconds(large)
    assert cost == pytest.approx(38)
    assert compile_seconds(replace(large, train=replace(large.train, low_res=0.5))) == pytest.approx(3 * 38), (
        "each size"
    )
    assert chosen(GPU, Timing(0, 1), 6.1 * cost, cost, True).compile is True
    assert chosen(GPU, Timing(0, 1), 5.9 * cost, cost, True).compile is False


def test_a_cpu_has_nothing_to_choose() -> None:
    config = config_of()
    trainer = trainer_of(config)
    heard: list[str] = []
    execution = Execution(trainer, train_step, lambda: 1e9, heard.append)
    for step in range(10):
        execution(batch_of(config, step), step)
    assert not heard and execution.replay is None and trainer.machine.compile is False


def test_what_cannot_be_recorded_is_launched_and_said() -> None:
    """An objective that draws by a number, as one from outside may."""
    config = config_of()
    with as_on_an_accelerator():
        launched, other = trainer_of(config), trainer_of(config)
        heard: list[str] = []
        execution = Execution(other, train_step, lambda: 1e9, heard.append)
        execution.replay = Replay(other, recording(other), lambda body: body())
        draw = other.objective.draw

        def by_number(model: Any, batch: Batch, seed: int, step: Any) -> Any:
            if not isinstance(step, int):
                raise TypeError("a number is wanted")
            return draw(model, batch, seed, step)

        other.objective.draw = by_number  # type: ignore[method-assign]
        for step in range(4):
            train_step(launched, batch_of(config, step), step)
            execution(batch_of(config, step), step)
        assert execution.replay is None and other.machine.replay is False
        assert len(heard) == 1 and "a number is wanted" in heard[0]
        assert_same(weights_of(other), weights_of(launched))


def test_the_choice_is_told_with_what_it_costs() -> None:
    both = told(replace(GPU, compile=True, replay=True), Timing(0.83, 1.0), 26.0)
    assert (
        both
        == "updates are compiled and replayed as one CUDA graph, which takes about 26 s once: launching was 83% of one"
    )
    assert told(replace(GPU, compile=False, replay=False), Timing(0.1, 1.0), 26.0).startswith(
        "updates are launched one"
    )


@pytest.mark.parametrize("choices", [(True, False), (False, True), (None, None)])
def test_a_resumed_run_takes_the_choice_of_its_state_or_chooses_where_there_was_none(choices: tuple[Any, Any]) -> None:
    saved = replace(GPU, compile=choices[0], replay=choices[1])
    kept = json.loads(json.dumps({"compile": saved.compile, "replay": saved.replay}))
    resumed = GPU.at("bf16", torch.get_num_threads(), kept["compile"], kept["replay"])
    assert (resumed.compile, resumed.replay) == choices
    on_cpu = Machine(torch.device("cpu"), False, 1, compile=choices[0], replay=choices[1])
    assert {key: on_cpu.as_json(64)[key] for key in kept} == kept


def test_costs_that_come_in_the_middle_of_a_run_do_not_shorten_it() -> None:
    """Ten launched updates, half a minute of compiling, and then ten times as fast."""
    clock, seconds = Clock(None, 200.0), 0.0
    clock.begin(0, 0.0, 0.0, 1e-3)
    settling = range(7, 11)
    for step in range(1, 60):
        seconds += 30 if step == 7 else 0.1 if step <= 7 else 0.01
        if step in settling:
            clock.forget(step, seconds)
        elif clock.is_due(step, seconds):
            clock.estimate(step, seconds, 0.0)
    assert clock.total(59) == pytest.approx((200 - 31) / 0.01, rel=0.1)
    assert clock.progress(59) < 0.02


def test_updates_settle_wherever_a_shape_is_new_to_what_is_compiled_or_recorded() -> None:
    config = config_of()
    with as_on_an_accelerator():
        trainer = trainer_of(config)
        execution = Execution(trainer, train_step, lambda: 1e9, lambda text: None)
        trainer.machine = replace(trainer.machine, replay=True)
        execution.replay = Replay(trainer, recording(trainer), lambda body: body())
        seen = []
        for step in range(16):
            side = SIDE if step < 8 else 8
            with trainer.model.taking((side, side)):
                execution(batch_of(config, step, side), step)
            seen.append(execution.settling)
        assert seen == [4, 3, 2, 1, 0, 0, 0, 0] * 2


def test_a_step_of_distillation_asks_nothing_of_the_device(tmp_path: Path) -> None:
    config = taught(tmp_path)
    trainer = trainer_of(config)
    trainer.objective.begin(CLASSES)
    batches = [batch_of(config, step) for step in range(2)]
    train_step(trainer, batches[0], 0)
    with Refusing():
        train_step(trainer, batches[1], 1)
