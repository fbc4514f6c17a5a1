"""Streams of blocks through the stages of a codec: audio in, codes out, and back.

A stage takes blocks of any length and gives the items that are final. `through` runs a stage over an iterator, as the
commands on files do, and `BlockStream` over blocks that a program pushes as they come. So both compute the same.

Letters: S samples, C channels, T columns of the grid, F rows.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
import math
from typing import Protocol

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.formats import bt_file
from bandtok_jax.runtime.notes import warn


class Stage(Protocol):
    """A step of a stream, usable for one stream.

    Attributes:
      burst: number of outputs that mostly come at a time.
    """

    @property
    def burst(self) -> int: ...

    def push(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the outputs that a block completes, time first. All of them must be read before the next block."""
        ...

    def finish(self) -> Iterator[np.ndarray]:
        """Yields the remaining outputs after the last block."""
        ...

    def received_for(self, outputs: int) -> int:
        """Returns the number of input items after which the first `outputs` outputs have come."""
        ...


def through(stage: Stage, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the outputs of a stage for consecutive blocks of a stream."""
    for block in blocks:
        yield from stage.push(block)
    yield from stage.finish()


class Chain:
    """Stages one after the other, which are a `Stage` themselves."""

    def __init__(self, stages: Sequence[Stage]):
        self._stages = stages
        self.burst = stages[-1].burst

    def push(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the outputs that a block completes, see `Stage`."""
        return self._pushed(0, block)

    def finish(self) -> Iterator[np.ndarray]:
        """Yields the remaining outputs, see `Stage`."""
        for number, stage in enumerate(self._stages):
            for block in stage.finish():
                yield from self._pushed(number + 1, block)

    def received_for(self, outputs: int) -> int:
        """Returns the number of inputs that outputs need, see `Stage`."""
        for stage in reversed(self._stages):
            outputs = stage.received_for(outputs)
        return outputs

    def longest_wait_seconds(self, inputs_per_second: float, outputs_per_second: float) -> float:
        """Returns the longest time from the beginning of an input item to the output that begins with it.

        It counts the time until the input that the output needs has come, not the time of the computation.
        """
        # After this number of bursts those of all stages coincide again. The first output of a burst waits longest.
        bursts = max((stage.burst for stage in self._stages[:-1]), default=1)
        firsts = (number * self.burst for number in range(bursts))
        return max(self.received_for(first + 1) / inputs_per_second - first / outputs_per_second for first in firsts)

    def _pushed(self, number: int, block: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the outputs of the last stage for an input of stage `number`."""
        if number == len(self._stages):
            yield block
            return
        for output in self._stages[number].push(block):
            yield from self._pushed(number + 1, output)


class AudioInput:
    """A stage from a user's audio `[S]` or `[C, S]` to the format of a codec, `[S]` or `[S, 2]`; checks every block.

    Args:
      from_hz: rate of the blocks.
      to_hz, channels: rate and channels of the codec.

    Attributes:
      samples: number of samples so far, at the rate of the blocks.
    """

    burst = 1

    def __init__(self, from_hz: int, to_hz: int, channels: int):
        self._resampler = waveform.Resampler(from_hz, to_hz, channels)
        self._from_hz, self._to_hz, self._channels = from_hz, to_hz, channels
        self.samples = 0

    def push(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the resampled block; ValueError where it is no audio."""
        if not np.size(block):
            return
        block = waveform.check(block, self._from_hz, self.samples)
        if len(block) > self._channels and not self.samples:
            kind = "mono" if self._channels == 1 else "stereo"
            warn(f"{len(block)} channels are mixed down to one: this codec is {kind}")
        self.samples += block.shape[1]
        yield self._resampled(waveform.to_channels(block, self._channels))

    def finish(self) -> Iterator[np.ndarray]:
        """Yields the end of the resampled stream."""
        if self.samples:
            yield self._resampled(np.zeros((self._channels, 0), np.float32), last=True)

    def received_for(self, outputs: int) -> int:
        """Returns the number of inputs that outputs need, see `Stage`."""
        delay = waveform.resampling_delay_seconds(self._from_hz, self._to_hz)
        return math.ceil(outputs * self._from_hz / self._to_hz + delay * self._from_hz)

    def _resampled(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        result = self._resampler.push(block, last)
        return result[0] if self._channels == 1 else result.T


class CodeInput:
    """A stage that checks codes `[T, f]`, all with the rows of the first block.

    Args:
      rows, codebook_size: F and K of the codec.
      fewer_rows: further numbers of rows that f may be.

    Attributes:
      columns: number of columns so far.
    """

    burst = 1

    def __init__(self, rows: int, codebook_size: int, fewer_rows: Collection[int] = ()):
        self._rows, self._codebook_size, self._fewer_rows = rows, codebook_size, fewer_rows
        self.columns = 0

    def push(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the block as int32; ValueError where it cannot be codes."""
        block = bt_file.check_codes(block, self._rows, self._codebook_size, fewer_rows=self._fewer_rows)
        if len(block):
            self._rows, self._fewer_rows = block.shape[1], ()
            self.columns += len(block)
            yield block

    def finish(self) -> Iterator[np.ndarray]:
        """Yields nothing."""
        return iter(())

    def received_for(self, outputs: int) -> int:
        """Returns the number of inputs that outputs need, see `Stage`."""
        return outputs


class BlockStream:
    """A codec's encoder or decoder over one stream whose blocks come as time passes.

    The blocks that `push` and `finish` return are together those of the whole file.

    Attributes:
      latency_ms: longest time from the beginning of a sample, or of a column of codes, to the output that begins with
        it. It counts the audio that must come first, not the time of the computation.
    """

    def __init__(self, chain: Chain, latency_ms: float, empty: np.ndarray):
        """Takes the stages, the latency, and an output of no length, codes `[0, F]` or audio `[0]` or `[2, 0]`."""
        self._chain, self._empty, self._finished = chain, empty, False
        self._is_audio = np.issubdtype(empty.dtype, np.floating)
        self.latency_ms = latency_ms

    def push(self, block: np.ndarray) -> np.ndarray:
        """Returns the output that a block completes.

        Args:
          block: audio `[S]` or `[C, S]` for an encoder, codes `[T, F]` for a decoder; its length may be 0.

        Returns:
          Codes int32 `[T, F]`, or audio float32 `[S]`, `[2, S]` of a stereo codec; often of length 0.

        Raises:
          ValueError: the block is no audio or no codes, and the stream stays as it was; or the stream is finished.
        """
        self._check_open()
        return self._joined(self._chain.push(np.asarray(block)))

    def finish(self) -> np.ndarray:
        """Returns the rest of the output after the last block; the stream cannot be used again."""
        self._check_open()
        self._finished = True
        return self._joined(self._chain.finish())

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("this stream is finished: make a new one for the next file")

    def _joined(self, outputs: Iterator[np.ndarray]) -> np.ndarray:
        if not self._is_audio:
            return np.concatenate([self._empty, *outputs])
        return np.concatenate([self._empty, *(block.T for block in outputs)], axis=-1)
