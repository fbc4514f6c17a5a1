"""Writes tests/golden/mimi: tiny Mimis with random weights, and the codes and audio of the published programs.

    pip install transformers einops sentencepiece && pip install --no-deps moshi==0.2.13
    python tests/golden/make_mimi.py tests/golden/mimi

Needs PyTorch, transformers and moshi; the tests need none of them.

  hf                  a MimiModel of transformers, its folder
  moshi.safetensors   the weights of a MimiModel of the package moshi, by the names of its published file
  golden.npz          the audio, and for each model, some lengths and silence the codes and the decoded audio, and
                      for the first length the audio of the first level and of the first two
"""

import pathlib
import sys

from moshi.models import loaders
import numpy as np
import safetensors.torch
import torch
import transformers

# The first is many chunks of a test and several windows of attention; the others end within a column or a frame, or are
# shorter than those. The package moshi fills the last column of a file with silence, transformers fills its layers.
LENGTHS = {"hf": (3001, 3000, 2995, 61, 25, 13, 12, 7, 1), "moshi": (4800, 24, 8)}
SILENCE = 1200  # samples
LEVELS, CODES, CODE_DIM = 4, 32, 8
# Heads and window of attention are those of the published model, since the file does not name them.
MOSHI_DIM = 32
MOSHI = {
    "sample_rate": 24_000,
    "channels": 1,
    "frame_rate": 3000,
    "seanet": loaders._seanet_kwargs | {"dimension": MOSHI_DIM, "n_filters": 4, "ratios": [2, 2]},
    "quantizer": {
        "dimension": CODE_DIM, "n_q": LEVELS, "bins": CODES, "input_dimension": MOSHI_DIM,
        "output_dimension": MOSHI_DIM,
    },
    "transformer": loaders._transformer_kwargs
    | {
        "d_model": MOSHI_DIM, "num_layers": 2, "dim_feedforward": 24, "input_dimension": MOSHI_DIM,
        "output_dimensions": [MOSHI_DIM],
    },
}  # fmt: skip


def randomize(model):
    """Returns the model with weights that all matter, and attention that prefers some positions."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "transformer" in name:
                if "scale" in name:
                    parameter.uniform_(0.3, 0.7)
                elif "norm" in name:
                    parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
                else:
                    gain = 2.5 if any(part in name for part in ("q_proj", "k_proj", "in_proj")) else 1.0
                    parameter.normal_(0, gain * parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
            elif "upsample" in name:
                parameter.uniform_(0.5, 1.0)
            else:
                gain = 0.6 if name.startswith("decoder") else 1.5
                parameter.normal_(0, gain * parameter[0].numel() ** -0.5)
    return model.eval()


def fill(codebooks, latents):
    """Sets the codes of every level to residuals of latents `[T, D]`, so that many are in use."""
    for codebook in codebooks:
        chosen = latents[torch.randperm(len(latents))[:CODES]]
        usage = torch.empty(CODES).uniform_(1.0, 9.0)
        for name, value in {
            "cluster_usage": usage, "embed_sum": chosen * usage[:, None], "embedding_sum": chosen * usage[:, None],
            "_initialized": torch.ones(1),
        }.items():  # fmt: skip
            if name in dict(codebook.named_buffers()):
                getattr(codebook, name).copy_(value)
        latents = latents - chosen[torch.cdist(latents, chosen).argmin(1)]


def published_names(state):
    """Returns arrays of the package moshi by the names of its published file."""
    new = {"in_projs.0.weight": "in_proj_weight", "out_projs.0.weight": "out_proj.weight"}
    for ours, theirs in new.items():
        state = {name.replace(ours, theirs): leaf for name, leaf in state.items()}
    return state


def main(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    length = max(max(lengths) for lengths in LENGTHS.values())
    time = np.arange(length) / 8000
    random = np.random.default_rng(0).normal(size=length)
    envelope = np.exp(-3 * (time % 0.3))
    audio = (0.3 * np.sin(2 * np.pi * 440 * time) * envelope + 0.05 * random).astype(np.float32)
    golden = {"audio": audio}
    config = transformers.MimiConfig(
        sampling_rate=8000, num_filters=4, hidden_size=16, upsampling_ratios=[3, 2], num_attention_heads=2,
        num_key_value_heads=2, num_hidden_layers=2, intermediate_size=24, codebook_size=CODES, codebook_dim=CODE_DIM,
        vector_quantization_hidden_dimension=CODE_DIM, num_quantizers=LEVELS, upsample_groups=16, sliding_window=30,
    )  # fmt: skip
    hf = randomize(transformers.MimiModel(config))
    moshi = randomize(loaders.get_mimi(None, MOSHI, num_codebooks=LEVELS))
    with torch.no_grad():
        latents = hf.encoder(torch.from_numpy(audio)[None, None]).latents
        split = hf.quantizer
        for part in (split.semantic_residual_vector_quantizer, split.acoustic_residual_vector_quantizer):
            fill([layer.codebook for layer in part.layers], part.input_proj(latents)[0].T)
        latents = moshi.encode_to_latent(torch.from_numpy(audio)[None, None], quantize=False)
        for part in (moshi.quantizer.rvq_first, moshi.quantizer.rvq_rest):
            fill([layer._codebook for layer in part.vq.layers], part.input_proj(latents)[0].T)
    hf.save_pretrained(folder / "hf")
    safetensors.torch.save_file(published_names(moshi.state_dict()), folder / "moshi.safetensors")
    for name, model in (("hf", hf), ("moshi", moshi)):
        for length in (*LENGTHS[name], "silence"):
            part = np.zeros(SILENCE, np.float32) if length == "silence" else audio[:length]
            with torch.no_grad():
                encoded = model.encode(torch.from_numpy(part)[None, None])
                codes = encoded if name == "moshi" else encoded.audio_codes
                decoded = [model.decode(codes[:, :levels]) for levels in (LEVELS, 1, 2)]
                decoded = [(wave if name == "moshi" else wave.audio_values)[0, 0].numpy() for wave in decoded]
            golden[f"{name}_codes_{length}"] = codes[0].T.numpy().astype(np.uint8)
            golden[f"{name}_audio_{length}"] = decoded[0]
            if length == LENGTHS[name][0]:
                golden[f"{name}_levels_1"], golden[f"{name}_levels_2"] = decoded[1:]
                used = [len(np.unique(level)) for level in codes[0].numpy()]
                print(
                    f"{name} {tuple(codes.shape)} {decoded[0].shape}: codes in use {used}, level {decoded[0].std():.3f}"
                )
    np.savez_compressed(folder / "golden.npz", **golden)


if __name__ == "__main__":
    main(sys.argv[1])
