"""Whole corpora as token records: whole tracks, shifted copies, and no work done twice."""

import functools
import json

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
import pytest

import bandtok_jax
from bandtok_jax import corpus
from bandtok_jax.codec import Codec
from bandtok_jax.data_pipelines import examples, records, shards
from bandtok_jax.data_pipelines.tokens import MANIFEST, TokenSource, manifest

RATE, RECORD = 44100, 20_000


@functools.cache
def codec():
    return Codec(bandtok_jax.create("bandtok:tiny", seed=0).stages["tokenizer"], chunk_columns=8)


def sound(name: str, samples: int) -> np.ndarray:
    noise = np.random.default_rng(len(name)).normal(size=(samples, 2))
    return (3000 * noise).astype(np.int16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared folder: "long" lies in three records, and in "gap" one between two others was left out."""
    folder = tmp_path_factory.mktemp("data")
    layout = {
        "train": [("long", 0, 45_000), ("gap", 0, 20_000), ("gap", 40_000, 20_000)],
        "validation": [("last", 0, 9_000)],
    }
    splits = {}
    for split, tracks in layout.items():
        parts = [
            (n, at, sound(n, s)[at - start : at - start + RECORD])
            for n, start, s in tracks
            for at in range(start, start + s, RECORD)
        ]
        writer = ArrayRecordWriter(str(folder / split), shards.WRITER_OPTIONS)
        for name, start, audio in parts:
            facts = {
                "domain": "music",
                "full_band": True,
                "lufs": -20.0,
                "mono_lufs": -20.0,
                "licence": "",
                "caption": f"a {name}",
            }
            writer.write(
                examples.encode({"audio": audio, "sample_rate_hz": RATE, "track": name, "start": start, **facts})
            )
        writer.close()
        splits[split] = {"records": len(parts), "shards": [{"file": split, "records": len(parts)}]}
    (folder / records.MANIFEST).write_text(json.dumps({"splits": splits}))
    return folder


def expected(name, samples, offset=0):
    """By the codec's front door: -20 LUFS brought to the -16 of the training."""
    audio = sound(name, samples).astype(np.float32).mean(axis=1) * np.float32(10 ** (4 / 20) / 32768)
    return codec().encode(audio[offset:], RATE)


def test_whole_tracks_and_shifted_copies(data, tmp_path):
    result = corpus.tokenize(codec(), data, tmp_path / "tokens", offsets=2, tokenizer="runs/tokenizer")
    assert result["weight_hash"] == codec().weight_hash and result["tokenizer"] == "runs/tokenizer"
    assert {name: split["pieces"] for name, split in result["splits"].items()} == {"train": 6, "validation": 1}
    train = TokenSource(tmp_path / "tokens", "train")
    found = [
        (piece["track"], piece["offset_samples"], piece["samples"], len(piece["codes"]))
        for piece in (train[i] for i in range(6))
    ]
    assert found == [
        ("long", 0, 45_000, 11), ("long", 2048, 42_952, 11), ("gap", 0, 20_000, 5), ("gap", 2048, 17_952, 5),
        ("gap", 0, 20_000, 5), ("gap", 2048, 17_952, 5),
    ]  # fmt: skip
    # The sum of the two channels rounds differently here and there: a few codes may be the second nearest.
    assert (train[0]["codes"] == expected("long", 45_000)).mean() > 0.98
    assert (train[1]["codes"] == expected("long", 45_000, 2048)).mean() > 0.98
    assert train[0]["caption"] == "a long"
    assert TokenSource(tmp_path / "tokens", "validation")[0]["offset_samples"] == 0


def test_what_is_done_is_not_done_again(data, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "TRACKS_A_SHARD", 1)
    whole = corpus.tokenize(codec(), data, tmp_path / "whole")
    coded, encode_stream = [], Codec.encode_stream

    def interrupted(self, blocks):
        coded.append(1)
        if len(coded) == 3:
            raise KeyboardInterrupt
        return encode_stream(self, blocks)

    monkeypatch.setattr(Codec, "encode_stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        corpus.tokenize(codec(), data, tmp_path / "tokens")
    with pytest.raises(FileNotFoundError, match="interrupted"):
        manifest(tmp_path / "tokens")
    again = corpus.tokenize(codec(), data, tmp_path / "tokens")
    assert len(coded) == 3 + 2 and again == whole
    for name in [shard["file"] for split in whole["splits"].values() for shard in split["shards"]]:
        assert (tmp_path / "tokens" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert corpus.tokenize(codec(), data, tmp_path / "tokens") == whole and len(coded) == 5
    with pytest.raises(ValueError, match="offsets"):
        corpus.tokenize(codec(), data, tmp_path / "tokens", offsets=2)


def test_synthetic_music(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "SYNTHETIC_SECONDS", 1.0)
    result = corpus.tokenize(codec(), "synthetic", tmp_path / "tokens", pieces=2)
    assert {name: (split["pieces"], split["columns"]) for name, split in result["splits"].items()} == {
        "train": (2, 22),
        "validation": (1, 11),
    }
    assert (tmp_path / "tokens" / MANIFEST).is_file()
    assert "bpm" in TokenSource(tmp_path / "tokens", "train")[0]["caption"]


def test_mistakes(data, tmp_path):
    with pytest.raises(ValueError, match="shifted copies"):
        corpus.tokenize(codec(), data, tmp_path / "a", offsets=0)
    with pytest.raises(FileNotFoundError, match="bandtok prepare"):
        corpus.tokenize(codec(), str(tmp_path / "nothing"), tmp_path / "b")
