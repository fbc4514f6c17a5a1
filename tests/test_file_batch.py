"""Verbs on folders: the tree, resuming, files that cannot be read, and refusals before the work."""

import errno
import os
import pathlib

import numpy as np
import pytest
import soundfile

from bandtok_jax import cli
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.commands import code_files, file_batch
from bandtok_jax.formats import bt_file
from bandtok_jax.pretrained import export_folder
from bandtok_jax.runtime import file_tree
from tests import kept_programs, tiny
from tests.test_cli import failure

RATE = 44_100


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    with kept_programs.loaded_once():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    export_folder.save_codec(tiny.drawn_codec(), folder)
    return f"--model={folder}"


@pytest.fixture
def music(tmp_path):
    """Two tracks in a folder and one below it, and a text."""
    folder = tmp_path / "music"
    (folder / "live").mkdir(parents=True)
    for seed, name in enumerate(("a.flac", "live/b.wav", "live/c.v2.wav")):
        noise = 0.1 * np.random.default_rng(seed).standard_normal(9_000 + 1_000 * seed)
        soundfile.write(folder / name, noise, RATE)
    (folder / "live" / "notes.txt").write_text("no audio")
    (folder / "live" / "._b.wav").write_bytes(b"\0\5\x16\7")  # metadata of macOS
    return folder


def run(*arguments):
    return cli.main(list(map(str, arguments)))


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*") if path.is_file())


def test_a_folder_keeps_its_tree_and_has_the_codes_of_single_files(model, music, tmp_path, capsys):
    codes, audio = tmp_path / "codes", tmp_path / "audio"
    assert run("encode", music, music / "live" / "b.wav", model, "-o", codes) == 0
    printed = capsys.readouterr().out
    assert "not read: 1 x .txt" in printed and f"{codes}/live/b.bt: 3 columns x 16 rows" in printed
    assert names(codes) == ["a.bt", "b.bt", "live/b.bt", "live/c.v2.bt"]
    assert run("encode", music / "live" / "b.wav", model, "-o", tmp_path / "one.bt") == 0
    single_codes = (tmp_path / "one.bt").read_bytes()
    assert single_codes == (codes / "live" / "b.bt").read_bytes() == (codes / "b.bt").read_bytes()

    assert run("decode", codes, model, "-o", audio) == 0
    assert names(audio) == ["a.wav", "b.wav", "live/b.wav", "live/c.v2.wav"]
    assert run("decode", tmp_path / "one.bt", model, "-o", tmp_path / "one.wav") == 0
    assert (tmp_path / "one.wav").read_bytes() == (audio / "live" / "b.wav").read_bytes()

    for expected in ("log-mel distance", "3 of 3 results are there already"):  # of which none is an input
        capsys.readouterr()
        assert run("reconstruct", music, model, "-o", music / "copies") == 0
        assert expected in capsys.readouterr().out and len(names(music / "copies")) == 3
    single = tmp_path / "single"
    assert run("reconstruct", music / "a.flac", model, "-o", f"{single}/") == 0 and names(single) == ["a.wav"]


def test_the_same_command_makes_what_is_missing(model, music, tmp_path, capsys, monkeypatch):
    codes, encoded, encode_stream = tmp_path / "codes", [], MelCodec.encode_stream

    def interrupted(self, blocks):
        encoded.append(1)
        for block in encode_stream(self, blocks):
            if len(encoded) == 2:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(MelCodec, "encode_stream", interrupted)
    assert run("encode", music, model, "-o", codes) == 130 and names(codes) == ["a.bt"]
    assert capsys.readouterr().err.endswith("bandtok: interrupted; the same command resumes it\n")
    assert run("encode", music, model, "-o", codes) == 0 and len(encoded) == 4
    assert "1 of 3 results are there already and are skipped; --overwrite" in capsys.readouterr().out
    whole = {name: (codes / name).read_bytes() for name in names(codes)}
    (codes / "a.bt").write_bytes(whole["a.bt"][:-5])
    assert run("encode", music, model, "-o", codes) == 0 and len(encoded) == 5
    assert {name: (codes / name).read_bytes() for name in names(codes)} == whole
    assert run("encode", music, model, "-o", codes, "--overwrite") == 0 and len(encoded) == 8

    grid, header = bt_file.read_codes(codes / "a.bt")
    foreign = bt_file.Header(**{**vars(header), "weight_hash": "0" * 32, "samples": 0, "columns": 0})
    bt_file.write_codes(codes / "a.bt", grid, foreign, header.samples)
    (codes / "live" / "b.bt").unlink()
    assert "name another folder, or --overwrite" in failure(capsys, "encode", str(music), model, "-o", str(codes))
    assert len(encoded) == 8


