"""The task that trains MuCodec: masks, micro-batches, normaliser, frozen weights, refusals."""

import jax
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.models.mucodec_flow import CONTEXT, PADDING, PREDICTED
from bandtok_jax.pretrained import model_folder
from tests import tiny

FRAME_SAMPLES = 3840


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The components that a configuration needs, written before the first test, whichever it is."""
    folder = tmp_path_factory.mktemp("components")
    tiny.config("flow_matching", folder)
    return folder


def created(folder, **changes):
    return tasks.create(tiny.config("flow_matching", folder, **changes), model_folder.read_components)


def started(task, frozen):
    """The model state before the first step, whose parameters are drawn by NumPy."""
    parameters = jax.tree.map(lambda leaf: np.float32(0.1 * leaf), tiny.random_weights(task.network))
    buffers = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), task.network.shapes()[1])
    state = {"model": {"parameters": parameters, "buffers": buffers, "ema": {}}}
    return task.warm_start(state, frozen, [], jax.random.key(0))["model"]


def test_masks_of_starts_and_continuations(folder):
    task = created(folder, batch_size=256, **{"data.clip_samples": 16 * FRAME_SAMPLES, "loss.context_frames": "(2, 5)"})
    audio = np.ones((256, 2, 16 * FRAME_SAMPLES), np.float32)
    audio[:64, :, 3 * FRAME_SAMPLES - 1 :] = 0
    audio[64, :, :] = 0
    batch = {"audio": audio, "index": np.arange(256)}
    draw_mask = jax.jit(task._mask)
    mask = np.asarray(draw_mask(batch, jax.random.key(0)))
    assert (mask[:64, 3:] == PADDING).all() and (mask[:64, :3] != PADDING).all()
    assert (mask[64] == PADDING).all(), "silence has no frame to predict"
    whole = mask[65:]
    starts = (whole == PREDICTED).all(1)
    assert 0.4 < starts.mean() < 0.6
    prefixes = (whole == CONTEXT).sum(1)[~starts]
    assert set(prefixes) == {2, 3, 4, 5} and all((row[:n] == CONTEXT).all() for row, n in zip(whole[~starts], prefixes))
    assert set((mask[:64] == CONTEXT).sum(1)) == {0, 1}, "at most half of a short example"
    # An example draws by its index, in any batch.
    few = {name: value[100:103] for name, value in batch.items()}
    np.testing.assert_array_equal(draw_mask(few, jax.random.key(0)), mask[100:103])


def test_micro_batches_add_up_to_the_batch(folder, float64):
    """The losses are means over the micro-batches and the statistics sums, so gradients add up too."""
    changes = {"dtype": "float64", "model.stale_steps": 1, "normaliser_examples": 3}
    changes |= {"model.alignment_layer": 1, "loss.alignment": 0.5}
    task, split = created(folder, **changes), created(folder, **changes, **{"optimizer.accumulation_steps": 2})
    frozen, batch, key = task.load_frozen(), tiny.batch(task.config), jax.random.key(1)
    batch["audio"] = batch["audio"].at[0, :, 3 * FRAME_SAMPLES :].set(0)
    model = started(task, frozen)
    model, frozen = tiny.in_float64(model), tiny.in_float64(frozen)

    def run(task, parts):
        # All arrays are arguments, because XLA computes with constants while it compiles.
        forward = jax.jit(task.forward)
        return [forward(model["parameters"], model["buffers"], frozen, batch, part, key) for part in parts]

    ((losses, (totals, per_example)),) = run(task, [batch])
    halves = run(split, [{name: x[i::2] for name, x in batch.items()} for i in range(2)])
    assert set(losses) == {"flow", "alignment", "commitment", "codebook"}
    for name, loss in losses.items():
        np.testing.assert_allclose(np.mean([half[0][name] for half in halves]), loss, rtol=1e-6, err_msg=name)
    sums = jax.tree.map(np.add, *(half[1][0] for half in halves))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), sums, totals)

    update = jax.jit(task.update_buffers)
    new, metrics = update(model, model, totals, per_example, batch, key)
    assert metrics["codes_restarted"] > 0
    counted = new["buffers"]["flow"]["normaliser"]
    assert counted["count"] == 4
    # Enough examples are counted, so the next batch changes nothing.
    later, _ = update(new, new, totals, per_example, batch, key)
    jax.tree.map(np.testing.assert_array_equal, later["buffers"]["flow"]["normaliser"], counted)


def test_a_run_starts_with_the_weights_of_its_components(folder):
    task = created(folder)
    buffers = started(task, task.load_frozen())["buffers"]
    encoder, autoencoder = task.component("encoder").weights, task.component("autoencoder").weights
    path = ("stem", "projection", "kernel")
    ours, theirs = buffers["encoder"], encoder["parameters"]
    for name in path:
        ours, theirs = ours[name], theirs[name]
    np.testing.assert_array_equal(ours, theirs)
    assert set(buffers["encoder"]["blocks"]) == {"0"} and set(encoder["parameters"]["blocks"]) == {"0", "1"}
    np.testing.assert_array_equal(
        buffers["decoder"]["conv_out"]["kernel"], autoencoder["parameters"]["decoder"]["conv_out"]["kernel"]
    )
    np.testing.assert_array_equal(buffers["decoder"]["scale"], autoencoder["buffers"]["decoder"]["scale"])


def test_components_that_do_not_fit_are_refused(folder):
    components = {name: str(folder / f"{name}_export") for name in ("encoder", "autoencoder")}
    for changes, message in (
        (
            {"model.encoder.dim": 32, "model.encoder.kernel_size": 7},
            r"encoder .* model.encoder.dim \(16 there, 32 here\), model.encoder.kernel_size \(5 there, 7 here\)",
        ),
        ({"model.autoencoder.latent_channels": 4}, r"model.autoencoder.latent_channels \(2 there, 4 here\)"),
        ({"model.encoder.layer": 3}, "model.encoder.layer is 3, and the encoder .* has 2 layers"),
    ):
        with pytest.raises(ValueError, match=message):
            created(folder, **components, **changes).load_frozen()
    for name in ("encoder", "autoencoder"):
        settings = tiny.config("flow_matching", folder).copy_and_resolve_references().unlock()
        settings[name] = ""
        with pytest.raises(ValueError, match=f"needs its {name}: .*--config.{name} "):
            tasks.create(settings, model_folder.read_components).require_inputs()
    with pytest.raises(ValueError, match="loss.alignment needs a layer.*alignment_layer"):
        created(folder, **{"loss.alignment": 1.0})
    with pytest.raises(ValueError, match=r"context_frames is \(1, 8\) of 8 frames"):
        created(folder, **{"loss.context_frames": "(1, 8)"})
    with pytest.raises(ValueError, match="clip_samples 26880 .* multiple of 7680"):
        created(folder, **{"data.clip_samples": 26880})
