"""Music, records and tokens in a bucket hold the same content as in a local folder."""

import os
import socket
import uuid

import fsspec
import numpy as np
import pytest
import soundfile

from bandtok_jax.commands import tokenize_corpus
from bandtok_jax.data_pipelines import doctor, prepare_shards
from bandtok_jax.data_pipelines.records import RecordSource
from bandtok_jax.data_pipelines.token_manifest import read_token_manifest
from bandtok_jax.data_pipelines.token_source import TokenSource
from bandtok_jax.data_pipelines.token_writer import TokenWriter
from bandtok_jax.runtime import storage
from tests.music_files import RATE, make_audio, reasons, run
from tests.test_corpus import codec
from tests.test_iterator import by_index, config, take
from tests.test_tokens import METADATA, make_record


@pytest.fixture(scope="module")
def emulator():
    """A Google Cloud Storage of this machine, for gcsfs."""
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # the emulator knows nothing of newer kinds of buckets
    reason = "for gs:// as well: pip install gcsfs gcp-storage-emulator"
    pytest.importorskip("gcsfs", reason=reason)
    server = pytest.importorskip("gcp_storage_emulator.server", reason=reason)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    running.start()
    os.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{port}"
    fsspec.config.conf["gs"] = {"token": "anon"}
    yield "gs://bucket"
    del os.environ["STORAGE_EMULATOR_HOST"], fsspec.config.conf["gs"]
    running.stop()


@pytest.fixture(params=["memory", "gs"])
def bucket(request):
    return f"{request.getfixturevalue('emulator') if request.param == 'gs' else 'memory://bucket'}/{uuid.uuid4()}"


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    folder = tmp_path_factory.mktemp("music")
    for number in range(12):
        soundfile.write(folder / f"{number:02}.wav", make_audio(number, 8.0, 2), RATE)
    (folder / "text.wav").write_text("this is no sound")
    return folder


@pytest.fixture(scope="module")
def local(music, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "records"
    run(music, output=folder, clip_seconds=4.0)
    return folder


def content(folder):
    """{name: bytes} of a folder here or in a bucket."""
    folder = str(folder)
    return {name: storage.read_range(f"{folder}/{name}", 0, 1 << 30) for name in storage.names(folder)}


def cut(path, share=0.5):
    files, name = fsspec.core.url_to_fs(path)
    files.pipe_file(name, files.cat_file(name)[: int(files.size(name) * share)])


def test_prepared_records_are_those_of_a_local_folder(music, local, bucket):
    manifest = run(music, output=f"{bucket}/records", clip_seconds=4.0)
    assert content(f"{bucket}/records") == content(local) and len(manifest["left_out"]) == 1
    assert run(music, output=f"{bucket}/records", clip_seconds=4.0) == manifest
    assert doctor.inspect(f"{bucket}/records")["read"] == doctor.inspect(local)["read"]
    with pytest.raises(ValueError, match="--overwrite"):
        run(music, output=f"{bucket}/records", clip_seconds=2.0)
    assert run(music, output=f"{bucket}/records", clip_seconds=2.0, overwrite=True)["clip_seconds"] == 2.0


def test_an_interrupted_preparation_resumes(music, local, bucket, monkeypatch):
    run_task, finished = prepare_shards.run_task, []

    def broken(number, *arguments):
        if len(finished) == 5:
            raise KeyboardInterrupt
        finished.append(number)
        return run_task(number, *arguments)

    monkeypatch.setattr(prepare_shards, "run_task", broken)
    with pytest.raises(KeyboardInterrupt):
        run(music, output=f"{bucket}/records", clip_seconds=4.0)
    with pytest.raises(FileNotFoundError, match="interrupted: run the same  bandtok prepare  again"):
        RecordSource(f"{bucket}/records", "train")
    monkeypatch.setattr(
        prepare_shards, "run_task", lambda number, *rest: finished.append(number) or run_task(number, *rest)
    )
    run(music, output=f"{bucket}/records", clip_seconds=4.0)
    assert len(finished) == len(set(finished)) and content(f"{bucket}/records") == content(local)


def test_music_in_a_bucket(music, bucket, tmp_path):
    files, name = fsspec.core.url_to_fs(bucket)
    files.put(str(music) + "/", name + "/music/", recursive=True)
    files.put_file(music / "03.wav", name + "/music/copies/03.wav")
    manifest = run(f"{bucket}/music", output=tmp_path / "out", validation_share=0)
    assert manifest["splits"]["train"]["tracks"] == 12
    assert reasons(manifest).keys() == {"text.wav", "copies/03.wav"} and "the same content as 03.wav" in str(
        reasons(manifest)
    )
    again = run(f"{bucket}/music", output=tmp_path / "out", validation_share=0)
    assert again == manifest  # nothing has changed there
    with pytest.raises(FileNotFoundError, match="nothing lies there"):
        run(f"{bucket}/nothing", output=tmp_path / "other")


def test_training_reads_the_bytes_of_its_crops(local, bucket, monkeypatch):
    files, name = fsspec.core.url_to_fs(bucket)
    files.put(str(local) + "/", name + "/records/", recursive=True)
    local_batches, _ = take(config(str(local), clip_samples=800), 6)
    asked, read_range = [], storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda path, a, b: asked.append((path, b - a)) or read_range(path, a, b))
    remote, position = take(config(f"{bucket}/records", clip_samples=800), 6)
    assert by_index(local_batches) == by_index(remote) and position == 24
    shards = {path for path, _ in asked if not path.endswith(".json")}
    crops = [size for _, size in asked if size in range(1600, 4000)]
    ends = [size for _, size in asked if size > 100_000]  # of a shard, once for each
    assert 24 <= len(crops) and len(shards) <= len(ends) < 2 * len(shards)  # two threads may come to one together
    assert len(asked) - len(crops) - len(ends) <= 2 * len(crops)  # the heads of the records
    cut(f"{bucket}/records/{storage.names(f'{bucket}/records')[4]}")
    with pytest.raises(ValueError, match="is damaged .its end is missing.; .*damaged=skip"):
        take(config(f"{bucket}/records"), 6)
    with pytest.warns(UserWarning, match="is damaged"):
        take(config(f"{bucket}/records", damaged="skip"), 6)


