"""MelTok's tokenizer and token vocoder in PyTorch, written from their published description: encode and training steps.

Sizes are those of `bandtok_jax/configs/meltok.py` and `token_vocoder.py`, in float32. A training step is log-mel,
forward, backward and AdamW with the L1 and quantizer losses, or with the L1 loss of the waveform.
"""

import functools
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from peers.measuring import time_and_emit

MELS, COMPRESSION, FFT_SAMPLES, HOP_SAMPLES, FLOOR = 96, 8, 1024, 256, 1e-7
SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(
        haar_levels=3, channels=(128,), blocks=1, latent=64, codebook=(1024, 32), attention=(), groups=8, window=16,
        batch=8,
    ),
    "small": dict(
        haar_levels=1, channels=(64, 128, 256), blocks=2, latent=128, codebook=(4096, 64), attention=(2,), groups=16,
        window=16, batch=4,
    ),
    "base": dict(
        haar_levels=1, channels=(256, 512, 512), blocks=2, latent=256, codebook=(8192, 64), attention=(2,), groups=32,
        window=12, batch=2,
    ),
}  # fmt: skip
VOCOS_TINY = dict(dim=256, hidden=768, layers=6)


class Norm(nn.GroupNorm):
    """Group norm with at most `groups` groups."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(math.gcd(channels, groups), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, tanh and 3x3 convolution, twice, plus a shortcut."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = Norm(channels, groups), Norm(out_channels, groups)
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_in(torch.tanh(self.norm_in(x)))
        return self.shortcut(x) + self.conv_out(torch.tanh(self.norm_out(y)))


class Attention(nn.Module):
    """One head over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = Norm(channels, groups)
        self.query, self.key, self.value, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        query, key, value = (layer(y).flatten(2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(query.transpose(1, 2) @ key * x.shape[1] ** -0.5, dim=-1)
        return x + self.out((value @ weights.transpose(1, 2)).view_as(x))


class Halving(nn.Conv2d):
    """Half the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


def doubling(channels: int) -> nn.Module:
    """Returns layers that double the resolution."""
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1))


def middle(width: int, groups: int) -> list[nn.Module]:
    """Returns the blocks at the coarsest resolution."""
    return [ResidualBlock(width, width, groups), Attention(width, groups), ResidualBlock(width, width, groups)]


def level(channels: int, out_channels: int, blocks: int, attention: bool, groups: int) -> list[nn.Module]:
    """Returns the blocks of one resolution."""
    layers: list[nn.Module] = []
    for width in [channels] + [out_channels] * (blocks - 1):
        layers.append(ResidualBlock(width, out_channels, groups))
        if attention:
            layers.append(Attention(out_channels, groups))
    return layers


class Haar(nn.Module):
    """The wavelet packet of `levels` levels and, with `inverse`, its inverse."""

    def __init__(self, levels: int, inverse: bool) -> None:
        super().__init__()
        self.levels, self.inverse = levels, inverse
        low, high = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
        filters = torch.stack([torch.outer(mel, time) for time in (low, high) for mel in (low, high)])
        self.register_buffer("filters", filters[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in range(self.levels):
            groups = 4 ** (self.levels - 1 - number) if self.inverse else x.shape[1]
            filters = self.filters.repeat(groups, 1, 1, 1)
            if self.inverse:
                x = functional.conv_transpose2d(x, filters, stride=2, groups=groups)
            else:
                x = functional.conv2d(x, filters / 4, stride=2, groups=groups)
        return x


def encoder(*, haar_levels: int, channels: tuple, blocks: int, latent: int, attention: tuple, groups: int) -> nn.Module:
    """Returns the encoder; `[B, 1, M, T] -> [B, latent, F, T / 8]`."""
    width = channels[0] // 2
    layers: list[nn.Module] = [Haar(haar_levels, inverse=False), nn.Conv2d(4**haar_levels, width, 3, padding=1)]
    for number, level_width in enumerate(channels):
        layers += level(width, level_width, blocks, number in attention, groups)
        if COMPRESSION >> (haar_levels + number) > 1:
            layers.append(Halving(level_width))
        width = level_width
    layers += [*middle(width, groups), Norm(width, groups), nn.Tanh(), nn.Conv2d(width, latent, 3, padding=1)]
    return nn.Sequential(*layers)


def decoder(
    *, haar_levels: int, channels: tuple, blocks: int, latent: int, attention: tuple, groups: int, codebook_dim: int
) -> nn.Module:
    """Returns the decoder; `[B, codebook_dim, F, T / 8] -> [B, 1, M, T]`."""
    width = channels[-1]
    layers: list[nn.Module] = [nn.Conv2d(codebook_dim, latent, 1), nn.Conv2d(latent, width, 3, padding=1)]
    layers += middle(width, groups)
    doublings = COMPRESSION.bit_length() - 1 - haar_levels
    for number, level_width in reversed(list(enumerate(channels))):
        layers += level(width, level_width, blocks + 1, number in attention, groups)
        if len(channels) - 1 - number < doublings:
            layers.append(doubling(level_width))
        width = level_width
    layers += [Norm(width, groups), nn.Tanh(), nn.Conv2d(width, 4**haar_levels, 3, padding=1)]
    return nn.Sequential(*layers, Haar(haar_levels, inverse=True))


class Tokenizer(nn.Module):
    """Encoder, vector quantizer with a straight-through gradient, and decoder, of log-mels `[B, M, T]`."""

    def __init__(self, codebook: tuple[int, int], latent: int, **sizes: Any) -> None:
        super().__init__()
        self.encoder, self.pre_quantization = encoder(latent=latent, **sizes), nn.Conv2d(latent, codebook[1], 1)
        self.vectors = nn.Parameter(torch.randn(codebook))
        self.decoder = decoder(latent=latent, codebook_dim=codebook[1], **sizes)

    def encode(self, log_mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns latents `[B, F, T, D]` and codes `[B, F, T]`."""
        latents = self.pre_quantization(self.encoder(log_mel[:, None] / 5)).permute(0, 2, 3, 1).contiguous()
        flat = latents.view(-1, latents.shape[-1])
        distances = (self.vectors**2).sum(1) - 2 * flat @ self.vectors.T
        return latents, distances.argmin(1).view(latents.shape[:-1])

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Returns the loss."""
        latents, codes = self.encode(log_mel)
        vectors = functional.embedding(codes, self.vectors)
        quantized = latents + (vectors - latents).detach()
        reconstruction = decode_mel(self.decoder, quantized)
        commitment = functional.mse_loss(latents, vectors.detach())
        codebook = functional.mse_loss(vectors, latents.detach())
        return functional.l1_loss(reconstruction, log_mel) + 0.25 * commitment + 0.0625 * codebook


def decode_mel(network: nn.Module, quantized: torch.Tensor) -> torch.Tensor:
    """Returns the log-mel `[B, M, T]` of quantized latents `[B, F, T, D]`."""
    return (network(quantized.permute(0, 3, 1, 2).contiguous())[:, 0] * 5).clamp(min=math.log(FLOOR))


class ConvNextBlock(nn.Module):
    """Vocos's block, `[B, D, T]`."""

    def __init__(self, dim: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv1d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.linear = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.scale = nn.Parameter(torch.full((dim,), 1 / layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).transpose(1, 2))
        return x + (self.scale * self.linear(y)).transpose(1, 2)


class TokenVocoder(nn.Module):
    """The mel decoder and Vocos; codes `[B, F, T]` to audio `[B, S]`."""

    def __init__(self, codebook: tuple[int, int], dim: int, hidden: int, layers: int, **sizes: Any) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.randn(codebook))
        self.decoder = decoder(codebook_dim=codebook[1], **sizes)
        self.embed, self.embed_norm = nn.Conv1d(MELS, dim, 7, padding=3), nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.Sequential(*[ConvNextBlock(dim, hidden, layers) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, FFT_SAMPLES + 2)
        self.register_buffer("window", torch.hann_window(FFT_SAMPLES))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        x = self.embed(decode_mel(self.decoder, functional.embedding(codes, self.vectors)))
        x = self.blocks(self.embed_norm(x.transpose(1, 2)).transpose(1, 2))
        log_magnitude, phase = self.head(self.norm(x.transpose(1, 2))).transpose(1, 2).chunk(2, dim=1)
        spectrum = torch.polar(log_magnitude.exp().clamp(max=100), phase)
        return torch.istft(spectrum, FFT_SAMPLES, HOP_SAMPLES, window=self.window, center=True)


def tokenizer(size: str, verb: str) -> None:
    """Measures `encode` of windows of log-mel or `step`, a training step on clips of one window."""
    sizes = dict(SIZES[size])
    batch, window = sizes.pop("batch"), sizes.pop("window")
    torch.manual_seed(0)
    model = Tokenizer(**sizes)
    audio = 0.1 * torch.randn(batch, window * COMPRESSION * HOP_SAMPLES)
    if verb == "encode":
        log_mel = front_end(audio)
        with torch.inference_mode():
            _time(f"meltok_{size}_encode", lambda: model.encode(log_mel)[1], model, batch=batch, columns=window)
    else:
        step = _stepping(model, lambda: model(front_end(audio)))
        _time(f"meltok_{size}_step", step, model, batch=batch, columns=window)


def token_vocoder() -> None:
    """Measures a training step of the generator without discriminators."""
    sizes = dict(SIZES["tiny"])
    batch, window = sizes.pop("batch"), sizes.pop("window")
    torch.manual_seed(0)
    model = TokenVocoder(**sizes, **VOCOS_TINY)
    codes = torch.randint(sizes["codebook"][0], (batch, MELS // COMPRESSION, window))
    audio = 0.1 * torch.randn(batch, (window * COMPRESSION - 1) * HOP_SAMPLES)
    step = _stepping(model, lambda: functional.l1_loss(model(codes), audio))
    _time("token_vocoder_tiny_step", step, model, batch=batch, columns=window)


def front_end(audio: torch.Tensor) -> torch.Tensor:
    """Returns the log-mel `[B, M, T]`, without the last frame. Its filters are of no use but for the time they take."""
    spectrum = torch.stft(
        audio, FFT_SAMPLES, HOP_SAMPLES, window=torch.hann_window(FFT_SAMPLES), center=True, return_complex=True
    )
    filters = torch.rand(MELS, FFT_SAMPLES // 2 + 1)
    return (filters @ spectrum.abs())[..., :-1].clamp(min=FLOOR).log()


def _stepping(model: nn.Module, loss: Any) -> Any:
    """Returns a call that makes one step of training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def _time(name: str, function: Any, model: nn.Module, **fields: Any) -> None:
    with FlopCounterMode(display=False) as counter:
        function()
    time_and_emit(
        name, "s", function, repeats=5, parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflop=round(counter.get_total_flops() / 1e9, 2), impl="own PyTorch modules", **fields,
    )  # fmt: skip


MEASUREMENTS = {
    **{
        f"meltok_{size}_{verb}": functools.partial(tokenizer, size, verb)
        for size in SIZES
        for verb in ("encode", "step")
    },
    "token_vocoder_tiny_step": token_vocoder,
}
