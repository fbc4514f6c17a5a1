"""Training of a tokenizer of mel pictures (BandTok): reconstruction, commitment, PatchGAN, feature matching."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bandtok_jax.audio.spectral import LOG_MEL_UNIT, MelDefinition, griffin_lim, log_mel
from bandtok_jax.layers import residual_vector_quantization, vector_quantization
from bandtok_jax.layers.precision import exact
from bandtok_jax.models import registry
from bandtok_jax.tasks import optimization
from bandtok_jax.tasks.adversarial import Game

EXAMPLES_SHOWN, GRIFFIN_LIM_ROUNDS = 2, 16  # of the samples; our choice


class MelTokenizer(Game):
    """The task `mel_tokenizer`; see `bandtok_jax.tasks` for the methods."""

    SHARDING = (
        (r"coder_blocks/\d+/.*conv.*/kernel", P(None, None, "fsdp", "tensor")),
        (r"discriminators/\d+/layers/[1-3]/kernel", P(None, None, "fsdp", "tensor")),
        (r"coder_(in|out)/kernel|column_(in|out)/kernel|layers/[04]/kernel|shortcut/kernel", P()),
        (r"bias|scale|coder_rows", P()),
        (r"codebook/(vectors|sums|counts)", P()),
    )

    HEADLINE = ("mel_distance", "codebook_use")
    NEXT = "bandtok tokenize --model={run} --data={data} --output=TOKENS"

    def __init__(self, config, read_stages=None):
        super().__init__(config, read_stages)
        self.mel = MelDefinition(**config.mel)
        self.set_players(registry.build(config), registry.build(config, "discriminator"))
        column_samples = self.mel.hop_samples * self.network.attribute("frames_per_column")
        if config.data.clip_samples % column_samples:
            raise ValueError(
                f"data.clip_samples {config.data.clip_samples} is not a whole number of columns of codes: "
                f"set it to a multiple of {column_samples}"
            )

    @property
    def _residual(self) -> bool:
        """Whether each row has a codebook of its own."""
        return self.network.attribute("row_kind") == "residual"

    @property
    def warm_start_batches(self):
        return self.config.codebook.kmeans_batches

    def _picture(self, audio):
        """Log-mel `[B, T, M]` of sound `[B, S]`: whole columns, without the frame more that padding "center" gives."""
        return log_mel(audio, self.mel)[:, : audio.shape[1] // self.mel.hop_samples]

    def warm_start(self, state, frozen, batches, key):
        """Starts the codebook, or that of each level, at the k-means centres of the encoder's first latents."""
        model = state["model"]
        encode = jax.jit(exact(lambda p, b, x: self.network.apply(p, b, self._picture(x), method="latents")))
        latents = jnp.concatenate([encode(model["parameters"], model["buffers"], b["audio"]) for b in batches])
        flat, codes = latents.reshape(-1, latents.shape[-1]), self.config.model.codebook_size
        if self._residual:
            start = functools.partial(residual_vector_quantization.start_levels, rows=self.network.attribute("rows"))
        else:
            normalise = self.config.model.normalise_codes
            start = functools.partial(vector_quantization.start_codebook, normalise=normalise)
        codebook = jax.jit(functools.partial(start, codes=codes, batches=len(batches)))(flat, key=key)
        return {**state, "model": {**model, "buffers": {**model["buffers"], "codebook": codebook}}}

    def original(self, batch):
        return self._picture(batch["audio"])

    def generate(self, parameters, buffers, frozen, batch, real, key):
        reconstruction, _, training = self.network.apply(parameters, buffers, real)
        totals = {name: training[name] for name in ("counts", "sums")}
        return (reconstruction, {"commitment": training["commitment"]}), (totals, training["latents"])

    def reconstruction_terms(self, fake, real):
        return {"reconstruction": jnp.abs(fake - real).mean()}

    def learn(self, old, new, totals, rows, batch, key):
        """Moves the codes to the means of the latents that chose them, and restarts those that have died."""
        settings, size = self.config.codebook, totals["counts"].shape[-1]
        draw = lambda latents: vector_quantization.draw_candidates(latents, batch["index"], key, size)
        codebook, restarted = vector_quantization.update_codebook(
            old["buffers"]["codebook"],
            totals["counts"],
            totals["sums"],
            jax.vmap(draw, in_axes=-2)(rows) if self._residual else draw(rows),
            decay=settings.decay,
            restart_fraction=settings.restart_fraction,
            normalise=self.config.model.normalise_codes,
        )
        metrics = {
            "codebook_perplexity": vector_quantization.perplexity(codebook["counts"]).mean(),
            "codes_restarted": restarted.astype(jnp.float32),
        }
        return {**new, "buffers": {**old["buffers"], "codebook": codebook}}, metrics

    def evaluate(self, state, frozen, batch):
        """Returns the mean absolute error of the log-mel in nats and the histogram of the codes of each row; and the
        reconstructed log-mel `[B, T, M]`."""
        model = state["model"]
        picture = self._picture(batch["audio"])
        reconstruction, codes, training = self.network.apply(
            optimization.evaluation_parameters(model), model["buffers"], picture
        )
        one_hot = jax.nn.one_hot(codes, self.config.model.codebook_size, dtype=picture.dtype)
        metrics = {
            "mel_distance": jnp.abs(reconstruction - picture).mean(),
            "commitment": training["commitment"],
            "row_histogram": one_hot.sum((0, 1)),
        }
        return metrics, reconstruction

    def combine(self, totals, batches: int):
        """Evaluation metrics from the sums of `eval_step` over `batches` batches: codebook health among them.

        Of residual levels, use and perplexity are the means over their codebooks.
        """
        histogram = totals.pop("row_histogram")
        metrics = {name: value / batches for name, value in totals.items()}
        of_codebooks = histogram if self._residual else histogram.sum(0)
        metrics["codebook_use"] = (of_codebooks > 0).mean()
        metrics["codebook_perplexity"] = vector_quantization.perplexity(of_codebooks).mean()
        for row, counts in enumerate(histogram):
            metrics[f"row_perplexity/{row:02d}"] = vector_quantization.perplexity(counts)
        return metrics

    def warnings(self, scores):
        use, columns = scores["codebook_use"], self.config.data.clip_samples / self.mel.hop_samples
        columns /= self.network.attribute("frames_per_column")
        tokens = self.config.evaluation_batches * self.config.batch_size * columns
        if not self._residual:
            tokens *= self.network.attribute("rows")
        # With few tokens even a healthy codebook is not seen whole: at most tokens / K of it.
        if use < 0.5 * min(1.0, tokens / self.config.model.codebook_size):
            return [f"the codebook collapses: only {use:.0%} of its codes are in use"]
        return []

    def load_frozen(self):
        """The vocoder that the samples are played by, where the config names one."""
        if not self.config.vocoder:
            return {}
        if self.vocoder.mel != self.mel:
            raise ValueError(
                f"config.vocoder hears {self.vocoder.mel}, this tokenizer writes {self.mel}: give one of the same mel"
            )
        return {"vocoder": dict(self.vocoder.weights)}

    def summaries(self, state, frozen, batch, outputs=None):
        """Returns audio and log-mel of the first two examples and of their reconstructions.

        `config.vocoder` makes the audio of a reconstruction, or Griffin-Lim where there is none.
        """
        if outputs is None:
            _, outputs = jax.jit(self.evaluate)(state, frozen, batch)
        shown = {}
        originals, reconstructions = batch["audio"][:EXAMPLES_SHOWN], outputs[:EXAMPLES_SHOWN]
        pictures, sounds = self._show(frozen, originals, reconstructions)
        for i in range(len(originals)):
            shown[f"{i}/original"] = ("audio", originals[i], self.mel.sample_rate_hz)
            shown[f"{i}/reconstruction"] = ("audio", sounds[i], self.mel.sample_rate_hz)
            shown[f"{i}/mel/original"] = ("image", pictures[i], LOG_MEL_UNIT)
            shown[f"{i}/mel/reconstruction"] = ("image", reconstructions[i], LOG_MEL_UNIT)
        return shown

    @functools.cached_property
    def _show(self):
        """The log-mel `[B, T, M]` of audio `[B, S]`, and the audio of reconstructed log-mels, jitted."""

        def show(frozen, originals, reconstructions):
            pictures = self._picture(originals)
            if "vocoder" in frozen:
                weights = frozen["vocoder"]
                apply = self.vocoder.network.apply
                return pictures, apply(weights["parameters"], weights["buffers"], reconstructions)
            invert = functools.partial(griffin_lim, definition=self.mel, iterations=GRIFFIN_LIM_ROUNDS)
            return pictures, jax.vmap(invert)(reconstructions)

        return jax.jit(show)
