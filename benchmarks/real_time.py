"""The real-time factor that `bandtok generate` prints, for codecs and language models with random weights.

    python benchmarks/real_time.py [--variants=tiny,small] [--layouts=flat,depth] [--guidance=3] [--seconds=20]
        [--rounds=3]

Each variant is `bandtok:VARIANT` with its vocoder and `language_model:VARIANT`. A prompt is given. With a guidance
other than 1, every step has a batch of two. The command runs in processes of its own with a warm compile cache: the
first one is not counted, and the time to load the model is not in the factor. Float32, as on every CPU.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
from timing import emit, spread

from bandtok_jax import tasks
from bandtok_jax.codecs import component
from bandtok_jax.config.load import load_config
from bandtok_jax.pretrained import export_folder, model_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="tiny,small")
    parser.add_argument("--layouts", default="flat,depth")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the generated audio")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for variant in flags.variants.split(","):
            for layout in flags.layouts.split(","):
                model = pathlib.Path(folder) / f"{variant}_{layout}"
                millions = _write_model(variant, layout, model)
                factors = [_generate(model, flags.seconds, flags.guidance) for _ in range(flags.rounds + 1)][1:]
                fields = {"layout": layout, "variant": variant, "millions": millions}
                fields |= {"seconds": flags.seconds, "guidance": flags.guidance}
                emit("real_time", "x real time", **spread(factors), **fields)


def _write_model(variant: str, layout: str, folder: pathlib.Path) -> float:
    """Writes an export, and returns the million parameters of its language model."""
    codec = model_folder.create(f"bandtok:{variant}")
    config = tasks.resolve_config(load_config(f"language_model:{variant}", {"model.layout": layout}))
    language_model = component.init_random(config, jax.random.key(1))
    language_model.tokenizer_hash = codec.weight_hash
    export_folder.save_parts({**codec.components, "language_model": language_model}, folder)
    return round(sum(leaf.size for leaf in jax.tree.leaves(language_model.weights)) / 1e6, 1)


def _generate(model: pathlib.Path, seconds: float, guidance: float) -> float:
    """Returns the factor that the command prints."""
    command = [sys.executable, "-m", "bandtok_jax.cli", "generate", f"--model={model}", f"--seconds={seconds}"]
    command += ["--prompt=bright drums", f"--guidance={guidance}", "-o", str(model.with_suffix(".wav"))]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(re.findall(r"([\d.]+) times real time", run.stdout + run.stderr)[-1])


if __name__ == "__main__":
    main()
