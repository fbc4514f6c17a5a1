"""One process at a time writes in a folder, and the error of another one names it."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from bandtok_jax.runtime import folder_lock

HOLDER = """
import sys
from bandtok_jax.runtime import folder_lock
folder_lock.BEAT_SECONDS = 0.1
with folder_lock.locked(sys.argv[1], "bandtok train"):
    print("held", flush=True)
    sys.stdin.read()
"""


def _start(folder):
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], **pipes)
    assert process.stdout.readline() == "held\n"
    return process


def _holder(folder, name="pid"):
    return json.loads((folder / folder_lock.NAME).read_text())[name]


def _write(folder, **changes):
    folder.mkdir()
    holder = {"host": "node-7", "pid": 4711, "since": 1.7e9, "work": "bandtok tokenize"} | changes
    (folder / folder_lock.NAME).write_text(json.dumps(holder))


def test_the_error_of_a_second_process_names_the_holder_until_it_ends(tmp_path):
    holder = _start(tmp_path)
    with pytest.raises(folder_lock.Locked) as refused, folder_lock.locked(tmp_path, "bandtok prepare"):
        pass
    for part in (str(tmp_path), f"process {holder.pid} ", socket.gethostname(), "bandtok train", "since 20"):
        assert part in str(refused.value)
    holder.communicate("")
    with folder_lock.locked(tmp_path, "bandtok prepare"):
        assert _holder(tmp_path) == os.getpid()
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_taken_at_once(tmp_path):
    holder = _start(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert _holder(tmp_path) == holder.pid
    with folder_lock.locked(tmp_path, "bandtok train"):
        assert _holder(tmp_path) == os.getpid()


@pytest.fixture
def without_flock(monkeypatch):
    """Simulates a file system without locks, where a second without a touch of the file makes a lock stale."""

    def unsupported(*_):
        raise OSError(38, "not implemented")

    monkeypatch.setattr(folder_lock.fcntl, "flock", unsupported)
    monkeypatch.setattr(folder_lock, "WATCH_SECONDS", 1.0)


def test_without_locks_of_the_system_a_living_process_of_this_host_is_refused(tmp_path, without_flock):
    holder = _start(tmp_path)
    with pytest.raises(folder_lock.Locked, match=f"process {holder.pid} "), folder_lock.locked(tmp_path, "x"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with folder_lock.locked(tmp_path, "x"):
        assert _holder(tmp_path) == os.getpid()


def test_a_process_that_reuses_the_number_of_the_holder_is_not_the_holder(tmp_path, without_flock):
    _write(tmp_path / "run", host=socket.gethostname(), pid=os.getpid())  # as in containers, where all are number 1
    with folder_lock.locked(tmp_path / "run", "x"):
        assert _holder(tmp_path / "run", "work") == "x"


@pytest.mark.parametrize("failing", ["stat", "close", "remove"])
def test_an_error_of_the_lock_does_not_fail_the_work(tmp_path, monkeypatch, failing):
    def stale(*_):
        raise OSError(errno.ESTALE, "stale file handle")

    with monkeypatch.context() as patch, folder_lock.locked(tmp_path, "x"):
        patch.setattr(folder_lock.os, failing, stale)
    with folder_lock.locked(tmp_path, "y"):
        assert _holder(tmp_path, "work") == "y"


def test_a_lock_of_another_host_counts_while_it_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "WATCH_SECONDS", 0.5)
    _write(tmp_path / "run")
    path, stop = tmp_path / "run" / folder_lock.NAME, threading.Event()

    def touch():
        while not stop.wait(0.1):
            os.utime(path)

    toucher = threading.Thread(target=touch)
    toucher.start()
    with pytest.raises(folder_lock.Locked, match="process 4711 on node-7"), folder_lock.locked(tmp_path / "run", "x"):
        pass
    stop.set()
    toucher.join()
    with folder_lock.locked(tmp_path / "run", "x"):
        assert _holder(tmp_path / "run") == os.getpid()


def test_the_holder_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "BEAT_SECONDS", 0.02)
    with folder_lock.locked(tmp_path, "x"):
        first, path = folder_lock.modified_ns(tmp_path / folder_lock.NAME), tmp_path / folder_lock.NAME
        for _ in range(200):
            if folder_lock.modified_ns(path) != first:
                break
            threading.Event().wait(0.02)
        assert folder_lock.modified_ns(path) != first


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"host": 1}', "[" * 4000, '{"pid": 1e999}'])
def test_a_lock_that_cannot_be_read_is_stale(tmp_path, text):
    (tmp_path / folder_lock.NAME).write_text(text)
    with folder_lock.locked(tmp_path, "x"):
        assert _holder(tmp_path) == os.getpid()


@pytest.mark.parametrize("changes", [{"since": 1e300}, {"since": -1.0}, {"pid": 1e300}, {"work": "\0"}])
def test_a_holder_that_cannot_be_is_none(tmp_path, changes):
    _write(tmp_path / "run", **changes)
    with folder_lock.locked(tmp_path / "run", "x"):
        assert _holder(tmp_path / "run") == os.getpid()


def test_an_empty_folder_is_not_left_behind_and_a_filled_one_stays(tmp_path):
    with folder_lock.locked(tmp_path / "a" / "b", "x"):
        pass
    assert not (tmp_path / "a" / "b").exists()
    with folder_lock.locked(tmp_path / "c", "x"):
        (tmp_path / "c" / "kept").touch()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["kept"]


def test_other_processes_of_a_job_and_buckets_take_no_lock(tmp_path):
    with folder_lock.locked(tmp_path, "x"), folder_lock.locked(tmp_path, "x", process_index=1):
        pass
    with folder_lock.locked("memory://run", "x"):
        assert not os.path.exists("memory:")
