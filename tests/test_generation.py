"""New grids: the drawn codes, their lengths, and their independence of the batch and of the window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.generation import autoregressive, decoding
from tests import tiny
from tests.small_language_model import CODES, ROWS, SETTINGS, captions, forward, grid, weights


@functools.cache
def generator():
    return autoregressive.Generator(SETTINGS, weights())


def generate(columns=5, window_columns=40, seed=0, **more):
    return generator().generate(columns=columns, window_columns=window_columns, key=jax.random.key(seed), **more)


def test_greedy_generation_takes_the_likeliest_codes():
    codes, lengths = generate(temperature=0.0, may_end=True)
    length = int(lengths[0])
    logits = np.asarray(forward()(weights(), codes[:, :length]))[0]
    for number in range(length * ROWS):
        allowed = CODES + 1 if number % ROWS == 0 and number else CODES
        assert codes[0].reshape(-1)[number] == logits[number, :allowed].argmax()
    if length < 5:
        assert logits[length * ROWS].argmax() == CODES
    again, _ = generate(temperature=0.0, prefix=codes[:, :2], may_end=True)
    np.testing.assert_array_equal(again, codes)


def test_an_example_does_not_depend_on_its_batch():
    both, lengths = generate(batch=2, columns=8, may_end=True)
    alone, length = generate(columns=8, may_end=True)
    np.testing.assert_array_equal(both[0], alone[0])
    assert lengths[0] == length[0] and (both[0] != both[1]).any()
    for codes, columns in zip(both, lengths):
        assert (codes[columns:] == 0).all() and codes.max() < CODES


def test_tracks_last_as_long_as_asked_unless_they_may_end():
    kernel = weights()["head"]["kernel"]
    # One that would end tracks: before every second column END is far likelier than all codes together.
    eager = autoregressive.Generator(SETTINGS, {**weights(), "head": {"kernel": kernel.at[CODES].multiply(-100)}})
    text = dict(caption=captions(*[b"slow"] * 6), guidance=3.0)
    for more in (dict(prefix=grid(6, 3), **text), dict(temperature=0.0, **text)):
        options = dict(columns=14, window_columns=8, batch=6, key=jax.random.key(0), **more)
        codes, lengths = eager.generate(**options)
        assert (lengths == 14).all() and codes.max() < CODES and (codes[:, -1] != 0).any()
        ended, lengths = eager.generate(**options, may_end=True)
        assert (lengths < 14).sum() > 3 and lengths.min() >= (3 if "prefix" in more else 1)
        for endless, shortened, length in zip(codes, ended, lengths):
            assert (shortened[length:] == 0).all() and len(endless) == 14


def test_the_compiler_knows_how_many_steps_a_column_takes():
    writer, cache = generator(), generator().network.apply(weights(), {}, 1, 128, method="init_kv_cache")
    program = decoding.decode_steps.lower(
        weights(), cache, jnp.zeros((1, ROWS), jnp.int32), 0, 0, 4, jnp.full(1, 9), None, None, jax.random.key(0),
        dict(temperature=1.0, top_p=1.0, guidance=1.0, may_end=False),
        network=writer.network, span=128, top_k=None, nucleus=False, guided=False,
    )  # fmt: skip
    assert f'"known_trip_count":{{"n":"{ROWS}"}}' in program.compile().as_text().replace(" ", "")


@pytest.mark.parametrize("stacked", tiny.fast(True, among=(False, True)))
def test_decoding_in_16_bits_keeps_norms_wide(stacked):
    parameters = weights()
    if stacked:
        layers = [parameters["blocks"][str(i)] for i in range(SETTINGS["num_layers"])]
        parameters = {**parameters, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    writer = autoregressive.Generator({**SETTINGS, "scan_layers": stacked, "dtype": "bfloat16"}, parameters)
    kinds = {(x.ndim > 1, str(x.dtype)) for x in jax.tree.leaves(writer.parameters)}
    assert kinds == {(True, "bfloat16"), (False, "float32")}
    codes, lengths = writer.generate(columns=3, window_columns=40, key=jax.random.key(0))
    assert codes.shape == (1, 3, ROWS) and lengths == 3


def test_guidance_of_one_is_none():
    text = dict(caption=captions(b"slow"), columns=4, temperature=0.5)
    plain, _ = generate(**text)
    np.testing.assert_array_equal(plain, generate(guidance=1.0, **text)[0])
    assert (plain != generate(guidance=8.0, **text)[0]).any()


def _compiled():
    """The numbers of compiled programs; JAX counts them in private alone."""
    return [program._cache_size() for program in (decoding.decode_steps, decoding.prefill_cache)]


def test_any_duration_with_the_same_programs():
    endless = jax.tree.map(jnp.copy, weights())
    endless["head"]["kernel"] = endless["head"]["kernel"].at[CODES].set(0)  # an end becomes as rare as any code
    writer = autoregressive.Generator(SETTINGS, endless)
    writer.generate(columns=50, window_columns=40, key=jax.random.key(0), temperature=0.0)
    programs = _compiled()
    columns = []
    codes, lengths = writer.generate(
        columns=130, window_columns=40, key=jax.random.key(1), temperature=0.0, may_end=True, report=columns.append
    )
    assert _compiled() == programs
    assert codes.shape == (1, 130, ROWS) and (lengths < 130 or columns[-1] == 130)
    # The code after a full window is the prediction of a window that begins in its middle.
    if lengths[0] > 40:
        logits = np.asarray(forward()(endless, codes[:, 20:40], begins=False))[0, -1]
        assert codes[0, 40, 0] == logits[: CODES + 1].argmax()


def test_refuses_what_makes_no_sense():
    for wrong, message in (
        (dict(prefix=np.full((1, 2, ROWS), CODES)), r"outside the codebook 0\.\.19"),
        (dict(prefix=grid(1, 5)), "ask for more columns"),
        (dict(prefix=np.zeros((2, 2, ROWS))), r"it must be \[1, columns, 3\]"),
        (dict(embedding=np.zeros((1, 2, 3))), "it takes caption"),
        (dict(caption=captions(b"a", b"b")), "has 2 entries and the batch 1"),
        (dict(top_k=-1), "top_k is -1: give 1 to 20, the size of the codebook, or 0 for all codes"),
        (dict(top_p=0.0), "top_p is 0.0: it must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(**wrong)
