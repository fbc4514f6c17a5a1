"""How a free-running language model drifts: what its continuations of real pieces are like, second by second.

Every piece is begun with its true codes and continued by the model's own, which it reads as if they were true, so its
errors feed on themselves; it may not end any. The continuations, and the pieces themselves as the codec gives them
back, are compared with all of the real music in what their mels are like, in one slot of time after the other.
"""

import dataclasses

import jax
import numpy as np

from bandtok_jax.audio import spectral
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.evaluation.metrics.frechet import frechet_distance

# Our choices: of the 128 bands so few are left, and so short are the stretches that one vector describes, that some
# hundred pieces fill a slot with many times as many vectors as these have dimensions.
GROUPS, STRETCH_SECONDS, SLOT_SECONDS = 16, 0.5, 2.0
PIECES_AT_ONCE = 32  # affects speed, memory and what is drawn


@dataclasses.dataclass(frozen=True)
class Drift:
    """Frechet distances of what is heard in each slot of time, counted from where the model takes over.

    Attributes:
      seconds: the middle of each slot.
      continued: of the model's continuations to all of the real music.
      reconstructed: of the true continuations, as the codec gives them back, to all of the real music.
      astray: of the model's continuations to all of the true ones as the codec gives them back: what the model alone
        does, whatever the codec loses.
      floor: of the true ones as the codec gives them back to all of these: what `astray` is of a perfect model.
      spread: total variance of these, in units of `astray`: of a codec that blurs more, both are smaller.
    """

    seconds: list[float]
    continued: list[float]
    reconstructed: list[float]
    astray: list[float]
    floor: list[float]
    spread: float


def drift(codec: Codec, pieces: np.ndarray, *, start_seconds: float, seed: int = 0) -> Drift:
    """Continues pieces of real music, and follows how the result departs from them.

    Args:
      codec: with a language model, which draws from its whole distribution, without text.
      pieces: float32 `[N, S]` at the codec's rate; as many as can be had.
      start_seconds: how much of them the model is given, in whole columns; less than it sees at a time.

    Raises:
      ValueError: no language model, pieces too short for one slot, or more given than the model sees.
    """
    codec.require("language_model")
    first = round(start_seconds * codec.columns_per_second)
    slot_columns = round(SLOT_SECONDS * codec.columns_per_second)
    slots = (pieces.shape[1] // codec.samples_per_column - first) // slot_columns
    if slots < 1 or first < 1:
        raise ValueError(
            f"pieces of {pieces.shape[1] / codec.sample_rate_hz:.1f} s, of which {start_seconds} are given: make them "
            f"at least {SLOT_SECONDS} s longer than what is given"
        )
    window = codec.stages["language_model"].config.data.columns
    if first >= window:
        raise ValueError(
            f"start_seconds {start_seconds} are {first} columns, and the model sees {window} at a time: give fewer"
        )
    columns = first + slots * slot_columns
    pieces = pieces[:, : columns * codec.samples_per_column]
    true = np.stack([codec.encode(piece, codec.sample_rate_hz) for piece in pieces])
    written = _continue(codec, true, first, window, seed)
    hears = lambda grids: np.stack([codec.decode_mel(codes) for codes in grids])
    mel = dataclasses.replace(codec.mel, padding="same")
    real = np.stack([np.asarray(spectral.log_mel(piece, mel)) for piece in pieces])
    frames = real.shape[1] / columns

    def by_slot(log_mels):
        edges = [round((first + slot * slot_columns) * frames) for slot in range(slots + 1)]
        return [_embeddings(log_mels[:, start:stop], codec) for start, stop in zip(edges, edges[1:])]

    real, given_back, made = by_slot(real), by_slot(hears(true)), by_slot(hears(written))
    all_real, all_given_back = (_flat(np.concatenate(slot)) for slot in (real, given_back))
    distances = lambda reference, found: [frechet_distance(reference, _flat(one)) for one in found]
    return Drift(
        seconds=[(slot + 0.5) * slot_columns / codec.columns_per_second for slot in range(slots)],
        continued=distances(all_real, made),
        reconstructed=distances(all_real, given_back),
        astray=distances(all_given_back, made),
        floor=distances(all_given_back, given_back),
        spread=float(all_given_back.var(axis=0, ddof=1).sum()),
    )


def _continue(codec: Codec, true: np.ndarray, first: int, window: int, seed: int) -> np.ndarray:
    """Codes `[N, T, F]` of which the first columns are true and the rest the model's."""
    made = []
    for start in range(0, len(true), PIECES_AT_ONCE):
        prefix = true[start : start + PIECES_AT_ONCE, :first]
        prefix = np.concatenate([prefix, np.repeat(prefix[:1], PIECES_AT_ONCE - len(prefix), axis=0)])
        codes, _ = codec.generator.generate(
            columns=true.shape[1],
            window_columns=window,
            key=jax.random.fold_in(jax.random.key(seed), start),
            batch=PIECES_AT_ONCE,
            prefix=prefix,
            begins=False,
        )
        made.append(codes)
    return np.concatenate(made)[: len(true)]


def _embeddings(log_mel: np.ndarray, codec: Codec) -> np.ndarray:
    """Log-mels `[N, T, M]` to vectors `[N, stretches, 2 * GROUPS]`: mean and deviation of groups of bands."""
    seconds = log_mel.shape[1] * codec.mel.hop_samples / codec.sample_rate_hz
    grouped = np.stack([group.mean(-1) for group in np.array_split(log_mel, GROUPS, axis=-1)], axis=-1)
    parts = np.array_split(grouped, max(1, round(seconds / STRETCH_SECONDS)), axis=1)
    return np.stack([np.concatenate([part.mean(1), part.std(1)], axis=-1) for part in parts], axis=1)


def _flat(embeddings: np.ndarray) -> np.ndarray:
    """`[N, stretches, E]` to `[N * stretches, E]`."""
    return embeddings.reshape(-1, embeddings.shape[-1])
