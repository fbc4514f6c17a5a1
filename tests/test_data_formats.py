"""Damaged and hostile data folders: every file of theirs is taken, or refused by one line that names it."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from bandtok_jax.data_pipelines import (
    discovery,
    doctor,
    full_tracks,
    iterator,
    prepare_shards,
    shards,
    sources,
    tfds_sources,
    token_manifest,
    token_record,
    token_source,
)
from bandtok_jax.data_pipelines.token_source import TokenSource
from bandtok_jax.data_pipelines.token_writer import TokenWriter
from tests import fuzz
from tests.music_files import RATE, make_audio, run
from tests.test_iterator import config
from tests.test_tokens import METADATA, make_record
from tests.test_tracks import write_tfds


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Five short tracks, one of them for validation."""
    music = tmp_path_factory.mktemp("music")
    for number in range(5):
        soundfile.write(music / f"{number}.wav", make_audio(number, 2.0), RATE)
    (music / "tracks.csv").write_text("file,split,caption\n4.wav,validation,a – ♪\n0.wav,train,slow\n")
    folder = tmp_path_factory.mktemp("records") / "out"
    run(music, output=folder, tracks=music / "tracks.csv")
    return folder


@pytest.fixture
def data(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "records")


@pytest.fixture
def coded(tmp_path):
    writer = TokenWriter(tmp_path / "tokens", **METADATA)
    writer.write("train", 0, [make_record(0), make_record(1, 9, embedding=np.ones((2, 4)))])
    writer.write("train", 1, [make_record(2, 30)], [{"track": "t7", "reason": "damaged"}])
    writer.write("validation", 0, [make_record(3)])
    writer.finish()
    return tmp_path / "tokens"


def read_records(folder):
    """All that reads a prepared folder: training, evaluation, tokenizing, the doctor."""
    for split in ("train", "validation"):
        opened = sources.open_audio(str(folder), split, sample_rate_hz=RATE, clip_samples=4000)
        sources.check_clip_length(opened, 4000 / RATE)
        sources.balance(opened, full_band=True, domains=True)
        for number in range(len(opened[0][0])):
            assert opened[0][0][number]["audio"][:].shape == (2 * RATE, 1)
    batches = iterator.evaluation_batches(config(str(folder)), batch_size=2, count=1)
    assert np.isfinite(batches[0]["audio"]).all()
    for whole in full_tracks.open_tracks(str(folder), RATE).values():
        assert all(np.isfinite(track.gain(-16.0)) and track.samples for track in whole)
    sources.fingerprint({"tokens": "", "sources": str(folder)})
    doctor.report(doctor.inspect(folder, 4000))


def read_tokens(folder):
    for split in ("train", "validation"):
        source = TokenSource(folder, split)
        records = [source[number] for number in range(len(source))]
        assert all(record["codes"].max() < 300 and record["codes"].shape[1] == 3 for record in records)
        token_source.row_unigrams(source, source.manifest["codebook_size"])
    token_manifest.caption_fraction(source.manifest)


@pytest.mark.parametrize(
    "name, mutate", [("manifest.json", fuzz.json_text), ("tracks.jsonl", fuzz.lines(fuzz.json_text))]
)
def test_manifests_and_lists_of_tracks(data, name, mutate, check):
    path = data / name
    check(lambda _: read_records(data), path, path.read_bytes(), mutate, named=str(data))


@pytest.mark.parametrize("begin, end", [(0, 200), (0, 100_000), (-65_536, -60_000)])
def test_shards_of_records(data, begin, end, check):
    path = sorted(data.glob("music-train.*"))[0]
    valid = path.read_bytes()

    def mutate(random, _):
        part = slice(begin % len(valid), end % len(valid) if end < 0 else end)
        return valid[: part.start] + fuzz.binary(random, valid[part]) + valid[part.stop :]

    check(lambda _: read_records(data), path, valid, mutate, cases=100, named=str(path))


