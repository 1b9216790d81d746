#!/usr/bin/env bash
# Train, score, save, load and serve with the wheel (conf/smoke.py) on each Python at hand, with the
# oldest and the newest PySpark, then with the lowest versions that pyproject.toml allows. Pythons
# that are not at hand are named as skipped. make test-matrix calls it, with JAVA_HOME set.
# PYTHONS="3.12 3.13" chooses some.
set -euo pipefail
cd "$(dirname "$0")/.."

clean=$(mktemp -d)
trap 'rm -rf "$clean"' EXIT
"${VENV:-.venv}/bin/python" -m build --wheel --outdir "$clean" . >"$clean/log" 2>&1 || {
    cat "$clean/log"
    exit 1
}
wheel=$(echo "$clean"/spark_fm-*.whl)
cp conf/smoke.py "$clean"
"${VENV:-.venv}/bin/python" -m venv "$clean/tools"
"$clean/tools/bin/python" -m pip install --quiet uv 2>/dev/null
uv=$clean/tools/bin/uv
cd "$clean" # away from the checkout's own package

find_python() { # print the path of Python $1 of this machine
    "python$1" -c 'import sys; print(sys.executable)' 2>/dev/null ||
        "$uv" python find --no-python-downloads "$1" 2>/dev/null ||
        "$(pyenv prefix "$(pyenv latest "$1")")/bin/python" -c 'import sys; print(sys.executable)' 2>/dev/null
}

failed=0
smoke() { # name, python, requirements and flags of uv pip install
    "$uv" venv --quiet --clear --python "$2" venv
    if "$uv" pip install --quiet --python venv/bin/python "${@:3}" >log 2>&1 &&
        venv/bin/python smoke.py >>log 2>&1; then
        echo "$1: $(tail -n 1 log)"
    else
        failed=1
        tail -n 30 log
        echo "$1: FAILED"
    fi
}

oldest=
for version in ${PYTHONS:-3.10 3.11 3.12 3.13}; do
    if ! python=$(find_python "$version"); then
        echo "Python $version: skipped, not at hand"
        continue
    fi
    for spark in 'pyspark>=4.0,<5' 'pyspark==4.0.*'; do
        smoke "$version, $spark" "$python" "$wheel[spark,serve]" "$spark"
    done
    [ "$version" != 3.10 ] || oldest=$python # newer ones have no wheels of the oldest NumPy
done
if [ -n "$oldest" ]; then
    smoke "lowest versions" "$oldest" --resolution lowest-direct "$wheel[spark,serve]"
else
    echo "lowest versions: skipped, Python 3.10 is not at hand"
fi
exit "$failed"
