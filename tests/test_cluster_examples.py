"""examples/cluster: the scripts on this machine, Slurm's commands as stand-ins, the SkyPilot task as far as vit's own check of its command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "cluster"
RUN = [
    "pretrain",
    "--data",
    "digits",
    "--model",
    "mu/4",
    "--batch-size",
    "24",
    "--device",
    "cpu",
    "--precision",
    "fp32",
]
RUN += ["--set", "train.eval_every_seconds=0", "--json"]

STANDINS = {
    # the one node of this cluster is this machine; whoever is to be signalled is told by its process id
    "srun": '#!/usr/bin/env bash\necho $$ > step.pid\nexec env SLURM_NODEID=0 "$@"\n',
    "scontrol": '#!/usr/bin/env bash\nif [ "$1 $2" = "show hostnames" ]; then echo localhost; else echo "$*" >> scontrol.log; fi\n',
}


def environment(folder: Path, standins: dict[str, str], **more: str) -> dict[str, str]:
    """With these commands, and the environment's own torchrun, before all others."""
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    torchrun = f'#!/usr/bin/env bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    for name, text in {"torchrun": torchrun, **standins}.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    path = os.pathsep.join([str(bin_), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, **more}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def in_slurm(folder: Path, standins: dict[str, str], **more: str) -> dict[str, str]:
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1"}
    return environment(folder, standins, **job, **more)


def requeued(folder: Path) -> list[str]:
    log = folder / "scontrol.log"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.slow
def test_one_node(tmp_path: Path) -> None:
    command = [str(FOLDER / "one_node.sh"), *RUN, "--steps", "4", "--out", "run"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path, {}, PROCESSES="2"), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 4


@pytest.mark.slow
def test_several_nodes(tmp_path: Path) -> None:
    said = {"FIRST": "127.0.0.1", "ADDRESS": "127.0.0.1", "PORT": str(free_port()), "NODES": "2", "PROCESSES": "1"}
    started = [
        subprocess.Popen(
            [str(FOLDER / "several_nodes.sh"), *RUN, "--steps", "4", "--out", "run"],
            cwd=tmp_path,
            env=environment(tmp_path, {}, **said, NUMBER=str(number)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    said_by = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], said_by
    reports = [out for out, _ in said_by if out]
    assert len(reports) == 1 and json.loads(reports[0])["steps"] == 4


@pytest.mark.parametrize("script", ["one_node.sh", "several_nodes.sh", "slurm.sbatch"])
def test_without_arguments_a_script_says_what_it_needs(script: str, tmp_path: Path) -> None:
    said = {"FIRST": "127.0.0.1", "NODES": "2", "NUMBER": "0"}
    command, env = ["bash", str(FOLDER / script)], in_slurm(tmp_path, STANDINS, **said)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and f"usage: {'sbatch ' * (script == 'slurm.sbatch')}{script}" in done.stderr
    assert requeued(tmp_path) == []


@pytest.mark.slow
def test_a_slurm_job_is_saved_before_its_end_and_queued_until_the_run_is_done(tmp_path: Path) -> None:
    command = ["bash", str(FOLDER / "slurm.sbatch"), "run", *RUN, "--steps", "400"]
    env = in_slurm(tmp_path, STANDINS, PROCESSES="2")
    job = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.01)
        os.kill(int((tmp_path / "step.pid").read_text()), signal.SIGUSR1)  # as --signal=USR1 does, to torchrun
        _, err = job.communicate(timeout=120)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.communicate()
    status = json.loads((tmp_path / "run" / "state" / "status.json").read_text())
    assert (status["status"], status["code"]) == ("saved", 75) and 0 < status["step"] < 400, err
    assert job.returncode == 0 and requeued(tmp_path) == [f"requeue {env['SLURM_JOB_ID']}"], err
    again = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0 and len(requeued(tmp_path)) == 1, again.stderr
    report = json.loads(again.stdout.splitlines()[-1])
    assert (report["steps"], report["resumed_from"]) == (400, status["step"])


@pytest.mark.parametrize("before", ["", '{"status": "saved", "code": 75}'])
@pytest.mark.parametrize(
    ("said", "torchrun", "code"),
    [
        ('{"status": "saved", "code": 75, "step": 9}', 1, None),
        ('{"status": "failed", "code": 5}', 1, 5),
        ('{"status": "failed", "code": 6}', 1, 6),
        ('{"status": "running", "code": null}', 137, 1),
        ("", 2, 2),
        ("", 1, 1),
        ('{"status": "done", "code": 0}', 0, 0),
    ],
)
def test_a_slurm_job_is_queued_again_after_75_alone(
    said: str, torchrun: int, code: int | None, before: str, tmp_path: Path
) -> None:
    """`code` is what the job ends with, None where it is queued again; a 75 that an earlier job left is not this one's."""
    status = tmp_path / "run" / "state" / "status.json"
    status.parent.mkdir(parents=True)
    if before:
        status.write_text(before)
    writes = f"echo '{said}' > run/state/status.json" if said else ":"
    srun = f"#!/usr/bin/env bash\n{writes}\nexit {torchrun}\n"
    command, env = ["bash", str(FOLDER / "slurm.sbatch"), "run", *RUN], in_slurm(tmp_path, STANDINS | {"srun": srun})
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(requeued(tmp_path))) == ((0, 1) if code is None else (code, 0)), done.stderr


def test_the_skypilot_task_asks_vit_for_what_it_understands(tmp_path: Path) -> None:
    """Its `run`, with torchrun as a stand-in that says what it was asked for, and vit with --dry-run."""
    task = yaml.safe_load((FOLDER / "sky.yaml").read_text(encoding="utf-8"))
    assert task["num_nodes"] > 1 and task["resources"]["use_spot"]
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=60)
    said = {key: str(value) for key, value in task["envs"].items()} | {"DATA": "digits"}
    said |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    torchrun = '#!/usr/bin/env bash\nprintf "%s\\n" "$@" > "$ASKED"\nwhile [ "$1" != -m ]; do shift; done\n'
    torchrun += f'exec {sys.executable} "$@" --dry-run --json\n'
    env = environment(
        tmp_path, {"torchrun": torchrun}, **said, SKYPILOT_NUM_GPUS_PER_NODE="8", ASKED=str(tmp_path / "asked")
    )
    done = subprocess.run(["bash", "-euc", task["run"]], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] > 0
    asked = (tmp_path / "asked").read_text().split()
    for option, value in {
        "--nnodes": "2",
        "--nproc-per-node": "8",
        "--rdzv-endpoint": "10.0.0.1:29400",
        "--rdzv-conf": "is_host=0",
        "--max-restarts": "0",
        "--out": task["envs"]["OUT"],
    }.items():
        assert asked[asked.index(option) + 1] == value
    batch_size = int(asked[asked.index("--batch-size") + 1])
    assert batch_size % (task["num_nodes"] * int(task["resources"]["accelerators"].partition(":")[2])) == 0


def test_the_page_names_every_file() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    others = {path.name for path in FOLDER.iterdir()} - {"README.md"}
    assert others and all(f"]({name})" in page for name in others)
