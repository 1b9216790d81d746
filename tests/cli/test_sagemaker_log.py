"""The grammar of SageMaker's logs: what expressions made for it find in our lines; no Spark."""

from __future__ import annotations

import io
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_fm.cli.sagemaker_log import KINDS, ReadCounts, SageMakerLog, Span

# The metric definitions of SageMaker's own algorithms, as DescribeTrainingJob shows them.
DEFINITIONS = {
    "train:{m}:batch": r"#quality_metric: host=\S+, epoch=\S+, batch=\S+ train {n} <{k}>=(\S+)",
    "train:{m}:epoch": r"#quality_metric: host=\S+, epoch=\S+, train {n} <{k}>=(\S+)",
    "train:{m}": r"#quality_metric: host=\S+, train {n} <{k}>=(\S+)",
    "test:{m}": r"#quality_metric: host=\S+, test {n} <{k}>=(\S+)",
}
PROGRESS = r"#progress_metric: host=\S+, completed (\S+) %"
THROUGHPUT = r"#throughput_metric: host=\S+, train throughput=(\S+) records/second"
TEST_SCORE = r"#test_score \(\S+\) : \('(\S+)', (\S+)\)"
PREFIX = r"^\[\d\d/\d\d/\d{4} \d\d:\d\d:\d\d (?:DEBUG|INFO|WARNING|ERROR) \d+\] "
numbers = st.floats(allow_subnormal=False)


def definition(kind: str, name: str) -> str:
    pattern = r"binary_f_\S+" if name.startswith("binary_f_") else re.escape(name)
    return DEFINITIONS[kind].replace("{n}", pattern).replace("{k}", KINDS[name])


def written(host: str = "algo-1") -> tuple[SageMakerLog, io.StringIO]:
    stream = io.StringIO()
    return SageMakerLog(host, stream=stream, clock=lambda: 1_558_000_000.25), stream


def same(found: list[str], value: float) -> bool:
    [text] = found
    return float(text) == value or (math.isnan(float(text)) and math.isnan(value))


@given(value=numbers, epoch=st.integers(0, 999), batch=st.integers(0, 10**9))
@pytest.mark.parametrize("name", KINDS)
def test_each_definition_finds_its_own_line_with_all_digits_and_no_other(name, value, epoch, batch):
    log, stream = written()
    where = {"train:{m}:batch": {"epoch": epoch, "batch": batch}, "train:{m}:epoch":
             {"epoch": epoch}, "train:{m}": {}, "test:{m}": {}}  # fmt: skip
    for number, (kind, keys) in enumerate(where.items()):
        log.quality(kind.split(":")[0], {name: value + number}, **keys)

    for number, kind in enumerate(DEFINITIONS):
        assert same(re.findall(definition(kind, name), stream.getvalue()), value + number)


@given(value=numbers)
def test_scores_progress_and_throughput_are_found(value):
    log, stream = written("algo-2")
    log.test_scores({"rmse": value})
    log.progress(value)
    log.throughput(value)

    [(name, score)] = re.findall(TEST_SCORE, stream.getvalue())
    assert name == "rmse"
    for found in ([score], *(re.findall(e, stream.getvalue()) for e in (PROGRESS, THROUGHPUT))):
        assert same(found, value)
    assert stream.getvalue().count("algo-2") == 3


@given(text=st.text())
def test_whatever_is_noted_is_one_line_behind_the_prefix(text):
    log, stream = written()
    log.note(f"a {text}", "WARNING")

    assert len(stream.getvalue().splitlines()) == 1
    assert re.match(PREFIX + "a", stream.getvalue())


def test_metrics_of_several_names_come_in_the_grammar_s_order_and_unknown_ones_are_refused():
    log, stream = written()
    log.quality("train", dict.fromkeys(reversed(KINDS), 0.5))

    assert re.findall(r"train (\S+) <", stream.getvalue()) == list(KINDS)
    with pytest.raises(KeyError, match="roc_auc"):
        log.quality("train", {"roc_auc": 0.5})


def test_a_structured_line_has_no_prefix_and_the_keys_in_sagemaker_s_order():
    log, stream = written()
    log.measures({"update.time": [3.0, 1.0], "epochs": 2}, Span(1.5, 2.5), epoch=0, meta="m")

    assert stream.getvalue() == (
        '#metrics {"StartTime": 1.5, "EndTime": 2.5, "Dimensions": {"Algorithm": '
        '"factorization-machines", "Host": "algo-1", "Operation": "training", "epoch": 0, '
        '"Meta": "m"}, "Metrics": {"update.time": {"sum": 4.0, "count": 2, "min": 1.0, '
        '"max": 3.0}, "epochs": {"sum": 2.0, "count": 1, "min": 2, "max": 2}}}\n'
    )
    json.loads(stream.getvalue().removeprefix("#metrics "))


@given(passes=st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 1000)), min_size=1))
def test_a_reader_counts_what_its_passes_say(passes):
    counts = ReadCounts()
    for records, batches in passes:
        counts.add_pass(records, batches)

    records, batches = zip(*passes, strict=True)
    assert counts.measures() == {
        "Total Records Seen": sum(records),
        "Total Batches Seen": sum(batches),
        "Max Records Seen Between Resets": max(records),
        "Max Batches Seen Between Resets": max(batches),
        "Reset Count": len(passes),
        "Number of Records Since Last Reset": records[-1],
        "Number of Batches Since Last Reset": batches[-1],
    }
