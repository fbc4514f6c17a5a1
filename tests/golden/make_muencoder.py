"""Writes tests/golden/muencoder/golden.npz: a tiny encoder in the layout of muq.pt, and its hidden states.

    python tests/golden/make_muencoder.py tests/golden/muencoder

Needs PyTorch and transformers (4.57); the tests need neither. The Conformer is that of transformers, as in the
published encoder. The stem is written here in plain PyTorch. All weights are random, running statistics included.

  model.*        the arrays by their published names
  mel            normalised mel `[1, T, M]`
  hidden/N       hidden states `[1, T / 4, D]`; the last one is behind the final layer norm
  codes          codes `[1, T / 4]` of the random projection
"""

import pathlib
import sys

import numpy as np
import torch
from torch import nn
from transformers import Wav2Vec2ConformerConfig
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerEncoder

MELS, CHANNELS, DIM, CODES, CODE_DIM, FRAMES = 16, 4, 24, 20, 6, 44
CONFORMER = dict(
    hidden_size=DIM, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32, hidden_act="swish",
    conv_depthwise_kernel_size=7, position_embeddings_type="rotary", num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=4,
)  # fmt: skip


class Residual(nn.Module):
    """Two convolutions, and a third one beside them; the first and the third halve both axes."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, CHANNELS, 3, 2, 1), nn.BatchNorm2d(CHANNELS)
        self.conv2, self.bn2 = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1), nn.BatchNorm2d(CHANNELS)
        self.conv3, self.bn3 = nn.Conv2d(channels, CHANNELS, 3, 2, 1), nn.BatchNorm2d(CHANNELS)

    def forward(self, x):
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.bn3(self.conv3(x))).relu()


class Stem(nn.Module):
    """The residual blocks over frequency and time, and the linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(Residual(1), Residual(CHANNELS))
        self.linear = nn.Linear(CHANNELS * MELS // 4, DIM)

    def forward(self, mel):
        x = self.conv(mel.transpose(1, 2)[:, None])  # [B, C, M, T]
        return self.linear(x.permute(0, 3, 1, 2).flatten(2))  # channel before frequency


class Quantizer(nn.Module):
    """A random projection and a codebook."""

    def __init__(self):
        super().__init__()
        self.register_buffer("random_projection", torch.randn(4 * MELS, CODE_DIM))
        self.register_buffer("codebook", torch.randn(CODES, CODE_DIM))

    def forward(self, x):
        x = nn.functional.normalize(x @ self.random_projection, dim=-1)
        return torch.cdist(x, nn.functional.normalize(self.codebook, dim=-1)).argmin(-1)


class MuEncoder(nn.Module):
    """The names and the computation of the published module."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(DIM))
        self.quantizer_melspec_2048 = Quantizer()
        self.conv = Stem()
        self.conformer = Wav2Vec2ConformerEncoder(Wav2Vec2ConformerConfig(**CONFORMER))
        self.linear = nn.Linear(DIM, CODES)

    def forward(self, mel):
        states = self.conformer(self.conv(mel), output_hidden_states=True)["hidden_states"]
        return states, self.quantizer_melspec_2048(mel.reshape(1, -1, 4 * MELS))


def randomize(model):
    """Returns the model with arrays that all matter: fresh biases, scales and statistics are equal."""
    with torch.no_grad():
        for name, array in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var") or (name.endswith("weight") and array.ndim == 1):
                array.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "running_mean")):
                array.normal_(0.0, 0.3)
            elif name.endswith("weight"):
                array.normal_(0.0, array[0].numel() ** -0.5)
    return model.eval()


def main(folder):
    torch.manual_seed(0)
    model = randomize(MuEncoder())
    mel = torch.randn(1, FRAMES, MELS)
    with torch.no_grad():
        states, codes = model(mel)
    golden = {f"model.{name}": array.numpy() for name, array in model.state_dict().items()}
    golden |= {"mel": mel.numpy(), "codes": codes.numpy()}
    golden |= {f"hidden/{number}": state.numpy() for number, state in enumerate(states)}
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    np.savez_compressed(pathlib.Path(folder) / "golden.npz", **golden)


if __name__ == "__main__":
    main(sys.argv[1])
