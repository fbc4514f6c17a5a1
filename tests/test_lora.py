"""Low-rank adapters of a language model: their start, training, resume and export, and mistakes with them."""

import shutil

import jax
from jax.sharding import AbstractMesh
import numpy as np
import pytest

import bandtok_jax
from bandtok_jax import tasks
from bandtok_jax.cli.dispatch import main
from bandtok_jax.codecs import component
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.config.load import load_config
from bandtok_jax.config.stored import write_config
from bandtok_jax.data_pipelines.token_writer import TokenWriter
from bandtok_jax.layers import lora
from bandtok_jax.models import registry
from bandtok_jax.models.language_model import LAYOUTS
from bandtok_jax.pretrained import adapter_file, export_folder
from bandtok_jax.runs.weights import load_part, load_weights
from bandtok_jax.tasks import adapters
from bandtok_jax.training import loop, sharding
from bandtok_jax.training.run import resolve
from tests import kept_programs, tiny

ADAPTERS = {"lora.rank": 2, "lora.alpha": 4.0}


def _random_model(config, seed=0):
    model = component.Component(tasks.resolve_config(config), {}, source_path="random weights")
    model.weights = {"parameters": tiny.random_weights(model.network, seed), "buffers": {}}
    return model


def _task(config, base):
    config = config.copy_and_resolve_references().unlock()
    config.base = "base"
    return tasks.create(config.lock(), lambda path: {"language_model": base})


@pytest.mark.parametrize("layout", tiny.fast("flat", among=LAYOUTS))
def test_adapters_start_as_the_base_and_learn_alone(layout, tmp_path):
    config = tiny.config("language_model", tmp_path, **ADAPTERS, **{"model.layout": layout})
    base = _random_model(config)
    task = _task(config, base)
    state, frozen, batch = jax.jit(task.init)(jax.random.key(1)), task.load_frozen(), tiny.batch(config)
    assert task.frozen_spec() == jax.eval_shape(task.load_frozen)
    merged = lora.merge(frozen["base"], jax.device_get(state["model"]["parameters"]), 2.0)
    jax.tree.map(np.testing.assert_array_equal, merged, base.weights["parameters"])

    # The whole network is evaluated as one without adapters, and has exactly its losses.
    whole = tasks.create(tiny.config("language_model", tmp_path, **{"model.layout": layout}))
    weights = {"parameters": base.weights["parameters"], "buffers": {}, "ema": {}}
    losses = jax.jit(task.evaluate)(state, frozen, batch)[1]
    np.testing.assert_array_equal(losses, jax.jit(whole.evaluate)({"model": weights}, frozen, batch)[1])

    # Two products in self-attention, three in cross-attention, two in the feed-forward; four in each depth layer.
    kernels = lora.adapted(base.weights["parameters"], task.network.attribute("ADAPTED_KERNELS"))
    assert len(kernels) == 7 + (2 * 4 if layout == "depth" else 0)
    trained = sum(leaf.size for leaf in jax.tree.leaves(state["model"]["parameters"]))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state["model"]["optimizer"]) if leaf.ndim)
    assert (
        moments
        == 2 * trained
        == 2 * sum(2 * sum(k.shape[-2:]) * k.size // np.prod(k.shape[-2:]) for k in kernels.values())
    )


def test_products_have_the_rank_and_the_scale():
    random = np.random.default_rng(0)
    kernel, a, b = (random.normal(size=shape).astype(np.float32) for shape in ((3, 8, 6), (3, 2, 6), (3, 8, 2)))
    merged = lora.merge({"x": {"kernel": kernel}}, {"x": {"lora_a": a, "lora_b": b}}, 2.0)["x"]["kernel"]
    assert isinstance(merged, np.ndarray) and (np.linalg.matrix_rank(merged - kernel, tol=1e-4) == 2).all()
    np.testing.assert_allclose(merged - kernel, 2.0 * np.einsum("por,pri->poi", b, a), atol=1e-5)
    with pytest.raises(ValueError, match=r"adapter x/? is .*, and its kernel is"):
        lora.merge({"x": {"kernel": kernel[:, :7]}}, {"x": {"lora_a": a, "lora_b": b}}, 2.0)


@pytest.mark.parametrize("variant, layout", [("tiny", "flat"), ("base", "flat"), ("base", "depth"), ("small", "delay")])
def test_every_adapter_has_a_place(variant, layout, monkeypatch):
    monkeypatch.setattr(sharding, "REPLICATED_BELOW_ELEMENTS", 1)
    task = tasks.create(load_config(f"language_model:{variant}", {"model.layout": layout, "lora.rank": "16"}))
    mesh = AbstractMesh((1, 2, 2), sharding.AXES)
    state = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    places = sharding.shardings(state, task.SHARDING, mesh)
    for path, place in jax.tree_util.tree_leaves_with_path(places["model"]["parameters"]):
        split = {axis for axis in place.spec if axis}
        narrow = jax.tree_util.keystr(path, simple=True, separator="/").rsplit("/", 2)[1] in ("out", "down")
        assert split == {"fsdp" if (path[-1].key == "lora_a") != narrow else "tensor"}, path


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def kept():
    with kept_programs.kept():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An export with a language model, and the folder of tokens of its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = tiny.drawn_codec()
    writer = TokenWriter(
        folder / "tokens", codebook_size=1024, rows=16, columns_per_second=10.77, row_kind="band", tokenizer="",
        weight_hash=tokenizer.weight_hash, samples_per_column=4096,
    )  # fmt: skip
    for split in ("train", "validation"):
        codes = np.random.default_rng(0).integers(0, 1024, (40, 16))
        writer.write(split, 0, [dict(codes=codes, track=split, offset_samples=0, caption="slow", samples=1, ends=True)])
    writer.finish()
    model = _random_model(_config(folder))
    model.tokenizer_hash = tokenizer.weight_hash
    export_folder.save_codec(assemble(tokenizer.components | {"language_model": model}), folder / "export")
    return folder


def _config(folder, **changes):
    changes = {"model.codebook_size": 1024, "model.rows": 16, "data.columns": 4, "total_steps": 4, **changes}
    changes |= {"evaluate_every": 4, "checkpoint_every": 2, "evaluation_batches": 1, "data.tokens": folder / "tokens"}
    return load_config("language_model:tiny", tiny.settings("language_model", **changes))


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "adapters"
    loop.train(_config(base, **ADAPTERS), folder, init_from=base / "export")
    return folder


def test_a_resumed_run_has_the_same_adapters(run, base, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "4")
    loop.train(_config(base, **ADAPTERS), copy)  # the path of the base is known
    for part in ("weights", "training"):
        first, second = (load_part(folder, 4, part) for folder in (run, copy))
        jax.tree.map(np.testing.assert_array_equal, first, second)
    adapters = load_weights(run, 4)["model"]["parameters"]
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(adapters)} == {"lora_a", "lora_b"}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(adapters["blocks"]["0"]["feed_forward"]))
    other = shutil.copytree(base / "export", tmp_path / "moved")
    moved = resolve(_config(base, **ADAPTERS), copy, init_from=other, resumed=True)  # the same weights elsewhere
    assert moved.config.base == str(other) and moved.task.load_frozen()


