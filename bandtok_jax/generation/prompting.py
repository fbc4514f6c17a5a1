"""New pieces from the language model of a codec: prompts to captions, seconds to columns."""

from collections.abc import Callable, Sequence
import math
from typing import TYPE_CHECKING
import warnings

import jax
import numpy as np

from bandtok_jax.config.validate import check_seed
from bandtok_jax.data_pipelines.transforms import caption_bytes
from bandtok_jax.formats.bt_file import check_codes
from bandtok_jax.generation import SAMPLING

if TYPE_CHECKING:
    from bandtok_jax.codecs.codec import Codec

LONGEST_SECONDS = 3600  # our choice
SHORTEST_TEXT = 64  # bytes that are read of a prompt; our choice


def generate(
    codec: "Codec",
    prompts: Sequence[str | None],
    seconds: float = 10.0,
    seed: int = 0,
    *,
    embedding: np.ndarray | None = None,
    prefix: np.ndarray | None = None,
    temperature: float = SAMPLING["temperature"],
    top_k: int | None = SAMPLING["top_k"],
    top_p: float = SAMPLING["top_p"],
    guidance: float = SAMPLING["guidance"],
    may_end: bool = False,
    report: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """New pieces, all at once.

    Args:
      prompts: what each piece should sound like; None where it may be anything.
      seconds: length of the new music, up to an hour and beyond what the model saw in training.
      seed: from 0 to 2**32 - 1; piece b depends on it and on b.
      embedding: of the text of all pieces, float `[L, E]` or `[E]`, in place of prompts, where the model learned from
        embeddings.
      prefix: codes `[T, F]` that every piece begins with and goes on from.
      temperature: 0 always takes the likeliest code.
      top_k, top_p: choose among the k likeliest codes (None, 0: all), and among the likeliest with this share together.
      guidance: how closely to follow the prompts; 1: as the model itself would.
      may_end: let the model end a piece before `seconds`; a warning names the lengths of those that it has ended.
      report: called with the number of finished columns now and then.

    Returns:
      Codes, int32 `[T, F]` of each piece, the prefix included.

    Raises:
      ValueError: no language model, or settings that make no sense.
    """
    codec.require("language_model")
    for prompt in prompts:
        if not (prompt is None or isinstance(prompt, str)):
            raise TypeError(
                f"a prompt is {prompt!r}: pass one text to codec.generate and call it once a piece, or pass a list "
                "of texts to bandtok_jax.generation.prompting.generate"
            )
    if not prompts:
        raise ValueError("no prompts: pass one for each piece, None where it may be anything")
    check_seed(seed)
    new = columns(codec, seconds)
    start = np.zeros((0, codec.rows), np.int32) if prefix is None else prefix
    start = check_codes(start, codec.rows, codec.codebook_size)
    prompted, settings = any(prompts), codec.stages["language_model"].config
    if prompted and settings.get("caption_fraction", -1.0) == 0:
        warnings.warn("this language model has learned from no caption: the prompt is left out", stacklevel=3)
        prompted = False
    try:
        longest, most = max(len((prompt or "").encode()) for prompt in prompts), settings.data.caption_bytes
    except UnicodeEncodeError:  # bytes of a command line that are no UTF-8 come as lone surrogates
        raise ValueError("a prompt of characters that UTF-8 does not have: write it in UTF-8") from None
    if longest > most:
        warnings.warn(f"of a prompt the first {most} bytes are read, as of captions", stacklevel=3)
    if prompted and settings.model.text == "embedding":
        raise ValueError("this language model learned from embeddings: give the embedding of the prompt in its place")
    if embedding is not None:
        embedding = np.repeat(check_embedding(codec, embedding)[None], len(prompts), axis=0)
    codes, lengths = codec.generator.generate(
        columns=len(start) + new,
        window_columns=settings.data.columns,
        key=jax.random.key(seed),
        batch=len(prompts),
        caption=_captions(prompts, longest, most) if prompted else None,
        embedding=embedding,
        prefix=np.repeat(start[None], len(prompts), axis=0) if len(start) else None,
        temperature=temperature,
        top_k=min(top_k, codec.codebook_size) if top_k else None,
        top_p=top_p,
        guidance=guidance,
        may_end=may_end,
        report=report,
    )
    if (early := lengths < len(start) + new).any():
        ends = ", ".join(f"{length / codec.columns_per_second:.2f}" for length in lengths[early] - len(start))
        warnings.warn(f"{early.sum()} of {len(prompts)} end before {seconds:g} s, after {ends} s", stacklevel=3)
    return [piece[:length] for piece, length in zip(codes, lengths)]


def _captions(prompts, longest: int, most: int) -> np.ndarray:
    """Bytes `[B, M]`, zero padded. M is one of few: each is a program to compile, and empty bytes cost time as well."""
    size = min(most, max(SHORTEST_TEXT, 1 << (longest - 1).bit_length()))
    return np.stack([caption_bytes(prompt or "", size) for prompt in prompts])


def columns(codec: "Codec", seconds: float) -> int:
    """How many columns so many seconds of new music take; ValueError where nobody can want so many."""
    if not 0 < seconds <= LONGEST_SECONDS:
        raise ValueError(f"{seconds} seconds of music: ask for more than 0 and at most {LONGEST_SECONDS}, our limit")
    return math.ceil(samples(codec, seconds) / codec.samples_per_column)


def samples(codec: "Codec", seconds: float) -> int:
    """Returns the number of samples of a length in seconds, at least one."""
    return max(1, round(seconds * codec.sample_rate_hz))


def check_embedding(codec: "Codec", embedding: np.ndarray) -> np.ndarray:
    """The embedding of a text, `[L, E]` or `[E]`, as float32 `[L, E]`.

    Raises:
      ValueError: no language model that learned from embeddings of this width, or numbers that are not finite.
    """
    codec.require("language_model")
    model = codec.stages["language_model"].config.model
    if model.text != "embedding":
        raise ValueError("this language model did not learn from embeddings: give a prompt in place of one")
    embedding, width = np.asarray(embedding), model.text_dim
    real = any(jax.numpy.issubdtype(embedding.dtype, kind) for kind in (np.floating, np.integer))
    if not real or embedding.ndim not in (1, 2) or not embedding.size or embedding.shape[-1] != width:
        raise ValueError(
            f"an embedding {list(embedding.shape)} of {embedding.dtype}: this language model takes "
            f"numbers [L, {width}] or [{width}]"
        )
    with np.errstate(over="ignore"):
        embedding = np.atleast_2d(embedding.astype(np.float32))
    if not np.isfinite(embedding).all():
        raise ValueError(f"an embedding with NaN or infinity: this language model takes finite numbers [L, {width}]")
    return embedding
