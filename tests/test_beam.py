"""Preparing music with Apache Beam: the same files as without it, also where an interruption lies between."""

import json
import sys

import pytest
import soundfile

from bandtok_jax.data_pipelines import beam_runner, prepare_shards, records
from tests.music_files import RATE, make_audio, make_music, run


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Twenty tracks, a damaged file, a copy and a text."""
    folder = make_music(tmp_path_factory.mktemp("beam") / "music")
    for number in range(17):
        soundfile.write(folder / f"{number:02}.wav", make_audio(number + 3, 4.0), RATE)
    (folder / "text.wav").write_text("this is no sound")
    (folder / "copy.flac").write_bytes((folder / "a.flac").read_bytes())
    (folder / "notes.txt").write_text("no music")
    return folder


def same_files(folder, reference):
    files, expected = ({path.name: path.read_bytes() for path in item.iterdir()} for item in (folder, reference))
    assert files.keys() == expected.keys()
    for name in files:
        if name != "dataset_info.json":
            assert files[name] == expected[name], name
    # TFDS also stores its own version, so the splits alone are compared.
    splits = [json.loads(content["dataset_info.json"])["splits"] for content in (files, expected)]
    assert splits[0] == splits[1]


def test_beam_writes_the_same_files(music, tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install 'bandtok-jax[beam]'")
    plain = run(music, output=tmp_path / "plain", clip_seconds=2.0)
    beam = run(music, output=tmp_path / "beam", clip_seconds=2.0, runner="beam")
    assert beam == plain and {entry["track"] for entry in beam["left_out"]} == {"text.wav", "copy.flac"}
    same_files(tmp_path / "beam", tmp_path / "plain")


@pytest.mark.parametrize("runner", ["beam", "local"])
def test_what_beam_has_finished_stays_finished(music, tmp_path, monkeypatch, runner):
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install 'bandtok-jax[beam]'")
    plain = run(music, output=tmp_path / "plain", clip_seconds=2.0)
    run_task, finished = prepare_shards.run_task, []

    def broken(number, *arguments):
        if len(finished) == 5:
            raise OSError("the machine is gone")
        finished.append(number)
        return run_task(number, *arguments)

    monkeypatch.setattr(prepare_shards, "run_task", broken)
    with pytest.raises(ValueError, match="Beam pipeline failed .*run the same command again"):
        run(music, output=tmp_path / "out", clip_seconds=2.0, runner="beam", runner_options=IN_MEMORY)
    monkeypatch.setattr(prepare_shards, "run_task", run_task)
    working = tmp_path / "out" / records.WORKING_FOLDER
    done = {path: path.stat().st_ino for path in working.glob("task-*.array_record")}
    assert len(done) == 5 and not (tmp_path / "out" / "manifest.json").exists()
    assert run(music, output=tmp_path / "out", clip_seconds=2.0, runner=runner) == plain
    same_files(tmp_path / "out", tmp_path / "plain")
    assert set(done.values()) <= {path.stat().st_ino for path in (tmp_path / "out").iterdir()}  # not made again


IN_MEMORY = ("--direct_running_mode=in_memory",)  # in this process, where the test can break it


def test_beam_that_is_missing_is_an_error_of_one_line(music, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ImportError, match=r"--runner=beam needs apache_beam: pip install 'bandtok-jax\[beam\]'"):
        run(music, output=tmp_path / "out", runner="beam")
    with pytest.raises(ValueError, match="give options to the runner 'beam'"):
        run(music, output=tmp_path / "out", runner_options=["--runner=DataflowRunner"])
    with pytest.raises(ValueError, match="runner 'spark'"):
        run(music, output=tmp_path / "out", runner="spark")


def test_nothing_left_needs_no_beam(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert beam_runner.run_tasks([], ()) is None  # it would raise
