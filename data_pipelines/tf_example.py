"""The bytes of one audio record, a `tf.train.Example` that TFDS reads too, without protobuf and TensorFlow.

The samples are its last field, so a reader of the fields before them can fetch any part of the audio alone.
"""

import struct
from typing import Any

import numpy as np

from bandtok_jax.data_pipelines.shards import read_varint
from bandtok_jax.runtime import expect, untrusted

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
    "lyrics": BYTES_LIST,
}
_TEXT, _LEVEL = expect.text(1 << 20), expect.number(-1000, 1000)
CHECK = expect.record(
    {
        "sample_rate_hz": expect.whole(1, 1 << 20),
        "track": _TEXT,
        "start": expect.whole(),
        "domain": _TEXT,
        "full_band": expect.truth(),
        "lufs": _LEVEL,
        "mono_lufs": _LEVEL,
        "caption": _TEXT,
        "licence": _TEXT,
        "lyrics": _TEXT,
    }
)
MAX_CHANNELS = 8


def tfds_features() -> Any:
    """Returns the features of a record for TFDS."""
    import tensorflow_datasets as tfds  # takes seconds, and workers do not need it

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
            "lyrics": text,
        }
    )


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    data.append(number)
    return bytes(data)


def _message(field: int, payload: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(payload)) + payload


def _feature(name: str, kind: int, payload: bytes) -> bytes:
    return _message(1, _message(1, name.encode()) + _message(2, _message(kind, _message(1, payload))))


def encode_example(record: dict[str, Any]) -> bytes:
    """Returns the bytes of a record {'audio': int16 `[S, C]`, ...}, with the samples last."""
    record, fields = {"lyrics": "", **record}, b""
    for name, kind in FIELDS.items():
        value = record[name]
        if kind == BYTES_LIST:
            payload = value.encode()
        else:
            payload = struct.pack("<f", value) if kind == FLOAT_LIST else _varint(int(value))
        fields += _feature(name, kind, payload)
    samples, channels = record["audio"].shape
    fields += _feature("audio/shape", INT64_LIST, _varint(samples) + _varint(channels))
    fields += _feature("audio/value", BYTES_LIST, np.ascontiguousarray(record["audio"], "<i2").tobytes())
    return _message(1, fields)


def _open_message(data: bytes, position: int) -> tuple[int, int, int]:
    """Reads one tag and returns the field, the begin of its payload, and its size."""
    size, begin = read_varint(data, position + 1)
    if data[position] & 7 != 2:
        raise ValueError(f"no message begins at byte {position}")
    return data[position] >> 3, begin, size


def decode_head(data: bytes) -> tuple[dict[str, Any], tuple[int, ...], int]:
    """Returns the fields before the samples, the samples' shape `(S, C)`, and the byte at which they begin.

    Args:
      data: the first bytes of a record.

    Raises:
      IndexError: `data` is too short.
      ValueError: the record is damaged.
    """
    record, shape, begin = _fields(data)
    CHECK(record, "")
    if len(shape) != 2 or not (0 < shape[0] < 1 << 40 and 0 < shape[1] <= MAX_CHANNELS):
        raise ValueError(f"samples of shape {untrusted.shown(shape)}")
    return record, shape, begin


def _fields(data: bytes) -> tuple[dict[str, Any], tuple[int, ...], int]:
    """Returns the fields of a record, in any order, up to its samples; see `decode_head`."""
    record: dict[str, Any] = {"lyrics": ""}  # the one field that older records do not have
    shape: tuple[int, ...] = ()
    position = _open_message(data, 0)[1]
    while True:
        _, position, entry_size = _open_message(data, position)
        end = position + entry_size
        _, key_position, key_size = _open_message(data, position)
        name = _read_bytes(data, key_position, key_size).decode()
        _, position, _ = _open_message(data, key_position + key_size)  # the feature
        kind, position, _ = _open_message(data, position)  # its list
        _, position, size = _open_message(data, position)  # its one value, or its packed numbers
        if name == "audio/value":
            return record, shape, position
        if kind != (INT64_LIST if name == "audio/shape" else FIELDS.get(name)):
            raise ValueError(f"{untrusted.shown(name)} is no field of a record, or of another type")
        payload = _read_bytes(data, position, size)
        if kind == FLOAT_LIST:
            record[name] = struct.unpack("<f", payload)[0]
        elif kind == BYTES_LIST:
            record[name] = payload.decode()
        elif name == "audio/shape":
            shape = tuple(_read_numbers(payload))
        else:
            (number,) = _read_numbers(payload)
            record[name] = bool(number) if name == "full_band" else number
        position = end


def _read_bytes(data: bytes, position: int, size: int) -> bytes:
    if position + size > len(data):
        raise IndexError(f"a field ends at byte {position + size} of {len(data)}")
    return bytes(data[position : position + size])


def _read_numbers(payload: bytes) -> list[int]:
    numbers, position = [], 0
    while position < len(payload):
        number, position = read_varint(payload, position)
        numbers.append(number)
    return numbers
