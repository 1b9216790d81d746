#!/bin/sh
# Spark's discovery script: print the GPUs of this machine, {"name": "gpu", "addresses": ["0"]}.
# Spark starts it on workers or executors (spark.*.resource.gpu.discoveryScript). Where
# CUDA_VISIBLE_DEVICES leaves some of them, they are numbered within these, as tasks see them.
set -eu
numbers=$(nvidia-smi --query-gpu=index --format=csv,noheader)
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  # Tasks see those before the first entry that is neither a name nor the number of a GPU here.
  numbers=$(printf '%s\n' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | awk -v listed="$(echo $numbers)" '
    BEGIN { n = split(listed, part, " "); for (i = 1; i <= n; i++) here[part[i]] = 1 }
    { gsub(/ /, "") }
    /^(GPU-|MIG-)/ || ($0 in here) { print found++; next }
    { exit }')
fi
addresses=$(printf '%s\n' "$numbers" | sed 's/ //g; /^$/d; s/.*/"&"/' | paste -s -d, -)
printf '{"name": "gpu", "addresses": [%s]}\n' "$addresses"
