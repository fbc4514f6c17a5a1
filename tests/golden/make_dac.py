"""Writes tests/golden/dac: tiny DACs with random weights, and the codes and audio of the published programs.

    pip install --target=SITE --no-deps descript-audio-codec descript-audiotools ...   # and their dependencies
    PYTHONPATH=SITE python tests/golden/make_dac.py tests/golden/dac

Needs PyTorch, transformers and descript-audio-codec 1.0.0 with audiotools 0.7.2; the tests need none of them.

  even, odd    weights.pth of descript-audio-codec with even and with odd strides
  hf           a DacModel of transformers, its folder
  song.dac, chunks.dac    from `even`, encoded whole and in chunks
  golden.npz   the audio, and the codes and the decoded audio of each model
"""

import pathlib
import sys
import types

import numpy as np
import scipy.signal
import torch
from transformers import DacConfig, DacModel  # before the stand-in below, which has no version

# audiotools imports torchaudio, and its loudness needs one function of it.
torchaudio = types.ModuleType("torchaudio")
torchaudio.functional = types.ModuleType("torchaudio.functional")


def lfilter(x, a, b, clamp=True):
    filtered = scipy.signal.lfilter(b.numpy().reshape(-1), a.numpy().reshape(-1), x.numpy())
    return torch.from_numpy(filtered.astype(np.float32))


torchaudio.functional.lfilter = lfilter
sys.modules["torchaudio"] = torchaudio

from audiotools import AudioSignal  # noqa: E402
import dac  # noqa: E402

RATE = 8000
SHAPE = dict(encoder_dim=2, decoder_dim=8, n_codebooks=3, codebook_size=32, codebook_dim=4, sample_rate=RATE)


def randomize(model):
    """Returns the model with weights that vary, because fresh biases and alphas are all alike."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.uniform_(0.5, 2.0)
            elif name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
            elif name.endswith("weight_g"):
                parameter.mul_(torch.empty_like(parameter).uniform_(1.0, 2.0))
            elif name.endswith("weight") and parameter.ndim == 3:  # the initial values of transformers are smaller
                parameter.normal_(0.0, 0.8 / parameter[0].numel() ** 0.5)
    return model.eval()


def main(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    time = np.arange(4001) / RATE
    audio = 0.3 * np.sin(2 * np.pi * 440 * time) * np.exp(-3 * time) + 0.05 * np.random.default_rng(0).normal(size=4001)
    audio = audio.astype(np.float32)
    golden = {"audio": audio}
    models = {
        "even": dac.DAC(encoder_rates=[2, 4], decoder_rates=[4, 2], **SHAPE),
        "odd": dac.DAC(encoder_rates=[2, 5], decoder_rates=[5, 2], **SHAPE),
    }
    with torch.no_grad():
        for name, model in models.items():
            randomize(model).save(folder / f"{name}.pth", package=False)
            encoded = model(torch.from_numpy(audio)[None, None], RATE)
            z = model.quantizer.from_codes(encoded["codes"])[0]
            golden[f"{name}_codes"] = encoded["codes"][0].T.numpy().astype(np.uint8)
            golden[f"{name}_audio"] = model.decode(z)[0, 0].numpy()
        golden["even_two_levels"] = (
            models["even"]
            .decode(
                models["even"].quantizer.from_codes(
                    models["even"](torch.from_numpy(audio)[None, None])["codes"][:, :2]
                )[0]
            )[0, 0]
            .numpy()
        )
        for name, seconds in (("song", None), ("chunks", 0.2)):
            signal = AudioSignal(0.1 * audio, RATE)
            file = models["even"].compress(signal, win_duration=seconds)
            file.save(folder / f"{name}.dac")
            golden[f"{name}_audio"] = models["even"].decompress(folder / f"{name}.dac").audio_data[0, 0].numpy()
        hf = DacModel(
            DacConfig(
                encoder_hidden_size=2, decoder_hidden_size=8, downsampling_ratios=[2, 3], n_codebooks=3,
                codebook_size=32, codebook_dim=4, sampling_rate=RATE,
            )
        )  # fmt: skip
        randomize(hf).save_pretrained(folder / "hf")
        padded = torch.from_numpy(np.pad(audio, (0, -len(audio) % 6)))[None, None]
        encoded = hf.encode(padded)
        golden["hf_codes"] = encoded.audio_codes[0].T.numpy().astype(np.uint8)
        golden["hf_audio"] = hf.decode(audio_codes=encoded.audio_codes).audio_values[0].numpy()
    np.savez_compressed(folder / "golden.npz", **golden)


if __name__ == "__main__":
    main(sys.argv[1])
