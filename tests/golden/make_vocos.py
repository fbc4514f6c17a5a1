"""Writes tests/golden/vocos: tiny models of the package vocos with random weights, and their audio.

    PYTHONPATH=SITE python tests/golden/make_vocos.py tests/golden/vocos

Needs PyTorch, torchaudio and vocos 0.1.0; the tests need none of them. Only the Python
modules of torchaudio are used. If its library does not fit PyTorch, install it with --no-deps to SITE and delete
torchaudio/lib there.

  center, same   config.yaml and pytorch_model.bin, by the padding
  golden.npz     noise, its log-mel `[T, M]` by each model, and each model's audio from that
"""

import pathlib
import sys

import numpy as np
import torch
from vocos.pretrained import Vocos
import yaml

SHAPES = {
    "center": dict(sample_rate=24000, n_fft=64, hop_length=16, n_mels=8, dim=12, intermediate_dim=20, num_layers=2),
    "same": dict(sample_rate=8000, n_fft=48, hop_length=24, n_mels=6, dim=8, intermediate_dim=16, num_layers=1),
}


def settings(padding, sample_rate, n_fft, hop_length, n_mels, dim, intermediate_dim, num_layers):
    """Returns the config.yaml of a model, in the form of the published ones."""
    frames = dict(n_fft=n_fft, hop_length=hop_length, padding=padding)
    trunk = dict(input_channels=n_mels, dim=dim, intermediate_dim=intermediate_dim, num_layers=num_layers)

    def part(class_path, **init_args):
        return {"class_path": f"vocos.{class_path}", "init_args": init_args}

    return {
        "feature_extractor": part(
            "feature_extractors.MelSpectrogramFeatures", sample_rate=sample_rate, n_mels=n_mels, **frames
        ),
        "backbone": part("models.VocosBackbone", **trunk),
        "head": part("heads.ISTFTHead", dim=dim, **frames),
    }


def randomize(model):
    """Returns the model with weights that all matter: fresh ones are tiny, with equal biases and scales."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            elif parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
        # The magnitudes of one bin are at the limit of 100, most others small; the phases exceed one turn.
        bins = len(model.head.out.bias) // 2
        model.head.out.bias[:bins].normal_(-2.0, 1.0)
        model.head.out.bias[1] = 6.0
        model.head.out.weight[bins:].mul_(3.0)
    return model.eval()


def make(folder, config):
    """Returns a model of the package and writes its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    model = randomize(Vocos.from_hparams(folder / "config.yaml"))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model


def main(folder):
    folder = pathlib.Path(folder)
    torch.manual_seed(0)
    audio = 0.2 * torch.randn(2000) * torch.linspace(0, 1, 2000) ** 4  # the beginning is below the floor
    golden = {"audio": audio.numpy()}
    for padding, shape in SHAPES.items():
        model = make(folder / padding, settings(padding, **shape))
        log_mel = model.feature_extractor(audio[None])
        golden[f"{padding}_log_mel"] = log_mel[0].T.numpy()
        golden[f"{padding}_audio"] = model.decode(log_mel)[0].numpy()
    np.savez_compressed(folder / "golden.npz", **golden)


if __name__ == "__main__":
    main(sys.argv[1])
