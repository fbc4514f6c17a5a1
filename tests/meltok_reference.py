"""The published networks of MelTok in NumPy, with float64 and in the published layout, to compare ours with.

Arrays are images `[B, C, H, W]`: height is frequency, width is time. Weights have the published names, see
`tests.meltok_state`.
"""

from collections.abc import Mapping
import math

import numpy as np
from scipy import special

from tests.meltok_state import STAGE2_DECODER

HALF = math.sqrt(0.5)
GROUPS, EPSILON = 32, 1e-6
LOG_SCALE, FLOOR, LIMIT = 5.0, 1e-7, 100.0  # image = log-mel / 5, magnitudes of the vocoder up to 100
State = Mapping[str, np.ndarray]


class Tokenizer:
    """The networks of the first stage, or of the decoder's copy in the second.

    Args:
      state: weights by their published names.
      activation: "tanh" or "silu".
      post, decoder: prefixes of the decoder's names.
    """

    def __init__(
        self, state: State, activation: str = "tanh", post: str = "post_quant_conv", decoder: str = "decoder"
    ) -> None:
        self.state = {name: np.asarray(leaf, np.float64) for name, leaf in state.items()}
        self.activation, self.post, self.decoder = activation, post, decoder

    def encode(self, image: np.ndarray) -> np.ndarray:
        """Returns the latents that the codebook is compared with; `[B, 1, H, W] -> [B, D, h, w]`."""
        x = image
        while x.shape[1] < self.state["encoder.conv_in.weight"].shape[1]:
            x = haar(x)
        x = self._conv("encoder.conv_in", x)
        for level in self._numbers("encoder.down"):
            x = self._level(f"encoder.down.{level}", x)
            if f"encoder.down.{level}.downsample.conv.weight" in self.state:
                x = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))
                x = self._conv(f"encoder.down.{level}.downsample.conv", x, stride=2, padding=0)
        x = self._conv("encoder.conv_out", self._activate(self._norm("encoder.norm_out", self._middle("encoder", x))))
        return self._conv("quant_conv", x)

    def assign(self, latents: np.ndarray) -> np.ndarray:
        """Returns the nearest codes; `[B, D, h, w] -> [B, h, w]`."""
        flat = np.moveaxis(latents, 1, -1)[..., None, :]
        return ((flat - self.state["quantizer.embedding.weight"]) ** 2).sum(-1).argmin(-1)

    def decode(self, vectors: np.ndarray) -> np.ndarray:
        """Returns the image of vectors of the codebook; `[B, D, h, w] -> [B, 1, H, W]`."""
        name = self.decoder
        x = self._middle(name, self._conv(f"{name}.conv_in", self._conv(self.post, vectors)))
        for level in reversed(self._numbers(f"{name}.up")):
            x = self._level(f"{name}.up.{level}", x)
            if f"{name}.up.{level}.upsample.conv.weight" in self.state:
                x = self._conv(f"{name}.up.{level}.upsample.conv", x.repeat(2, axis=2).repeat(2, axis=3))
        x = self._conv(f"{name}.conv_out", self._activate(self._norm(f"{name}.norm_out", x)))
        while x.shape[1] > 1:
            x = inverse_haar(x)
        return x

    def _numbers(self, prefix: str) -> list[int]:
        return sorted({int(name[len(prefix) + 1 :].split(".")[0]) for name in self.state if name.startswith(prefix)})

    def _activate(self, x: np.ndarray) -> np.ndarray:
        return np.tanh(x) if self.activation == "tanh" else x * special.expit(x)

    def _conv(self, name: str, x: np.ndarray, stride: int = 1, padding: int | None = None) -> np.ndarray:
        kernel = self.state[f"{name}.weight"]
        side = kernel.shape[-1] // 2 if padding is None else padding
        x = np.pad(x, ((0, 0), (0, 0), (side, side), (side, side)))
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
        product = np.tensordot(windows, kernel, axes=((1, 4, 5), (1, 2, 3)))
        return np.moveaxis(product + self.state[f"{name}.bias"], -1, 1)

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        grouped = x.reshape(len(x), GROUPS, -1)
        grouped = grouped - grouped.mean(-1, keepdims=True)
        grouped = grouped / np.sqrt((grouped**2).mean(-1, keepdims=True) + EPSILON)
        scale, bias = (self.state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return grouped.reshape(x.shape) * scale + bias

    def _block(self, name: str, x: np.ndarray) -> np.ndarray:
        y = self._conv(f"{name}.conv1", self._activate(self._norm(f"{name}.norm1", x)))
        y = self._conv(f"{name}.conv2", self._activate(self._norm(f"{name}.norm2", y)))
        return y + (self._conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def _attention(self, name: str, x: np.ndarray) -> np.ndarray:
        normed = self._norm(f"{name}.norm", x)
        query, key, value = (self._conv(f"{name}.{part}", normed).reshape(*x.shape[:2], -1) for part in "qkv")
        weights = special.softmax(np.swapaxes(query, 1, 2) @ key / math.sqrt(x.shape[1]), axis=-1)
        return x + self._conv(f"{name}.proj_out", (value @ np.swapaxes(weights, 1, 2)).reshape(x.shape))

    def _level(self, name: str, x: np.ndarray) -> np.ndarray:
        for b in self._numbers(f"{name}.block"):
            x = self._block(f"{name}.block.{b}", x)
            if f"{name}.attn.{b}.norm.weight" in self.state:
                x = self._attention(f"{name}.attn.{b}", x)
        return x

    def _middle(self, name: str, x: np.ndarray) -> np.ndarray:
        x = self._attention(f"{name}.mid.attn_1", self._block(f"{name}.mid.block_1", x))
        return self._block(f"{name}.mid.block_2", x)


def haar(x: np.ndarray) -> np.ndarray:
    """Returns the bands LL, LH, HL and HH of an image, the first letter for time; `[B, C, H, W] -> [B, 4C, H/2, W/2]`.

    Low-pass of width and height is LL. Half of the orthonormal transform.
    """
    low, high = (HALF * (x[..., ::2] + sign * x[..., 1::2]) for sign in (1, -1))
    bands = [HALF * (y[:, :, ::2] + sign * y[:, :, 1::2]) for y in (low, high) for sign in (1, -1)]
    return np.concatenate(bands, axis=1) / 2


def inverse_haar(x: np.ndarray) -> np.ndarray:
    """Returns the image of four bands, the inverse of `haar`."""

    def join(low: np.ndarray, high: np.ndarray, axis: int) -> np.ndarray:
        both = np.stack([HALF * (low + high), HALF * (low - high)], axis=axis + 1)
        return both.reshape(*low.shape[:axis], 2 * low.shape[axis], *low.shape[axis + 1 :])

    low_low, low_high, high_low, high_high = np.split(x, 4, axis=1)
    return 2 * join(join(low_low, low_high, 2), join(high_low, high_high, 2), 3)


def codes_to_log_mel(
    stage1: State, state: State, codes: np.ndarray, activation: str = "tanh", decoder: tuple[str, str] = STAGE2_DECODER
) -> np.ndarray:
    """Returns the log-mel of codes; `[B, h, w] -> [B, H, W]`.

    Args:
      stage1: weights with the codebook.
      state, decoder: weights with the decoder, and the prefixes of its names, by default those of the second stage.
    """
    vectors = np.moveaxis(np.asarray(stage1["quantizer.embedding.weight"], np.float64)[codes], -1, 1)
    image = Tokenizer(state, activation, *decoder).decode(vectors)
    return np.maximum(LOG_SCALE * image[:, 0], math.log(FLOOR))


def vocode(state: State, log_mel: np.ndarray, hop: int) -> np.ndarray:
    """Returns the audio of a log-mel; `[B, M, T] -> [B, (T - 1) * hop]`."""
    state = {name: np.asarray(leaf, np.float64) for name, leaf in state.items()}

    def filtered(name: str, x: np.ndarray) -> np.ndarray:
        kernel = state[f"{name}.weight"]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (3, 3))), 7, axis=2)
        if kernel.shape[1] == 1:  # a filter for each channel
            product = np.einsum("bctk,ck->bct", windows, kernel[:, 0])
        else:
            product = np.einsum("bctk,ock->bot", windows, kernel)
        return product + state[f"{name}.bias"][:, None]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(1, keepdims=True)
        x = x / np.sqrt((x**2).mean(1, keepdims=True) + EPSILON)
        return x * state[f"{name}.weight"][:, None] + state[f"{name}.bias"][:, None]

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return state[f"{name}.weight"] @ x + state[f"{name}.bias"][:, None]

    x = norm("backbone.norm", filtered("backbone.embed", log_mel))
    for b in sorted({int(name.split(".")[2]) for name in state if name.startswith("backbone.convnext.")}):
        name = f"backbone.convnext.{b}"
        y = linear(f"{name}.pwconv1", norm(f"{name}.norm", filtered(f"{name}.dwconv", x)))
        y = linear(f"{name}.pwconv2", y * special.ndtr(y))
        x = x + state[f"{name}.gamma"][:, None] * y
    log_magnitude, phase = np.split(linear("head.out", norm("backbone.final_layer_norm", x)), 2, axis=1)
    magnitude = np.minimum(np.exp(log_magnitude), LIMIT)
    return inverse_stft(magnitude * np.exp(1j * phase), hop)


def inverse_stft(spectrum: np.ndarray, hop: int) -> np.ndarray:
    """Returns the centred overlap-add with a Hann window; `[B, bins, T] -> [B, (T - 1) * hop]`."""
    length = 2 * (spectrum.shape[1] - 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    frames = np.fft.irfft(spectrum, axis=1) * window[:, None]
    audio, envelope = (np.zeros((*shape, length + hop * (spectrum.shape[2] - 1))) for shape in (spectrum.shape[:1], ()))
    for t in range(spectrum.shape[2]):
        audio[:, t * hop : t * hop + length] += frames[:, :, t]
        envelope[t * hop : t * hop + length] += window**2
    middle = slice(length // 2, audio.shape[1] - length // 2)
    return audio[:, middle] / envelope[middle]
