"""Preparation of records: exact, with a reason for each file left out, resumable, readable by TFDS."""

from concurrent.futures import ThreadPoolExecutor
import os
from pathlib import Path
import shlex
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from bandtok_jax import cli
from bandtok_jax.data_pipelines import doctor, full_tracks, ingest, prepare_shards, records
from bandtok_jax.data_pipelines.records import RecordSource
from bandtok_jax.data_pipelines.token_source import TokenSource
from bandtok_jax.runtime import folder_lock
from bandtok_jax.runtime.progress import progress_bar
from tests.music_files import RATE, make_audio, make_music, reasons, run


@pytest.fixture
def music(tmp_path):
    return make_music(tmp_path / "music")


def test_records_hold_the_samples_of_the_files(music, tmp_path):
    manifest = run(music, output=tmp_path / "out", clip_seconds=2.0, validation_share=0)
    source = RecordSource(tmp_path / "out", "train")
    by_track = {}
    for index in range(len(source)):
        record = source[index]
        assert record["start"] == sum(map(len, by_track.get(record["track"], []))) and record["sample_rate_hz"] == RATE
        by_track.setdefault(record["track"], []).append(record["audio"])
    assert [len(by_track[name]) for name in ("a.flac", "b.wav", "live/c.ogg")] == [1, 3, 4]
    assert [len(record) for record in by_track["b.wav"]] == [16_000, 16_000, 24_000]  # with the rest of 1 s
    for name in ("a.flac", "b.wav"):
        file = soundfile.read(music / name, dtype="int16", always_2d=True)[0]
        np.testing.assert_array_equal(np.concatenate(by_track[name]), file)
    assert manifest["splits"]["train"]["records"] == len(source) == 8
    assert manifest["splits"]["train"]["hours"] == pytest.approx(18 / 3600, abs=1e-4)
    assert manifest["sample_rates_hz"].keys() == {"8000", "16000"} and not manifest["left_out"]
    assert "no validation tracks" in manifest["notes"][0]


def test_tfds_reads_every_field(music, tmp_path):
    run(music, output=tmp_path / "out", validation_share=0)
    builder = tfds.builder_from_directory(tmp_path / "out")
    theirs, ours = builder.as_data_source("train"), RecordSource(tmp_path / "out", "train")
    assert len(theirs) == len(ours) == 4
    for index in range(4):
        a, b = theirs[index], ours[index]
        np.testing.assert_array_equal(a.pop("audio"), b.pop("audio"))
        assert {name: value.decode() if isinstance(value, bytes) else value for name, value in a.items()} == b


@pytest.mark.parametrize("seconds, lengths", [(2.0, [2.0]), (3.5, [3.5]), (3.6, [2.0, 1.6]), (7.5, [2.0, 2.0, 3.5])])
def test_a_rest_is_a_record_or_belongs_to_the_last_one(tmp_path, seconds, lengths):
    soundfile.write(tmp_path / "x.wav", make_audio(0, seconds), RATE)
    run(tmp_path / "x.wav", output=tmp_path / "out", clip_seconds=2.0, validation_share=0)
    source = RecordSource(tmp_path / "out", "train")
    stored = [source[number] for number in range(len(source))]
    assert [len(record["audio"]) / RATE for record in stored] == lengths
    assert [record["start"] / RATE for record in stored] == [sum(lengths[:number]) for number in range(len(lengths))]
    file = soundfile.read(tmp_path / "x.wav", dtype="int16", always_2d=True)[0]
    np.testing.assert_array_equal(np.concatenate([record["audio"] for record in stored]), file)
    (track,) = full_tracks.open_tracks(tmp_path / "out", RATE)["train"]
    assert track.samples == len(file) and track.ends
    assert not records.short_record_share(source.tracks(), 2.0, 1.6)


def test_a_clip_does_not_end_by_itself(music, tmp_path):
    (tmp_path / "tracks.csv").write_text("file,ends\na.flac,no\nb.wav,YES\n")
    ends = {}
    for clips in (False, True):
        run(music, output=tmp_path / str(clips), tracks=tmp_path / "tracks.csv", clips=clips, validation_share=0)
        tracks = full_tracks.open_tracks(tmp_path / str(clips), RATE)["train"]
        ends[clips] = {track.name: track.ends for track in tracks}
    assert ends[False] == {"a.flac": False, "b.wav": True, "live/c.ogg": True}
    assert ends[True] == {"a.flac": False, "b.wav": True, "live/c.ogg": False}
    (tmp_path / "tracks.csv").write_text("file,ends\na.flac,perhaps\n")
    with pytest.raises(ValueError, match="line 2 has 'perhaps' under ends; write yes, no"):
        run(music, output=tmp_path / "out", tracks=tmp_path / "tracks.csv")


