"""``spark-fm train`` as a SageMaker training container: read the job, train, leave the results.

Driver only. What the service sees of a job is in ``job.py``, what it reads of the log in
``sagemaker_log.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from spark_fm.cli.failures import FAILED, USAGE, UsageError, explain
from spark_fm.cli.interrupts import held_back, interruptible, was_interrupted
from spark_fm.cli.job import ROOT, JobFolder, TrainingJob
from spark_fm.cli.params import kebab
from spark_fm.cli.sagemaker_log import SageMakerLog
from spark_fm.cli.sagemaker_telling import SageMakerTelling, sagemaker_metrics
from spark_fm.cli.session import spark_session
from spark_fm.cli.summary_file import write_summary
from spark_fm.cli.testing import ChannelResult, tested
from spark_fm.cli.training_input import training_rows
from spark_fm.formats.recordio.framing import RECORDIO
from spark_fm.ml.estimator import FactorizationMachine
from spark_fm.ml.hyperparameters import HYPERPARAMETERS, param_name
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.ml.persistence import write_local
from spark_fm.ml.trials import write_text
from spark_fm.spark.session import is_local_master

# What a job says in its configuration, and so not on the command line.
_SAID_BY_THE_JOB = (
    "input", "train", "test", "format", "model", "validation", "num_features", "hyperparameters",
    "params", "assignments", "summary", "plot",
)  # fmt: skip
_GIB = 2**30


def is_container_call(args: argparse.Namespace) -> bool:
    """Tell whether to train as a container does: told so, or told nothing in such a place.

    Raises
    ------
    UsageError
        For ``--root`` beside flags that the job's configuration stands for.
    """
    given = [
        name for name, value in vars(args).items()
        if value is not None and value != [] and _is_said_by_the_job(name)
    ]  # fmt: skip
    if args.root is None:
        return not given and JobFolder(ROOT).config.is_dir()
    if given:
        raise UsageError(
            f"{_flag(given[0])} and --root exclude each other: the job's own configuration says "
            "what to train on, and how."
        )
    return True


def _is_said_by_the_job(name: str) -> bool:
    return name in _SAID_BY_THE_JOB or name.startswith("param_")


def _flag(name: str) -> str:
    if name == "assignments":
        return "--set"
    return "--" + kebab(name.removeprefix("param_")).replace("_", "-")


def train_in_container(args: argparse.Namespace) -> None:
    """Train as the job's files say; a failure is written down and exits with 1.

    A job that is stopped (SIGTERM) ends well if its model is there; otherwise it fails.
    """
    folder = JobFolder(Path(args.root) if args.root is not None else ROOT)
    is_saved: list[bool] = []
    try:
        with interruptible():
            _train(args, folder, is_saved)
    except BaseException as err:
        if was_interrupted() and is_saved:
            SageMakerLog().note(f"Stopped. The model is in {folder.model}.", "WARNING")
            return
        if args.verbose:
            traceback.print_exc()
        if is_saved:
            folder.remove_model()
        text = failure_text(err, folder)
        SageMakerLog(stream=sys.stderr).note(text, "ERROR")
        folder.write_failure(text)
        raise SystemExit(FAILED) from err


def failure_text(err: BaseException, folder: JobFolder) -> str:
    """Return what a failure file says: whose mistake it was, and which."""
    code, text = explain(err)
    if was_interrupted():
        text = "the job was stopped before it had a model"
        if folder.checkpoints.is_dir():
            text += f"; with the checkpoints in {folder.checkpoints} another one goes on from here"
    for name in HYPERPARAMETERS:  # a job knows no Params
        text = re.sub(rf"\b{param_name(name)}\b", name, text)
    return f"{'ClientError' if code == USAGE else 'AlgorithmError'}: {text}"


def _train(args: argparse.Namespace, folder: JobFolder, is_saved: list[bool]) -> None:
    folder.check_outputs(overwrite=args.overwrite)
    job = TrainingJob.read(folder)
    estimator = FactorizationMachine.from_hyperparameters(job.hyperparameters)
    if folder.checkpoints.is_dir():
        estimator.setCheckpointDir(str(folder.checkpoints))
    log = SageMakerLog(job.host)
    _tell_job(log, job)
    telling = SageMakerTelling(
        log, epochs=estimator.getEpochs(), batch_size=estimator.getMiniBatchSize()
    )
    _suit_the_machine(args)
    with spark_session(args) as spark:
        if not is_local_master(spark):
            raise UsageError("a training container trains on its own cores: --master local[*].")
        inputs = argparse.Namespace(input=job.train, format=RECORDIO, validation=None)
        with telling.listening():
            with training_rows(spark, inputs, estimator, maps_minus_one=False) as rows:
                model: FactorizationMachineModel = estimator.fit(rows)
            telling.trained()
            started = time.time()
            with held_back():
                _save(model, folder)
                is_saved.append(True)
            telling.saved(str(folder.model), time.time() - started)
            result = None
            if job.test is not None:
                started = time.time()
                result = tested(spark, model, job.test, file_format=RECORDIO)
                telling.tested(result, time.time() - started)
    _write_results(model, result, folder)
    telling.ended()


def _tell_job(log: SageMakerLog, job: TrainingJob) -> None:
    name = os.environ.get("TRAINING_JOB_NAME")
    if name:
        log.note(f"Training job {name}")
    log.note(f"Hyperparameters: {json.dumps(job.hyperparameters, sort_keys=True)}")


def _save(model: FactorizationMachineModel, folder: JobFolder) -> None:
    try:
        write_local(model, str(folder.partial))
        folder.place_model()
    finally:
        shutil.rmtree(folder.partial, ignore_errors=True)


def _write_results(
    model: FactorizationMachineModel, result: ChannelResult | None, folder: JobFolder
) -> None:
    """Write what is known of the training, beside the model."""
    if model.summary is not None:
        write_summary(folder.output_data / "summary.json", model.summary)
    if result is not None:
        scores: dict[str, Any] = {"rows": result.rows, **sagemaker_metrics(result.metrics)}
        write_text(folder.output_data / "test.json", json.dumps(scores, indent=2) + "\n")


def _suit_the_machine(args: argparse.Namespace) -> None:
    """Give a Spark that this process starts half of the memory, and no network.

    The other half is for the Python process that trains and for the disk cache.
    """
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")  # a job may have no network at all
    memory = max(_GIB, memory_bytes() // 2) // 2**20
    chosen = {
        "spark.driver.memory": f"{memory}m",
        "spark.driver.maxResultSize": f"{memory}m",
        "spark.ui.enabled": "false",
    }
    said = {assignment.partition("=")[0] for assignment in args.conf}
    args.conf += [f"{key}={value}" for key, value in chosen.items() if key not in said]


def memory_bytes() -> int:
    """Return the memory of this container, or of the machine."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [machine]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)
