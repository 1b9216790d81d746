"""The generated module says what the schema says."""

from __future__ import annotations

import re
from pathlib import Path

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from spark_fm.formats.recordio import record_pb2

SCHEMA = Path(record_pb2.__file__).with_name("record.proto")
TYPES = {
    getattr(FieldDescriptorProto, f"TYPE_{name.upper()}"): name
    for name in ("float", "double", "int32", "uint64", "bytes", "string")
}


def declared() -> set[tuple[str, str, str, int]]:
    """Return (message, type, field, number) of the fields in the schema's text."""
    text = re.sub(r"//.*", "", SCHEMA.read_text())
    found = set()
    for message, body in re.findall(r"message (\w+) \{(.*?)\n\}", text, re.S):
        for kind, name, number in re.findall(r"([\w<>, ]+?) (\w+) = (\d+)", body):
            words = re.sub(r"\b(optional|repeated)\b", "", kind).split()
            found.add((message, "map" if "map" in kind else words[0], name, int(number)))
    return found


def generated() -> set[tuple[str, str, str, int]]:
    """Return the same of the generated module."""
    file = FileDescriptorProto.FromString(record_pb2.DESCRIPTOR.serialized_pb)
    found = set()
    for message in file.message_type:
        for field in message.field:
            kind = TYPES.get(field.type, field.type_name.rsplit(".", 1)[-1])
            found.add((message.name, "map" if kind.endswith("Entry") else kind, field.name,
                       field.number))  # fmt: skip
    return found


def test_the_generated_module_is_current():
    assert declared() == generated()
    assert len(generated()) == 20


def test_numbers_are_packed_and_the_syntax_is_proto2():
    file = FileDescriptorProto.FromString(record_pb2.DESCRIPTOR.serialized_pb)
    packed = [
        field.options.packed
        for message in file.message_type
        for field in message.field
        if message.name.endswith("Tensor")
    ]

    assert packed == [True] * 9
    assert file.syntax in ("", "proto2")
