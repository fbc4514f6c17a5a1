"""Drift of a free-running language model: the quality of its continuations, second by second.

Each segment begins with its true codes and continues with the model's own. The model reads these as if they were true,
so its errors accumulate. The continuations, and the true continuations as reconstructed by the codec, are compared with
all of the real music by the statistics of their mels, in one time bin after the other.
"""

from collections.abc import Sequence
import dataclasses

import jax
import numpy as np

from bandtok_jax.audio import spectral
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.evaluation.metrics.frechet import frechet_distance

# Our choices: few groups of bands and short excerpts, so that a hundred segments fill a time bin with many times as
# many embeddings as these have dimensions.
BAND_GROUPS, EXCERPT_SECONDS, BIN_SECONDS = 16, 0.5, 2.0
BATCH_SIZE = 32  # affects speed, memory and the random numbers


@dataclasses.dataclass(frozen=True)
class Drift:
    """Fréchet distances in each time bin, counted from where the model takes over.

    Attributes:
      seconds: centre of each bin.
      continuation_fad: model continuations to all real music.
      reconstruction_fad: true continuations, as the codec reconstructs them, to all real music.
      model_drift_fad: model continuations to all reconstructed true ones. This excludes the losses of the codec.
      reference_fad: reconstructed true continuations of the bin to those of all bins; `model_drift_fad` of a perfect
        model.
      variance: total variance of the reconstructed true continuations. Both distances before are smaller for a codec
        that blurs more, so they are compared in units of it.
    """

    seconds: list[float]
    continuation_fad: list[float]
    reconstruction_fad: list[float]
    model_drift_fad: list[float]
    reference_fad: list[float]
    variance: float


def drift(codec: Codec, segments: np.ndarray, *, start_seconds: float, seed: int = 0) -> Drift:
    """Continues segments of real music and measures how the result departs from them.

    Args:
      codec: with a language model, which samples from its whole distribution, without text.
      segments: float32 `[N, S]` at the codec's rate; the more the better.
      start_seconds: length of the prefix of true codes, in whole columns; shorter than the model's window.
      seed: seed of the sampling.

    Raises:
      ValueError: no language model, segments too short for one bin, or a prefix longer than the model's window.
    """
    codec.require("language_model")
    prefix_columns = round(start_seconds * codec.columns_per_second)
    bin_columns = round(BIN_SECONDS * codec.columns_per_second)
    bins = (segments.shape[1] // codec.samples_per_column - prefix_columns) // bin_columns
    if bins < 1 or prefix_columns < 1:
        raise ValueError(
            f"segments of {segments.shape[1] / codec.sample_rate_hz:.1f} s with a prefix of {start_seconds} s: make "
            f"them at least {BIN_SECONDS} s longer than the prefix"
        )
    window_columns = codec.components["language_model"].config.data.columns
    if prefix_columns >= window_columns:
        raise ValueError(
            f"start_seconds {start_seconds} are {prefix_columns} columns, and the model's window has {window_columns}: "
            "shorten the prefix"
        )
    columns = prefix_columns + bins * bin_columns
    segments = segments[:, : columns * codec.samples_per_column]
    true_codes = np.stack([codec.encode(segment, codec.sample_rate_hz) for segment in segments])
    model_codes = _continue(codec, true_codes, prefix_columns, window_columns, seed)

    # Log-mels [N, frames, M] of real music, and of both grids as the codec decodes them.
    definition = dataclasses.replace(codec.mel, padding="same")
    real_mel = np.stack([np.asarray(spectral.log_mel(segment, definition)) for segment in segments])
    true_mel, model_mel = (np.stack([codec.decode_mel(c) for c in codes]) for codes in (true_codes, model_codes))
    frames_per_column = real_mel.shape[1] / columns
    edges = [round((prefix_columns + i * bin_columns) * frames_per_column) for i in range(bins + 1)]

    def by_bin(log_mels: np.ndarray) -> list[np.ndarray]:
        """Returns the embeddings `[N, excerpts, E]` of each bin."""
        return [_embeddings(log_mels[:, start:stop], codec) for start, stop in zip(edges, edges[1:])]

    real, true, model = by_bin(real_mel), by_bin(true_mel), by_bin(model_mel)
    all_real, all_true = (_flat(np.concatenate(embeddings)) for embeddings in (real, true))
    return Drift(
        seconds=[(i + 0.5) * bin_columns / codec.columns_per_second for i in range(bins)],
        continuation_fad=_distances(all_real, model),
        reconstruction_fad=_distances(all_real, true),
        model_drift_fad=_distances(all_true, model),
        reference_fad=_distances(all_true, true),
        variance=float(all_true.var(axis=0, ddof=1).sum()),
    )


def _continue(codec: Codec, true_codes: np.ndarray, prefix_columns: int, window_columns: int, seed: int) -> np.ndarray:
    """Returns codes `[N, T, F]` that begin with a prefix of the true ones and continue with the model's."""
    batches = []
    for start in range(0, len(true_codes), BATCH_SIZE):
        prefix = true_codes[start : start + BATCH_SIZE, :prefix_columns]
        prefix = np.concatenate([prefix, np.repeat(prefix[:1], BATCH_SIZE - len(prefix), axis=0)])
        codes, _ = codec.language_model.generator.generate(
            columns=true_codes.shape[1],
            window_columns=window_columns,
            key=jax.random.fold_in(jax.random.key(seed), start),
            batch=BATCH_SIZE,
            prefix=prefix,
            begins=False,
        )
        batches.append(codes)
    return np.concatenate(batches)[: len(true_codes)]


def _embeddings(log_mel: np.ndarray, codec: Codec) -> np.ndarray:
    """Embeds log-mels `[N, T, M]` as `[N, excerpts, 2 * BAND_GROUPS]`: mean and deviation of groups of bands."""
    seconds = log_mel.shape[1] * codec.mel.hop_samples / codec.sample_rate_hz
    grouped = np.stack([group.mean(-1) for group in np.array_split(log_mel, BAND_GROUPS, axis=-1)], axis=-1)
    excerpts = np.array_split(grouped, max(1, round(seconds / EXCERPT_SECONDS)), axis=1)
    return np.stack([np.concatenate([x.mean(1), x.std(1)], axis=-1) for x in excerpts], axis=1)


def _distances(references: np.ndarray, embeddings_of_bins: Sequence[np.ndarray]) -> list[float]:
    return [frechet_distance(references, _flat(embeddings)) for embeddings in embeddings_of_bins]


def _flat(embeddings: np.ndarray) -> np.ndarray:
    """Reshapes `[N, excerpts, E]` to `[N * excerpts, E]`."""
    return embeddings.reshape(-1, embeddings.shape[-1])
