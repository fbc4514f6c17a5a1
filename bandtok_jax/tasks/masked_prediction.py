"""Training of an encoder by masked prediction (BEST-RQ, Chiu et al. 2022, arXiv 2202.01855).

Blocks of the waveform are replaced by noise. The encoder reads the mel of the result, and predicts the codes that a
frozen quantizer gives to the original mel in these blocks: a random projection, or the levels of a trained Mel-RVQ
(MuQ, Zhu et al. 2025, arXiv 2501.01108). The losses of `second_stage` read the same hidden state.

Letters: B batch, S samples, T columns, M mel bins, D width, F rows and K codes of the targets.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bandtok_jax.audio.spectral import LOG_MEL_UNIT, MelDefinition, log_mel
from bandtok_jax.layers.batch_norm import update_batch_norms
from bandtok_jax.layers.frozen import copy_weights
from bandtok_jax.layers.network import Tree
from bandtok_jax.models import muencoder_heads, registry
from bandtok_jax.tasks import frozen_networks, optimization, second_stage
from bandtok_jax.tasks.optimization import ModelState
from bandtok_jax.tasks.single_network import SingleNetworkTask
from bandtok_jax.tasks.task import Batch, Metrics, State, Summaries

MASK, NOISE, DROPOUT = 1, 2, 3  # purposes of random keys
EXAMPLES_SHOWN = 2  # of the samples; our choice


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Examples, and the network's last hidden state for their masked audio.

    Attributes:
      apply: `apply(..., method=NAME)` runs a method of the network with the weights of the step.
      batch: the examples, with all that the data gives.
      log_mel: log-mel of their original audio, `[B, 4 * T, M]`.
      state: `[B, T, D]`.
      column_weights: `[B, T]`, 0 for columns that are not masked. The mean over the micro-batches of a weighted sum is
        the mean over all masked columns of the whole batch.
      lyrics_weights: `[B]`, of losses of lyrics, where the batch has them; see `second_stage`.
    """

    apply: Callable[..., Any]
    batch: Batch
    log_mel: jax.Array
    state: jax.Array
    column_weights: jax.Array
    lyrics_weights: jax.Array | None = None


