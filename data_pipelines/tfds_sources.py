"""Audio data sets that TFDS has prepared on disk, read without TensorFlow (TFDS itself cannot open an Audio feature
without it).

Both of its file formats are read: ArrayRecord and TFRecord (length, checksum, bytes, checksum).
"""

import glob
import json
import os
import re
import struct

from array_record.python import array_record_module
import numpy as np

DEFAULT_DIRECTORY = "~/tensorflow_datasets"
INT16_SCALE = 32_768  # TFDS stores 16-bit samples in whatever integer the feature names


def _directory(name, data_dir):
    """The folder of the newest version of NAME or NAME/CONFIG."""
    root = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or DEFAULT_DIRECTORY)
    found = [
        os.path.dirname(path) for path in glob.glob(os.path.join(root, name, "**", "dataset_info.json"), recursive=True)
    ]
    if not found:
        raise FileNotFoundError(
            f"tfds:{name} is not prepared in {root}; run  tfds build {name} --data_dir={root}  "
            "or name another folder with --tfds-dir"
        )
    configs = sorted({os.path.dirname(folder) for folder in found})
    if len(configs) > 1:
        choices = ", ".join("tfds:" + os.path.relpath(config, root).replace(os.sep, "/") for config in configs)
        raise ValueError(f"tfds:{name} has several configurations in {root}; choose one of {choices}")
    return max(found, key=lambda folder: [int(number) for number in re.findall(r"\d+", os.path.basename(folder))])


def _read_json(folder, name):
    with open(os.path.join(folder, name)) as file:
        return json.load(file)


def _features(folder):
    """-> ({feature name: its JSON}, name of the audio feature)."""
    content = _read_json(folder, "features.json")
    features = content.get("featuresDict", content.get("features_dict", {})).get("features", {})
    audio = [name for name, feature in features.items() if _class(feature) == "Audio"]
    audio = audio or [
        name
        for name, feature in features.items()
        if _class(feature) == "Tensor" and name in ("audio", "waveform", "music", "speech")
    ]
    if len(audio) != 1:
        raise ValueError(f"{folder} has {len(audio)} audio features among {', '.join(features)}; exactly one is needed")
    return features, audio[0]


def _class(feature):
    return feature.get("pythonClassName", feature.get("python_class_name", "")).rsplit(".", 1)[-1]


def _shards(folder, split):
    """-> [(path, examples)] of one split entry of dataset_info.json."""
    info = _read_json(folder, "dataset_info.json")
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    lengths = [int(length) for length in split["shardLengths"]]
    for number, length in enumerate(lengths):
        values = {
            "DATASET": info["name"],
            "SPLIT": split["name"],
            "FILEFORMAT": info.get("fileFormat") or "tfrecord",
            "SHARD_INDEX": f"{number:05d}",
            "NUM_SHARDS": f"{len(lengths):05d}",
            "SHARD_X_OF_Y": f"{number:05d}-of-{len(lengths):05d}",
        }
        yield os.path.join(folder, template.format(**values)), length


def tracks(name, data_dir=None):
    """Yields a dict for each example: name, path of its shard, example number in it, domain, and split where the
    data set has several.
    """
    folder = _directory(name, data_dir)
    _features(folder)
    splits = _read_json(folder, "dataset_info.json")["splits"]
    for split in splits:
        held_out = {"validation": "validation", "valid": "validation", "test": "test"}.get(split["name"])
        several = held_out or ("train" if len(splits) > 1 else "")
        for path, length in _shards(folder, split):
            if not os.path.exists(path):
                raise FileNotFoundError(f"tfds:{name} lacks {path}; prepare it again with  tfds build {name}")
            for example in range(length):
                yield {
                    "name": f"{name}/{os.path.basename(path)}/{example}",
                    "path": path,
                    "example": example,
                    "split": several,
                    "domain": name.split("/")[0],
                    "ends": False,  # data sets hold clips of music
                    "bytes": os.path.getsize(path) // length,
                }


def _serialized(path, example):
    if ".tfrecord" not in os.path.basename(path):
        reader = array_record_module.ArrayRecordReader(path)
        data = reader.read([example])[0]
        reader.close()
        return data
    with open(path, "rb") as file:
        for _ in range(example):
            file.seek(struct.unpack("<Q", file.read(8))[0] + 8, os.SEEK_CUR)
        size = struct.unpack("<Q", file.read(8))[0]
        file.seek(4, os.SEEK_CUR)
        return file.read(size)


def read(path, example):
    """-> (audio float32 [C, S], sample_rate_hz, caption: the text or label of the example)."""
    from tensorflow_datasets.proto import tf_example_pb2  # brings all of TFDS with it

    folder = os.path.dirname(path)
    features, audio_name = _features(folder)
    kind = features[audio_name].get("audio") or features[audio_name].get("tensor")
    fields = tf_example_pb2.Example.FromString(_serialized(path, example)).features.feature

    def value(name):
        feature = fields[name]
        return getattr(feature, feature.WhichOneof("kind")).value

    rate = int(kind.get("sampleRate", 0)) or next(
        (int(value(name)[0]) for name in features if name in ("sample_rate", "sample_rate_hz", "rate")), 0
    )
    if not rate:
        raise ValueError("the TFDS features tell no sample rate")
    if kind.get("lazyDecode"):
        raise ValueError("stored undecoded (lazy_decode) in TFDS; prepare the data set without it")
    dtype, encoding = np.dtype(kind["dtype"]), kind.get("encoding", "none").lower()
    data = value(audio_name) if audio_name in fields else value(audio_name + "/value")
    if encoding == "zlib":
        raise ValueError("stored with zlib in TFDS; prepare the data set without it")
    audio = np.frombuffer(data[0], dtype) if encoding == "bytes" else np.array(data, dtype)
    channels = int(value(audio_name + "/shape")[1]) if audio_name + "/shape" in fields else _channels(kind)
    audio = audio.reshape(-1, channels).T.astype(np.float32)
    if not np.issubdtype(dtype, np.floating):
        audio /= INT16_SCALE
    return audio, rate, _caption(features, audio_name, value, folder)


def _channels(kind):
    dimensions = [int(size) for size in kind.get("shape", {}).get("dimensions", [])]
    return dimensions[1] if len(dimensions) > 1 else 1


def _caption(features, audio_name, value, folder):
    for name, feature in features.items():
        if _class(feature) == "Text" and name in ("caption", "text", "description"):
            return value(name)[0].decode(errors="replace")
    for name, feature in features.items():
        if _class(feature) == "ClassLabel":
            labels = os.path.join(folder, f"{name}.labels.txt")
            if os.path.exists(labels):
                with open(labels) as file:
                    return file.read().splitlines()[value(name)[0]]
    return ""
