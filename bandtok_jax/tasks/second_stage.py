"""The losses of MuEncoder's second stage: reconstruction of mel and constant-Q transform, recognition of lyrics.

Reconstruction is measured in masked columns, as in MuQ's code. Lyrics are recognised from the masked audio, too.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bandtok_jax.audio.constant_q import constant_q
from bandtok_jax.data_pipelines import lyrics, records, sources
from bandtok_jax.losses import ctc
from bandtok_jax.losses.transducer import transducer_loss
from bandtok_jax.models.muencoder_heads import HEADS
from bandtok_jax.runtime import storage
from bandtok_jax.runtime.notes import warn

LYRICS_LOSSES = ("ctc", "transducer")


def resolve_config(config: ConfigDict, read_remote: bool = True) -> ConfigDict:
    """Returns the configuration with the heads of the losses in use, and the vocabulary of the lyrics.

    Where no loss reads lyrics, or where the data has none, `data.lyrics_tokens` is 0.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        asked = any(config.loss.get(name) for name in LYRICS_LOSSES)
        if not asked or not _have_lyrics(config.data.sources, read_remote):
            config.data.lyrics_tokens = 0
        if config.data.lyrics_tokens:
            config.model.vocabulary_size = lyrics.vocabulary_size(config.data.lyrics_model)
        available = [name for name in HEADS if name not in LYRICS_LOSSES or config.data.lyrics_tokens]
        config.model.heads = tuple(name for name in available if config.loss.get(name))
    return config


def _have_lyrics(names: str, read_remote: bool) -> bool:
    """Returns whether some source has lyrics; True for one that cannot be read here."""

    def has_lyrics(name: str) -> bool:
        if name == sources.SYNTHETIC:
            return False
        if storage.is_remote(name) and not read_remote or not storage.is_folder(name):
            return True  # the training reports a missing folder
        return "True" in records.read_manifest(name).get("lyrics", {})

    return any(has_lyrics(name) for name, _ in sources.parse_weights(names))


def warn_without_lyrics(config: ConfigDict) -> None:
    """Warns where losses of lyrics have a weight and no data."""
    asked = [name for name in LYRICS_LOSSES if config.loss.get(name)]
    if asked and not config.data.lyrics_tokens:
        warn(
            f"{config.data.sources} has no lyrics, so the loss {' and '.join(asked)} is off: lyrics come from "
            "bandtok prepare --tracks",
        )


def lyrics_weights(tokens: jax.Array, micro_tokens: jax.Array, columns: int, steps: int) -> jax.Array:
    """Returns the weight of each example in the losses of lyrics, `[B]`; 0 where it has none, or too many tokens.

    The mean over the micro-batches of a weighted sum is the loss of a token, in nats, over the whole batch.

    Args:
      tokens, micro_tokens: lyrics of the whole batch and of the micro-batch, `[B, L]`.
      columns: T.
      steps: number of micro-batches.
    """
    counts = jnp.where(ctc.fits(tokens, columns), (tokens != ctc.BLANK).sum(1), 0)
    return ctc.fits(micro_tokens, columns) * steps / jnp.maximum(counts.sum(), 1)


def losses(prediction: Any, sample_rate_hz: int, hop_samples: int) -> dict[str, Callable[[], jax.Array]]:
    """Returns functions that compute the losses, by their names in `config.loss`, of a `Prediction`.

    Args:
      sample_rate_hz, hop_samples: rate of the audio and samples of a column.
    """
    predict = functools.partial(prediction.apply, method="predict")
    state, tokens = prediction.state, prediction.batch.get("lyrics")

    def masked_mean(predicted: jax.Array, target: jax.Array) -> jax.Array:
        return (prediction.column_weights * jnp.square(predicted - target).mean(-1)).sum()

    def mel() -> jax.Array:
        return masked_mean(predict("mel", state), prediction.apply(prediction.log_mel, method="stack"))

    def constant_q_magnitude() -> jax.Array:
        head = predict("constant_q", state)
        target = constant_q(prediction.batch["audio"], sample_rate_hz, hop_samples, head.shape[-1])
        return masked_mean(head, target[:, : state.shape[1]])

    def ctc_of_lyrics() -> jax.Array:
        return _over_examples(prediction.lyrics_weights, ctc.ctc_loss(predict("ctc", state), tokens))

    def transducer_of_lyrics() -> jax.Array:
        columns = jnp.full(len(state), state.shape[1])
        blank, label = predict("transducer", state, tokens)
        loss = transducer_loss(blank, label, columns, (tokens != ctc.BLANK).sum(1))
        return _over_examples(prediction.lyrics_weights, loss)

    reconstruction = {"mel": mel, "constant_q": constant_q_magnitude}
    return (
        reconstruction
        if tokens is None
        else reconstruction | {"ctc": ctc_of_lyrics, "transducer": transducer_of_lyrics}
    )


def error_counts(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the errors of greedy CTC decoding and the number of tokens, both summed over examples with lyrics."""
    present = ctc.fits(tokens, logits.shape[1])
    errors, counts = ctc.greedy_errors(logits, tokens), (tokens != ctc.BLANK).sum(1)
    return jnp.where(present, errors, 0).sum(), jnp.where(present, counts, 0).sum()


def _over_examples(weights: jax.Array, losses: jax.Array) -> jax.Array:
    # Not a product alone: a loss of lyrics that have no alignment may overflow.
    return jnp.where(weights > 0, weights * losses, 0).sum()
