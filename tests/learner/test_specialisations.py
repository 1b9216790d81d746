"""Kernels for different k, compiled in processes of their own, load side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from spark_fm.learner.optimizers import OPTIMIZERS
from spark_fm.learner.predict import make_score_row

ROOT = Path(__file__).resolve().parents[2]

# What kernels for k factors do, by three optimizers, as digests.
BITS = """
import hashlib
import sys
import numpy as np
from tests.builders import random_batch, train_spec, worn_state
from spark_fm.learner.kernels import train_inplace
from spark_fm.learner.predict import margins

OPTIMIZERS = {5: ("adagrad", "sgd"), 16: ("adagrad", "adam")}

def digests(k):
    for optimizer in OPTIMIZERS[k]:
        batch = random_batch(100, 20, seed=k, loss="logistic")
        spec = train_spec(k=k, loss="logistic", optimizer=optimizer, mini_batch_size=1)
        state = worn_state(spec, 20, seed=k)
        train_inplace(state, batch, np.arange(100), spec=spec)
        parts = state.synced_columns().tobytes(), margins(batch, state.parameters(), 0.5).tobytes()
        yield hashlib.md5(b"".join(parts)).hexdigest()
"""

COMPILE = (
    BITS
    + """
print(*digests(int(sys.argv[1])))
"""
)

USE = (
    BITS
    + """
from tests import oracle

# Every kernel is loaded before the first is used.
from spark_fm.learner.kernels import training_kernel
from spark_fm.learner.predict import scoring_kernel
kernels = []
for k in (5, 16):
    kernels.append(scoring_kernel(k))
    kernels += [training_kernel(k, "logistic", name, False) for name in OPTIMIZERS[k]]
# Equal symbols would let the linker take one for the other, at its whim.
symbols = [o.fndesc.mangled_name for kernel in kernels for o in kernel.overloads.values()]
assert len(set(symbols)) == len(symbols) == 6, symbols
for k in (16, 5):
    batch = random_batch(30, 8, seed=k, loss="logistic")
    spec = train_spec(k=k, loss="logistic", optimizer="adagrad", mini_batch_size=1)
    state = worn_state(spec, 8, seed=k)
    twin = oracle.Twin.of_state(state)
    raw = margins(batch, state.parameters(), state.bias[0])
    np.testing.assert_allclose(raw, oracle.scores(twin.model, batch), atol=1e-5)
    train_inplace(state, batch, np.arange(30), spec=spec)
    oracle.train(twin, batch, range(30), spec=spec)
    layout = state.layout
    seen = np.hstack([state.rows[:, : layout.n_synced], state.rows[:, [layout.n_updates]]])
    np.testing.assert_allclose(seen, twin.table(), atol=1e-4)
print(*digests(5), *digests(16))
"""
)


def run(program: str, *arguments: str, folder: Path) -> str:
    environment = {
        **os.environ,
        "SPARK_FM_CACHE_DIR": str(folder),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_specialisations_compiled_apart_keep_their_own_code_and_bits(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    compiled = [run(COMPILE, str(k), folder=folder) for k in (5, 16)]

    assert run(USE, folder=folder) == " ".join(compiled)


def test_helpers_inside_kernels_have_names_of_their_own() -> None:
    names = [
        make(k).py_func.__qualname__
        for k in (2, 5)
        for make in (
            make_score_row,
            OPTIMIZERS["adagrad"].make_feature_update,
            OPTIMIZERS["adam"].make_feature_update,
        )
    ]

    assert len(set(names)) == len(names)
