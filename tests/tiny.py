"""Configurations and batches that are small enough for a test, one for each kind of training."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.codecs import component
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.config.load import load_config
from bandtok_jax.configs import bandtok
from bandtok_jax.data_pipelines import iterator
from bandtok_jax.data_pipelines.token_writer import TokenWriter
from bandtok_jax.pretrained import export_folder

TASKS = (
    "mel_tokenizer", "vocoder", "language_model", "waveform_codec", "meltok", "token_vocoder", "mel_autoencoder",
    "masked_prediction", "flow_matching", "feature_codec",
)  # fmt: skip


def fast(*names, among=TASKS):
    """The parameters of a test: all of `among`, where those that are not named are slow proofs."""
    assert set(names) <= set(among), names
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in among]


_COMMON = {
    "total_steps": "8",
    "log_every": "2",
    "evaluate_every": "4",
    "checkpoint_every": "4",
    "batch_size": "4",
    "evaluation_batches": "2",
    "optimizer.warmup_steps": "2",
}
_SPECIAL = {
    "mel_tokenizer": {
        "data.clip_samples": "16384",
        "model.channels": "(16,)",
        "model.codebook_size": "64",
        "model.codebook_dim": "8",
        "loss.adversarial_start": "3",
        "codebook.kmeans_batches": "2",
        "discriminator.channels": "4",
        "discriminator.num_scales": "1",
    },
    "vocoder": {
        "data.clip_samples": "8192",
        "model.dim": "16",
        "model.intermediate_dim": "32",
        "model.num_layers": "1",
        "loss.mel_scales": "((128, 20),)",
        "loss.stft_windows": "(256,)",
        "loss.adversarial_start": "3",
        "discriminator.periods": "(2,)",
        "discriminator.period_channels": "(4, 8)",
        "discriminator.stft_windows": "(256,)",
        "discriminator.stft_channels": "2",
    },
    "language_model": {
        "data.columns": "8",
        "data.caption_bytes": "16",
        "model.codebook_size": "64",
        "model.rows": "4",
        "model.dim": "32",
        "model.num_layers": "1",
        "model.num_heads": "2",
        "model.feed_forward_dim": "64",
        "model.text_dim": "16",
    },
}
_SPECIAL["masked_prediction"] = {
    "data.clip_samples": "19200",
    "masking.block_samples": "1920",
    "model.stem_channels": "4",
    "model.dim": "32",
    "model.intermediate_dim": "64",
    "model.num_heads": "2",
    "model.num_layers": "2",
    "model.layer": "1",
    "model.kernel_size": "5",
    "model.codebook_size": "64",
}
_SPECIAL["waveform_codec"] = {
    "data.clip_samples": "2048",
    "model.encoder_dim": "4",
    "model.decoder_dim": "8",
    "model.strides": "(8,)",
    "model.latent_dim": "8",
    "model.rows": "2",
    "model.codebook_size": "16",
    "model.codebook_dim": "4",
    "codebook.kmeans_batches": "2",
    "optimizer.learning_rate": "0.01",
    "loss.adversarial": "0.1",
    "loss.feature_matching": "2.0",
    **{key: value for key, value in _SPECIAL["vocoder"].items() if key.startswith(("loss.mel", "loss.adv", "discr"))},
}
_MELTOK = {
    "model.haar_levels": "2",
    "model.channels": "(8, 16)",
    "model.num_res_blocks": "1",
    "model.latent_channels": "8",
    "model.codebook_size": "64",
    "model.codebook_dim": "8",
    "model.attention_levels": "(1,)",
    "model.norm_groups": "4",
    "model.window_columns": "4",
    "model.context_columns": "1",
    "data.clip_samples": "8192",
}
_SPECIAL["meltok"] = {**_MELTOK, "codebook.kmeans_batches": "2"}
_SPECIAL["token_vocoder"] = {**_SPECIAL["vocoder"], **_MELTOK}
_SPECIAL["mel_autoencoder"] = {
    "model.patch": "4",
    "model.channels": "(16, 16)",
    "model.latent_channels": "8",
    "data.clip_samples": "7680",
    "discriminator.channels": "4",
    "loss.adversarial_start": "3",
    "loss.perceptual": "1.0",
}
_SPECIAL["flow_matching"] = {
    "data.clip_samples": "30720",
    "model.window_columns": "16",
    "model.context_columns": "4",
    "loss.context_frames": "(1, 2)",
    "model.encoder.stem_channels": "4",
    "model.encoder.dim": "16",
    "model.encoder.intermediate_dim": "32",
    "model.encoder.num_heads": "2",
    "model.encoder.kernel_size": "5",
    "model.encoder.layer": "1",
    "model.autoencoder.channels": "(8,)",
    "model.autoencoder.norm_groups": "4",
    "model.autoencoder.latent_channels": "2",
    "model.codebook_size": "32",
    "model.codebook_dim": "4",
    "model.stale_steps": "3",
    "model.dim": "16",
    "model.num_layers": "1",
    "model.num_heads": "2",
    "model.feed_forward_dim": "32",
    "sampling.steps": "2",
}
_SPECIAL["feature_codec"] = {
    **_SPECIAL["waveform_codec"],
    **{key: value for key, value in _SPECIAL["flow_matching"].items() if key.startswith("model.encoder.")},
    "data.clip_samples": "15360",
    "model.window_columns": "8",
    "model.context_columns": "2",
    "model.decoded_columns": "2",
    "model.strides": "(40, 48)",
    "model.decoder_dim": "32",  # divided by eight devices
}
for _key in ("model.encoder_dim", "model.latent_dim"):
    del _SPECIAL["feature_codec"][_key]
_NAMES = {
    "feature_codec": "muencoder_gan:tiny",
    "flow_matching": "mucodec:tiny",
    "mel_autoencoder": "mel_vae:tiny",
    "meltok": "meltok:tiny",
    "token_vocoder": "token_vocoder:tiny",
    "mel_tokenizer": "bandtok:tiny",
    "vocoder": "vocos:tiny",
    "language_model": "language_model:tiny",
    "masked_prediction": "muencoder:tiny",
    "waveform_codec": "dac:tiny",
}


def settings(task: str, **overrides) -> dict[str, str]:
    """Values of the keys that make a task small."""
    return {**_COMMON, **_SPECIAL[task], **{key: str(value) for key, value in overrides.items()}}


def config(task: str, folder, **overrides):
    """A locked configuration of that task; `folder` is where it may keep data that it needs."""
    changes = settings(task, **overrides)
    if task == "language_model":
        changes["data.tokens"] = str(token_records(pathlib.Path(folder) / "tokens"))
    return load_config(_NAMES[task], changes | _own_components(load_config(_NAMES[task], changes), folder))


def _own_components(config, folder) -> dict[str, str]:
    """The settings that name the earlier components that a configuration needs: exports with random weights."""
    if config.task == "token_vocoder":
        return _own_tokenizer(config, folder)
    if config.model.get("targets") == "mel_rvq":
        return {"tokenizer": _own_mel_rvq(config, folder)}
    roles = [role for role in ("encoder", "autoencoder") if role in config]
    return {role: _own_component(role, config, folder) for role in roles}


def _own_component(role: str, config, folder) -> str:
    """An export with random weights, whose settings are those of the group `role` of a model."""
    path = pathlib.Path(folder) / f"{role}_export"
    if not path.exists():
        name = {"encoder": "muencoder:tiny", "autoencoder": "mel_vae:tiny"}[role]
        own = load_config(name).copy_and_resolve_references().unlock()
        own.model.update(config.model[role])
        if role == "encoder":
            own.model.num_layers = config.model.encoder.layer + 1
        export_folder.save_parts({role: drawn_component(own)}, path)
    return str(path)


def _own_mel_rvq(encoder, folder) -> str:
    """An export with random weights of the quantizer that makes an encoder's targets."""
    path = pathlib.Path(folder) / "mel_rvq_export"
    if not path.exists():
        config = load_config("mel_rvq:tiny").copy_and_resolve_references().unlock()
        config.model.update({name: encoder.model[name] for name in ("mels", "codebook_size", "codebook_dim")})
        config.model.rows = encoder.model.target_rows
        export_folder.save_codec(MelCodec(drawn_component(config)), path)
    return str(path)