def test_what_is_said_of_finished_tasks(tmp_path, check):
    (tmp_path / "tasks").mkdir()
    soundfile.write(tmp_path / "a.wav", make_audio(0, 2.0), RATE)
    settings = {"sample_rate_hz": RATE, "channels": None, "clip_seconds": 6.0}
    prepare_shards.run_task(0, discovery.find_tracks([tmp_path / "a.wav"])[0], settings, str(tmp_path / "tasks"))
    (path,) = (tmp_path / "tasks").glob("*.json")
    check(lambda _: prepare_shards.read_reports(path.parent), path, path.read_bytes(), fuzz.json_text)


def test_manifests_of_tokens(coded, check):
    path = coded / token_manifest.MANIFEST
    check(lambda _: read_tokens(coded), path, path.read_bytes(), fuzz.json_text, named=str(coded))


def test_shards_of_tokens(coded, check):
    path = coded / "tokens-train-00000.array_record"
    check(lambda _: read_tokens(coded), path, path.read_bytes(), named=str(path))


def test_token_records():
    """The bytes of a record alone, which no checksum protects in a bucket."""
    whole = token_record.encode_token_record(make_record(1, 9, embedding=np.ones((2, 4))))
    for case in range(400):
        data = fuzz.binary(fuzz.random_of(0, case), whole)
        try:
            record = token_record.decode_token_record(data)
        except shards.DAMAGE:
            continue
        assert record["codes"].ndim == 2 and len(data) >= record["codes"].size * 2


@pytest.mark.parametrize("name", ["token_header.json", "tokens-train-00000.counts.json"])
def test_tokens_that_are_being_written(tmp_path, name, check):
    writer = TokenWriter(tmp_path, **METADATA)
    writer.write("train", 0, [make_record(0)])
    path = tmp_path / name

    def resume(_):
        kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        try:
            TokenWriter(tmp_path, **METADATA).finish()
        finally:
            for file in tmp_path.iterdir():
                file.unlink()
            for kept_name, content in kept.items():
                (tmp_path / kept_name).write_bytes(content)

    check(resume, path, path.read_bytes(), fuzz.json_text)


@pytest.fixture(scope="module", params=["audio", "tensor"])
def foreign(request, tmp_path_factory):
    """A data set of TFDS: TFRecord with numbers, or ArrayRecord with bytes."""
    root = tmp_path_factory.mktemp("tfds")
    write_tfds(root / "gtzan" / "1.0.0", request.param)
    return root


def read_foreign(root):
    for track in tfds_sources.list_examples("gtzan", root):
        audio, rate, _ = tfds_sources.read_example(track["path"], track["example"])
        assert audio.ndim == 2 and len(audio) and rate > 0


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "label.labels.txt", "gtzan-train.*"])
def test_data_sets_of_tfds(foreign, tmp_path, name, check):
    root = shutil.copytree(foreign, tmp_path / "tfds")
    paths = sorted((root / "gtzan" / "1.0.0").glob(name))
    if not paths:
        pytest.skip("this kind has no such file")
    mutate = {".json": fuzz.json_text, ".txt": fuzz.text}.get(paths[0].suffix, fuzz.binary)
    check(lambda _: read_foreign(root), paths[0], paths[0].read_bytes(), mutate, named=str(root))


@pytest.mark.parametrize("key, value", [
    ("shardLengths", ["9223372036854775808"]), ("shardLengths", ["3000000"]), ("shardLengths", ["0"]),
    ("filepathTemplate", "{DATASET:>1000000000}"), ("filepathTemplate", "../1.0.0/{DATASET}-{SPLIT}.tfrecord"),
    ("filepathTemplate", "{DATASET.__class__}"), ("name", "../x"),
])  # fmt: skip
def test_what_tfds_says_of_its_shards_is_not_believed(tmp_path, key, value):
    write_tfds(tmp_path / "gtzan" / "1.0.0", "audio")
    path = tmp_path / "gtzan" / "1.0.0" / "dataset_info.json"
    content = json.loads(path.read_text())
    content["splits"][0][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)):
        read_foreign(tmp_path)
