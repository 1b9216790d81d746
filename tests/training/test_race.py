"""A fit chooses the learning rates that the caller leaves open, and says how."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyspark.ml.linalg import Vectors

from spark_fm import FactorizationMachine
from spark_fm.errors import ModelTooLargeError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.race import RaceResult
from spark_fm.learner.spec import Scaling
from spark_fm.spark.collect import rows_of
from spark_fm.training import plan as planning
from spark_fm.training import race as races
from spark_fm.training import trainer
from spark_fm.training.packing import block_row
from spark_fm.training.partitions import block_frame
from tests.builders import train_spec
from tests.training.builders import assert_same_model

pytestmark = pytest.mark.spark
RATES = ("biasLr", "linearLr", "factorsLr")


def machine(**params):
    return FactorizationMachine(
        **{"numFactors": 4, "epochs": 2, "seed": 5, "factorsInitSigma": 0.3, **params}
    )


def in_force(model) -> dict[str, float]:
    return {name: model.summary.history[name].iloc[0] for name in RATES}


def chosen(model) -> dict[str, float]:
    [row] = model.summary.race.query("chosen").to_dict("records")
    return {name: row[name] for name in RATES}


@pytest.fixture(scope="module")
def raced(frame):
    return machine().fit(frame)


@pytest.mark.connect
def test_a_fit_trains_with_the_rates_that_won_and_says_what_was_tried(frame, raced):
    tried = raced.summary.race

    assert list(tried.columns) == [*RATES, "epochs", "value", "chosen"]
    assert sorted(tried["linearLr"]) == [0.02, 0.05, 0.1, 0.2, 0.4, 0.8]
    assert in_force(raced) == chosen(raced)
    finished = tried[tried["epochs"] > 2]
    assert finished.loc[finished["value"].idxmin(), "linearLr"] == chosen(raced)["linearLr"]


def test_the_model_is_that_of_the_rates_set_by_hand(frame, raced):
    """But for a refit after a race in which all rows took turns at judging."""
    by_hand = machine(**chosen(raced), refit="never").fit(frame)

    assert_same_model(machine(refit="never").fit(frame), by_hand)


@pytest.mark.parametrize(("by_folds", "refitted"), [(3, 3), (9, 5)])
def test_where_all_rows_took_turns_they_choose_the_epochs_of_the_refit_and_its_factors(
    frame, monkeypatch, by_folds, refitted
):
    found = RaceResult(0.1, [], epochs=by_folds, value=0.6, linear=0.5)
    monkeypatch.setattr(trainer, "hold_races", lambda *_: [found])

    facts = machine(epochs=5).fit(frame).summary.facts

    assert facts["refitEpochs"] == refitted
    assert facts["linearKept"]


def test_rates_that_are_set_are_used_as_they_are(frame):
    model = machine(linearLr=0.03).fit(frame)

    assert in_force(model)["linearLr"] == 0.03
    assert set(model.summary.race["linearLr"]) == {0.03}
    assert model.summary.race["factorsLr"].nunique() == 6
    assert machine(biasLr=0.1, linearLr=0.1, factorsLr=0.1).fit(frame).summary.race.empty


@pytest.mark.parametrize(
    "changes", [{"validationFraction": 0.0}, {"sageMakerTraining": True}], ids=str
)
def test_there_is_no_race_without_held_out_rows_or_as_sagemaker_trains(frame, changes):
    model = machine(epochs=1, featureDim=40, **changes).fit(frame)

    assert model.summary.race.empty
    assert set(in_force(model).values()) == {0.2}


def test_partitions_choose_as_one_does(frame, raced):
    workers = machine(numWorkers=3, averagingsPerEpoch=2, refit="never").fit(frame)

    assert workers.summary.race.equals(raced.summary.race)


def test_a_grid_chooses_for_each_of_its_models_in_one_job(frame, raced, monkeypatch):
    n_races = []
    monkeypatch.setattr(
        trainer, "hold_races",
        lambda configs, *rest: n_races.append(len(configs)) or races.hold_races(configs, *rest),
    )  # fmt: skip
    estimator = machine()
    maps = [{}, {estimator.linearWd: 0.5}, {estimator.linearLr: 0.03, estimator.factorsLr: 0.03,
                                            estimator.biasLr: 0.03}]  # fmt: skip

    models = dict(estimator.fitMultiple(frame, maps))

    assert n_races == [2]
    assert_same_model(models[0], raced)
    assert in_force(models[2])["linearLr"] == 0.03


def test_a_model_of_a_grid_has_the_race_that_it_has_alone(frame, monkeypatch):
    monkeypatch.setattr(races, "RACE_SECONDS", 0.25 * 1080 * 66 * 12.8e-9)  # part of the rows
    estimator = machine()
    maps = [{estimator.numFactors: 2}, {estimator.numFactors: 16}]

    models = dict(estimator.fitMultiple(frame, maps))

    for number, chosen_map in enumerate(maps):
        alone = estimator.fit(frame, chosen_map)
        assert models[number].summary.race.equals(alone.summary.race)
        assert_same_model(models[number], alone)


def test_a_race_has_a_sample_of_bounded_size_from_all_partitions(frame, monkeypatch):
    seen = []
    run = races.run_on_copies

    def spy(task, blocks, number, cluster, **sizes):
        rows = block_frame(blocks, cluster).select("kind", "source", "n_rows")
        seen.extend(rows.collect())
        return run(task, blocks, number, cluster, **sizes)

    monkeypatch.setattr(races, "run_on_copies", spy)
    monkeypatch.setattr(races, "RACE_SECONDS", 0.25 * 1080 * 66 * 12.8e-9)

    model = machine().fit(frame)

    rows = {kind: sum(row["n_rows"] for row in seen if row["kind"] == kind) for kind in (0, 1)}
    assert 60 <= rows[0] <= 240  # a quarter of 540
    assert {row["source"] for row in seen} == {0, 1, 2}
    assert not model.summary.race.empty


def test_places_are_sampled_as_a_frame_is(spark):
    names = ("kind", "source", "seq")
    rows = [(i % 2, i // 20, i % 20) for i in range(200)]
    frame = spark.createDataFrame(rows, "kind int, source int, seq int")
    table = pa.table([pa.array(each) for each in zip(*rows, strict=True)], names)
    samples = []
    for blocks in (frame, table):
        half = SimpleNamespace(nnz=100)
        data = SimpleNamespace(blocks=blocks, train=half, validation=half)
        samples.append(races._sample(data, 30.0))

    assert list(rows_of(samples[1])) == list(map(tuple, samples[0].collect()))
    assert 20 <= samples[1].num_rows <= 70


def test_a_sample_without_held_out_rows_leaves_the_optimizer_s_own_rates(frame, monkeypatch):
    monkeypatch.setattr(
        races, "_sample", lambda data, size: data.blocks.filter(pc.field("kind") == 0)
    )

    model = machine().fit(frame)

    assert model.summary.race.empty
    assert set(in_force(model).values()) == {0.2}


@pytest.mark.parametrize(("own", "n_folds"), [(None, 10), ("held", 1)])
def test_few_held_out_rows_take_turns_unless_they_are_the_caller_s_own(
    rows, monkeypatch, own, n_folds
):
    batch = CsrBatch.from_matrix(rows.X, labels=rows.y)
    entry = races.RaceEntry(
        train_spec(k=4), ("linear",), Scaling(), None, "logloss",
        label_mean=0.5, may_fold=own is None,
    )  # fmt: skip
    blocks = [
        block_row(0, 0, 0, batch.between(0, 500)),
        block_row(1, 0, 0, batch.between(500, 600)),
    ]
    seen = []
    hold = races.race

    def spy(*arguments, **settings):
        seen.append(settings["n_folds"])
        return hold(*arguments, **settings)

    monkeypatch.setattr(races, "race", spy)

    list(races.RaceTask((entry,)).run(iter(blocks)))

    assert seen == [n_folds]


def test_a_handful_of_different_rows_decides_nothing(spark):
    rows = [
        (float(u != i), Vectors.sparse(4, [u, 2 + i], [1.0, 1.0])) for u in (0, 1) for i in (0, 1)
    ]

    model = machine(seed=7).fit(spark.createDataFrame(rows * 50, ["label", "features"]))

    assert model.summary.facts["numValidationRows"] > 0
    assert model.summary.race.empty


def test_a_training_that_goes_on_keeps_its_rates(frame):
    keeping = partial(machine, keepTrainingState=True)
    whole = keeping(epochs=4).fit(frame)

    half = keeping(epochs=2).fit(frame)
    continued = keeping(epochs=2).fit(frame, warmStart=half)

    assert_same_model(whole, continued)
    assert continued.summary.race.equals(half.summary.race)


def test_a_model_that_memory_cannot_hold_is_told_before_the_race(frame, monkeypatch):
    monkeypatch.setattr(trainer, "hold_races", lambda *_: pytest.fail("a race was held"))
    monkeypatch.setattr(planning, "available_memory", lambda: 10)

    with pytest.raises(ModelTooLargeError):
        machine().fit(frame)


def test_the_seconds_of_a_fit_are_those_of_its_race_too(raced):
    facts = raced.summary.facts

    assert facts["raceSeconds"] > 0
    assert facts["totalSeconds"] > facts["packSeconds"] + facts["raceSeconds"]
