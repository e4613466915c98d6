"""One of two processes with four devices each that are one run; run as a program by test_distributed.

Measures an update of each kind against the same update on one device, then trains, evaluates, saves, loses its last
checkpoint and goes on from the one before.

    python tests/two_processes.py WORKDIR        with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
"""

import io
import json
import shutil
import sys
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from sharded_updates import compare, measure
from tiny_run import tiny

from longshot_jax.checkpoints.checkpoint import Checkpoints
from longshot_jax.config.model import MeshConfig
from longshot_jax.distributed import join_processes
from longshot_jax.model.sharding import AXES, make_mesh
from longshot_jax.train import train


def prints(folder):
    """Fingerprints of the newest checkpoint, and its step."""
    with Checkpoints.reader(folder) as checkpoints:
        step = checkpoints.steps[-1]
        _, arrays = checkpoints._read_metadata(step)
    return step, {name: array.get("fingerprint") for name, array in arrays.items()}


def main(folder: Path) -> None:
    alone = jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.local_devices()[:1])
    report = {"devices": len(jax.devices()), "local": len(jax.local_devices())}
    report["updates"] = compare([measure(alone), measure(make_mesh(MeshConfig(2, 2, 2)))])[1]

    run = tiny(mesh__data=2, mesh__fsdp=4, ppo__iterations=2, evaluation__every_iterations=0, ppo__minibatches=1,
               evaluation__questions=12, checkpoint__every=1, curriculum__stages=(1,),
               curriculum__max_steps_per_stage=2)  # fmt: skip
    result = train(run, folder, io.StringIO())
    report["phases"] = sorted(result.phases)
    step, first = prints(folder)
    multihost_utils.sync_global_devices("read")
    if jax.process_index() == 0:
        shutil.rmtree(folder / "checkpoints" / str(step))
    multihost_utils.sync_global_devices("removed")
    before, _ = prints(folder)
    train(run, folder, io.StringIO())
    again, second = prints(folder)
    report["resumed"] = [before, again, step]
    report["same"] = first == second
    print(json.dumps(report))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_disable_most_optimizations", True)
    join_processes()
    main(Path(sys.argv[1]))
