"""Training of MuCodec: a residual quantizer of frozen features, and a flow from its codes to frozen latents.

The losses and their constants are those of MuCodec's code (model.py) and of SongGeneration, a system of the same
authors. There one random number for each batch decides between starts and continuations; here every example has its
own, so that an example does not depend on its batch or its device, and every batch trains both.
"""

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bandtok_jax.audio.half_rate import halve_rate
from bandtok_jax.audio.spectral import LOG_MEL_UNIT, MelDefinition, log_mel
from bandtok_jax.generation import flow_sampling
from bandtok_jax.layers.flow_path import PATHS
from bandtok_jax.layers.frozen import copy_weights
from bandtok_jax.layers.network import Network, Tree
from bandtok_jax.layers.vector_quantization import l2_normalize, perplexity
from bandtok_jax.models import registry
from bandtok_jax.models.mucodec_flow import CONTEXT, PADDING, PREDICTED, latent_sums
from bandtok_jax.tasks import codebooks, frozen_networks, mel_samples, optimization
from bandtok_jax.tasks.optimization import ModelState
from bandtok_jax.tasks.single_network import SingleNetworkTask
from bandtok_jax.tasks.task import Batch, Metrics, State, Summaries, example_keys

# Purposes of the random numbers of an example.
POSTERIOR, TIME, NOISE, CONTINUATION, PREFIX, DROP = range(6)
EVALUATION_TIME = 0.5  # MuCodec's code
EXAMPLES_SHOWN = 2  # of the samples; our choice


