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
BLOCKS, BATCHES_A_BLOCK = 7, 100


def crops_per_second(directory, workers):
    """`[blocks]`, each the rate of one stretch of the stream, after two of warm-up."""
    data = defaults.get_config().data
    data.update(
        sources=directory,
        clip_samples=CROP_SAMPLES,
        sample_rate_hz=records.read_manifest(directory)["sample_rate_hz"],
        gain_db=(0.0, 0.0),
        loudness_lufs=None,
        workers=workers,
    )
    batches = iterator.train_batches(data, split="train", batch_size=BATCH, seed=0)
    rates = []
    for block in range(BLOCKS + 2):
        start = time.perf_counter()
        for _ in range(BATCHES_A_BLOCK):
            audio = next(batches)["audio"]
        rates.append(BATCH * BATCHES_A_BLOCK / (time.perf_counter() - start))
    batches.close()
    assert audio.shape == (BATCH, CROP_SAMPLES) and audio.dtype == np.float32
    return np.array(rates[2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="a prepared folder")
    parser.add_argument("--kept", action="store_true", help="an allocator that keeps freed memory")
    arguments = parser.parse_args()
    if arguments.kept:
        keep_freed_memory()
    for directory in arguments.data:
        channels = (
            "+".join(records.read_manifest(directory)["channel_counts"])
            if not records.read_manifest(directory)["channels"]
            else "1"
        )
        for workers in (0, 1, 2):
            emit(
                "loader",
                "crops/s",
                **spread(crops_per_second(directory, workers)),
                channels=channels,
                workers=workers,
                crop=CROP_SAMPLES,
                batch=BATCH,
                kept=arguments.kept,
            )


if __name__ == "__main__":
    main()
