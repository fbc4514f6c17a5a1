"""The output, the files and the errors of the command line."""

import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import warnings
import wave

import numpy as np
import pytest
import soundfile

import bandtok_jax
from bandtok_jax import cli
from bandtok_jax.audio import loudness, waveform
from bandtok_jax.cli import dispatch, evaluate
from bandtok_jax.cli.parser import config_overrides, expand_home
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.commands import describe_config, new_music
from bandtok_jax.config.load import load_config
from bandtok_jax.config.shipped import list_configs
from bandtok_jax.config.stored import to_json
from bandtok_jax.data_pipelines import full_tracks
from bandtok_jax.formats import bt_file
from bandtok_jax.generation import prompting
from bandtok_jax.pretrained import export_folder
from tests import kept_programs, tiny

VERBS = (
    "prepare train config tokenize encode decode reconstruct generate edit evaluate export import plan doctor".split()
)
RATE = 44100


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    with kept_programs.loaded_once():
        yield


@pytest.fixture(scope="module")
def codec():
    return tiny.drawn_codec()


@pytest.fixture(scope="module")
def model(codec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    export_folder.save_codec(codec, folder)
    return str(folder)


@pytest.fixture(scope="module")
def composer(codec, tmp_path_factory):
    """Returns the folder of an export with a language model."""
    folder = tmp_path_factory.mktemp("models") / "composer"
    export_folder.save_codec(tiny.with_language_model(codec), folder)
    return str(folder)


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("music") / "song.flac"
    time = np.arange(48_000) / 48_000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * time), 48_000)
    return str(path)


def failure(capsys, *arguments) -> str:
    """Runs a command with a mistake and returns its one line of error."""
    assert cli.main(arguments) == 1
    printed = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in printed if not line.startswith("bandtok-jax ")]  # the first line of long work
    assert len(lines) == 1 and lines[0].startswith("bandtok: error: ")
    return lines[0]


def test_help_names_every_verb_and_each_shows_an_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    overview = capsys.readouterr().out
    for verb in VERBS:
        assert re.search(rf"^ +{verb}\s", overview, re.MULTILINE), verb
        with pytest.raises(SystemExit, match="0"):
            cli.main([verb, "--help"])
        shown = capsys.readouterr().out
        assert f"example:\n  bandtok {verb} " in shown


