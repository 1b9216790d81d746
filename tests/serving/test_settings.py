"""Flags, environment and their ranges."""

from __future__ import annotations

import argparse

import pytest

from spark_fm.cli import serve
from spark_fm.cli.errors import UsageError
from spark_fm.cli.main import main
from spark_fm.cli.serve import add_flags, model_and_settings
from spark_fm.errors import InvalidParamError
from spark_fm.serving.settings import ServeSettings, container_values

CONTAINER = {
    "SAGEMAKER_BIND_TO_PORT": "9090",
    "SAGEMAKER_MAX_PAYLOAD_IN_MB": "50",
    "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "2",
    "SAGEMAKER_BATCH_STRATEGY": "SINGLE_RECORD",
    "SAGEMAKER_BATCH": "true",
}


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return model_and_settings(parser.parse_args(words))


def test_a_containers_environment_is_taken_over():
    settings = ServeSettings(**container_values(CONTAINER))
    assert settings.port == 9090
    assert settings.is_batch
    assert settings.max_held_mb >= settings.max_payload_mb
    assert settings.execution_parameters == {
        "MaxConcurrentTransforms": 2, "BatchStrategy": "SingleRecord", "MaxPayloadInMB": 50,
    }  # fmt: skip


def test_flags_come_before_the_environment(monkeypatch):
    for name, value in CONTAINER.items():
        monkeypatch.setenv(name, value)
    model, settings = parsed("here", "--port", "81", "--workers", "3")
    assert (model, settings.port, settings.workers, settings.max_payload_mb) == ("here", 81, 3, 50)


def test_the_defaults_are_port_8080_6_mb_and_this_machine_only():
    _, settings = parsed("here")
    assert (settings.host, settings.port, settings.max_payload_mb) == ("127.0.0.1", 8080, 6)


@pytest.mark.parametrize(("payload", "held"), [(1, 96), (48, 96), (49, 98), (100, 200)])
def test_two_of_the_largest_bodies_are_held_unless_told_otherwise(payload, held):
    _, settings = parsed("here", "--max-payload-mb", str(payload))
    assert settings.max_held_mb == held
    _, told = parsed("here", "--max-payload-mb", str(payload), "--max-held-mb", "100")
    assert told.max_held_mb == 100


def test_a_larger_payload_than_the_containers_may_be_asked_for(monkeypatch):
    monkeypatch.setenv("SAGEMAKER_MAX_PAYLOAD_IN_MB", "10")
    _, settings = parsed("here", "--max-payload-mb", "100")
    assert (settings.max_payload_mb, settings.max_held_mb) == (100, 200)


@pytest.mark.parametrize("workers", [1, 2, 50])
def test_execution_parameters_keep_to_the_product_that_sagemaker_allows(workers):
    told = ServeSettings(workers=workers).execution_parameters
    assert 1 <= told["MaxConcurrentTransforms"] * told["MaxPayloadInMB"] <= 100


def test_without_a_model_the_containers_folder_is_served_to_all(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="MODEL is missing"):
        parsed()
    monkeypatch.setattr(serve, "CONTAINER_MODEL", str(tmp_path))
    model, settings = parsed()
    assert (model, settings.host) == (str(tmp_path), "0.0.0.0")


@pytest.mark.parametrize(
    "values",
    [{"port": 65536}, {"workers": 0}, {"max_payload_mb": 101}, {"max_requests": 0},
     {"max_held_mb": 5}, {"threads": 0}, {"head_seconds": 0.0}, {"body_seconds": float("nan")},
     {"grace_seconds": -1.0}, {"reload_seconds": -0.1}, {"batch_strategy": "None"},
     {"endpoints": ["fm", "fm_2"]}, {"endpoints": ["-fm"]}, {"endpoints": ["f" * 64]}],
)  # fmt: skip
def test_values_outside_their_ranges_are_named(values):
    (name,) = values
    with pytest.raises(InvalidParamError, match=name):
        ServeSettings(**values)


def test_an_environment_variable_that_is_no_number_is_named():
    with pytest.raises(InvalidParamError, match="SAGEMAKER_BIND_TO_PORT='http'"):
        container_values({"SAGEMAKER_BIND_TO_PORT": "http"})


def test_a_payload_of_0_is_the_default():
    assert container_values({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}) == {}


def test_help_has_an_example(capsys):
    assert main(["serve", "--help"]) == 0
    assert "example:\n  spark-fm serve a9a.model" in capsys.readouterr().out


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert main(["serve", "here"]) == 1
    assert "install the [serve] extra" in capsys.readouterr().err
