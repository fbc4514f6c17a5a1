"""Lyrics from .lrc files to tokens in a batch."""

import numpy as np
import pytest
import soundfile

from bandtok_jax.config.load import load_config
from bandtok_jax.data_pipelines import iterator, lyrics, records, tf_example
from bandtok_jax.data_pipelines.doctor import inspect, report
from bandtok_jax.data_pipelines.lyrics import Line
from bandtok_jax.data_pipelines.prepare import prepare

LRC = """\ufeff[ar:Someone]
[offset:+500]
[00:00.50]One <00:00.90>two
[00:03.5][00:09.50]Three  FOUR
[00:05:50]
[00:12.50]five
""".lstrip("\ufeff")
LINES = [Line(0, 3, "One two"), Line(3, 5, "Three FOUR"), Line(9, 12, "Three FOUR"), Line(12, 22, "five")]


def test_times_of_lines():
    assert lyrics.parse_lrc(LRC) == LINES
    with pytest.raises(ValueError, match="no line begins with a time stamp"):
        lyrics.parse_lrc("words without times")


def test_a_line_belongs_to_the_part_that_its_middle_lies_in():
    parts = [lyrics.cut(LINES, start, start + 2) for start in range(0, 20, 2)]
    assert [line.text for part in parts for line in part] == [line.text for line in LINES]
    assert parts[0] == [Line(0, 3, "One two")] and parts[5] == [Line(-1, 2, "Three FOUR")]
    assert lyrics.from_field(lyrics.to_field(LINES)) == LINES
    with pytest.raises(ValueError, match="'no times' have no start and end"):
        lyrics.from_field("no times\n")


def test_tokens():
    tokens = lyrics.to_tokens(" Ärger  und\n", 12)
    assert tokens.dtype == np.uint8 and lyrics.to_text(tokens) == "ärger und"
    assert not lyrics.to_tokens("too long for it", 12).any()
    assert lyrics.vocabulary_size("") == 256


def test_sentence_pieces(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = str(tmp_path / "lyrics.model")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["la la love", "my love is gone"] * 50),
        model_prefix=model.removesuffix(".model"), vocab_size=18, minloglevel=2,
    )  # fmt: skip
    tokens = lyrics.to_tokens("La  love", 12, model)
    assert tokens.dtype == np.int32 and lyrics.vocabulary_size(model) == 19
    assert 0 < tokens.max() < 19 and lyrics.to_text(tokens, model) == "la love"


def test_a_missing_model_or_package_is_one_line(tmp_path):
    with pytest.raises((ImportError, ValueError), match="data.lyrics_model"):
        lyrics.vocabulary_size(str(tmp_path / "missing.model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two noises of 8 s, one of them with lyrics, as records of 4 s."""
    music = tmp_path_factory.mktemp("music")
    rng = np.random.default_rng(0)
    for name in ("sung.wav", "other.wav"):
        soundfile.write(music / name, 0.1 * rng.standard_normal((64_000, 1)), 8000)
    (music / "sung.lrc").write_text(LRC)
    (music / "tracks.csv").write_text("file,lyrics,split\nsung.wav,sung.lrc,train\nother.wav,,validation\n")
    output = tmp_path_factory.mktemp("records") / "out"
    prepare(
        [music], output, tracks=music / "tracks.csv", clip_seconds=4.0, sample_rate_hz=8000, workers=1, progress=False
    )
    return output


def test_records_hold_their_lines(folder):
    source = records.RecordSource(folder, "train")
    assert [lyrics.from_field(source[number]["lyrics"]) for number in range(2)] == [
        [LINES[0]],
        [Line(-1, 1, "Three FOUR")],
    ]
    assert records.RecordSource(folder, "validation")[0]["lyrics"] == ""
    assert "sung.lrc" not in report(inspect(folder)) and "lyrics      1 tracks" in report(inspect(folder))
    assert records.read_manifest(folder)["lyrics"]["True"]["tracks"] == 1


def test_tfds_reads_them(folder):
    tfds = pytest.importorskip("tensorflow_datasets")
    source = tfds.builder_from_directory(folder).as_data_source("train")
    assert source[0]["lyrics"].decode() == "0.00\t3.00\tOne two\n"


def test_batches_hold_them_where_a_configuration_asks_for_them(folder):
    config = load_config("vocos:tiny").data
    config.unlock()
    config.update({"sources": str(folder), "sample_rate_hz": 8000, "clip_samples": 32_000, "lyrics_tokens": 16})

    def batches():
        return iterator.evaluation_batches(config, split="train", batch_size=2, count=1)

    assert [lyrics.to_text(row) for row in batches()[0]["lyrics"]] == ["one two", "three four"]
    config.clip_samples = 8000  # the crops hold no middle of a line
    assert not batches()[0]["lyrics"].any()
    config.lyrics_tokens = 0
    assert "lyrics" not in batches()[0]


def test_records_from_before_there_were_lyrics():
    record = {
        "audio": np.zeros((4, 1), np.int16), "sample_rate_hz": 8000, "track": "a", "start": 0, "domain": "",
        "full_band": False, "lufs": -20.0, "mono_lufs": -20.0, "caption": "", "licence": "",
    }  # fmt: skip
    data = tf_example.encode_example(record)
    field = tf_example._feature("lyrics", tf_example.BYTES_LIST, b"")
    assert data.count(field) == 1
    older = tf_example._message(1, data[data.index(b"\n", 1) :].replace(field, b""))
    head, shape, _ = tf_example.decode_head(older)
    assert head["lyrics"] == "" and shape == (4, 1)


def test_a_missing_file_names_the_line(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    (tmp_path / "tracks.csv").write_text("file,lyrics\na.wav,b.lrc\n")
    with pytest.raises(ValueError, match="line 2 has the lyrics .*b.lrc': there is no such .lrc file beside the table"):
        prepare([tmp_path], tmp_path / "out", tracks=tmp_path / "tracks.csv", progress=False)
