"""Writes tests/golden/encodec: tiny EnCodecs with random weights, and the codes and audio of the published programs.

    pip install transformers einops && pip install --no-deps encodec==0.1.1
    python tests/golden/make_encodec.py tests/golden/encodec

Needs PyTorch, transformers and encodec; the tests need none of them.

  official.th    a state_dict of the package encodec, a causal mono model as its 24 kHz one
  hf             an EncodecModel of transformers, its folder
  golden.npz     the audio, and for each model and some lengths the codes and the decoded audio, and for the whole the
                 audio of the first two levels
"""

import pathlib
import sys
import unittest.mock

import numpy as np
import torch
import transformers  # before the stand-in below, which has no version

sys.modules["torchaudio"] = unittest.mock.MagicMock()  # reads files, which no network does

from encodec.model import EncodecModel  # noqa: E402
from encodec.modules import SEANetDecoder, SEANetEncoder  # noqa: E402
from encodec.quantization import ResidualVectorQuantizer  # noqa: E402

# The first has several windows of a test; the others end within a column, or are shorter than a mirror.
LENGTHS = (3001, 2999, 240, 61, 25, 13, 7, 1)
OFFICIAL = dict(channels=1, n_filters=2, dimension=8, ratios=[4, 3, 2], causal=True)
LEVELS, CODES = 3, 32


def randomize(model):
    """Returns the model with weights that all matter, and LSTMs that remember for long."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lstm" in name:
                parameter.uniform_(-0.5, 0.5)
                if "bias" in name:  # forget gates near 1
                    parameter[len(parameter) // 4 : len(parameter) // 2] += 1.5
            elif name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
            elif name.endswith(("weight_g", "original0")):
                parameter.mul_(torch.empty_like(parameter).uniform_(1.5, 2.5))
    return model.eval()


def fill(codebooks, latents):
    """Sets the codes of every level to residuals of latents `[T, D]`, so that many are in use."""
    for codebook in codebooks:
        chosen = latents[torch.randperm(len(latents))[: len(codebook.embed)]]
        codebook.embed.copy_(chosen)
        codebook.embed_avg.normal_()
        codebook.cluster_size.uniform_(1.0, 9.0)
        codebook.inited.fill_(1.0)
        latents = latents - chosen[torch.cdist(latents, chosen).argmin(1)]


def main(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    time = np.arange(max(LENGTHS)) / 8000
    random = np.random.default_rng(0).normal(size=len(time))
    audio = (0.3 * np.sin(2 * np.pi * 440 * time) * np.exp(-3 * time) + 0.05 * random).astype(np.float32)
    golden = {"audio": audio}
    quantizer = ResidualVectorQuantizer(dimension=OFFICIAL["dimension"], n_q=LEVELS, bins=CODES)
    official = randomize(
        EncodecModel(SEANetEncoder(**OFFICIAL), SEANetDecoder(**OFFICIAL), quantizer, [24.0], 24_000, channels=1)
    )
    config = transformers.EncodecConfig(
        sampling_rate=8000, target_bandwidths=[6.4, 9.6], num_filters=4, hidden_size=6, codebook_dim=6,
        upsampling_ratios=[5, 2], codebook_size=16,
    )  # fmt: skip
    hf = randomize(transformers.EncodecModel(config))
    with torch.no_grad():
        whole = torch.from_numpy(audio)[None, None]
        fill([layer._codebook for layer in quantizer.vq.layers], official.encoder(whole)[0].T)
        fill([layer.codebook for layer in hf.quantizer.layers], hf.encoder(whole)[0].T)
    torch.save(official.state_dict(), folder / "official.th")
    hf.save_pretrained(folder / "hf")
    with torch.no_grad():
        for length in LENGTHS:
            part = torch.from_numpy(audio[:length])[None, None]
            ((codes, _),) = official.encode(part)
            golden[f"official_codes_{length}"] = codes[0].T.numpy().astype(np.uint8)
            golden[f"official_audio_{length}"] = official.decode([(codes, None)])[0, 0].numpy()
            encoded = hf.encode(part, bandwidth=9.6)
            codes_hf = encoded.audio_codes.reshape(1, -1, encoded.audio_codes.shape[-1])
            golden[f"hf_codes_{length}"] = codes_hf[0].T.numpy().astype(np.uint8)
            golden[f"hf_audio_{length}"] = hf.decode(codes_hf[None], [None])[0][0, 0].numpy()
            if length == LENGTHS[0]:
                golden["official_two_levels"] = official.decode([(codes[:, :2], None)])[0, 0].numpy()
                golden["hf_two_levels"] = hf.decode(codes_hf[None, :, :2], [None])[0][0, 0].numpy()
    np.savez_compressed(folder / "golden.npz", **golden)
    for name in ("official", "hf"):
        codes, decoded = golden[f"{name}_codes_{LENGTHS[0]}"], golden[f"{name}_audio_{LENGTHS[0]}"]
        used = [len(np.unique(level)) for level in codes.T]
        print(f"{name} {codes.shape} {decoded.shape}: codes in use {used}, level {np.sqrt((decoded**2).mean()):.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
