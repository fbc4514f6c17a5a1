"""Training of a mel tokenizer: losses of reconstruction, of features and of the quantizer, and adversarial loss."""

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bandtok_jax.audio.spectral import LOG_MEL_UNIT, MelDefinition, griffin_lim, log_mel
from bandtok_jax.layers.network import Tree
from bandtok_jax.layers.vector_quantization import perplexity
from bandtok_jax.losses import lipschitz, spectral
from bandtok_jax.tasks import codebooks, optimization, perceptual_features
from bandtok_jax.tasks.adversarial import AdversarialTask, LossFunctions
from bandtok_jax.tasks.optimization import ModelState
from bandtok_jax.tasks.task import Batch, Metrics, State, Summaries

DIRECTION = 1  # purpose of a random key: the direction of the loss `lipschitz`
EXAMPLES_SHOWN, GRIFFIN_LIM_ITERATIONS = 2, 16  # of the samples; our choice


class MelTokenizerTask(AdversarialTask):
    """The task `mel_tokenizer`, see `Task` for the methods."""

    requires = ("vocoder",)
    HEADLINE_METRICS = ("mel_distance", "codebook_use")
    NEXT_COMMAND = "bandtok tokenize --model={run} --data={data} --output=TOKENS"

    def __init__(self, config: ConfigDict, read_components: Callable[[str], dict] | None = None):
        super().__init__(config, read_components)
        self.mel = MelDefinition(**config.mel)
        column_samples = self.mel.hop_samples * self.network.attribute("frames_per_column")
        if config.data.clip_samples % column_samples:
            raise ValueError(
                f"data.clip_samples {config.data.clip_samples} is not a whole number of columns of codes: "
                f"set it to a multiple of {column_samples}"
            )

    @property
    def _residual(self) -> bool:
        """True where each row has a codebook of its own."""
        return self.network.attribute("row_kind") == "residual"

    @property
    def warm_start_batches(self) -> int:
        """Batches for the k-means centres of the codebook, see `codebooks.warm_start_batches`."""
        return codebooks.warm_start_batches(self.config)

    def warm_start(self, state: State, frozen: Tree, batches: Sequence[Batch], key: jax.Array) -> State:
        """Returns the state with the codebook at k-means centres of the encoder's first latents."""
        return {**state, "model": codebooks.warm_start(self.network, state["model"], self.target, batches, key)}

    def target(self, batch: Batch) -> jax.Array:
        """Returns the log-mel of whole columns, `[B, T, M]`, without the extra frame of padding "center"."""
        audio = batch["audio"]
        return log_mel(audio, self.mel)[:, : audio.shape[1] // self.mel.hop_samples]

    def forward(
        self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch, real: jax.Array, key: jax.Array
    ) -> tuple[tuple[jax.Array, dict], tuple[Tree, Tree]]:
        """Runs the tokenizer, see `AdversarialTask.forward`."""
        apply = functools.partial(self.network.apply, parameters, buffers)
        reconstruction, codes, losses, statistics = apply(real)

        def squared_gain() -> jax.Array:
            keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.fold_in(key, index), DIRECTION))(batch["index"])
            decode = functools.partial(apply, method="decode_latents", floor=False)
            return lipschitz.squared_gain(decode, apply(codes, method="dequantize"), keys)

        losses |= {name: function() for name, function in self.active({"lipschitz": squared_gain}).items()}
        return (reconstruction, losses), codebooks.split_statistics(statistics)

    def reconstruction_losses(self, frozen: Tree) -> LossFunctions:
        """Returns distances between log-mels `[B, T, M]`."""
        of_features = self._features.losses(frozen["features"]) if "features" in frozen else {}
        return {"reconstruction": spectral.l1, **of_features}

    @functools.cached_property
    def _features(self) -> perceptual_features.PerceptualFeatures:
        """The network whose features the losses `perceptual` and `gram` compare."""
        return perceptual_features.PerceptualFeatures(self.config.loss.perceptual_features, self.config.dtype)

    def update_buffers(
        self, old: ModelState, new: ModelState, totals: Tree, per_example: Tree, batch: Batch, key: jax.Array
    ) -> tuple[ModelState, Metrics]:
        """Moves codes that learn by EMA to the means of their latents and restarts dead ones."""
        normalise = self.config.model.get("normalise_codes", False)
        return codebooks.update(old, new, totals, per_example, batch, key, self.config.codebook, normalise)

    def evaluate(self, state: State, frozen: Tree, batch: Batch) -> tuple[Metrics, jax.Array]:
        """Returns metrics and the reconstructed log-mel `[B, T, M]`.

        `mel_distance` is the mean absolute error of the log-mel in nats.
        """
        model, real = state["model"], self.target(batch)
        reconstruction, codes, losses, _ = self.network.apply(
            optimization.evaluation_parameters(model), model["buffers"], real
        )
        one_hot = jax.nn.one_hot(codes, self.config.model.codebook_size, dtype=real.dtype)
        metrics = {
            "mel_distance": jnp.abs(reconstruction - real).mean(),
            "commitment": losses["commitment"],
            "row_histogram": one_hot.sum((0, 1)),
        }
        return metrics, reconstruction

    def aggregate(self, totals: dict, num_batches: int) -> dict:
        """Returns evaluation metrics from sums over batches, with use and perplexity of the codebook.

        With residual levels both are means over their codebooks.
        """
        histogram = totals.pop("row_histogram")
        metrics = super().aggregate(totals, num_batches)
        codebook_histogram = histogram if self._residual else histogram.sum(0)
        metrics["codebook_use"] = (codebook_histogram > 0).mean()
        metrics["codebook_perplexity"] = perplexity(codebook_histogram).mean()
        for row, counts in enumerate(histogram):
            metrics[f"row_perplexity/{row:02d}"] = perplexity(counts)
        return metrics

    def warnings(self, scores: dict[str, float]) -> list[str]:
        """Returns a message where the codebook collapses."""
        use, columns = scores["codebook_use"], self.config.data.clip_samples / self.mel.hop_samples
        columns /= self.network.attribute("frames_per_column")
        tokens = self.config.evaluation_batches * self.config.batch_size * columns
        if not self._residual:
            tokens *= self.network.attribute("rows")
        # Few tokens cannot use all of a healthy codebook, but at most tokens / K.
        if use < 0.5 * min(1.0, tokens / self.config.model.codebook_size):
            return [f"the codebook collapses: only {use:.0%} of its codes are in use"]
        return []

    def load_frozen(self) -> Tree:
        """Returns the weights of the features that a loss compares, and of the vocoder of the samples, where named."""
        frozen = {}
        if self.active(dict.fromkeys(perceptual_features.LOSSES)):
            frozen["features"] = self._features.load()
        if not self.config.vocoder:
            return frozen
        vocoder = self.component("vocoder")
        if vocoder.mel != self.mel:
            raise ValueError(
                f"config.vocoder {self.config.vocoder} has the mel {vocoder.mel}, and this tokenizer has {self.mel}: "
                "give a vocoder of the same mel"
            )
        return {**frozen, "vocoder": dict(vocoder.weights)}

    def summaries(self, state: State, frozen: Tree, batch: Batch, outputs: jax.Array | None = None) -> Summaries:
        """Returns audio and log-mel of the first examples and of their reconstructions.

        The audio of a reconstruction is made by `config.vocoder`, or by Griffin-Lim without one.
        """
        outputs = jax.jit(self.evaluate)(state, frozen, batch)[1] if outputs is None else outputs
        originals, reconstructions = batch["audio"][:EXAMPLES_SHOWN], outputs[:EXAMPLES_SHOWN]
        mels, audio = self._samples(frozen, originals, reconstructions)
        samples = {}
        for i in range(len(originals)):
            samples[f"{i}/original"] = ("audio", originals[i], self.mel.sample_rate_hz)
            samples[f"{i}/reconstruction"] = ("audio", audio[i], self.mel.sample_rate_hz)
            samples[f"{i}/mel/original"] = ("image", mels[i], LOG_MEL_UNIT)
            samples[f"{i}/mel/reconstruction"] = ("image", reconstructions[i], LOG_MEL_UNIT)
        return samples

    @functools.cached_property
    def _samples(self) -> Callable[[Tree, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        """The log-mel `[B, T, M]` of audio `[B, S]`, and the audio of reconstructed log-mels, as one program."""

        def samples(frozen: Tree, originals: jax.Array, reconstructions: jax.Array) -> tuple[jax.Array, jax.Array]:
            mels = self.target({"audio": originals})
            if "vocoder" in frozen:
                weights, network = frozen["vocoder"], self.component("vocoder").network
                return mels, network.apply(weights["parameters"], weights["buffers"], reconstructions)
            invert = functools.partial(griffin_lim, definition=self.mel, iterations=GRIFFIN_LIM_ITERATIONS)
            return mels, jax.vmap(invert)(reconstructions)

        return jax.jit(samples)
