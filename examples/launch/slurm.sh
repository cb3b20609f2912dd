#!/bin/bash
# sbatch examples/launch/slurm.sh runs/cluster mnist --max_steps 100000 --shard true
# The folder of the run, which all nodes see, and what xhat train is given. Two nodes of eight GPUs, a process for each. Two minutes
# before the time is up the step under way is finished and its state saved; the job goes back into the queue, and on from there. So it
# does after a node has failed. What ends with an error stays ended.
#SBATCH --job-name=xhat
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -eu
run=$1
shift
words=("$@" --run "$run")
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -e "$run/config.yaml" ]; then
    words=(--run "$run" --resume)
fi
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
asked=
trap 'asked=yes; kill -TERM "$step"' TERM
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:29500" -m xhat -- train "${words[@]}" &
step=$!
status=0
wait "$step" || status=$?
if [ -n "$asked" ]; then
    wait "$step" || status=$? # the signal has ended the first wait, not the training
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
