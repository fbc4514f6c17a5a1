"""Training of the language model: its learning, the tokens in its loss, and the settings from its data."""

import types

import jax
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.config.load import load_config
from bandtok_jax.data_pipelines import iterator
from bandtok_jax.data_pipelines.token_writer import TokenWriter
from bandtok_jax.models.language_model import LAYOUTS
from bandtok_jax.pretrained import export_folder, model_folder
from bandtok_jax.training import sharding
from bandtok_jax.training.run import resolve
from tests import tiny
from tests.small_language_model import CODES, ROWS, drawn, grid


@pytest.fixture(scope="module")
def markov(tmp_path_factory):
    """Tracks in which a row's next code follows from its last one nine times in ten, which unigrams cannot model."""
    folder, random = tmp_path_factory.mktemp("tokens") / "markov", np.random.default_rng(0)
    follows = np.stack([random.permutation(CODES) for _ in range(ROWS)])

    def track_record(number):
        codes = random.integers(0, CODES, (random.integers(6, 40), ROWS))
        for column in range(1, len(codes)):
            likely = random.random(ROWS) < 0.9
            codes[column] = np.where(likely, follows[np.arange(ROWS), codes[column - 1]], codes[column])
        return dict(codes=codes, track=str(number), offset_samples=0, caption="slow", samples=1, ends=True)

    writer = TokenWriter(
        folder, codebook_size=CODES, rows=ROWS, columns_per_second=10.77, row_kind="band", tokenizer="",
        weight_hash="x", samples_per_column=4096,
    )  # fmt: skip
    writer.write("train", 0, map(track_record, range(40)))
    writer.write("validation", 0, map(track_record, range(8)))
    writer.finish()
    return folder


def task_of(folder, **changes):
    changes = {
        "model.rows": ROWS, "model.codebook_size": CODES, "model.dim": 64, "model.num_layers": 1, "model.num_heads": 2,
        "model.feed_forward_dim": 128, "model.text_dim": 16, "data.columns": 12, "data.tokens": folder,
        "data.caption_bytes": 8, "batch_size": 16,
        "total_steps": 120, "optimizer.warmup_steps": 5, "optimizer.learning_rate": 0.005, **changes,
    }  # fmt: skip
    return tasks.create(load_config("language_model:tiny", {k: str(v) for k, v in changes.items()}))


def batches(task, count):
    stream = iterator.train_batches(task.config.data, split="train", batch_size=task.config.batch_size, seed=0)
    result = [next(stream) for _ in range(count)]
    stream.close()
    return result


def losses_of(task, parameters):
    """The losses of a batch in training, by their names, as a function of the batch and the key of the step."""
    losses = jax.jit(lambda batch, key: task.forward(parameters, {}, {}, batch, batch, key)[0])
    return lambda batch, key: {name: float(value) for name, value in losses(batch, key).items()}


def test_learns_more_than_the_unigrams(markov):
    task = task_of(markov, **{"model.text": "none"})
    frozen, shapes = task.load_frozen(), jax.eval_shape(task.init, jax.random.key(0))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state["model"]["parameters"] = drawn(task.network, gain=1)
    step = jax.jit(task.train_step, donate_argnums=0)
    for number, batch in enumerate(batches(task, 120)):
        state, metrics = step(state, frozen, batch, jax.random.key(number))
    held_out = iterator.evaluation_batches(task.config.data, batch_size=8, count=1)[0]
    scores = task.aggregate(jax.device_get(jax.jit(task.eval_step)(state, frozen, held_out)), 1)
    assert scores["unigram_gap"] < -0.7, scores
    assert abs(scores["unigram_cross_entropy"] - np.log(CODES)) < 0.3
    assert scores["cross_entropy"] == pytest.approx(
        np.mean([scores[f"row_cross_entropy/{row:02d}"] for row in range(ROWS)])
    )
    assert scores["end_accuracy"] > 0.8
    assert not task.warnings(scores)


