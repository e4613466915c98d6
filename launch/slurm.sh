#!/usr/bin/env bash
# One run on many hosts of a SLURM cluster: one process for each GPU, which jax.distributed joins by itself.
#
#   sbatch launch/slurm.sh --config configs/multi.py --config.mesh.data=2 --workdir runs/multi
#
# The log is slurm-JOB.log in the folder of this command: SLURM opens it before anything of this file runs, and makes no folder.
# The workdir must lie on a file system that all hosts share. Before the time limit, or when the job is preempted,
# SLURM sends SIGTERM; the run saves its state, ends with code 143, and is put back into the queue. The same
# arguments then go on from that checkpoint.

#SBATCH --job-name=longshot
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# SIGTERM five minutes before the limit: a checkpoint of 160 GB on a shared disk takes its time.
#SBATCH --signal=TERM@300

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch}"

# Why each of these: docs/performance.md, "XLA flags".
unset XLA_PYTHON_CLIENT_MEM_FRACTION # the old name; JAX refuses to start where both are set
export XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION:-0.9}"
export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}"

# srun does not inherit this one from sbatch.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

status=0
srun --kill-on-bad-exit=0 .venv/bin/python scripts/train.py "$@" || status=$?
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
