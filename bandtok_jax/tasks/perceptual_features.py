"""The frozen network of the losses `perceptual` and `gram`: seeded weights, or those of VGG-19 from a file."""

from collections.abc import Callable, Iterator, Mapping
import functools
import os

import jax
from jax.typing import DTypeLike
import numpy as np

from bandtok_jax.formats import safetensors, torch_checkpoint
from bandtok_jax.layers.network import Network, Tree
from bandtok_jax.losses import perceptual
from bandtok_jax.models.vgg import VGG19_WIDTHS, VGGFeatures
from bandtok_jax.runtime import untrusted
from bandtok_jax.tasks.adversarial import LossFunctions

LOSSES = ("perceptual", "gram")
SEEDED = "seeded"
SEEDED_WIDTHS, SEED = ((16, 16), (32, 32), (64, 64)), 0  # our choice: cheap on a CPU, and the same in every run
_CURE = f'give torchvision\'s vgg19-dcbb9e9d.pth, or set it to "{SEEDED}"'


class PerceptualFeatures:
    """The network and its weights.

    Args:
      source: "seeded", or the path of VGG-19 weights, see `read_vgg19`.
      dtype: dtype of the computation.
    """

    def __init__(self, source: str, dtype: DTypeLike):
        self._source, self._dtype = source, dtype

    def load(self) -> Tree:
        """Returns the weights; random ones have He's variance.

        Raises:
          ValueError, FileNotFoundError: the file holds no such weights.
        """
        if self._source == SEEDED:
            return jax.jit(self._network.init)(jax.random.key(SEED))[0]
        return self._file_weights

    def losses(self, weights: Tree) -> LossFunctions:
        """Returns the losses by name, functions of log-mels `[B, T, M]`: the original and the reconstruction."""

        def between(distance: Callable[..., jax.Array], real: jax.Array, fake: jax.Array) -> jax.Array:
            return distance(self._network.apply(weights, {}, real), self._network.apply(weights, {}, fake))

        return {name: functools.partial(between, getattr(perceptual, name)) for name in LOSSES}

    @functools.cached_property
    def _network(self) -> Network:
        widths = SEEDED_WIDTHS
        if self._source != SEEDED:
            blocks = self._file_weights["blocks"].values()
            widths = [[len(layer["bias"]) for layer in block.values()] for block in blocks]
        return Network(lambda rngs: VGGFeatures(widths, dtype=self._dtype, rngs=rngs))

    @functools.cached_property
    def _file_weights(self) -> Tree:
        if not os.path.isfile(self._source):
            raise FileNotFoundError(f"loss.perceptual_features is {self._source!r}, which is no file: {_CURE}")
        return read_vgg19(self._source)


def read_vgg19(path: str) -> Tree:
    """Returns the convolutions of a VGG-19 in our layout, `blocks/B/N/{kernel, bias}`, in float32.

    Kernels are `[channels_out, channels_in, M, T]` in the file and `[T, M, channels_in, channels_out]` here. The three
    input channels of the first one become their sum. The widths of the layers may be others than VGG-19's.

    Args:
      path: a state_dict of torchvision's `vgg19`, of PyTorch (.pth) or as .safetensors. Classifiers are not read.

    Raises:
      ValueError, OSError: a damaged file, or one of another network.
    """
    arrays = safetensors.load_flat(path) if path.endswith(".safetensors") else torch_checkpoint.read_torch(path)
    with untrusted.reading(path, _CURE):
        if not isinstance(arrays, Mapping):
            raise ValueError("it holds no plain state_dict")
        remaining = {name for name in arrays if str(name).startswith("features.")}
        blocks: dict[str, dict] = {}
        channels = 3
        for block, number, layer in _positions():
            weight, bias = (_array(arrays, f"features.{layer}.{name}") for name in ("weight", "bias"))
            width = len(bias) if bias.ndim == 1 else 0
            if weight.shape != (width, channels, 3, 3) or not width:
                raise ValueError(
                    f"features.{layer}.weight is {untrusted.shown(weight.shape)} with a bias of "
                    f"{untrusted.shown(bias.shape)}, no 3x3 convolution of {channels} channels"
                )
            remaining -= {f"features.{layer}.weight", f"features.{layer}.bias"}
            kernel = weight if layer else weight.sum(1, keepdims=True)
            blocks.setdefault(block, {})[number] = {"kernel": np.ascontiguousarray(kernel.T), "bias": bias}
            channels = width
        if remaining:
            raise ValueError(f"it holds {untrusted.shown(min(remaining))}, which no VGG-19 has")
    return {"blocks": blocks}


def _positions() -> Iterator[tuple[str, str, int]]:
    """Yields block, number in the block, and place in torchvision's list, where ReLUs and pools have places too."""
    layer = 0
    for block, widths in enumerate(VGG19_WIDTHS):
        for number in range(len(widths)):
            yield str(block), str(number), layer
            layer += 2
        layer += 1


def _array(arrays: Mapping, name: str) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"it has no {name}")
    array = arrays[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} is a {type(array).__name__}, no tensor")
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return array
