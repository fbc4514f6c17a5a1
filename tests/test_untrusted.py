"""The door for content from elsewhere, and the fuzzer that tries it."""

import json
import os
import time

import pytest

from bandtok_jax.runtime import expect, untrusted
from tests import fuzz

SCHEMA = expect.record(
    {
        "version": expect.whole(1, 1),
        "name": expect.text(20),
        "shards": expect.listing(expect.record({"file": expect.file_name(), "bytes": expect.whole()}), 3),
        "scale?": expect.number(0, 1),
        "cards?": expect.mapping(expect.optional(expect.text())),
    },
    others=None,
)
VALID = {"version": 1, "name": "a", "shards": [{"file": "a.bin", "bytes": 3}], "scale": 0.5, "cards": {"x": None}}


def refused(path, content, check=SCHEMA):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(untrusted.Refused) as raised:
        untrusted.read_json(path, check, cure="write it again")
    line = str(raised.value)
    assert line.startswith(f"{path}: ") and line.endswith("write it again") and len(line) < 500 and line.isprintable()
    return line


def test_a_document_is_taken_or_refused_by_the_place_in_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(VALID))
    assert untrusted.read_json(path, SCHEMA) == VALID
    for change, message in [
        ({"version": True}, "version is True, not a whole number from 1 to 1"),
        ({"version": 2}, "version is 2"),
        ({"name": "x" * 10_000}, "not text of at most 20 letters"),
        ({"name": "a\0"}, r"name is 'a\x00'"),
        ({"shards": {}}, "shards is {}, not a list of 0 to 3"),
        ({"shards": [{"file": "../a", "bytes": 0}]}, "shards[0].file is '../a', not the name of a file"),
        ({"shards": [{"file": "a"}]}, "shards[0] has no bytes"),
        ({"shards": [{"file": "a", "bytes": -1}]}, "shards[0].bytes is -1"),
        ({"scale": 2}, "scale is 2, not a number from 0 to 1"),
        ({"scale": "1"}, "scale is '1'"),
        ({"cards": {"\x1b[2J": 1}}, r"cards.\x1b[2J is 1, not text"),
        ({"other": 1}, "it has 'other', which is not known"),
    ]:
        assert message in refused(path, VALID | change)
    assert "its content is []" in refused(path, [])


def test_text_that_is_no_plain_json_is_refused(tmp_path):
    path = tmp_path / "a.json"
    for content, message in [
        (b"", "no JSON"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b"[" * 40 + b"]" * 40, "nested more than 32 deep"),
        (b'{"a": NaN}', "it holds NaN"),
        (b'{"a": -Infinity}', "it holds -Infinity"),
        (b'{"a": 1e999}', "it holds inf"),
        (b'{"a": 9223372036854775808}', "which no 64 bits hold"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "digits"),
        (b'{"a": "\\ud800"}', "no text in UTF-8"),
    ]:
        assert message in refused(path, content, expect.anything)


def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(untrusted.Refused, match="no regular file"):
        untrusted.read_json(tmp_path / "pipe", expect.anything)
    (tmp_path / "large").write_bytes(b"[" + b" " * 1000 + b"]")
    with pytest.raises(untrusted.Refused, match="has 1002 bytes, and such a file has at most 1000"):
        untrusted.read_json(tmp_path / "large", expect.anything, most_bytes=1000)
    for path, error in ((tmp_path / "none", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(error):
            untrusted.read_json(path, expect.anything)


@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError(), MemoryError(), ValueError("a\n\x1b[2J" * 999), OSError("x")]
)
def test_every_error_inside_becomes_a_line_about_the_file(error):
    with pytest.raises(untrusted.Refused, match="^folder/a.bin: .*; copy it again$") as raised:
        with untrusted.reading("folder/a.bin"):
            raise error
    assert len(str(raised.value)) < 500 and str(raised.value).isprintable()


def test_control_characters_are_written_as_escapes():
    assert untrusted.printable("a\x1b[31m\r\n\x9b\u202e\ud800 é 音") == r"a\x1b[31m\r\n\x9b\u202e\ud800 é 音"
    assert untrusted.printable(os.fsdecode(b"caf\xe9.wav\n")) == r"caf\xe9.wav\n"
    assert len(untrusted.one_line("\x1b" * 10_000)) == untrusted.MAX_LINE_LETTERS
    assert untrusted.one_line("a\nb \x07") == r"a b \x07"
    assert untrusted.shown(16**9999) == "a int that is too large to be written" or len(untrusted.shown(16**9999)) < 80


def test_documents_under_the_fuzzer(tmp_path):
    ends = fuzz.check(
        lambda path: untrusted.read_json(path, SCHEMA), tmp_path / "a.json", json.dumps(VALID).encode(), fuzz.json_text
    )
    assert ends["taken"] + ends["refused"] == 200 and ends["taken"] > 5


@pytest.mark.parametrize(
    "read, message",
    [
        (lambda data: 1 / data.count(b"x"), "ZeroDivisionError"),
        (lambda data: time.sleep(60), "took more than 0.1 s"),
        (lambda data: bytearray(1 << 40), "MemoryError"),
        (lambda data: int("no number"), "of "),
        (lambda data: (_ for _ in ()).throw(ValueError("\n".join(["path"] * 500))), "letters"),
    ],
)
def test_the_fuzzer_sees_what_falls_short(read, message, tmp_path):
    def reader(path):
        if (data := path.read_bytes()) != b"x":
            read(data)

    with pytest.raises(AssertionError, match="of 10 cases of seed 0 ended otherwise") as raised:
        fuzz.check(reader, tmp_path / "a", b"x", lambda *_: b"y", cases=10, seconds=0.1)
    assert message in str(raised.value)
