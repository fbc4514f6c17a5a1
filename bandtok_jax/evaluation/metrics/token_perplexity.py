"""Perplexity of language models on the tokens of whole tracks, row by row."""

from collections.abc import Iterator
import dataclasses
import itertools

import jax
import numpy as np

from bandtok_jax import tasks
from bandtok_jax.codecs.component import Component
from bandtok_jax.data_pipelines.batches import TOKEN_NAMES
from bandtok_jax.data_pipelines.token_source import TokenSource
from bandtok_jax.data_pipelines.transforms import CropTokens, EncodeCaption
from bandtok_jax.runtime.progress import progress_bar

BATCH_WINDOWS = 8  # affects speed and memory alone


def evaluate(stage: Component, folder: str, split: str = "validation", progress: bool = True) -> dict[str, float]:
    """Evaluates a language model on all tokens of one split.

    The tracks are cut into windows of the length of its training, and each is predicted from its own beginning.

    Args:
      stage: the language model.
      folder: token records, whose training split gives the unigrams of each row.
      split: split of the records.
      progress: shows a progress bar.

    Returns:
      `cross_entropy`, `unigram_cross_entropy` and `row_cross_entropy/NN` in nats per token, `end_accuracy`, and
      `tokens`, their number.

    Raises:
      ValueError, FileNotFoundError: no such tokens, or tokens of another tokenizer than the model's.
    """
    config = stage.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.tokens = folder
        config.tokenizer = config.vocoder = ""  # of the samples in training, which are not needed here
    stage = dataclasses.replace(stage, config=config)
    source, columns = TokenSource(folder, split), config.data.columns
    if stage.tokenizer_hash and stage.tokenizer_hash != source.manifest["weight_hash"]:
        raise ValueError(
            f"{stage.source_path} was trained on tokens of {stage.tokenizer_hash[:12]}, {folder} holds those of "
            f"{source.manifest['weight_hash'][:12]}: give the tokens of its own tokenizer"
        )
    task, totals = tasks.create(stage.resolved_config), {}
    step, frozen = jax.jit(task.eval_step), task.load_frozen()
    state = {"model": {"parameters": stage.weights["parameters"], "ema": {}}}
    windows = _windows(source, CropTokens(columns), EncodeCaption(config.data.caption_bytes))
    number, remaining = 0, int(-(-source.lengths // columns).sum())
    with progress_bar(total=remaining, unit="window", desc="predict", show=progress) as bar:
        while remaining > 0:
            examples = list(itertools.islice(windows, BATCH_WINDOWS))
            remaining -= len(examples)
            bar.update(len(examples))
            empty = {**examples[0], "columns": np.int32(0), "ended": np.bool_(False)}
            examples += [empty] * (BATCH_WINDOWS - len(examples))
            batch = {name: np.stack([example[name] for example in examples]) for name in empty}
            batch["index"] = np.arange(number, number + BATCH_WINDOWS)
            number += BATCH_WINDOWS
            # In 64 bits: there may be more tokens than 32 can count.
            sums = jax.tree.map(lambda x: np.asarray(x, np.float64), step(state, frozen, batch))
            totals = jax.tree.map(np.add, totals, sums) if totals else sums
    metrics = {name: float(value) for name, value in task.aggregate(totals, 1).items()}
    return metrics | {"tokens": int(totals["columns"]) * config.model.rows}


def _windows(source: TokenSource, crop: CropTokens, encode_caption: EncodeCaption) -> Iterator[dict[str, np.ndarray]]:
    """Yields the tracks of a source as examples, one after the other."""
    for number in range(len(source)):
        record = source[number]
        for start in range(0, len(record["codes"]), crop.columns):
            example = encode_caption(crop.crop(record, start, start + crop.columns), None)
            yield {name: example[name] for name in TOKEN_NAMES if name in example}
