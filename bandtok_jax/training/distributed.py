"""Several processes that train as one: rendezvous, broadcasts, locks and a common end.

There is one process for every TPU host and for every GPU. The environment describes the cluster: jax detects Cloud TPU,
SLURM, Kubernetes and Open MPI, and any other cluster sets `JAX_COORDINATOR_ADDRESS` (host:port of process 0),
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. On Kubernetes, `JOB_COMPLETION_INDEX` replaces the last one.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import ipaddress
import multiprocessing
import os
import signal
import socket
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import multihost

from bandtok_jax.runtime import folder_lock
from bandtok_jax.training import rendezvous as sockets

START_TIMEOUT_SECONDS = 300
BARRIER_TIMEOUT_SECONDS = 3600
INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as a shell has it


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a training. `several_hosts` is True where they are known to run on more than one machine."""

    kind: str
    coordinator: str
    count: int
    process: int
    several_hosts: bool = False


def detect(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """Returns the cluster of this process; None for a single process.

    Raises:
      ValueError: the variables that name a cluster are incomplete or make no sense.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, process = (environment.get(name) for name in names)
    process = process or environment.get("JOB_COMPLETION_INDEX")
    if count is not None:
        if not address or process is None or not (count.isdigit() and process.isdigit()):
            raise ValueError(f"{', '.join(names)} are {address!r}, {count!r}, {process!r}: set all three of them")
        cluster = Cluster("plain", address, int(count), int(process), "KUBERNETES_SERVICE_HOST" in environment)
    else:
        cluster = _detect_by_jax(environment)
    if cluster is None or cluster.count == 1:
        return None
    if not cluster.process < cluster.count:
        raise ValueError(f"this is process {cluster.process} of {cluster.count}: they are numbered from 0")
    return cluster


def _detect_by_jax(environment: Mapping[str, str]) -> Cluster | None:
    """Returns the cluster that jax detects; None for a single process."""
    # jax has no public name for the clusters that `jax.distributed.initialize` detects (0.10 to 0.12).
    from jax._src.clusters import ClusterEnv

    kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    kind = next((kind for kind in kinds if kind.is_env_present()), None)
    if kind is None or kind.get_process_count() == 1:
        return None
    port = environment.get("JAX_COORDINATOR_PORT")
    coordinator = kind.get_coordinator_address(timeout_secs=START_TIMEOUT_SECONDS, override_coordinator_port=port)
    count = kind.get_process_count()
    several_hosts = {
        "slurm": int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or 1) > 1,
        "ompi": int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", count)) < count,
    }.get(kind.name, True)
    return Cluster(kind.name, coordinator, count, kind.get_process_id(), several_hosts)


def start(timeout_seconds: int = START_TIMEOUT_SECONDS) -> None:
    """Joins the cluster, if there is one. Call it before anything asks jax for its devices.

    Raises:
      ValueError: other processes cannot reach the coordinator, or processes are missing and the message names them.
    """
    cluster = detect()
    if cluster is None or jax.distributed.is_initialized():
        return
    _check_address(cluster)
    rendezvous(cluster, timeout_seconds)
    jax.distributed.initialize(
        cluster.coordinator, cluster.count, cluster.process, initialization_timeout=timeout_seconds
    )


def log(text: str) -> None:
    """Prints a line on process 0 alone."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _check_address(cluster: Cluster) -> None:
    """Raises a ValueError where the address of the coordinator is malformed or local to each machine."""
    host, _, port = cluster.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"the coordinator's address is {cluster.coordinator!r}: give it as HOST:PORT")
    if cluster.several_hosts and _is_loopback(host):
        raise ValueError(
            f"the coordinator {host} is an address local to each machine (127.x), and there are several machines: "
            "set JAX_COORDINATOR_ADDRESS=HOST:PORT to an address of process 0 that all of them reach"
        )