class FlowMatchingTask(SingleNetworkTask):
    """The task `flow_matching`, see `Task` for the methods."""

    requires = ("encoder", "autoencoder", "vocoder")
    audio_channels = (2,)
    HEADLINE_METRICS = ("mel_distance", "codebook_use")
    NEXT_COMMAND = "bandtok tokenize --model={run} --data={data} --output=TOKENS"

    def __init__(self, config: ConfigDict, read_components: Callable[[str], dict] | None = None):
        super().__init__(config, read_components)
        self.mel, model = MelDefinition(**config.mel), config.model
        self.encoder_mel: MelDefinition = self.network.attribute("encoder_mel")
        step = self.network.attribute("samples_per_column") * self.network.attribute("chunk_step_columns")
        if config.data.clip_samples % step:
            raise ValueError(
                f"data.clip_samples {config.data.clip_samples} is not a whole number of patches of the flow: "
                f"set it to a multiple of {step}"
            )
        if 2 * self.encoder_mel.sample_rate_hz != config.data.sample_rate_hz:
            raise ValueError(
                f"data.sample_rate_hz is {config.data.sample_rate_hz}: set it to "
                f"{2 * self.encoder_mel.sample_rate_hz}, twice the rate of the encoder"
            )
        first, last = config.loss.context_frames
        frames = config.data.clip_samples // self._samples_per_frame
        if not 0 < first <= last < frames:
            raise ValueError(
                f"loss.context_frames is {(first, last)} of {frames} frames in a clip: set both to 1 to {frames - 1}, "
                "the first one not above the second"
            )
        if config.loss.alignment and not model.alignment_layer:
            raise ValueError(
                "loss.alignment needs a layer of the transformer: set --config.model.alignment_layer to its number, or "
                "--config.loss.alignment=0"
            )

    @property
    def SHARDING(self) -> tuple:
        return registry.constructor(self.config.model.kind).SHARDING

    @property
    def _samples_per_frame(self) -> int:
        """Samples of a frame of latents."""
        return self.network.attribute("frames_per_latent") * self.mel.hop_samples

    # ---- earlier components -----------------------------------------------------------------------------------------

    def require_inputs(self) -> None:
        """Raises a ValueError without an encoder or an autoencoder."""
        for name, config in (("encoder", "muencoder"), ("autoencoder", "mel_vae")):
            frozen_networks.require(self, "MuCodec", name, config)

    @functools.cached_property
    def _autoencoder(self) -> Network:
        """The network of the autoencoder by the settings of this configuration."""
        model = ConfigDict({**self.config.model.autoencoder, "kind": "mel_vae"})
        return registry.build(ConfigDict({"dtype": self.config.dtype, "mel": self.config.mel, "model": model}))

    def load_frozen(self) -> Tree:
        """Returns the weights of encoder and autoencoder, and of the vocoder of the samples, where named.

        The steps read those of the autoencoder alone; the encoder's are for `warm_start`.

        Raises:
          ValueError: a component does not fit this configuration; the message lists the settings that differ.
        """
        self.require_inputs()
        frozen_networks.check_fit(self, "autoencoder", self.mel)
        return {
            "encoder": frozen_networks.encoder_weights(self),
            "autoencoder": dict(self.component("autoencoder").weights),
            **mel_samples.vocoder_weights(self, self.mel),
        }

    def frozen_spec(self) -> Tree:
        """Returns shapes and dtypes of `load_frozen()`; without components, as for a plan, those of the same sizes."""
        if self.config.encoder and self.config.autoencoder:
            return super().frozen_spec()
        parameters, buffers = self._autoencoder.shapes()
        return {
            "encoder": self.network.shapes()[1]["encoder"],
            "autoencoder": {"parameters": parameters, "buffers": buffers},
        }

    def warm_start(self, state: State, frozen: Tree, batches: Sequence[Batch], key: jax.Array) -> State:
        """Returns the state with the weights of the encoder and of the autoencoder's decoder."""
        buffers, weights = state["model"]["buffers"], frozen["autoencoder"]
        decoder = {name: tree.get("decoder", {}) for name, tree in weights.items()}
        copies = {
            "encoder": frozen_networks.in_dtypes_of(buffers["encoder"], frozen["encoder"]),
            "decoder": copy_weights(buffers["decoder"], decoder, "the decoder of the autoencoder"),
        }
        return {**state, "model": {**state["model"], "buffers": {**buffers, **copies}}}

    # ---- inputs -----------------------------------------------------------------------------------------------------

    def target(self, batch: Batch) -> jax.Array:
        """Returns the log-mels of both channels, `[B, 2, T, M]`, without the extra frame of padding "center"."""
        audio = batch["audio"]
        return log_mel(audio, self.mel)[:, :, : audio.shape[-1] // self.mel.hop_samples]

    def _features(self, buffers: Tree, parameters: Tree, batch: Batch) -> jax.Array:
        """Returns the encoder's features of the mean of both channels, `[B, T, D]`."""
        audio = halve_rate(batch["audio"].mean(1))
        frames = log_mel(audio, self.encoder_mel)[:, : audio.shape[-1] // self.encoder_mel.hop_samples]
        return jax.lax.stop_gradient(self.network.apply(parameters, buffers, frames, method="features"))

    def _latents(self, frozen: Tree, log_mels: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Returns the latents of log-mels of both channels; `[B, 2, T, M] -> [B, T/8, M/8, 2 Z]`.

        Args:
          keys: random keys `[B]`, for samples of the autoencoder's distribution; without them its means.
        """
        weights, (batch, channels) = frozen["autoencoder"], log_mels.shape[:2]
        apply = functools.partial(self._autoencoder.apply, weights["parameters"], weights["buffers"])
        mean, log_variance = apply(log_mels.reshape(-1, *log_mels.shape[2:]), method="encode")
        noise = None
        if keys is not None:
            shape = (channels, *mean.shape[1:])
            noise = jax.vmap(lambda key: jax.random.normal(key, shape, mean.dtype))(keys).reshape(mean.shape)
        latents = apply(mean, log_variance, noise, method="sample")
        latents = jnp.moveaxis(latents.reshape(batch, channels, *latents.shape[1:]), 1, 3)
        return jax.lax.stop_gradient(latents.reshape(*latents.shape[:3], -1))

    def _present(self, batch: Batch) -> jax.Array:
        """Returns the frames of latents that are no padding, bool `[B, T]`: the zeros at the end of a clip are."""
        audio = (batch["audio"] != 0).any(1)
        samples = audio.shape[1] - jnp.argmax(audio[:, ::-1], axis=1)
        frames = jnp.where(audio.any(1), -(-samples // self._samples_per_frame), 0)
        return jnp.arange(audio.shape[1] // self._samples_per_frame) < frames[:, None]

    def _mask(self, batch: Batch, key: jax.Array) -> jax.Array:
        """Returns the kind of each frame of latents in training, `[B, T]`, see `bandtok_jax.models.mucodec_flow`.

        An example is a continuation with the probability `loss.continuations`. Its first frames, a number in the range
        `loss.context_frames`, are then given, but never more than half of the frames that are no padding.
        """
        present, (first, last) = self._present(batch), self.config.loss.context_frames
        keys = example_keys(key, batch)

        def draw(key: jax.Array) -> jax.Array:
            frames = jax.random.randint(jax.random.fold_in(key, PREFIX), (), first, last + 1)
            coin = jax.random.bernoulli(jax.random.fold_in(key, CONTINUATION), self.config.loss.continuations)
            return jnp.where(coin, frames, 0)

        frames = jnp.minimum(jax.vmap(draw)(keys), present.sum(1) // 2)
        is_context = jnp.arange(present.shape[1]) < frames[:, None]
        return jnp.where(is_context, CONTEXT, jnp.where(present, PREDICTED, PADDING))

    def _weights(self, mask: jax.Array) -> jax.Array:
        """Returns the weight of the error of each frame, `[B, T]`."""
        return jnp.where(mask == PREDICTED, 1.0, jnp.where(mask == PADDING, self.config.loss.padding_weight, 0.0))

    # ---- training ---------------------------------------------------------------------------------------------------

    def forward(
        self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch, micro_batch: Batch, key: jax.Array
    ) -> tuple[dict[str, jax.Array], tuple[Tree, Tree]]:
        """Returns the losses of the flow and of the quantizer, and statistics, see `SingleNetworkTask.forward`."""
        apply = functools.partial(self.network.apply, parameters, buffers)
        keys, settings = example_keys(key, micro_batch), self.config.loss

        def of_purpose(purpose: int) -> jax.Array:
            return jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)

        features = self._features(buffers, parameters, micro_batch)
        quantized, _, losses, statistics = apply(features, method="quantize")
        condition = apply(quantized, method="condition_of_features")

        latents = self._latents(frozen, self.target(micro_batch), of_purpose(POSTERIOR))
        data = apply(latents, method="normalise")
        time = jax.vmap(jax.random.uniform)(of_purpose(TIME))
        noise = jax.vmap(lambda key: jax.random.normal(key, data.shape[1:]))(of_purpose(NOISE))
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, settings.condition_dropout))(of_purpose(DROP))
        mask, path = self._mask(micro_batch, key), PATHS[self.config.model.objective]
        inputs = path.mix(time, noise, data), data, condition, mask, time, drop
        present = self._present(micro_batch)

        # Micro-batches hold different numbers of frames, so each divides by its share of the whole batch.
        steps = self.config.optimizer.accumulation_steps
        if self.active({"alignment": None}):
            prediction, projected = apply(*inputs, method="predict_and_align")
            share = self._pool(self._present(batch)).sum() / steps
            losses["alignment"] = self._misalignment(projected, features, self._pool(present)).sum() / share
        else:
            prediction = apply(*inputs, method="predict")
        share = self._weights(self._mask(batch, key)).sum() / steps
        losses["flow"] = self._squared_errors(prediction, path.target(time, noise, data), mask).sum() / share

        sums, per_example = codebooks.split_statistics(statistics)
        return losses, ({"codes": sums, "latents": latent_sums(latents, present)}, per_example)

    def _squared_errors(self, prediction: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the weighted squared error of each frame, the mean over bins and channels, `[B, T]`.

        The weight is squared with the error, as published, so that padding counts 1e-4.
        """
        return self._weights(mask) ** 2 * ((prediction - target) ** 2).mean((2, 3))

    def _pool(self, present: jax.Array) -> jax.Array:
        """Returns the patches that begin with a frame that is no padding, `[B, T / patch]`."""
        return present[:, :: self.config.model.patch]

    def _misalignment(self, projected: jax.Array, features: jax.Array, present: jax.Array) -> jax.Array:
        """Returns 1 minus the cosine of projected tokens and the mean features of their columns, `[B, T / patch]`."""
        pooled = features.reshape(*projected.shape[:2], -1, features.shape[-1]).mean(2)
        projected, pooled = projected.astype(jnp.float32), pooled.astype(jnp.float32)
        return jnp.where(present, 1 - (l2_normalize(projected) * l2_normalize(pooled)).sum(-1), 0)

    def update_buffers(
        self, old: ModelState, new: ModelState, totals: Tree, per_example: Tree, batch: Batch, key: jax.Array
    ) -> tuple[ModelState, Metrics]:
        """Counts the latents of the first examples for their normaliser, and restarts stale codes."""
        flow = new["buffers"]["flow"]
        counting = flow["normaliser"]["count"] < self.config.normaliser_examples
        normaliser = jax.tree.map(
            lambda total, added: total + jnp.where(counting, added, 0), flow["normaliser"], totals["latents"]
        )
        new = {**new, "buffers": {**new["buffers"], "flow": {**flow, "normaliser": normaliser}}}
        return codebooks.update(old, new, totals["codes"], per_example, batch, key, self.config)

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, state: State, frozen: Tree, batch: Batch) -> tuple[Metrics, jax.Array]:
        """Returns metrics, and the log-mels of both channels from codes, `[B, 2, T, M]`.

        `flow_at_half` is the loss `flow` at time 0.5 without context and dropout. `mel_distance` is the mean absolute
        error of the log-mel in nats, of samples by the settings of the group `sampling`.
        """
        model, log_mels = state["model"], self.target(batch)
        parameters, buffers = optimization.evaluation_parameters(model), model["buffers"]
        apply = functools.partial(self.network.apply, parameters, buffers)
        quantized, codes, losses, _ = apply(self._features(buffers, parameters, batch), method="quantize")
        condition = apply(quantized, method="condition_of_features")
        data = apply(self._latents(frozen, log_mels), method="normalise")
        present = self._present(batch)
        mask, path = jnp.where(present, PREDICTED, PADDING), PATHS[self.config.model.objective]

        def draw_noise(key: jax.Array) -> jax.Array:
            return flow_sampling.frame_noise(key, 0, data.shape[1], data.shape[2:])

        noise = jax.vmap(draw_noise)(example_keys(jax.random.key(0), batch))
        time = jnp.full(len(data), EVALUATION_TIME)
        prediction = apply(path.mix(time, noise, data), data, condition, mask, time, method="predict")
        errors = self._squared_errors(prediction, path.target(time, noise, data), mask)

        def velocity(x: jax.Array, time: jax.Array, inputs: Tree, drop: jax.Array) -> jax.Array:
            return apply(x, jnp.zeros_like(x), *inputs, time, drop, method="velocity")

        sampled = flow_sampling.sample(velocity, noise, (condition, mask), path=path, **self.config.sampling)
        decoded = jnp.moveaxis(apply(apply(sampled, method="denormalise"), method="decode_latents"), 2, 1)
        frames = jnp.repeat(present, self.network.attribute("frames_per_latent"), axis=1)[:, None, :, None]
        distances = jnp.where(frames, jnp.abs(decoded - log_mels), 0).mean()
        one_hot = jax.nn.one_hot(codes, self.config.model.codebook_size, dtype=decoded.dtype)
        metrics = {
            "flow_at_half": errors.sum() / self._weights(mask).sum(),
            "mel_distance": distances / jnp.maximum(frames.mean(), 1e-9),
            "commitment": losses["commitment"],
            "level_histogram": one_hot.sum((0, 1)),
        }
        return metrics, decoded

    def aggregate(self, totals: dict, num_batches: int) -> dict:
        """Returns evaluation metrics from sums over batches, with use and perplexity of the codebooks."""
        histogram = totals.pop("level_histogram")
        metrics = super().aggregate(totals, num_batches)
        metrics["codebook_use"] = (histogram > 0).mean()
        metrics["codebook_perplexity"] = perplexity(histogram).mean()
        return metrics

    def summaries(self, state: State, frozen: Tree, batch: Batch, outputs: jax.Array | None = None) -> Summaries:
        """Returns stereo audio and log-mels of the left channel, of the first examples and of samples from their codes.

        The audio of a sample is made by `config.vocoder`, or by Griffin-Lim without one.
        """
        outputs = jax.jit(self.evaluate)(state, frozen, batch)[1] if outputs is None else outputs
        originals, decoded = batch["audio"][:EXAMPLES_SHOWN], outputs[:EXAMPLES_SHOWN]
        mels, audio = self._samples(frozen, originals, decoded)
        samples = {}
        for i in range(len(originals)):
            samples[f"{i}/original"] = ("audio", originals[i], self.mel.sample_rate_hz)
            samples[f"{i}/sample"] = ("audio", audio[i], self.mel.sample_rate_hz)
            samples[f"{i}/mel/original"] = ("image", mels[i, 0], LOG_MEL_UNIT)
            samples[f"{i}/mel/sample"] = ("image", decoded[i, 0], LOG_MEL_UNIT)
        return samples

    @functools.cached_property
    def _samples(self) -> Callable[[Tree, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        """The log-mels `[B, 2, T, M]` of audio `[B, 2, S]`, and the audio of decoded log-mels, as one program."""

        def samples(frozen: Tree, originals: jax.Array, decoded: jax.Array) -> tuple[jax.Array, jax.Array]:
            audio = mel_samples.audio_of(self, self.mel, frozen, decoded.reshape(-1, *decoded.shape[2:]))
            return self.target({"audio": originals}), audio.reshape(*decoded.shape[:2], -1)

        return jax.jit(samples)
