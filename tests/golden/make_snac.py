"""Writes tests/golden/snac: tiny SNACs with random weights, and the codes and audio of the published program.

    python tests/golden/make_snac.py tests/golden/snac

Needs PyTorch and snac 1.2.1; the tests need neither.

  plain        config.json and pytorch_model.bin of a model with the parts of the 24 kHz model
  windows      the same with attention, as in the larger models
  dense        the same without depthwise convolutions and noise, and with the names of an older PyTorch
  golden.npz   the audio, and for each model its codes as a grid `[T, F]`, and their audio without noise, with the noise
               given here, and of all levels but the last
"""

import json
import pathlib
import re
import sys
import unittest.mock

import numpy as np
from snac import SNAC
import torch

RATE = 8000
SHAPE = dict(sampling_rate=RATE, codebook_size=32, codebook_dim=4, noise=True, depthwise=True, attn_window_size=None)
MODELS = {
    "plain": dict(encoder_dim=4, encoder_rates=[2, 3], decoder_dim=16, decoder_rates=[3, 2], vq_strides=[4, 2, 1]),
    "windows": dict(
        encoder_dim=32, encoder_rates=[2], decoder_dim=64, decoder_rates=[2], vq_strides=[2, 1], attn_window_size=4
    ),
    "dense": dict(
        encoder_dim=2, encoder_rates=[2, 4], decoder_dim=8, decoder_rates=[4, 2], vq_strides=[2, 2, 1], noise=False,
        depthwise=False,
    ),
}  # fmt: skip


def randomize(model):
    """Returns the model with weights that all matter, and that 16 bits hold."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.uniform_(0.5, 2.0)
            elif name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
            elif name.endswith("original0"):
                parameter.uniform_(0.5, 1.2)
            elif name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif "to_" in name:
                parameter.normal_(0.0, 1.5 / parameter.shape[1] ** 0.5)
            parameter.copy_(parameter.half().float())
    return model.eval()


def soften(model, codes):
    """Scales the last convolution by a power of 2, so that the audio is far from the limits of tanh."""
    level = model.decoder.model[:-1](model.quantizer.from_codes(codes)).std().item()
    model.decoder.model[-2].parametrizations.weight.original0.mul_(2.0 ** -round(np.log2(level / 0.3)))


def grid(codes, strides):
    """Returns the codes of all levels as columns, `[T, F]`."""
    parts = [level[0].reshape(-1, strides[0] // stride) for level, stride in zip(codes, strides)]
    return torch.cat(parts, dim=1).numpy().astype(np.uint8)


def decode(model, codes, noise, levels):
    """Returns the audio of the first levels `[S]`, and its noise, `[frames]` for each block of the decoder."""
    drawn = []

    def draw(shape, **_):
        drawn.append(noise(shape[-1]).astype(np.float32))
        return torch.from_numpy(drawn[-1]).reshape(shape)

    latents = 0.0
    for quantizer, level in list(zip(model.quantizer.quantizers, codes))[:levels]:
        latents = latents + quantizer.out_proj(quantizer.decode_code(level)).repeat_interleave(quantizer.stride, -1)
    with unittest.mock.patch.object(torch, "randn", draw):
        return model.decoder(latents)[0, 0].numpy(), drawn


def stored(state, name):
    """Returns a state of 16 bits, of the dense model with the names that weight_norm gave before PyTorch 2."""
    state = {key: leaf if key.endswith("inv_freq") else leaf.half() for key, leaf in state.items()}
    if name != "dense":
        return state
    old = {"original0": "weight_g", "original1": "weight_v"}
    return {re.sub(r"parametrizations\.weight\.(\w+)", lambda match: old[match[1]], key): state[key] for key in state}


def main(folder):
    torch.manual_seed(0)
    random, time = np.random.default_rng(0), np.arange(4001) / RATE
    audio = 0.3 * np.sin(2 * np.pi * 440 * time) * np.exp(-3 * time) + 0.05 * random.normal(size=4001)
    golden = {"audio": audio.astype(np.float32)}
    for name, shape in MODELS.items():
        settings = SHAPE | shape
        model, target = randomize(SNAC(**settings)), pathlib.Path(folder) / name
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        levels = len(settings["vq_strides"])
        with torch.no_grad():
            codes = model.encode(torch.from_numpy(golden["audio"])[None, None])
            soften(model, codes)
            torch.save(stored(model.state_dict(), name), target / "pytorch_model.bin")
            golden[f"{name}_codes"] = grid(codes, settings["vq_strides"])
            golden[f"{name}_audio"], _ = decode(model, codes, np.zeros, levels)
            golden[f"{name}_fewer"], _ = decode(model, codes, np.zeros, levels - 1)
            if settings["noise"]:
                golden[f"{name}_noisy"], noise = decode(model, codes, random.standard_normal, levels)
                golden |= {f"{name}_noise_{number}": array for number, array in enumerate(noise)}
        used = [len(np.unique(row)) for row in golden[f"{name}_codes"].T]
        levels = [float(np.std(golden[f"{name}_{kind}"])) for kind in ("audio", "fewer")]
        print(f"{name}: {golden[f'{name}_codes'].shape}, codes used {used}, levels {levels}")
    np.savez_compressed(pathlib.Path(folder) / "golden.npz", **golden)


if __name__ == "__main__":
    main(sys.argv[1])
