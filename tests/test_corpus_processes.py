"""Several processes with several devices tokenize a corpus, are killed, and other processes resume it."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from bandtok_jax.data_pipelines.token_source import TokenSource
from tests.test_corpus import same_files

pytestmark = pytest.mark.slow
ROOT, TRACKS = pathlib.Path(__file__).parents[1], 12
CODE = f"""
import sys
import bandtok_jax
from bandtok_jax.commands import tokenize_corpus
from bandtok_jax.data_pipelines import full_tracks
from bandtok_jax.training import distributed

distributed.start()
tokenize_corpus.TRACKS_PER_SHARD, full_tracks.SYNTHETIC_SECONDS = 1, 4.0
codec = bandtok_jax.create("bandtok:tiny", seed=0)
tokenize_corpus.tokenize(codec, "synthetic", sys.argv[1], synthetic_tracks={TRACKS}, offsets=2)
"""


def start(output, processes, devices=1):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
    }
    return [
        subprocess.Popen([sys.executable, "-c", CODE, output], cwd=ROOT, env={**environment, "JAX_PROCESS_ID": str(n)})
        for n in range(processes)
    ]


def finish(started):
    assert [process.wait() for process in started] == [0] * len(started)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "tokens"
    finish(start(folder, 1))
    return folder


def test_processes_and_devices_change_nothing(whole, tmp_path):
    finish(start(tmp_path / "tokens", 2, devices=2))
    assert same_files(tmp_path / "tokens", whole)


@pytest.mark.parametrize("processes", [2, 3])
def test_other_processes_resume_after_a_kill(whole, tmp_path, processes):
    output = tmp_path / "tokens"
    started = start(output, 2)
    while len(done := list(output.glob("*.counts.json"))) < 4:
        assert all(process.poll() is None for process in started), "the work ended before the kill"
        time.sleep(0.01)
    for process in started:
        process.send_signal(signal.SIGKILL)
    for process in started:
        process.wait()
    kept = {path.name.removesuffix(".counts.json") + ".array_record" for path in done}
    times = {name: (output / name).stat().st_mtime_ns for name in kept}
    assert not (output / "token_manifest.json").exists()
    finish(start(output, processes))
    assert same_files(output, whole)
    assert times == {name: (output / name).stat().st_mtime_ns for name in kept}  # not written again
    source = TokenSource(output, "train")
    stored = [(record["track"], record["offset_samples"]) for record in (source[i] for i in range(len(source)))]
    assert len(stored) == len(set(stored)) == 2 * TRACKS
