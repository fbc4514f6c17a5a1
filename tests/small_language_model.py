"""A language model of two narrow layers, with weights, grids and captions for its tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.layers.network import Network
from bandtok_jax.models.language_model import LanguageModel

ROWS, CODES = 3, 20
SETTINGS = dict(
    rows=ROWS, codebook_size=CODES, dim=32, num_layers=2, num_heads=2, feed_forward_dim=48, text="bytes", text_dim=16,
    text_layers=1,
)  # fmt: skip


def network(**changes):
    return Network(lambda rngs: LanguageModel(**SETTINGS | changes, rngs=rngs))


@functools.cache
def weights():
    """Weights with a say: at their start all logits are nearly the same."""
    parameters, _ = network().init(jax.random.key(0))
    return jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, parameters)


@functools.cache
def forward(**changes):
    model = network(**changes)

    @jax.jit
    def logits(parameters, codes, caption=None, begins=True):
        caption = jnp.zeros((codes.shape[0], 1), jnp.uint8) if caption is None else caption
        text = model.apply(parameters, {}, caption=caption, method="encode_text")
        return model.apply(parameters, {}, codes, *text, begins=begins)

    return logits


def grid(batch, columns, seed=0):
    return np.random.default_rng(seed).integers(0, CODES, (batch, columns, ROWS)).astype(np.int32)


def captions(*texts):
    return np.stack([np.frombuffer(text.ljust(8, b"\0"), np.uint8) for text in texts])
