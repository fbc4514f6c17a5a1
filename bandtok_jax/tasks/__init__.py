"""What one training step computes: pure functions, one class a task.

A task has
  `init(key, batch_spec) -> state`, a plain dict `{'step', 'model', ...}` of players (see `player.py`);
  `warm_start(state, frozen, batches, key) -> state`, what must look at data before step 0 (k-means);
  `train_step(state, frozen, batch, key, **phase(step)) -> (state, metrics)`;
  `evaluate(state, frozen, batch) -> (metrics, outputs)`, with `eval_step` for the metrics alone;
  `summaries(state, frozen, batch, outputs) -> {name: ("audio", [S], sample_rate_hz) | ("image", [T, M], unit)}`;
  `combine(totals, batches)`, evaluation metrics from summed `eval_step`s, and `warnings` about them;
  `load_frozen() -> frozen`, the weights of earlier stages, an argument of every step and never a constant of it;
  `batch_spec()` and `frozen_spec()`, what a batch and `frozen` look like, to compile a step where no data is;
  `network`, the model that is exported, and `SHARDING`, an ordered table regex -> PartitionSpec of its weights.
"""

import functools
import importlib
import shlex

import jax

_CLASSES = {
    "mel_tokenizer": "MelTokenizer",
    "vocoder": "Vocoder",
    "waveform_codec": "WaveformCodec",
    "language_model": "LanguageModel",
}


class Task:
    """What the tasks share, and the answers they give unless they know better."""

    warm_start_batches = 1  # how many batches `warm_start` wants to see
    HEADLINE: tuple[str, ...] = ()  # evaluation metrics that the console shows beside the best metric
    NEXT = "bandtok export {run} -o MODEL"  # see `next_command`

    def __init__(self, config, read_stages=None):
        self.config, self.read_stages = config, read_stages

    @staticmethod
    def settled(config, remote=True):
        """See the function of that name."""
        return config

    @functools.cached_property
    def tokenizer(self):
        """The stage (network and weights) that `config.tokenizer` names."""
        return self._stage("tokenizer")

    @functools.cached_property
    def vocoder(self):
        """The stage that `config.vocoder` names."""
        return self._stage("vocoder")

    def _stage(self, name: str):
        """Raises ValueError where the folder holds no such stage, or no weights."""
        stages = self.read_stages(self.config[name])
        if name not in stages:
            raise ValueError(
                f"config.{name} {self.config[name]} holds no {name}: give the {name}'s run, or an export with one"
            )
        return stages[name]

    @property
    def tokenizer_hash(self) -> str:
        """Weight hash of the tokenizer whose pictures or codes are learned from; "" if it is none in particular."""
        return self.tokenizer.weight_hash if self.config.tokenizer else ""

    @property
    def seconds_per_example(self) -> float:
        """Seconds of sound in one example."""
        return self.config.data.clip_samples / self.config.data.sample_rate_hz

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and types of a whole batch, as `data_pipelines` gives it."""
        data = self.config.data
        clips = {"audio": ((data.clip_samples,), "float32"), "caption": ((data.caption_bytes,), "uint8")}
        return self._batch_spec(clips)

    def _batch_spec(self, examples: dict) -> dict[str, jax.ShapeDtypeStruct]:
        """Of a batch of examples of these `{name: (shape, type)}`, and their global index."""
        examples = examples | {"index": ((), jax.dtypes.canonicalize_dtype("int64"))}
        size = self.config.batch_size
        return {name: jax.ShapeDtypeStruct((size, *shape), dtype) for name, (shape, dtype) in examples.items()}

    def require_inputs(self) -> None:
        """Raises ValueError where a key is empty without which there is nothing to train on."""

    def load_frozen(self):
        return {}

    def frozen_spec(self):
        """Shapes and types of `load_frozen()`."""
        return jax.eval_shape(self.load_frozen)

    def warm_start(self, state, frozen, batches, key):
        return state

    def phase(self, step: int) -> dict[str, bool]:
        """Keyword arguments of `train_step` that change in the course of a run; each set of values is compiled once."""
        return {}

    def phases(self) -> list[dict[str, bool]]:
        """Returns what `phase` gives in the steps of this run, each once, in order; a phase is an interval of steps."""

        def between(first, last):
            ends = [self.phase(first), self.phase(last)]
            if ends[0] == ends[1] or last - first == 1:
                return ends
            middle = (first + last) // 2
            return between(first, middle) + between(middle, last)

        found = between(0, max(self.config.total_steps - 1, 1))
        return [phase for number, phase in enumerate(found) if phase not in found[:number]]

    def combine(self, totals: dict, batches: int) -> dict:
        """Evaluation metrics from the sums of what `eval_step` gave for each of `batches` batches."""
        return {name: value / batches for name, value in totals.items()}

    def warnings(self, scores: dict[str, float]) -> list[str]:
        """What a person should be told about these evaluation metrics."""
        return []

    def evaluate(self, state, frozen, batch):
        """Returns the metrics of a batch, and the model's outputs `[B, ...]` that `summaries` shows.

        One program computes both, so that no second one has to be compiled for the samples.
        """
        raise NotImplementedError

    def eval_step(self, state, frozen, batch):
        """Returns the metrics of a batch, see `combine`."""
        return self.evaluate(state, frozen, batch)[0]

    def summaries(self, state, frozen, batch, outputs=None):
        """Returns samples of the first examples of a batch.

        Args:
          outputs: those of `evaluate` for this batch; by default they are computed.
        """
        return {}

    def next_command(self, run) -> str:
        """Returns the command that a person will want after this training; words in capitals are to be filled in."""
        names = {
            "run": str(run),
            "data": self.config.data.sources,
            "tokenizer": self.config.tokenizer or "TOKENIZER_RUN",
            "vocoder": self.config.vocoder or "VOCODER_RUN",
        }
        return self.NEXT.format(**{name: shlex.quote(value) for name, value in names.items()})


def create(config, read_stages=None):
    """The task that `config.task` names.

    Args:
      read_stages: reads a run or export folder into `{name: stage}`; for tasks that build on earlier stages.

    Raises:
      ValueError: there is no such task.
    """
    return _find(config.task)(settled(config, remote=False), read_stages)


def settled(config, remote: bool = True):
    """Returns the configuration with values in place of `None` where the data decides.

    remote: read the data for that where it lies in a bucket, too, which a plan does not.
    """
    return _find(config.task).settled(config, remote)


def _find(name: str) -> type[Task]:
    if name not in _CLASSES:
        raise ValueError(f"task is {name!r}; it must be one of {', '.join(sorted(_CLASSES))}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), _CLASSES[name])
