"""The suite for third parties' codecs takes the way of stored values, and finds faulty codecs."""

from __future__ import annotations

import itertools
import json

import pytest
from support.toys import Blob, Child, Liar, MemoryReader, MemoryWriter, Pieces

from sqla_datastore.codecs import Description, register_codec
from sqla_datastore.exceptions import (
    DamagedObjectError,
    StaleValueError,
    UnsupportedFormatError,
    UnsupportedTypeError,
)
from sqla_datastore.format import Container, plan
from sqla_datastore.testing import CodecSuite, decode_value, encode_value


class Note(str):
    """A text that a careful codec stores; each faulty codec has a subclass of its own."""


class NoteCodec:
    name = "notes.note"
    version = 1
    mutable = False
    type = Note

    def types(self):
        return (self.type,)

    def takes(self, value):
        return False

    def encode(self, value, encoder):
        return {"text": str(value), "blob": encoder.blob(Pieces(value.encode()))}

    def decode(self, node, version, decoder):
        match node:
            case {"text": str(text), "blob": number}:
                if decoder.blob(number) == text.encode("utf-8", "surrogatepass"):
                    return self.type(text)
        raise decoder.damaged("a note is its text, and the same as a blob")

    def describe(self, node):
        return Description("notes.Note")


def faulty(name, **methods):
    """Register a codec with some other methods, and return a value that it takes."""
    kind = type(name, (Note,), {})
    register_codec(
        type(f"{name}Codec", (NoteCodec,), {"name": f"notes.{name}", "type": kind, **methods})()
    )
    return kind("text")


register_codec(NoteCodec())
counter = itertools.count()
HASTY = faulty("hasty", decode=lambda self, node, version, decoder: self.type(node["text"]))
TRUSTING = faulty(
    "trusting",
    decode=lambda self, node, version, decoder: self.type(
        bytes(decoder.blob(0)).decode() if isinstance(node, dict) else ""
    ),
)
FORGETFUL = faulty(
    "forgetful", decode=lambda self, node, version, decoder: Note(bytes(decoder.blob(0)).decode())
)
UNSTEADY = faulty("unsteady", encode=lambda self, value, encoder: next(counter))
SUFFIXED = faulty(
    "suffixed", encode=lambda self, value, encoder: encoder.blob(Pieces(b"data", ".exe"))
)


class TestACarefulCodec(CodecSuite):
    @pytest.fixture
    def codec(self):
        return NoteCodec()

    @pytest.fixture
    def values(self):
        return [Note(""), Note("text"), Note("ä" * 5000)]


@pytest.mark.parametrize(
    ("promise", "value", "error"),
    [
        ("test_a_changed_node_is_a_value_or_damage", HASTY, TypeError),
        ("test_changed_bytes_are_a_value_or_damage", TRUSTING, UnicodeDecodeError),
        ("test_every_value_comes_back_as_it_was", FORGETFUL, AssertionError),
        ("test_the_same_value_is_the_same_bytes", UNSTEADY, AssertionError),
        ("test_every_value_comes_back_as_it_was", SUFFIXED, AssertionError),
        ("test_every_value_comes_back_as_it_was", Liar(1), StaleValueError),
    ],
)
def test_a_faulty_codec_is_found(promise, value, error):
    with pytest.raises(error):
        getattr(CodecSuite(), promise)([value])


def test_a_fragile_description_is_found():
    codec = type("Codec", (NoteCodec,), {"describe": lambda self, node: Description(node["text"])})
    with pytest.raises((KeyError, TypeError)):
        CodecSuite().test_any_node_is_described(codec(), [Note("text")])


@pytest.mark.parametrize("value", ["x" * 5000, "x" * 4097, "é" * 4096, [1, "x" * 5000], 2**53])
def test_a_value_is_encoded_as_it_is_stored(value):
    """A text of 5,000 characters, for one, is no JSON in the node but a blob of its codec."""
    writer = MemoryWriter()
    plan({"value": value}, nested_entries=dict).objects[0].write(writer)
    reader = MemoryReader(writer.data)
    entry = Container.open(reader, "file:///a.zip", nested=int).entry("value")
    text, blobs = encode_value(value)
    assert text == entry.node
    assert blobs == [bytes(blob.load()) for blob in entry.blobs]
    assert decode_value(text, blobs) == value


def test_a_long_text_is_a_blob():
    text, blobs = encode_value("x" * 5000)
    assert json.loads(text) == ["plain.str", 1, 0]
    assert blobs == [b"x" * 5000]


def test_what_decoders_refuse_is_refused():
    blob = {"numbers": [0], "mapped": False}
    assert decode_value(json.dumps(["toy.blob", 1, blob]), [b"x"]) == Blob(b"x")
    for node in (["toy.blob", 1, {**blob, "numbers": [0, 0]}], ["toy.child", 1, 0], {}, []):
        with pytest.raises(DamagedObjectError) as caught:
            decode_value(json.dumps(node), [b"x"])
        assert caught.value.entry == "value"
    for node in (["notes.unknown", 1, None], ["toy.blob", 2, blob]):
        with pytest.raises(UnsupportedFormatError):
            decode_value(json.dumps(node), [b"x"])


def test_nested_values_are_encoded_and_not_kept():
    text, blobs = encode_value(Child(a=1))
    assert (json.loads(text), blobs) == (["toy.child", 1, 0], [])
    with pytest.raises(DamagedObjectError, match="nested"):
        decode_value(text, blobs)


def test_what_no_codec_takes_is_refused_by_its_place():
    with pytest.raises(UnsupportedTypeError) as caught:
        encode_value([1, (object(),)])
    assert caught.value.entry == "value[1][0]"
