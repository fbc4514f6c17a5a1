"""The rendezvous of several processes over sockets: present ones, missing ones, and strangers.

Process 0 listens at the coordinator's port, which is open to anyone. It sends each caller a random challenge, and
counts those whose response proves that they have the key of this training: BANDTOK_CLUSTER_SECRET, where it is set, and
the number of the cluster's job. All others are dropped after a while, without an effect on the training.
"""

import contextlib
import dataclasses
import hmac
import json
import os
import secrets
import selectors
import socket
import time
from typing import Any

from bandtok_jax.runtime import expect, untrusted

SECRET = "BANDTOK_CLUSTER_SECRET"
_JOB = {"slurm": "SLURM_JOB_ID", "ompi": "OMPI_MCA_orte_hnp_uri"}  # the same in all processes of one job, and no other
_MAX_LINE_BYTES = 8192
_CALLER_TIMEOUT_SECONDS = 10  # for a caller that sends nothing
_MAX_STRANGERS = 200  # unproved callers that wait at one time
_RETRY_SECONDS = 0.2

_HEX = expect.text(64, "[0-9a-f]{64}")
_CHALLENGE = expect.record({"challenge": _HEX}, others=None)
_IDENTITY = expect.record(
    {
        "process": expect.whole(0, 1 << 31), "count": expect.whole(1, 1 << 31), "host": expect.text(255),
        "challenge": _HEX, "proof": _HEX,
    },
    others=None,
)  # fmt: skip
_RESULT = expect.record({"problem": expect.text(2000), "proof": _HEX}, others=None)


@dataclasses.dataclass
class _Caller:
    """A connection at process 0; `identity` is None until it has proved to belong to this training."""

    challenge: str
    since: float
    received: bytes = b""
    identity: dict | None = None


def wait_for_all(cluster: Any, deadline: float) -> str:
    """Waits at process 0 for all others; returns "", or the problem in one line.

    Args:
      cluster: a `distributed.Cluster`.
      deadline: in seconds of `time.monotonic()`.
    """
    port = int(cluster.coordinator.rpartition(":")[2])
    family = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    try:
        server = socket.create_server(("", port), **family)
    except OSError as error:
        return f"process 0 cannot listen at port {port} ({error.strerror}): set JAX_COORDINATOR_ADDRESS to a free one"
    callers: dict[socket.socket, _Caller] = {}
    with server, selectors.DefaultSelector() as selector:
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)

        def drop(connection: socket.socket) -> None:
            callers.pop(connection, None)
            selector.unregister(connection)
            connection.close()

        problem, dropped = "", 0
        while not problem and len(present := _present(callers)) < cluster.count:
            if (remaining := deadline - time.monotonic()) <= 0:
                problem = _missing(cluster, present, dropped)
                break
            for ready, _ in selector.select(min(remaining, 1.0)):
                connection = ready.fileobj
                assert isinstance(connection, socket.socket)
                if connection is server:
                    _greet(server, callers, selector)
                elif not _receive(cluster, connection, callers[connection]):
                    dropped += callers[connection].identity is None
                    drop(connection)
                elif not problem and callers[connection].identity:
                    problem = _mismatch(cluster, callers, connection)
            strangers = [connection for connection, caller in callers.items() if caller.identity is None]
            oldest = time.monotonic() - _CALLER_TIMEOUT_SECONDS
            for number, connection in enumerate(strangers):  # the oldest come first
                if callers[connection].since < oldest or number < len(strangers) - _MAX_STRANGERS:
                    dropped += 1
                    drop(connection)
        for connection, caller in callers.items():
            with contextlib.suppress(OSError), connection:
                if caller.identity:
                    proof = authentication_code(
                        cluster, "problem", caller.challenge, caller.identity["challenge"], problem
                    )
                    connection.settimeout(_CALLER_TIMEOUT_SECONDS)
                    _send(connection, {"problem": problem, "proof": proof})
    return problem


def report(cluster: Any, deadline: float) -> str:
    """Reports to process 0 and returns its result, see `wait_for_all`, or that it cannot be reached."""
    host, _, port = cluster.coordinator.rpartition(":")
    identity = {"process": cluster.process, "count": cluster.count, "host": socket.gethostname()[:255]}
    while (remaining := deadline - time.monotonic()) > 0:
        # Until process 0 listens, nothing responds there, or another program does.
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection((host.strip("[]"), int(port)), timeout=remaining) as connection,
        ):
            greeting = _line(connection, time.monotonic() + min(remaining, _CALLER_TIMEOUT_SECONDS))
            theirs = untrusted.parse_json(greeting, cluster.coordinator, _CHALLENGE)["challenge"]
            own = secrets.token_hex(32)
            proof = authentication_code(cluster, "caller", theirs, own, *identity.values())
            _send(connection, {**identity, "challenge": own, "proof": proof})
            # Process 0 responds at its own timeout at the latest, which started at about the same time.
            content = untrusted.parse_json(_line(connection, deadline + 10), cluster.coordinator, _RESULT)
            proof = authentication_code(cluster, "problem", theirs, own, content["problem"])
            if hmac.compare_digest(content["proof"], proof):
                return content["problem"]
        time.sleep(_RETRY_SECONDS)
    return f"process {cluster.process} of {cluster.count} cannot reach process 0 at {cluster.coordinator}"


