"""Vocos of the package vocos: 10 s of mel frames to audio."""

import functools

import torch

from peers import stand_ins
from peers.measuring import RATE_HZ, millions, time_and_emit

SECONDS, MELS, HOP_SAMPLES = 10, 100, 256


def create(dim: int = 512, intermediate_dim: int = 1536, num_layers: int = 8) -> torch.nn.Module:
    """Returns backbone and head with random weights."""
    stand_ins.allow_missing()
    from vocos.heads import ISTFTHead
    from vocos.models import VocosBackbone

    torch.manual_seed(0)
    return torch.nn.Sequential(
        VocosBackbone(input_channels=MELS, dim=dim, intermediate_dim=intermediate_dim, num_layers=num_layers),
        ISTFTHead(dim=dim, n_fft=1024, hop_length=HOP_SAMPLES, padding="center"),
    ).eval()


def decode() -> None:
    """Measures backbone and head."""
    model = create()
    features = torch.randn(1, MELS, SECONDS * RATE_HZ // HOP_SAMPLES + 1)
    with torch.inference_mode():
        seconds = model(features).shape[-1] / RATE_HZ
        time_and_emit(
            "vocos_decode", "x realtime", functools.partial(model, features), amount=seconds, repeats=21,
            audio_s=round(seconds, 3), mels=MELS, frames=features.shape[-1], params_M=millions(model), impl="vocos",
        )  # fmt: skip


MEASUREMENTS = {"vocos_decode": decode}
