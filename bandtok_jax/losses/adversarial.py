"""The two players' losses, over the outputs of any discriminators.

A discriminator module returns `(logits, features)`: one array of logits per discriminator (any shape: a patch
discriminator judges every patch), and for each discriminator the list of its inner activations. Everything here is
averaged over the discriminators, so that weights keep their meaning when a scale or a period is added. (DAC sums
instead, descript-audio-codec nn/loss.py: its weights are ours divided by the number of discriminators, or of maps.)
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Logits = Sequence[jax.Array]
Features = Sequence[Sequence[jax.Array]]


def discriminator_loss(real_logits: Logits, fake_logits: Logits, kind: str = "hinge") -> jax.Array:
    """What the discriminator lowers: real towards +1, fake towards -1 (hinge) or 0 (least squares).

    Args:
      real_logits, fake_logits: one array of any shape per discriminator.
      kind: "hinge" (Lim and Ye, 2017) or "least_squares" (Mao et al., 2017).
    """
    if kind == "hinge":
        terms = [
            _mean(jax.nn.relu(1 - real)) + _mean(jax.nn.relu(1 + fake))
            for real, fake in _pairs(real_logits, fake_logits)
        ]
    elif kind == "least_squares":
        terms = [_mean((1 - real) ** 2) + _mean(fake**2) for real, fake in _pairs(real_logits, fake_logits)]
    else:
        raise _unknown(kind)
    return sum(terms) / len(terms)


def generator_loss(fake_logits: Logits, kind: str = "hinge") -> jax.Array:
    """What the generator lowers: `-D` (hinge) or `(1 - D)^2` (least squares), averaged over the discriminators."""
    if kind == "hinge":
        terms = [-_mean(fake) for fake in fake_logits]
    elif kind == "least_squares":
        terms = [_mean((1 - fake) ** 2) for fake in fake_logits]
    else:
        raise _unknown(kind)
    return sum(terms) / len(terms)


def feature_matching(real_features: Features, fake_features: Features, average: str = "discriminators") -> jax.Array:
    """Mean absolute difference of inner activations.

    The real side is a constant: the gradient moves the fake sound only (Larsen et al., 2016; Kumar et al., 2019).

    Args:
      real_features, fake_features: for each discriminator, its maps, of any shape.
      average: "discriminators": over the maps of each discriminator, then over the discriminators; "maps": over all
        maps alike, so that a discriminator counts by its number of maps (DAC's sum over all maps is a multiple of it).
    """
    terms = [
        [_mean(jnp.abs(jax.lax.stop_gradient(real) - fake)) for real, fake in _pairs(reals, fakes)]
        for reals, fakes in _pairs(real_features, fake_features)
    ]
    check_average(average)
    if average == "discriminators":
        terms = [[sum(maps) / len(maps)] for maps in terms]
    return sum(map(sum, terms)) / sum(map(len, terms))


def check_kind(kind: str) -> None:
    """Raises a ValueError unless the losses know that kind."""
    if kind not in ("hinge", "least_squares"):
        raise _unknown(kind)


def check_average(average: str) -> None:
    """Raises a ValueError unless `feature_matching` knows that average."""
    if average not in ("discriminators", "maps"):
        raise ValueError(f'loss.feature_average is "{average}": set it to "discriminators" or "maps"')


def _mean(values: jax.Array) -> jax.Array:
    """The mean in at least float32: a bfloat16 sum over thousands of patches loses the small differences."""
    return jnp.mean(values, dtype=jnp.promote_types(values.dtype, jnp.float32))


def _pairs(real: Sequence, fake: Sequence):
    return zip(real, fake, strict=True)


def _unknown(kind: str) -> ValueError:
    return ValueError(f'loss.adversarial_kind is "{kind}": set it to "hinge" or "least_squares"')