def _own_tokenizer(vocoder, folder) -> dict[str, str]:
    """The setting `tokenizer` for a token vocoder: an export with random weights and the vocoder's settings."""
    path, config = pathlib.Path(folder) / "tokenizer_export", load_config("meltok:tiny").copy_and_resolve_references()
    config.unlock().model.update({name: value for name, value in vocoder.model.items() if name in config.model})
    config.model.kind = "meltok"
    if not path.exists():
        export_folder.save_codec(MelCodec(drawn_component(config)), path)
    return {"tokenizer": str(path)}


def shrunk(name: str, folder, **overrides):
    """The configuration of that name with less width, depth, batch and clip; all else is its own.

    The discriminators play from step 0. `folder` is where it may keep data that it needs.
    """
    config = load_config(name).copy_and_resolve_references().unlock()
    model = config.model
    levels, strides = len(model.get("channels", ())[:2]), model.get("strides", ())[-2:]
    common = {"batch_size": 2, "evaluation_batches": 1, "data.workers": 0, "total_steps": 3, "log_every": 1}
    common |= {"evaluate_every": 3, "checkpoint_every": 1}
    discriminators = {"discriminator.period_channels": (4, 8), "discriminator.stft_channels": 2}
    if config.task in ("vocoder", "waveform_codec", "token_vocoder", "feature_codec"):
        discriminators |= {"discriminator.periods": config.discriminator.periods[:1], "loss.adversarial_start": 0}
        discriminators |= {"discriminator.stft_windows": config.discriminator.stft_windows[-1:]}
        discriminators |= {"loss.mel_scales": config.loss.mel_scales[3:5] or config.loss.mel_scales[:1]}

    def windows() -> dict:
        """Few channels and columns of a MelTok."""
        columns, context = 4, 1
        return {
            "model.channels": (8, 16, 16)[: len(model.channels)], "model.num_res_blocks": 1, "model.norm_groups": 4,
            "model.latent_channels": 8, "model.codebook_size": 64, "model.codebook_dim": 8,
            "model.window_columns": columns, "model.context_columns": context,
            "data.clip_samples": columns * model.compression * config.mel.hop_samples,
        }  # fmt: skip

    changes = {
        "meltok": lambda: {**windows(), "codebook.kmeans_batches": 2},
        "token_vocoder": lambda: {
            **windows(), "model.dim": 16, "model.intermediate_dim": 32, "model.num_layers": 1,
            "loss.stft_windows": config.loss.stft_windows[:1], **discriminators,
        },
        "mel_rvq": lambda: {
            "model.rows": 2, "model.codebook_size": 32, "codebook.kmeans_batches": 2, "data.clip_samples": 9600,
        },
        "mel_tokenizer": lambda: {
            "model.channels": (8,) * levels, "model.num_res_blocks": 1, "model.mid_blocks": 1,
            "model.codebook_size": 64, "model.codebook_dim": 8, "discriminator.channels": 4,
            "codebook.kmeans_batches": 2, "loss.adversarial_start": 0,
            "data.clip_samples": 4 * config.mel.hop_samples * model.patch * 2 ** (levels - 1),
        },
        "mel_autoencoder": lambda: {
            "model.patch": 4, "model.channels": (8, 8), "model.num_res_blocks": 1, "model.norm_groups": 4,
            "model.latent_channels": 4, "discriminator.channels": 4, "loss.adversarial_start": 0,
            "data.clip_samples": 16 * config.mel.hop_samples,
        },
        "hifigan": lambda: {
            "model.initial_channels": 2 ** (1 + len(model.rates)), "model.block_kernel_sizes": (3,),
            "model.dilations": (1,),
            "data.clip_samples": 16 * config.mel.hop_samples, "loss.stft_windows": config.loss.stft_windows[:1],
            **discriminators,
        },
        "vocoder": lambda: {
            "model.dim": 16, "model.intermediate_dim": 32, "model.num_layers": 1,
            "data.clip_samples": 16 * config.mel.hop_samples, "loss.stft_windows": config.loss.stft_windows[:1],
            **discriminators,
        },
        "waveform_codec": lambda: {
            "model.encoder_dim": 4, "model.decoder_dim": 2 ** (1 + len(strides)), "model.strides": strides,
            "model.rows": 2, "model.latent_dim": 8, "model.codebook_size": 16, "model.codebook_dim": 4,
            "codebook.kmeans_batches": 2,
            "data.clip_samples": math.ceil(2048 / math.prod(strides)) * math.prod(strides),
            **discriminators,
        },
        "feature_codec": lambda: {
            **{key: value for key, value in _SPECIAL["feature_codec"].items() if key.startswith(("model.", "data."))},
            "codebook.kmeans_batches": 2, **discriminators,
        },
        "masked_prediction": lambda: _SPECIAL["masked_prediction"],
        "flow_matching": lambda: {
            **_SPECIAL["flow_matching"], "model.autoencoder.channels": (8,) * len(model.autoencoder.channels),
        },
        "language_model": lambda: {
            "data.columns": 8, "data.caption_bytes": 16, "model.codebook_size": 64, "model.rows": 4, "model.dim": 32,
            "model.num_layers": 2,
            "model.num_heads": 2, "model.feed_forward_dim": 64, "model.text_dim": 16, "model.text_layers": 1,
            "data.tokens": str(token_records(pathlib.Path(folder) / "tokens")),
        },
    }[model.kind if model.kind in ("meltok", "hifigan", "mel_rvq") else config.task]()  # fmt: skip
    changes = {key: str(value) for key, value in {**common, **changes, **overrides}.items()}
    if folder:
        changes |= _own_components(load_config(name, changes), folder)
    return load_config(name, changes)


