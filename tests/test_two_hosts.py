"""Two hosts that train as one, and one of them dies: network namespaces with a cable between them, torchrun in each, a folder that both see.

Namespaces, cable and processes go when a test ends, however it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import run_vit
from vitcli import runs

TIMEOUT = 8
"""Seconds of VIT_WORLD_TIMEOUT: on busy cores one process starts so much later than the other."""
STEPS, EVERY = 300, 20
"""How long the run is, and after how many updates it is saved."""
VALUES = {
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.lr": 0.02,
    "augment.mixup": 0.4,
    "model.drop_path": 0.1,
    "train.ema": 0.9,
    "train.eval_every_seconds": 0,
    "train.save_every_steps": EVERY,
}
RUN = ["pretrain", "--data", "digits", "--model", "mu/4", "--batch-size", "24", "--steps", str(STEPS), "--out", "run"]
RUN += ["--device", "cpu", "--precision", "fp32", "--json"]
RUN += [word for name, value in VALUES.items() for word in ("--set", f"{name}={value}")]


class Host:
    """A network namespace with one address, at one end of the cable."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.address, self.cable = f"10.77.0.{number}", f"cable{number}"
        self.agents: list[subprocess.Popen[bytes]] = []

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.name, *arguments], check=True, capture_output=True)

    def start(self, cwd: Path) -> subprocess.Popen[bytes]:
        """torchrun's agent, which starts one process; what both say is added to host-N.out and host-N.err.

        Which host has the rendezvous is said, since they cannot be told apart by the machine's name. Nor does torch share the agents'
        own store with the processes: where it does, the agent of a new host waits for an address that is written once, in the first
        round (torch 2.13, torch/distributed/elastic/rendezvous/dynamic_rendezvous.py, next_rendezvous).
        """
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "2", "--local-addr", self.address]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29400", "--rdzv-id", "run"]
        command += ["--rdzv-conf", f"is_host={int(self.number == 1)},keep_alive_interval=1", "-m", "vitcli", *RUN]
        said = {"GLOO_SOCKET_IFNAME": self.cable, "VIT_WORLD_TIMEOUT": str(TIMEOUT)}
        said |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with (cwd / f"host-{self.number}.out").open("ab") as out, (cwd / f"host-{self.number}.err").open("ab") as err:
            self.agents.append(subprocess.Popen(command, cwd=cwd, env={**os.environ, **said}, stdout=out, stderr=err))
        return self.agents[-1]

    def processes(self) -> set[int]:
        listed = subprocess.run(["ip", "netns", "pids", self.name], check=True, capture_output=True, text=True)
        return {int(pid) for pid in listed.stdout.split()}

    def kill(self) -> None:
        """Every process, with -9."""
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for agent in self.agents:
                agent.wait()

    def lose_power(self) -> None:
        """Nobody hears that its processes are gone, since the cable is dead by then."""
        self.ip("link", "set", self.cable, "down")
        self.kill()

    def boot(self) -> None:
        self.ip("link", "set", self.cable, "up")


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two namespaces and the cable, or a skipped test where they cannot be had."""
    prefix = f"vit-{uuid.uuid4().hex[:8]}"
    pair = Host(f"{prefix}-1", 1), Host(f"{prefix}-2", 2)
    one, two = pair
    made: list[Host] = []
    try:
        try:
            for host in pair:
                subprocess.run(["ip", "netns", "add", host.name], check=True, capture_output=True)
                made.append(host)
            one.ip("link", "add", one.cable, "type", "veth", "peer", "name", two.cable, "netns", two.name)
            for host in pair:
                host.ip("link", "set", "lo", "up")
                host.ip("address", "add", f"{host.address}/24", "dev", host.cable)
                host.boot()
        except FileNotFoundError:
            pytest.skip("two hosts need the command ip (iproute2)")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"two hosts need root and a kernel with network namespaces: {error.stderr.decode().strip()}")
        yield pair
    finally:
        for host in made:
            host.kill()
            for agent in host.agents:
                agent.wait()
            subprocess.run(["ip", "netns", "delete", host.name], check=True)


def until(what: Callable[[], object], seconds: float = 120) -> float:
    """Wait for it; the seconds that it took."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < seconds
        time.sleep(0.01)
    return time.monotonic() - started


def end(pair: tuple[Host, Host], cwd: Path) -> None:
    """The agents that were started last end well."""
    codes = [host.agents[-1].wait(timeout=120) for host in pair]
    assert codes == [0, 0], "".join((cwd / f"host-{host.number}.err").read_text() for host in pair)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two hosts that nothing happened to."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    with two_hosts() as pair:
        for host in pair:
            host.start(cwd)
        end(pair, cwd)
    return cwd / "run"


def test_two_hosts_are_one_process(undisturbed: Path, tmp_path: Path) -> None:
    alone = run_vit(*RUN, cwd=tmp_path)
    assert alone.code == 0, alone.err
    first, second = (undisturbed.with_name(f"host-{number}.out").read_text() for number in (1, 2))
    assert json.loads(first)["images_seen"] == alone.json["images_seen"] and second == ""
    one, two = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", undisturbed))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("number", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_host_without_power(number: int, undisturbed: Path, tmp_path: Path) -> None:
    """The process of the other host ends, in time, and nothing of the dead one's is in the way: started again, the run has the bits of one
    that nothing happened to. With the first host the rendezvous goes too, and so the other's agent; without the second it waits for a new one.
    """
    state = tmp_path / "run" / "state"
    with two_hosts() as pair:
        dead, other = pair[number - 1], pair[2 - number]
        for host in pair:
            host.start(tmp_path)
        until(lambda: len(list(state.glob("step-*"))) == 2)
        working = other.processes() - {other.agents[0].pid}
        assert len(working) == 1
        dead.lose_power()
        # it hears nothing, and does not wait for ever
        assert until(lambda: not working & other.processes()) < 2 * TIMEOUT
        assert "another process of this run has ended" in (tmp_path / f"host-{other.number}.err").read_text()
        step = max(int(path.name.removeprefix("step-")) for path in state.glob("step-*"))
        assert 0 < step < STEPS
        # nobody holds the run: not the first process, whether it was killed or ended by itself
        assert not runs.is_held(tmp_path / "run")
        status = json.loads((state / "status.json").read_text())
        dead.boot()
        if number == 1:
            assert (status["status"], status["code"]) == ("running", None) and runs.killed(tmp_path / "run")
            assert other.agents[0].wait(timeout=60) != 0
            other.start(tmp_path)
        else:
            assert (status["status"], status["code"]) == ("failed", 6) and other.agents[0].poll() is None
        dead.start(tmp_path)
        end(pair, tmp_path)
        report = json.loads((tmp_path / "host-1.out").read_text().splitlines()[-1])
        assert report["resumed_from"] == step and report["steps"] == STEPS
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