@pytest.mark.parametrize(
    "arguments",
    [[], ["sing"], ["encode"], ["encode", "a.wav", "--model=m", "--loud"], ["train", "--config=c", "--workdir=w", "x"]],
)
def test_usage_errors_leave_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 2 and "usage: bandtok" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, meant",
    [
        (["trian", "--workdir=w"], "trian: did you mean train?"),
        (["generate", "--modl=x", "-o", "y"], "--modl: did you mean --model?"),
        (["encode", "a.wav", "--model=m", "--ouput", "b.bt"], "--ouput: did you mean --output?"),
        (["train", "--config=c", "--workdir=w", "--init_from=r"], "--init_from: did you mean --init-from?"),
        (["evaluate", "--data", "d", "--output=o", "--without=visqol", "--langage-model=m"], "--language-model?"),
    ],
)
def test_usage_errors_name_the_near_miss(arguments, meant, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert meant in capsys.readouterr().err


def test_every_flag_of_evaluate_has_a_subject_that_reads_it(capsys):
    names = {name.lstrip("-").replace("-", "_") for flag in dispatch.VERBS["evaluate"].flags for name in flag.names[:1]}
    subjects = evaluate.SUBJECTS.values()
    assert set().union(*(subject.flags for subject in subjects)) == names - {"what", "data", "output"}
    assert all(callable(pkgutil.resolve_name(subject.function)) for subject in subjects)
    error = failure(capsys, "evaluate", "--data=d", "--output=o", "--language-model=m")
    assert "--language-model is for tokens, not for codecs: leave it out" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config=bandtok:tiny", "--config.data.sources=absent", "--workdir"],
        ["train", "--config=bandtok:tiny", "--config.mesh.fsdp=3", "--workdir"],
        ["train", "--config=language_model:tiny", "--config.data.tokens=absent", "--workdir"],
        ["prepare", "absent", "--output"],
        ["tokenize", "--model=absent", "--data=synthetic", "--output"],
        ["evaluate", "--codec=absent", "--data=absent", "--output"],
        ["export", "absent", "--output"],
        ["import", "absent", "--from=dac", "--output"],
    ],
)
def test_a_refused_verb_leaves_no_folder(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    failure(capsys, *arguments, "made/for/nothing")
    assert os.listdir(tmp_path) == []
    os.mkdir("before")
    failure(capsys, *arguments, "before")
    assert os.listdir(tmp_path) == ["before"]


def test_home_is_expanded_without_a_shell(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    flags = dispatch.parser().parse_args(["evaluate", "--codec=a=~/m", "--data", "~/x", "y~", "--output=~/report"])
    expand_home(flags)
    assert (flags.codec, flags.data, flags.output) == (["a=/home/me/m"], ["/home/me/x", "y~"], "/home/me/report")
    config = load_config("bandtok:tiny", {"tokenizer": "~/runs/tokenizer"})
    assert config.tokenizer == "/home/me/runs/tokenizer"


def test_train_overrides():
    parser = dispatch.parser()
    assert config_overrides(["--config.a.b=1=2", "--config.c", "3"], parser) == {"a.b": "1=2", "c": "3"}


def test_a_misspelt_config_key_names_the_near_miss(tmp_path, capsys):
    error = failure(capsys, "train", "--config=bandtok:tiny", f"--workdir={tmp_path}", "--config.bach_size=8")
    assert "bach_size" in error and "batch_size" in error


def test_config_prints_the_flags_that_train_reads(tmp_path, capsys):
    assert cli.main(["config", "vocos:small", "--config.batch_size=3", "--config.data.gain_db=(0.0,1.0)"]) == 0
    printed = capsys.readouterr().out
    flags = shlex.split(printed, comments=True)  # as a shell reads it
    expected = load_config("vocos:small", {"batch_size": "3", "data.gain_db": "(0.0, 1.0)"})
    overrides = config_overrides(flags, dispatch.parser())
    again = load_config("vocos:small", overrides)
    assert to_json(again) == to_json(expected) and len(flags) == len(describe_config.descriptions(again))
    assert cli.main(["config", "vocos:small", "--config.batch_size=3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["batch_size"] == 3
    assert "bandtok config" in failure(capsys, "train", "--config=dac:tiny", "--workdir=w", "--config.los.mel=1")


def test_networks_are_checked_where_only_the_core_is_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optax", None)
    error = failure(capsys, "config", "language_model:tiny", "--config.model.dim=-1")
    assert "config.model.dim is -1: set it to a whole number of at least 1" in error


def test_config_refuses_values_that_the_network_refuses(capsys):
    error = failure(capsys, "config", "language_model:tiny", "--config.model.layout=foo")
    assert "layout is 'foo': set it to one of flat, depth, delay" in error
    error = failure(capsys, "config", "language_model:tiny", "--config.model.num_heads=0")
    assert "config.model.num_heads is 0: set it to a whole number of at least 1" in error
    error = failure(capsys, "config", "vocos:tiny", "--config.data.clip_samples=1000")  # a task refuses it
    assert "data.clip_samples 1000 is not a whole number of hops: set it to a multiple of 512" in error
    assert cli.main(["config", "language_model:tiny", "--config.model.layout=delay"]) == 0  # without token records


def test_a_reader_that_leaves_early_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "bandtok_jax.cli", "config", "bandtok:tiny"], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("name", list_configs())
def test_every_key_has_a_description(name):
    descriptions = describe_config.descriptions(load_config(name))
    assert [key for key, description in descriptions.items() if not description] == []
    assert "codebook" in describe_config.descriptions(load_config("bandtok"))["model.codebook_size"]


def test_encode_and_decode(model, song, tmp_path, capsys):
    codes, audio_path = str(tmp_path / "song.bt"), str(tmp_path / "song.wav")
    assert cli.main(["encode", song, f"--model={model}", "-o", codes]) == 0
    assert "11 columns x 16 rows, 1.00 s" in capsys.readouterr().out
    grid, header = bt_file.read_codes(codes)
    codec = bandtok_jax.load(model)
    audio, rate = soundfile.read(song, dtype="float32")
    np.testing.assert_array_equal(grid, codec.encode(audio, rate))
    assert header.samples == RATE and codec.weight_hash.startswith(header.weight_hash)

    assert cli.main(["decode", codes, f"--model={model}", "--output", audio_path]) == 0
    decoded, rate = soundfile.read(audio_path, dtype="float32")
    assert rate == RATE and decoded.shape == (RATE,)
    expected = np.clip(codec.decode(grid, samples=RATE), -1, 1 - 2**-15)
    np.testing.assert_allclose(decoded, expected, atol=2**-15)


def test_reconstruct(model, song, tmp_path, capsys):
    assert cli.main(["reconstruct", song, f"--model={model}", "-o", str(tmp_path / "copy.wav")]) == 0
    line = capsys.readouterr().out
    assert re.search(r"1\.00 s; level -13\.\d dB -> -?\d+\.\d dB; log-mel distance \d\.\d+ nats", line), line
    assert soundfile.info(tmp_path / "copy.wav").frames == RATE


GENERATE = ["--seconds=0.5", "--top-k=0", "--temperature=0.9", "--prompt", "slow piano"]


def test_generate(composer, tmp_path, capsys, monkeypatch):
    flags = [f"--model={composer}", *GENERATE]
    assert cli.main(["generate", *flags, "--count=2", "-o", str(tmp_path / "new.WAV")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [f"{tmp_path}/new-1.WAV", f"{tmp_path}/new-2.WAV"]
    seconds, taken, factor = map(float, re.findall(r"[0-9.]+[0-9]", lines[-1]))
    assert lines[-1].endswith(" times real time") and seconds == 1
    assert factor == pytest.approx(1 / taken, rel=0.05, abs=0.01)
    assert soundfile.info(tmp_path / "new-1.WAV").frames == soundfile.info(tmp_path / "new-2.WAV").frames == RATE // 2
    monkeypatch.setattr(prompting.GridLanguageModel, "generate", None)  # the refusals come before the work
    original = f"--continue={tmp_path}/new-2.WAV"
    error = failure(capsys, "generate", *flags, original, "--count=2", "-o", f"{tmp_path}/new.WAV")
    assert "new-2.WAV is the original itself" in error
    error = failure(capsys, "generate", *flags, "--count=2", "-o", f"{tmp_path}/new.WAV")
    assert "new-1.WAV exists" in error and "choose another --output" in error


def test_generate_continues_a_song(composer, song, tmp_path):
    continuation = str(tmp_path / "more.BT")
    assert cli.main(["generate", f"--model={composer}", *GENERATE, "--continue", song, "-o", continuation]) == 0
    audio, rate = soundfile.read(song)
    louder = min(10 ** ((-16 - loudness.integrated_lufs(audio[None], rate)) / 20), 1 / np.abs(audio).max())
    codec = bandtok_jax.load(composer)
    settled = codec.settled_columns(RATE)
    # Later codes depend on the continuation of the song, which is silence here.
    beginning = codec.encode(louder * np.pad(audio, (0, 9 * 4096)), rate)[:settled]
    codes = bt_file.read_codes(continuation)[0]
    assert 2 < len(beginning) == settled and len(codes) == settled + 6
    # The gain is measured after resampling, so a latent between two codes may get the other one.
    assert (codes[:settled] == beginning).mean() > 0.9


def test_mistakes_of_generate(composer, tmp_path, capsys, monkeypatch):
    flags = [f"--model={composer}", *GENERATE]
    # An output that cannot be written is refused before the work.
    monkeypatch.setattr(prompting.GridLanguageModel, "generate", None)
    assert "check the path" in failure(capsys, "generate", *flags, "-o", f"{tmp_path}/no/new.wav")
    for seconds in ("nan", "inf", "1e12"):
        error = failure(capsys, "generate", *flags, f"--seconds={seconds}", "-o", f"{tmp_path}/new.wav")
        assert "seconds of music" in error
    (tmp_path / "empty.npy").write_bytes(b"")
    embedded = failure(capsys, "generate", *flags, f"--embedding={tmp_path}/empty.npy", "-o", f"{tmp_path}/new.wav")
    assert "empty.npy: " in embedded and "by numpy.save" in embedded
    (tmp_path / "song.bt").write_bytes(b"BTOK and more")
    error = failure(capsys, "generate", *flags, f"--embedding={tmp_path}/song.bt", "-o", f"{tmp_path}/new.wav")
    assert "song.bt: " in error and "to an .npy file by numpy.save" in error and "pickle" not in error
    error = failure(capsys, "generate", "--model=", "-o", f"{tmp_path}/new.wav")
    assert "the path of the model is empty" in error
    assert "cannot write .xyz" in failure(capsys, "generate", *flags, "-o", f"{tmp_path}/new.xyz")
    error = failure(capsys, "generate", *flags, "-o", str(tmp_path))
    assert f"{tmp_path} is a folder: name the file, such as {tmp_path}/new.wav" in error


def test_new_music_is_written_chunk_by_chunk(composer, tmp_path, monkeypatch):
    codec, written, write = bandtok_jax.load(composer), [], waveform.Writer.write
    monkeypatch.setattr(waveform.Writer, "write", lambda self, block: (written.append(len(block)), write(self, block)))
    ((_, samples, _, _, _),) = new_music.generate(codec, str(tmp_path / "new.wav"), seconds=7, seed=1)
    assert samples == sum(written) == 7 * RATE > max(written)
    whole = codec.decode(codec.generate(seconds=7, seed=1), samples=samples)
    np.testing.assert_allclose(soundfile.read(tmp_path / "new.wav")[0], np.clip(whole, -1, 1), atol=1e-4)


def test_a_track_of_a_batch_has_the_codes_up_to_its_end():
    codes = np.random.default_rng(0).integers(0, 9, (2, 10, 3))
    # The second track ends in the second block, after 5 columns.
    ends = [(0, 4, [10, 10]), (4, 4, [10, 5]), (4, 8, [10, 5]), (8, 10, [10, 5])]
    blocks = [(codes[:, start:stop], np.array(lengths)) for start, stop, lengths in ends]
    for track, length in enumerate((10, 5)):
        own = np.concatenate(list(new_music._codes_of(iter(blocks), track)))
        np.testing.assert_array_equal(own, codes[track, :length])


def test_a_stream_has_the_samples_of_a_file(composer, song, tmp_path, capsys, monkeypatch):
    command = ["generate", f"--model={composer}", *GENERATE, "--seconds=1.9", "--continue", song]
    for more in (["-o", f"{tmp_path}/file.wav"], ["--stream", "-o", f"{tmp_path}/stream.wav"]):
        assert cli.main([*command, *more]) == 0
    assert re.search(r" times real time; the first audio after \d+\.\d\d s$", capsys.readouterr().out.strip())
    file, stream = (waveform.read(tmp_path / name)[0] for name in ("file.wav", "stream.wav"))
    np.testing.assert_allclose(stream, file, rtol=0, atol=2e-4)
    with wave.open(f"{tmp_path}/stream.wav") as complete:  # reads no more than its header states
        assert complete.getnframes() == stream.shape[-1]
    new = ["generate", f"--model={composer}", "--stream"]
    assert "a stream holds one result" in failure(capsys, *new, "--count=2", "-o", f"{tmp_path}/a.wav")
    assert "a stream is written as .wav" in failure(capsys, *new, "-o", f"{tmp_path}/a.flac")
    assert "stream.wav is the original itself" in failure(
        capsys, *new, f"--continue={tmp_path}/stream.wav", "-o", f"{tmp_path}/stream.wav"
    )
    assert "0.0 seconds of music" in failure(capsys, *new, "--seconds=0", "-o", f"{tmp_path}/none.wav")
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 1)
    assert "is a terminal: send it to a program" in failure(capsys, *new, "-o", "-")
    assert sorted(os.listdir(tmp_path)) == ["file.wav", "stream.wav"]


def test_a_pipe_gets_audio_while_it_is_made_and_may_close(composer):
    command = [sys.executable, "-m", "bandtok_jax.cli", "generate", f"--model={composer}", *GENERATE, "--stream"]
    process = subprocess.Popen([*command, "--seconds=3600", "-o", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    codec = bandtok_jax.load(composer)
    options = dict(seconds=3600, top_k=0, temperature=0.9)
    expected = next(codec.generate_stream("slow piano", **options))
    data = process.stdout.read(44 + 2 * len(expected))
    process.stdout.close()
    # The rest of the hour would take minutes.
    assert process.wait(60) == 141
    errors = process.stderr.read().decode()
    assert "Traceback" not in errors and "error" not in errors, errors
    assert data[:4] + data[8:12] + data[36:40] == b"RIFFWAVEdata" and data[4:8] == data[40:44] == b"\xff" * 4
    samples = np.frombuffer(data[44:], "<i2") / waveform.INT16_SCALE
    np.testing.assert_allclose(samples, np.clip(expected, -1, 1), atol=2e-4)


def test_an_invalid_prompt_is_refused(composer):
    codec = bandtok_jax.load(composer)
    with pytest.raises(ValueError, match="a prompt of characters that UTF-8 does not have"):
        codec.generate("piano \udcff", seconds=0.1)
    with pytest.raises(ValueError, match="no prompts"):
        codec.language_model.generate([], seconds=0.1)


def test_a_continuation_does_not_depend_on_the_level_and_keeps_it(composer, song, tmp_path):
    codec, (audio, rate) = bandtok_jax.load(composer), soundfile.read(song)
    codes, levels = [], []
    for name, gain in (("loud", 0.3), ("quiet", 0.003)):
        path, more = str(tmp_path / f"{name}.wav"), str(tmp_path / f"{name}-more")
        soundfile.write(path, gain * audio, rate, subtype="FLOAT")
        for ending in (".bt", ".wav"):
            assert list(new_music.generate(codec, more + ending, seconds=0.5, seed=3, guidance=1.0, beginning=path))
        codes.append(bt_file.read_codes(more + ".bt")[0])
        levels.append(soundfile.read(more + ".wav")[0].std())
    np.testing.assert_array_equal(*codes)
    assert levels[1] == pytest.approx(0.01 * levels[0], rel=0.02)


def _without_vocoder(model, tmp_path):
    codec = bandtok_jax.load(model)
    export_folder.save_codec(MelCodec(codec.components["tokenizer"]), tmp_path / "alone")
    return tmp_path / "alone"


def test_evaluate(model, song, tmp_path, capsys):
    flags = [f"--codec=mine={model}", "--data", song, f"--output={tmp_path / 'report'}", "--without=visqol"]
    assert cli.main(["evaluate", *flags, "--workers=1"]) == 0
    assert re.match(r"mine  dac_mel_distance \d\.\d+, dac_stft_distance ", capsys.readouterr().out)
    with open(tmp_path / "report" / "report.json") as file:
        report = json.load(file)
    assert report["systems"]["mine"]["bits_per_second"] == bandtok_jax.load(model).bits_per_second
    (codes,) = (tmp_path / "report" / "codes").rglob("*.bt")
    assert cli.main(["decode", str(codes), f"--model={model}", "-o", str(tmp_path / "again.wav")]) == 0
    assert soundfile.info(tmp_path / "again.wav").frames == RATE, "the report's codes are those of this very model"
    alone = [f"--codec=alone={_without_vocoder(model, tmp_path)}", *flags[1:]]
    assert "no vocoder" in (error := failure(capsys, "evaluate", *alone)) and "--codec=alone=RUN+VOCODER" in error
    header = bt_file.Reader(codes).header
    assert (header.samples, header.columns, header.rows) == (RATE, 11, 16)


def test_prepare_lists_the_files_that_it_did_not_read(tmp_path, capsys):
    (tmp_path / "music").mkdir()
    for name in ("a.xyz", "README"):
        (tmp_path / "music" / name).write_text("no sound")
    soundfile.write(tmp_path / "music" / "b.wav", np.sin(np.arange(2 * RATE)), RATE)
    assert cli.main(["prepare", str(tmp_path / "music"), "--workers=1", "-o", str(tmp_path / "out")]) == 0
    assert "\nnot read: 1 x .xyz, 1 x no ending\n" in capsys.readouterr().out


def test_tokenize(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(full_tracks, "SYNTHETIC_SECONDS", 1.0)
    folder = str(tmp_path / "tokens")
    assert cli.main(["tokenize", f"--model={model}", "--data=synthetic", f"--output={folder}", "--pieces=2"]) == 0
    assert re.search(rf"{re.escape(folder)}: train: 2 \w+, 22 columns", capsys.readouterr().out)
    assert "folder" in failure(capsys, "tokenize", f"--model={model}", "--data=nothing", f"--output={tmp_path}/other")


def test_mistakes_with_files(model, song, tmp_path, capsys):
    other, components = str(tmp_path / "other"), dict(bandtok_jax.load(model).components)
    components["tokenizer"] = tiny.drawn_component(components["tokenizer"].config, seed=1)
    export_folder.save_codec(assemble(components), other)
    codes = str(tmp_path / "song.bt")
    assert cli.main(["encode", song, f"--model={model}", "-o", codes]) == 0
    capsys.readouterr()
    assert "its own model" in failure(capsys, "decode", codes, f"--model={other}", "-o", f"{tmp_path}/a.wav")
    assert "no .bt file" in failure(capsys, "decode", song, f"--model={model}", "-o", f"{tmp_path}/a.wav")
    assert "no such file" in failure(capsys, "encode", f"{tmp_path}/none.wav", f"--model={model}")
    missing = f"{tmp_path}/none/: no such file or folder; check the path"
    assert missing in failure(capsys, "encode", f"{tmp_path}/none/", f"--model={model}", "-o", "codes")
    assert "no such folder" in failure(capsys, "encode", song, "--model=nothing")
    assert "check the path" in failure(capsys, "encode", song, f"--model={model}", "-o", f"{tmp_path}/no/song.bt")
    assert "no language model" in failure(capsys, "generate", f"--model={model}", "-o", f"{tmp_path}/a.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    error = failure(capsys, "encode", f"{tmp_path}/empty.wav", f"--model={model}")
    assert "empty.wav" in error and "0 samples" in error
    bad = np.zeros(100_000, np.float32)
    bad[70_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", bad, RATE, subtype="FLOAT")
    error = failure(capsys, "encode", f"{tmp_path}/nan.wav", f"--model={model}")
    assert "nan.wav: audio with samples that are NaN or infinite, the first at sample 70000" in error
    assert not [name for name in os.listdir(tmp_path) if "partial" in name or name in ("a.wav", "nan.bt", "empty.bt")]


def test_default_output_names_replace_no_file(model, tmp_path, capsys):
    for seed, ending in enumerate((".wav", ".flac")):
        noise = 0.1 * np.random.default_rng(seed).standard_normal(RATE)
        soundfile.write(tmp_path / f"song{ending}", noise, RATE)
    songs, flag = [str(tmp_path / name) for name in ("song.wav", "song.flac")], f"--model={model}"
    assert cli.main(["encode", songs[0], flag]) == 0
    before = (tmp_path / "song.bt").read_bytes(), (tmp_path / "song.wav").read_bytes()
    for verb, source, name in (("encode", songs[1], "song.bt"), ("decode", f"{tmp_path}/song.bt", "song.wav")):
        error = failure(capsys, verb, source, flag)
        assert f"{name} exists" in error and "with -o FILE" in error
    assert before == ((tmp_path / "song.bt").read_bytes(), (tmp_path / "song.wav").read_bytes())
    assert cli.main(["encode", songs[1], flag, "-o", f"{tmp_path}/song.bt"]) == 0
    assert (tmp_path / "song.bt").read_bytes() != before[0]


def test_truncated_audio_is_refused(model, composer, tmp_path, capsys):
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE)
    for ending in (".wav", ".mp3"):
        path = tmp_path / f"cut{ending}"
        soundfile.write(path, noise, RATE)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
        for verb, *flags in (
            ("encode", path, f"--model={model}", "-o", f"{tmp_path}/a.bt"),
            ("reconstruct", path, f"--model={model}", "-o", f"{tmp_path}/a.wav"),
            ("generate", f"--continue={path}", f"--model={composer}", "-o", f"{tmp_path}/a.wav"),
        ):
            error = failure(capsys, verb, *map(str, flags))
            assert re.search(rf"{path}: truncated: it ends after 1\.\d+ s, where its header promises 2\.00 s", error)
    assert sorted(os.listdir(tmp_path)) == ["cut.mp3", "cut.wav"]


def test_a_note_is_no_error_with_warnings_as_errors(model, tmp_path):
    stereo = str(tmp_path / "stereo.wav")
    soundfile.write(stereo, np.full((9_000, 2), 0.1), RATE)
    warnings.simplefilter("error")  # python -W error
    with pytest.warns(UserWarning, match="2 channels are mixed down to one: this codec is mono") as warned:
        assert cli.main(["encode", stereo, f"--model={model}"]) == 0
    assert len(warned) == 1


def test_mistakes_change_no_file(model, song, tmp_path, capsys):
    own, keep, codes = (str(tmp_path / name) for name in ("own.wav", "keep.wav", "own.bt"))
    soundfile.write(own, np.full(9_000, 0.1), RATE)
    soundfile.write(keep, np.full(9_000, np.nan), RATE, subtype="FLOAT")
    assert cli.main(["encode", own, f"--model={model}"]) == 0
    before = {path: open(path, "rb").read() for path in (own, keep, codes)}
    capsys.readouterr()
    assert "the original itself" in failure(capsys, "reconstruct", own, f"--model={model}", "-o", own)
    assert "the original itself" in failure(capsys, "encode", own, f"--model={model}", "-o", own)
    assert "no such file" in failure(capsys, "reconstruct", f"{tmp_path}/no.wav", f"--model={model}", "-o", keep)
    assert "NaN" in failure(capsys, "reconstruct", keep, f"--model={model}", "-o", own)
    assert "-o FILE" in failure(capsys, "decode", codes, f"--model={model}")
    assert "own.bt is the original itself" in failure(capsys, "decode", codes, f"--model={model}", "-o", codes)
    error = failure(capsys, "encode", own, f"--model={model}", "-o", f"{tmp_path}/new.wav")
    assert "new.wav: codes are written as .bt" in error and ".dac" in error
    assert {path: open(path, "rb").read() for path in before} == before and len(os.listdir(tmp_path)) == 3


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.setenv("BANDTOK_DEBUG", "1")
    with pytest.raises(ValueError, match="no such folder"):
        cli.main(["decode", "a.bt", f"--model={tmp_path}/nothing"])
