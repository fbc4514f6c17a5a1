"""Published weights: their files and their arrays, which importers take one by one, and of which none may remain."""

from collections.abc import Mapping, Sequence
import os

from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.codecs.component import Component
from bandtok_jax.formats import safetensors
from bandtok_jax.pretrained import importers
from bandtok_jax.runtime import untrusted


def find_files(path: str, weights_name: str, config_name: str) -> tuple[str, str]:
    """Returns the files of weights and configuration in one folder.

    Args:
      path: the folder, or the file of weights, of any name.

    Raises:
      FileNotFoundError: one of them is missing.
    """
    weights_file = os.path.join(path, weights_name) if os.path.isdir(path) else path
    config_file = os.path.join(os.path.dirname(weights_file), config_name)
    for file, cure in (
        (weights_file, f"give a folder with {config_name} and {weights_name}"),
        (config_file, f"put the {config_name} of the model beside {os.path.basename(weights_file)}"),
    ):
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{file} does not exist: {cure}")
    return weights_file, config_file


def take(arrays: dict[str, np.ndarray], *names: str, prefix: str = "") -> np.ndarray:
    """Returns the array of the first of these names in float32, and removes it.

    Args:
      names: names of the same array in files of several kinds.
      prefix: beginning of all names in the file, for errors.

    Raises:
      ValueError: there is no such array, or it holds NaN or infinity.
    """
    name = next((name for name in names if name in arrays), None)
    if name is None:
        raise ValueError(f"it has no {prefix}{names[0]}")
    array = np.asarray(arrays.pop(name), np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{prefix}{name} holds NaN or infinity")
    return array


def whole_kernel(direction: np.ndarray, gain: np.ndarray, gain_name: str) -> np.ndarray:
    """Returns a kernel whose weight normalisation is multiplied in, float32 `[channels_out, channels_in, k]`.

    Args:
      direction: the kernel before its normalisation, of the same shape.
      gain: norm of the kernel of each output channel, `[channels_out, 1, 1]`.
      gain_name: name of `gain` in the file, for errors.

    Raises:
      ValueError: `gain` has another shape.
    """
    direction, gain = direction.astype(np.float64), gain.astype(np.float64)
    if gain.shape != (len(direction), 1, 1):
        raise ValueError(f"{gain_name} has the shape {list(gain.shape)}")
    norm = np.sqrt((direction**2).sum((1, 2), keepdims=True))
    return (direction * (gain / np.maximum(norm, np.finfo(np.float32).tiny))).astype(np.float32)


class NamedArrays:
    """The arrays of a file, taken out one after the other by names of another program.

    Args:
      state: the arrays by their names in the file.
      renamed: parts of a name of the other program, and those in the file, which replace them one after the other.

    Attributes:
      remaining: those that have not been taken.
    """

    def __init__(self, state: Mapping[str, np.ndarray], renamed: Sequence[tuple[str, str]]):
        self.remaining, self._parts = dict(state), renamed

    def __contains__(self, name: str) -> bool:
        return self._renamed(name) in self.remaining

    def count(self, pattern: str, most: int) -> int:
        """Returns how many names of a pattern there are in a row, with the numbers from 0 on."""
        names = (pattern.format(number) for number in range(most))
        return next((number for number, name in enumerate(names) if name not in self), most)

    def take(self, name: str, axes: int) -> np.ndarray:
        """Returns an array with that number of axes."""
        leaf = take(self.remaining, self._renamed(name))
        if leaf.ndim != axes:
            raise ValueError(f"{self._renamed(name)} has the shape {list(leaf.shape)}")
        return leaf

    def kernel(self, name: str) -> np.ndarray:
        """Returns a kernel in our layout, with its norm where that is stored apart."""
        if f"{name}.weight_v" not in self:
            return np.ascontiguousarray(self.take(f"{name}.weight", 3).T)
        direction, gain = (self.take(f"{name}.{part}", 3) for part in ("weight_v", "weight_g"))
        kernel = whole_kernel(direction, gain, self._renamed(f"{name}.weight_g"))
        return np.ascontiguousarray(kernel.T)

    def _renamed(self, name: str) -> str:
        for part, other in self._parts:
            name = name.replace(part, other)
        return name


def component(
    config: ConfigDict,
    parameters: Mapping[str, np.ndarray],
    path: str,
    buffers: Mapping[str, np.ndarray] | None = None,
    licence: str = "",
) -> Component:
    """Returns the component of imported parameters and buffers, whose names are ours.

    Args:
      path: file or folder of the weights.
      licence: the licence of all such weights, for the model card.

    Raises:
      ValueError: they are not those of the network.
    """
    weights = {"parameters": safetensors.unflatten(parameters), "buffers": safetensors.unflatten(buffers or {})}
    card = importers.card(os.path.basename(os.path.abspath(path))) | ({"licence": licence} if licence else {})
    return Component(config, weights, source_path=path, card=card).check()


def require_empty(remaining: Mapping[str, np.ndarray], problem: str, prefix: str = "") -> None:
    """Raises a ValueError that names an array of a file that was not taken, if there is one.

    Args:
      problem: the reason why there may be none, the end of "it holds NAME, which ...".
      prefix: see `take`.
    """
    if remaining:
        raise ValueError(f"it holds {prefix}{untrusted.printable(next(iter(remaining)), 90)}, which {problem}")
