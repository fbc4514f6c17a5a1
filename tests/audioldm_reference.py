"""AudioLDM's autoencoder and HiFi-GAN in plain NumPy (float64), and random state dicts by their published names.

Written from the description of the networks, on arrays in PyTorch's layout: one example `[C, T, M]` or `[C, T]`.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

State = dict[str, np.ndarray]
PREFIX = "first_stage_model."


def shapes(
    widths=(128, 256, 512, 1024), blocks=2, latent=16, mels=256, initial=1536, rates=(6, 5, 4, 2, 2),
    kernels=(3, 7, 11, 15),
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """The shapes of `first_stage_model.*`; the defaults are the published sizes."""
    result: dict[str, tuple[int, ...]] = {}

    def layer(name, *shape, transposed=False):
        result[f"{PREFIX}{name}.weight"] = shape
        result[f"{PREFIX}{name}.bias"] = (shape[1 if transposed else 0],)

    def block(name, width, out):
        for number, (inner, outer) in enumerate(((width, out), (out, out)), 1):
            layer(f"{name}.norm{number}", inner)
            layer(f"{name}.conv{number}", outer, inner, 3, 3)
        if width != out:
            layer(f"{name}.nin_shortcut", out, width, 1, 1)

    def level(name, width, out, count):
        for number in range(count):
            block(f"{name}.block.{number}", width if number == 0 else out, out)

    top = widths[-1]
    layer("encoder.conv_in", widths[0], 1, 3, 3)
    for number, (width, out) in enumerate(zip((widths[0], *widths), widths)):
        level(f"encoder.down.{number}", width, out, blocks)
        if number < len(widths) - 1:
            layer(f"encoder.down.{number}.downsample.conv", out, out, 3, 3)
    for coder in ("encoder", "decoder"):
        block(f"{coder}.mid.block_1", top, top)
        block(f"{coder}.mid.block_2", top, top)
        layer(f"{coder}.mid.attn_1.norm", top)
        for name in ("q", "k", "v", "proj_out"):
            layer(f"{coder}.mid.attn_1.{name}", top, top, 1, 1)
        layer(f"{coder}.norm_out", top if coder == "encoder" else widths[0])
    layer("encoder.conv_out", 2 * latent, top, 3, 3)
    layer("quant_conv", 2 * latent, 2 * latent, 1, 1)
    layer("post_quant_conv", latent, latent, 1, 1)
    layer("decoder.conv_in", top, latent, 3, 3)
    for number in reversed(range(len(widths))):
        level(f"decoder.up.{number}", widths[min(number + 1, len(widths) - 1)], widths[number], blocks + 1)
        if number:
            layer(f"decoder.up.{number}.upsample.conv", widths[number], widths[number], 3, 3)
    layer("decoder.conv_out", 1, widths[0], 3, 3)

    layer("vocoder.conv_pre", initial, mels, 7)
    for stage, rate in enumerate(rates):
        width = initial >> stage
        layer(f"vocoder.ups.{stage}", width, width // 2, 2 * rate, transposed=True)
        for number, size in enumerate(kernels, stage * len(kernels)):
            for pair in range(3):
                for name in ("convs1", "convs2"):
                    layer(f"vocoder.resblocks.{number}.{name}.{pair}", width // 2, width // 2, size)
    layer("vocoder.conv_post", 1, initial >> len(rates), 7)
    return result


def random_state(of: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Random arrays of these shapes, as lively as trained ones, and a scale."""
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        scale = 1 / math.sqrt(max(math.prod(shape[1:]), 1)) if len(shape) > 1 else 0.1
        return (rng.normal(size=shape) * scale + (name.endswith("norm.weight"))).astype(np.float32)

    return {name: draw(name, shape) for name, shape in of.items()} | {"scale_factor": np.array(0.7, np.float32)}


