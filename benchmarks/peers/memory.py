"""Memory bandwidth: a copy, matrix-vector products, and a chain of linear layers as in decoding with batch 1."""

import functools

import torch

from peers.measuring import time_and_emit

# As many weight bytes as the language model of `transformers_llama.py` reads for a token.
CHAIN_LAYERS, CHAIN_WIDTH = 29, 1024


def bandwidth() -> None:
    """Measures all three."""
    _copy()
    for name, rows, columns in (("memory_matvec_1GiB", 16384, 16384), ("memory_matvec_128MiB", 8192, 4096)):
        matrix, vector = torch.randn(rows, columns), torch.randn(columns)
        with torch.inference_mode():
            time_and_emit(
                name, "GB/s", functools.partial(torch.mv, matrix, vector), amount=matrix.numel() * 4 / 1e9, repeats=25,
                shape=[rows, columns], counted="bytes of the matrix",
            )  # fmt: skip
    _chain()


def _copy() -> None:
    source = torch.ones(2**28)  # 1 GiB
    target = torch.zeros_like(source)
    time_and_emit(
        "memory_copy_1GiB", "GB/s", functools.partial(target.copy_, source), amount=2 * source.numel() * 4 / 1e9,
        repeats=15, counted="bytes read + bytes written",
    )  # fmt: skip


def _chain() -> None:
    layers = [torch.randn(CHAIN_WIDTH, CHAIN_WIDTH) * 0.03 for _ in range(CHAIN_LAYERS)]
    start = torch.randn(1, CHAIN_WIDTH)
    weight_bytes = CHAIN_LAYERS * CHAIN_WIDTH**2 * 4

    def chain() -> torch.Tensor:
        x = start
        for weight in layers:
            x = torch.nn.functional.linear(x, weight)
        return x

    with torch.inference_mode():
        time_and_emit(
            "memory_linear_chain", "GB/s", chain, amount=weight_bytes / 1e9, repeats=51, layers=CHAIN_LAYERS,
            megabytes=round(weight_bytes / 1e6, 1), counted="bytes of the weights",
        )  # fmt: skip


MEASUREMENTS = {"memory_bandwidth": bandwidth}
