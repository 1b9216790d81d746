#!/bin/sh
# Spark's discovery script: print the GPUs of this machine, {"name": "gpu", "addresses": ["0"]}.
# Spark starts it on workers or executors (spark.*.resource.gpu.discoveryScript). Where
# CUDA_VISIBLE_DEVICES leaves some of them, they are numbered within these, as tasks see them.
set -eu
numbers=$(nvidia-smi --query-gpu=index --format=csv,noheader)
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  # Tasks see those before the first entry that is neither a number nor a name.
  numbers=$(printf '%s\n' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' |
    awk '/^ *(GPU-|MIG-|[0-9])/ { print n++; next } { exit }')
fi
addresses=$(printf '%s\n' "$numbers" | sed 's/ //g; /^$/d; s/.*/"&"/' | paste -s -d, -)
printf '{"name": "gpu", "addresses": [%s]}\n' "$addresses"