def with_language_model(codec: Codec, **overrides) -> Codec:
    """The codec with a narrow language model of random weights."""
    sizes = {"dim": 32, "num_layers": 1, "num_heads": 2, "feed_forward_dim": 32, "text_dim": 16, "row_dim": 16}
    sizes |= {"rows": codec.rows, "codebook_size": codec.codebook_size}
    changes = {f"model.{name}": size for name, size in sizes.items()}
    changes |= {"data.columns": 8, "data.caption_bytes": 16} | overrides
    config = load_config("language_model:tiny", {key: str(value) for key, value in changes.items()})
    return assemble(codec.components | {"language_model": drawn_component(config)})


def token_records(folder: pathlib.Path) -> pathlib.Path:
    """Tracks in which every code follows from the one a column earlier, but for some noise."""
    if not folder.exists():
        metadata = dict(codebook_size=64, rows=4, columns_per_second=10.77, row_kind="band", samples_per_column=4096)
        writer = TokenWriter(folder, tokenizer="a run", weight_hash="0" * 64, **metadata)
        random = np.random.default_rng(0)
        for split, count in (("train", 16), ("validation", 8)):
            tracks = []
            for number in range(count):
                first, columns = random.integers(0, 64, 4), np.arange(24)[:, None]
                noise = random.integers(0, 64, (24, 4)) * (random.random((24, 4)) < 0.1)
                tracks.append(
                    {
                        "codes": (first + 3 * columns + noise) % 64,
                        "track": f"{split}-{number}",
                        "offset_samples": 0,
                        "caption": ("rising", "falling")[number % 2],
                        "samples": 24 * 4096,
                        "ends": True,
                    }
                )
            writer.write(split, 0, tracks)
        writer.finish()
    return folder


