"""Model FLOPs: equal to a formula, close to XLA's own count, and independent of remat, scan and micro-batches."""

import functools

import jax
import jax.numpy as jnp
import pytest

from bandtok_jax import tasks
from bandtok_jax.config.load import load_config
from bandtok_jax.layers import attention
from bandtok_jax.models import token_losses
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runtime.target_platform import made_for
from bandtok_jax.training import flops
from tests import tiny

LATE = 10**9  # a step at which all networks learn

# All sizes differ, so that no two terms of the formula are equal.
SIZES = dict(
    dim=64, num_layers=2, num_heads=2, feed_forward_dim=96, codebook_size=300, rows=4, text_dim=32, text_layers=1
)


def _language_model(columns=8, **changes):
    settings = {f"model.{name}": str(value) for name, value in SIZES.items()}
    settings |= {"data.columns": str(columns), "batch_size": "4"}
    settings |= {key: str(value) for key, value in changes.items()}
    return tasks.create(load_config("language_model:tiny", settings))


@functools.cache
def _plain_flops(text: str = "bytes") -> float:
    return flops.training_flops(_language_model(**{"model.text": text}), 4)


def _formula(config, pairs: float) -> float:
    """Returns 6 FLOPs for each weight and vector, and 12 D for each pair of a query and a key."""
    model, text = config.model, config.data.caption_bytes
    tokens, D, vocabulary = config.data.columns * model.rows + 1, model.dim, 512
    # Self-attention, queries and output of cross-attention, feed-forward.
    layer = 4 * D**2 + 2 * D**2 + 3 * D * model.feed_forward_dim
    total = 6 * tokens * model.num_layers * layer + 12 * D * pairs * model.num_layers
    total += 6 * (config.data.columns + 1) * model.rows * vocabulary * D  # logits are computed by whole columns
    total += model.num_layers * (6 * text * 2 * D**2 + 12 * D * tokens * text)
    E = model.text_dim
    total += 6 * text * (model.text_layers * (4 * E**2 + 3 * E * 4 * E) + E * D)
    total += model.text_layers * 12 * E * text**2
    total += 6 * D**2  # the mean of the text
    return config.batch_size * total


