"""Parsing of libsvm and libfm lines, without Spark."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_fm.cli.input_formats import FaultTask
from spark_fm.formats.text import LineParser, ParseTask
from spark_fm.formats.vectors import VECTOR_TYPE

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
entry = st.tuples(st.integers(0, 2**31 - 2), finite)
row = st.tuples(finite, st.lists(entry, max_size=6))
space = st.sampled_from([" ", "  ", "\t", " \t "])
end = st.sampled_from(["", " ", "\r", " # a comment 3:4", "#"])


@st.composite
def written(draw, text_format):
    """Rows, and lines that hold them, with blank lines and odd spacing in between."""
    rows, lines = [], []
    first = {"libsvm": 1, "libfm": 0}[text_format]
    for label, entries in draw(st.lists(row, max_size=5)):
        tokens = [draw(st.sampled_from(["{}", "+{}"])).format(label) if label > 0 else repr(label)]
        if draw(st.booleans()):
            tokens.append("qid:7")
        tokens += [f"{index + first}:{value!r}" for index, value in entries]
        lines.append(draw(space).join(tokens) + draw(end))
        rows.append((label, entries))
        if draw(st.booleans()):
            lines.append(draw(st.sampled_from(["", "   ", "# only a comment", "\r"])))
    return rows, lines


def parse(parser, lines):
    return parser.parse(pa.array(lines, pa.string()))


def as_rows(parsed):
    return [
        (label, list(zip(parsed.indices[a:b].tolist(), parsed.values[a:b].tolist(), strict=True)))
        for label, a, b in zip(
            parsed.labels.tolist(), parsed.indptr[:-1], parsed.indptr[1:], strict=True
        )
    ]


@given(written("libsvm"))
def test_libsvm_lines_give_their_rows_with_indices_from_zero(case):
    rows, lines = case
    assert as_rows(parse(LineParser("libsvm"), lines)) == rows


@given(written("libfm"))
def test_libfm_lines_give_their_rows(case):
    rows, lines = case
    assert as_rows(parse(LineParser("libfm"), lines)) == rows


@given(written("libfm"))
def test_fast_and_careful_parsing_agree(case):
    parser, lines = LineParser("libfm"), pa.array(case[1], pa.string())
    fast, careful = parser._parse_fast(lines), parser._parse_each(lines)
    assert fast is not None
    assert as_rows(fast) == as_rows(careful)
    assert fast.positions.tolist() == careful.positions.tolist()


@pytest.mark.parametrize("number", [
    "0", "-0", "+0.0", ".5", "5.", "1e22", "1e23", "123e-22", "9007199254740993", "1e-400", "1e400",
    "0.1234567890123456789", "00000000000000000000000001.5", "179769313486231580793e288", "-.5E+3",
    "4.9e-324", "nan", "-Infinity", "1.7976931348623157e308", "100000000000000000000000e-5",
])  # fmt: skip
def test_a_number_is_the_double_nearest_to_it(number):
    parsed = LineParser("libfm")._parse_fast(pa.array([f"{number} 3:{number}"]))

    expected = np.float64(number)
    assert parsed.labels.tobytes() == parsed.values.tobytes() or np.isnan(expected)
    np.testing.assert_array_equal(parsed.values, [expected])
    assert np.signbit(parsed.values[0]) == np.signbit(expected)


def test_lines_may_be_a_slice_of_long_or_short_strings_or_bytes():
    lines = ["9 9:9", "1 0:1", None, "", "0 2:.5 7:1e-3", "9 9:9"]
    for kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        parsed = LineParser("libfm").parse(pa.array(lines, kind).slice(1, 4))
        assert as_rows(parsed) == [(1.0, [(0, 1.0)]), (0.0, [(2, 0.5), (7, 0.001)])]
        assert parsed.positions.tolist() == [0, 3]


@pytest.mark.parametrize("space", ["\x1c", "\x1f", "\x85", "\xa0", "\u2003"])
def test_white_space_of_unicode_ends_a_token_wherever_it_is(space):
    for line in (f"1{space}2:3", f"1 1:2{space}2:3", f"1 qid:1{space}2:3", f"1 {space}2:3"):
        parsed = LineParser("libfm").parse(pa.array([line]))
        assert as_rows(parsed)[0][1][-1] == (2, 3.0)
        assert not parsed.errors


@given(written("libfm"), st.integers(0, 99))
def test_lines_of_libffm_give_their_rows_without_the_fields(case, field):
    rows, lines = case
    fielded = [re.sub(r"(?<=\s)(?=\d+:)", f"{field}:", line.split("#")[0]) for line in lines]
    parser = LineParser("libfm")

    assert as_rows(parse(parser, fielded)) == rows
    assert parser._parse_fast(pa.array(fielded, pa.string())) is not None
    assert as_rows(parse(parser, [*fielded, "1 0:1"])) == [*rows, (1.0, [(0, 1.0)])]
    assert as_rows(parse(LineParser("libsvm"), ["0 2:1:5 3:4:6"])) == [(0.0, [(0, 5.0), (3, 6.0)])]


@given(st.lists(st.text(alphabet="0123456789:.+-e #qid\tx\ufeffé\xa0", max_size=20), max_size=4))
def test_no_text_makes_the_parser_fail_and_whole_vectors_have_whole_lists(lines):
    batch = pa.record_batch([pa.array(lines, pa.string())], names=["value"])
    task = ParseTask(LineParser("libsvm", needs_label=False), "label", "features")
    (result,) = list(task(iter([batch])))
    result.validate(full=True)
    for vector in result.column(1).to_pylist():
        assert vector is None or len(vector["indices"]) == len(vector["values"])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1 0:1", "index 0 is below 1, the first of a libsvm file (is it a libfm file?)"),
        ("1 -3:1", "index -3 is below 1"),
        ("1 8:1", "index 8 is above 7, the last of 7 features"),
        ("1 2147483648:1", "index 2147483648 is above 7"),
        ("1 99999999999999999999:1", "is above 7"),
        (f"1 {'9' * 5000}:1", f"index {'9' * 77}... is above 7, the last of 7 features"),
        (f"1 -{'9' * 5000}:1", f"index -{'9' * 76}... is below 1, the first of a libsvm file"),
        ("1 3", "3 is not index:value"),
        ("1 3:4:5:6", "3:4:5:6 is not index:value"),
        ("1 user:4:5", "user:4:5 is not index:value"),
        ("1 3::5", "3::5 is not index:value"),
        ("1 0:8:5", "index 8 is above 7, the last of 7 features"),
        ("1 2:1:x", "the value of 2:1:x is x, not a number"),
        ("1 a:1", "a:1 is not index:value"),
        ("1 0x2:1", "0x2:1 is not index:value"),
        ("1 1_0:1", "1_0:1 is not index:value"),
        ("1 2.0:1", "2.0:1 is not index:value"),
        ("1 3:", "the value of 3: is empty, not a number"),
        ("1 3:1_0", "the value of 3:1_0 is 1_0, not a number"),
        ("yes 3:1", "the label is yes, not a number"),
        ("3:1 4:1", "it has no label: it starts with 3:1"),
    ],
)
def test_a_bad_line_is_told_with_its_reason_and_spares_the_others(line, reason):
    parsed = parse(LineParser("libsvm", num_features=7), ["0 1:2", line, "1 7:3"])
    assert list(parsed.errors) == [1]
    assert reason in parsed.errors[1]
    assert as_rows(parsed)[0] == (0.0, [(0, 2.0)])
    assert as_rows(parsed)[2] == (1.0, [(6, 3.0)])


def test_an_index_may_have_any_number_of_leading_zeros():
    parsed = parse(
        LineParser("libsvm", num_features=7), [f"1 {'0' * 5000}7:1 x", f"1 {'0' * 5000}7:1 #"]
    )

    assert list(parsed.errors) == [0]
    assert as_rows(parsed)[1] == (1.0, [(6, 1.0)])


def test_labels_may_be_missing_when_they_are_not_needed():
    parsed = parse(LineParser("libfm", needs_label=False), ["3:1 4:1", "1 3:1"])
    assert parsed.has_label.tolist() == [False, True]
    assert not parsed.errors


def test_a_byte_order_mark_is_no_part_of_the_label():
    assert parse(LineParser("libfm"), ["\ufeff1 0:1"]).labels.tolist() == [1.0]


def test_not_a_number_passes_for_the_check_of_training():
    parsed = parse(LineParser("libfm"), ["nan 0:inf", "-inf 1:NaN"])
    assert not parsed.errors
    assert np.isinf(parsed.values[0])
    assert np.isnan(parsed.values[1])


def test_vectors_have_the_arrow_type_of_vector_udt():
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql.pandas.types import to_arrow_schema
    from pyspark.sql.types import StructType

    wanted = to_arrow_schema(StructType().add("features", VectorUDT())).field("features").type
    batch = pa.record_batch([pa.array(["1 2:3 9:1", "0"])], names=["value"])
    (result,) = list(ParseTask(LineParser("libfm"), "label", "features")(iter([batch])))
    assert wanted == VECTOR_TYPE
    assert result.schema.field("features").type == wanted
    assert result.column(1).to_pylist() == [
        {"type": 0, "size": 10, "indices": [2, 9], "values": [3.0, 1.0]},
        {"type": 0, "size": 0, "indices": [], "values": []},
    ]


def test_input_file_stays_with_its_row():
    batch = pa.record_batch([["", "1 1:1", "bad"], ["a", "b", "c"]], names=["value", "input_file"])
    (result,) = list(ParseTask(LineParser("libfm"), "y", "x")(iter([batch])))
    assert result.column("input_file").to_pylist() == ["b", "c"]
    assert result.column("y").to_pylist() == [1.0, None]
    assert result.column("x").to_pylist()[1] is None


def test_faults_hold_file_shortened_line_and_reason():
    lines = ["1 1:1", "1 " + "9:x " * 100]
    batch = pa.record_batch([lines, ["a", "b"]], names=["value", "input_file"])
    (result,) = list(FaultTask(LineParser("libfm"))(iter([batch])))
    (fault,) = result.to_pylist()
    assert fault["input_file"] == "b"
    assert len(fault["line"]) == 80
    assert fault["error"] == "the value of 9:x is x, not a number"
