"""Adversarial losses and feature matching, over the outputs of any discriminators.

A discriminator module returns `(logits, features)`: one array of logits per discriminator (any shape: a patch
discriminator has logits for every patch), and for each discriminator the list of its inner activations. Losses are
means over the discriminators, so that weights keep their meaning when a scale or a period is added, unless each
discriminator has a weight in a sum. (DAC sums without weights, descript-audio-codec nn/loss.py: its weights of losses
are ours divided by the number of discriminators, or of activations.)
"""

from collections.abc import Sequence
import functools
import operator

import jax
import jax.numpy as jnp

Logits = Sequence[jax.Array]
Features = Sequence[Sequence[jax.Array]]

KINDS = ("hinge", "clipped_hinge", "least_squares")
FEATURE_AVERAGES = ("discriminators", "maps", "sum")


def discriminator_loss(
    real_logits: Logits, fake_logits: Logits, kind: str = "hinge", weights: Sequence[float] | None = None
) -> jax.Array:
    """Returns the discriminator's loss: real towards +1, fake towards -1 (hinge) or 0 (least squares).

    Args:
      real_logits, fake_logits: one array of any shape per discriminator.
      kind: "hinge" (Lim and Ye, 2017), "clipped_hinge", which differs for the generator only, or "least_squares" (Mao
        et al., 2017).
      weights: weight of each discriminator in the sum; None for the mean.
    """
    check_kind(kind)
    pairs = list(zip(real_logits, fake_logits, strict=True))
    if kind == "least_squares":
        terms = [_mean((1 - real) ** 2) + _mean(fake**2) for real, fake in pairs]
    else:
        terms = [_mean(jax.nn.relu(1 - real)) + _mean(jax.nn.relu(1 + fake)) for real, fake in pairs]
    return _average(terms, weights)


def generator_loss(fake_logits: Logits, kind: str = "hinge", weights: Sequence[float] | None = None) -> jax.Array:
    """Returns the generator's adversarial loss.

    It is `-D` (hinge), `max(0, 1 - D)` (clipped hinge; SoundStream, arXiv 2107.03312) or `(1 - D)^2` (least
    squares). The arguments are those of `discriminator_loss`.
    """
    check_kind(kind)
    if kind == "hinge":
        terms = [-_mean(fake) for fake in fake_logits]
    elif kind == "clipped_hinge":
        terms = [_mean(jax.nn.relu(1 - fake)) for fake in fake_logits]
    else:
        terms = [_mean((1 - fake) ** 2) for fake in fake_logits]
    return _average(terms, weights)


def feature_matching(
    real_features: Features,
    fake_features: Features,
    average: str = "discriminators",
    weights: Sequence[float] | None = None,
) -> jax.Array:
    """Returns the mean absolute difference of inner activations.

    The real side is a constant: the gradient moves the fake audio only (Larsen et al., 2016; Kumar et al., 2019).

    Args:
      real_features, fake_features: for each discriminator, its activations, of any shape.
      average: "discriminators" averages over the activations of each discriminator, then over the discriminators.
        "sum" adds up those of each discriminator, then averages over the discriminators. "maps" averages over all
        activations alike, so that a discriminator counts by their number, as in DAC's sum.
      weights: weight of each discriminator in a sum; None for the mean over them.
    """
    check_feature_average(average, weights)
    terms = [
        [_mean(jnp.abs(jax.lax.stop_gradient(real) - fake)) for real, fake in zip(reals, fakes, strict=True)]
        for reals, fakes in zip(real_features, fake_features, strict=True)
    ]
    if average == "maps":
        return _average([term for maps in terms for term in maps])
    combine = _sum if average == "sum" else _average
    return _average([combine(maps) for maps in terms], weights)


def check_kind(kind: str) -> None:
    """Raises a ValueError for an unknown kind of adversarial loss."""
    if kind not in KINDS:
        raise ValueError(f'loss.adversarial_kind is "{kind}": set it to one of {", ".join(KINDS)}')


def check_feature_average(average: str, weights: Sequence[float] | None = None) -> None:
    """Raises a ValueError for an unknown average of `feature_matching`, or one that excludes weights."""
    if average not in FEATURE_AVERAGES:
        raise ValueError(f'loss.feature_average is "{average}": set it to one of {", ".join(FEATURE_AVERAGES)}')
    if average == "maps" and weights is not None:
        raise ValueError(
            'loss.feature_average "maps" lets discriminators count by their activations, and these have weights: '
            'set it to "discriminators" or "sum"'
        )


def _sum(terms: Sequence[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, terms)


def _average(terms: Sequence[jax.Array], weights: Sequence[float] | None = None) -> jax.Array:
    """Returns the mean of the terms, or their sum with weights."""
    if weights is None:
        return _sum(terms) / len(terms)
    return _sum([weight * term for weight, term in zip(weights, terms, strict=True)])


def _mean(values: jax.Array) -> jax.Array:
    """Returns the mean in at least float32: a bfloat16 sum over thousands of patches loses small differences."""
    return jnp.mean(values, dtype=jnp.promote_types(values.dtype, jnp.float32))
