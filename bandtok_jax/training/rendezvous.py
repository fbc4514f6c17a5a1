"""The roll call of many processes: which are present, which are missing, and callers that do not belong to them.

Process 0 listens at the coordinator's port, where anybody may call. It greets each caller with a random challenge, and
counts only those whose answer proves that they know the key of this training: BANDTOK_CLUSTER_SECRET, where it is set,
and the number of the cluster's job. All others are left waiting and dropped; they end nothing and take nobody's place.
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

from bandtok_jax.runtime import untrusted

SECRET = "BANDTOK_CLUSTER_SECRET"
_JOB = {"slurm": "SLURM_JOB_ID", "ompi": "OMPI_MCA_orte_hnp_uri"}  # the same in all processes of a job alone
_LONGEST_BYTES = 8192  # of a line
_PATIENCE_SECONDS = 10  # with a caller that says nothing
_MOST_STRANGERS = 200  # that may wait at a time
_RETRY_SECONDS = 0.2

_HEX = untrusted.text(64, "[0-9a-f]{64}")
_GREETING = untrusted.record({"challenge": _HEX}, others=None)
_ABOUT = untrusted.record(
    {
        "process": untrusted.whole(0, 1 << 31), "count": untrusted.whole(1, 1 << 31), "host": untrusted.text(255),
        "challenge": _HEX, "proof": _HEX,
    },
    others=None,
)  # fmt: skip
_VERDICT = untrusted.record({"verdict": untrusted.text(2000), "proof": _HEX}, others=None)


@dataclasses.dataclass
class _Caller:
    """A connection at process 0; `about` is None until it has proved to belong here."""

    challenge: str
    since: float
    received: bytes = b""
    about: dict | None = None


def take(cluster, deadline: float) -> str:
    """Returns "" when all processes of the cluster have called at process 0, or one line that says why they have not.

    deadline: of `time.monotonic()`.
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

        def drop(connection):
            callers.pop(connection, None)
            selector.unregister(connection)
            connection.close()

        verdict, dropped = "", 0
        while not verdict and len(present := _present(callers)) < cluster.count:
            if (remaining := deadline - time.monotonic()) <= 0:
                verdict = _missing(cluster, present, dropped)
                break
            for ready, _ in selector.select(min(remaining, 1.0)):
                connection = ready.fileobj
                if connection is server:
                    _greet(server, callers, selector)
                elif not _hear(cluster, connection, callers[connection]):
                    dropped += callers[connection].about is None
                    drop(connection)
                elif not verdict and callers[connection].about:
                    verdict = _misfit(cluster, callers, connection)
            strangers = [one for one, caller in callers.items() if caller.about is None]
            late = time.monotonic() - _PATIENCE_SECONDS
            for number, connection in enumerate(strangers):  # the oldest come first
                if callers[connection].since < late or number < len(strangers) - _MOST_STRANGERS:
                    dropped += 1
                    drop(connection)
        for connection, caller in callers.items():
            with contextlib.suppress(OSError), connection:
                if caller.about:
                    proof = _proof(cluster, "verdict", caller.challenge, caller.about["challenge"], verdict)
                    connection.settimeout(_PATIENCE_SECONDS)
                    _send(connection, {"verdict": verdict, "proof": proof})
    return verdict


