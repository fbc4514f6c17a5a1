"""The bytes of one token record: the codes of a whole track, or of a shifted copy of it.

Four bytes hold the length of a JSON head, which follows them. Then come the codes `[T, F]` as uint16 and, where the
track has an embedding of its text, that embedding `[L, E]` as float32.
"""

import json
import math
import struct
from typing import Any

import numpy as np

from bandtok_jax.runtime import expect, untrusted

FIELDS = ("track", "offset_samples", "caption", "samples", "ends")

_TEXT, _COUNT = expect.text(1 << 20), expect.whole(0, 1 << 40)
_SHAPE = expect.listing(expect.whole(1, 1 << 40), most=2, least=2)
_CHECK_HEAD = expect.record(
    {
        **dict.fromkeys(("track", "caption"), _TEXT),
        **dict.fromkeys(("offset_samples", "samples"), _COUNT),
        "ends": expect.truth(),
        "shape": _SHAPE,
        "embedding_shape?": _SHAPE,
    },
    others=None,
)


def encode_token_record(record: dict[str, Any]) -> bytes:
    """Returns the bytes of a record.

    Args:
      record: `codes` int `[T, F]`, `track`, `offset_samples`, `caption`, `samples`, `ends` and perhaps `embedding`
        `[L, E]`. `ends` is false for a clip, whose track continues behind it.
    """
    codes, embedding = np.asarray(record["codes"]), record.get("embedding")
    head = {name: record[name] for name in FIELDS} | {"shape": codes.shape}
    body = codes.astype("<u2").tobytes()
    if embedding is not None:
        head["embedding_shape"] = np.shape(embedding)
        body += np.asarray(embedding, "<f4").tobytes()
    encoded_head = json.dumps(head).encode()
    return struct.pack("<I", len(encoded_head)) + encoded_head + body


def decode_token_record(data: bytes) -> dict[str, Any]:
    """Returns the record of bytes that `encode_token_record` wrote, its codes as int32 `[T, F]`.

    Raises:
      ValueError, struct.error: the bytes are damaged.
    """
    end = 4 + struct.unpack_from("<I", data)[0]
    untrusted.require_bytes(end, len(data), "its head")
    record = untrusted.parse_json(data[4:end], "its head", _CHECK_HEAD, cure="its bytes are damaged")
    shape, embedding_shape = record.pop("shape"), record.pop("embedding_shape", None)
    code_count, embedding_count = math.prod(shape), math.prod(embedding_shape or [0])
    if end + 2 * code_count + 4 * embedding_count != len(data):
        raise ValueError(f"its head announces codes of shape {shape}, which do not fit its {len(data)} bytes")
    record["codes"] = np.frombuffer(data, "<u2", code_count, end).reshape(shape).astype(np.int32)
    if embedding_shape is not None:
        record["embedding"] = np.frombuffer(data, "<f4", offset=end + 2 * code_count).reshape(embedding_shape)
        if not np.isfinite(record["embedding"]).all():
            raise ValueError("its embedding is not finite")
    return record