@pytest.mark.parametrize("layout", tiny.fast("flat", "delay", among=LAYOUTS))
def test_the_loss_counts_what_is_there(markov, layout):
    task = task_of(markov, **{"model.layout": layout})
    batch = batches(task, 1)[0]
    padding = np.arange(12) >= batch["columns"][:, None]
    assert padding.any() and batch["ended"].any()
    garbage = {**batch, "codes": np.where(padding[..., None], 7, batch["codes"])}
    losses = losses_of(task, drawn(task.network))
    expected = losses(batch, jax.random.key(0))
    assert set(expected) == {"cross_entropy", "end_cross_entropy"} and min(expected.values()) > 0
    assert losses(garbage, jax.random.key(0)) == pytest.approx(expected, rel=1e-6)
    turned = {name: value[::-1] for name, value in batch.items()}  # an example's dropout hangs on its index alone
    assert losses(turned, jax.random.key(0)) == pytest.approx(expected, rel=1e-6)


def test_dropout_is_keyed_by_example_and_only_in_training(markov):
    plain, dropping = (task_of(markov, **{"model.text": "none", "model.dropout": rate}) for rate in (0.0, 0.5))
    parameters, batch, frozen = drawn(plain.network), batches(plain, 1)[0], plain.load_frozen()
    state = {"model": {"parameters": parameters, "buffers": {}, "ema": {}}}
    scores = [jax.jit(task.eval_step)(state, frozen, batch)["row_cross_entropy"] for task in (plain, dropping)]
    np.testing.assert_array_equal(*scores)
    losses = losses_of(dropping, parameters)

    def loss(batch, key):
        return losses(batch, jax.random.key(key))["cross_entropy"]

    turned = {name: value[::-1] for name, value in batch.items()}
    assert loss(turned, 0) == pytest.approx(loss(batch, 0), rel=1e-6)
    renamed = {**batch, "index": batch["index"] + 1}
    assert abs(loss(renamed, 0) - loss(batch, 0)) > 1e-5 and abs(loss(batch, 1) - loss(batch, 0)) > 1e-5


def test_residual_levels_have_codes_of_their_own_by_default(tmp_path, markov):
    metadata = dict(codebook_size=CODES, rows=ROWS, columns_per_second=10.77, samples_per_column=4096)
    writer = TokenWriter(tmp_path / "levels", **metadata, row_kind="residual", tokenizer="", weight_hash="x")
    for split in ("train", "validation"):
        track = dict(codes=grid(1, 9)[0], track="a", offset_samples=0, caption="", samples=9 * 4096, ends=True)
        writer.write(split, 0, [track])
    writer.finish()

    def entries(task):
        return task.network.shapes()[0]["embedding"].shape[0]

    levels = task_of(tmp_path / "levels")
    assert levels.config.model.row_vocabulary is True and entries(levels) == ROWS * 256
    levels.load_frozen()
    for folder, shared in ((markov, 256), ("", 256)):
        assert task_of(folder).config.model.row_vocabulary is False and entries(task_of(folder)) == shared
    with pytest.raises(ValueError, match="are residual levels, each with a codebook of its own"):
        task_of(tmp_path / "levels", **{"model.row_vocabulary": False}).load_frozen()
    # A run writes the resolved setting, and reads it again.
    for folder, settled in ((tmp_path / "levels", True), (markov, False)):
        config = load_config("language_model:tiny", {"data.tokens": str(folder)})
        assert resolve(config, tmp_path / "run").config.model.row_vocabulary is settled


def test_names_tokens_that_do_not_fit(markov):
    with pytest.raises(ValueError, match="set --config.model.codebook_size=20"):
        task_of(markov, **{"model.codebook_size": 64}).load_frozen()
    with pytest.raises(ValueError, match="data.tokens is empty"):
        task_of("").load_frozen()


def test_tokens_without_captions_are_recorded(markov):
    task = task_of(markov)
    assert task.caption_fraction == 1
    for shard in task.manifest["splits"]["train"]["shards"]:
        shard["captions"] = 0
    with pytest.warns(UserWarning, match="no track in .* has a caption"):
        task.load_frozen()
    assert task.caption_fraction == 0


