#!/bin/bash
# Train on several machines of a Slurm cluster: sbatch examples/cluster/slurm.sh RECIPE
# The folder it is started in, with .venv and .danlu, must be on a disk that all machines share.
#SBATCH --job-name=danlu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=INT@120
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # processes that are started again must not find the addresses of dead ones
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / 8))

# One torchrun a machine; INT two minutes before the end lets every process save, and a requeued job goes on from there.
srun --kill-on-bad-exit=1 .venv/bin/torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
  --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
  --no-python .venv/bin/danlu train "$1"
