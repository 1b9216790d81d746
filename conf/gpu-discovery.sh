#!/bin/sh
# Spark's discovery script: print the GPUs of this machine, {"name": "gpu", "addresses": ["0"]}.
# Spark starts it on workers or executors (spark.*.resource.gpu.discoveryScript).
set -eu
numbers=$(nvidia-smi --query-gpu=index --format=csv,noheader)
addresses=$(printf '%s\n' "$numbers" | sed 's/ //g; /^$/d; s/.*/"&"/' | paste -s -d, -)
printf '{"name": "gpu", "addresses": [%s]}\n' "$addresses"
