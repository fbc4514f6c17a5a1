"""Compiled programs of autoregressive decoding: text encoder, prefill of the KV cache, and a loop over columns."""

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
def decode_columns(
    parameters: Tree,
    cache: Tree,
    token: jax.Array,
    place: jax.Array,
    offset: jax.Array,
    count: jax.Array,
    ended: jax.Array,
    text: Tree,
    key: jax.Array,
    numbers: dict[str, jax.Array],
    *,
    network: DecodingNetwork,
    span: int,
    top_k: int | None,
    nucleus: bool,
    guided: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, Tree]:
    """Generates `count` columns after `token [B]`, which is at `place`.

    Returns:
      The tokens `[B, span]`, of which those of the first `count` columns are valid, the last token, the position at
      which each track ended `[B]` or -1, and the cache.
    """
    model = network.settings
    rows, end = model["rows"], model["codebook_size"]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(token.shape[0]))
    context = None if text is None else text["cache"]
    mask = None if text is None else text["mask"]

    def more(state: tuple) -> jax.Array:
        column, (_, stopped, _, _) = state
        return (column < count) & ~(ended | (stopped >= 0)).all()

    # The steps of a column are a loop of its own, whose length the compiler knows: a GPU can then queue all of them
    # before the first is done, where it would wait for the condition of an open loop after each.
    def column(state: tuple) -> tuple:
        column, state = state

        def step_of_column(row: jax.Array, state: tuple) -> tuple:
            return step(column * rows + row, state)

        return column + 1, jax.lax.fori_loop(0, rows, step_of_column, state)

    def step(i: jax.Array, state: tuple) -> tuple:
        token, stopped, tokens, cache = state
        now = place + i
        logits, cache = network.apply(
            parameters, {}, twice(token, guided), now, cache, context, mask, method="decode_step"
        )
        logits = logits[:, : end + 1]
        if guided:
            with_text, without = jnp.split(logits, 2)
            logits = without + numbers["guidance"] * (with_text - without)
        # A track may end between two columns, after the first.
        may_end = numbers["may_end"] & (now % rows == 0) & (now + offset > 0)
        logits = jnp.where((jnp.arange(end + 1) == end) & ~may_end, -jnp.inf, logits)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, now + offset)
        token = sample(
            logits, step_keys, temperature=numbers["temperature"], top_p=numbers["top_p"], top_k=top_k, nucleus=nucleus
        )
        stopped = jnp.where((token == end) & (stopped < 0) & ~ended, i, stopped)
        # Tokens after an end are dropped; they only have to be valid.
        token = jnp.where(token == end, 0, token)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], i, axis=1)
        return token, stopped, tokens, cache

    near = jax.tree.map(lambda x: x[:, :span], cache)
    tokens = jnp.zeros((token.shape[0], span), jnp.int32)
    state = (token, jnp.full(token.shape, -1, jnp.int32), tokens, near)
    _, (token, stopped, tokens, near) = jax.lax.while_loop(more, column, (jnp.int32(0), state))
    cache = jax.tree.map(lambda whole, part: jax.lax.dynamic_update_slice(whole, part, (0,) * whole.ndim), cache, near)
    return tokens, token, stopped, cache


@functools.partial(jax.jit, static_argnames="network", donate_argnums=2)
def prefill_cache(network: DecodingNetwork, parameters: Tree, cache: Tree, tokens: jax.Array, text: Tree) -> Tree:
    """Returns the cache with the keys and values of `tokens [B, span]` at its beginning."""
    context = (None, None) if text is None else (text["context"], text["mask"])
    return network.apply(parameters, {}, tokens, cache, *context, method="prefill")


@functools.partial(jax.jit, static_argnames=("network", "guided"))
def read_text(network: DecodingNetwork, parameters: Tree, text: Tree, guided: bool) -> Tree:
    """Returns the input of the cross-attention, with a second half of the batch without the text where `guided`."""
    if text is None:
        return None
    batch = jax.tree.leaves(text)[0].shape[0]
    text = {name: twice(value, guided) for name, value in text.items()}
    drop = jnp.arange(2 * batch if guided else batch) >= batch
    context, mask = network.apply(parameters, {}, **text, drop=drop, method="encode_text")
    return {
        "context": context,
        "mask": mask,
        "cache": network.apply(parameters, {}, context, method="context_keys_values"),
    }


def twice(x: jax.Array, guided: bool) -> jax.Array:
    """Returns the batch, and again for the half without the text where `guided`."""
    return jnp.concatenate([x, x]) if guided else x
