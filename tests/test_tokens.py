"""Token records: reading returns the written values, writing resumes, and foreign folders are named."""

import json
import pickle

import numpy as np
import pytest

from bandtok_jax import cli
from bandtok_jax.data_pipelines import iterator, mixture, sources
from bandtok_jax.data_pipelines.token_manifest import HEADER, MANIFEST, caption_fraction, read_token_manifest
from bandtok_jax.data_pipelines.token_source import TokenSource, row_unigrams
from bandtok_jax.data_pipelines.token_writer import TokenWriter
from bandtok_jax.data_pipelines.transforms import CropTokens
from bandtok_jax.runtime import storage

METADATA = dict(
    codebook_size=300, rows=3, columns_per_second=10.77, row_kind="band", tokenizer="run", weight_hash="abc",
    samples_per_column=4096,
)  # fmt: skip

DATA = dict(columns=8, workers=0, caption_bytes=16, draw="seconds", damaged="fail")


def make_record(number, columns=5, **more):
    codes = np.random.default_rng(number).integers(0, 300, (columns, 3))
    return {
        "codes": codes,
        "track": f"t{number}",
        "offset_samples": 7,
        "caption": "é",
        "samples": columns * 4096,
        "ends": bool(number % 2),
        **more,
    }


@pytest.fixture
def folder(tmp_path):
    """Two shards of training records, one of validation records."""
    writer = TokenWriter(tmp_path / "tokens", **METADATA)
    writer.write("train", 0, [make_record(0), make_record(1, 9)])
    writer.write("train", 1, [make_record(2, 30, embedding=np.ones((2, 4)))])
    writer.write("validation", 0, [make_record(3)])
    writer.finish()
    return tmp_path / "tokens"


def test_reads_what_was_written(folder):
    source = pickle.loads(pickle.dumps(TokenSource(folder, "train")))
    assert len(source) == 3
    for number, columns in enumerate((5, 9, 30)):
        record = source[number]
        np.testing.assert_array_equal(record["codes"], make_record(number, columns)["codes"])
        assert record["codes"].dtype == np.int32
        assert (record["track"], record["offset_samples"], record["caption"]) == (f"t{number}", 7, "é")
        assert record["samples"] == columns * 4096
    np.testing.assert_array_equal(source[2]["embedding"], np.ones((2, 4), np.float32))
    splits = read_token_manifest(folder)["splits"]
    assert {name: (info["records"], info["columns"]) for name, info in splits.items()} == {
        "train": (3, 44),
        "validation": (1, 5),
    }
    with pytest.raises(IndexError):
        source[3]


def test_the_manifest_says_how_many_records_have_a_caption(tmp_path):
    writer = TokenWriter(tmp_path, **METADATA)
    writer.write("train", 0, [make_record(0), make_record(1) | {"caption": ""}])
    writer.write("train", 1, [make_record(2) | {"caption": ""}, make_record(3) | {"caption": ""}])
    result = writer.finish()
    assert caption_fraction(result) == 1 / 4
    assert caption_fraction(result, "validation") is None  # there is no such split


