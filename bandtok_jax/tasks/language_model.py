"""Training of a language model over grids of tokens: cross-entropy of the next token, with text or without.

All sums run over what is there: padding counts nowhere, and a track that ends inside the crop is followed by the end
token. Losses are in nats per code.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from bandtok_jax.data_pipelines import token_manifest, token_source
from bandtok_jax.generation import SAMPLING, autoregressive
from bandtok_jax.models import registry
from bandtok_jax.runtime import storage
from bandtok_jax.tasks import Task, optimization

DROPOUT = 1  # what a key of an example is folded with for it
EXAMPLES_SHOWN = 2  # of the samples; our choice


class LanguageModel(Task):
    """The task `language_model`; see `bandtok_jax.tasks` for the methods."""

    HEADLINE = ("cross_entropy", "unigram_gap", "end_accuracy")

    def __init__(self, config, read_stages=None):
        super().__init__(config, read_stages)
        self.settings, self.network = registry.arguments(config), registry.build(config)
        self.optimizer = optimization.create_optimizer(config.optimizer, optimization.schedule_steps(config))

    @staticmethod
    def settled(config, remote=True):
        """Rows that are levels have codes of their own: each level has a codebook."""
        if config.model.row_vocabulary is None:
            folder, config = config.data.tokens, config.copy_and_resolve_references()
            with config.unlocked(), config.model.ignore_type():
                config.model.row_vocabulary = (remote or not storage.is_remote(folder)) and _are_levels(folder)
        return config

    @property
    def SHARDING(self):
        layers = (None,) if self.settings.get("scan_layers") else ()  # stacked weights have one axis more
        return (
            (r"text_encoder/|text_projection/|null_text|row_embedding|scale", P()),
            (r"blocks/.*(query|value|gate_up)/kernel", P(*layers, None, "tensor", "fsdp")),
            (r"blocks/.*(out|down)/kernel", P(*layers, "fsdp", "tensor")),
            (r"embedding|head/kernel", P("tensor", "fsdp")),
        )

    def require_inputs(self) -> None:
        if not self.config.data.tokens:
            raise ValueError("data.tokens is empty; give a folder of token records, made with  bandtok tokenize")

    @property
    def NEXT(self) -> str:
        alone = self.config.tokenizer and self.tokenizer.config.task == "waveform_codec"
        vocoder = "" if alone else " --vocoder={vocoder}"
        return f"bandtok export {{tokenizer}}{vocoder} --language-model={{run}} -o MODEL"

    @property
    def _folder(self) -> str:
        self.require_inputs()
        return self.config.data.tokens

    @functools.cached_property
    def _manifest(self) -> dict:
        """What is known of the tokens that the model learns."""
        return token_manifest.read_token_manifest(self._folder)

    @property
    def tokenizer_hash(self) -> str:
        return self._manifest["weight_hash"]

    @property
    def caption_fraction(self) -> float:
        """Share of the training pieces that have a caption; -1 where the tokens do not say."""
        share = token_manifest.caption_fraction(self._manifest)
        return -1.0 if share is None else share

    @property
    def seconds_per_example(self) -> float:
        return self.config.data.columns / self._manifest["columns_per_second"]

    def load_frozen(self):
        """How often each code comes in each row of the training pieces: what any model has to beat."""
        model = self.config.model
        for name in ("rows", "codebook_size"):
            if self._manifest[name] != model[name]:
                raise ValueError(
                    f"model.{name} is {model[name]}, and the tokens in {self._folder} have {self._manifest[name]}: "
                    f"set --config.model.{name}={self._manifest[name]}"
                )
        if self._manifest["row_kind"] == "residual" and not model.row_vocabulary:
            raise ValueError(
                f"model.row_vocabulary is False, and the rows of the tokens in {self._folder} are residual levels, "
                "each with a codebook of its own: set --config.model.row_vocabulary=True, or leave it out"
            )
        if model.text == "embedding":
            self._embedding_shape()
        _ = self._codec  # so that what does not fit is named at once
        if model.text == "bytes" and self.caption_fraction == 0:
            warnings.warn(
                f"no piece in {self._folder} has a caption, so prompts will mean nothing to this model: captions come "
                "from  bandtok prepare --tracks",
                stacklevel=2,
            )
        source = token_source.TokenSource(self._folder, "train")
        return {"row_unigrams": token_source.row_unigrams(source, model.codebook_size)}

    def frozen_spec(self):
        model = self.config.model
        return {"row_unigrams": jax.ShapeDtypeStruct((model.rows, model.codebook_size), jnp.float32)}

    def batch_spec(self):
        """Of captions as bytes no data is needed; how many embeddings a text has, only the tokens know."""
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

    def _embedding_shape(self) -> tuple[int, int]:
        """Of the text of an example: how many embeddings of which width."""
        width, record = self.config.model.text_dim, token_source.TokenSource(self._folder, "train")[0]
        shape = np.shape(record.get("embedding"))
        if shape[-1:] != (width,):
            found = f"embeddings of width {shape[-1]}" if shape else "no embeddings"
            raise ValueError(
                f'model.text is "embedding" of width {width}, and the tokens in {self._folder} have {found}: '
                "set --config.model.text_dim to theirs, or make tokens with  bandtok tokenize --embeddings=FILE"
            )
        return shape

    def summaries(self, state, frozen, batch, outputs=None):
        """Returns the token losses `[T, F]` of the first two examples; and with a codec, audio generated from the texts
        of both."""
        if outputs is None:
            _, outputs = jax.jit(self.evaluate)(state, frozen, batch)
        examples = {name: value[:EXAMPLES_SHOWN] for name, value in batch.items()}
        parameters, losses = optimization.evaluation_parameters(state["model"]), outputs[:EXAMPLES_SHOWN]
        shown = {f"{i}/surprise": ("image", losses[i], "nats per token") for i in range(len(losses))}
        # Of several processes, none has all of the weights.
        if self._codec and jax.process_count() == 1:
            shown |= self._new_music(parameters, examples)
        return shown

    def _new_music(self, parameters, examples):
        """As long as what the model sees at a time, from the same random numbers at each call."""
        text = {"bytes": "caption", "embedding": "embedding", "none": None}[self.settings["text"]]
        columns, count = self.config.data.columns, len(examples["codes"])
        codes, _ = autoregressive.Generator(self.settings, parameters).generate(
            columns=columns, window_columns=columns, key=jax.random.key(self.config.seed), batch=count,
            temperature=SAMPLING["temperature"], top_k=min(SAMPLING["top_k"], self.settings["codebook_size"]),
            **({text: np.asarray(examples[text])} if text else {}),
        )  # fmt: skip
        rate = self._codec.sample_rate_hz
        return {f"{i}/generated": ("audio", self._codec.decode(codes[i]), rate) for i in range(count)}

    @functools.cached_property
    def _codec(self):
        """Of `config.tokenizer` and `config.vocoder`, which turns codes into sound; None where no tokenizer is named.

        Raises:
          ValueError: they do not belong to the tokens, or not together, or make no sound.
        """
        if not self.config.tokenizer:
            return None
        from bandtok_jax.pretrained import model_folder  # which imports the tasks

        if self.tokenizer.weight_hash != self.tokenizer_hash:
            raise ValueError(
                f"config.tokenizer {self.config.tokenizer} is {self.tokenizer.weight_hash[:12]}, the tokens in "
                f"{self._folder} were made by {self.tokenizer_hash[:12]}: give that one, or none"
            )
        stages = {"tokenizer": self.tokenizer} | ({"vocoder": self.vocoder} if self.config.vocoder else {})
        codec = model_folder.join(stages)
        if not codec.makes_sound:
            raise ValueError(
                f"config.tokenizer {self.config.tokenizer} makes no sound by itself: set config.vocoder to a vocoder's "
                "run, so that samples are heard, or leave both out"
            )
        return codec

    def init(self, key, batch_spec=None):
        average = self.config.optimizer.ema_decay > 0
        return {
            "step": jnp.zeros((), jnp.int32),
            "model": optimization.create_player(self.network, key, self.optimizer, average),
        }

    def train_step(self, state, frozen, batch, key):
        settings, model = self.config.optimizer, state["model"]
        # Micro-batches are of unequal weight, so each divides by its share of the whole batch's codes.
        share = _count(batch) / settings.accumulation_steps

        def micro_step(micro_batch):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, micro_batch["index"])
            drop = jax.vmap(lambda k: jax.random.bernoulli(k, self.config.loss.cfg_dropout))(keys)
            dropout_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, DROPOUT)

            def loss(parameters):
                codes, ends, _ = self._losses(parameters, micro_batch, drop, dropout_keys)
                terms = {"cross_entropy": codes.sum() / share, "end_cross_entropy": ends.sum() / share}
                return terms["cross_entropy"] + terms["end_cross_entropy"], terms

            (value, terms), gradients = jax.value_and_grad(loss, has_aux=True)(model["parameters"])
            return (gradients, {"loss": value, **terms}), {}

        (gradients, metrics), _ = optimization.accumulate(micro_step, batch, settings.accumulation_steps)
        model, norm = optimization.update_player(model, gradients, self.optimizer, settings.ema_decay, state["step"])
        return {"step": state["step"] + 1, "model": model}, metrics | {"gradient_norm": norm}

    def evaluate(self, state, frozen, batch):
        """Returns sums over the batch, of the losses of each row and of the decisions to end, for `combine`; and the
        token losses `[B, T, F]`."""
        parameters = optimization.evaluation_parameters(state["model"])
        codes, ends, decisions = self._losses(parameters, batch, jnp.zeros(batch["codes"].shape[0], bool))
        rows = jnp.arange(batch["codes"].shape[-1])
        valid = _valid(batch)
        unigrams = jnp.where(valid[..., None], -frozen["row_unigrams"][rows, batch["codes"]], 0)
        metrics = {
            "row_cross_entropy": codes.sum((0, 1)),
            "row_unigram_cross_entropy": unigrams.sum((0, 1)),
            "columns": valid.sum().astype(codes.dtype),
            "end_cross_entropy": ends.sum(),
            "ends": batch["ended"].sum().astype(codes.dtype),
            "right_decisions": decisions.sum().astype(codes.dtype),
        }
        return metrics, codes

    def combine(self, totals, batches: int):
        """Evaluation: cross-entropy beside that of the unigrams of each row, and how often "go on or end" is right."""
        by_row, columns = totals["row_cross_entropy"] / totals["columns"], totals["columns"]
        unigram = (totals["row_unigram_cross_entropy"] / columns).mean()
        metrics = {
            "loss": by_row.mean() + totals["end_cross_entropy"] / (columns * len(by_row)),
            "cross_entropy": by_row.mean(),
            "unigram_cross_entropy": unigram,
            "unigram_gap": by_row.mean() - unigram,
            "end_accuracy": totals["right_decisions"] / (columns + totals["ends"]),
        }
        return metrics | {f"row_cross_entropy/{row:02d}": value for row, value in enumerate(by_row)}

    def warnings(self, scores):
        if scores["unigram_gap"] < 0:
            return []
        return ["the language model predicts no better than the frequencies of the codes in each row"]

    def _losses(self, parameters, batch, drop, keys=None):
        """Cross-entropy in nats, zero where nothing is: of the codes `[B, T, F]`, and of the ends `[B, T + 1]`; and
        where, before a column or an end, the model was right about which of the two comes, bool `[B, T + 1]`.

        drop: bool `[B]`, whose text is left out; keys: `[B]` for dropout, None where there is none.
        """
        codes, columns = batch["codes"], batch["columns"][:, None]
        kind, end = self.settings["text"], self.settings["codebook_size"]
        text = ()
        if kind != "none":
            given = {"bytes": {"caption": batch["caption"]}, "embedding": {"embedding": batch.get("embedding")}}[kind]
            text = self.network.apply(parameters, {}, **given, drop=drop, method="context")
        logits = self.network.apply(parameters, {}, codes, *text, begins=batch["start"] == 0, keys=keys)

        batch_size, length, rows = codes.shape
        before_column = jnp.arange(length + 1)
        ends = (before_column == columns) & batch["ended"][:, None]
        targets = jnp.pad(codes.reshape(batch_size, -1), ((0, 0), (0, 1)))
        targets = targets.at[:, ::rows].set(jnp.where(ends, end, targets[:, ::rows]))
        # Compared, not gathered: the gradient of a gather is a scatter into an array as large as the logits.
        chosen = jnp.where(targets[..., None] == jnp.arange(logits.shape[-1]), logits, 0).sum(-1)
        losses = jax.nn.logsumexp(logits, axis=-1) - chosen
        code_losses = jnp.where(_valid(batch)[..., None], losses[:, :-1].reshape(codes.shape), 0)
        end_losses = jnp.where(ends, losses[:, ::rows], 0)
        right = (logits[:, ::rows].argmax(-1) == end) == ends
        return code_losses, end_losses, right & (ends | (before_column < columns))


def _are_levels(folder: str) -> bool:
    """Whether the rows of these tokens are residual levels; False where there are no tokens, as for a plan."""
    try:
        return bool(folder) and token_manifest.read_token_manifest(folder)["row_kind"] == "residual"
    except FileNotFoundError:
        return False


def _valid(batch):
    """Which columns are there, `[B, T]`."""
    return jnp.arange(batch["codes"].shape[1]) < batch["columns"][:, None]


def _count(batch):
    """How many codes are there."""
    return jnp.maximum(batch["columns"].sum(), 1) * batch["codes"].shape[2]
