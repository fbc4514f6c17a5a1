"""One MelTok in windows and over whole files: log-mel error, codes that differ, and steps at the seams of windows.

python benchmarks/windows_or_whole.py --model=runs/meltok SONG.flac OTHER.flac     (files of 44.1 kHz)
"""

import argparse

import numpy as np

from bandtok_jax.audio import spectral, waveform
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.pretrained import model_folder

COLUMNS = ("windows (nats)", "whole file (nats)", "codes that differ", "step at a seam", "step elsewhere")


def main() -> None:
    """Prints a line for each file and their means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="run or export folder of a MelTok")
    parser.add_argument("--start", type=float, default=20.0, help="first second of the excerpt (20)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the excerpt (20)")
    parser.add_argument("files", nargs="+")
    flags = parser.parse_args()

    tokenizer = model_folder.read_components(flags.model)["tokenizer"]
    config = tokenizer.config.copy_and_resolve_references().unlock()
    config.model.parity = True
    codecs = [MelCodec(tokenizer), MelCodec(Component(config, tokenizer.weights))]
    step = codecs[0].components["tokenizer"].network.attribute("chunk_step_columns")
    rows = []
    for path in flags.files:
        rate = codecs[0].sample_rate_hz
        excerpt = waveform.read_part(path, int(flags.start * rate), int((flags.start + flags.seconds) * rate))
        rows.append(measure(codecs, waveform.mono(excerpt), rate, step))
        print(path, *(f"{value:.4f}" for value in rows[-1]))
    print(", ".join(f"{name} {value:.4f}" for name, value in zip(COLUMNS, np.mean(rows, axis=0))))


def measure(codecs: list[MelCodec], audio: np.ndarray, rate: int, step: int) -> list[float]:
    """Returns the values of COLUMNS for audio `[S]` at the codec's rate; steps in nats."""
    original = np.asarray(spectral.log_mel(audio, codecs[0].mel))
    codes = [codec.encode(audio, rate) for codec in codecs]
    decoded = [codec.decode_mel(grid)[: len(original)] for codec, grid in zip(codecs, codes)]
    original = original[: len(decoded[0])]
    errors = [float(np.abs(log_mel - original).mean()) for log_mel in decoded]
    # Mean difference of neighbouring frames, at the seams and elsewhere.
    steps = np.abs(np.diff(decoded[0], axis=0)).mean(-1)
    period = step * codecs[0].components["tokenizer"].network.attribute("frames_per_column")
    seam = np.arange(len(steps)) % period == period - 1
    return [*errors, float((codes[0] != codes[1]).mean()), float(steps[seam].mean()), float(steps[~seam].mean())]


if __name__ == "__main__":
    main()
