#!/bin/bash
# sbatch examples/launch/slurm.sh --model deit_s --data /shared/IMAGES --output /shared/castled/deit_s
#SBATCH --job-name=castling
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@300
# Five minutes before the end every process is told to stop: the step is finished and the state saved, and the same
# command with --resume goes on from there. Data and output are folders that all nodes see.
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node 4 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
  -m castling_convert convert "$@"
