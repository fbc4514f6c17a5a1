"""The bytes of one audio record: a `tf.train.Example` that TFDS reads too, written and read without protobuf and
TensorFlow.

The samples are its last field, so that a reader who knows the fields before them can fetch any part of the sound alone.
"""

import struct

import numpy as np

from bandtok_jax.data_pipelines.shards import read_varint
from bandtok_jax.runtime import untrusted

BYTES_LIST, FLOAT_LIST, INT64_LIST = 1, 2, 3  # fields of tf.train.Feature
FIELDS = {
    "sample_rate_hz": INT64_LIST,
    "track": BYTES_LIST,
    "start": INT64_LIST,
    "domain": BYTES_LIST,
    "full_band": INT64_LIST,
    "lufs": FLOAT_LIST,
    "mono_lufs": FLOAT_LIST,
    "caption": BYTES_LIST,
    "licence": BYTES_LIST,
}
_TEXT, _LEVEL = untrusted.text(1 << 20), untrusted.number(-1000, 1000)
CHECK = untrusted.record(
    {
        "sample_rate_hz": untrusted.whole(1, 1 << 20),
        "track": _TEXT,
        "start": untrusted.whole(),
        "domain": _TEXT,
        "full_band": untrusted.truth(),
        "lufs": _LEVEL,
        "mono_lufs": _LEVEL,
        "caption": _TEXT,
        "licence": _TEXT,
    }
)
MOST_CHANNELS = 8


def tfds_features():
    """The same fields for TFDS."""
    import tensorflow_datasets as tfds  # seconds to import, and workers need none of it

    text, number, level = tfds.features.Text(), tfds.features.Scalar(np.int64), tfds.features.Scalar(np.float32)
    return tfds.features.FeaturesDict(
        {
            "audio": tfds.features.Tensor(shape=(None, None), dtype=np.int16, encoding="bytes"),
            "sample_rate_hz": number,
            "track": text,
            "start": number,
            "domain": text,
            "full_band": tfds.features.Scalar(np.bool_),
            "lufs": level,
            "mono_lufs": level,
            "caption": text,
            "licence": text,
        }
    )


def _varint(number):
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    data.append(number)
    return bytes(data)


def _message(field, payload):
    return bytes([field << 3 | 2]) + _varint(len(payload)) + payload


def _feature(name, kind, payload):
    return _message(1, _message(1, name.encode()) + _message(2, _message(kind, _message(1, payload))))


def encode(record):
    """Audio record {'audio': int16 [S, C], ...} -> bytes of a `tf.train.Example` whose last field is the samples."""
    fields = b""
    for name, kind in FIELDS.items():
        value = record[name]
        payload = (
            value.encode()
            if kind == BYTES_LIST
            else struct.pack("<f", value)
            if kind == FLOAT_LIST
            else _varint(int(value))
        )
        fields += _feature(name, kind, payload)
    samples, channels = record["audio"].shape
    fields += _feature("audio/shape", INT64_LIST, _varint(samples) + _varint(channels))
    fields += _feature("audio/value", BYTES_LIST, np.ascontiguousarray(record["audio"], "<i2").tobytes())
    return _message(1, fields)


def _open_message(data, at):
    """Skips one tag: -> field, where its payload begins, its size."""
    size, begin = read_varint(data, at + 1)
    if data[at] & 7 != 2:
        raise ValueError("no message lies where it should")
    return data[at] >> 3, begin, size


def decode_head(data):
    """First bytes of a record -> its fields but for the samples, their shape `(S, C)`, and where they begin.

    Raises: IndexError: there are too few bytes; ValueError: they are not as `encode` writes them.
    """
    record, shape, at = _fields(data)
    CHECK(record, "")
    if len(shape) != 2 or not (0 < shape[0] < 1 << 40 and 0 < shape[1] <= MOST_CHANNELS):
        raise ValueError(f"samples of shape {untrusted.shown(shape)}")
    return record, shape, at


def _fields(data):
    """The fields of a record, in whatever order, up to its samples; see `decode_head`."""
    record, shape, at = {}, (), _open_message(data, 0)[1]
    while True:
        _, at, entry_size = _open_message(data, at)
        end = at + entry_size
        _, key_at, key_size = _open_message(data, at)
        name = _taken(data, key_at, key_size).decode()
        _, at, _ = _open_message(data, key_at + key_size)  # the feature
        kind, at, _ = _open_message(data, at)  # its list
        _, at, size = _open_message(data, at)  # its one value, or its packed numbers
        if name == "audio/value":
            return record, shape, at
        if kind != (INT64_LIST if name == "audio/shape" else FIELDS.get(name)):
            raise ValueError(f"{untrusted.shown(name)} is no field of a record, or of another type")
        payload = _taken(data, at, size)
        if kind == FLOAT_LIST:
            record[name] = struct.unpack("<f", payload)[0]
        elif kind == BYTES_LIST:
            record[name] = payload.decode()
        elif name == "audio/shape":
            shape = tuple(_numbers(payload))
        else:
            (number,) = _numbers(payload)
            record[name] = bool(number) if name == "full_band" else number
        at = end


def _taken(data, at, size):
    if at + size > len(data):
        raise IndexError("a field goes on behind what is there")
    return bytes(data[at : at + size])


def _numbers(payload):
    numbers, at = [], 0
    while at < len(payload):
        number, at = read_varint(payload, at)
        numbers.append(number)
    return numbers
