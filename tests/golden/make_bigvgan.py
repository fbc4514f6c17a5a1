"""Writes tests/golden/bigvgan: tiny generators of BigVGAN with random weights, and their audio.

    PYTHONPATH=BigVGAN python tests/golden/make_bigvgan.py tests/golden/bigvgan

Needs PyTorch, huggingface_hub and a clone of github.com/NVIDIA/BigVGAN; the tests need none of them.

  v1             config.json and bigvgan_generator.pt with Snake of linear parameters, tanh and a last bias
  v2             with SnakeBeta of logarithmic parameters, limited audio and no last bias
  golden.npz     log-mels `[T, M]`, and each generator's audio from them
"""

import json
import pathlib
import sys
import unittest.mock

import numpy as np
import torch

_PACKAGES = (  # for plots and data, which no generator uses
    "librosa", "librosa.filters", "librosa.util", "matplotlib", "matplotlib.pylab", "scipy", "scipy.io",
    "scipy.io.wavfile",
)  # fmt: skip
for name in _PACKAGES:
    sys.modules[name] = unittest.mock.MagicMock()

from bigvgan import BigVGAN  # noqa: E402
from env import AttrDict  # noqa: E402

SHAPE = {
    "resblock": "1", "upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4], "upsample_initial_channel": 16,
    "resblock_kernel_sizes": [3, 7], "resblock_dilation_sizes": [[1, 3], [1, 3]], "num_mels": 6, "n_fft": 32,
    "win_size": 32, "hop_size": 8, "sampling_rate": 8000, "fmin": 0, "fmax": None,
}  # fmt: skip
MODELS = {
    "v1": {"activation": "snake", "snake_logscale": False},
    "v2": {
        "activation": "snakebeta", "snake_logscale": True, "use_tanh_at_final": False, "use_bias_at_final": False,
    },
}  # fmt: skip


def randomize(model, logarithmic):
    """Returns the model with weights that all matter, and waves of several turns in its activations."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("alpha", "beta")):
                parameter.uniform_(-1.0, 1.5) if logarithmic else parameter.uniform_(0.4, 4.0)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            elif name.endswith("weight_g"):
                parameter.uniform_(0.6, 1.2)
            else:
                parameter.normal_(0.0, 1.0)
    return model.eval()


def main(folder):
    torch.manual_seed(0)
    log_mel = torch.randn(1, SHAPE["num_mels"], 40)
    arrays = {"log_mel": log_mel[0].T.numpy()}
    for name, changes in MODELS.items():
        settings = SHAPE | changes
        model = randomize(BigVGAN(AttrDict(settings)), settings["snake_logscale"])
        with torch.no_grad():
            arrays[name] = model(log_mel)[0, 0].numpy()
        target = pathlib.Path(folder) / name
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        torch.save({"generator": model.state_dict()}, target / "bigvgan_generator.pt")
    np.savez_compressed(pathlib.Path(folder) / "golden.npz", **arrays)
    for name in MODELS:
        level, limited = np.sqrt((arrays[name] ** 2).mean()), (np.abs(arrays[name]) > 0.999).mean()
        print(f"{name} {arrays[name].shape}: level {level:.3f}, {limited:.1%} at the limits")


main(sys.argv[1])
