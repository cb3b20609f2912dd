#!/bin/sh
# Train on all GPUs of this machine, or on so many processes of its CPU: sh torchrun.sh 4 mnist --run runs/four --max_steps 1000
# On several machines the same command runs on each of them, with MACHINES, RANK (0, 1, ...) and HEAD (the first one's address).
# What stands after the number is xhat train's own. A killed run goes on with the same line and --resume, on any number of processes.
set -eu
processes=$1
shift
exec torchrun --nnodes "${MACHINES:-1}" --node-rank "${RANK:-0}" --nproc-per-node "$processes" \
    --rdzv-backend c10d --rdzv-id xhat --rdzv-endpoint "${HEAD:-localhost:0}" -m xhat -- train "$@"
