"""State dicts of MuCodec's published files at a tiny size, random, by their published names."""

import pathlib

import numpy as np

from tests import audioldm_reference

GOLDEN = pathlib.Path(__file__).parent / "golden" / "muencoder" / "golden.npz"
FEATURES, CHANNELS, BINS = 24, 8, 2  # width of the encoder; channels and bins of stereo latents
State = dict[str, np.ndarray]


def audioldm() -> State:
    """Four resolutions, as published, of a mel with 16 bins; 4 channels of a latent."""
    sizes = dict(widths=(32,) * 4, blocks=1, latent=CHANNELS // 2, mels=8 * BINS, initial=4, rates=(480,), kernels=(3,))
    return audioldm_reference.random_state(audioldm_reference.shapes(**sizes))


def muq() -> State:
    """The golden encoder with six blocks, and with the 128 mel bins of the front end."""
    state = {name: leaf for name, leaf in np.load(GOLDEN).items() if name.startswith("model.")}
    for number in range(2, 6):
        state |= {name.replace("layers.0.", f"layers.{number}."): leaf for name, leaf in state.items()}
    rng = np.random.default_rng(0)
    state["model.conv.linear.weight"] = rng.normal(size=(FEATURES, 4 * 32)).astype(np.float32)
    state["model.quantizer_melspec_2048.random_projection"] = rng.normal(size=(4 * 128, 6)).astype(np.float32)
    return state


def mucodec(rows=2, codes=12, code_dim=3, dim=144, layers=2, feed_forward=20) -> State:
    """The published default is one row of 16,384 codes."""
    rng, state = np.random.default_rng(1), {}

    def array(name, *shape):
        state[name] = (0.3 * rng.normal(size=shape)).astype(np.float32)

    def linear(name, inputs, outputs):
        array(f"{name}.weight", outputs, inputs)
        array(f"{name}.bias", outputs)

    for number in range(rows):
        quantizer = f"rvq_muencoder_emb.quantizers.{number}"
        for name, inputs, outputs in (("in_proj", FEATURES, code_dim), ("out_proj", code_dim, FEATURES)):
            array(f"{quantizer}.{name}.weight_v", outputs, inputs, 1)
            array(f"{quantizer}.{name}.weight_g", outputs, 1, 1)
            array(f"{quantizer}.{name}.bias", outputs)
        array(f"{quantizer}.codebook.weight", codes, code_dim)
        state[f"{quantizer}.stale_counter"] = np.arange(codes, dtype=np.float32)
    linear("cond_muencoder_emb", FEATURES, CHANNELS * BINS // 2)
    array("zero_cond_embedding1", CHANNELS * BINS)
    state["normfeat.counts"] = np.array([50], np.float32)
    for name in ("sum_x", "sum_target_x2"):
        array(f"normfeat.{name}", CHANNELS, BINS)
    state["normfeat.sum_x2"] = 50 + rng.uniform(size=(CHANNELS, BINS)).astype(np.float32)
    array("rsq48tomuencoder.kernel", 1, 1, 5)

    estimator = "cfm_wrapper.estimator"
    array(f"{estimator}.pos_embed.proj.weight", dim, 3 * CHANNELS, 2, 2)
    array(f"{estimator}.pos_embed.proj.bias", dim)
    linear(f"{estimator}.adaln_single.emb.timestep_embedder.linear_1", 512, dim)
    linear(f"{estimator}.adaln_single.emb.timestep_embedder.linear_2", dim, dim)
    linear(f"{estimator}.adaln_single.linear", dim, 6 * dim)
    array(f"{estimator}.scale_shift_table", 2, dim)
    linear(f"{estimator}.proj_out", dim, 4 * CHANNELS)
    for number in range(layers):
        block = f"{estimator}.transformer_blocks.{number}"
        array(f"{block}.scale_shift_table", 6, dim)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            linear(f"{block}.attn1.{name}", dim, dim)
        linear(f"{block}.ff.net.0.proj", dim, feed_forward)
        linear(f"{block}.ff.net.2", feed_forward, dim)
    return state
