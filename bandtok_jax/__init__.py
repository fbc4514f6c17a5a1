"""Train music tokenizers, and the language models on top of them, in JAX.

>>> import bandtok_jax, numpy
>>> codec = bandtok_jax.create("bandtok:tiny", seed=0)  # or bandtok_jax.load("runs/tokenizer", vocoder="runs/vocoder")
>>> codes = codec.encode(numpy.zeros(44_100, numpy.float32), 44_100)
>>> codes.shape, codec.decode(codes, samples=44_100).shape
((11, 16), (44100,))
"""

from typing import TYPE_CHECKING

from bandtok_jax.version import VERSION as __version__

if TYPE_CHECKING:
    import os

    from bandtok_jax.codecs.codec import Codec

__all__ = ["__version__", "create", "load"]


def load(
    path: "str | os.PathLike" = "default",
    vocoder: "str | os.PathLike | None" = None,
    language_model: "str | os.PathLike | None" = None,
    dtype: str = "",
    adapter: "str | os.PathLike | None" = None,
) -> "Codec":
    """Loads a trained codec, see `bandtok_jax.codecs.codec.Codec`.

    Args:
      path: run folder of a tokenizer (`bandtok train`), an export folder (`bandtok export`), or a repository of the
        Hugging Face hub, `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION`. The default is a small model that comes with
        the package: 44.1 kHz, mono, trained on music in the public domain.
      vocoder: run or export; in place of the vocoder in `path`, if that has one.
      language_model: run or export; in place of the one in `path`, if that has one.
      dtype: that vocoder and language model compute in, such as "bfloat16"; by default that of their training, but
        float32 on a CPU. The tokenizer always computes in float32, so that its codes do not depend on the device.
      adapter: adapters.safetensors of a fine-tuned language model (`bandtok export RUN --adapter`), to be added to the
        language model that it was trained for.

    Raises:
      ValueError, FileNotFoundError: a folder or file is missing, holds another model or size, or the components do
        not belong together.
      ImportError: a path begins with hf://, and huggingface_hub is not installed; or it is a run, and orbax is not.
    """
    # Imported here, so that `import bandtok_jax` is quick and leaves jax alone.
    from bandtok_jax.pretrained import model_folder
    from bandtok_jax.runtime import compile_cache

    compile_cache.enable()
    return model_folder.load(path, vocoder=vocoder, language_model=language_model, dtype=dtype, adapter=adapter)


def create(name: str, seed: int = 0) -> "Codec":
    """Returns a codec with random weights.

    Args:
      name: name of a tokenizer's configuration with its variant, such as "bandtok:tiny".
      seed: seed of the weights, from 0 to 2**32 - 1.

    Raises:
      ValueError: there is no such configuration, or the seed is another.
    """
    from bandtok_jax.pretrained import model_folder
    from bandtok_jax.runtime import compile_cache

    compile_cache.enable()
    return model_folder.create(name, seed=seed)