def test_tokens_in_a_bucket(local, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_corpus, "TRACKS_PER_SHARD", 4)
    files, name = fsspec.core.url_to_fs(bucket)
    files.put(str(local) + "/", name + "/records/", recursive=True)
    tokenize_corpus.tokenize(codec(), local, tmp_path / "tokens")
    asked, read_range = [], storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda path, a, b: asked.append(b - a) or read_range(path, a, b))
    tokenize_corpus.tokenize(codec(), f"{bucket}/records", f"{bucket}/tokens")
    whole = 4 * RATE * 2 * 2  # bytes of a record of 4 s, to which the headers of blocks come
    assert len([size for size in asked if whole <= size < whole + 100]) == 12 * 2  # every record once
    local_files, remote = content(tmp_path / "tokens"), content(f"{bucket}/tokens")
    assert local_files.keys() == remote.keys()
    assert all(
        local_files[name] == remote[name] for name in local_files if name.endswith("array_record")
    )  # the rest says where from
    source, copy = TokenSource(tmp_path / "tokens", "train"), TokenSource(f"{bucket}/tokens", "train")
    assert len(source) == len(copy)
    for index in range(len(source)):
        np.testing.assert_array_equal(source[index]["codes"], copy[index]["codes"])
    data = config("", tokens=str(tmp_path / "tokens"), columns=8)
    remote = take(config("", tokens=f"{bucket}/tokens", columns=8), 4)[0]
    assert by_index(take(data, 4)[0]) == by_index(remote)


def test_an_interrupted_token_writer_resumes(bucket):
    writer = TokenWriter(f"{bucket}/tokens", **METADATA)
    writer.write("train", 0, [make_record(0)])
    with pytest.raises(ValueError, match="outside the codebook"):
        writer.write("train", 1, [{**make_record(1), "codes": np.full((2, 3), 300)}])
    with pytest.raises(FileNotFoundError, match="interrupted; run the same command again"):
        read_token_manifest(f"{bucket}/tokens")
    again = TokenWriter(f"{bucket}/tokens", **METADATA)
    assert again.has("train", 0) and not again.has("train", 1)
    again.write("train", 1, [make_record(1)])
    again.finish([("train", 0), ("train", 1)])
    assert storage.names(f"{bucket}/tokens") == [
        "token_manifest.json", "tokens-train-00000.array_record", "tokens-train-00001.array_record",
    ]  # fmt: skip
    assert [TokenSource(f"{bucket}/tokens", "train")[i]["track"] for i in range(2)] == ["t0", "t1"]
    cut(f"{bucket}/tokens/tokens-train-00001.array_record", 0.9)
    with pytest.raises(ValueError, match="tokens-train-00001.array_record is damaged"):
        TokenSource(f"{bucket}/tokens", "train")[1]
