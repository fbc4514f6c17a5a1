"""Compiled programs of autoregressive decoding: text encoder, prefill of the KV cache, and a loop over steps."""

from collections.abc import Mapping
import functools

import jax
import jax.numpy as jnp

from bandtok_jax.generation.token_sampling import sample
from bandtok_jax.layers.network import Network, Tree
from bandtok_jax.models.language_model import LanguageModel


class DecodingNetwork(Network):
    """The network, and the settings that it was made with."""

    def __init__(self, settings: Mapping):
        self.settings = settings
        super().__init__(lambda rngs: LanguageModel(**settings, rngs=rngs))


@functools.cache
def decoding_network(settings: tuple) -> DecodingNetwork:
    """Returns one network for equal settings, so that a second generator finds the compiled programs of the first."""
    return DecodingNetwork(dict(settings))


@functools.partial(jax.jit, static_argnames=("network", "span", "top_k", "nucleus", "guided"), donate_argnums=1)
def decode_steps(
    parameters: Tree,
    cache: Tree,
    previous: jax.Array,
    place: jax.Array,
    offset: jax.Array,
    count: jax.Array,
    lengths: jax.Array,
    known: jax.Array | None,
    text: Tree,
    key: jax.Array,
    numbers: dict[str, jax.Array],
    *,
    network: DecodingNetwork,
    span: int,
    top_k: int | None,
    nucleus: bool,
    guided: bool,
    cache_offset: jax.Array | int = 0,
) -> tuple[jax.Array, jax.Array, Tree]:
    """Generates `count` steps of the layout after `previous [B, F]`; without delays a step is a column.

    Args:
      place, offset: the number of the first step in the window, and of the window's beginning in the track.
      lengths: `[B]`, columns of each track; those of a track that has not ended are the requested ones.
      known: `[B, S, F]`, the tokens of the steps from the first one on that are not drawn, and -1; or None.
      text: the result of `read_text`.
      cache_offset: see `LanguageModel.decode_step`.

    Returns:
      The tokens `[B, S, F]`, of which the first `count` steps are valid up to the end of each track, the lengths, of
      which those of tracks that ended are new, and the cache.
    """
    settings, layout = network.settings, network.attribute("layout")
    end, delays, batch = settings["codebook_size"], jnp.array(layout.delays), len(previous)
    lag = max(layout.delays)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))

    def more(state: tuple) -> jax.Array:
        number, (_, lengths, _, _) = state
        return (number < count) & (offset + place + number < lengths + lag).any()

    def step(state: tuple) -> tuple:
        number, (previous, lengths, tokens, cache) = state
        now = place + number

        def draw(logits: jax.Array, rows: jax.Array) -> jax.Array:
            logits = logits[..., : end + 1]
            if guided:
                with_text, without = jnp.split(logits, 2)
                logits = without + numbers["guidance"] * (with_text - without)
            # A track may end between two columns, after the first.
            may_end = numbers["may_end"] & (rows == 0) & (now + offset > 0)
            logits = jnp.where((jnp.arange(end + 1) == end) & ~may_end[:, None], -jnp.inf, logits)
            places = (now + offset) * len(layout.delays) + rows
            step_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, places)
            drawn = sample(
                logits.reshape(-1, end + 1), step_keys.reshape(-1),
                temperature=numbers["temperature"], top_p=numbers["top_p"], top_k=top_k, nucleus=nucleus,
            ).reshape(batch, -1)  # fmt: skip
            if known is not None:
                fixed = jax.lax.dynamic_index_in_dim(known, number, axis=1, keepdims=False)[:, rows]
                drawn = jnp.where(fixed >= 0, fixed, drawn)
            return twice(drawn, guided)

        previous, cache = network.apply(
            parameters, {}, twice(previous, guided), now, cache, draw, text, cache_offset=cache_offset,
            method="decode_step",
        )  # fmt: skip
        previous = previous[:batch]
        lengths = jnp.where((previous[:, 0] == end) & (now + offset < lengths), now + offset, lengths)
        if lag:
            # The rows of a track end one after the other.
            previous = jnp.where(now + offset - delays < lengths[:, None], previous, end)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, previous[:, None], number, axis=1)
        return number + 1, (previous, lengths, tokens, cache)

    near = jax.tree.map(lambda x: x[:, :span], cache)
    tokens = jnp.zeros((batch, max(1, span // layout.positions_per_step), len(layout.delays)), jnp.int32)
    state = (previous, lengths, tokens, near)
    _, (_, lengths, tokens, near) = jax.lax.while_loop(more, step, (jnp.int32(0), state))
    cache = jax.tree.map(lambda whole, part: jax.lax.dynamic_update_slice(whole, part, (0,) * whole.ndim), cache, near)
    return tokens, lengths, cache


@functools.partial(jax.jit, static_argnames=("network", "span"), donate_argnums=2)
def prefill_cache(
    network: DecodingNetwork,
    parameters: Tree,
    cache: Tree,
    first: jax.Array,
    steps: jax.Array,
    text: Tree,
    *,
    span: int,
) -> Tree:
    """Returns the cache with the keys and values of first tokens `[B]` and steps `[B, S, F]` at its beginning."""
    return network.apply(parameters, {}, first, steps, cache, text, length=span, method="prefill")


@functools.partial(jax.jit, static_argnames=("network", "guided"))
def read_text(network: DecodingNetwork, parameters: Tree, text: Tree, guided: bool) -> Tree:
    """Returns the part that depends on the text alone, with a second half of the batch, without it, where `guided`."""
    if text is None:
        return None
    batch = jax.tree.leaves(text)[0].shape[0]
    text = {name: twice(value, guided) for name, value in text.items()}
    drop = jnp.arange(2 * batch if guided else batch) >= batch
    context, mask = network.apply(parameters, {}, **text, drop=drop, method="encode_text")
    return network.apply(parameters, {}, context, mask, method="decoding_context")


def twice(x: jax.Array, guided: bool) -> jax.Array:
    """Returns the batch, and again for the half without the text where `guided`."""
    return jnp.concatenate([x, x]) if guided else x
