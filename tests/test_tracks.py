"""Discovery, description and measurement of tracks, and TFDS data sets without TensorFlow."""

import json
import os
import struct
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from bandtok_jax.audio import loudness
from bandtok_jax.data_pipelines.discovery import find_tracks, split_by_hash
from bandtok_jax.data_pipelines.measurement import LoudnessMeter, Measurement
from bandtok_jax.data_pipelines.records import RecordSource
from bandtok_jax.data_pipelines.synthetic import SyntheticMusic
from tests.music_files import RATE, make_audio, make_music, reasons, run


@pytest.fixture
def music(tmp_path):
    return make_music(tmp_path / "music")


def test_the_csv_decides(music, tmp_path):
    (music / "tracks.csv").write_text(
        "file,split,licence,kind,caption,domain\na.flac,validation,CC0-1.0,jazz,,\n"
        "live/c.ogg,train,CC-BY-4.0,rock,loud guitars,live\n"
        "gone.wav,train,,,,\n"
    )
    manifest = run(music, output=tmp_path / "out", tracks=music / "tracks.csv", validation_share=0)
    validation, train = RecordSource(tmp_path / "out", "validation"), RecordSource(tmp_path / "out", "train")
    assert {validation[i]["track"] for i in range(len(validation))} == {"a.flac"} and validation[0]["caption"] == "jazz"
    rock = next(record for record in map(train.__getitem__, range(len(train))) if record["track"] == "live/c.ogg")
    assert (rock["caption"], rock["domain"], rock["licence"]) == ("loud guitars", "live", "CC-BY-4.0")
    assert "no such file" in reasons(manifest)["gone.wav"] and manifest["licences"]["CC0-1.0"]["tracks"] == 1
    (music / "tracks.csv").write_text("file,split\na.flac,valid\n")
    with pytest.raises(ValueError, match="line 2 has the split 'valid'; write train, validation"):
        run(music, output=tmp_path / "out2", tracks=music / "tracks.csv")
    (music / "tracks.csv").write_text("name\na.flac\n")
    with pytest.raises(ValueError, match="no column 'file'"):
        run(music, output=tmp_path / "out2", tracks=music / "tracks.csv")
    (music / "tracks.csv").write_text("file\ncaf\u00e9.wav\n", encoding="latin-1")
    with pytest.raises(ValueError, match="tracks.csv: it is not UTF-8; save it as UTF-8"):
        run(music, output=tmp_path / "out2", tracks=music / "tracks.csv")


def test_a_licence_leaves_out_the_others(music, tmp_path):
    (music / "tracks.csv").write_text("file,licence\na.flac,CC0-1.0\nlive/c.ogg,CC-BY-4.0\n")
    options = {"output": tmp_path / "out", "tracks": music / "tracks.csv"}
    manifest = run(music, licences=["CC0-1.0"], **options)
    assert {licence: numbers["tracks"] for licence, numbers in manifest["licences"].items()} == {"CC0-1.0": 1}
    why = reasons(manifest)
    assert why["live/c.ogg"] == "its licence is CC-BY-4.0, not CC0-1.0"
    assert why["b.wav"] == "the table states no licence for it, not CC0-1.0"
    with pytest.raises(ValueError, match="holds other music"):
        run(music, licences=["CC0-1.0", "CC-BY-4.0"], **options)
    with pytest.raises(ValueError, match="no music in .* its licence is CC0-1.0, not CC0$"):
        run(music, licences=["CC0"], output=tmp_path / "none", tracks=music / "tracks.csv")


def test_a_few_tracks_have_one_for_validation(music, tmp_path):
    manifest = run(music, output=tmp_path / "out")
    validation = RecordSource(tmp_path / "out", "validation")
    assert {validation[i]["track"] for i in range(len(validation))} == {"b.wav"}  # of the lowest hash
    assert manifest["splits"]["train"]["tracks"] == 2 and "b.wav is the validation track" in manifest["notes"][0]

    def splits(*sources, **options):
        return {track.name: track.split for track in find_tracks(sources, **options)[0]}

    assert set(splits(music, validation_share=0).values()) == {"train"} == set(splits(music / "b.wav").values())
    (tmp_path / "tracks.csv").write_text("file,split\na.flac,train\n")
    assert splits(music, csv_path=tmp_path / "tracks.csv")["a.flac"] == "train"
    assert list(splits(music, csv_path=tmp_path / "tracks.csv").values()).count("validation") == 1
    (tmp_path / "tracks.csv").write_text("file,split\na.flac,train\nb.wav,train\nlive/c.ogg,test\n")
    assert "validation" not in splits(music, csv_path=tmp_path / "tracks.csv").values()
    (tmp_path / "tracks.csv").write_text("file,split\nb.wav,validation\n")
    assert list(splits(music, csv_path=tmp_path / "tracks.csv").values()) == ["train", "validation", "train"]


