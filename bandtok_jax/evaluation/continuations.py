"""How a free-running language model drifts: what its continuations of real pieces are like, second by second.

Every piece is begun with its true codes and continued by the model's own, which it reads as if they were true, so its
errors feed on themselves. The continuations, and the pieces themselves as the codec gives them back, are compared with
all of the real music in what their mels are like, in one slot of time after the other.
"""

import dataclasses

import jax
import numpy as np

from bandtok_jax.audio import spectral
from bandtok_jax.codec import Codec
from bandtok_jax.evaluation.frechet import frechet_distance

# Our choices: of the 128 bands so few are left, and so short are the stretches that one vector describes, that some
# hundred pieces fill a slot with many times as many vectors as these have dimensions.
GROUPS, STRETCH_SECONDS, SLOT_SECONDS = 16, 0.5, 2.0
PIECES_AT_ONCE = 32  # affects speed and memory alone


@dataclasses.dataclass(frozen=True)
class Drift:
    """Frechet distances to the real pieces, one for each slot of time, counted from where the model takes over.

    Attributes:
      seconds: the middle of each slot.
      continued: of the model's continuations.
      reconstructed: of the true continuations, as the codec gives them back: what no model can be better than.
      left: share of the pieces that the model has not ended before the slot does; those that it has ended do not count.
    """

    seconds: list[float]
    continued: list[float]
    reconstructed: list[float]
    left: list[float]


def drift(codec: Codec, pieces: np.ndarray, *, start_seconds: float, seed: int = 0) -> Drift:
    """Continues pieces of real music, and follows how the result departs from them.

    Args:
      codec: with a language model, which draws from its whole distribution, without text.
      pieces: float32 `[N, S]` at the codec's rate; as many as can be had.
      start_seconds: how much of them the model is given, in whole columns.

    Raises:
      ValueError: no language model, or pieces too short for one slot.
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
    columns = first + slots * slot_columns
    pieces = pieces[:, : columns * codec.samples_per_column]
    true = np.stack([codec.encode(piece, codec.sample_rate_hz) for piece in pieces])
    written, lengths = _continue(codec, true, first, seed)
    hears = lambda grids: np.stack([_heard(codec, codes) for codes in grids])
    real_mels = np.stack([_mel(codec, piece) for piece in pieces])
    mels = {"real": real_mels, "true": hears(true), "written": hears(written)}
    frames = mels["real"].shape[1] / columns
    cut = lambda slot: slice(*(round((first + (slot + i) * slot_columns) * frames) for i in (0, 1)))
    real = np.concatenate([_embeddings(mels["real"][:, cut(slot)], codec) for slot in range(slots)])
    there = [lengths >= first + (slot + 1) * slot_columns for slot in range(slots)]
    of = lambda name, slot, chosen: frechet_distance(real, _embeddings(mels[name][chosen][:, cut(slot)], codec))
    return Drift(
        seconds=[(slot + 0.5) * slot_columns / codec.columns_per_second for slot in range(slots)],
        continued=[of("written", slot, there[slot]) for slot in range(slots)],
        reconstructed=[of("true", slot, slice(None)) for slot in range(slots)],
        left=[float(chosen.mean()) for chosen in there],
    )


def _continue(codec: Codec, true: np.ndarray, first: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes `[N, T, F]` of which the first columns are true and the rest the model's, and where it ended them `[N]`."""
    made = []
    for start in range(0, len(true), PIECES_AT_ONCE):
        prefix = true[start : start + PIECES_AT_ONCE, :first]
        prefix = np.concatenate([prefix, np.repeat(prefix[:1], PIECES_AT_ONCE - len(prefix), axis=0)])
        codes, lengths = codec.generator.generate(
            columns=true.shape[1],
            window_columns=codec.stages["language_model"].config.data.columns,
            key=jax.random.fold_in(jax.random.key(seed), start),
            batch=PIECES_AT_ONCE,
            prefix=prefix,
        )
        made.append((codes, lengths))
    codes, lengths = (np.concatenate(parts)[: len(true)] for parts in zip(*made))
    return codes, lengths


def _heard(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """What codes `[T, F]` stand for, as log-mel: what a mel tokenizer decodes to, or the mel of the decoded sound."""
    return codec.decode_mel(codes) if hasattr(codec, "decode_mel") else _mel(codec, codec.decode(codes))


def _mel(codec: Codec, audio: np.ndarray) -> np.ndarray:
    return np.asarray(spectral.log_mel(audio, dataclasses.replace(codec.mel, padding="same")))


def _embeddings(log_mel: np.ndarray, codec: Codec) -> np.ndarray:
    """Log-mels `[N, T, M]` to vectors `[N * stretches, 2 * GROUPS]`: mean and deviation of groups of bands."""
    seconds = log_mel.shape[1] * codec.mel.hop_samples / codec.sample_rate_hz
    grouped = np.stack([group.mean(-1) for group in np.array_split(log_mel, GROUPS, axis=-1)], axis=-1)
    parts = np.array_split(grouped, max(1, round(seconds / STRETCH_SECONDS)), axis=1)
    return np.concatenate([np.concatenate([part.mean(1), part.std(1)], axis=-1) for part in parts])
