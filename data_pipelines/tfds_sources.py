"""Audio data sets that TFDS has prepared on disk, read without TensorFlow.

TFDS itself cannot open an Audio feature without TensorFlow. Both of its file formats are read: ArrayRecord and TFRecord
(length, checksum, bytes, checksum). The metadata come from elsewhere, so they are checked before use.
"""

from collections.abc import Callable, Iterator
import functools
import glob
import os
import re
import struct
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
import numpy as np

from bandtok_jax.data_pipelines import shards
from bandtok_jax.runtime import expect, untrusted

DEFAULT_DIRECTORY = "~/tensorflow_datasets"
INT16_SCALE = 32_768  # TFDS stores 16-bit samples in the integer type of the feature
MIN_RECORD_BYTES = 16  # of TFRecord: a length and two checksums
MAX_EXAMPLES = 100_000_000
CURE = "prepare the data set again with  tfds build"
_TYPES = ("int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")
# TFDS writes numbers of its metadata as text.
_WHOLE = r"\d{1,9}"
_SPLIT = expect.record(
    {
        "name": expect.text(100, r"[\w.-]+"),
        "shardLengths?": expect.listing(expect.text(9, _WHOLE)),
        "filepathTemplate?": expect.text(200),
    }
)
_INFO = expect.record(
    {"name": expect.text(200), "fileFormat?": expect.text(40), "splits": expect.listing(_SPLIT, least=1)}
)
_KIND = expect.record(
    {
        "dtype?": expect.one_of(*_TYPES),
        "encoding?": expect.text(40),
        "sampleRate?": expect.text(9, _WHOLE),
        "lazyDecode?": expect.truth(),
        "shape?": expect.record({"dimensions?": expect.listing(expect.text(12, r"-?\d+"), most=8)}),
    }
)
_FEATURE = {
    **dict.fromkeys(("pythonClassName?", "python_class_name?"), expect.text(1000)),
    **dict.fromkeys(("audio?", "tensor?"), _KIND),
}
_GROUPS = ("featuresDict", "features_dict")
_GROUP = expect.record({"features": expect.mapping(expect.record(_FEATURE), most=10_000)})
_OUTER_FEATURE = expect.record(_FEATURE | {f"{name}?": _GROUP for name in _GROUPS})
_FEATURES = expect.record({"features": expect.mapping(_OUTER_FEATURE, most=10_000)})
_CONTENT = expect.record({f"{name}?": _FEATURES for name in _GROUPS})


def _directory(name: str, data_dir: str | os.PathLike | None) -> str:
    """Returns the folder of the newest version of NAME or NAME/CONFIG."""
    root = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or DEFAULT_DIRECTORY)
    pattern = os.path.join(root, name, "**", "dataset_info.json")
    folders = [os.path.dirname(path) for path in glob.glob(pattern, recursive=True)]
    if not folders:
        raise FileNotFoundError(
            f"tfds:{name} is not prepared in {root}; run  tfds build {name} --data_dir={root}  "
            "or name another folder with --tfds-dir"
        )
    configs = sorted({os.path.dirname(folder) for folder in folders})
    if len(configs) > 1:
        choices = ", ".join("tfds:" + os.path.relpath(config, root).replace(os.sep, "/") for config in configs)
        raise ValueError(f"tfds:{name} has several configurations in {root}; choose one of {choices}")
    return max(folders, key=lambda folder: [int(number) for number in re.findall(r"\d+", os.path.basename(folder))])


def _features(folder: str) -> tuple[dict[str, Any], str]:
    """Returns {feature: its JSON} and the name of the audio feature.

    Features in a group are named GROUP/FEATURE.
    """
    path = os.path.join(folder, "features.json")
    content = untrusted.read_json(path, _CONTENT, cure=CURE)
    features: dict[str, Any] = {}
    for name, feature in _members(content).items():
        members = _members(feature)
        features |= {f"{name}/{member}": inner for member, inner in members.items()} if members else {name: feature}
    audio = [name for name, feature in features.items() if _class_name(feature) == "Audio"]
    audio = audio or [
        name
        for name, feature in features.items()
        if _class_name(feature) == "Tensor" and name in ("audio", "waveform", "music", "speech")
    ]
    if len(audio) != 1:
        names = ", ".join(features) or "none"
        raise untrusted.refusal(path, f"{len(audio)} audio features among {names}", "exactly one is needed")
    return features, audio[0]


