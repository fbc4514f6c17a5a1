"""Starts the processes of one host that train together: one for every GPU, or several on the CPU to try them out.

  python -m bandtok_jax.launch.processes --processes=2 --devices-per-process=4 -- --config=bandtok:tiny --workdir=RUN
  python -m bandtok_jax.launch.processes --processes=8 --hosts=2 --host=0 --coordinator=HOST:PORT -- --config=...

The arguments after `--` go to `bandtok train`. The lines of each process begin with its number, and SIGTERM reaches all
of them. The exit code is that of the first process that failed. Without a failure it is 42 ("start me again") if one
was preempted, and 0 otherwise.
"""

import argparse
from collections.abc import Sequence
import contextlib
import io
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time

from bandtok_jax.runtime.exit_codes import RESTART_EXIT_CODE

_POLL_SECONDS = 0.1


def environments(processes: int, *, hosts: int, host: int, coordinator: str, devices: int = 0) -> list[dict[str, str]]:
    """Returns the environment variables of each process of a host.

    Args:
      processes: number of processes on each host.
      hosts: number of hosts.
      host: index of this one.
      coordinator: address of process 0, HOST:PORT.
      devices: number of CPU devices of each process; 0 for one GPU each.
    """
    variables_of_all = []
    for local in range(processes):
        variables = {
            "JAX_COORDINATOR_ADDRESS": coordinator,
            "JAX_NUM_PROCESSES": str(processes * hosts),
            "JAX_PROCESS_ID": str(processes * host + local),
        }
        if devices:
            flags = re.sub(r"--xla_force_host_platform_device_count=\S*", "", os.environ.get("XLA_FLAGS", ""))
            variables["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
            variables["JAX_PLATFORMS"] = "cpu"
        else:
            # Each process computes on one GPU and sees all: NCCL copies directly only between GPUs that it sees.
            variables["JAX_LOCAL_DEVICE_IDS"] = str(local)
        variables_of_all.append(variables)
    return variables_of_all


def run(command: Sequence[str], variables: list[dict[str, str]], *, grace_seconds: float, linger_seconds: float) -> int:
    """Runs `command` once for each of `variables`, and returns the exit code of them all.

    Args:
      grace_seconds: from a SIGTERM to SIGKILL.
      linger_seconds: time for the others after one has failed, for which they would wait for ever.
    """
    children: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []
    deadline = [float("inf")]

    def stop(*_):
        deadline[0] = min(deadline[0], time.monotonic() + grace_seconds)
        for child in children:
            if child.poll() is None:
                child.terminate()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    failed = None
    try:
        for number, own in enumerate(variables):
            # A group of its own: Ctrl-C in a terminal comes once, through here, and workers can be ended with it.
            child = subprocess.Popen(
                list(command), env={**os.environ, **own}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            children.append(child)
            prefix = f"[{own.get('JAX_PROCESS_ID', number)}] ".encode()
            readers.append(threading.Thread(target=_prefix, args=(child.stdout, prefix)))
            readers[-1].start()
        while None in (codes := [child.poll() for child in children]):
            if failed is None and (failed := next(filter(_has_failed, codes), None)) is not None:
                deadline[0] = min(deadline[0], time.monotonic() + linger_seconds)
            if time.monotonic() > deadline[0]:
                _kill(children)
            time.sleep(_POLL_SECONDS)
    finally:
        _kill(children)
        for number, handler in previous.items():
            signal.signal(number, handler)
        for reader in readers:
            reader.join()
    failed = failed or next(filter(_has_failed, codes), 0)
    if failed:
        return failed if failed > 0 else 128 - failed  # killed by a signal: as a shell says it
    return RESTART_EXIT_CODE if RESTART_EXIT_CODE in codes else 0


def _has_failed(code: int | None) -> bool:
    return code not in (None, 0, RESTART_EXIT_CODE)


def _kill(children: Sequence[subprocess.Popen]) -> None:
    """Kills the processes with all processes that they have started."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _prefix(stream: io.BufferedReader, prefix: bytes) -> None:
    """Copies a stream line by line; a progress bar's carriage return ends a line too."""
    rest = b""
    while chunk := stream.read1(65536):
        *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
        _write(b"".join(prefix + line + b"\n" for line in lines if line))
    if rest:
        _write(prefix + rest + b"\n")


def _write(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def _parser() -> argparse.ArgumentParser:
    summary, examples, _ = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m bandtok_jax.launch.processes",
        description=summary,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=int, required=True, metavar="N", help="on this host")
    parser.add_argument(
        "--devices-per-process", type=int, default=0, metavar="N", help="of the CPU; 0 (default): a GPU each"
    )
    parser.add_argument("--hosts", type=int, default=1, metavar="N", help="how many there are (default 1)")
    parser.add_argument("--host", type=int, default=0, metavar="I", help="which one this is, from 0")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of host 0; default: a free port of this machine")
    parser.add_argument("--grace-seconds", type=float, default=120, metavar="S", help="from SIGTERM to SIGKILL (120)")
    parser.add_argument(
        "--linger-seconds", type=float, default=30, metavar="S", help="of the others, when one failed (30)"
    )
    parser.add_argument("train", nargs="*", metavar="-- ARGUMENTS", help="of bandtok train")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Starts the processes and waits for them; returns their exit code. Usage errors exit with 2."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    if flags.processes < 1 or flags.devices_per_process < 0 or not 0 <= flags.host < flags.hosts:
        parser.error("give at least one process, no negative number of devices, and --host from 0 to --hosts - 1")
    if flags.hosts > 1 and not flags.coordinator:
        parser.error("--hosts is more than 1: give --coordinator=HOST:PORT, an address of host 0 that all reach")
    variables = environments(
        flags.processes, hosts=flags.hosts, host=flags.host, coordinator=flags.coordinator or _free_address(),
        devices=flags.devices_per_process,
    )  # fmt: skip
    if flags.hosts == 1:  # others that reach the port shall not pass for one of them
        secret = os.environ.get("BANDTOK_CLUSTER_SECRET") or secrets.token_hex(32)
        variables = [{**own, "BANDTOK_CLUSTER_SECRET": secret} for own in variables]
    command = [sys.executable, "-u", "-m", "bandtok_jax.cli", "train", *flags.train]
    return run(command, variables, grace_seconds=flags.grace_seconds, linger_seconds=flags.linger_seconds)


if __name__ == "__main__":
    sys.exit(main())