@pytest.mark.parametrize(
    "variant, changes",
    [
        ("tiny", {}),
        ("base", {}),
        ("base", {"model.layout": "depth"}),
        ("small", {"model.layout": "delay"}),
        ("tiny", {"model.text": "none"}),
        ("tiny", {"model.text": "embedding"}),
        ("tiny", {"model.text_ngrams": "0", "model.text_pooled": "False"}),
    ],
)
def test_every_weight_has_a_place(variant, changes):
    task = tasks.create(load_config(f"language_model:{variant}", changes))
    mesh = sharding.create_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    state = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    places = sharding.shardings(state, task.SHARDING, mesh)
    assert jax.tree.structure(places) == jax.tree.structure(state)


def test_samples_hold_new_music_where_a_codec_is_named(tmp_path):
    codec = tiny.drawn_codec()
    export_folder.save_codec(codec, tmp_path / "model")
    export_folder.save_codec(MelCodec(codec.components["tokenizer"]), tmp_path / "tokenizer")
    folder = {"mine": codec.weight_hash, "other": "0" * 64}
    for name, weight_hash in folder.items():
        writer = TokenWriter(
            tmp_path / name, codebook_size=1024, rows=16, columns_per_second=10.77, row_kind="band", tokenizer="",
            weight_hash=weight_hash, samples_per_column=4096,
        )  # fmt: skip
        codes = np.random.default_rng(0).integers(0, 1024, (9, 16))
        writer.write("train", 0, [dict(codes=codes, track="a", offset_samples=0, caption="slow", samples=1, ends=True)])
        writer.finish()

    def task(tokens, tokenizer, **changes):
        changes = {"model.rows": 16, "model.codebook_size": 1024, "data.columns": 4, "batch_size": 3, **changes}
        changes |= {"model.dim": 32, "model.feed_forward_dim": 32}
        config = task_of(tmp_path / tokens, **changes, tokenizer=tmp_path / tokenizer).config
        return tasks.create(config, model_folder.read_components)

    language_model = task("mine", "model", vocoder=tmp_path / "model")
    state = {"model": {"parameters": drawn(language_model.network), "buffers": {}, "ema": {}}}
    frozen = language_model.load_frozen()
    shown = language_model.summaries(state, frozen, batches(language_model, 1)[0])
    waveforms = {name: (np.asarray(audio), rate) for name, (kind, audio, rate) in shown.items() if kind == "audio"}
    assert set(waveforms) == {"0/generated", "1/generated"}
    for samples, rate in waveforms.values():
        assert samples.shape == (4 * 4096,) and rate == 44_100 and np.isfinite(samples).all() and samples.std() > 0
    assert (waveforms["0/generated"][0] != waveforms["1/generated"][0]).any()
    with pytest.raises(ValueError, match="set config.vocoder"):
        task("mine", "tokenizer").load_frozen()
    with pytest.raises(ValueError, match="were made by 000000000000: give that one, or none"):
        task("other", "model", vocoder=tmp_path / "model").load_frozen()


def test_the_next_command_names_the_runs_that_are_known(tmp_path):
    named = {"tokenizer": "runs/a tokenizer", "vocoder": "runs/vocoder"}

    def read(produces):
        network_class = types.SimpleNamespace(produces=produces)
        return lambda path: {"tokenizer": types.SimpleNamespace(network_class=network_class)}

    known = tasks.create(tiny.config("language_model", tmp_path, **named), read("mel"))
    expected = "bandtok export 'runs/a tokenizer' --vocoder=runs/vocoder --language-model=lm -o MODEL"
    assert known.next_command("lm") == expected
    alone = tasks.create(tiny.config("language_model", tmp_path, tokenizer="runs/dac"), read("audio"))
    assert alone.next_command("lm") == "bandtok export runs/dac --language-model=lm -o MODEL"
    unknown = tasks.create(tiny.config("language_model", tmp_path))
    assert unknown.next_command("lm").startswith("bandtok export TOKENIZER_RUN --vocoder=VOCODER_RUN ")