class MaskedPredictionTask(SingleNetworkTask):
    """The task `masked_prediction`, see `Task` for the methods."""

    requires = ("tokenizer",)
    HEADLINE_METRICS = ("masked_accuracy", "unigram_accuracy")
    NEXT_COMMAND = (
        "bandtok train --config=mucodec:tiny --workdir=TOKENIZER_RUN --config.encoder={run} "
        "--config.autoencoder=AUTOENCODER_RUN"
    )

    resolve_config = staticmethod(second_stage.resolve_config)

    def __init__(self, config: ConfigDict, read_components: Callable[[str], dict] | None = None):
        super().__init__(config, read_components)
        self.mel, self._has_mel_rvq = MelDefinition(**config.mel), config.model.targets == "mel_rvq"
        if config.tokenizer and not self._has_mel_rvq:
            raise ValueError(
                f"config.tokenizer is {config.tokenizer}, and model.targets {config.model.targets} has none: leave it "
                "out, or set --config.model.targets=mel_rvq"
            )
        self.column_samples = self.mel.hop_samples * self.network.attribute("frames_per_column")
        for key, samples in (
            ("data.clip_samples", config.data.clip_samples),
            ("masking.block_samples", config.masking.block_samples),
        ):
            if samples < 1 or samples % self.column_samples:
                raise ValueError(
                    f"{key} is {samples}, not a whole number of columns: set it to a multiple of {self.column_samples}"
                )
        if config.masking.block_samples > config.data.clip_samples or not 0 < config.masking.probability <= 1:
            raise ValueError(
                f"masking is {dict(config.masking)} for clips of {config.data.clip_samples} samples: set block_samples "
                "to at most a clip, and probability above 0 and up to 1"
            )

    @property
    def SHARDING(self) -> tuple:
        heads = muencoder_heads.sharding(self.config.model.heads)
        return (*heads, *registry.constructor(self.config.model.kind).SHARDING)

    # ---- the quantizer of the targets -------------------------------------------------------------------------------

    def require_inputs(self) -> None:
        """Raises a ValueError where the targets need a Mel-RVQ, and the configuration names none."""
        if self._has_mel_rvq and not self.config.tokenizer:
            raise ValueError(
                "model.targets mel_rvq needs a trained quantizer: train one, as  bandtok train --config=mel_rvq:tiny , "
                "and set --config.tokenizer to its run or export folder"
            )

    def load_frozen(self) -> Tree:
        """Returns the weights of the Mel-RVQ for `warm_start`, where there is one, and warns of losses without data.

        Raises:
          ValueError: the quantizer does not fit this configuration; the message lists the settings that differ.
        """
        second_stage.warn_without_lyrics(self.config)
        if not self._has_mel_rvq:
            return {}
        self.require_inputs()
        tokenizer, model = self.component("tokenizer"), self.config.model
        settings = {name: model[name] for name in ("mels", "codebook_size", "codebook_dim")}
        settings |= {"kind": "mel_rvq", "rows": model.target_rows}
        if differing := tokenizer.differences(settings, self.mel):
            raise ValueError(
                f"the tokenizer {self.config.tokenizer} does not fit these targets, because it differs in "
                f"{', '.join(differing)}: give a mel_rvq of the same settings, or set these as it has them"
            )
        weights = {name: tree.get("quantizer", {}) for name, tree in tokenizer.weights.items()}
        copied = copy_weights(self.frozen_spec()["quantizer"], weights, f"the tokenizer {self.config.tokenizer}")
        return {"quantizer": copied}

    def frozen_spec(self) -> Tree:
        """Returns shapes and dtypes of `load_frozen()`; for a plan no quantizer is needed."""
        return {"quantizer": self.network.shapes()[1]["quantizer"]} if self._has_mel_rvq else {}

    def warm_start(self, state: State, frozen: Tree, batches: Sequence[Batch], key: jax.Array) -> State:
        """Returns the state with the weights of the Mel-RVQ."""
        model, buffers = state["model"], dict(state["model"]["buffers"])
        if frozen:
            buffers["quantizer"] = frozen_networks.in_dtypes_of(buffers["quantizer"], frozen["quantizer"])
        return {**state, "model": {**model, "buffers": buffers}}

    # ---- masks ------------------------------------------------------------------------------------------------------

    def masked_columns(self, index: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the columns that are masked, bool `[B, T]`, in whole blocks; samples after the last block are not.

        Args:
          index: global index of each example, `[B]`, on which alone its mask depends.
        """
        block, samples = self.config.masking.block_samples, self.config.data.clip_samples
        draw = functools.partial(jax.random.bernoulli, p=self.config.masking.probability, shape=(samples // block,))
        columns = jnp.repeat(jax.vmap(draw)(_keys(key, index, MASK)), block // self.column_samples, axis=1)
        return jnp.pad(columns, ((0, 0), (0, samples // self.column_samples - columns.shape[1])))

    def mask_audio(self, audio: jax.Array, columns: jax.Array, index: jax.Array, key: jax.Array) -> jax.Array:
        """Returns `[B, S]` with noise in place of the masked columns `[B, T]`."""
        draw = functools.partial(jax.random.normal, shape=audio.shape[1:], dtype=audio.dtype)
        noise = self.config.masking.noise * jax.vmap(draw)(_keys(key, index, NOISE))
        return jnp.where(jnp.repeat(columns, self.column_samples, axis=1), noise, audio)

    def log_mel(self, audio: jax.Array) -> jax.Array:
        """Returns the log-mel of whole columns, `[B, S] -> [B, 4 * T, M]`, without the extra frame of its padding."""
        return log_mel(audio, self.mel)[:, : audio.shape[1] // self.mel.hop_samples]

    # ---- losses -----------------------------------------------------------------------------------------------------

    def losses(self, prediction: Prediction) -> dict[str, Callable[[], jax.Array]]:
        """Returns functions that compute the losses, by their names in `config.loss`."""
        second = second_stage.losses(prediction, self.mel.sample_rate_hz, self.column_samples)
        return {"masked_prediction": lambda: self._masked_prediction(prediction)[0], **second}

    def _lyrics_weights(self, batch: Batch, micro_batch: Batch, steps: int) -> jax.Array | None:
        if "lyrics" not in batch:
            return None
        columns = self.config.data.clip_samples // self.column_samples
        return second_stage.lyrics_weights(batch["lyrics"], micro_batch["lyrics"], columns, steps)

    def _masked_prediction(self, prediction: Prediction) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the cross-entropy of a masked code in nats, all codes `[B, T, F]`, and the most likely ones.

        The loss is the mean over the rows.
        """
        targets = prediction.apply(prediction.log_mel, method="targets")
        logits = prediction.apply(prediction.state, method="logits")
        # Compared, not gathered: the gradient of a gather is a scatter into an array as large as the logits.
        target_logits = jnp.where(targets[..., None] == jnp.arange(logits.shape[-1]), logits, 0).sum(-1)
        cross_entropy = (jax.nn.logsumexp(logits, axis=-1) - target_logits).mean(-1)
        return (prediction.column_weights * cross_entropy).sum(), targets, logits.argmax(-1)

    def forward(
        self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch, micro_batch: Batch, key: jax.Array
    ) -> tuple[dict[str, jax.Array], tuple[Tree, Tree]]:
        """Returns the losses, and the sums of the batch norms and of the accuracy."""
        apply = functools.partial(self.network.apply, parameters, buffers)
        # Micro-batches hold different numbers of masked columns, so each divides by its share of those of the batch.
        share = self.masked_columns(batch["index"], key).sum() / self.config.optimizer.accumulation_steps
        index, audio = micro_batch["index"], micro_batch["audio"]
        columns = self.masked_columns(index, key)
        masked_mel = self.log_mel(self.mask_audio(audio, columns, index, key))
        state, sums = apply(masked_mel, _keys(key, index, DROPOUT), method="training_state")
        weights = columns / jnp.maximum(share, 1 / self.config.optimizer.accumulation_steps)
        lyrics_weights = self._lyrics_weights(batch, micro_batch, self.config.optimizer.accumulation_steps)
        prediction = Prediction(apply, micro_batch, self.log_mel(audio), state, weights, lyrics_weights)
        losses = {name: loss() for name, loss in self.active(self.losses(prediction)).items()}
        _, targets, predicted = self._masked_prediction(prediction)
        accuracy = (weights * (targets == predicted).mean(-1)).sum() / self.config.optimizer.accumulation_steps
        return losses, ({"batch_norms": sums, "masked_accuracy": accuracy}, {})

    def update_buffers(
        self, old: ModelState, new: ModelState, totals: Tree, per_example: Tree, batch: Batch, key: jax.Array
    ) -> tuple[ModelState, Metrics]:
        """Returns the model state with the batch's part in the running statistics, and the accuracy."""
        buffers = update_batch_norms(old["buffers"], totals["batch_norms"])
        return {**new, "buffers": buffers}, {"masked_accuracy": totals["masked_accuracy"]}

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, state: State, frozen: Tree, batch: Batch) -> tuple[Metrics, jax.Array]:
        """Returns sums over the batch for `aggregate`, and the masked log-mel `[B, 4 * T, M]`.

        An example has the same mask in every evaluation.
        """
        model, key = state["model"], jax.random.key(self.config.seed)
        apply = functools.partial(self.network.apply, optimization.evaluation_parameters(model), model["buffers"])
        columns = self.masked_columns(batch["index"], key)
        masked_mel = self.log_mel(self.mask_audio(batch["audio"], columns, batch["index"], key))
        (last,) = apply(masked_mel, layers=[self.config.model.num_layers], method="hidden_states")
        weights = columns / jnp.maximum(columns.sum(), 1)
        lyrics_weights = self._lyrics_weights(batch, batch, 1)
        prediction = Prediction(apply, batch, self.log_mel(batch["audio"]), last, weights, lyrics_weights)
        metrics = {name: loss() for name, loss in self.active(self.losses(prediction)).items()}
        metrics["masked_prediction"], targets, predicted = self._masked_prediction(prediction)
        metrics["masked_accuracy"] = (weights * (targets == predicted).mean(-1)).sum()
        rows, codes = self.config.model.target_rows, self.config.model.codebook_size
        metrics["histogram"] = jnp.zeros((rows, codes)).at[jnp.arange(rows), targets].add(columns[..., None])
        if "ctc" in self.config.model.heads:
            # Lyrics are read from the audio without masks.
            (whole,) = apply(prediction.log_mel, layers=[self.config.model.num_layers], method="hidden_states")
            logits = apply("ctc", whole, method="predict")
            metrics["lyrics_errors"], metrics["lyrics_tokens"] = second_stage.error_counts(logits, batch["lyrics"])
        return metrics, masked_mel

    def aggregate(self, totals: dict, num_batches: int) -> dict:
        """Returns evaluation metrics from sums over batches.

        Beside the model stands the best prediction without any input, by the frequencies of the codes that are
        evaluated: the accuracy of the most frequent one, and the entropy. All are means over the rows.
        """
        frequencies = totals.pop("histogram")
        frequencies = frequencies / frequencies.sum(-1, keepdims=True)
        errors, tokens = (totals.pop(name, None) for name in ("lyrics_errors", "lyrics_tokens"))
        metrics = super().aggregate(totals, num_batches)
        metrics["loss"] = sum(self.config.loss[name] * metrics[name] for name in self.config.loss if name in metrics)
        metrics["unigram_accuracy"] = frequencies.max(-1).mean()
        metrics["unigram_entropy"] = -(frequencies * jnp.log(jnp.maximum(frequencies, 1e-20))).sum(-1).mean()
        metrics["codebook_use"] = (frequencies > 0).mean()
        if errors is not None:
            unit = "token" if self.config.data.lyrics_model else "character"  # with bytes, where the text is ASCII
            metrics[f"{unit}_error_rate"] = errors / jnp.maximum(tokens, 1)
        return metrics

    def warnings(self, scores: dict[str, float]) -> list[str]:
        """Returns a message where the encoder predicts no better than the most frequent code."""
        if scores["masked_accuracy"] > scores["unigram_accuracy"]:
            return []
        return ["the encoder predicts masked codes no better than the most frequent code does"]

    def summaries(self, state: State, frozen: Tree, batch: Batch, outputs: jax.Array | None = None) -> Summaries:
        """Returns the log-mels of the first examples, original and masked."""
        outputs = jax.jit(self.evaluate)(state, frozen, batch)[1] if outputs is None else outputs
        originals, samples = self.log_mel(batch["audio"][:EXAMPLES_SHOWN]), {}
        for i in range(len(originals)):  # with several processes an array is indexed only, since none has all of it
            samples[f"{i}/mel/original"] = ("image", originals[i], LOG_MEL_UNIT)
            samples[f"{i}/mel/masked"] = ("image", outputs[i], LOG_MEL_UNIT)
        return samples


def _keys(key: jax.Array, index: jax.Array, purpose: int) -> jax.Array:
    """Returns a random key for each example `[B]`, by its global index."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), purpose))(index)
