#!/bin/bash
# A training run on all hosts of a TPU pod slice; whatever stands after name and zone goes to experiments.train:
#
#     experiments/launch/tpu_pod.sh NAME ZONE stage1 --workdir gs://BUCKET/runs/1 --data.sources /shared/t2i/ 1
#
# Each host has this repository in ~/internvlu_jax, installed with `pip install -e .[tpu,gcs]`. The work directory is in
# a bucket or, as the data, where all hosts see it (Filestore, NFS, a mounted disk). The same command goes on with a run
# that ended.
# DRY_RUN=1 experiments/launch/tpu_pod.sh ... prints the command alone.
set -euo pipefail

if (($# < 3)); then
    echo "error: $# words; expected NAME ZONE CONFIG and what else experiments.train takes" >&2
    exit 2
fi
name=$1 zone=$2
shift 2
train="cd ~/internvlu_jax && python -m experiments.train$(printf ' %q' "$@") --distributed"
command=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all "--command=$train")
if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "${command[@]}" && echo
    exit
fi
"${command[@]}"
