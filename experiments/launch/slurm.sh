#!/bin/bash
# A training run under Slurm, one process for each GPU; whatever stands after the script goes to experiments.train:
#
#     sbatch --nodes 2 experiments/launch/slurm.sh stage3 --workdir runs/3 --start runs/2 --data.sources t2i/ 1
#
# Work directory and data lie where all nodes see them. Two minutes before its time is over the run is told, saves and
# ends; it then goes back into the queue, where the same command goes on with it.
# DRY_RUN=1 bash experiments/launch/slurm.sh ... prints the command alone.
#SBATCH --job-name=internvlu
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

command=(srun --kill-on-bad-exit=1 python -m experiments.train "$@" --distributed)
if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "${command[@]}" && echo
    exit
fi
said=$(mktemp)
trap 'rm -f "$said"' EXIT
"${command[@]}" 2>&1 | tee "$said"
if grep -q '^stopped at step' "$said"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