def _attention_pairs(tokens: int) -> float:
    """Returns the number of pairs of a query and a key in the blocks of XLA's causal attention."""
    block = -(-tokens // min(attention.MAX_BLOCKS, -(-tokens // attention.QUERY_BLOCK)))
    ends = [min(first + block, tokens) for first in range(0, tokens, block)]
    return sum(end * (end - first) for first, end in zip([0, *ends], ends))


@pytest.mark.parametrize("columns", tiny.fast(8, among=[8, 100]))
def test_language_model_has_the_flops_of_the_formula(columns):
    task = _language_model(columns)
    tokens, count = columns * SIZES["rows"] + 1, _plain_flops() if columns == 8 else flops.training_flops(task, 4)
    assert count == pytest.approx(_formula(task.config, _attention_pairs(tokens)), rel=1e-6)


def test_long_sequences_count_half_of_the_attention_square():
    changes = {"model.num_layers": "1", "model.text_layers": "1", "batch_size": "4"}
    task = tasks.create(load_config("language_model:base", changes))
    half = _formula(task.config, 1729 * 1730 / 2) + 6 * 4 * 1729 * (8448 - 512) * 1024
    assert flops.training_flops(task, 4) == pytest.approx(half, rel=0.02)


SAME = {
    "remat": {"model.remat": True},
    "scan": {"model.scan_layers": True},
    "micro-batches": {"optimizer.accumulation_steps": 2},
    "dtype": {"dtype": "bfloat16"},
}
SAME["all"] = {key: value for changes in SAME.values() for key, value in changes.items()}


@pytest.mark.parametrize("name", tiny.fast("all", among=SAME))
def test_remat_scan_and_micro_batches_do_not_change_the_count(name):
    assert flops.training_flops(_language_model(**SAME[name]), 4) == _plain_flops()


# XLA also counts elementwise operations, whose share is small only in wide networks.
LEAST_SHARE = {
    "mel_tokenizer": 0.93,
    "vocoder": 0.87,
    "language_model": 0.9,
    "waveform_codec": 0.92,
    "meltok": 0.8,
    "token_vocoder": 0.8,
    "mel_autoencoder": 0.8,
    "masked_prediction": 0.7,
    "flow_matching": 0.5,
    "feature_codec": 0.8,
}
WIDER = {
    "mel_tokenizer": {"model.channels": "(64,)"},
    "vocoder": {"model.dim": 192, "model.intermediate_dim": 768},
    "waveform_codec": {"model.encoder_dim": 64, "model.decoder_dim": 128},
    "meltok": {"model.channels": "(64, 64)"},
    "mel_autoencoder": {"model.channels": "(64, 64)"},
    "masked_prediction": {"model.stem_channels": 32, "model.dim": 256, "model.intermediate_dim": 1024},
    "feature_codec": {"model.decoder_dim": 128, "model.encoder.dim": 128, "model.encoder.intermediate_dim": 512},
    "flow_matching": {"model.dim": 256, "model.feed_forward_dim": 1024},
    "token_vocoder": {"model.channels": "(64, 64)", "model.dim": 192, "model.intermediate_dim": 768},
}


# A language model is counted exactly above.
@pytest.mark.parametrize("task_name", tiny.fast("mel_tokenizer"))
def test_count_is_close_to_that_of_xla(task_name, tmp_path):
    widened = WIDER.get(task_name)
    task = (
        tasks.create(tiny.config(task_name, tmp_path, **widened), model_folder.read_components)
        if widened
        else _language_model()
    )
    phase = task.phase(LATE)
    with made_for("gpu"):
        state = jax.eval_shape(lambda: task.init(jax.random.key(0)))
        step = jax.jit(lambda *arguments: task.train_step(*arguments, jax.random.key(0), **phase))
        xla_flops = step.lower(state, task.frozen_spec(), task.batch_spec()).cost_analysis()["flops"]
    share = flops.training_flops(task, task.config.batch_size, **phase) / xla_flops
    assert LEAST_SHARE[task_name] < share < 1, share


def test_a_discriminator_counts_from_its_start(tmp_path):
    task = tasks.create(tiny.config("mel_tokenizer", tmp_path))
    alone, together = (flops.training_flops(task, 4, **task.phase(step)) for step in (0, LATE))
    assert 0 < alone < together
    assert flops.training_flops(task, 8, **task.phase(0)) == 2 * alone


def test_padding_and_gaps_do_not_count():
    assert flops.multiply_count(5, 3, 5, padding=1) == 13  # 15 less one at either end
    assert flops.multiply_count(5, 3, 9, padding=0, image_step=2) == 13  # the same pairs in its gradient by the input
    assert flops.multiply_count(8, 3, 4, stride=2, padding=0) == 11


def test_a_loop_of_unknown_length_is_refused():
    def step(x):
        return jax.lax.while_loop(lambda x: x.sum() < 3, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="loop of unknown length"):
        flops.count_flops(jax.make_jaxpr(step)(jnp.zeros((4, 4))).jaxpr)


def test_rematerialisation_counts_on_request():
    """A forward pass is a third of a step, and the layers most of it."""
    changes = {"model.remat": True, "model.text": "none"}
    remat = flops.training_flops(_language_model(**changes), 4, rematerialised=True)
    assert 1.1 * _plain_flops("none") < remat < 4 / 3 * _plain_flops("none")


def test_logits_that_are_computed_again_count_on_request(monkeypatch):
    expected, task = _plain_flops("none"), _language_model(**{"model.text": "none"})
    monkeypatch.setattr(token_losses, "CHUNK_BYTES", 1 << 16)
    assert flops.training_flops(task, 4) == expected
    # Nine columns are cut into parts of two: ten are computed again, and the tenth three times in all.
    column = 2 * 4 * SIZES["rows"] * 512 * SIZES["dim"]
    assert flops.training_flops(task, 4, rematerialised=True) == expected + 13 * column
