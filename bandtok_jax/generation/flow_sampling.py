"""Sampling from a flow: integration of a velocity from noise to data, as pure functions of the velocity.

Letters: B batch, T frames, M bins, C channels.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from bandtok_jax.layers.flow_path import PATHS, FlowPath

# (x [B, T, M, C], time [B], inputs with a leading axis B, drop bool [B]) -> [B, T, M, C]; `drop` leaves the condition
# of an example out.
Velocity = Callable[[jax.Array, jax.Array, Any, jax.Array], jax.Array]
METHODS = ("euler", "midpoint")


def frame_noise(key: jax.Array, first_frame: jax.Array | int, frames: int, shape: tuple[int, ...]) -> jax.Array:
    """Returns normal noise `[frames, *shape]` that depends on the absolute number of each frame alone.

    So the noise of a file does not depend on the chunks in which it is decoded.

    Args:
      first_frame: absolute number of the first frame; it may be negative, before the beginning of a file.
    """
    numbers = (jnp.asarray(first_frame) + jnp.arange(frames)).astype(jnp.uint32)
    return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), shape))(numbers)


def sample(
    velocity: Velocity,
    noise: jax.Array,
    inputs: Any,
    *,
    steps: int = 50,
    method: str = "euler",
    guidance: float = 1.0,
    context: jax.Array | None = None,
    is_context: jax.Array | None = None,
    path: FlowPath = PATHS["flow"],
) -> jax.Array:
    """Integrates a velocity from noise at time 0 to a sample at time 1.

    Args:
      velocity: see `Velocity`.
      noise: `[B, T, M, C]`.
      inputs: passed to `velocity`.
      steps: number of equal steps in time (50 in MuCodec's paper).
      method: "euler", one evaluation of the velocity in each step, or "midpoint", two.
      guidance: w of v_0 + w (v_c - v_0), from the velocities with the condition and without (MuCodec's code: 1.5). At 1
        only the first is computed.
      context: `[B, T, M, C]`, the values of frames that are given. They stay on the path from their noise.
      is_context: bool `[B, T]`, the frames that are given.
      path: the path that the network was trained on.

    Returns:
      The sample `[B, T, M, C]`, equal to `context` in the given frames.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: set it to one of {', '.join(METHODS)}")
    if steps < 1:
        raise ValueError(f"steps is {steps}: set it to 1 or more")
    batch, dtype = noise.shape[0], noise.dtype
    guided = functools.partial(_guide, velocity, guidance)

    def hold(x: jax.Array, time: jax.Array) -> jax.Array:
        """Puts the given frames on their path."""
        if context is None or is_context is None:
            return x
        return jnp.where(is_context[:, :, None, None], path.mix(time, noise, context), x)

    def step(number: jax.Array, x: jax.Array) -> jax.Array:
        time = jnp.full(batch, number / steps, dtype)
        x = hold(x, time)
        derivative = guided(x, time, inputs)
        if method == "midpoint":
            middle = time + 0.5 / steps
            derivative = guided(hold(x + derivative * (0.5 / steps), middle), middle, inputs)
        return x + (derivative / steps).astype(dtype)

    x = jax.lax.fori_loop(0, steps, step, noise)
    if context is None or is_context is None:
        return x
    return jnp.where(is_context[:, :, None, None], context, x)


def _guide(velocity: Velocity, guidance: float, x: jax.Array, time: jax.Array, inputs: Any) -> jax.Array:
    """Returns the guided velocity; both branches are one batch of 2 B."""
    batch = x.shape[0]
    if guidance == 1.0:
        return velocity(x, time, inputs, jnp.zeros(batch, bool))
    x, time, inputs = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), (x, time, inputs))
    conditional, unconditional = jnp.split(velocity(x, time, inputs, jnp.arange(2 * batch) >= batch), 2)
    return unconditional + guidance * (conditional - unconditional)