class Reference:
    """The networks with one state dict."""

    def __init__(self, state: State):
        self.state = {name.removeprefix(PREFIX): leaf.astype(np.float64) for name, leaf in state.items()}

    def encode(self, mel):
        """Mean and log variance `[Z, T/f, M/f]` of a log-mel `[T, M]`."""
        x, level = self._conv("encoder.conv_in", mel[None]), 0
        while f"encoder.down.{level}.block.0.conv1.weight" in self.state:
            x = self._blocks(f"encoder.down.{level}", x)
            if f"encoder.down.{level}.downsample.conv.weight" in self.state:
                x = self._conv(f"encoder.down.{level}.downsample.conv", x, pads=((0, 1), (0, 1)))[:, ::2, ::2]
            level += 1
        moments = self._conv("quant_conv", self._end("encoder", self._middle("encoder", x)))
        mean, log_variance = np.split(moments, 2)
        return mean, np.clip(log_variance, -30, 20)

    def decode(self, latents):
        """The log-mel `[T, M]` of scaled latents `[Z, T/f, M/f]`."""
        x = self._conv("post_quant_conv", latents / self.state["scale_factor"])
        x = self._middle("decoder", self._conv("decoder.conv_in", x))
        levels = sum(name.startswith("decoder.up") and name.endswith("block.0.conv1.weight") for name in self.state)
        for level in reversed(range(levels)):
            x = self._blocks(f"decoder.up.{level}", x)
            if level:
                x = self._conv(f"decoder.up.{level}.upsample.conv", x.repeat(2, axis=1).repeat(2, axis=2))
        return self._end("decoder", x)[0]

    def vocode(self, mel):
        """The audio `[S]` of a log-mel `[T, M]`, with the samples that odd rates add."""
        x, stage = self._conv1d("vocoder.conv_pre", mel.T), 0
        while f"vocoder.ups.{stage}.weight" in self.state:
            x = self._transposed(f"vocoder.ups.{stage}", _leaky(x, 0.1))
            count = sum(name.endswith(".convs1.0.weight") for name in self.state) // self._stages
            x = sum(self._residual(f"vocoder.resblocks.{stage * count + n}", x) for n in range(count)) / count
            stage += 1
        return np.tanh(self._conv1d("vocoder.conv_post", _leaky(x, 0.01)))[0]

    @property
    def _stages(self):
        return sum(name.startswith("vocoder.ups.") and name.endswith("weight") for name in self.state)

    def _residual(self, name, x):
        for pair, dilation in enumerate((1, 3, 5)):
            y = self._conv1d(f"{name}.convs1.{pair}", _leaky(x, 0.1), dilation)
            x = x + self._conv1d(f"{name}.convs2.{pair}", _leaky(y, 0.1))
        return x

    def _conv1d(self, name, x, dilation=1):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        side = (weight.shape[2] - 1) * dilation // 2
        windows = sliding_window_view(np.pad(x, ((0, 0), (side, side))), 2 * side + 1, axis=1)[..., ::dilation]
        return np.einsum("ctk,ock->ot", windows, weight, optimize=True) + bias[:, None]

    def _transposed(self, name, x):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        taps = weight.shape[2]
        rate, cut = taps // 2, (taps - taps // 2) // 2
        y = np.zeros((weight.shape[1], (x.shape[1] - 1) * rate + taps))
        for frame in range(x.shape[1]):
            y[:, frame * rate : frame * rate + taps] += np.einsum("c,cok->ok", x[:, frame], weight)
        return y[:, cut : y.shape[1] - cut] + bias[:, None]

    def _conv(self, name, x, pads=None):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        size = weight.shape[2]
        x = np.pad(x, ((0, 0), *(pads or ((size // 2, size // 2),) * 2)))
        windows = sliding_window_view(x, (size, size), axis=(1, 2))
        return np.einsum("cijkl,ockl->oij", windows, weight, optimize=True) + bias[:, None, None]

    def _norm(self, name, x):
        groups = x.reshape(32, -1)
        centred = groups - groups.mean(1, keepdims=True)
        y = (centred / np.sqrt(centred.var(1, keepdims=True) + 1e-6)).reshape(x.shape)
        return y * self.state[f"{name}.weight"][:, None, None] + self.state[f"{name}.bias"][:, None, None]

    def _block(self, name, x):
        y = self._conv(f"{name}.conv1", _swish(self._norm(f"{name}.norm1", x)))
        y = self._conv(f"{name}.conv2", _swish(self._norm(f"{name}.norm2", y)))
        return y + (self._conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def _blocks(self, name, x):
        number = 0
        while f"{name}.block.{number}.conv1.weight" in self.state:
            x, number = self._block(f"{name}.block.{number}", x), number + 1
        return x

    def _middle(self, coder, x):
        x = self._block(f"{coder}.mid.block_1", x)
        name, flat = f"{coder}.mid.attn_1", (x.shape[0], -1)
        y = self._norm(f"{name}.norm", x)
        query, key, value = (self._conv(f"{name}.{part}", y).reshape(flat) for part in "qkv")
        scores = query.T @ key / math.sqrt(len(x))
        weights = np.exp(scores - scores.max(1, keepdims=True))
        attended = value @ (weights / weights.sum(1, keepdims=True)).T
        x = x + self._conv(f"{name}.proj_out", attended.reshape(x.shape))
        return self._block(f"{coder}.mid.block_2", x)

    def _end(self, coder, x):
        return self._conv(f"{coder}.conv_out", _swish(self._norm(f"{coder}.norm_out", x)))


def _swish(x):
    return x / (1 + np.exp(-x))


def _leaky(x, factor):
    return np.where(x > 0, x, factor * x)