def test_bad_files_are_listed_and_skipped(music, tmp_path):
    good = make_audio(5, 3.0)
    bad = {"text.wav": b"this is no sound", "zero.flac": b"", "cover.wav": b"RIFF"}
    for name, content in bad.items():
        (music / name).write_bytes(content)
    for name, audio in {
        "silent": 0 * good,
        "constant": 0 * good + 0.5,
        "short": good[:4000],
        "nothing": good[:0],
        "scaled": np.concatenate([good, good * 32_768]),
        "nan": np.where(np.arange(len(good))[:, None] == 9000, np.nan, good),
    }.items():
        soundfile.write(music / f"{name}.wav", audio, RATE, "FLOAT")
    soundfile.write(music / "cut.flac", make_audio(6, 5.0), RATE)
    (music / "cut.flac").write_bytes((music / "cut.flac").read_bytes()[:-9000])
    soundfile.write(music / "cut.wav", make_audio(7, 5.0), RATE)
    (music / "cut.wav").write_bytes((music / "cut.wav").read_bytes()[:-30_000])
    (music / "copy.flac").write_bytes((music / "a.flac").read_bytes())
    (music / "notes.txt").write_text("no music")
    manifest = run(music, output=tmp_path / "out", validation_share=0)
    left_out = reasons(manifest)
    assert left_out.keys() == {
        *bad,
        "silent.wav",
        "constant.wav",
        "short.wav",
        "nothing.wav",
        "nan.wav",
        "scaled.wav",
        "cut.flac",
        "cut.wav",
        "copy.flac",
    }
    for name, word in {
        "text.wav": "cannot be read",
        "zero.flac": "zero bytes",
        "silent.wav": "silent",
        "constant.wav": "DC",
        "short.wav": "too short",
        "nan.wav": "NaN",
        "scaled.wav": "full scale is 1.0 and 100 the limit",
        "nothing.wav": "no samples",
        "copy.flac": "same content as a.flac",
        "cut.wav": "truncated",
    }.items():
        assert word in left_out[name], (name, left_out[name])
    assert manifest["splits"]["train"]["tracks"] == 3 and manifest["other_files"] == {".txt": 1}
    assert "text.wav: cannot be read" in doctor.report(doctor.inspect(tmp_path / "out"))


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "music").mkdir()
    with pytest.raises(ValueError, match="no music in .*give wav, flac"):
        run(tmp_path / "music", output=tmp_path / "out")
    (tmp_path / "music" / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match="1 files left out, the first, text.wav, because"):
        run(tmp_path / "music", output=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="give a folder, a file, tfds:NAME"):
        run(tmp_path / "nowhere", output=tmp_path / "out")
    with pytest.raises(ValueError, match="clip_seconds 0.5"):
        run(tmp_path / "music", output=tmp_path / "out", clip_seconds=0.5)


def test_the_same_command_again_does_nothing_and_another_asks(music, tmp_path):
    first = run(music, output=tmp_path / "out")
    changed = os.stat(tmp_path / "out" / "manifest.json").st_mtime_ns
    assert (
        run(music, output=tmp_path / "out") == first
        and os.stat(tmp_path / "out" / "manifest.json").st_mtime_ns == changed
    )
    with pytest.raises(ValueError, match="--overwrite"):
        run(music, output=tmp_path / "out", clip_seconds=3.0)
    assert run(music, output=tmp_path / "out", clip_seconds=3.0, overwrite=True)["clip_seconds"] == 3.0
    assert not (tmp_path / "out" / ".prepare").exists()


