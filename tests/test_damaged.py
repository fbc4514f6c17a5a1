"""Damaged shards: named, and fatal or left out by the configuration, for every reader."""

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
import errno
import gc
import os
import shutil
import warnings

import numpy as np
import pytest
import soundfile

from bandtok_jax.data_pipelines import iterator, shards
from bandtok_jax.data_pipelines.records import RecordSource
from bandtok_jax.data_pipelines.token_source import TokenSource, row_unigrams
from bandtok_jax.data_pipelines.token_writer import TokenWriter
from bandtok_jax.runtime import storage
from bandtok_jax.runtime.notes import Note
from tests.music_files import RATE, make_audio, run
from tests.test_iterator import by_index, config, take
from tests.test_tokens import METADATA, make_record

BATCHES = 20  # of four examples: two passes over the records


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Ten tracks to train on and two for validation: 8 s in records of 2 s, every track in a shard of its own."""
    music = tmp_path_factory.mktemp("music")
    rows = ["file,split,caption"]
    for number in range(12):
        soundfile.write(music / f"{number:02}.wav", make_audio(number, 8.0), RATE)
        rows.append(f"{number:02}.wav,{'train' if number < 10 else 'validation'},track {number}")
    (music / "tracks.csv").write_text("\n".join(rows))
    folder = tmp_path_factory.mktemp("whole") / "records"
    run(music, output=folder, tracks=music / "tracks.csv", clip_seconds=2.0)
    return folder


def shard(folder, number, split="train"):
    return sorted(folder.glob(f"music-{split}.*"))[number]


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.fixture
def damaged(whole, tmp_path):
    """The same with the third training shard cut in the middle, and the first validation shard without its end."""
    folder = shutil.copytree(whole, tmp_path / "records")
    cut(shard(folder, 2))
    cut(shard(folder, 0, "validation"), 0.99)
    return folder


def take_with_notes(data, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches, _ = take(data, BATCHES, **options)
    # Python 3.13 warns when it cleans up resources of other tests' processes at the same time.
    ours = (w for w in caught if w.category is Note)
    return by_index(batches), [str(warning.message) for warning in ours]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_ends_the_training_and_names_the_cure(damaged, workers):
    with pytest.raises(ValueError, match="music-train.array_record-00002-of-00010 is damaged .*damaged=skip"):
        take(config(str(damaged), workers=workers), BATCHES)


def test_it_can_be_left_out_and_nothing_else_changes(whole, damaged):
    before, none = take_with_notes(config(str(whole), damaged="skip"))
    after, notes = take_with_notes(config(str(damaged), damaged="skip"))
    assert not none and before == take_with_notes(config(str(whole)))[0]
    captions = {index: example[1].rstrip(b"\0") for index, example in before.items()}
    replaced = {index for index, caption in captions.items() if caption == b"track 2"}
    assert len(replaced) == 8 and replaced == {index for index in before if before[index] != after[index]}
    captions_after = {after[index][1].rstrip(b"\0") for index in replaced}
    assert b"track 2" not in captions_after and len(captions_after) > 1  # another draw at every position
    assert len(notes) == 1 and str(shard(damaged, 2)) in notes[0]


def test_hosts_workers_and_a_new_start_give_the_same(damaged):
    data = config(str(damaged), damaged="skip")
    straight, _ = take_with_notes(data)
    workers, notes = take_with_notes(config(str(damaged), damaged="skip", workers=2))
    assert workers == straight and len(notes) == 1
    halves = [take_with_notes(data, process_index=process, process_count=2)[0] for process in range(2)]
    assert halves[0] | halves[1] == straight
    later, _ = take_with_notes(data, start=12)
    assert all(later[index] == straight[index] for index in range(12, 4 * BATCHES))


def test_the_evaluation_leaves_it_out_too(damaged):
    data = config(str(damaged), damaged="skip")
    batches = iterator.evaluation_batches(data, batch_size=4, count=2)
    with pytest.warns(UserWarning, match="music-validation.array_record-00000-of-00002 is damaged") as caught:
        captions = {row.tobytes().rstrip(b"\0") for batch in batches for row in batch["caption"]}
        again = [batch["audio"].tobytes() for batch in batches]
    assert captions == {b"track 11"} and sum("is damaged" in str(warning.message) for warning in caught) == 1
    with pytest.warns(UserWarning):
        other = iterator.evaluation_batches(data, batch_size=4, count=2)
        assert again == [batch["audio"].tobytes() for batch in other]
    with pytest.raises(shards.DamagedShard):
        list(iterator.evaluation_batches(config(str(damaged)), batch_size=4, count=2))


def test_other_damage(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "records")
    hole, header, empty = (shard(folder, number) for number in range(3))
    content = hole.read_bytes()
    hole.write_bytes(content[:65_536] + content[131_072:])  # a block of the middle is missing
    content = bytearray(header.read_bytes())
    content[30_000:40_000] = bytes(10_000)  # where its second record begins
    header.write_bytes(content)
    empty.write_bytes(b"")
    source = RecordSource(folder, "train")
    for number, bad in enumerate([True] * 4 + [False, True, False, False] + [True] * 4 + [False] * 28):
        if bad:
            with pytest.raises(shards.DamagedShard, match=f"0000{number // 4}-of-00010"):
                source[number]
        else:
            assert source[number]["audio"].shape == (16_000, 1)


def test_nothing_readable_is_an_error(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "records")
    for number in range(10):
        cut(shard(folder, number))
    with pytest.raises(ValueError, match="64 records in a row cannot be read, the last because .*bandtok prepare"):
        take(config(str(folder), damaged="skip"), 1)
    with pytest.raises(ValueError, match="config.data.damaged is 'ignore': set it to one of fail, skip"):
        take(config(str(folder), damaged="ignore"), 1)


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def few_files(monkeypatch):
    """As if a process could keep three shards open."""
    monkeypatch.setattr(shards, "MAX_OPEN_FILES", 3)
    monkeypatch.setattr(shards.OpenFile, "_used", OrderedDict())


@pytest.fixture
def tokens(tmp_path):
    """Ten shards of one record."""
    writer = TokenWriter(tmp_path / "tokens", **METADATA)
    for number in range(10):
        writer.write("train", number, [make_record(number, 9)])
    writer.finish()
    return tmp_path / "tokens"


def test_few_shards_are_open_at_a_time(whole, tokens, few_files):
    for source, name in ((RecordSource(whole, "train"), "audio"), (TokenSource(tokens, "train"), "codes")):
        gc.collect()
        before, values = open_files(), [source[number][name].copy() for number in range(len(source))]
        assert open_files() <= before + 3
        with ThreadPoolExecutor(8) as pool:
            again = list(pool.map(lambda number: source[number][name].copy(), [*range(len(source))] * 3))
        assert all(map(np.array_equal, again, values * 3)) and open_files() <= before + 3


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE])
def test_what_the_system_says_is_no_damage(number, whole, tokens, monkeypatch):
    def refused(path, *_):
        raise OSError(number, os.strerror(number), path)

    captions_after, written = RecordSource(whole, "train"), TokenSource(tokens, "train")
    monkeypatch.setattr(storage, "open_bytes", refused)
    for read in (lambda: captions_after[0], lambda: written[0], lambda: row_unigrams(written, 300)):
        with pytest.raises(OSError, match=os.strerror(number)) as error:
            read()
        assert error.value.errno == number and not isinstance(error.value, ValueError)
    monkeypatch.undo()
    assert captions_after[0]["audio"].any() and row_unigrams(written, 300).shape == (3, 300)


def test_what_the_system_says_to_a_library_is_no_damage(tokens):
    source = TokenSource(tokens, "train")
    source._shards[0]  # the reader opens its files, and has read no record: no public call does the one alone
    (tokens / "tokens-train-00000.array_record").unlink()
    with pytest.raises(FileNotFoundError, match="tokens-train-00000"):
        source[0]


# test_hosts_workers_and_a_new_start_give_the_same is a fast one with workers.
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_token_shards(tmp_path, workers):
    writer = TokenWriter(tmp_path / "tokens", **METADATA)
    for number in range(4):
        writer.write("train", number, [make_record(2 * number, 9), make_record(2 * number + 1, 9)])
    writer.finish()
    data = config("", tokens=str(tmp_path / "tokens"), columns=8, workers=workers)
    whole, _ = take_with_notes(data)
    path = tmp_path / "tokens" / "tokens-train-00001.array_record"
    cut(path, 0.9)
    with pytest.raises(ValueError, match="tokens-train-00001.array_record is damaged .*bandtok tokenize"):
        take(data, BATCHES)
    skipping = config("", tokens=str(tmp_path / "tokens"), columns=8, workers=workers, damaged="skip")
    left, notes = take_with_notes(skipping)
    assert len(notes) == 1 and str(path) in notes[0]
    changed = [index for index in whole if whole[index] != left[index]]
    assert len(changed) == BATCHES  # a fourth
    assert left == take_with_notes(config("", tokens=str(tmp_path / "tokens"), columns=8, damaged="skip"))[0]
    source = TokenSource(tmp_path / "tokens", "train")
    codes = np.concatenate([source[number]["codes"] for number in (0, 1, 4, 5, 6, 7)])
    expected = np.log((np.bincount(codes[:, 0], minlength=300) + 0.5) / (len(codes) + 150))
    np.testing.assert_allclose(row_unigrams(source, 300)[0], expected, rtol=1e-5)
