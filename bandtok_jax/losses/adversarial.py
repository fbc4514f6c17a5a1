"""Adversarial losses and feature matching, over the outputs of any discriminators.

A discriminator module returns `(logits, features)`: one array of logits per discriminator (any shape: a patch
discriminator has logits for every patch), and for each discriminator the list of its inner activations. Losses are
means over the discriminators, so that weights keep their meaning when a scale or a period is added. (DAC sums instead,
descript-audio-codec nn/loss.py: its weights are ours divided by the number of discriminators, or of activations.)
"""

from collections.abc import Sequence
import functools
import operator

import jax
import jax.numpy as jnp

Logits = Sequence[jax.Array]
Features = Sequence[Sequence[jax.Array]]


def discriminator_loss(real_logits: Logits, fake_logits: Logits, kind: str = "hinge") -> jax.Array:
    """Returns the discriminator's loss: real towards +1, fake towards -1 (hinge) or 0 (least squares).

    Args:
      real_logits, fake_logits: one array of any shape per discriminator.
      kind: "hinge" (Lim and Ye, 2017) or "least_squares" (Mao et al., 2017).
    """
    check_kind(kind)
    pairs = list(zip(real_logits, fake_logits, strict=True))
    if kind == "hinge":
        terms = [_mean(jax.nn.relu(1 - real)) + _mean(jax.nn.relu(1 + fake)) for real, fake in pairs]
    else:
        terms = [_mean((1 - real) ** 2) + _mean(fake**2) for real, fake in pairs]
    return _average(terms)


def generator_loss(fake_logits: Logits, kind: str = "hinge") -> jax.Array:
    """Returns the generator's adversarial loss: `-D` (hinge) or `(1 - D)^2` (least squares)."""
    check_kind(kind)
    if kind == "hinge":
        terms = [-_mean(fake) for fake in fake_logits]
    else:
        terms = [_mean((1 - fake) ** 2) for fake in fake_logits]
    return _average(terms)


def feature_matching(real_features: Features, fake_features: Features, average: str = "discriminators") -> jax.Array:
    """Returns the mean absolute difference of inner activations.

    The real side is a constant: the gradient moves the fake audio only (Larsen et al., 2016; Kumar et al., 2019).

    Args:
      real_features, fake_features: for each discriminator, its activations, of any shape.
      average: "discriminators" averages over the activations of each discriminator, then over the discriminators;
        "maps" averages over all activations alike, so that a discriminator counts by their number, as in DAC's sum.
    """
    check_feature_average(average)
    terms = [
        [_mean(jnp.abs(jax.lax.stop_gradient(real) - fake)) for real, fake in zip(reals, fakes, strict=True)]
        for reals, fakes in zip(real_features, fake_features, strict=True)
    ]
    if average == "discriminators":
        terms = [[_average(maps)] for maps in terms]
    return _sum([_sum(maps) for maps in terms]) / sum(map(len, terms))


def check_kind(kind: str) -> None:
    """Raises a ValueError for an unknown kind of adversarial loss."""
    if kind not in ("hinge", "least_squares"):
        raise ValueError(f'loss.adversarial_kind is "{kind}": set it to "hinge" or "least_squares"')


def check_feature_average(average: str) -> None:
    """Raises a ValueError for an unknown average of `feature_matching`."""
    if average not in ("discriminators", "maps"):
        raise ValueError(f'loss.feature_average is "{average}": set it to "discriminators" or "maps"')


def _sum(terms: Sequence[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, terms)


def _average(terms: Sequence[jax.Array]) -> jax.Array:
    return _sum(terms) / len(terms)


def _mean(values: jax.Array) -> jax.Array:
    """Returns the mean in at least float32: a bfloat16 sum over thousands of patches loses small differences."""
    return jnp.mean(values, dtype=jnp.promote_types(values.dtype, jnp.float32))