def _members(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the features of a group, or {} for another feature."""
    return next((content[name]["features"] for name in _GROUPS if name in content), {})


def _class_name(feature: dict[str, Any]) -> str:
    return feature.get("pythonClassName", feature.get("python_class_name", "")).rsplit(".", 1)[-1]


def _shards(folder: str) -> Iterator[tuple[str, str, int]]:
    """Yields (split, path, examples) of each shard in dataset_info.json."""
    path = os.path.join(folder, "dataset_info.json")
    info = untrusted.read_json(path, _INFO, cure=CURE)
    with untrusted.reading(path, CURE):
        for split in info["splits"]:
            template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
            count = len(split.get("shardLengths", []))
            for number, length in enumerate(map(int, split.get("shardLengths", []))):
                values = {
                    "DATASET": info["name"],
                    "SPLIT": split["name"],
                    "FILEFORMAT": info.get("fileFormat") or "tfrecord",
                    "SHARD_INDEX": f"{number:05d}",
                    "NUM_SHARDS": f"{count:05d}",
                    "SHARD_X_OF_Y": f"{number:05d}-of-{count:05d}",
                }
                # Not str.format, since a template could request gigabytes of blanks, or attributes.
                name = re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)
                expect.file_name()(name, "a file of a shard")
                yield split["name"], os.path.join(folder, name), length


def list_examples(name: str, data_dir: str | os.PathLike | None = None) -> Iterator[dict[str, Any]]:
    """Yields the fields of a `SourceTrack` for each example; the split is "" where the data set has one alone.

    Raises:
      FileNotFoundError, ValueError: the data set is not prepared, or damaged.
    """
    folder = _directory(name, data_dir)
    _features(folder)
    listed = list(_shards(folder))
    several = len({split for split, _, _ in listed}) > 1
    for split, path, length in listed:
        held_out = {"validation": "validation", "valid": "validation", "test": "test"}.get(split)
        if not os.path.exists(path):
            raise FileNotFoundError(f"tfds:{name} lacks {path}; prepare it again with  tfds build {name}")
        with untrusted.reading(path, CURE):
            if length != (count := _count_examples(path)):
                raise ValueError(f"it holds {count} examples, and dataset_info.json names {length}")
        for example in range(length):
            yield {
                "name": f"{name}/{os.path.basename(path)}/{example}",
                "path": path,
                "example": example,
                "split": held_out or ("train" if several else ""),
                "domain": name.split("/")[0],
                "ends": False,  # examples of data sets are clips of music
                "bytes": os.path.getsize(path) // length,
            }


def _is_tfrecord(path: str) -> bool:
    return ".tfrecord" in os.path.basename(path)


def _count_examples(path: str) -> int:
    """Returns the number of examples in a shard."""
    if _is_tfrecord(path):
        return len(_offsets(path, os.path.getsize(path), os.stat(path).st_mtime_ns))
    with _ArrayRecordFile(path) as reader:
        return reader.num_records()


@functools.lru_cache(maxsize=16)
def _offsets(path: str, size: int, changed_ns: int) -> list[tuple[int, int]]:
    """Returns [(offset, size)] of the examples of a TFRecord file; a changed file has another key in the cache."""
    offsets, position = [], 0
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(8)
            if len(header) < 8:
                raise ValueError("its end is missing")
            (length,) = struct.unpack("<Q", header)
            untrusted.require_bytes(length, size - position - MIN_RECORD_BYTES, f"example {len(offsets)}")
            offsets.append((position + 12, length))
            position += length + MIN_RECORD_BYTES
    return offsets


class _ArrayRecordFile:
    """ArrayRecord's reader as a context manager; its errors are RuntimeErrors."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> Any:
        if os.path.getsize(self._path) % shards.BLOCK_BYTES:
            raise ValueError("its end is missing")
        self._reader = ArrayRecordReader(self._path)
        return self._reader

    def __exit__(self, *_: object) -> None:
        self._reader.close()


def _read_serialized(path: str, example: int) -> bytes:
    if not _is_tfrecord(path):
        with _ArrayRecordFile(path) as reader:
            return reader.read([example])[0]
    offset, size = _offsets(path, os.path.getsize(path), os.stat(path).st_mtime_ns)[example]
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def read_example(path: str, example: int) -> tuple[np.ndarray, int, str]:
    """Returns the audio float32 `[C, S]`, its sample rate in Hz, and the text or label of an example as its caption.

    Raises:
      ValueError: the example is damaged, or stored in a way that is not supported.
    """
    folder = os.path.dirname(path)
    features, audio_name = _features(folder)
    with untrusted.reading(path, CURE):
        return _decode(_read_serialized(path, example), features, audio_name, folder)


def _decode(data: bytes, features: dict[str, Any], audio_name: str, folder: str) -> tuple[np.ndarray, int, str]:
    from tensorflow_datasets.proto import tf_example_pb2  # imports all of TFDS

    kind = features[audio_name].get("audio") or features[audio_name].get("tensor") or {}
    fields = tf_example_pb2.Example.FromString(data).features.feature

    def value(name: str) -> Any:
        if name not in fields or not fields[name].WhichOneof("kind"):
            raise ValueError(f"an example has no {name}")
        feature = fields[name]
        return getattr(feature, feature.WhichOneof("kind")).value

    rate = int(kind.get("sampleRate", 0)) or next(
        (int(value(name)[0]) for name in features if name in ("sample_rate", "sample_rate_hz", "rate")), 0
    )
    if not rate:
        raise ValueError("the TFDS features have no sample rate")
    if kind.get("lazyDecode"):
        raise ValueError("stored undecoded (lazy_decode) in TFDS; prepare the data set without it")
    if "dtype" not in kind:
        raise ValueError(f"the TFDS feature {audio_name} has no dtype")
    dtype, encoding = np.dtype(kind["dtype"]), kind.get("encoding", "none").lower()
    stored = value(audio_name) if audio_name in fields else value(audio_name + "/value")
    if encoding == "zlib":
        raise ValueError("stored with zlib in TFDS; prepare the data set without it")
    audio = np.frombuffer(stored[0], dtype) if encoding == "bytes" else np.array(stored, dtype)
    channels = int(value(audio_name + "/shape")[1]) if audio_name + "/shape" in fields else _channels(kind)
    if not 0 < channels <= max(1, len(audio)):
        raise ValueError(f"{channels} channels of {len(audio)} numbers")
    audio = audio.reshape(-1, channels).T.astype(np.float32)
    if not np.issubdtype(dtype, np.floating):
        audio /= INT16_SCALE
    return audio, rate, _caption(features, value, folder)


def _channels(kind: dict[str, Any]) -> int:
    dimensions = [int(size) for size in kind.get("shape", {}).get("dimensions", [])]
    return dimensions[1] if len(dimensions) > 1 else 1


def _caption(features: dict[str, Any], value: Callable[[str], Any], folder: str) -> str:
    """Returns the caption of an example: its text, or the name of its first label that has names."""
    for name, feature in features.items():
        if _class_name(feature) == "Text" and name in ("caption", "text", "description"):
            return value(name)[0].decode(errors="replace")
    for name, feature in features.items():
        file_name = f"{name.replace('/', '-')}.labels.txt"
        labels = os.path.join(folder, file_name)
        if _class_name(feature) == "ClassLabel" and os.path.basename(labels) == file_name:
            if os.path.exists(labels):
                names, number = untrusted.read_bytes(labels).decode().splitlines(), value(name)[0]
                if not 0 <= number < len(names):
                    raise ValueError(f"{name} is {number}, and there are {len(names)} labels")
                return names[number]
    return ""
