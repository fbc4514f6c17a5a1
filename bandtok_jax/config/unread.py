"""Keys that nothing reads beside certain values of others."""

from collections.abc import Iterable, Iterator
import fnmatch
from typing import Any

from ml_collections import ConfigDict

from bandtok_jax.config.schema import flatten
from bandtok_jax.runtime.notes import warn

_OF_DISCRIMINATOR = ("discriminator.*", "discriminator_optimizer.*", "loss.adversarial*", "loss.discriminator_warmup")
_OF_DISCRIMINATOR += ("loss.feature_matching", "loss.feature_average")
_OF_AUDIO = ("clip_samples", "gain_db", "phase_rotation", "loudness_lufs", "balance_*", "lyrics_*")
# Keys that nothing reads where all of these other keys have one of these values.
_UNREAD: tuple[tuple[tuple[str, ...], dict[str, tuple[Any, ...]]], ...] = (
    (("model.text_layers", "model.text_ngrams"), {"model.text": ("embedding", "none")}),
    (("model.text_dim", "model.text_pooled", "loss.cfg_dropout"), {"model.text": ("none",)}),
    (("model.row_dim",), {"model.layout": ("flat",)}),
    (("model.row_layers", "model.row_states"), {"model.layout": ("flat", "delay")}),
    (("model.latent_dim",), {"model.residual_levels": (0,)}),
    (("model.stale_steps",), {"model.learning_rule": ("ema",)}),
    (("codebook.ema_decay", "codebook.restart_fraction"), {"model.learning_rule": ("gradient",)}),
    (("model.constant_q_bins",), {"loss.constant_q": (0,)}),
    (("model.predictor_dim", "model.joiner_dim"), {"loss.transducer": (0,)}),
    (("lora.alpha",), {"lora.rank": (0,)}),
    (("loss.infill_cross_entropy",), {"loss.infill_fraction": (0,)}),
    (("loss.mel_scales",), {"loss.mel": (0,)}),
    (("loss.stft_windows",), {"loss.stft": (0,)}),
    (("loss.perceptual_features",), {"loss.perceptual": (0,), "loss.gram": (0,)}),
    (("data.lyrics_model",), {"data.lyrics_tokens": (0,)}),
    (_OF_DISCRIMINATOR, {"discriminator.kind": ("none",)}),
    (("optimizer.final_lr_fraction",), {"optimizer.schedule": ("constant",)}),
    (("discriminator_optimizer.final_lr_fraction",), {"discriminator_optimizer.schedule": ("constant",)}),
    (tuple(f"data.{name}" for name in _OF_AUDIO), {"task": ("language_model",)}),
)


def unread(config: ConfigDict, keys: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields those of the dotted keys that nothing reads, and the values of the other keys that are the reason."""
    flat = flatten(config)
    for key in keys:
        for patterns, others in _UNREAD:
            if key in others or not any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns):
                continue
            if all(name in flat and flat[name] in values for name, values in others.items()):
                yield key, {name: flat[name] for name in others}
                break


def warn_unread(config: ConfigDict, keys: Iterable[str]) -> None:
    """Warns of keys that a user has set and that nothing reads, one line for each."""
    for key, others in unread(config, keys):
        reason = " and ".join(f"config.{name} is {value!r}" for name, value in others.items())
        warn(f"config.{key} is set, and nothing reads it, because {reason}: leave it out, or change that")