def batch(config):
    """The first batch of the configuration's data, numbers alone, as JAX arrays."""
    stream = iterator.train_batches(config.data, split="train", batch_size=config.batch_size, seed=config.seed)
    try:
        arrays = next(stream)
    finally:
        stream.close()
    return {name: jnp.asarray(value) for name, value in arrays.items() if value.dtype.kind in "biuf"}


def random_weights(network, seed=0):
    """Parameters of a network, drawn by NumPy, as lively as trained ones; there is no program to compile."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("alpha", "gain"):
            return rng.uniform(0.5, 1.0, leaf.shape).astype(np.float32)
        return (rng.normal(size=leaf.shape) * (0.1 if name == "bias" else 1.0)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, network.shapes()[0])


def scaled_weights(network, seed=0):
    """Parameters and buffers of a network, drawn by NumPy; kernels keep the power of their input."""
    return _scaled(network.shapes(), seed)


def _scaled(shapes, seed):
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "mean" or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        if name in ("counts", "alpha", "gain", "scale", "variance"):
            return np.ones(leaf.shape, leaf.dtype)
        # The vectors and the sums of a codebook are the same.
        own = np.random.default_rng([seed, *leaf.shape]) if name in ("vectors", "sums") else rng
        power = np.prod(leaf.shape[:-1]) if name == "kernel" else 100 if name == "bias" else 1
        return (own.normal(size=leaf.shape) / power**0.5).astype(leaf.dtype)

    return tuple(jax.device_put(jax.tree_util.tree_map_with_path(draw, tree)) for tree in shapes)


def drawn_state(task, seed=0):
    """A state such as `task.init` returns, with `scaled_weights`; there is no program to compile."""
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(task.init, jax.random.key(seed)))
    for part in {"model", "discriminator"} & set(state):
        names = [name for name in ("parameters", "buffers") if name in state[part]]
        state[part] |= zip(names, _scaled([state[part][name] for name in names], seed))
        if state[part].get("ema"):
            state[part]["ema"] = state[part]["parameters"]
    return jax.device_put(state)


def drawn_component(config, seed=0) -> component.Component:
    """A component with `scaled_weights`; `component.init_random` compiles a program for seconds."""
    drawn = component.Component(config, {}, source_path="random weights")
    drawn.weights = dict(zip(("parameters", "buffers"), scaled_weights(drawn.network, seed)))
    return drawn


def drawn_codec() -> Codec:
    """The codec of `bandtok_jax.create("bandtok:tiny")`, whose weights are drawn by NumPy."""
    names = {"tokenizer": "bandtok:tiny", "vocoder": bandtok.VOCODERS["tiny"]}
    return assemble({role: drawn_component(load_config(name)) for role, name in names.items()})


def in_float64(tree):
    """The same tree with all its floating-point leaves in 64 bits."""
    return jax.tree.map(lambda x: x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
