"""Training of a language model over grids of tokens: cross-entropy of the next token, with text or without.

Padding counts nowhere, and the end token follows a track that ends inside the crop. Losses are in nats per predicted
code. `loss.infill_fraction` of the examples have a region that is filled in from both sides, see `infilling`.
With `lora.rank` the state holds adapters alone, and the weights of the model that they adapt are frozen.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.data_pipelines import token_manifest, token_source
from bandtok_jax.generation import SAMPLING, autoregressive
from bandtok_jax.layers import lora
from bandtok_jax.layers.network import Tree
from bandtok_jax.models import registry
from bandtok_jax.runtime import storage
from bandtok_jax.runtime.notes import warn
from bandtok_jax.tasks import adapters, infilling, optimization
from bandtok_jax.tasks.single_network import SingleNetworkTask
from bandtok_jax.tasks.task import Batch, Metrics, State, Summaries, example_keys

DROPOUT, REGION = 1, 2  # folded into the key of an example
EXAMPLES_SHOWN = 2  # of the samples; our choice


class LanguageModelTask(SingleNetworkTask):
    """The task `language_model`, see `Task` for the methods."""

    requires = ("tokenizer", "vocoder")
    HEADLINE_METRICS = ("cross_entropy", "unigram_gap", "end_accuracy")

    def __init__(self, config: ConfigDict, read_components: Callable[[str], dict] | None = None):
        super().__init__(config, read_components)
        self.settings = registry.arguments(config)
        if config.data.columns < 1:
            raise ValueError(f"config.data.columns is {config.data.columns}: set it to the columns of an example")
        if self._infill_fraction and config.model.layout == "delay":
            raise ValueError(
                f'loss.infill_fraction is {self._infill_fraction} and model.layout "delay", whose steps hold '
                'codes of several columns, so that none can be filled in alone: set model.layout to "flat" or "depth"'
            )

    @staticmethod
    def resolve_config(config: ConfigDict, read_remote: bool = True) -> ConfigDict:
        """Returns the configuration with `model.row_vocabulary`: True for residual levels, each with a codebook."""
        if config.model.row_vocabulary is None:
            folder, config = config.data.tokens, config.copy_and_resolve_references()
            with config.unlocked(), config.model.ignore_type():
                readable = read_remote or not storage.is_remote(folder)
                config.model.row_vocabulary = readable and _rows_are_levels(folder)
        return config

    @property
    def SHARDING(self) -> tuple:
        layers = (None,) if self.settings.get("scan_layers") else ()  # stacked weights have one axis more
        table = (
            (r"text_encoder/(?!ngram)|text_projection/|null_embedding|row_embedding|scale", P()),
            *self.network.attribute("layout").SHARDING,
            (r"blocks/.*(query|value|gate_up)/kernel", P(*layers, None, "tensor", "fsdp")),
            (r"blocks/.*(out|down)/kernel", P(*layers, "fsdp", "tensor")),
            (r"embedding|head/kernel|pooled_text/kernel", P("tensor", "fsdp")),
        )
        if not self.config.lora.rank:
            return table
        return adapters.sharding(table, lora.adapted(self.network.shapes()[0], self._adapted_kernels))

    @property
    def _infill_fraction(self) -> float:
        return self.config.loss.get("infill_fraction", 0.0)

    @property
    def _adapted_kernels(self) -> str:
        return self.network.attribute("ADAPTED_KERNELS")

    @property
    def NEXT_COMMAND(self) -> str:
        if self.config.lora.rank:
            return "bandtok export {run} -o MODEL"
        alone = self.config.tokenizer and self.component("tokenizer").network_class.produces == "audio"
        vocoder = "" if alone else " --vocoder={vocoder}"
        return f"bandtok export {{tokenizer}}{vocoder} --language-model={{run}} -o MODEL"

    # ---- data -------------------------------------------------------------------------------------------------------

    def require_inputs(self) -> None:
        """Raises a ValueError where `data.tokens` is empty."""
        if not self.config.data.tokens:
            raise ValueError("data.tokens is empty; give a folder of token records, made with  bandtok tokenize")

    @property
    def _folder(self) -> str:
        self.require_inputs()
        return self.config.data.tokens

    @functools.cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the token records."""
        return token_manifest.read_token_manifest(self._folder)

    def component_hashes(self) -> dict[str, str]:
        """Returns the hash of the tokenizer that made the tokens, and of the vocoder of the samples."""
        vocoder_hash = self.component("vocoder").weight_hash if self.config.vocoder else ""
        hashes = {"tokenizer": self.manifest["weight_hash"], "vocoder": vocoder_hash}
        return hashes | ({"base": self._base.weight_hash} if self.config.lora.rank else {})

    @functools.cached_property
    def _base(self) -> Component:
        """The language model that adapters are trained for.

        Raises:
          ValueError: `config.base` holds no language model, or one that does not fit the configuration.
        """
        assert self.read_components is not None, "a task that reads components is created with a reader"
        components = self.read_components(self.config.base)
        if "language_model" not in components:
            raise ValueError(f"{self.config.base} holds no language model: start from a run or export that has one")
        return adapters.check_base(components["language_model"], self.settings, self.manifest["weight_hash"])

    @property
    def caption_fraction(self) -> float:
        """Fraction of the training tracks that have a caption; -1 where the manifest does not state it."""
        fraction = token_manifest.caption_fraction(self.manifest)
        return -1.0 if fraction is None else fraction

    @property
    def seconds_per_example(self) -> float:
        """Seconds of audio in one example."""
        return self.config.data.columns / self.manifest["columns_per_second"]

    def check_grid(self, grid: Mapping[str, Any], origin: str) -> None:
        """Raises a ValueError unless the model takes grids with these `rows`, `codebook_size` and `row_kind`.

        Args:
          grid: such as the manifest of token records.
          origin: names the tokens in the message.
        """
        model = self.config.model
        for name in ("rows", "codebook_size"):
            if grid[name] != model[name]:
                raise ValueError(
                    f"model.{name} is {model[name]}, and {origin} have {grid[name]}: "
                    f"set --config.model.{name}={grid[name]}"
                )
        if grid["row_kind"] == "residual" and not model.row_vocabulary:
            raise ValueError(
                f"model.row_vocabulary is False, and the rows of {origin} are residual levels, "
                "each with a codebook of its own: set --config.model.row_vocabulary=True, or leave it out"
            )
        if grid["row_kind"] == "residual" and self._infill_fraction:
            raise ValueError(
                f"loss.infill_fraction is {self._infill_fraction}, and the rows of {origin} are residual levels, not "
                "bands of frequency: set --config.loss.infill_fraction=0"
            )

    def load_frozen(self) -> Tree:
        """Returns `row_unigrams`, and `base` for the training of adapters.

        `row_unigrams` are the log-frequencies of the codes in each row of the training tracks, a baseline for any
        model. `base` holds the parameters that the adapters are added to.
        """
        model = self.config.model
        self.check_grid(self.manifest, f"the tokens in {self._folder}")
        if model.text == "embedding":
            self._embedding_shape()
        _ = self._codec  # so that an error comes before the first step
        if model.text == "bytes" and self.caption_fraction == 0:
            warn(
                f"no track in {self._folder} has a caption, so prompts will mean nothing to this model: captions come "
                "from  bandtok prepare --tracks",
            )
        source = token_source.TokenSource(self._folder, "train")
        frozen = {"row_unigrams": token_source.row_unigrams(source, model.codebook_size)}
        return frozen | ({"base": self._base.weights["parameters"]} if self.config.lora.rank else {})

    def frozen_spec(self) -> Tree:
        """Returns shapes and dtypes of `load_frozen()`, without data."""
        model = self.config.model
        spec = {"row_unigrams": jax.ShapeDtypeStruct((model.rows, model.codebook_size), jnp.float32)}
        return spec | ({"base": self.network.shapes()[0]} if self.config.lora.rank else {})

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns names, shapes and dtypes of a global batch.

        Captions as bytes need no data; the number of embeddings of a text is read from the token records.
        """
        examples = {
            "codes": ((self.config.data.columns, self.config.model.rows), "int32"),
            "columns": ((), "int32"),
            "ended": ((), "bool"),
            "start": ((), "int32"),
            "caption": ((self.config.data.caption_bytes,), "uint8"),
        }
        if self.config.model.text == "embedding":
            examples["embedding"] = (self._embedding_shape(), "float32")
        return self._batch_spec(examples)

    def _embedding_shape(self) -> tuple[int, ...]:
        """Returns number and width of the text embeddings of an example."""
        dim, record = self.config.model.text_dim, token_source.TokenSource(self._folder, "train")[0]
        shape = record["embedding"].shape if "embedding" in record else ()
        if shape[-1:] != (dim,):
            stored = f"embeddings of width {shape[-1]}" if shape else "no embeddings"
            raise ValueError(
                f'model.text is "embedding" of width {dim}, and the tokens in {self._folder} have {stored}: '
                "set --config.model.text_dim to theirs, or make tokens with  bandtok tokenize --embeddings=FILE"
            )
        return shape

    # ---- training and evaluation ------------------------------------------------------------------------------------

    def init(self, key: jax.Array, batch_spec: Any = None) -> State:
        """Returns a fresh state, of adapters where the configuration asks for them."""
        rank = self.config.lora.rank
        if not rank:
            return super().init(key)
        parameters = lora.init(self.network.shapes()[0], self._adapted_kernels, rank, key)
        ema = self.config.optimizer.ema_decay > 0
        model = optimization.model_state(parameters, {}, self.optimizer, ema)
        return {"step": jnp.zeros((), jnp.int32), "model": model}

    def _network_parameters(self, parameters: Tree, frozen: Tree) -> Tree:
        """Returns the parameters of the network, merged where `parameters` are those of adapters."""
        settings = self.config.lora
        return lora.merge(frozen["base"], parameters, settings.alpha / settings.rank) if settings.rank else parameters

    def forward(
        self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch, micro_batch: Batch, key: jax.Array
    ) -> tuple[dict[str, jax.Array], tuple[Tree, Tree]]:
        """Returns the cross-entropies of codes, of ends and of regions, per code, see `SingleNetworkTask.forward`."""
        parameters = self._network_parameters(parameters, frozen)
        # Classifier-free guidance needs a model without text, too: the text of some examples is dropped.
        keys = example_keys(key, micro_batch)
        drop_text = jax.vmap(lambda k: jax.random.bernoulli(k, self.config.loss.cfg_dropout))(keys)
        dropout_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, DROPOUT)
        examples = self._examples(micro_batch, key)
        code_losses, end_losses, _ = self._token_losses(parameters, examples, micro_batch, drop_text, dropout_keys)
        # Micro-batches hold different numbers of codes, so each divides by its share of the whole batch's codes.
        filled_in, whole = examples.filled_in, self._examples(batch, key)
        steps, codes = self.config.optimizer.accumulation_steps, whole.counted.sum((1, 2))
        share = jnp.maximum(jnp.where(whole.filled_in, 0, codes).sum(), 1) / steps
        by_example = code_losses.sum((1, 2))
        losses = {
            "cross_entropy": jnp.where(filled_in, 0, by_example).sum() / share,
            "end_cross_entropy": end_losses.sum() / share,
        }
        if self._infill_fraction:
            # A region has few codes, so infilling has a mean of its own.
            infill_share = jnp.maximum(jnp.where(whole.filled_in, codes, 0).sum(), 1) / steps
            losses["infill_cross_entropy"] = jnp.where(filled_in, by_example, 0).sum() / infill_share
        return losses, ({}, {})

    def _examples(self, batch: Batch, key: jax.Array, fraction: float | None = None) -> infilling.Examples:
        """Returns the examples of a batch, of which a fraction, by default that of the training, is filled in."""
        fraction = self._infill_fraction if fraction is None else fraction
        if not fraction:
            return infilling.left_to_right(batch)
        keys = jax.vmap(jax.random.fold_in, (0, None))(example_keys(key, batch), REGION)
        return infilling.with_regions(batch, keys, fraction, self.settings["codebook_size"])

    def evaluate(self, state: State, frozen: Tree, batch: Batch) -> tuple[Metrics, jax.Array]:
        """Returns sums over the batch for `aggregate`, and the token losses `[B, T, F]`."""
        parameters = self._network_parameters(optimization.evaluation_parameters(state["model"]), frozen)
        no_drop = jnp.zeros(batch["codes"].shape[0], bool)
        examples = infilling.left_to_right(batch)
        code_losses, end_losses, decisions = self._token_losses(parameters, examples, batch, no_drop)
        rows, valid = jnp.arange(batch["codes"].shape[-1]), examples.counted[..., 0]
        unigram_losses = jnp.where(valid[..., None], -frozen["row_unigrams"][rows, batch["codes"]], 0)
        metrics = {
            "row_cross_entropy": code_losses.sum((0, 1)),
            "row_unigram_cross_entropy": unigram_losses.sum((0, 1)),
            "columns": valid.sum().astype(code_losses.dtype),
            "end_cross_entropy": end_losses.sum(),
            "ends": batch["ended"].sum().astype(code_losses.dtype),
            "right_decisions": decisions.sum().astype(code_losses.dtype),
        }
        if self._infill_fraction:
            # The same regions in each evaluation, and the same codes in both orders.
            examples = self._examples(batch, jax.random.key(0), fraction=1.0)
            losses, _, _ = self._token_losses(parameters, examples, batch, no_drop)
            causal_losses = infilling.shifted(code_losses, examples.offset)
            counted = examples.counted & examples.filled_in[:, None, None]
            metrics |= {
                "infill_cross_entropy": jnp.where(counted, losses, 0).sum(),
                "infill_left_to_right_cross_entropy": jnp.where(counted, causal_losses, 0).sum(),
                "infill_codes": counted.sum().astype(code_losses.dtype),
            }
        return metrics, code_losses

    def aggregate(self, totals: dict, num_batches: int) -> dict:
        """Returns the cross-entropy, that of each row's unigrams, and the accuracy of the decision to end.

        With infilling also the cross-entropy of the codes of regions, filled in and predicted from left to right.
        """
        by_row, columns = totals["row_cross_entropy"] / totals["columns"], totals["columns"]
        unigram = (totals["row_unigram_cross_entropy"] / columns).mean()
        metrics = {
            "loss": by_row.mean() + totals["end_cross_entropy"] / (columns * len(by_row)),
            "cross_entropy": by_row.mean(),
            "unigram_cross_entropy": unigram,
            "unigram_gap": by_row.mean() - unigram,
            "end_accuracy": totals["right_decisions"] / (columns + totals["ends"]),
        }
        for name in ("infill_cross_entropy", "infill_left_to_right_cross_entropy"):
            metrics |= {name: totals[name] / np.maximum(totals["infill_codes"], 1)} if name in totals else {}
        return metrics | {f"row_cross_entropy/{row:02d}": value for row, value in enumerate(by_row)}

    def warnings(self, scores: dict[str, float]) -> list[str]:
        """Returns a message where the model is no better than the frequencies of the codes."""
        if scores["unigram_gap"] < 0:
            return []
        return ["the language model predicts no better than the frequencies of the codes in each row"]

    def _token_losses(
        self,
        parameters: Tree,
        examples: infilling.Examples,
        batch: Batch,
        drop_text: jax.Array,
        keys: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns cross-entropies in nats, zero for codes that are not counted, and the right decisions to end.

        Args:
          examples: the examples of the batch.
          batch: holds the text.
          drop_text: bool `[B]`, examples whose text is left out.
          keys: random keys `[B]` for dropout; without them nothing is dropped.

        Returns:
          Losses of the codes `[B, T, F]` and of the ends `[B, T + 1]`; and bool `[B, T + 1]`, True before a column or
          an end where the model predicts which of the two comes.
        """
        kind, end, text = self.settings["text"], self.settings["codebook_size"], ()
        if kind != "none":
            text_input = {"bytes": {"caption": batch["caption"]}, "embedding": {"embedding": batch.get("embedding")}}
            text = self.network.apply(parameters, {}, **text_input[kind], drop=drop_text, method="encode_text")
        # Targets: the codes, and the end token in place of the first row of the column after the last.
        before_column = jnp.arange(examples.codes.shape[1] + 1)
        ends = (before_column == examples.columns[:, None]) & examples.ended[:, None]
        targets = jnp.pad(examples.codes, ((0, 0), (0, 1), (0, 0)))
        targets = targets.at[:, :, 0].set(jnp.where(ends, end, targets[:, :, 0]))
        losses, likeliest = self.network.apply(
            parameters, {}, examples.codes, targets, *text, begins=examples.begins, columns=examples.columns,
            surroundings=examples.surroundings, keys=keys, method="token_losses",
        )  # fmt: skip
        code_losses = jnp.where(examples.counted, losses[:, :-1], 0)
        end_losses = jnp.where(ends, losses[:, :, 0], 0)
        right = (likeliest == end) == ends
        return code_losses, end_losses, right & (ends | (before_column < examples.columns[:, None]))

    # ---- samples ----------------------------------------------------------------------------------------------------

    def summaries(self, state: State, frozen: Tree, batch: Batch, outputs: jax.Array | None = None) -> Summaries:
        """Returns the token losses `[T, F]` of the first examples, and with a codec generated audio for their texts."""
        outputs = jax.jit(self.evaluate)(state, frozen, batch)[1] if outputs is None else outputs
        examples = {name: value[:EXAMPLES_SHOWN] for name, value in batch.items()}
        losses = outputs[:EXAMPLES_SHOWN]
        samples = {f"{i}/token_loss": ("image", losses[i], "nats per token") for i in range(len(losses))}
        # With several processes, none has all of the weights.
        if self._codec and jax.process_count() == 1:
            parameters = self._network_parameters(optimization.evaluation_parameters(state["model"]), frozen)
            samples |= self._generate(parameters, examples)
        return samples

    def _generate(self, parameters: Tree, examples: Batch) -> Summaries:
        """Returns audio as long as a training example, from the same random numbers at each call."""
        text = {"bytes": "caption", "embedding": "embedding", "none": None}[self.settings["text"]]
        text_input: dict[str, Any] = {text: np.asarray(examples[text])} if text else {}
        columns, count = self.config.data.columns, len(examples["codes"])
        codes, _ = autoregressive.Generator(self.settings, parameters).generate(
            columns=columns, window_columns=columns, key=jax.random.key(self.config.seed), batch=count,
            temperature=SAMPLING["temperature"], top_k=min(SAMPLING["top_k"], self.settings["codebook_size"]),
            **text_input,
        )  # fmt: skip
        rate = self._codec.sample_rate_hz
        return {f"{i}/generated": ("audio", self._codec.decode(codes[i]), rate) for i in range(count)}

    @functools.cached_property
    def _codec(self) -> Any:
        """The codec of `config.tokenizer` and `config.vocoder`; None without a tokenizer.

        Raises:
          ValueError: they do not belong to the tokens, or not together, or make no audio.
        """
        if not self.config.tokenizer:
            return None
        tokenizer, tokens_hash = self.component("tokenizer"), self.manifest["weight_hash"]
        if tokenizer.weight_hash != tokens_hash:
            raise ValueError(
                f"config.tokenizer {self.config.tokenizer} is {tokenizer.weight_hash[:12]}, the tokens in "
                f"{self._folder} were made by {tokens_hash[:12]}: give that one, or none"
            )
        components = {"tokenizer": tokenizer} | ({"vocoder": self.component("vocoder")} if self.config.vocoder else {})
        codec = assemble(components)
        if not codec.can_decode:
            raise ValueError(
                f"config.tokenizer {self.config.tokenizer} makes no audio by itself: set config.vocoder to a vocoder's "
                "run for audio samples, or leave both out"
            )
        return codec


def _rows_are_levels(folder: str) -> bool:
    """Returns True where the rows of these tokens are residual levels, False without tokens, as for a plan."""
    try:
        return bool(folder) and token_manifest.read_token_manifest(folder)["row_kind"] == "residual"
    except FileNotFoundError:
        return False
