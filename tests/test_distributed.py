"""Two processes are one run: the same updates, training, checkpoints; and ending a run that is told to end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from longshot_jax import distributed
from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.distributed import Preemption, join_processes, on_primary
from longshot_jax.errors import UserError

TESTS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}


def test_one_process_needs_nothing(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")  # of Kubernetes, also for a pod alone
    join_processes()
    assert jax.process_count() == 1 and on_primary(lambda: 3) == 3
    with pytest.raises(UserError, match="mine"):
        on_primary(lambda: (_ for _ in ()).throw(UserError("mine")))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1"}, "JAX_NUM_PROCESSES and JAX_PROCESS_ID are not: set all three, or none"),
        ({"JOB_COMPLETION_INDEX": "1"}, "this is pod '1' of an indexed job"),
        ({"JAX_NUM_PROCESSES": "2"}, "must both be numbers: they are '2' and None"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "x"}, "must both be numbers"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS is not: set it to host:port"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID 2 must be less than"),
        ({"JAX_COORDINATOR_ADDRESS": "node1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "is 'node1': set it to host:port"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:abc", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "such as node1:55527"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, "process 0 of this run is not found at localhost:1"),
        ({"JAX_NUM_PROCESSES": "9" * 5000, "JAX_PROCESS_ID": "0"}, "must both be numbers: they are '9999"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS is 'many': the launcher must set it to a number"),
        ({"OMPI_COMM_WORLD_SIZE": "9" * 5000}, "OMPI_COMM_WORLD_SIZE is '9999"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "do not find each other"),
    ],
)  # fmt: skip
def test_incomplete_launches_are_one_sentence(monkeypatch, given, sentence):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_SECONDS_TO_MEET", 0)
    with pytest.raises(UserError) as error:
        join_processes()
    assert sentence in str(error.value) and len(str(error.value)) < 400


def test_a_signal_is_noticed_once_the_update_is_done():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested()
    assert signal.getsignal(signal.SIGTERM) is before


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.long  # never seen to pass as a whole; its updates were, by hand
@pytest.mark.law
def test_two_processes_train_like_one(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "two_processes.py"), str(tmp_path / "run")],
            env={**ENVIRONMENT, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=1500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, said) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, said[-3000:]
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in outputs)
    assert first == second
    assert first["devices"] == 8 and first["local"] == 4 and first["phases"] == ["curriculum", "ppo"]
    updates = first["updates"]
    assert updates["loss"] < 1e-5 and updates["policy_loss"] < 1e-5, updates
    assert updates["gradient"] < 1e-5 < updates["gradient_size"], updates
    assert updates["policy_gradient"] < 1e-5 < updates["policy_gradient_size"], updates
    before, again, last = first["resumed"]
    assert before < again == last and first["same"]
    # One process with one device reads what two processes with four devices each have written, and checks its bits.
    with Checkpoints.reader(tmp_path / "run") as checkpoints:
        written = checkpoints._read_metadata(last)[1]
        template = {
            name.removeprefix("trainable."): jax.ShapeDtypeStruct(array["shape"], array["dtype"])
            for name, array in written.items()
            if name.startswith("trainable.")
        }
        restored, _ = checkpoints.restore_partial(template, "trainable", last)
    assert len(jax.tree.leaves(restored)) > 10
    events = list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert len(events) == 2, "the first process alone writes, once for each start"


@pytest.mark.slow
def test_told_to_end_a_run_saves_and_the_same_command_goes_on(tmp_path):
    def start(folder):
        return subprocess.Popen(
            [sys.executable, str(TESTS / "preempted_run.py"), str(folder)],
            env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    process = start(tmp_path / "told")
    until = time.monotonic() + 600
    while not list((tmp_path / "told").glob("checkpoints/*/metadata")) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 143 and "stopped: the checkpoint of step" in said, said[-2000:]
    assert "Traceback" not in said and "start the same command again to continue" in said
    with Checkpoints.reader(tmp_path / "told") as checkpoints:
        stopped = checkpoints.steps[-1]
    assert f"step {stopped} is written" in said
    process = start(tmp_path / "told")
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said[-2000:]
    with Checkpoints.reader(tmp_path / "told") as checkpoints:
        assert checkpoints.steps[-1] > stopped
