"""The transformer of PixArt without text in PyTorch, written from its published description: one training step.

The parts and sizes are those of diffusers' Transformer2DModel with "ada_norm_single", as MuCodec has it: patches of two
by two, sin-cos positions, attention through `scaled_dot_product_attention`, tanh GELU. Float32, AdamW.
"""

import functools
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from peers.measuring import time_and_emit

CHANNELS, OUT_CHANNELS, BINS = 96, 32, 32
SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(dim=384, layers=6, heads=6, batch=4, frames=32),
    "two_base_blocks": dict(dim=1584, layers=2, heads=22, batch=1, frames=64),
}


class Block(nn.Module):
    """Attention and feed-forward branches with shared modulation."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.table = heads, nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.table + modulation).split(1, dim=1)
        y = self.norm(x) * (1 + scale) + shift
        heads = (f(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = x + gate * self.out(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        y = self.norm(x) * (1 + ffn_scale) + ffn_shift
        return x + ffn_gate * self.down(functional.gelu(self.up(y), approximate="tanh"))


class Transformer(nn.Module):
    """`[B, C, T, M]` and times `[B]` to `[B, OUT_CHANNELS, T, M]`."""

    def __init__(self, dim: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embed, self.project_out = nn.Conv2d(CHANNELS, dim, 2, stride=2), nn.Linear(dim, 4 * OUT_CHANNELS)
        self.time_in, self.time_out, self.modulation = nn.Linear(512, dim), nn.Linear(dim, dim), nn.Linear(dim, 6 * dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.table = nn.Parameter(torch.randn(2, dim) / dim**0.5)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x)
        rows, columns = tokens.shape[2:]
        tokens = tokens.flatten(2).transpose(1, 2) + _positions(rows, columns, tokens.shape[1])
        angles = 1000 * time[:, None] * torch.exp(-math.log(1e4) * torch.arange(256) / 256)
        embedded = self.time_out(functional.silu(self.time_in(torch.cat([angles.cos(), angles.sin()], dim=-1))))
        modulation = self.modulation(functional.silu(embedded)).unflatten(1, (6, -1))
        for block in self.blocks:
            tokens = block(tokens, modulation)
        shift, scale = (self.table + embedded[:, None]).split(1, dim=1)
        y = self.project_out(self.norm(tokens) * (1 + scale) + shift).unflatten(2, (2, 2, -1))
        return y.unflatten(1, (rows, columns)).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


@functools.cache
def _positions(rows: int, columns: int, dim: int) -> torch.Tensor:
    omega = 1e4 ** (-torch.arange(dim // 4) / (dim // 4))

    def features(count: int) -> torch.Tensor:
        angles = torch.arange(count)[:, None] * 32 / count * omega
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    return torch.cat([features(columns).repeat(rows, 1), features(rows).repeat_interleave(columns, 0)], dim=-1)


def step(size: str) -> None:
    """Measures a training step with the mean squared error."""
    sizes = dict(SIZES[size])
    batch, frames = sizes.pop("batch"), sizes.pop("frames")
    torch.manual_seed(0)
    model = Transformer(**sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x, target = (torch.randn(batch, channels, frames, BINS) for channels in (CHANNELS, OUT_CHANNELS))
    time = torch.rand(batch)

    def run() -> None:
        optimizer.zero_grad()
        functional.mse_loss(model(x, time), target).backward()
        optimizer.step()

    parameters = sum(parameter.numel() for parameter in model.parameters())
    run()
    time_and_emit(
        f"diffusion_transformer_{size}", "s", run, repeats=5, parameters=parameters, batch=batch,
        impl="own PyTorch modules",
    )  # fmt: skip


MEASUREMENTS = {f"diffusion_transformer_{size}": functools.partial(step, size) for size in SIZES}
