"""Every number of this package on one accelerator, beside PyTorch where it is installed.

    python benchmarks/gpu.py                                   # all rows, as far as 13 minutes suffice
    python benchmarks/gpu.py --rows vocos,lm_decode --seconds 120
    python benchmarks/gpu.py --wheels WHEELS --data RECORDS    # on a machine without a network
    JAX_PLATFORMS=cpu python benchmarks/gpu.py --size tiny     # a trial on a CPU

It prints a table that grows, and writes one JSON object a line to --output. A row is measured here first and then by
PyTorch. Rows that compile quickly come first. Each side has a process of its own, which is ended when a row takes too
long and started again for the next one. Compiled programs are not kept, so `first call` includes compilation.
"""

import argparse
from collections.abc import Iterator, Mapping
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, TextIO

FOLDER = pathlib.Path(__file__).resolve().parent
ROWS = (
    "matmul", "vocos", "lm_decode", "lm_decode_fused", "lm_train", "dac_codec", "bandtok_step", "lm_decode_depth",
    "lm_decode_depth_fused", "bandtok_codec", "vocos_step", "dac_step", "lm_train_base",
)  # fmt: skip
ROW_SECONDS = 180  # our choice: a row that compiles for longer must not take the time of all others
SIDES = ("bandtok_jax", "PyTorch")
HEADINGS = ("work", "unit", *SIDES, "ratio", "first call, s", "first call of PyTorch, s")


class Side:
    """The process that measures one side, started again after it was ended.

    Args:
      command: runs `row_server.serve`.
      environment: variables of the process.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = command, environment
        self._start()

    def measure(self, row: str, end: float) -> Iterator[dict[str, Any]]:
        """Yields the measurements of a row, and `{"error": text}` where it fails or is not finished at `end`."""
        if self._process.poll() is not None:
            self._start()
        assert self._process.stdin is not None
        try:
            print(row, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # its end comes as a line
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                self.close()
                yield {"error": "not finished in time"}
                return
            if line is None:
                yield {"error": f"the process ended with exit code {self._process.wait()}"}
                return
            # Libraries may print lines of their own.
            message = json.loads(line) if line.startswith("{") else {}
            if "done" in message:
                return
            if message:
                yield message

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated, of " + ", ".join(ROWS))
    parser.add_argument("--seconds", type=float, default=780.0, help="time for everything (780)")
    parser.add_argument("--size", default="full", choices=("full", "tiny"), help="tiny: sizes that a CPU can measure")
    parser.add_argument("--output", default="gpu.jsonl", metavar="FILE", help="JSON lines (gpu.jsonl)")
    parser.add_argument(
        "--data", default="synthetic", metavar="FOLDER", help="records, by default the synthetic source"
    )
    parser.add_argument("--wheels", metavar="FOLDER", help="wheels to install into a temporary folder first")
    parser.add_argument(
        "--peer", default=sys.executable, metavar="PYTHON", help="an environment with PyTorch; '' for none"
    )
    parser.add_argument("--profile", action="store_true", help="also the kernels of each of our calls")
    flags = parser.parse_args()
    names = flags.rows.split(",")
    if unknown := set(names) - set(ROWS):
        parser.error(f"no row {min(unknown)!r}: choose from {', '.join(ROWS)}")
    end = time.monotonic() + flags.seconds
    with tempfile.TemporaryDirectory() as site, open(flags.output, "w") as output:
        sides = _sides(flags, _environment(flags.wheels, site))
        try:
            _run(sides, names, end, output)
        finally:
            for side in sides.values():
                side.close()
    return 0


def _environment(wheels: str | None, site: str) -> dict[str, str]:
    """Returns the environment of the processes, in which the wheels are installed."""
    if wheels:
        files = sorted(map(str, pathlib.Path(wheels).glob("*.whl")))
        if not files:
            raise SystemExit(f"--wheels={wheels}: no .whl file there; give a folder with some")
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site]
        subprocess.run([*install, *files], check=True)
    path = os.pathsep.join(filter(None, (str(FOLDER.parent), site, os.environ.get("PYTHONPATH"))))
    return os.environ | {
        "PYTHONPATH": path,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # both sides share the memory of the device
        "HF_HUB_OFFLINE": "1",
    }


def _sides(flags: argparse.Namespace, environment: dict[str, str]) -> dict[str, Side]:
    """Starts the processes of both sides; without PyTorch there is one."""
    options = [flags.size, flags.data, *["--profile"] * flags.profile]
    sides = {SIDES[0]: Side([sys.executable, str(FOLDER / "gpu_rows.py"), *options], environment)}
    if flags.peer and subprocess.run([flags.peer, "-c", "import torch"], capture_output=True).returncode == 0:
        sides[SIDES[1]] = Side([flags.peer, str(FOLDER / "gpu_peers.py"), flags.size], environment)
    return sides


def _run(sides: Mapping[str, Side], names: list[str], end: float, output: TextIO) -> None:
    """Measures the rows and prints the table."""
    print(f"| {' | '.join(HEADINGS)} |\n{'|---' * len(HEADINGS)}|", flush=True)
    for row in names:
        measured: dict[str, dict[str, dict[str, Any]]] = {}
        for label, side in sides.items():
            for fields in side.measure(row, min(end, time.monotonic() + ROW_SECONDS)):
                fields = {"row": row, "side": label, **fields}
                print(json.dumps(fields), file=output, flush=True)
                measured.setdefault(fields.get("name", row), {})[label] = fields
        for name, both in measured.items():
            print(_line(name, both), flush=True)
    if SIDES[1] not in sides:
        print("PyTorch is not installed: --peer names another Python", flush=True)


def _line(name: str, both: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the line of the table for a measurement of one or both sides."""
    ours, theirs = (both.get(label, {}) for label in SIDES)
    unit = (ours or theirs).get("unit", "")
    ratio = ""
    if "value" in ours and "value" in theirs:
        faster = theirs["value"] / ours["value"] if unit.startswith("s") else ours["value"] / theirs["value"]
        ratio = f"{faster:.2f}"
    values = [str(side.get("value", side.get("error", ""))) for side in (ours, theirs)]
    return f"| {' | '.join((name, unit, *values, ratio, *(str(side.get('first_s', '')) for side in (ours, theirs))))} |"


def _read(stream: TextIO, lines: "queue.Queue[str | None]") -> None:
    """Puts the lines of a process into a queue, and None after the last one."""
    for line in stream:
        lines.put(line)
    lines.put(None)


if __name__ == "__main__":
    sys.exit(main())