def answer(cluster, deadline: float) -> str:
    """Returns what process 0 says to all others, see `take`; or that it cannot be reached."""
    host, _, port = cluster.coordinator.rpartition(":")
    about = {"process": cluster.process, "count": cluster.count, "host": socket.gethostname()[:255]}
    while (remaining := deadline - time.monotonic()) > 0:
        # Until process 0 listens there, nothing answers, or something else.
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection((host.strip("[]"), int(port)), timeout=remaining) as connection,
        ):
            greeting = _line(connection, time.monotonic() + min(remaining, _PATIENCE_SECONDS))
            theirs = untrusted.parse_json(greeting, cluster.coordinator, _GREETING)["challenge"]
            own = secrets.token_hex(32)
            proof = _proof(cluster, "caller", theirs, own, *about.values())
            _send(connection, {**about, "challenge": own, "proof": proof})
            # Process 0 answers when its own time is up, which began about when ours did.
            content = untrusted.parse_json(_line(connection, deadline + 10), cluster.coordinator, _VERDICT)
            proof = _proof(cluster, "verdict", theirs, own, content["verdict"])
            if hmac.compare_digest(content["proof"], proof):
                return content["verdict"]
        time.sleep(_RETRY_SECONDS)
    return f"process {cluster.process} of {cluster.count} cannot reach process 0 at {cluster.coordinator}"


def _proof(cluster, *parts) -> str:
    """Proves to know what the processes of this training have in common and others do not."""
    key = "\n".join(os.environ.get(name, "") for name in (SECRET, _JOB.get(cluster.kind, "")))
    return hmac.new(key.encode(errors="surrogateescape"), json.dumps(parts).encode(), "sha256").hexdigest()


def _send(connection: socket.socket, content: dict) -> None:
    connection.sendall(json.dumps(content).encode() + b"\n")


def _line(connection: socket.socket, deadline: float) -> bytes:
    """The next line, whose length and time are limited however slowly it comes; OSError where there is none."""
    received = b""
    while not received.endswith(b"\n"):
        if (remaining := deadline - time.monotonic()) <= 0 or len(received) > _LONGEST_BYTES:
            raise TimeoutError
        connection.settimeout(remaining)
        if not (data := connection.recv(_LONGEST_BYTES)):
            raise ConnectionError
        received += data
    return received


def _greet(server: socket.socket, callers: dict, selector: selectors.BaseSelector) -> None:
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


def _hear(cluster, connection: socket.socket, caller: _Caller) -> bool:
    """Reads what a caller sends; returns whether it may stay. One that leaves gives its place free."""
    try:
        data = connection.recv(_LONGEST_BYTES)
    except BlockingIOError:
        return True
    except OSError:
        return False
    caller.received += data
    if not data or len(caller.received) > _LONGEST_BYTES:
        return False
    if caller.about is None and b"\n" in caller.received:
        try:
            about = untrusted.parse_json(caller.received, "a caller", _ABOUT)
        except ValueError:
            return False
        named = (about["process"], about["count"], about["host"])
        expected = _proof(cluster, "caller", caller.challenge, about["challenge"], *named)
        if not hmac.compare_digest(about["proof"], expected):
            return False
        caller.about = about
    return True


def _present(callers: dict[socket.socket, _Caller]) -> dict[int, str]:
    """The host of every process that is here, by its number."""
    here = {caller.about["process"]: caller.about["host"] for caller in callers.values() if caller.about}
    return {0: socket.gethostname(), **here}


def _misfit(cluster, callers: dict[socket.socket, _Caller], connection: socket.socket) -> str:
    """Why a caller of this training cannot be one of its processes; "" where it can."""
    about = callers[connection].about
    others = _present({one: caller for one, caller in callers.items() if one is not connection})
    number, count, host = about["process"], about["count"], about["host"]
    if number not in others and number < cluster.count == count:
        return ""
    taken = f", and {number} is on {others[number]}" if number in others else ""
    return f"process {number} of {count} on {host} does not fit: {cluster.count} are expected{taken}"


def _missing(cluster, present: dict[int, str], dropped: int) -> str:
    missing = sorted(set(range(cluster.count)) - present.keys())
    others = f" ({dropped} callers did not prove to know its {SECRET} and job)" if dropped else ""
    return (
        f"{len(missing)} of {cluster.count} processes did not come to {cluster.coordinator} in time: "
        f"{_ranges(missing)}{others}; look at their logs, and see that they reach that address"
    )


def _ranges(numbers: list[int]) -> str:
    """`[1, 2, 3, 7]` -> "1-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
