"""The second stage of MuEncoder: heads, start from a run without them, lyrics in and out of the data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from bandtok_jax import tasks
from bandtok_jax.data_pipelines.prepare import prepare
from bandtok_jax.layers.network import Network
from bandtok_jax.losses.transducer import transducer_loss
from bandtok_jax.models.muencoder import MuEncoder
from bandtok_jax.models.muencoder_heads import HEADS, Transducer
from bandtok_jax.tasks import second_stage
from bandtok_jax.training import loop
from bandtok_jax.training import state as states
from tests import tiny


def encoder(heads):
    return Network(
        lambda rngs: MuEncoder(
            mels=8, stem_channels=2, dim=8, intermediate_dim=8, num_heads=2, num_layers=1, layer=1, kernel_size=3,
            codebook_size=5, codebook_dim=4, heads=heads, constant_q_bins=12, vocabulary_size=7, predictor_dim=6,
            joiner_dim=10, rngs=rngs,
        )
    )  # fmt: skip


def test_shapes_of_the_heads():
    network = encoder(HEADS)

    def predict(name, *inputs):
        def outputs(parameters, buffers, *inputs):
            return network.apply(parameters, buffers, name, *inputs, method="predict")

        return jax.eval_shape(outputs, *network.shapes(), *inputs)

    state, tokens = jax.ShapeDtypeStruct((2, 3, 8), jnp.float32), jax.ShapeDtypeStruct((2, 4), jnp.uint8)
    shapes = {name: predict(name, state).shape[-1] for name in ("mel", "constant_q", "ctc")}
    assert shapes == {"mel": 32, "constant_q": 12, "ctc": 7}
    blank, label = predict("transducer", state, tokens)
    assert blank.shape == (2, 3, 5) and label.shape == (2, 3, 4)
    with pytest.raises(ValueError, match="heads has 'lyrics'"):
        encoder(["lyrics"]).shapes()


def test_the_transducer_gives_log_probabilities_of_the_vocabulary():
    network = Network(lambda rngs: Transducer(8, 5, 6, 10, dtype=jnp.float32, rngs=rngs))
    weights = tiny.scaled_weights(network)
    state = np.random.default_rng(0).normal(size=(1, 3, 8)).astype(np.float32).repeat(4, 0)
    apply = jax.jit(functools.partial(network.apply, *weights))
    blank, label = apply(state, np.array([[1, 3, token] for token in range(1, 5)]))
    # After two tokens, the blank and each third token are all that can follow.
    np.testing.assert_allclose(np.exp(blank[0, :, 2]) + np.exp(label[:, :, 2]).sum(0), 1, rtol=1e-5)
    # The predictor reads two tokens, so a third one back changes nothing.
    other, _ = apply(state, np.array(4 * [[4, 3, 1]]))
    np.testing.assert_array_equal(other[0, :, 3], blank[0, :, 3])
    assert not np.allclose(other[0, :, 2], blank[0, :, 2])
    assert np.isfinite(jax.jit(transducer_loss)(blank, label, np.full(4, 3), np.full(4, 3))).all()


def test_init_from_a_run_without_the_heads_keeps_them_fresh():
    first, second = encoder(()), encoder(("mel", "ctc"))

    def state_of(network, seed):
        parameters, buffers = tiny.scaled_weights(network, seed)
        return {"model": {"parameters": parameters, "buffers": buffers, "ema": parameters}}

    def replaced(to, origin):
        return states.replace_weights(to, "model", origin["model"], "run", MuEncoder.OPTIONAL_ARRAYS)["model"]

    old, new = state_of(first, 0), state_of(second, 1)
    result = replaced(new, old)
    assert jax.tree.structure(result) == jax.tree.structure(new["model"])
    jax.tree.map(np.testing.assert_array_equal, result["parameters"]["blocks"], old["model"]["parameters"]["blocks"])
    heads = new["model"]["parameters"]["heads"]
    jax.tree.map(np.testing.assert_array_equal, result["parameters"]["heads"], heads)
    back = replaced(old, new)["parameters"]
    assert "heads" not in back and back["blocks"] is not None
    with pytest.raises(ValueError, match="blocks/.* is missing"):
        states.replace_weights(new, "model", {"parameters": {}, "buffers": {}}, "run", MuEncoder.OPTIONAL_ARRAYS)


def sing(folder, words, seconds_per_letter=0.24, rate_hz=24_000):
    """Writes a track for each word, in which each letter is a tone of its own, and records of them with lyrics."""
    music = folder / "songs"
    music.mkdir()
    rows = ["file,split,lyrics"]
    time = np.arange(round(seconds_per_letter * rate_hz)) / rate_hz
    for number, word in enumerate(words):
        tones = [np.sin(2 * np.pi * 300 * 2 ** ((ord(letter) - ord("a")) / 3) * time) for letter in word]
        audio = 0.3 * np.concatenate(tones) * np.tile(np.hanning(len(time)), len(word))
        # Longer than the shortest track, so silence follows.
        soundfile.write(music / f"{number}.wav", np.pad(audio, (0, rate_hz)), rate_hz)
        (music / f"{number}.lrc").write_text(f"[00:00.00]{word}\n[00:{len(audio) / rate_hz:05.2f}]\n")
        rows.append(f"{number}.wav,{'validation' if number == 0 else 'train'},{number}.lrc")
    (music / "tracks.csv").write_text("\n".join(rows))
    prepare([music], folder / "records", tracks=music / "tracks.csv", sample_rate_hz=rate_hz, workers=1, progress=False)
    return str(folder / "records")


def test_without_lyrics_their_losses_are_off_and_the_training_says_so(tmp_path):
    changes = {"loss.mel": 1.0, "loss.ctc": 0.1, "loss.transducer": 0.1}
    task = tasks.create(tiny.config("masked_prediction", tmp_path, **changes))
    assert task.config.model.heads == ("mel",) and task.config.data.lyrics_tokens == 0
    assert "lyrics" not in task.batch_spec()
    with pytest.warns(UserWarning, match="synthetic has no lyrics, so the loss ctc and transducer is off"):
        task.load_frozen()


def test_micro_batches_make_the_loss_of_a_token_over_the_batch():
    tokens = np.array([[1, 2, 3], [1, 0, 0], [0, 0, 0], [1, 1, 1]])  # the last one has no alignment of 4 columns
    weights = jax.jit(second_stage.lyrics_weights, static_argnums=(2, 3))
    whole = weights(tokens, tokens, 4, 1)
    np.testing.assert_allclose(whole, [0.25, 0.25, 0, 0])
    parts = [weights(tokens, tokens[i::2], 4, 2) for i in range(2)]
    np.testing.assert_allclose(parts, [[0.5, 0], [0.5, 0]])  # sums of two parts have half the weight each


@pytest.mark.slow
def test_the_losses_of_a_batch_of_sung_letters_fall_to_its_lyrics(tmp_path):
    folder = sing(tmp_path, ["abc", "cab", "bca", "acb", "bac"])
    steps = dict.fromkeys(("total_steps", "evaluate_every", "checkpoint_every", "log_every"), 1000)
    changes = steps | {
        "data.sources": folder, "data.lyrics_tokens": 8, "data.clip_samples": 38_400, "data.gain_db": (0.0, 0.0),
        "masking.probability": 0.05, "model.predictor_dim": 16, "model.joiner_dim": 16,
        "loss.mel": 1.0, "loss.constant_q": 1.0, "loss.ctc": 1.0, "loss.transducer": 1.0,
        "optimizer.schedule": "cosine", "optimizer.learning_rate": 0.01, "evaluation_batches": 1,
    }  # fmt: skip
    scores = loop.train(tiny.config("masked_prediction", tmp_path, **changes), tmp_path / "run", overfit_one_batch=True)
    assert scores["character_error_rate"] < 0.1 and scores["ctc"] < 0.2, scores
    assert scores["transducer"] < 0.5 and scores["mel"] < 0.5, scores