def test_names_of_files_are_printed_escaped(music, tmp_path, capsys):
    (music / "\x1b[31mred.wav").write_bytes(b"no sound")
    (music / "b.\x1b[31mred").write_bytes(b"of another kind")
    assert cli.main(["prepare", str(music), "-o", str(tmp_path / "out"), "--sample-rate", str(RATE)]) == 0
    assert cli.main(["doctor", "--data", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and printed.count("\\x1b[31mred.wav") == 2


def test_audio_above_full_scale_and_of_opposite_channels(tmp_path):
    for name, audio in {
        "loud": 20 * make_audio(0),
        "opposite": make_audio(1) * [1, -1],
        "over": 4.5 * make_audio(2),
    }.items():
        soundfile.write(tmp_path / f"{name}.wav", audio, RATE, "FLOAT")
    manifest = run(tmp_path, output=tmp_path / "out", validation_share=0)
    tracks = {track["track"]: track for track in records.read_track_list(tmp_path / "out", manifest)}
    assert not manifest["left_out"] and tracks["opposite.wav"]["mono_lufs"] is None
    assert "1 tracks are clipped in their records, the worst loud.wav with a peak of" in manifest["notes"][0]


def test_a_second_process_in_the_folder_is_named_the_first_one(music, tmp_path, monkeypatch):
    refused, work = [], prepare_shards.run_task

    def meet(*arguments):
        with pytest.raises(folder_lock.Locked, match=rf"out is in use by process {os.getpid()} on .*bandtok prepare"):
            run(music, output=tmp_path / "out", overwrite=True)
        refused.append(1)
        return work(*arguments)

    monkeypatch.setattr(prepare_shards, "run_task", meet)
    manifest = run(music, output=tmp_path / "out")
    assert (
        refused and manifest["splits"]["train"]["tracks"] == 2 and folder_lock.NAME not in os.listdir(tmp_path / "out")
    )


def test_a_refused_preparation_leaves_no_folder_behind(music, tmp_path):
    (tmp_path / "tracks.csv").write_text("name\n")
    with pytest.raises(ValueError):
        run(music, output=tmp_path / "out", tracks=tmp_path / "tracks.csv")
    assert not (tmp_path / "out").exists()


def test_a_cure_never_writes_into_a_folder_of_music(music, tmp_path):
    music = music.rename(tmp_path / "my music")
    for read in (lambda: RecordSource(music, "train"), lambda: doctor.inspect(music), lambda: run_tokenize(music)):
        with pytest.raises(FileNotFoundError) as refused:
            read()
        command = shlex.split(str(refused.value).split("  ", 1)[1])
        assert command[:2] == ["bandtok", "prepare"] and command[-2:] == ["--output", f"{music}-records"]
    with pytest.raises(FileNotFoundError, match=r"--data=DIR --output='.*my music-tokens'"):
        TokenSource(music, "train")
    run(music, output=tmp_path / "records", validation_share=0)
    with pytest.raises(FileNotFoundError, match="--data=.*/records --output=.*/records-tokens"):
        TokenSource(tmp_path / "records", "train")


def run_tokenize(folder):
    full_tracks.open_tracks(str(folder), RATE)


def test_nothing_is_written_among_other_files_and_none_of_them_is_removed(music, tmp_path):
    for name in ("manifest.json", "features.json"):
        (music / name).write_text("mine")
    before = sorted(path.relative_to(music) for path in music.rglob("*"))
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds other files, such as .* give an empty or a new folder"):
            run(music, output=music, overwrite=overwrite)
    assert sorted(path.relative_to(music) for path in music.rglob("*")) == before


def test_a_killed_run_resumes_and_loses_and_doubles_nothing(tmp_path):
    music, out = tmp_path / "music", tmp_path / "out"
    music.mkdir()
    for number in range(24):
        soundfile.write(music / f"{number:02}.wav", make_audio(number, 8.0, 2), RATE)
    code = (
        "from bandtok_jax.data_pipelines.prepare import prepare\n"
        f"if __name__ == '__main__': "
        f"prepare([{str(music)!r}], {str(out)!r}, sample_rate_hz=22050, workers=2, progress=False)\n"
    )
    (tmp_path / "run.py").write_text(code)
    process = subprocess.Popen([sys.executable, tmp_path / "run.py"])
    while len(done := list((out / ".prepare").glob("*.array_record.json"))) < 3:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    with pytest.raises(ValueError, match="interrupted run"):
        run(music, output=out, sample_rate_hz=16_000)
    kept = done[0].with_suffix("")
    written = kept.stat().st_mtime_ns, kept.stat().st_ino
    interrupted = run(music, output=out, sample_rate_hz=22_050)
    assert written in {(path.stat().st_mtime_ns, path.stat().st_ino) for path in out.glob("music-*")}  # not made again
    whole = run(music, output=tmp_path / "whole", sample_rate_hz=22_050)
    assert interrupted == whole
    for split in whole["splits"]:
        a, b = RecordSource(out, split), RecordSource(tmp_path / "whole", split)
        for index in range(len(b)):
            np.testing.assert_array_equal(a[index].pop("audio"), b[index].pop("audio"))


def test_memory_is_bounded_by_the_block(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_shards, "SPOOL_BYTES", 1 << 20)
    monkeypatch.setattr(ingest, "BLOCK_SAMPLES", 1 << 14)
    with soundfile.SoundFile(tmp_path / "long.wav", "w", RATE, 1) as file:
        for seed in range(8):
            file.write(make_audio(seed, 60.0))
    tracemalloc.start()
    manifest = run(tmp_path / "long.wav", output=tmp_path / "out", validation_share=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert manifest["splits"]["train"]["records"] == 80 and peak < 6e6  # the samples alone are 15 MB in float32


def test_doctor_finds_missing_and_damaged_data(music, tmp_path, capsys, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such folder; make it with  bandtok prepare"):
        doctor.inspect(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no manifest.json"):
        doctor.inspect(tmp_path / "empty")
    run(music, output=tmp_path / "out", clip_seconds=2.0, validation_share=0)
    result = doctor.inspect(tmp_path / "out", clip_samples=20_000)
    assert result["read"]["train"] == {
        "records": 8,
        "silent_records": 0,
        "clipped_share": 0.0,
        "crops_without_overlap": 18 * RATE // 20_000,
    }
    assert result["crop"]["seconds"] == 2.5 and "20000 samples at 8000 Hz, 2.50 s, mono" in doctor.report(result)
    assert "100.0% of the records are shorter and end in silence" in doctor.report(result)
    assert "a larger --clip-seconds" in doctor.report(result)
    assert cli.main(["doctor", "--data", str(tmp_path / "out"), "--clip-samples=12000"]) == 0
    assert "12000 samples at 8000 Hz, 1.50 s" in capsys.readouterr().out
    assert cli.main(["doctor", "--data", str(tmp_path / "out"), "--clip-samples=0"]) == 1
    bars = []
    with monkeypatch.context() as patched:
        patched.setattr(doctor, "progress_bar", lambda **options: bars.append(progress_bar(**options)) or bars[0])
        doctor.inspect(tmp_path / "out")
    assert bars[0].n == bars[0].total == 8
    stereo = doctor.inspect(tmp_path / "out", clip_samples=15_200, channels=2)
    assert stereo["crop"]["padded_share"] == 0.0 and "1.90 s, stereo" in doctor.report(stereo)
    assert result["domain_shares"] == {"music": 1.0} and "training examples" not in doctor.report(result)
    listed = (tmp_path / "out" / "tracks.jsonl").read_text().splitlines()  # of 1, 3 and 4 records
    listed[1] = listed[1].replace('"domain": "music"', '"domain": ""')
    (tmp_path / "out" / "tracks.jsonl").write_text("\n".join(listed))
    result = doctor.inspect(tmp_path / "out")
    assert "examples: music 62.5%, unknown 37.5%; with config.data.balance_domains 50.0% of" in doctor.report(result)
    with pytest.raises(ValueError, match="nothing in the split 'validation'"):
        RecordSource(tmp_path / "out", "validation")
    shard = Path(tmp_path / "out" / "music-train.array_record-00000-of-00003")
    content = bytearray(shard.read_bytes())
    content[5000] ^= 255
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged .*--overwrite"):
        doctor.inspect(tmp_path / "out")
    shard.write_bytes(content[:4000])
    with pytest.raises(ValueError, match="its end is missing.*config.data.damaged=skip"):
        RecordSource(tmp_path / "out", "train")[0]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        doctor.inspect(tmp_path / "out")


def test_threads_may_share_a_source(music, tmp_path):
    run(music, output=tmp_path / "out", clip_seconds=2.0, validation_share=0)
    source = RecordSource(tmp_path / "out", "train")
    with ThreadPoolExecutor(4) as pool:
        sums = list(pool.map(lambda index: source[index % 8]["audio"].sum(), range(64)))
    assert sums == [source[index % 8]["audio"].sum() for index in range(64)]
