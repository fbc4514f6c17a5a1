"""The rendezvous of processes: clusters, refused environments, strangers and missing processes."""

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import time

import pytest

from bandtok_jax import tasks
from bandtok_jax.training import distributed, sharding
from bandtok_jax.training import rendezvous as sockets
from tests import processes, run_training

SLURM = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
PLAIN = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
KUBERNETES = {**PLAIN, "KUBERNETES_SERVICE_HOST": "10.1.1.1", "JOB_COMPLETION_INDEX": "2"}
KUBERNETES.pop("JAX_PROCESS_ID")


@pytest.fixture
def environment(monkeypatch):
    for name in {**SLURM, **OPEN_MPI, **KUBERNETES, **PLAIN}:
        monkeypatch.delenv(name, raising=False)

    def put(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, None),
        (PLAIN, ("plain", "10.0.0.1:1234", 4, 3, False)),
        (KUBERNETES, ("plain", "10.0.0.1:1234", 4, 2, True)),
        (SLURM, ("slurm", f"node003:{12 + 65535 - 2**12 + 1}", 8, 5, True)),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "1"}, ("slurm", f"node003:{12 + 65535 - 2**12 + 1}", 8, 5, False)),
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (OPEN_MPI, ("ompi", f"10.96.0.1:{(1531576320 // 2**12) % 2**12 + 65535 - 2**12 + 1}", 4, 3, True)),
    ],
)
def test_clusters_are_known_by_their_environment(environment, variables, expected):
    environment(variables)
    cluster = distributed.detect()
    assert cluster == (expected and distributed.Cluster(*expected))


def test_an_incomplete_environment_names_what_is_missing(environment):
    environment({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "2"})
    with pytest.raises(ValueError, match="JAX_PROCESS_ID are '10.0.0.1:1234', '2', None: set all three"):
        distributed.detect()
    environment({"JAX_PROCESS_ID": "2"})
    with pytest.raises(ValueError, match="process 2 of 2: they are numbered from 0"):
        distributed.detect()


@pytest.mark.parametrize("host", ["localhost", "127.0.1.1"])
def test_a_coordinator_that_others_cannot_reach_is_refused(environment, host):
    environment({**KUBERNETES, "JAX_COORDINATOR_ADDRESS": f"{host}:1234"})
    with pytest.raises(ValueError, match=rf"coordinator {host} .*127.x.*set JAX_COORDINATOR_ADDRESS"):
        distributed.start(1)


def _rendezvous(numbers, count, seconds, address):
    """The result of the rendezvous on each of these processes: the text of an error, or "" when all are present."""

    def answer(number):
        try:
            distributed.rendezvous(distributed.Cluster("plain", address, count, number), seconds)
        except ValueError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(answer, numbers))


@pytest.fixture
def address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_the_rendezvous_ends_when_all_are_there(address):
    assert _rendezvous([2, 0, 1], 3, 30, address) == ["", "", ""]
    assert _rendezvous([1, 0], 2, 30, address) == ["", ""]  # the port is free again at once


def test_the_missing_are_named_to_all_who_came(address):
    results = _rendezvous([0, 4], 8, 1, address)
    assert results[0] == results[1] and f"6 of 8 processes did not come to {address} in time: 1-3, 5-7" in results[0]


def test_two_of_one_number_are_refused(address):
    for text in _rendezvous([0, 1, 1], 3, 20, address):
        assert "process 1 of 3" in text and "1 is on" in text


def test_who_never_reaches_process_0_says_so(address):
    (text,) = _rendezvous([1], 2, 0.5, address)
    assert f"process 1 of 2 cannot reach process 0 at {address}; that is this machine itself (127.x)" in text


def _call(address, lines, stay=True):
    """Calls at process 0 as a stranger, as soon as it listens; the connection stays open."""
    host, port = address.split(":")
    for _ in range(200):
        try:
            connection = socket.create_connection((host, int(port)), timeout=5)
            break
        except OSError:
            time.sleep(0.02)
    connection.recv(1000)
    with contextlib.suppress(OSError):  # it may be dropped before it has said all
        for line in lines:
            connection.sendall(line)
    return connection