def test_links_are_followed_once_and_broken_names_left_out(tmp_path):
    music, elsewhere = tmp_path / "music", tmp_path / "elsewhere"
    for number, path in enumerate((music / "real" / "a.wav", elsewhere / "b.wav", elsewhere / "below" / "c.wav")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]))
    (music / "a link").symlink_to(music / "real")
    (music / "more").symlink_to(elsewhere)
    (elsewhere / "below" / "round").symlink_to(music)
    (music / "gone.wav").symlink_to(tmp_path / "nothing.wav")
    for name in (b"caf\xe9.wav", b"notes.\xe9"):
        open(os.path.join(os.fsencode(music), name), "wb").close()
    tracks, left_out, others, _ = find_tracks([music])
    assert [track.name for track in tracks] == ["more/b.wav", "more/below/c.wav", "real/a.wav"]
    assert {entry["track"]: entry["reason"] for entry in left_out} == {
        "gone.wav": "a link to nothing",
        "caf\\xe9.wav": "its path is not UTF-8; rename it",
    }
    assert others == {".\\xe9": 1}


def test_more_tracks_move_none(tmp_path):
    names = [f"track {number}.wav" for number in range(2000)]
    share = np.mean([split_by_hash(name, 0.1) == "validation" for name in names])
    assert 0.08 < share < 0.12
    assert all(split_by_hash(name, 0.2) == "validation" for name in names if split_by_hash(name, 0.1) == "validation")


def test_two_encodings_of_a_track_are_on_the_same_side(tmp_path):
    for number in range(40):
        for name in (f"{number} café.wav", f"{number} CAFE\u0301.mp3"):
            (tmp_path / name).write_bytes(name.encode())
    sides = {}
    for track in find_tracks([tmp_path], validation_share=0.3)[0]:
        sides.setdefault(track.name.split()[0], []).append(track.split)
    assert all(len(splits) == 2 and len({*splits}) == 1 for splits in sides.values())
    assert {splits[0] for splits in sides.values()} == {"train", "validation"}
    few = tmp_path / "few"
    few.mkdir()
    for name in ("a.wav", "a.flac", "b.wav", "b.flac"):
        (few / name).write_bytes(name.encode())
    assert (
        sorted(track.split for track in find_tracks([few], validation_share=1e-9)[0])
        == ["train"] * 2 + ["validation"] * 2
    )
    assert {track.split for track in find_tracks([few / "a.wav", few / "a.flac"], validation_share=1e-9)[0]} == {
        "train"
    }


def test_files_of_one_name_are_all_kept_and_keep_their_split(tmp_path):
    folders = [tmp_path / f"cd{disc}" / "audio" for disc in (1, 2, 3)]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for track in range(20):
            (folder / f"{track:02d}.wav").write_bytes(bytes([number, track]) * (number + 1))
    tracks, left_out, _, _ = find_tracks(folders)
    assert len(tracks) == 60 and not left_out and len({track.name for track in tracks}) == 60
    alone = {track.path: track.split for folder in folders for track in find_tracks([folder])[0]}
    assert {track.path: track.split for track in tracks} == alone
    assert {track.path: track.split for track in find_tracks(folders[::-1])[0]} == alone


def test_streamed_loudness_equals_the_whole(tmp_path):
    for seconds, channels in ((0.3, 1), (2.05, 2), (7.3, 2)):
        audio = make_audio(3, seconds, channels, 44_100).T * np.linspace(
            0.01, 1, int(seconds * 44_100), dtype=np.float32
        )
        meter = LoudnessMeter(44_100, channels)
        for first in range(0, audio.shape[1], 9999):
            meter.push(audio[:, first : first + 9999])
        assert meter.lufs() == pytest.approx(loudness.integrated_lufs(audio, 44_100), abs=0.01)


@pytest.mark.parametrize("cut_hz", [16_000, 19_500])
def test_bandwidth_is_where_the_spectrum_ends(cut_hz):
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(3 * 44_100))
    spectrum[3 * cut_hz :] = 0
    measurement = Measurement(44_100, 1)
    measurement.push((0.2 * np.fft.irfft(spectrum))[None].astype(np.float32))
    measured = measurement.result(1.6)
    assert measured["bandwidth_hz"] == pytest.approx(cut_hz, abs=60) and measured["full_band"] == (cut_hz > 19_000)


