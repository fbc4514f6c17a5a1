"""A peer in a process of its own that makes one call when it is asked, so that its calls can alternate with ours."""

import json
import pathlib
import subprocess
from typing import Any

SCRIPT = pathlib.Path(__file__).with_name("run_peers.py")


class Peer:
    """A measurement of `run_peers.py`; every call of the object makes one call there.

    Args:
      python: the Python of an environment with the packages of the peer.
      name: the measurement.
      kept: use an allocator that keeps freed memory.

    Attributes:
      fields: the columns of the peer's row beside the times, such as sizes.
      pid: its process.
    """

    def __init__(self, python: str, name: str, kept: bool) -> None:
        command = [python, str(SCRIPT), name, "--turns", *["--kept"] * kept]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.fields: dict[str, Any] = json.loads(self._read())

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def __call__(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._read()

    def _read(self) -> str:
        """Returns the next line of the peer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with exit code {self._process.wait()}: its message is above")
        return line
