"""Audio files whose header is wrong, that were cut, or that are something else: read to their end, or named."""

import os
import struct
import sys

import numpy as np
import pytest
import soundfile

from bandtok_jax import cli
from bandtok_jax.audio import audio_file, ffmpeg, waveform
from bandtok_jax.audio.audio_file import AudioFile, UnreadableAudio
from bandtok_jax.data_pipelines import discovery
from bandtok_jax.evaluation.report import token_report
from tests import audio_files as made
from tests import evaluations, fuzz, music_files
from tests.audio_files import RATE, SECONDS


def written(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def refusal(path):
    with pytest.raises(UnreadableAudio) as error:
        waveform.read(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ") and line.isprintable()
    with pytest.raises(UnreadableAudio):
        list(waveform.blocks(path, 1000))
    return line


ENDS = {
    "data of 0.wav": lambda: made.with_wav_length(0),
    "data of 4 GiB.wav": lambda: made.with_wav_length(0xFFFFFFFF),
    "data of 2 GiB.wav": lambda: made.with_wav_length(0x7FFFFFF0),
    "unknown.flac": lambda: made.with_flac_length(0),
    "too small.flac": lambda: made.with_flac_length(100),
    "no info.mp3": lambda: made.with_mp3_count(None),
    "info of 0.mp3": lambda: made.with_mp3_count(0),
    "info of 5.mp3": lambda: made.with_mp3_count(5),
    "tag behind.mp3": lambda: made.encoded("mp3") + b"TAG" + bytes(125),
    "tag behind.flac": lambda: made.encoded("flac") + b"TAG" + bytes(125),
    "tag behind.ogg": lambda: made.encoded("ogg") + b"TAG" + bytes(125),
    "tag before.mp3": lambda: b"ID3\4\0\0\0\0\1\0" + bytes(128) + made.encoded("mp3"),
    "junk before.mp3": lambda: bytes(range(250)) * 4 + made.encoded("mp3"),
    "tag before.flac": lambda: b"ID3\4\0\0\0\0\1\0" + bytes(128) + made.with_flac_length(0),
    "unknown.au": lambda: made.encoded("au")[:8] + b"\xff" * 4 + made.encoded("au")[12:],
    "other chunks.wav": lambda: made.encoded("wav") + b"LIST" + struct.pack("<I", 8000) + bytes(8000),
}


@pytest.mark.parametrize("name", ENDS)
def test_it_is_read_to_its_real_end(name, tmp_path):
    path = written(tmp_path, name, ENDS[name]())
    audio, rate = waveform.read(path)
    assert rate == RATE and audio.shape == (1, waveform.probe(path)[2])
    assert audio.shape[1] / rate == pytest.approx(SECONDS, abs=0.13)
    middle = audio[0, RATE // 2 : RATE]
    assert np.abs(np.fft.rfft(middle)).argmax() == 165  # 330 Hz
    part = waveform.read_part(path, RATE, RATE + 100)
    np.testing.assert_allclose(part, audio[:, RATE : RATE + 100], atol=1e-3)


def test_an_mp3_of_variable_rate_is_as_long_as_its_frames(tmp_path):
    path = written(tmp_path, "a.mp3", made.vbr_mp3())
    assert soundfile.info(path).duration < 1.0  # libsndfile guesses
    assert waveform.probe(path)[2] / RATE == pytest.approx(4.0, abs=0.1)
    assert waveform.read(path)[0].shape[1] == waveform.probe(path)[2]
    twice = written(tmp_path, "b.mp3", 2 * made.encoded("mp3"))
    assert waveform.read(twice)[0].shape[1] / RATE == pytest.approx(2 * SECONDS, abs=0.2)
    noise = made.mp3_frames(made.encoded("mp3"))
    hole = written(tmp_path, "c.mp3", b"".join(noise[:20]) + bytes(5000) + b"".join(noise[20:]))
    assert "copy it again, or leave it out" in refusal(hole)  # the decoder gives up there


@pytest.mark.parametrize("kind", made.SUBTYPES)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_what_was_cut_is_named(kind, share, tmp_path):
    data = made.encoded(kind)
    path = written(tmp_path, f"a.{kind}", data[: int(share * len(data))])
    line = refusal(path)
    assert kind == "caf" or "truncated" in line


def test_headers_that_promise_another_length_are_named(tmp_path):
    for name, data in {
        "a.flac": made.with_flac_length(3 * RATE),
        "b.flac": made.with_flac_length(2**36 - 1),
        "c.mp3": made.with_mp3_count(1000),
        "d.mp3": made.with_mp3_count(2**32 - 1),
        "e.wav": made.with_wav_length(100_000),
        "f.flac": made.with_flac_length(0)[:-2000],
    }.items():
        assert "truncated: i" in refusal(written(tmp_path, name, data))
    line = refusal(written(tmp_path, "g.wav", made.with_wav_length(RATE)))
    assert "promises 0.50 s, and 48000 bytes follow" in line


def test_holes_and_chains_of_ogg_pages_are_named(tmp_path):
    pages = made.ogg_pages(made.encoded("ogg", made.tone(20.0)))
    assert len(pages) > 6
    for name, kept, words in (
        ("end.ogg", pages[:-1], "its last page does not end the stream"),
        ("hole.ogg", pages[:4] + pages[5:], "1 of its pages are missing"),
        ("bits.ogg", [*pages[:4], pages[4][:-9] + b"~" + pages[4][-8:], *pages[5:]], "its checksum is wrong"),
        ("junk.ogg", [*pages[:4], b"junk", *pages[4:]], "damaged after"),
        ("chain.ogg", [*pages, made.encoded("ogg")], "a chain of several streams"),
        ("cut.ogg", [*pages[:4], pages[4][:-3]], "cut off after"),
    ):
        assert words in refusal(written(tmp_path, name, b"".join(kept)))


FOREIGN = {
    "an HTML page": b"\n  <!DOCTYPE html><html><body>404</body></html>",
    "a JSON document": b'{"error": "not found"}',
    "text": "Not found: Lied für Klavier\n".encode(),
    "text in UTF-16": "\ufeffNot found".encode("utf-16-le"),
    "a PNG image": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "a JPEG image": b"\xff\xd8\xff\xe0" + bytes(500),
    "a zip archive": b"PK\3\4" + bytes(500),
    "a PDF document": b"%PDF-1.7\n",
    "a WebP image": b"RIFF\x10\0\0\0WEBPVP8 ",
    "a MIDI file": b"MThd\0\0\0\6",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "metadata of macOS": b"\0\5\x16\7\0\2\0\0Mac OS X        ",
    "a file of zero bytes only": bytes(5000),
    "empty": b"",
}


@pytest.mark.parametrize("ending", ["mp3", "wav", "ogg"])
def test_it_is_said_what_a_file_is(ending, tmp_path, capfd):
    for words, data in FOREIGN.items():
        assert f"cannot be read as audio: it is {words}" in refusal(written(tmp_path, f"a.{ending}", data))
    (tmp_path / "b.wav").mkdir()
    os.mkfifo(tmp_path / "c.wav")
    assert "it is a folder" in refusal(tmp_path / "b.wav") and "no regular file" in refusal(tmp_path / "c.wav")
    assert capfd.readouterr() == ("", "")


def test_libraries_print_nothing_by_themselves(tmp_path, capfd):
    frames = made.mp3_frames(made.encoded("mp3"))
    random = np.random.default_rng(0)
    for number in range(6):
        broken = [frame[:4] + random.bytes(len(frame) - 4) if i % 5 == number % 5 else frame for i, frame in
                  enumerate(frames)]  # fmt: skip
        path = written(tmp_path, f"{number}.mp3", b"".join(broken)[number * 40 :] + random.bytes(300))
        try:
            waveform.read(path)
        except UnreadableAudio:
            pass
    os.write(2, b"after")
    assert capfd.readouterr() == ("", "after")


def test_formats_of_headers_are_limits(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((1000, 9)), RATE)
    soundfile.write(tmp_path / "b.wav", np.zeros(1000), 4_000)
    assert "9 channels, where 8" in refusal(tmp_path / "a.wav") and "4000 Hz" in refusal(tmp_path / "b.wav")


def read_whole(path):
    with AudioFile(path) as file:
        assert 0 <= file.samples < 1 << 26
        for block in file.blocks(1 << 14):
            assert block.shape[1] == file.channels


@pytest.mark.parametrize("kind", made.SUBTYPES)
def test_files_under_the_fuzzer(kind, tmp_path, capfd):
    valid = made.encoded(kind, made.tone(0.25))
    ends = fuzz.check(read_whole, tmp_path / f"a.{kind}", valid, memory_bytes=1 << 28)
    assert sum(ends.values()) == 200 and capfd.readouterr() == ("", "")


FAKE = """#!{python}
import os, pathlib, struct, sys
place = pathlib.Path(__file__).parent
(place / "called").write_text("\\n".join(sys.argv[1:]))
source = sys.argv[sys.argv.index("-i") + 1].removeprefix("file:")
what = open(source, "rb").read()[8:16]
if what == b"M4A fail":
    sys.exit("moov atom not found")
out = sys.stdout.buffer
out.write(struct.pack(">4s5I8x", b".snd", 32, 0xFFFFFFFF, 6, 16000, 2))
for block in range(4):
    out.write(struct.pack(">8000f", *(x / 8000 for x in range(8000))))
out.flush()
if what == b"M4A late":
    sys.exit("error while decoding")
"""


@pytest.fixture
def fake_ffmpeg(tmp_path, monkeypatch):
    """A program called ffmpeg that writes 1 s of two channels, and where it notes its arguments."""
    folder = tmp_path / "programs"
    folder.mkdir()
    written(folder, "ffmpeg", FAKE.format(python=sys.executable).encode())
    (folder / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder / "called"


M4A = b"\0\0\0\x20ftypM4A "


def test_ffmpeg_reads_what_libsndfile_does_not(tmp_path, fake_ffmpeg, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-i.m4a", "concat:a|b.m4a", "http:a.m4a", "%03d.m4a"):
        (tmp_path / name).write_bytes(M4A + bytes(100))
        audio, rate = waveform.read(name)
        assert rate == RATE and audio.shape == (2, RATE) and audio[1, 1] == np.float32(3 / 8000)
        arguments = fake_ffmpeg.read_text().splitlines()
        assert arguments[arguments.index("-i") + 1] == f"file:{tmp_path / name}" and "-nostdin" in arguments
        assert arguments[arguments.index("-protocol_whitelist") + 1] == "file,pipe"
        assert arguments[arguments.index("-f") + 1] == "mov"
    assert waveform.probe("-i.m4a") == (RATE, 2, RATE)
    np.testing.assert_array_equal(waveform.read_part("-i.m4a", 5000, 5010), audio[:, 5000:5010])
    for content, words in ((b"fail", "moov atom not found"), (b"late", "error while decoding")):
        (tmp_path / "bad.m4a").write_bytes(M4A + content)
        assert words in refusal(tmp_path / "bad.m4a")


def test_ffmpeg_that_stalls_is_ended(tmp_path, fake_ffmpeg, monkeypatch):
    fake_ffmpeg.with_name("ffmpeg").write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    monkeypatch.setattr(ffmpeg, "STALLED_SECONDS", 0.3)
    assert "ffmpeg stopped" in refusal(written(tmp_path, "a.m4a", M4A))


def test_without_ffmpeg_the_ending_the_count_and_the_cure_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    music = tmp_path / "music"
    music.mkdir()
    for number in range(3):
        written(music, f"{number}.M4A", M4A + bytes([number]))
    words = r"\*\.m4a, because: 3 files of this ending need ffmpeg, which is not installed: install ffmpeg, or convert"
    with pytest.raises(ValueError, match=words):
        music_files.run(music, output=tmp_path / "out")
    assert cli.main(["evaluate", "--codec=x", f"--data={music}", f"--output={tmp_path / 'report'}"]) == 1
    assert "*.m4a: 3 files of this ending need ffmpeg" in capsys.readouterr().err
    assert "MP4 audio needs ffmpeg, which is not installed" in refusal(music / "0.M4A")
    written(music, "notes.xyz", b"")
    (music / "0.M4A").rename(music / "a.mid")
    with pytest.raises(ValueError, match=r"2 files of other kinds \(1 .mid, 1 .xyz\)"):
        music_files.run(music, output=tmp_path / "out")


@pytest.mark.skipif(not ffmpeg.installed(), reason="ffmpeg is not installed")
@pytest.mark.parametrize("name, codec", [("a.m4a", "aac"), ("b.aac", "aac"), ("c.wma", "wmav2"), ("d.m4a", "alac")])
def test_the_real_ffmpeg(name, codec, tmp_path):
    import subprocess

    source = written(tmp_path, "a.wav", made.encoded("wav"))
    flags = ["-nostdin", "-v", "error", "-c:a", codec]
    subprocess.run(["ffmpeg", *flags[:3], "-i", source, *flags[3:], tmp_path / name], check=True)
    audio, rate = waveform.read(tmp_path / name)
    assert rate == RATE and audio.shape[1] / RATE == pytest.approx(SECONDS, abs=0.15)
    assert np.abs(np.fft.rfft(audio[0, RATE // 2 : RATE])).argmax() == 165
    assert waveform.probe(tmp_path / name) == (RATE, 1, audio.shape[1])
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    if name.endswith(".m4a"):
        refusal(tmp_path / name)
    assert discovery.find_tracks([str(tmp_path)])[0]


def test_a_file_that_is_damaged_inside_does_not_end_an_evaluation(tmp_path, monkeypatch, capsys):
    codec = evaluations.use_small_codec(monkeypatch)
    music = evaluations.make_music(tmp_path / "music")
    data = made.encoded("flac", music_files.make_audio(3, 3.0, 1, RATE))
    place = len(data) // 2
    written(music, "broken.flac", data[:place] + bytes(300) + data[place + 300 :])
    written(music, "cut.flac", data[:place])
    nan = np.where(np.arange(3 * RATE) == 2 * RATE, np.nan, 0.1)
    soundfile.write(music / "nan.wav", nan, RATE, "FLOAT")
    soundfile.write(music / "slow.wav", np.zeros(9000), 4_000)
    flags = ("--codec=mine=x", f"--data={music}", f"--output={tmp_path / 'report'}", "--piece-seconds=1")
    assert evaluations.run(*flags) == 0
    left_out = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Left out: ")]
    for name, words in (("broken.flac", "damaged"), ("cut.flac", "truncated"), ("nan.wav", "NaN"), ("slow.wav", "Hz")):
        (line,) = [line for line in left_out if name in line]
        assert words in line
    files = {line["file"] for line in evaluations.table(tmp_path / "report" / "files.csv")}
    assert files == {"live/a.wav", "studio/b.wav", "c.wav", "silence.wav"} and codec.encoded
    monkeypatch.setattr(token_report, "write", lambda *_, **__: {})  # drawing takes its time
    assert cli.main(["evaluate", "tokens", *flags[:2], f"--output={tmp_path / 'tokens'}", "--piece-seconds=1"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("broken.flac", "cut.flac", "nan.wav", "slow.wav"))
    # The same where another codec decoded it.
    for name in ("broken.flac", "nan.wav"):
        (music / name).unlink()
    decoded = evaluations.make_music(tmp_path / "decoded")
    written(decoded, "c.wav", b"no audio")
    assert evaluations.run(f"--decoded=theirs={decoded}", flags[1], f"--output={tmp_path / 'other'}") == 0
    assert "decoded/c.wav: cannot be read as audio: it is text" in capsys.readouterr().out


def test_preparing_survives_what_cancels_or_is_only_a_click(tmp_path):
    audio = music_files.make_audio(0, 3.0)
    soundfile.write(tmp_path / "opposite.wav", np.concatenate([audio, -audio], axis=1), music_files.RATE)
    click = np.zeros(2 * music_files.RATE)
    click[-5:] = 0.9
    soundfile.write(tmp_path / "click.wav", click, music_files.RATE)
    manifest = music_files.run(tmp_path, output=tmp_path / "out", validation_share=0)
    assert manifest["splits"]["train"]["tracks"] + len(manifest["left_out"]) == 2
    assert "opposite.wav" not in music_files.reasons(manifest)


def test_an_hour_takes_little_memory(tmp_path):
    import tracemalloc

    blocks, path = np.zeros((1 << 18, 1), np.int16), tmp_path / "hour.flac"
    blocks[::50] = 1000
    with soundfile.SoundFile(path, "w", 48_000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(60):
            file.write(blocks)
    tracemalloc.start()
    assert sum(block.shape[1] for block in waveform.blocks(path, waveform.READ_BLOCK_SAMPLES)) == 60 << 18
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert audio_file.MAX_DIFFERENCE_SECONDS == 0.1
