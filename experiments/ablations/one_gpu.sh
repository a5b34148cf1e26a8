#!/bin/bash
# A study on one GPU, its arms in several processes that share it: `representations` at budget `gpu`, or another one.
#
#   experiments/ablations/one_gpu.sh DIR [SECONDS [STUDY BUDGET [ARMS ...]]]
#   experiments/ablations/one_gpu.sh DIR 0 discrete gpu-long decoupled shared-discrete
#
# Each ARMS is a process: the names of its arms, one after another, with spaces between them ("shared-latent twin").
# Without any there are three, for the joint arms of `representations`, each with its controls.
#
# After SECONDS (default: no limit) the processes are told to save and stop, and the report is of what there is; the same
# command goes on. What a run needs beforehand (parts, pool) is made first where it is not in DIR: that takes CPU time
# and next to no GPU, so do it elsewhere, with `--until parts`, where GPU time is short.
#
# Compiling is most of a short run's start: products by cuBLAS alone leave little to tune, and a cache that is kept
# (JAX_COMPILATION_CACHE_DIR) spares it the next time.
set -u
dir=${1:?"the work directory is missing: experiments/ablations/one_gpu.sh DIR [SECONDS]"}; seconds=${2:-0}
study=${3:-representations}; budget=${4:-gpu}
export XLA_CLIENT_MEM_FRACTION=${XLA_CLIENT_MEM_FRACTION:-0.28}
export XLA_FLAGS="${XLA_FLAGS:---xla_gpu_enable_triton_gemm=false --xla_gpu_blas_max_algorithms=16}"
run() { timeout -s TERM "$seconds" python -m experiments.ablations "$study" --workdir "$dir" --budget "$budget" --together 4 "$@"; }

run --until parts || exit
if command -v nvidia-cuda-mps-control > /dev/null; then  # kernels of several processes at once, not in turns
  CUDA_MPS_PIPE_DIRECTORY=$(realpath "$dir")/mps; CUDA_MPS_LOG_DIRECTORY=$CUDA_MPS_PIPE_DIRECTORY
  export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  mkdir -p "$CUDA_MPS_PIPE_DIRECTORY"
  nvidia-cuda-mps-control -d && trap 'echo quit | nvidia-cuda-mps-control' EXIT
fi
if [ $# -le 4 ]; then
  set -- "$dir" "$seconds" "$study" "$budget"
  for joint in "decoupled" "shared-latent twin" "shared-semantic random-semantic"; do
    set -- "$@" "$joint ${joint%% *}-understanding-only ${joint%% *}-generation-only"
  done
fi
shift 4
mkdir -p "$dir/logs"
for arms; do
  # shellcheck disable=SC2086
  run --judges 3 --arms $arms > "$dir/logs/${arms%% *}.log" 2>&1 &
done
wait
tail -n 2 "$dir"/logs/*.log
python -m experiments.ablations "$study" --workdir "$dir" --budget "$budget" --status