def authentication_code(cluster: Any, *parts: Any) -> str:
    """Returns a message authentication code under the key that only the processes of this training have."""
    key = "\n".join(os.environ.get(name, "") for name in (SECRET, _JOB.get(cluster.kind, "")))
    return hmac.new(key.encode(errors="surrogateescape"), json.dumps(parts).encode(), "sha256").hexdigest()


def _send(connection: socket.socket, content: dict) -> None:
    """Sends a line of JSON."""
    connection.sendall(json.dumps(content).encode() + b"\n")


def _line(connection: socket.socket, deadline: float) -> bytes:
    """Returns the next line, of limited length and time. Raises an OSError at the timeout."""
    received = b""
    while not received.endswith(b"\n"):
        if (remaining := deadline - time.monotonic()) <= 0 or len(received) > _MAX_LINE_BYTES:
            raise TimeoutError
        connection.settimeout(remaining)
        if not (data := connection.recv(_MAX_LINE_BYTES)):
            raise ConnectionError
        received += data
    return received


def _greet(server: socket.socket, callers: dict, selector: selectors.BaseSelector) -> None:
    """Accepts a caller and sends it a challenge."""
    with contextlib.suppress(OSError):
        connection, _ = server.accept()
        try:
            connection.setblocking(False)
            caller = _Caller(secrets.token_hex(32), time.monotonic())
            _send(connection, {"challenge": caller.challenge})
            selector.register(connection, selectors.EVENT_READ)
        except OSError:
            connection.close()
            raise
        callers[connection] = caller


def _receive(cluster: Any, connection: socket.socket, caller: _Caller) -> bool:
    """Reads from a caller, and returns False where its connection is to be dropped."""
    try:
        data = connection.recv(_MAX_LINE_BYTES)
    except BlockingIOError:
        return True
    except OSError:
        return False
    caller.received += data
    if not data or len(caller.received) > _MAX_LINE_BYTES:
        return False
    if caller.identity is None and b"\n" in caller.received:
        try:
            identity = untrusted.parse_json(caller.received, "a caller", _IDENTITY)
        except ValueError:
            return False
        named = (identity["process"], identity["count"], identity["host"])
        expected = authentication_code(cluster, "caller", caller.challenge, identity["challenge"], *named)
        if not hmac.compare_digest(identity["proof"], expected):
            return False
        caller.identity = identity
    return True


def _present(callers: dict[socket.socket, _Caller]) -> dict[int, str]:
    """Returns the host of every process that is present, by its number."""
    present = {caller.identity["process"]: caller.identity["host"] for caller in callers.values() if caller.identity}
    return {0: socket.gethostname(), **present}


def _mismatch(cluster: Any, callers: dict[socket.socket, _Caller], connection: socket.socket) -> str:
    """Returns the reason why a caller of this training cannot be one of its processes, or ""."""
    identity = callers[connection].identity
    assert identity is not None, "a caller that proved to belong to this training has one"
    others = _present({other: caller for other, caller in callers.items() if other is not connection})
    number, count, host = identity["process"], identity["count"], identity["host"]
    if number not in others and number < cluster.count == count:
        return ""
    taken = f", and {number} is on {others[number]}" if number in others else ""
    return f"process {number} of {count} on {host} does not fit: {cluster.count} are expected{taken}"


def _missing(cluster: Any, present: dict[int, str], dropped: int) -> str:
    """Returns the error message that names the missing processes."""
    missing = sorted(set(range(cluster.count)) - present.keys())
    others = f" ({dropped} callers did not prove that they have its {SECRET} and job)" if dropped else ""
    return (
        f"{len(missing)} of {cluster.count} processes did not come to {cluster.coordinator} in time: "
        f"{_ranges(missing)}{others}; look at their logs, and see that they reach that address"
    )


def _ranges(numbers: list[int]) -> str:
    """Returns numbers as ranges, such as "1-3, 7" for `[1, 2, 3, 7]`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