def test_merged_and_added_weights_are_the_same(run, base, tmp_path, capsys):
    assert main(["export", str(run), "-o", str(tmp_path / "merged")]) == 0
    assert main(["export", str(run), "--adapter", "-o", str(tmp_path / "mine")]) == 0
    file = tmp_path / "mine" / "adapters.safetensors"
    assert capsys.readouterr().out.splitlines()[-1] == str(file)
    assert file.stat().st_size < (base / "export" / "model.safetensors").stat().st_size / 10
    merged = bandtok_jax.load(tmp_path / "merged")
    added = bandtok_jax.load(base / "export", adapter=file)
    assert isinstance(merged, Codec) and list(merged.components) == ["tokenizer", "vocoder", "language_model"]
    logits = _logits(merged, added, bandtok_jax.load(run), bandtok_jax.load(base / "export"))
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])
    assert np.abs(logits[0] - logits[3]).max() > 1e-3

    # The merged model is no longer that which the adapters were trained for.
    arguments = ["generate", f"--model={tmp_path / 'merged'}", f"--adapter={file}", "-o", str(tmp_path / "new.wav")]
    assert main([*arguments, "--seconds=1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "holds adapters of the language model" in error and "load the model that they were trained for" in error
    with pytest.raises(ValueError, match="its metadata.*export it again"):
        bandtok_jax.load(base / "export", adapter=base / "export" / "model.safetensors")
    write_config(_config(base), tmp_path / "whole")
    with pytest.raises(ValueError, match="has no adapters, for it was not trained with lora.rank"):
        adapter_file.save_adapters(tmp_path / "whole", tmp_path)


def _logits(*codecs):
    """The logits of the language model of each codec, by one program."""
    models = [codec.components["language_model"] for codec in codecs]
    codes = np.random.default_rng(1).integers(0, 1024, (1, 3, 16))
    apply = jax.jit(lambda parameters: models[0].network.apply(parameters, {}, codes)[..., :1025])
    return [np.asarray(apply(model.weights["parameters"])) for model in models]


def test_a_base_that_does_not_fit_is_named(base, tmp_path):
    def train(init_from=base / "export", **changes):
        loop.train(_config(base, **ADAPTERS | changes), tmp_path / "run", init_from=init_from)

    with pytest.raises(ValueError, match="lora.rank is 2, and there is no model to adapt: give .* --init-from"):
        train(None)
    with pytest.raises(ValueError, match=r"another architecture, model.rope \('2d' there, '1d' here\)"):
        train(**{"model.rope": "1d"})
    with pytest.raises(ValueError, match="lora.rank is 33, and the smallest matrix has rank 32: set it to at most 32"):
        train(**{"lora.rank": 33})
    with pytest.raises(ValueError, match="lora.rank is -1: set it to a whole number of at least 0"):
        train(**{"lora.rank": -1})
    other = _random_model(_config(base))
    other.tokenizer_hash = "0" * 64
    export_folder.save_parts({"language_model": other}, tmp_path / "other")
    with pytest.raises(ValueError, match="was trained on the tokenizer 000000000000, and the tokens in data.tokens"):
        train(tmp_path / "other")
    earlier = _random_model(_config(base, **{"model.scale_embeddings": False}))
    with earlier.config.unlocked():  # a configuration from before this setting
        del earlier.config.model["scale_embeddings"]
    export_folder.save_parts({"language_model": earlier}, tmp_path / "earlier")
    with pytest.raises(ValueError, match=r"another architecture, model.scale_embeddings \(False there, True here\)"):
        train(tmp_path / "earlier")
    settings = registry.arguments(tasks.resolve_config(_config(base, **{"model.scale_embeddings": False})))
    assert adapters.check_base(earlier, settings, earlier.tokenizer_hash) is earlier
    export_folder.save_codec(tiny.drawn_codec(), tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="holds no language model: start from a run or export that has one"):
        train(tmp_path / "tokenizer")
