#!/bin/sh
# Spark's discovery script: print the GPUs of this machine, {"name": "gpu", "addresses": ["0"]}.
# Spark starts it on workers or executors (spark.*.resource.gpu.discoveryScript). Where
# CUDA_VISIBLE_DEVICES leaves some of them, they are numbered within these, as tasks see them.
set -eu
numbers=$(nvidia-smi --query-gpu=index --format=csv,noheader)
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  n_visible=$(printf '%s\n' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c . || true)
  numbers=$(seq 0 $((n_visible - 1)))
fi
addresses=$(printf '%s\n' "$numbers" | sed 's/ //g; /^$/d; s/.*/"&"/' | paste -s -d, -)
printf '{"name": "gpu", "addresses": [%s]}\n' "$addresses"
