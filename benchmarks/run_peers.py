"""Speed of PyTorch peers on the CPU with random weights, in float32 and eager mode. One JSON object a line.

    PEER/bin/python benchmarks/run_peers.py                                # all but those of ON_REQUEST
    PEER/bin/python benchmarks/run_peers.py dac_encode loader --audio DIR  # some
    PEER/bin/python benchmarks/run_peers.py --list

PEER is an environment with torch, numpy, scipy, soundfile, librosa, transformers, vocos (with encodec, einops),
descript-audio-codec and descript-audiotools (both may be installed with --no-deps, plus julius). A measurement needs
only its own packages.

Every measurement runs in a process of its own. Rows also have the load of the machine, see `machine.Load`: "own_cores"
falls where other processes interfere, and a row with "disturbed" should be measured again. --patience waits for a quiet
machine before each measurement, and repeats disturbed ones at most twice. --kept uses an allocator that keeps freed
memory, as in our own benchmarks: by default every large tensor of PyTorch is returned to the system and faulted in
again by the next step. --turns is for our own benchmarks, which start a peer and call it and their own function in
turn: it prints the fields of the row, and then the seconds of one call for each line that it reads.
"""

import argparse
import importlib
import os
import subprocess
import sys
import warnings

MODULES = {
    "versions": ("versions",),
    "memory": ("memory_bandwidth",),
    "mel_frontend": ("mel_frontend",),
    "meltok": (
        *(f"meltok_{size}_{verb}" for size in ("tiny", "small", "base") for verb in ("encode", "step")),
        "token_vocoder_tiny_step",
    ),
    "diffusion_transformer": ("diffusion_transformer_tiny", "diffusion_transformer_two_base_blocks"),
    "descript_dac": ("dac_encode", "dac_decode", "dac_generator_step", "dac_gan_step"),
    "official_vocos": ("vocos_decode",),
    "transformers_codecs": ("encodec_encode", "encodec_decode", "dac_hf_encode", "dac_hf_decode"),
    "transformers_llama": ("llama_generate", "llama_decode_loop", "llama_train"),
    "torch_loader": ("loader",),
}
MODULE_OF = {name: module for module, names in MODULES.items() for name in names}
ON_REQUEST = ("dac_hf_encode", "dac_hf_decode", "loader")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="measurements, see --list")
    parser.add_argument("--kept", action="store_true", help="an allocator that keeps freed memory")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--audio", metavar="DIR", help="folder with .ogg files, for the loader")
    parser.add_argument("--patience", type=float, default=0.0, metavar="SECONDS", help="wait for a quiet machine")
    parser.add_argument("--turns", action="store_true", help="one call for each line of the standard input")
    parser.add_argument("--list", action="store_true", help="print the names of the measurements")
    flags = parser.parse_args()
    if flags.list:
        print("\n".join(MODULE_OF))
        return 0
    if unknown := set(flags.names) - set(MODULE_OF):
        parser.error(f"no measurement {min(unknown)}: choose from {', '.join(MODULE_OF)}")
    if flags.turns and len(flags.names) != 1:
        parser.error("--turns is for one measurement: name it")
    names = flags.names or [name for name in MODULE_OF if name not in ON_REQUEST]
    if len(names) == 1:
        _measure(names[0], flags)
        return 0
    return 1 if any([_measure_apart(name, flags) for name in names]) else 0


def _measure_apart(name: str, flags: argparse.Namespace) -> int:
    """Measures in a process of its own and returns its exit code."""
    command = [sys.executable, __file__, name, f"--threads={flags.threads}", f"--patience={flags.patience}"]
    command += [f"--audio={flags.audio}"] * bool(flags.audio) + ["--kept"] * flags.kept
    for _ in range(3 if flags.patience else 1):
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if '"disturbed": true' not in child.stdout:
            break
    print(child.stdout, end="", flush=True)
    return child.returncode


def _measure(name: str, flags: argparse.Namespace) -> None:
    """Measures in this process."""
    from machine import wait_until_quiet
    from timing import keep_freed_memory

    if flags.kept:
        keep_freed_memory()
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(flags.threads)  # read when torch is imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["PEER_AUDIO"] = flags.audio or ""
    os.environ["PEER_TURNS"] = "1" * flags.turns
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(flags.threads)
    if flags.patience:
        wait_until_quiet(flags.patience)
    importlib.import_module(f"peers.{MODULE_OF[name]}").MEASUREMENTS[name]()


if __name__ == "__main__":
    sys.exit(main())
