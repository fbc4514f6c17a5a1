"""The codec of latents: a tokenizer whose flow generates stereo log-mels from codes, and a vocoder for each channel.

The codes are those of the mean of both channels at the rate of the tokenizer's encoder. Encoder and flow attend over
whole windows, so both work in windows of a fixed length on a fixed grid, and neither codes nor audio depend on the
length of a file. A window of the flow begins with the latents of the end of the window before, as in training, and the
log-mels of both are cross-faded there. The noise of a frame depends on the seed and on its place in the file.

Letters: S samples, T columns of the grid or mel frames, F rows, M mel bins or bins of the latents, C channels.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.audio import spectral
from bandtok_jax.audio.half_rate import halve_rate, halving_filter
from bandtok_jax.audio.windows import MIRROR
from bandtok_jax.codecs.chunked_network import ChunkedNetwork
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.streams import Stage, through
from bandtok_jax.codecs.vocoder import chunked_vocoder
from bandtok_jax.config.validate import check_seed
from bandtok_jax.generation import flow_sampling
from bandtok_jax.layers.network import Tree
from bandtok_jax.models.mucodec_flow import COLUMNS_PER_FRAME, CONTEXT, PADDING, PREDICTED

# Our choices. The encoder reads an eighth of its window on each side as context, which its convolutions need. A chunk
# of the vocoder is 5 seconds at 100 frames a second, of which a tenth is context.
ENCODER_CONTEXT_SHARE, VOCODER_CHUNK_FRAMES = 8, 512


class FlowCodec(Codec):
    """A stereo codec whose tokenizer decodes codes by a flow; without a vocoder `decode` raises ValueError.

    Args:
      tokenizer: component with the methods of `bandtok_jax.models.mucodec.MuCodec`.
      vocoder: component that consumes the log-mel of the tokenizer's decoder.
      language_model: component for `generate`.

    Attributes:
      sampling: defaults of `steps`, `method` and `guidance`, see `bandtok_jax.generation.flow_sampling.sample`; those
        of the tokenizer's configuration. Keywords of `decode` and `decode_stream` override them.
    """

    row_kind = "residual"

    def __init__(self, tokenizer: Component, vocoder: Component | None = None, language_model: Component | None = None):
        if vocoder and (vocoder.network_class.consumes != "mel" or vocoder.mel != tokenizer.mel):
            raise ValueError(
                f"the vocoder consumes {vocoder.network_class.consumes} of {vocoder.mel}, the tokenizer decodes to "
                f"{tokenizer.mel}: train the vocoder on the tokenizer's mel definition"
            )
        attribute = tokenizer.network.attribute
        self._window_columns: int = attribute("window_columns")
        self._encoder_context = self._window_columns // ENCODER_CONTEXT_SHARE
        self._flow_context: int = attribute("context_columns")
        super().__init__(
            tokenizer,
            vocoder,
            language_model,
            samples_per_column=attribute("samples_per_column"),
            chunk_columns=self._window_columns - 2 * self._encoder_context,
        )
        # The encoder attends over a window, so all codes of a chunk depend on the audio in its contexts.
        self._encoder_step_columns = self._chunk_columns
        self.sampling: dict[str, Any] = dict(tokenizer.config.sampling)
        self._flows: dict[tuple, ChunkedNetwork] = {}

    def require_decoder(self) -> None:
        """Raises ValueError with the cure unless there is a vocoder."""
        self.require("vocoder")

    def prefix_columns(self, samples: int) -> int:
        """Returns how many columns of audio a continuation can begin with.

        The end of the audio is in the window of all of them, but only convolutions and weak attention carry it far.
        """
        return max(self.settled_columns(samples), samples // self.samples_per_column - self._encoder_context)

    def decode_mel(self, codes: np.ndarray) -> np.ndarray:
        """Decodes codes `[T, F]` to natural-log mel frames `[T', M]`, means of both channels, for the seed 0."""
        log_mels = through(self._flow_stage(0), [self._whole_grid(codes)])
        return np.log(np.concatenate([np.exp(block).mean(axis=1) for block in log_mels]))

    def vocode(self, log_mel: np.ndarray) -> np.ndarray:
        """Turns natural-log mel frames `[T, M]` into audio `[T * hop]` by the vocoder alone.

        Raises:
          ValueError: no vocoder, or another shape.
        """
        self.require_decoder()
        return self._vocode(log_mel)

    def networks(self) -> dict[str, tuple[str, ChunkedNetwork]]:
        """Returns the networks, see `ChunkedCodec.networks`; the flow as its configuration samples, for the seed 0."""
        networks = super().networks()
        return {"encoder": networks.pop("encoder"), "decoder": ("tokenizer", self._flow({})), **networks}

    def _decoder_stages(self, seed: int, chunk: int, prompt: bool, **sampling: Any) -> list[Stage]:
        return [self._flow_stage(seed, prompt, **sampling), *super()._decoder_stages(seed, chunk, prompt)]

    def _flow_stage(self, seed: int, prompt: bool = False, **sampling: Any) -> Stage:
        """Returns a stage from checked codes to log-mels of both channels, `[T', 2, M]`."""
        return self._flow(sampling).stream(self._weights["tokenizer"], self._first_carry(seed), prompt=prompt)

    def _flow(self, sampling: dict[str, Any]) -> ChunkedNetwork:
        """Returns the flow with these options of `sampling`, and the same network for the same options."""
        options = {**self.sampling, **sampling}
        if (key := tuple(sorted(options.items()))) not in self._flows:
            self._flows[key] = self._chunked_flow(options)
        return self._flows[key]

    def _chunked_flow(self, options: dict[str, Any]) -> ChunkedNetwork:
        network = self.components["tokenizer"].network
        return ChunkedNetwork(
            self.components["tokenizer"],
            functools.partial(_decode_window, context_columns=self._flow_context, options=options),
            chunk=self._window_columns - self._flow_context,
            # The end of a window is the given beginning of the next one.
            context=(0, self._flow_context),
            outputs_per_column=network.attribute("frames_per_latent") // COLUMNS_PER_FRAME,
            carry=self._first_carry(0),
        )

    def _first_carry(self, seed: int) -> Tree:
        """Returns the carry of `_decode_window` before the first window."""
        check_seed(seed)
        attribute = self.components["tokenizer"].network.attribute
        frames = self._flow_context // COLUMNS_PER_FRAME
        return {
            "key": np.asarray(jax.random.key_data(jax.random.key(seed))),
            "number": np.int32(0),
            "latents": np.zeros((frames, *attribute("latent_shape")), np.float32),
            "log_mel": np.zeros((frames * attribute("frames_per_latent"), self.channels, self.mel.mels), np.float32),
        }

    def _chunked_encoder(self, method: str) -> ChunkedNetwork:
        mel: spectral.MelDefinition = self.components["tokenizer"].network.attribute("encoder_mel")
        unpadded = dataclasses.replace(mel, padding="none")
        radius = len(halving_filter()) // 2
        radius += radius % 2  # a whole number of samples at the lower rate
        before = mel.fft_samples // 2  # centred frames
        lead = (2 * before + radius, 2 * (mel.fft_samples - mel.hop_samples - before) + radius)
        # The first and the last samples at the lower rate are cut off: the filter lacks some of their neighbours.
        complete = slice(radius // 2, -(radius // 2))

        def log_mel(audio: jax.Array) -> jax.Array:
            return spectral.log_mel(halve_rate(audio.mean(axis=1))[complete], unpadded)

        return ChunkedNetwork(
            self.components["tokenizer"],
            method,
            chunk=self._chunk_columns,
            context=self._encoder_context,
            items_per_column=self.samples_per_column,
            lead=lead,
            outside=MIRROR,
            front_end=log_mel,
        )

    def _chunked_decoders(self, chunk: int) -> dict[str, ChunkedNetwork]:
        # The flow has windows of its own, which the chunk does not change. A stream with smaller chunks than those of
        # files does not wait for a chunk of the vocoder either.
        if "vocoder" not in self.components:
            return {}
        frames = VOCODER_CHUNK_FRAMES
        if chunk < self._chunk_columns:
            frames = min(frames, self.samples_per_column // self.mel.hop_samples * chunk)
        return {"vocoder": chunked_vocoder(self.components["vocoder"], frames)}


def _decode_window(
    tokenizer: Any,
    codes: jax.Array,
    valid_range: jax.Array,
    carry: Tree,
    *,
    context_columns: int,
    options: dict[str, Any],
) -> tuple[jax.Array, Tree]:
    """Decodes a window of codes to log-mels; `int32 [1, T, F] -> [1, T', 2, M]`, and the next carry.

    Args:
      valid_range: the columns of the window in which the file lies.
      carry: the data of a `key`, the `number` of the window, and `latents` `[T, M, C]`, normalised, and `log_mel`
        `[T', 2, M]` of the end of the window before.
      context_columns: columns that a window shares with the one before.
      options: keywords of `flow_sampling.sample`.
    """
    frames, shared_frames = codes.shape[1] // COLUMNS_PER_FRAME, context_columns // COLUMNS_PER_FRAME
    new_frames, number, frame = frames - shared_frames, carry["number"], jnp.arange(frames)
    first, last = valid_range[0] // COLUMNS_PER_FRAME, -(-valid_range[1] // COLUMNS_PER_FRAME)
    is_context = (frame < shared_frames) & (number > 0)
    kinds = jnp.where(frame >= last, PADDING, jnp.where(is_context, CONTEXT, PREDICTED))[None]
    condition = tokenizer.condition(codes)
    key = jax.random.wrap_key_data(carry["key"])
    noise = flow_sampling.frame_noise(key, number * new_frames, frames, condition.shape[2:])[None]
    context = jnp.zeros_like(noise).at[0, :shared_frames].set(carry["latents"])

    def velocity(x: jax.Array, time: jax.Array, inputs: tuple, drop: jax.Array) -> jax.Array:
        return tokenizer.velocity(x, *inputs, time, drop)

    inputs = (context, condition, kinds)
    latents = flow_sampling.sample(
        velocity, noise, inputs, context=context, is_context=is_context[None], path=tokenizer.flow.path, **options
    )
    log_mel = tokenizer.decode_latents(tokenizer.denormalise(latents), jnp.stack([first, last]))
    shared = carry["log_mel"].shape[0]
    weight = jnp.where(number > 0, (jnp.arange(shared) + 0.5) / max(shared, 1), 1.0)[:, None, None]
    faded = weight * log_mel[0, :shared] + (1 - weight) * carry["log_mel"]
    end = log_mel.shape[1] - shared
    next_carry = {**carry, "number": number + 1, "latents": latents[0, new_frames:], "log_mel": log_mel[0, end:]}
    return log_mel.at[0, :shared].set(faded), next_carry