PRETENDED = {"process": 1, "count": 2, "host": "elsewhere", "challenge": "0" * 64, "proof": "0" * 64}
STRANGERS = {
    "nothing": b"",
    "empty object": b"{}\n",
    "no object": b"[1]\nnull\n",
    "half a line": b'{"process": 1',
    "bytes": bytes(range(256)) + b"\n",
    "a browser": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "without end": b"x" * 1_000_000,
    "deep": b"[" * 5000 + b"\n",
    "before 0.1": json.dumps({"process": 1, "count": 2, "host": "elsewhere"}).encode() + b"\n",
    "process 1": json.dumps(PRETENDED).encode() + b"\n",
    "process 0": json.dumps(PRETENDED | {"process": 0}).encode() + b"\n",
    "wrong types": json.dumps(PRETENDED | {"process": "1", "count": None, "host": [], "proof": 1}).encode() + b"\n",
    "of another count": json.dumps(PRETENDED | {"count": 2**63}).encode() + b"\n",
    "without number": json.dumps({"count": 2, "host": "elsewhere"}).encode() + b"\n",
    "control characters": json.dumps(PRETENDED | {"host": "\x1b[2J\0" * 9}).encode() + b"\n",
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS)
def test_strangers_end_nothing_and_take_nobodys_place(said, address):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        roll = pool.submit(_rendezvous, [0], 2, 20, address)
        with _call(address, [said]), _call(address, [said]):
            assert _rendezvous([1], 2, 20, address) == [""]
            assert roll.result() == [""]


def test_many_strangers_at_once(address):
    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as connections:
        roll = pool.submit(_rendezvous, [0], 2, 20, address)
        for _ in range(300):
            connections.enter_context(_call(address, []))
        assert _rendezvous([1], 2, 20, address) == [""] == roll.result()


def test_a_place_is_free_again_when_its_process_leaves(address):
    """A process that was ended, and started again, calls a second time."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        roll = pool.submit(_rendezvous, [0], 3, 20, address)
        own, about = "0" * 64, {"process": 1, "count": 3, "host": "gone"}
        with contextlib.closing(_call(address, [])) as connection:
            connection.close()
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as connection:
            theirs = json.loads(connection.makefile().readline())["challenge"]
            proof = sockets.authentication_code(
                distributed.Cluster("plain", address, 3, 1), "caller", theirs, own, *about.values()
            )
            connection.sendall(json.dumps({**about, "challenge": own, "proof": proof}).encode() + b"\n")
        assert _rendezvous([1, 2], 3, 20, address) == ["", ""] and roll.result() == [""]


def test_another_secret_is_another_training(address, monkeypatch):
    monkeypatch.setenv("BANDTOK_CLUSTER_SECRET", "a")
    assert _rendezvous([0, 1], 2, 20, address) == ["", ""]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        roll = pool.submit(_rendezvous, [0], 2, 1.0, address)
        _call(address, [b"{}\n"]).close()
        assert "1 callers did not prove that they have its BANDTOK_CLUSTER_SECRET" in roll.result()[0]
    proofs = [sockets.authentication_code(distributed.Cluster("plain", address, 2, 1), "caller")]
    monkeypatch.setenv("BANDTOK_CLUSTER_SECRET", "b")
    assert sockets.authentication_code(distributed.Cluster("plain", address, 2, 1), "caller") not in proofs


@pytest.mark.parametrize(
    "said", [b"", b"{}\n", b"[]\n", b'{"problem": ""}\n', b"\xff\n", b"x" * 20_000, b"SSH-2.0-x\r\n"]
)
def test_something_else_at_the_coordinators_port_is_not_believed(said, address):
    host, port = address.split(":")
    with socket.create_server((host, int(port))) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        roll = pool.submit(_rendezvous, [1], 2, 0.6, address)
        server.settimeout(5)
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(said)
        assert "cannot reach process 0" in roll.result()[0]


def test_a_signal_stops_a_training_and_nothing_after_it():
    before = signal.getsignal(signal.SIGTERM)
    with distributed.StopRequests() as requests:
        assert not requests.should_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.should_stop(2) is distributed.Preempted
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_processes_and_a_mesh_train_as_one(tmp_path, monkeypatch, float64):
    monkeypatch.setattr(tasks, "create", tasks.create)  # which the program replaces, as the next one
    monkeypatch.setattr(sharding, "REPLICATED_BELOW_ELEMENTS", sharding.REPLICATED_BELOW_ELEMENTS)
    steps = {"total_steps": 4, "log_every": 1, "evaluate_every": 4, "dtype": "float64", "model.text": "none"}
    mesh = {f"mesh.{axis}": 2 for axis in ("data", "fsdp", "tensor")}
    changes = [f"{key}={value}" for key, value in steps.items()]
    assert run_training.main("language_model", str(tmp_path / "one"), str(tmp_path), *changes) == 0
    printed = processes.train("language_model", tmp_path / "two", tmp_path, processes=2, devices=4, **steps, **mesh)
    single, mesh_run = (processes.losses(tmp_path / run) for run in ("one", "two"))
    assert list(single) == list(mesh_run) == [1, 2, 3, 4]
    assert list(mesh_run.values()) == pytest.approx(list(single.values()), rel=1e-5)
    assert "('tensor', 'fsdp')" in printed[0]  # the table, on one process alone
    assert "parameters" not in printed[1]