def test_files_that_cannot_be_read_are_named_and_the_others_done(model, music, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # without ffmpeg
    (music / "bad.wav").write_text("no audio")
    (music / "live" / "song.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    paths = [str(music), str(tmp_path / "missing.wav")]
    assert run("encode", *paths, model, "-o", tmp_path / "codes") == 1
    printed = capsys.readouterr()
    assert f"left out: {music}/bad.wav: cannot be read as audio: it is text" in printed.out
    assert "song.m4a: MP4 audio needs ffmpeg, which is not installed: install ffmpeg, or convert" in printed.out
    assert "missing.wav: no such file or folder; check the path" in printed.out
    error = printed.err.strip().splitlines()[-1]
    assert error.startswith("bandtok: error: 3 of 6 files were left out, the first because: ") and "bad.wav" in error
    assert names(tmp_path / "codes") == ["a.bt", "live/b.bt", "live/c.v2.bt"]
    (tmp_path / "codes" / "a.bt").write_text("damaged")
    assert run("decode", tmp_path / "codes", model, "-o", tmp_path / "audio") == 1
    assert names(tmp_path / "audio") == ["live/b.wav", "live/c.v2.wav"]


def test_mistakes_are_refused_before_the_work(music, tmp_path, capsys, monkeypatch):
    def refused(*arguments):
        return failure(capsys, *map(str, arguments), "--model=absent")

    out = tmp_path / "out"
    soundfile.write(music / "a.wav", np.zeros(9_000), RATE)
    error = refused("encode", music, "-o", out)
    assert f"{music}/a.flac and {music}/a.wav would both become {out}/a.bt: rename one" in error
    (music / "a.flac").unlink()
    assert "a.wav is an input itself" in refused("reconstruct", music, "-o", music)
    assert "with -o DIR" in refused("encode", music)
    assert "is a file" in refused("encode", music, "-o", music / "a.wav")
    for name in ("both.bt", "both.wav"):
        error = refused("encode", music / "a.wav", "b.wav", "-o", name)
        assert f"{name} is the name of a file, and there may be several results: name a folder with -o DIR" in error
    assert file_batch.plan([str(music)], f"{out}.bt/", file_batch.AUDIO_ENDINGS, ".bt")[0]
    assert "no files to read in" in (error := refused("decode", music, "-o", out))
    assert "3 .wav, 1 .txt" in error and ".bt, .dac" in error
    assert "--window is for one .dac file" in refused("encode", music, "--window=5", "-o", out)
    assert "--overwrite is for -o DIR" in refused("decode", "a.bt", "--overwrite")
    monkeypatch.setattr(code_files, "encode", None)
    assert "no such folder" in refused("encode", music, "-o", out) and not out.exists()


def test_one_bad_disk_or_name_leaves_out_one_file_and_one_line(tmp_path):
    def work(codec, source, target):
        if source == "output":
            raise OSError(f"{target}: cannot be written; the disk may be full")
        if source == "disk":
            raise OSError(errno.EIO, "Input/output error")
        raise ValueError(f"{source}: no audio")

    def lines(*sources):
        jobs = [file_batch.Job(source, str(tmp_path / "out" / "a.wav")) for source in sources]
        return file_batch.run(None, jobs, work, lambda path: False)

    printed = lines("disk", "a\nbandtok: error: b.wav")
    assert next(printed).startswith("left out: disk: input/output error; ")
    assert next(printed) == r"left out: a\nbandtok: error: b.wav: no audio"
    with pytest.raises(ValueError, match="2 of 2 files were left out"):
        next(printed)
    with pytest.raises(OSError, match="disk may be full"):
        next(lines("output"))


def test_each_folder_is_walked_once_and_those_that_cannot_be_read_are_named(music):
    (music / "live" / "loop").symlink_to(music)
    assert [os.path.basename(folder) for folder, _ in file_tree.walk(str(music))] == ["music", "live"]
    with pytest.warns(UserWarning, match="absent: no such file or directory; the files below it are left out"):
        assert not list(file_tree.walk(str(music / "absent")))


def test_codes_never_overwrite_an_audio_file_beside_them(music):
    jobs, _ = file_batch.plan([str(music)], str(music), file_batch.AUDIO_ENDINGS, ".bt")
    (back,) = [file_batch.Job(job.target, job.source) for job in jobs if job.source.endswith("b.wav")]
    line = next(file_batch.run(None, [back], None, lambda path: True))
    assert line.startswith("1 of 1 results are skipped: files of their names are there, which may be the originals")
    with pytest.raises(ValueError, match="b.wav may be the original of .*b.bt: name another folder"):
        next(file_batch.run(None, [back], None, None, overwrite=True))
    elsewhere = back._replace(source=str(music / "b.bt"))
    assert list(file_batch.run(None, [elsewhere], lambda *_: "done", None, overwrite=True)) == ["done"]
