"""Preparing music with Apache Beam: the same files as without it, also where an interruption lies between."""

import json
import sys

import pytest
import soundfile

from bandtok_jax.data_pipelines import beam_runner, prepare_shards
from tests.music_files import RATE, make_music, run, sound


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Twenty tracks, a damaged file, a copy and a text."""
    folder = make_music(tmp_path_factory.mktemp("beam") / "music")
    for number in range(17):
        soundfile.write(folder / f"{number:02}.wav", sound(number + 3, 4.0), RATE)
    (folder / "text.wav").write_text("this is no sound")
    (folder / "copy.flac").write_bytes((folder / "a.flac").read_bytes())
    (folder / "notes.txt").write_text("no music")
    return folder


def same_files(one, other):
    found, wanted = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, other))
    assert found.keys() == wanted.keys()
    for name in found:
        if name != "dataset_info.json":
            assert found[name] == wanted[name], name
    # TFDS writes down its own version and the like; what it says of the splits is what counts.
    splits = [json.loads(files["dataset_info.json"])["splits"] for files in (found, wanted)]
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
    run_task, made = prepare_shards.run_task, []

    def broken(number, *arguments):
        if len(made) == 5:
            raise OSError("the machine is gone")
        made.append(number)
        return run_task(number, *arguments)

    monkeypatch.setattr(prepare_shards, "run_task", broken)
    with pytest.raises(ValueError, match="Beam pipeline failed .*the same command goes on"):
        run(music, output=tmp_path / "out", clip_seconds=2.0, runner="beam", runner_options=IN_MEMORY)
    monkeypatch.setattr(prepare_shards, "run_task", run_task)
    working = tmp_path / "out" / prepare_shards.WORKING_FOLDER
    done = {path: path.stat().st_ino for path in working.glob("task-*.array_record")}
    assert len(done) == 5 and not (tmp_path / "out" / "manifest.json").exists()
    assert run(music, output=tmp_path / "out", clip_seconds=2.0, runner=runner) == plain
    same_files(tmp_path / "out", tmp_path / "plain")
    assert set(done.values()) <= {path.stat().st_ino for path in (tmp_path / "out").iterdir()}  # not made again


IN_MEMORY = ("--direct_running_mode=in_memory",)  # in this process, where the test can break it


def test_beam_that_is_missing_is_an_error_of_one_line(music, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ImportError, match=r"--runner=beam needs Apache Beam .*pip install 'bandtok-jax\[beam\]'"):
        run(music, output=tmp_path / "out", runner="beam")
    with pytest.raises(ValueError, match="give options to the runner 'beam'"):
        run(music, output=tmp_path / "out", runner_options=["--runner=DataflowRunner"])
    with pytest.raises(ValueError, match="runner 'spark'"):
        run(music, output=tmp_path / "out", runner="spark")


def test_nothing_left_needs_no_beam(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert beam_runner.run_tasks([], ()) is None  # it would raise
