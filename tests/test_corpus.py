"""Tokenization of corpora: whole tracks, shifted copies, and resumption without repeated work."""

import functools
import json
import shutil
import zipfile

from array_record.python.array_record_module import ArrayRecordWriter
import jax
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.commands import tokenize_corpus
from bandtok_jax.config.load import load_config
from bandtok_jax.data_pipelines import full_tracks, iterator, metadata, records, shards, tf_example
from bandtok_jax.data_pipelines.token_manifest import MANIFEST, read_token_manifest
from bandtok_jax.data_pipelines.token_source import TokenSource
from bandtok_jax.data_pipelines.token_writer import TokenWriter
from bandtok_jax.runtime import folder_lock
from tests import fuzz, tiny

RATE, RECORD = 44100, 20_000
write = TokenWriter.write


@functools.cache
def codec():
    return MelCodec(tiny.drawn_component(load_config("bandtok:tiny")), chunk_columns=8)


def waveform(name: str, samples: int) -> np.ndarray:
    """Returns the audio `[S, 2]` of a track, noise in int16."""
    noise = np.random.default_rng(len(name)).normal(size=(samples, 2))
    return (3000 * noise).astype(np.int16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Writes a prepared folder, in which the track "long" has three records, and returns it."""
    folder = tmp_path_factory.mktemp("data")
    layout = {"train": [("long", 45_000), ("short", 20_000), ("little", 12_000)], "validation": [("last", 9_000)]}
    splits, lines = {}, []
    for split, tracks in layout.items():
        writer, count = ArrayRecordWriter(str(folder / split), shards.WRITER_OPTIONS), 0
        for name, samples in tracks:
            track_metadata = {
                "lufs": -20.0,
                "mono_lufs": -20.0,
                "caption": f"a {name}",
                "track": name,
                "domain": "music",
            }
            track_metadata |= {"full_band": True, "licence": "", "sample_rate_hz": RATE}
            starts = range(0, samples, RECORD)
            for start in starts:
                audio = waveform(name, samples)[start : start + RECORD]
                writer.write(tf_example.encode_example({"audio": audio, "start": start, **track_metadata}))
            measured = {
                "seconds": samples / RATE,
                "channels": 2,
                "bandwidth_hz": 20_000,
                "peak": 0.5,
                "clipped_share": 0.0,
            }
            lines.append(
                {**track_metadata, **measured, "split": split, "records": len(starts), "ends": name != "short"}
            )
            count += len(starts)
        writer.close()
        splits[split] = [{"file": split, "records": count}]
    settings = {"sample_rate_hz": RATE, "clip_seconds": RECORD / RATE, "channels": None, "fingerprint": "f"}
    manifest = metadata.build_manifest([{"tracks": lines}], list(splits), splits, [], {}, [], settings)
    (folder / records.MANIFEST).write_text(json.dumps(manifest))
    (folder / records.TRACKS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def expected(name, samples, offset=0):
    """Returns the codes of a track by `encode`, with the gain from -20 LUFS to the -16 LUFS of the training."""
    audio = waveform(name, samples).astype(np.float32).mean(axis=1) * np.float32(10 ** (4 / 20) / 32768)
    return codec().encode(audio[offset:], RATE)


def test_whole_tracks_and_shifted_copies(data, tmp_path):
    result = tokenize_corpus.tokenize(codec(), data, tmp_path / "tokens", offsets=2, tokenizer="runs/tokenizer")
    assert result["weight_hash"] == codec().weight_hash and result["tokenizer"] == "runs/tokenizer"
    assert {name: split["records"] for name, split in result["splits"].items()} == {"train": 6, "validation": 1}
    train = TokenSource(tmp_path / "tokens", "train")
    stored = [
        (record["track"], record["offset_samples"], record["samples"], len(record["codes"]))
        for record in (train[number] for number in range(6))
    ]
    assert [train[number]["ends"] for number in range(6)] == [True, True, False, False, True, True]  # "short" is a clip
    assert stored == [
        ("long", 0, 45_000, 11), ("long", 2048, 42_952, 11), ("short", 0, 20_000, 5), ("short", 2048, 17_952, 5),
        ("little", 0, 12_000, 3), ("little", 2048, 9_952, 3),
    ]  # fmt: skip
    # The sum of the two channels rounds differently, so a few latents may get the second nearest code.
    assert (train[0]["codes"] == expected("long", 45_000)).mean() > 0.98
    assert (train[1]["codes"] == expected("long", 45_000, 2048)).mean() > 0.98
    assert train[0]["caption"] == "a long"
    assert TokenSource(tmp_path / "tokens", "validation")[0]["offset_samples"] == 0


def test_finished_shards_are_not_tokenized_again(data, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_corpus, "TRACKS_PER_SHARD", 1)
    whole = tokenize_corpus.tokenize(codec(), data, tmp_path / "whole")
    coded, encode_stream = [], MelCodec.encode_stream

    def interrupted(self, blocks):
        coded.append(1)
        if len(coded) == 3:
            raise KeyboardInterrupt
        return encode_stream(self, blocks)

    monkeypatch.setattr(MelCodec, "encode_stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus.tokenize(codec(), data, tmp_path / "tokens")
    with pytest.raises(FileNotFoundError, match="interrupted"):
        read_token_manifest(tmp_path / "tokens")
    done = len(list((tmp_path / "tokens").glob("*.counts.json")))
    coded[:] = [1] * 3  # past the interruption
    again = tokenize_corpus.tokenize(codec(), data, tmp_path / "tokens")
    assert done == 2 and len(coded) == 3 + 4 - done and again == whole
    assert same_files(tmp_path / "tokens", tmp_path / "whole")
    assert tokenize_corpus.tokenize(codec(), data, tmp_path / "tokens") == whole and len(coded) == 5
    # The paths of tokenizer and data do not matter, because their hashes agree.
    moved = shutil.copytree(data, tmp_path / "moved")
    assert tokenize_corpus.tokenize(codec(), moved, tmp_path / "tokens", tokenizer="/elsewhere/tokenizer/") == whole
    with pytest.raises(ValueError, match="offsets"):
        tokenize_corpus.tokenize(codec(), data, tmp_path / "tokens", offsets=2)


def test_the_error_of_a_second_process_names_the_first_one(data, tmp_path, monkeypatch):
    refused, encode_stream = [], MelCodec.encode_stream

    def meet(*arguments):
        with pytest.raises(folder_lock.Locked, match="in use by process .*bandtok tokenize"):
            tokenize_corpus.tokenize(codec(), data, tmp_path / "tokens")
        refused.append(1)
        return encode_stream(*arguments)

    monkeypatch.setattr(MelCodec, "encode_stream", meet)
    tokenize_corpus.tokenize(codec(), data, tmp_path / "tokens")
    assert refused and not (tmp_path / "tokens" / folder_lock.NAME).exists()


def test_tokens_of_other_data_are_refused(data, tmp_path):
    folder, texts = shutil.copytree(data, tmp_path / "data"), tmp_path / "texts.npz"
    np.savez(texts, long=np.ones((3, 6)))
    tokenize = functools.partial(tokenize_corpus.tokenize, codec(), folder, embeddings=texts)
    manifest = tokenize(tmp_path / "tokens")
    for name in ("data_fingerprint", "embeddings_hash"):
        changed = {**manifest, name: "other"}
        (tmp_path / "tokens" / MANIFEST).write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"{name} 'other'.*give a new folder"):
            tokenize(tmp_path / "tokens")
        del changed[name]  # as it was written before
        (tmp_path / "tokens" / MANIFEST).write_text(json.dumps(changed))
        assert tokenize(tmp_path / "tokens") == changed
    (tmp_path / "tokens" / MANIFEST).write_text(json.dumps(manifest))
    prepared = json.loads((folder / records.MANIFEST).read_text())
    (folder / records.MANIFEST).write_text(json.dumps({**prepared, "clip_seconds": 3.0}))
    with pytest.raises(ValueError, match="data_fingerprint .*give a new folder"):
        tokenize(tmp_path / "tokens")


def same_files(folder, other):
    """Returns True for two folders with the same files and the same content."""
    first, second = ({path.name: path.read_bytes() for path in place.iterdir()} for place in (folder, other))
    return first == second


def test_processes_divide_the_shards_and_their_number_may_change(data, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_corpus, "TRACKS_PER_SHARD", 1)
    tokenize_corpus.tokenize(codec(), data, tmp_path / "whole")
    written = []
    monkeypatch.setattr(TokenWriter, "write", lambda self, *shard: (written.append(shard[:2]), write(self, *shard)))
    share = functools.partial(tokenize_corpus.tokenize, codec(), data, tmp_path / "tokens")
    with pytest.raises(ValueError, match="2 shards are missing, such as .*tokens-train-00001"):
        share(process_index=0, process_count=2)
    assert written == [("train", 0), ("train", 2)]
    with pytest.raises(FileNotFoundError, match="interrupted"):
        share(process_index=2, process_count=3)
    assert len(written) == 2  # the third process had no shard
    with pytest.raises(FileNotFoundError, match="interrupted"):
        share(process_index=1, process_count=3)
    share(process_index=0, process_count=3)
    assert sorted(written) == [("train", 0), ("train", 1), ("train", 2), ("validation", 0)]
    assert same_files(tmp_path / "tokens", tmp_path / "whole")


def test_damaged_data_is_named_and_fatal_or_left_out(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "validation").write_bytes((data / "validation").read_bytes()[:40_000])
    content = bytearray((data / "train").read_bytes())
    content[65_000:140_000] = bytes(75_000)  # the second and third record of "long"
    (folder / "train").write_bytes(content)
    with pytest.raises(ValueError, match="train is damaged .*--skip-damaged"):
        tokenize_corpus.tokenize(codec(), folder, tmp_path / "tokens")
    with pytest.warns(UserWarning, match="is damaged .*: its tracks are left out") as caught:
        manifest = tokenize_corpus.tokenize(codec(), folder, tmp_path / "tokens", skip_damaged=True)
    assert len(caught) == 2 and [entry["track"] for entry in manifest["left_out"]] == ["long", "last"]
    source = TokenSource(tmp_path / "tokens", "train")
    assert [source[number]["track"] for number in range(len(source))] == ["short", "little"]


def test_large_corpora_have_larger_shards():
    shards = list(tokenize_corpus.plan_shards("train", list(range(100_000)), 2))
    assert len(shards) == 4000 and [track for shard in shards for track in shard.tracks] == list(range(100_000))


def test_synthetic_music(tmp_path, monkeypatch):
    monkeypatch.setattr(full_tracks, "SYNTHETIC_SECONDS", 1.0)
    result = tokenize_corpus.tokenize(codec(), "synthetic", tmp_path / "tokens", synthetic_tracks=2)
    assert {name: (split["records"], split["columns"]) for name, split in result["splits"].items()} == {
        "train": (2, 22),
        "validation": (1, 11),
    }
    assert (tmp_path / "tokens" / MANIFEST).is_file()
    assert "bpm" in TokenSource(tmp_path / "tokens", "train")[0]["caption"]


def test_mistakes(data, tmp_path):
    with pytest.raises(ValueError, match="shifted copies"):
        tokenize_corpus.tokenize(codec(), data, tmp_path / "a", offsets=0)
    with pytest.raises(FileNotFoundError, match="bandtok prepare"):
        tokenize_corpus.tokenize(codec(), str(tmp_path / "nothing"), tmp_path / "b")


def test_embeddings_of_texts_reach_the_language_model(data, tmp_path):
    embeddings = {"long": np.ones((3, 6), np.float32), "last": np.full(6, 2.0)}
    np.savez(tmp_path / "texts.npz", **embeddings)
    tokenize_corpus.tokenize(codec(), data, tmp_path / "tokens", embeddings=tmp_path / "texts.npz")
    source = TokenSource(tmp_path / "tokens", "train")
    by_track = {source[i]["track"]: source[i]["embedding"] for i in range(len(source))}
    np.testing.assert_array_equal(by_track["long"], embeddings["long"])
    assert by_track["short"].shape == (3, 6) and not by_track["short"].any()

    small = {"dim": 32, "num_layers": 1, "num_heads": 2, "feed_forward_dim": 32, "text": "embedding", "text_dim": 6}
    changes = {f"model.{name}": str(value) for name, value in small.items()}
    changes |= {"data.tokens": str(tmp_path / "tokens"), "data.columns": "8", "batch_size": "2"}
    task = tasks.create(load_config("language_model:tiny", changes))
    stream = iterator.train_batches(task.config.data, split="train", batch_size=2, seed=0)
    batch = {name: value for name, value in next(stream).items() if value.dtype.kind in "biuf"}
    stream.close()
    assert batch["embedding"].shape == (2, 3, 6)
    model = tiny.drawn_component(task.config)
    state = {"model": {**model.weights, "ema": {}}}
    metrics, _ = jax.jit(task.evaluate)(state, task.load_frozen(), batch)
    assert "end_cross_entropy" in metrics and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))

    full = MelCodec(codec().components["tokenizer"], language_model=model)
    generated = [
        full.generate(seconds=0.5, embedding=embedding) for embedding in (embeddings["long"], -9 * embeddings["long"])
    ]
    assert generated[0].shape[1] == 16 and not np.array_equal(generated[0], generated[1])
    with pytest.raises(ValueError, match="learned from embeddings"):
        full.generate("slow", seconds=0.5)
    wrong = tasks.create(load_config("language_model:tiny", changes | {"model.text_dim": "8"}))
    with pytest.raises(ValueError, match="embeddings of width 6: set --config.model.text_dim"):
        wrong.load_frozen()


def test_damaged_embeddings(tmp_path):
    path = tmp_path / "texts.npz"
    np.savez_compressed(path, a=np.ones((3, 4), np.float32), b=np.arange(4.0))
    fuzz.check(lambda _: tokenize_corpus.read_embeddings(path, {"a", "c"}), path, path.read_bytes(), cases=300)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w", force_zip64=True) as part:
        np.lib.format.write_array_header_1_0(part, {"descr": "<f4", "fortran_order": False, "shape": (1 << 25,)})
        for _ in range(80):
            part.write(bytes(1 << 20))
    with pytest.raises(ValueError, match="texts.npz: .* 8.* bytes"):
        tokenize_corpus.read_embeddings(path, {"a"})


def test_embeddings_that_do_not_fit_are_named(tmp_path):
    (tmp_path / "no.npz").write_text("no")
    with pytest.raises(ValueError, match="no.npz: it is no whole archive .*; write it with numpy.savez"):
        tokenize_corpus.read_embeddings(tmp_path / "no.npz", {"a"})
    np.savez(tmp_path / "other.npz", b=np.ones((2, 3)))
    with pytest.raises(ValueError, match="names none of the tracks, such as 'a'"):
        tokenize_corpus.read_embeddings(tmp_path / "other.npz", {"a"})
    np.savez(tmp_path / "two.npz", a=np.ones((2, 3)), b=np.ones((2, 4)))
    with pytest.raises(ValueError, match="all .L, E. of one E"):
        tokenize_corpus.read_embeddings(tmp_path / "two.npz", {"a"})


def test_no_process_writes_if_process_0_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_corpus.distributed, "broadcast_from_host0", lambda number: 1)
    with pytest.raises(folder_lock.Locked, match="see process 0"):
        tokenize_corpus.tokenize(codec(), data, tmp_path / "tokens", process_index=1, process_count=2)
    assert not (tmp_path / "tokens").exists()
