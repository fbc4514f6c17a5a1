"""Random mono crops of 65,536 samples a second from prepared records, without augmentation.

    python benchmarks/loader.py --data DIR            # DIR: made by  bandtok prepare MUSIC --output DIR [--channels 1]

Repeat --data for several folders. With 0 workers two threads of the training process make the batches.
"""

import argparse
import time

import numpy as np
from timing import emit, keep_freed_memory, spread

from bandtok_jax.configs import defaults
from bandtok_jax.data_pipelines import iterator, records

CROP_SAMPLES, BATCH = 65_536, 8
BLOCKS, WARMUP_BLOCKS, BATCHES_PER_BLOCK = 7, 2, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="a prepared folder")
    parser.add_argument("--kept", action="store_true", help="an allocator that keeps freed memory")
    flags = parser.parse_args()
    if flags.kept:
        keep_freed_memory()
    for directory in flags.data:
        manifest = records.read_manifest(directory)
        channels = "1" if manifest["channels"] else "+".join(manifest["channel_counts"])
        for workers in (0, 1, 2):
            rates = _crops_per_second(directory, manifest["sample_rate_hz"], workers)
            emit(
                "loader", "crops/s", **spread(rates), channels=channels, workers=workers, crop=CROP_SAMPLES,
                batch=BATCH, kept=flags.kept,
            )  # fmt: skip


def _crops_per_second(directory: str, sample_rate_hz: int, workers: int) -> np.ndarray:
    """Returns the rate of each block of batches, `[BLOCKS]`, after two of warm-up."""
    data = defaults.get_config().data
    data.update(
        sources=directory,
        clip_samples=CROP_SAMPLES,
        sample_rate_hz=sample_rate_hz,
        gain_db=(0.0, 0.0),
        loudness_lufs=None,
        workers=workers,
    )
    batches = iterator.train_batches(data, split="train", batch_size=BATCH, seed=0)
    rates = []
    for _ in range(WARMUP_BLOCKS + BLOCKS):
        start = time.perf_counter()
        for _ in range(BATCHES_PER_BLOCK):
            audio = next(batches)["audio"]
        rates.append(BATCH * BATCHES_PER_BLOCK / (time.perf_counter() - start))
    batches.close()
    assert audio.shape == (BATCH, CROP_SAMPLES) and audio.dtype == np.float32
    return np.array(rates[WARMUP_BLOCKS:])


if __name__ == "__main__":
    main()
