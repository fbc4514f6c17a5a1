"""A language model of two narrow layers, with weights, grids and captions for its tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.layers.network import Network
from bandtok_jax.models.language_model import LanguageModel, first_token
from bandtok_jax.models.layout import delayed

ROWS, CODES = 3, 20
SETTINGS = dict(
    rows=ROWS, codebook_size=CODES, dim=32, num_layers=2, num_heads=2, feed_forward_dim=48, text="bytes", text_dim=16,
    text_layers=1, text_ngrams=64, text_pooled=True, scale_embeddings=True,
)  # fmt: skip


def network(**changes):
    return Network(lambda rngs: LanguageModel(**SETTINGS | changes, rngs=rngs))


@functools.cache
def weights():
    return drawn(network())


def drawn(model, gain=8, seed=0):
    """Weights drawn by NumPy, by default so great that logits differ from code to code; with a gain of 1 fresh ones."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if leaf.ndim == 1 or path[-1].key == "scale":
            return np.ones(leaf.shape, leaf.dtype)
        scale = 0.00875 if {"out", "down"} & {key.key for key in path} else 0.0175
        return (gain * scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, model.shapes()[0]))


@functools.cache
def forward(**changes):
    """The logits of whole grids. All calls for grids of one shape run the same program."""
    model = network(**changes)

    @jax.jit
    def logits(parameters, codes, caption, begins, columns):
        text = model.apply(parameters, {}, caption=caption, method="encode_text")
        return model.apply(parameters, {}, codes, *text, begins=begins, columns=columns)

    def with_defaults(parameters, codes, caption=None, begins=True, columns=None):
        batch, length, _ = codes.shape
        caption = np.zeros((batch, 8), np.uint8) if caption is None else caption
        columns = np.full(batch, length) if columns is None else columns
        return logits(parameters, codes, caption, np.broadcast_to(begins, batch), columns)

    return with_defaults


def grid(batch, columns, seed=0):
    return np.random.default_rng(seed).integers(0, CODES, (batch, columns, ROWS)).astype(np.int32)


def captions(*texts):
    return np.stack([np.frombuffer(text.ljust(8, b"\0"), np.uint8) for text in texts])


def decoded_logits(model, parameters, codes, caption=None, begins=True, known_steps=1):
    """Logits `[B, T * F, V]` of cached decoding that always draws the true codes, after a prefill of some steps."""
    layout, records = model.attribute("layout"), []
    steps = np.asarray(delayed(codes, layout.delays, CODES))
    batch, count, rows = steps.shape
    first = np.full(batch, first_token(CODES, begins), np.int32)

    @jax.jit
    def prefill(parameters):
        text = None
        if caption is not None:
            context, mask = model.apply(parameters, {}, caption=caption, method="encode_text")
            text = model.apply(parameters, {}, context, mask, method="decoding_context")
        length = (count + 1) * layout.positions_per_step
        cache = model.apply(parameters, {}, batch, length, method="init_kv_cache")
        filled = 1 + known_steps * layout.positions_per_step
        known = jnp.asarray(steps[:, :known_steps])
        return text, model.apply(parameters, {}, first, known, cache, text, length=filled, method="prefill")

    @jax.jit
    def decode(parameters, previous, number, codes, cache, text):
        def draw(logits, rows):
            # Loops of the layout hide their values, so a callback takes them out.
            jax.debug.callback(lambda *values: records.append(values), number, rows, logits)
            return codes[:, rows]

        return model.apply(parameters, {}, previous, number, cache, draw, text, method="decode_step")[1]

    text, cache = prefill(parameters)
    for number in range(known_steps, count):
        previous = steps[:, number - 1] if number else np.broadcast_to(first[:, None], (batch, rows))
        cache = decode(parameters, previous, np.int32(number), steps[:, number], cache, text)
    jax.block_until_ready(cache)
    jax.effects_barrier()
    result = np.full((*codes.shape, 256), np.nan, np.float32)
    for number, step_rows, logits in records:
        for place, row in enumerate(np.asarray(step_rows)):
            column = number - layout.delays[row]
            if 0 <= column < codes.shape[1]:
                result[:, column, row] = logits[:, place]
    return result