def test_an_interrupted_writer_resumes(tmp_path):
    writer = TokenWriter(tmp_path, **METADATA)
    writer.write("train", 0, [make_record(0)])

    def broken():
        yield make_record(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write("train", 1, broken())
    with pytest.raises(FileNotFoundError, match="interrupted; run the same command again"):
        read_token_manifest(tmp_path)
    again = TokenWriter(tmp_path, **METADATA)
    assert again.has("train", 0) and not again.has("train", 1) and not again.finished
    again.write("train", 1, [make_record(1)])
    again.finish()
    assert again.finished and not (tmp_path / HEADER).exists()
    assert [TokenSource(tmp_path, "train")[i]["track"] for i in range(2)] == ["t0", "t1"]
    with pytest.raises(ValueError, match="weight_hash 'abc', and this is 'other'"):
        TokenWriter(tmp_path, **{**METADATA, "weight_hash": "other"})


def test_processes_that_start_together_meet_in_one_folder(tmp_path, monkeypatch):
    names, other = storage.names, []

    def late(folder):
        if not other:  # the other process begins after this one has looked
            other.append(None)
            TokenWriter(tmp_path, **METADATA).write("train", 0, [make_record(0)])
        return names(folder)

    monkeypatch.setattr(storage, "names", late)
    assert TokenWriter(tmp_path, **METADATA).has("train", 0)


def test_names_what_is_wrong_with_a_folder(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; make it with  bandtok tokenize"):
        TokenSource(tmp_path / "nowhere", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"it has no {MANIFEST}"):
        TokenSource(tmp_path / "empty", "train")
    with pytest.raises(ValueError, match=r"nothing in the split 'test', but train \(3 records\)"):
        TokenSource(folder, "test")
    (tmp_path / "empty" / MANIFEST).write_text(json.dumps({"splits": {}}))
    with pytest.raises(ValueError, match="token_manifest.json: it has no version; run  bandtok tokenize"):
        read_token_manifest(tmp_path / "empty")
    (tmp_path / "empty" / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="token_manifest.json: it is no JSON"):
        read_token_manifest(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("hello")
    with pytest.raises(ValueError, match="give an empty or a new folder"):
        TokenWriter(tmp_path / "other", **METADATA)
    (folder / "tokens-train-00001.array_record").write_bytes(b"no records")
    with pytest.raises(ValueError, match="is damaged .*run  bandtok tokenize  again"):
        TokenSource(folder, "train")[2]
    (folder / "tokens-train-00001.array_record").unlink()
    with pytest.raises(FileNotFoundError, match="is missing, though the manifest names it"):
        TokenSource(folder, "train")


def test_refuses_codes_that_do_not_fit(tmp_path):
    writer = TokenWriter(tmp_path / "a", **METADATA)
    with pytest.raises(ValueError, match=r"outside the codebook 0\.\.299"):
        writer.write("train", 0, [{**make_record(0), "codes": np.full((2, 3), 300)}])
    with pytest.raises(ValueError, match=r"need \[columns, 3\]"):
        writer.write("train", 0, [{**make_record(0), "codes": np.zeros((2, 4))}])
    assert not writer.has("train", 0)
    with pytest.raises(ValueError, match="up to 65536"):
        TokenWriter(tmp_path / "b", **{**METADATA, "codebook_size": 70_000})


def test_row_unigrams(folder):
    source = TokenSource(folder, "train")
    codes = np.concatenate([source[i]["codes"] for i in range(3)])
    table = row_unigrams(source, 300, smoothing=0.5)
    assert table.shape == (3, 300)
    np.testing.assert_allclose(np.exp(table).sum(1), 1, rtol=1e-5)
    code = codes[0, 1]
    expected = ((codes[:, 1] == code).sum() + 0.5) / (len(codes) + 150)
    np.testing.assert_allclose(table[1, code], np.log(expected), rtol=1e-5)


def test_batches(folder):
    data = {**DATA, "tokens": str(folder / "x" / "plain")}
    (folder / "x").mkdir()
    writer = TokenWriter(folder / "x" / "plain", **METADATA)
    writer.write("train", 0, [make_record(0), make_record(1, 9), make_record(2, 30)])
    writer.finish()
    stream = iterator.train_batches(data, split="train", batch_size=6, seed=0)
    batch = next(stream)
    stream.close()
    assert batch["codes"].shape == (6, 8, 3) and batch["caption"].shape == (6, 16)
    originals = {5: make_record(0), 9: make_record(1, 9), 30: make_record(2, 30)}
    for codes, columns, start, ended in zip(*(batch[name] for name in ("codes", "columns", "start", "ended"))):
        same = [
            (original["codes"][start : start + columns] == codes[:columns]).all()
            and ended == (original["ends"] and start + columns == length)
            for length, original in originals.items()
            if len(original["codes"][start : start + columns]) == columns
        ]
        assert any(same)
        assert (codes[columns:] == 0).all()


@pytest.mark.parametrize(
    "draw, expected", [("track", [1 / 3, 1 / 3, 1 / 3]), ("seconds", [12 / 144, 45 / 144, 87 / 144])]
)
def test_tracks_are_drawn_once_or_by_their_length(tmp_path, monkeypatch, draw, expected):
    writer = TokenWriter(tmp_path, **METADATA)
    writer.write("train", 0, [make_record(0, 5), make_record(1, 38)])
    writer.write("train", 1, [make_record(2, 80)])
    writer.finish()
    data = {**DATA, "tokens": str(tmp_path), "draw": draw}
    source = TokenSource(tmp_path, "train")
    assert source.lengths.tolist() == [5, 38, 80]
    crops = sources.crops_per_record(data)
    passes = mixture.ShuffledEpochs([0, 1, 2], (3, 0), crops=crops and crops(source))
    drawn = np.array([passes[position] for position in range(1800)])
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), expected, atol=0.005)
    monkeypatch.setattr(mixture, "MAX_TABLE_RECORDS", 2)  # without a table, too
    passes = mixture.ShuffledEpochs([0, 1, 2], (3, 0), crops=crops and crops(source))
    np.testing.assert_allclose(np.bincount([passes[position] for position in range(36)]) / 36, expected, atol=0.06)
    if draw == "seconds":  # 1.5, 5.6 and 10.9 crops in a pass of 18
        assert {tuple(np.bincount(epoch, minlength=3) // [1, 5, 10]) for epoch in drawn.reshape(-1, 18)} <= {
            (1, 1, 1),
            (2, 1, 1),
        }
    with pytest.raises(ValueError, match="config.data.draw is 'hours': set it to one of track, seconds"):
        iterator.train_batches({**data, "draw": "hours"}, split="train", batch_size=1, seed=0)


def test_the_doctor_reads_tokens_and_counts_the_padding(folder, capsys):
    assert cli.main(["doctor", "--data", str(folder), "--columns", "8"]) == 0
    printed = capsys.readouterr().out
    # Each of the 5 + 9 + 30 columns is in 8 of the 12 + 16 + 37 crops.
    assert (
        "3 records, 44 columns" in printed
        and f"{1 - 44 / 65:.1%} of a batch is padding; 33.3% of the records" in printed
    )
    assert "3 with a caption, 2 clips" in printed and "\x1b" not in printed
    (folder / "tokens-train-00000.array_record").write_bytes(b"")
    assert cli.main(["doctor", "--data", str(folder)]) == 1
    assert "tokens-train-00000.array_record is damaged" in capsys.readouterr().err


class Draw:
    """A generator that gives one number, and notes of how many."""

    def __init__(self, number=0):
        self.number = number

    def integers(self, count):
        self.count = count
        return self.number


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("length, columns", [(1, 8), (5, 8), (8, 8), (9, 8), (130, 32), (30, 1)])
def test_every_column_the_beginning_and_the_end_are_learned_as_often_as_they_come(length, columns, ends):
    record = {"codes": np.arange(length)[:, None], "caption": "", "ends": ends}
    crop, draw = CropTokens(columns), Draw()
    crop(record, draw)
    seen, begins, ended = np.zeros(length, int), 0, 0
    for number in range(draw.count):  # all that may be drawn, each once
        example = crop(record, Draw(number))
        count, start = int(example["columns"]), int(example["start"])
        assert example["codes"][:count, 0].tolist() == list(range(start, start + count)) and count
        assert not example["codes"][count:].any()
        seen[start : start + count] += 1
        begins, ended = begins + (start == 0), ended + int(example["ended"])
    assert set(seen) == {begins} == {columns}
    assert ended == (columns if ends else 0)  # once for each time that a column is seen; a clip from a track has none


def test_evaluation_sees_beginnings_middles_and_ends(tmp_path):
    writer = TokenWriter(tmp_path / "tokens", **METADATA)
    writer.write("validation", 0, [make_record(number, 60 + number, ends=True) for number in range(6)])
    writer.finish()
    data = {**DATA, "tokens": str(tmp_path / "tokens")}
    for count in (1, 2):
        batches = list(iterator.evaluation_batches(data, batch_size=6, count=count))
        start, ended = (np.concatenate([batch[name] for batch in batches]) for name in ("start", "ended"))
        assert (start == 0).any() and ended.any() and ((start > 0) & ~ended).sum() > 2 * count
        assert {int(columns) for batch in batches for columns in batch["columns"]} == {8}  # all are whole
        assert len(set(start.tolist())) >= len(start) - 1
