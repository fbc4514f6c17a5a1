"""The layouts "depth" and "delay": cached decoding beside the forward pass, their probabilities, and generation."""

import functools
import itertools

import jax
import numpy as np
import pytest

from bandtok_jax.generation import autoregressive, decoding
from tests import small_language_model, tiny
from tests.small_language_model import CODES, ROWS, SETTINGS, captions, decoded_logits, drawn, grid, network

LAYOUTS = ("depth", "delay")
SMALL = dict(row_dim=16, row_layers=2, row_states=True, scale_embeddings=True)
# Exports from before these settings have these values.
EARLIER = dict(row_states=False, scale_embeddings=False, text_ngrams=0, text_pooled=False)
SHALLOW = dict(num_layers=1, row_layers=1)
SEEDS = {"flat": 6, "depth": 3, "delay": 1}  # of weights with which tracks end at several columns


@functools.cache
def weights(**changes):
    return drawn(network(**SMALL | changes), seed=SEEDS[changes.get("layout", "flat")])


def forward(parameters, codes, caption, begins=True, columns=None, **changes):
    """Logits of the codes `[B, T, F, K + 1]`."""
    logits = small_language_model.forward(**SMALL | changes)(parameters, codes, caption, begins, columns)
    return np.asarray(logits)[:, :-1, : CODES + 1].reshape(*codes.shape, CODES + 1)


VARIANTS = {"rows": (3, SHALLOW | {"row_vocabulary": True}), "earlier": (1, SHALLOW | EARLIER), "deep": (1, {})}
DECODED = {f"{layout}, {variant}": (layout, *VARIANTS[variant]) for layout in LAYOUTS for variant in VARIANTS}


@pytest.mark.parametrize("name", tiny.fast("depth, rows", "delay, earlier", among=DECODED))
def test_cached_decoding_equals_the_forward_pass(name):
    layout, batch, changes = DECODED[name]
    changes = dict(layout=layout) | changes
    codes, caption = grid(batch, 3), captions(*[b"slow", b"", b"fast"][:batch])
    expected = forward(weights(**changes), codes, caption, **changes)
    decoded = decoded_logits(network(**SMALL | changes), weights(**changes), codes, caption)[..., : CODES + 1]
    for row in range(ROWS):
        missing = max(0, 1 - row) if layout == "delay" else 1  # the prefill took the first step
        np.testing.assert_allclose(decoded[:, missing:, row], expected[:, missing:, row], atol=1e-4)
    # END stands before a column or nowhere.
    assert np.isfinite(expected[:, :, 0]).all() and np.isneginf(expected[:, :, 1:, CODES]).all()


@pytest.mark.parametrize("layout", tiny.fast("depth", among=LAYOUTS))
def test_the_probabilities_of_all_grids_sum_to_one(layout):
    model = network(**SMALL | SHALLOW, layout=layout, rows=2, codebook_size=3, text="none")
    parameters = drawn(model)

    @jax.jit
    def probabilities(codes):
        return jax.nn.softmax(model.apply(parameters, {}, codes), axis=-1)

    total, longest = 0.0, 2
    for columns in range(longest + 1):
        if not columns:
            # The decision to end before the first column depends on nothing.
            total += float(probabilities(np.zeros((1, 1, 2), np.int32))[0, 0, 3])
            continue
        codes = np.array(list(itertools.product(range(3), repeat=2 * columns)), np.int32).reshape(-1, columns, 2)
        shares = np.asarray(probabilities(codes))
        factors = np.take_along_axis(shares[:, :-1], codes.reshape(len(codes), -1, 1), axis=-1)[..., 0].prod(-1)
        total += float((factors * (shares[:, -1, 3] if columns < longest else 1)).sum())
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("layout", tiny.fast("delay", among=LAYOUTS))
def test_generation_takes_the_likeliest_codes_to_the_end_of_a_track(layout):
    changes = dict(layout=layout)
    kernel = weights(**changes)["head"]["kernel"]
    parameters = {**weights(**changes), "head": {"kernel": kernel.at[CODES].multiply(2)}}  # some tracks end
    writer = autoregressive.Generator({**SETTINGS, **SMALL, **changes}, parameters)
    prefix = grid(5, 2)
    codes, lengths = writer.generate(
        columns=9, window_columns=40, key=jax.random.key(0), batch=5, prefix=prefix, temperature=0.0, may_end=True
    )
    assert (lengths < 9).any() and lengths.min() >= 2, lengths
    likeliest = forward(parameters, codes, captions(*5 * [b""]), columns=lengths, **changes).argmax(-1)
    for track, start, length, expected in zip(codes, prefix, lengths, likeliest):
        np.testing.assert_array_equal(track[:2], start)
        assert (track[length:] == 0).all()
        np.testing.assert_array_equal(expected[2:length], track[2:length])
        if length < 9:
            assert expected[length, 0] == CODES


@pytest.mark.parametrize("layout", tiny.fast("depth", among=LAYOUTS))
def test_windows_beyond_the_trained_length_with_guidance_and_the_same_programs(layout):
    parameters, text = weights(layout=layout), captions(b"slow", b"fast")
    writer = autoregressive.Generator({**SETTINGS, **SMALL, "layout": layout}, parameters)
    lag = ROWS - 1 if layout == "delay" else 0
    options = dict(window_columns=8, batch=2, key=jax.random.key(0), caption=text, guidance=2.0, temperature=0.0)
    codes, _ = writer.generate(columns=14, prefix=grid(2, 3), **options)
    programs = [program._cache_size() for program in (decoding.decode_steps, decoding.prefill_cache)]
    longer, _ = writer.generate(columns=29, prefix=grid(2, 3), **options)
    assert programs == [program._cache_size() for program in (decoding.decode_steps, decoding.prefill_cache)]
    np.testing.assert_array_equal(longer[:, : 12 - lag], codes[:, : 12 - lag])
    # A window holds 8 columns, and begins again with 4 steps of it.
    origin, first_step, compared = 0, 3, 0
    while first_step < 14 + lag:
        last_step = min(origin + 8 + lag, 14 + lag)
        # Padding after the window keeps the shape.
        window, columns = np.pad(codes[:, origin:], ((0, 0), (0, origin), (0, 0))), np.full(2, 14 - origin)
        logits = [
            forward(parameters, window, caption, begins=origin == 0, columns=columns, layout=layout)
            for caption in (text, captions(b"", b""))
        ]
        with_text, without = (x[..., :CODES] for x in logits)
        guided = (without + 2.0 * (with_text - without)).argmax(-1)
        for column, row in itertools.product(range(3, 14), range(ROWS)):
            if first_step <= column + (row if lag else 0) < last_step:
                np.testing.assert_array_equal(codes[:, column, row], guided[:, column - origin, row])
                compared += 1
        origin, first_step = last_step - 4, last_step
    assert compared == 11 * ROWS