def _is_loopback(host: str) -> bool:
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host.strip("[]"), None)}
    except socket.gaierror:
        return False  # the rendezvous reports that it cannot be reached
    return any(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


def rendezvous(cluster: Cluster, timeout_seconds: float) -> None:
    """Waits until all processes are present. XLA's own start would end the program without naming the missing ones.

    Raises:
      ValueError: processes are missing at the timeout, or two have one number.
    """
    deadline = time.monotonic() + timeout_seconds
    problem = (sockets.wait_for_all if cluster.process == 0 else sockets.report)(cluster, deadline)
    if problem:
        host = cluster.coordinator.rpartition(":")[0]
        if "cannot reach" in problem and _is_loopback(host):
            problem += "; that is this machine itself (127.x): is process 0 on another one?"
        raise ValueError(problem)


def broadcast_from_host0(number: int) -> int:
    """Returns the number of process 0 on all processes, because files may not look the same everywhere at once."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.asarray(number)))


@contextlib.contextmanager
def locked_folder(folder: str | os.PathLike, work: str, process_index: int | None = None) -> Iterator[None]:
    """Holds the lock of a folder for all processes of this job; see `folder_lock.locked`.

    Args:
      folder: it is created where it does not exist.
      work: the command, for the error message of another job.
      process_index: `jax.process_index()` by default.

    Raises:
      folder_lock.Locked: another job holds it. Raised on every process.
      OSError: nothing can be written there. Raised on every process.
    """
    with contextlib.ExitStack() as stack:
        refusal = None
        try:
            index = jax.process_index() if process_index is None else process_index
            stack.enter_context(folder_lock.locked(folder, work, index))
        except OSError as error:
            refusal = error
        barrier(f"lock of {folder}")  # waits longer than devices do: a lock of another host is watched for a while
        if broadcast_from_host0(int(refusal is not None)):
            raise refusal or folder_lock.Locked(f"{folder} cannot be written to: see process 0")
        yield


def barrier(name: str) -> None:
    """Waits for all processes, through the coordinator and not the devices, whose timeout is short."""
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * BARRIER_TIMEOUT_SECONDS)


class Stopped(Exception):
    """The training stopped on request; all is saved, and the same command resumes it."""


class Preempted(Stopped):
    """A stop by SIGTERM, which a machine sends before it is taken away."""


class Interrupted(Stopped):
    """A stop by Ctrl-C."""


class StopRequests:
    """SIGTERM and the first Ctrl-C on any process, so that all processes stop after the same step.

    with StopRequests() as requests:
        ...
        requests.begin_steps()
        ...
        if stop := requests.should_stop(step): save and raise stop(...)

    Ctrl-C before the first step is a KeyboardInterrupt, as there is nothing to save. A second one ends the process.
    """

    def __enter__(self) -> "StopRequests":
        self._received: type[Stopped] | None = None
        self._stepping, self._previous = False, {}
        if threading.current_thread() is threading.main_thread():
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
            # With many processes jax's service receives the signal, informs the others and fixes the step.
            if jax.process_count() == 1:
                self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def begin_steps(self) -> None:
        """Lets Ctrl-C save from now on."""
        self._stepping = True

    def _terminate(self, *_: Any) -> None:
        self._received = self._received or Preempted

    def _interrupt(self, *_: Any) -> None:
        if not self._stepping:
            raise KeyboardInterrupt
        if self._received is Interrupted:
            exit_immediately()
        self._received = Interrupted
        # Not print: the signal may interrupt one.
        os.write(2, b"\nbandtok: saving after this step; Ctrl-C again exits at once and loses unsaved steps\n")
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def should_stop(self, step: int) -> type[Stopped] | None:
        """Returns the exception to stop with after this step, or None; the same on all processes, which all call it."""
        if jax.process_count() == 1:
            return self._received
        return (self._received or Preempted) if multihost_utils.reached_preemption_sync_point(step) else None

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def exit_immediately(code: int = INTERRUPTED_EXIT_CODE) -> None:
    """Ends this process and its workers without waiting."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)
