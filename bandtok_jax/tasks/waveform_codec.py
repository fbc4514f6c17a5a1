"""Training of a codec of sound itself (DAC): residual levels of codes under spectral distances and critics."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.layers import vector_quantization
from bandtok_jax.layers.network import Tree
from bandtok_jax.layers.precision import exact
from bandtok_jax.layers.residual_vector_quantization import draw_levels
from bandtok_jax.models import registry
from bandtok_jax.tasks.waveform_adversarial import CRITICS_SHARDING, SoundGame


class WaveformCodec(SoundGame):
    """The task `waveform_codec`; see `bandtok_jax.tasks` for the methods."""

    NEXT = "bandtok reconstruct SONG --model={run} -o COPY.wav"
    SHARDING = (
        (r"coder_blocks/.*(dilated|single|down)/kernel", P(None, "fsdp", "tensor")),
        (r"decoder_blocks/.*up/kernel", P(None, "tensor", "fsdp")),
        (r"decoder_in/kernel|encoder_out/kernel", P(None, "fsdp", "tensor")),
        (r"encoder_in/kernel|decoder_out/kernel|quantizer/", P()),
        *CRITICS_SHARDING,
        (r"bias|gain|alpha|code_counts", P()),
    )

    def __init__(self, config, read_stages=None):
        super().__init__(config, read_stages)
        rate = config.data.sample_rate_hz
        self.mel = MelDefinition(sample_rate_hz=rate, high_hz=rate / 2)
        self.set_players(registry.build(config), registry.build(config, "discriminator"))

    @property
    def _codes_decay(self) -> float:
        """Of the moving averages by which the vectors of the codes learn; 0 where they learn by gradient."""
        return self.config.codebook.decay if "codebook" in self.config else 0.0  # older runs do not say

    @property
    def warm_start_batches(self):
        return self.config.codebook.kmeans_batches if self._codes_decay else 1

    def init(self, key, batch_spec=None):
        state = super().init(key, batch_spec)
        if self._codes_decay:
            # The moving sums are counts * vectors: nothing is kept twice, and an export is enough to go on from.
            settings, data = self.config.model, self.config.data
            columns = self.config.batch_size * data.clip_samples / self.network.attribute("samples_per_column")
            state["model"]["code_counts"] = jnp.full(
                (settings.rows, settings.codebook_size), columns / settings.codebook_size
            )
        return state

    def warm_start(self, state, frozen, batches, key):
        """Starts the codes of each level at the k-means centres of what the encoder gives of the first batches."""
        if not self._codes_decay:
            return state
        model = state["model"]
        apply = functools.partial(jax.jit(exact(self.network.apply), static_argnames="method"), model["parameters"], {})
        latents = jnp.concatenate([apply(batch["audio"], method="latents") for batch in batches])
        vectors, counts = apply(latents, key, method="start_codes")
        counts = jnp.maximum(counts / len(batches), 1e-3)
        return {**state, "model": {**_with_vectors(model, vectors), "code_counts": counts}}

    def generate(self, parameters, buffers, frozen, batch, real, key):
        levels = draw_levels(batch["index"], key, self.config.model.rows, self.config.loss.quantizer_dropout)
        made = self.network.apply(parameters, buffers, batch["audio"], levels)
        losses = ("commitment",) if self._codes_decay else ("commitment", "codebook")
        rows = ("codes", "latents") if self._codes_decay else ()
        pick = lambda names: {name: made[name] for name in names}
        return (self._fill(made["audio"], batch), pick(losses)), ({}, pick(rows))

    def learn(self, old, new, totals, rows, batch, key):
        """Moves the vectors of all levels to the means of what chose them, whether or not an example uses the level."""
        if not self._codes_decay:
            return new, {}
        settings, size = self.config.codebook, self.config.model.codebook_size
        vectors = jnp.stack([level["vectors"] for level in _levels(old["parameters"])])
        counts, sums = jax.vmap(lambda z, codes: vector_quantization.chosen(z, codes, size), in_axes=(-2, -1))(
            rows["latents"], rows["codes"]
        )
        draw = lambda latents: vector_quantization.draw_candidates(latents, batch["index"], key, size)
        codebook = {"counts": old["code_counts"], "sums": old["code_counts"][..., None] * vectors}
        codebook, restarted = vector_quantization.update_codebook(
            codebook, counts, sums, jax.vmap(draw, in_axes=-2)(rows["latents"]),
            decay=settings.decay, restart_fraction=settings.restart_fraction,
            epsilon=1e-9,  # enough against 0 / 0; more would shrink rare codes step by step, since no sums are kept
        )  # fmt: skip
        metrics = {
            "codebook_perplexity": vector_quantization.perplexity(codebook["counts"]).mean(),
            "codes_restarted": restarted.astype(jnp.float32),
        }
        return {**_with_vectors(new, codebook["vectors"]), "code_counts": codebook["counts"]}, metrics

    def reconstruct(self, parameters, buffers, frozen, batch):
        made = self.network.apply(parameters, buffers, batch["audio"])
        one_hot = jax.nn.one_hot(made["codes"], self.config.model.codebook_size, dtype=batch["audio"].dtype)
        sums = {"commitment": made["commitment"], "level_histogram": one_hot.sum((0, 1))}
        return self._fill(made["audio"], batch), sums

    @staticmethod
    def _fill(audio, batch):
        """With `model.parity` and odd strides the sound ends a little early: silence fills it up."""
        return jnp.pad(audio, ((0, 0), (0, batch["audio"].shape[1] - audio.shape[1])))

    def combine(self, totals, batches: int):
        """Evaluation metrics from the sums of `eval_step` over `batches` batches: the health of the codebooks too."""
        histogram = totals.pop("level_histogram")
        metrics = super().combine(totals, batches)
        perplexity = vector_quantization.perplexity(histogram)
        metrics["codebook_use"] = (histogram > 0).mean()
        metrics["codebook_perplexity"] = perplexity.mean()
        return metrics | {f"level_perplexity/{level:02d}": value for level, value in enumerate(perplexity)}

    def warnings(self, scores):
        columns = self.config.data.clip_samples / self.network.attribute("samples_per_column")
        seen = self.config.evaluation_batches * self.config.batch_size * columns
        # With few columns even a healthy codebook is not seen whole.
        if scores["codebook_use"] < 0.5 * min(1.0, seen / self.config.model.codebook_size):
            return [f"the codebooks collapse: only {scores['codebook_use']:.0%} of their codes are in use"]
        return []


def _levels(parameters) -> list[Tree]:
    levels = parameters["quantizer"]["levels"]
    return [levels[name] for name in sorted(levels, key=int)]


def _with_vectors(model, vectors):
    """A player whose codes have the vectors `[F, K, codebook_dim]`, in the average of its weights too."""
    changed = dict(model)
    for tree in ("parameters", "average"):
        if model[tree]:
            quantizer = model[tree]["quantizer"]
            levels = {
                str(number): {**level, "vectors": vectors[number]} for number, level in enumerate(_levels(model[tree]))
            }
            changed[tree] = {**model[tree], "quantizer": {**quantizer, "levels": levels}}
    return changed
