"""Many processes that train as one: finding each other, agreeing, and leaving together.

One process for every host of TPUs and for every GPU. A cluster shows itself in the environment: Cloud TPU, SLURM,
Kubernetes and Open MPI as jax detects them, or anything else that sets `JAX_COORDINATOR_ADDRESS` (host:port of process
0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. On Kubernetes, `JOB_COMPLETION_INDEX` serves as the last one.
"""

import contextlib
import dataclasses
import ipaddress
import multiprocessing
import os
import signal
import socket
import threading
import time

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import multihost

from bandtok_jax.runtime import folder_lock
from bandtok_jax.training import rendezvous as roll_calls

START_TIMEOUT_SECONDS = 300
BARRIER_TIMEOUT_SECONDS = 3600
INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as a shell has it


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a training; several_hosts: whether they are known to run on more than one machine."""

    kind: str
    coordinator: str
    count: int
    process: int
    several_hosts: bool = False


def detect(environment=os.environ) -> Cluster | None:
    """The cluster that this process is part of; None where it is alone.

    Raises:
      ValueError: the variables that name a cluster are incomplete or make no sense.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, process = (environment.get(name) for name in names)
    process = process or environment.get("JOB_COMPLETION_INDEX")
    if count is not None:
        if not address or process is None or not (count.isdigit() and process.isdigit()):
            raise ValueError(f"{', '.join(names)} are {address!r}, {count!r}, {process!r}: set all three of them")
        found = Cluster("plain", address, int(count), int(process), "KUBERNETES_SERVICE_HOST" in environment)
    else:
        found = _ask_jax(environment)
    if found is None or found.count == 1:
        return None
    if not found.process < found.count:
        raise ValueError(f"this is process {found.process} of {found.count}: they are numbered from 0")
    return found


def _ask_jax(environment) -> Cluster | None:
    # jax has no public name for what `jax.distributed.initialize` detects (0.10 to 0.12).
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
    """Joins the cluster, if there is one. To be called before anything asks jax for its devices.

    Raises:
      ValueError: the coordinator cannot be reached by others, or processes are missing; the message names them.
    """
    cluster = detect()
    if cluster is None or jax.distributed.is_initialized():
        return
    _check_address(cluster)
    roll_call(cluster, timeout_seconds)
    jax.distributed.initialize(
        cluster.coordinator, cluster.count, cluster.process, initialization_timeout=timeout_seconds
    )


def _check_address(cluster: Cluster) -> None:
    host, _, port = cluster.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"the coordinator's address is {cluster.coordinator!r}: give it as HOST:PORT")
    if cluster.several_hosts and _is_loopback(host):
        raise ValueError(
            f"the coordinator {host} is an address of each machine alone (127.x), and there are several: "
            "set JAX_COORDINATOR_ADDRESS=HOST:PORT to an address of process 0 that all of them reach"
        )


def _is_loopback(host: str) -> bool:
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host.strip("[]"), None)}
    except socket.gaierror:
        return False  # the roll call says that it cannot be reached
    return any(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def roll_call(cluster: Cluster, timeout_seconds: float) -> None:
    """Returns when all processes are there. XLA's own start ends the program without a word of who is missing.

    Raises:
      ValueError: not all came in time, or two go by one number.
    """
    deadline = time.monotonic() + timeout_seconds
    verdict = (roll_calls.take if cluster.process == 0 else roll_calls.answer)(cluster, deadline)
    if verdict:
        host = cluster.coordinator.rpartition(":")[0]
        if "cannot reach" in verdict and _is_loopback(host):
            verdict += "; that is this machine itself (127.x): is process 0 on another one?"
        raise ValueError(verdict)


def agree(number: int) -> int:
    """What process 0 says, on all of them: files may not look the same everywhere at once."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.asarray(number)))


@contextlib.contextmanager
def alone_in(folder, work: str, process_index: int | None = None):
    """Holds the lock of a folder for all processes of this job; see `folder_lock.locked`.

    Args:
      process_index: by default, as jax counts.

    Raises:
      folder_lock.Locked: on every process, where another job holds it.
      OSError: likewise, where nothing can be written there.
    """
    with contextlib.ExitStack() as stack:
        refusal = None
        try:
            index = jax.process_index() if process_index is None else process_index
            stack.enter_context(folder_lock.locked(folder, work, index))
        except OSError as error:
            refusal = error
        barrier(f"lock of {folder}")  # a lock of another host is watched for longer than devices wait
        if agree(int(refusal is not None)):
            raise refusal or folder_lock.Locked(f"{folder} cannot be written to: see process 0")
        yield


def barrier(name: str) -> None:
    """Waits until all processes are here: by the coordinator, not by the devices, whose patience is short."""
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * BARRIER_TIMEOUT_SECONDS)


class Stopped(Exception):
    """The training was asked to stop; all is saved, and the same command resumes it."""


class Preempted(Stopped):
    """SIGTERM came: the machine is taken away."""


class Interrupted(Stopped):
    """Ctrl-C came."""


class StopRequests:
    """Receives SIGTERM and the first Ctrl-C, on whichever process they come, and lets all stop at the same step.

    with StopRequests() as requests:
        ...
        requests.steps_begin()
        ...
        if stop := requests.reached(step): save, and raise stop(...)

    Ctrl-C before the first step is a KeyboardInterrupt: there is nothing to save. A second one ends the process.
    """

    def __enter__(self):
        self._received, self._stepping, self._previous = None, False, {}
        if threading.current_thread() is threading.main_thread():
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
            # With many processes jax's service receives the signal, informs the others and fixes the step.
            if jax.process_count() == 1:
                self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def steps_begin(self) -> None:
        """From here on Ctrl-C saves."""
        self._stepping = True

    def _terminate(self, *_):
        self._received = self._received or Preempted

    def _interrupt(self, *_):
        if not self._stepping:
            raise KeyboardInterrupt
        if self._received is Interrupted:
            leave_at_once()
        self._received = Interrupted
        # Not print: the signal may have come within one.
        os.write(2, b"\nbandtok: saving after this step; Ctrl-C again leaves at once and loses what is not saved\n")
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> type[Stopped] | None:
        """Returns how to stop after this step, if at all; all processes ask after every step, and get one answer."""
        if jax.process_count() == 1:
            return self._received
        return (self._received or Preempted) if multihost_utils.reached_preemption_sync_point(step) else None

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def leave_at_once(code: int = INTERRUPTED_EXIT_CODE) -> None:
    """Ends this process and its workers without waiting for anything."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)