def write_tfds(folder, kind):
    """A data set as TFDS lays it out, with the feature that its GTZAN has (int64 without encoding) or a tensor of
    bytes.
    """
    folder.mkdir(parents=True)
    audio = [np.round(make_audio(seed, 2.0)[:, 0] * 32_768).astype(np.int16) for seed in range(3)]
    if kind == "tensor":
        features = tfds.features.FeaturesDict(
            {
                "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
                "sample_rate": tfds.features.Scalar(np.int64),
                "pitch": tfds.features.ClassLabel(num_classes=128),
                "instrument": {"family": tfds.features.ClassLabel(names=["bass", "brass"])},
            }
        )
        from array_record.python import array_record_module

        writer = array_record_module.ArrayRecordWriter(
            str(folder / "gtzan-train.array_record-00000-of-00001"), "group_size:1"
        )
        for samples in audio:
            fields = {"audio": samples, "sample_rate": RATE, "pitch": 60, "instrument": {"family": 1}}
            writer.write(features.serialize_example(fields))
        writer.close()
        template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name="gtzan", filetype_suffix="array_record")
        split = tfds.core.SplitInfo(name="train", shard_lengths=[3], num_bytes=0, filename_template=template)
        tfds.folder_dataset.write_metadata(
            data_dir=folder, features=features, split_infos=[split], filename_template=template, check_data=False
        )
        return audio
    label = {
        "pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",
        "classLabel": {"numClasses": "2"},
    }
    feature = {
        "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
        "audio": {
            "shape": {"dimensions": ["-1"]},
            "dtype": "int64",
            "fileFormat": "wav",
            "sampleRate": str(RATE),
            "encoding": "none",
        },
    }
    (folder / "features.json").write_text(
        json.dumps({"featuresDict": {"features": {"audio": feature, "label": label}}})
    )
    (folder / "label.labels.txt").write_text("blues\njazz\n")
    (folder / "dataset_info.json").write_text(
        json.dumps({"name": "gtzan", "fileFormat": "tfrecord", "splits": [{"name": "train", "shardLengths": ["3"]}]})
    )
    with open(folder / "gtzan-train.tfrecord-00000-of-00001", "wb") as file:
        for samples in audio:
            example = tf_example_pb2.Example()
            example.features.feature["audio"].int64_list.value.extend(samples.tolist())
            example.features.feature["label"].int64_list.value.append(1)
            data = example.SerializeToString()
            file.write(struct.pack("<Q", len(data)) + b"crc4" + data + b"crc4")
    return audio


@pytest.mark.parametrize("kind", ["audio", "tensor"])
def test_a_prepared_tfds_data_set_needs_no_tensorflow(tmp_path, kind):
    audio = write_tfds(tmp_path / "tfds" / "gtzan" / "1.0.0", kind)
    run("tfds:gtzan", output=tmp_path / "out", tfds_dir=tmp_path / "tfds", validation_share=0)
    source = RecordSource(tmp_path / "out", "train")
    for index, samples in enumerate(audio):
        np.testing.assert_array_equal(source[index]["audio"][:, 0], samples)
        assert (
            source[index]["domain"] == "gtzan"
            and source[index]["caption"] == {"audio": "jazz", "tensor": "brass"}[kind]
        )
    assert "tensorflow" not in sys.modules
    with pytest.raises(FileNotFoundError, match="tfds build nsynth"):
        run("tfds:nsynth", output=tmp_path / "out2", tfds_dir=tmp_path / "tfds")


def test_embedded_music_can_be_prepared(tmp_path):
    manifest = run("synthetic:3", output=tmp_path / "out")
    train, validation = RecordSource(tmp_path / "out", "train"), RecordSource(tmp_path / "out", "validation")
    assert (len(train), len(validation)) == (4, 2) and manifest["domains"] == {
        "synthetic": {"tracks": 3, "hours": 0.01}
    }
    track = SyntheticMusic("train", RATE, 12.0)[1]
    np.testing.assert_array_equal(np.concatenate([train[2]["audio"], train[3]["audio"]]), track["audio"])
    assert train[2]["caption"] == track["caption"] and -22 < train[2]["lufs"] < -10
    with pytest.raises(ValueError, match="synthetic:TRACKS"):
        run("synthetic:many", output=tmp_path / "out2")
