"""What makes a training's passes: found by a task, asked of Spark, or refused before training."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import functions as F

from spark_fm.errors import GpuNotFoundError, InvalidParamError
from spark_fm.learner.cuda import device as cuda_device
from spark_fm.spark import resources
from spark_fm.spark.collect import worker_errors
from spark_fm.spark.gpu import PROBE_DDL, GpuAssignment, ProbeTask
from spark_fm.spark.resources import profile_cpus, training_profile
from tests.cuda.cluster import ENVIRONMENT
from tests.training.builders import assert_same_model, machine

ROOT = Path(__file__).resolve().parent.parent.parent


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


without_gpu = pytest.mark.skipif(has_driver(), reason="this machine may have a GPU")


@without_gpu
def test_gpu_is_refused_before_a_row_is_read_where_there_is_none(frame):
    unreadable = frame.withColumn("label", F.raise_error(F.lit("a row was read")).cast("double"))

    with pytest.raises(GpuNotFoundError, match=r"device='gpu'.*no CUDA driver or no NVIDIA GPU"):
        machine(device="gpu").fit(unreadable)


@without_gpu
@pytest.mark.parametrize("workers", [1, 2])
def test_auto_says_once_that_it_takes_the_processor_and_gives_its_model(frame, caplog, workers):
    with caplog.at_level(logging.WARNING, "spark_fm"):
        chosen = machine(device="auto", numWorkers=workers).fit(frame)

    assert_same_model(chosen, machine(numWorkers=workers).fit(frame))
    said = [r.message for r in caplog.records if "device" in r.message]
    assert len(said) == 1
    assert said[0].startswith("device='auto': training on the CPU: no CUDA driver")
    assert chosen.summary.facts["device"] == "cpu"
    assert chosen.summary.facts["gpus"] == []


@without_gpu
def test_models_of_several_devices_in_one_fit_say_so_once(frame, caplog):
    fm = machine(device="auto")
    maps = [{fm.device: "auto"}, {fm.device: "cpu"}, {fm.device: "auto", fm.numFactors: 3}]

    with caplog.at_level(logging.WARNING, "spark_fm"):
        models = [model for _, model in fm.fitMultiple(frame, maps)]

    assert_same_model(models[0], models[1])
    assert sum("device='auto'" in r.message for r in caplog.records) == 1


def test_unknown_devices_are_refused(frame):
    with pytest.raises(InvalidParamError, match=r"device='cuda' is not allowed: expected \"cpu\""):
        machine(device="cuda").fit(frame)


def test_a_task_of_a_cluster_without_a_gpu_of_its_own_says_what_to_set(spark):
    task = ProbeTask(GpuAssignment(local=False))

    [row] = spark.range(0, 1, 1, 1).mapInArrow(task, PROBE_DDL).collect()

    assert row["gpu"] == ""
    assert "spark.executor.resource.gpu.amount" in row["reason"]
    assert "conf/gpu-*.conf" in row["reason"]


def test_a_task_that_loses_its_gpu_in_a_training_is_named(spark):
    gpu = GpuAssignment(local=False)

    def train(batches):
        gpu.use()
        yield from batches

    with pytest.raises(GpuNotFoundError, match="Spark has given the task no GPU"), worker_errors():
        spark.range(0, 1, 1, 1).mapInArrow(train, "id long").collect()


@pytest.mark.parametrize(
    ("cores", "gpus", "task_gpus", "cpus"),
    [
        ("8", "1", "", 5),  # so that no two tasks that train fit into one executor
        ("8", "1", "0.125", 5),
        ("2", "1", "", 2),
        ("3", "1", "0.5", 2),
        ("8", "1", "1", None),  # every task has a whole GPU anyway
        ("8", "1", "1.0", None),
        ("8", "2", "", None),  # the executor's GPUs are shared out by the user's settings
        ("1", "1", "", None),
        ("8", "", "1", None),
        ("", "1", "", None),
        ("", "", "", None),
    ],
)
def test_tasks_ask_for_more_than_half_of_an_executor_that_has_one_gpu(cores, gpus, task_gpus, cpus):
    assert profile_cpus(cores=cores, gpus=gpus, task_gpus=task_gpus) == cpus


@pytest.mark.parametrize("enabled", ["true", "TRUE"])
def test_executors_that_come_and_go_are_asked_for_no_profile(enabled, monkeypatch):
    settings = {
        "spark.executor.cores": "8",
        resources.GPU_AMOUNT: "1",
        "spark.dynamicAllocation.enabled": enabled,
    }
    monkeypatch.setattr(resources, "setting", lambda _, name, default: settings.get(name, default))

    assert training_profile(SimpleNamespace(is_local=False, session=None)) is None


def test_a_gpu_that_the_driver_refuses_is_no_usable_gpu(monkeypatch):
    from numba import cuda

    def refuse(_):
        raise RuntimeError("CUDA_ERROR_DEVICE_UNAVAILABLE\nmore")

    monkeypatch.setattr(cuda_device, "n_gpus", lambda: 2)
    monkeypatch.setattr(cuda, "select_device", refuse)

    with pytest.raises(GpuNotFoundError, match=r"GPU 1 .*CUDA_ERROR_DEVICE_UNAVAILABLE\); nvid"):
        cuda_device.use_gpu("1")


@pytest.mark.parametrize(
    ("visible", "addresses"),
    [
        (None, ["0", "1", "3"]), ("3", ["0"]), ("1,3", ["0", "1"]), ("GPU-a,GPU-b", ["0", "1"]),
        ("-1", []), ("NoDevFiles", []), ("0,-1,1", ["0"]), ("0,7", ["0"]), ("", []),
    ],
)  # fmt: skip
def test_the_discovery_script_numbers_the_gpus_that_tasks_see(visible, addresses, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '0\\n1\\n3\\n'\n")
    smi.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    kept["PATH"] = f"{tmp_path}:{kept['PATH']}"
    if visible is not None:
        kept["CUDA_VISIBLE_DEVICES"] = visible

    told = subprocess.run(
        [ROOT / "conf" / "gpu-discovery.sh"], env=kept, capture_output=True, check=True
    )

    assert json.loads(told.stdout) == {"name": "gpu", "addresses": addresses}


@pytest.mark.simulator
@pytest.mark.parametrize(
    ("case", "addresses", "others"),
    [
        ("every-task", ["0", "1"], True),
        ("shared", ["0"], True),
        ("connect", ["0"], False),
        ("local", ["0"], False),
    ],
)
def test_tasks_on_the_gpus_that_they_are_given_train_the_processors_model(case, addresses, others):
    found = outcome_of(case)

    assert found["device"] == "gpu"
    assert found["addresses"] == addresses
    assert found["others_have_a_gpu"] is others  # transform has no profile
    # Two parts of two partitions go there once, however many jobs follow.
    assert found["uploads"][:4] == [1, 1, 1, 1]
    assert set(found["uploads"][4:]) == {0}
    assert found["distance"] < 1e-6
    assert found["score_distance"] < 1e-6
    assert found["loss_distance"] < 1e-6


@pytest.mark.simulator
def test_a_local_master_trains_no_more_models_at_once_than_it_has_gpus():
    assert outcome_of("several-models") == {"models": 3, "at_once": [1]}


@pytest.mark.simulator
def test_auto_goes_on_on_the_processor_where_the_gpu_fills_up_and_says_so_once():
    alone, together = outcome_of("filled-up")

    assert together["addresses"] == ["0"]  # of the first epoch; a task alone loses all of its job
    for found in (alone, together):
        [said] = found["said"]
        assert said.startswith("device='auto': falling back to the CPU: The GPU's memory has no")
        assert found["device"] == "cpu"
        assert found["distance"] < 1e-6
        assert found["loss_distance"] < 1e-6
        assert found["refused"] == "The GPU's memory has no room for others."  # by device="gpu"


def outcome_of(case: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.cuda.cluster", case],
        cwd=ROOT, capture_output=True, text=True, timeout=500, env=os.environ | ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
