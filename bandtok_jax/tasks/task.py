"""The interface of a task, with the defaults that tasks share."""

from collections.abc import Callable, Mapping, Sequence
import os
import shlex
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bandtok_jax.data_pipelines import lyrics, transforms
from bandtok_jax.layers.network import Network, Tree
from bandtok_jax.models import registry
from bandtok_jax.tasks import optimization

State = dict[str, Any]
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# (kind, data, rate or unit): ("audio", [S] or [C, S], sample_rate_hz) or ("image", [T, M], unit)
Summaries = dict[str, tuple[str, jax.Array, Any]]


class Task:
    """A training step and its evaluation, as pure functions of plain trees.

    A state is a dict `{'step', 'model', ...}` of model states, see `optimization`. `frozen` holds the weights of
    earlier components; it is an argument of every step and never a constant of it. `SHARDING` is an ordered table
    regex -> PartitionSpec of all weights, and `network` is exported.

    Losses have names. Their weights are the numbers of that name in the group `loss` of the configuration; a loss whose
    weight is 0 or absent is not computed, see `active`.
    """

    audio_channels: tuple[int, ...] = (1,)  # values of `config.data.channels` that the task takes
    requires: tuple[str, ...] = ()  # components that a configuration of the task may name, for `component`
    warm_start_batches: int = 1  # batches that `warm_start` takes
    HEADLINE_METRICS: tuple[str, ...] = ()  # evaluation metrics on the console, beside the best metric
    NEXT_COMMAND = "bandtok export {run} -o MODEL"  # see `next_command`
    SHARDING: tuple

    def __init__(self, config: ConfigDict, read_components: Callable[[str], dict] | None = None):
        if config.data.channels not in self.audio_channels:
            raise ValueError(
                f"config.data.channels is {config.data.channels}: the task {config.task} takes "
                f"{' or '.join(map(str, self.audio_channels))}"
            )
        self.config, self.read_components = config, read_components
        self._components: dict[str, Any] = {}
        self.network: Network = registry.build(config)
        self.optimizer = optimization.create_optimizer(config.optimizer, optimization.schedule_steps(config))

    @staticmethod
    def resolve_config(config: ConfigDict, read_remote: bool = True) -> ConfigDict:
        """Returns the configuration with values that the data decides, see `tasks.resolve_config`."""
        return config

    # ---- earlier components -----------------------------------------------------------------------------------------

    def component(self, name: str) -> Any:
        """Returns the component (network and weights) in the folder that the configuration gives under `name`.

        Raises:
          ValueError: the folder holds no such component, or no weights.
        """
        if name not in self._components:
            self._components[name] = self._read_component(name)
        return self._components[name]

    def _read_component(self, name: str) -> Any:
        assert self.read_components is not None, "a task that reads components is created with a reader"
        components = self.read_components(self.config[name])
        if name not in components:
            raise ValueError(
                f"config.{name} {self.config[name]} holds no {name}: give the {name}'s run, or an export with one"
            )
        return components[name]

    def component_hashes(self) -> dict[str, str]:
        """Returns the weight hash of every component in `requires`, "" where the configuration names none."""
        return {name: self.component(name).weight_hash if self.config[name] else "" for name in self.requires}

    def load_frozen(self) -> Tree:
        """Returns the weights of earlier components that the steps read and do not change.

        Raises:
          ValueError: a component does not fit the configuration.
        """
        return {}

    def frozen_spec(self) -> Tree:
        """Returns shapes and dtypes of `load_frozen()`."""
        return jax.eval_shape(self.load_frozen)

    # ---- data -------------------------------------------------------------------------------------------------------

    def require_inputs(self) -> None:
        """Raises a ValueError where a key is empty without which there is no training data."""

    @property
    def seconds_per_example(self) -> float:
        """Seconds of audio in one example."""
        return self.config.data.clip_samples / self.config.data.sample_rate_hz

    @property
    def caption_fraction(self) -> float:
        """Fraction of the training examples that have a caption; -1 where it is not known."""
        return -1.0

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns names, shapes and dtypes of a global batch of `data_pipelines`."""
        data = self.config.data
        examples = {"audio": (transforms.clip_shape(data), "float32"), "caption": ((data.caption_bytes,), "uint8")}
        if data.lyrics_tokens:
            examples["lyrics"] = ((data.lyrics_tokens,), lyrics.token_dtype(data.lyrics_model))
        return self._batch_spec(examples)

    def _batch_spec(self, examples: dict[str, tuple[tuple[int, ...], Any]]) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the batch of examples `{name: (shape, dtype)}` and their global index."""
        examples = examples | {"index": ((), jax.dtypes.canonicalize_dtype("int64"))}
        size = self.config.batch_size
        return {name: jax.ShapeDtypeStruct((size, *shape), dtype) for name, (shape, dtype) in examples.items()}

    # ---- training ---------------------------------------------------------------------------------------------------

    def init(self, key: jax.Array, batch_spec: Any = None) -> State:
        """Returns a fresh state."""
        ema = self.config.optimizer.ema_decay > 0
        return {
            "step": jnp.zeros((), jnp.int32),
            "model": optimization.init_model(self.network, key, self.optimizer, ema),
        }

    def warm_start(self, state: State, frozen: Tree, batches: Sequence[Batch], key: jax.Array) -> State:
        """Returns the state with data-dependent initial values from the first `warm_start_batches` batches."""
        return state

    def phase(self, step: int) -> dict[str, bool]:
        """Returns the static arguments of `train_step` at a step; each set of values is compiled once."""
        return {}

    def phases(self) -> list[dict[str, bool]]:
        """Returns the values of `phase` in this run, each once, in order; a phase is an interval of steps."""

        def between(first: int, last: int) -> list[dict[str, bool]]:
            ends = [self.phase(first), self.phase(last)]
            if ends[0] == ends[1] or last - first == 1:
                return ends
            middle = (first + last) // 2
            return between(first, middle) + between(middle, last)

        phases = between(0, max(self.config.total_steps - 1, 1))
        return [phase for number, phase in enumerate(phases) if phase not in phases[:number]]

    def train_step(
        self, state: State, frozen: Tree, batch: Batch, key: jax.Array, **phase: bool
    ) -> tuple[State, Metrics]:
        """Returns the state after one optimizer step, with the shapes and dtypes of its input, and metrics."""
        raise NotImplementedError

    def active(self, losses: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the losses, or their functions, whose weight in `config.loss` is not 0, in their order."""
        return {name: loss for name, loss in losses.items() if self.config.loss.get(name)}

    def weighted_sum(self, losses: Mapping[str, jax.Array]) -> jax.Array:
        """Returns the sum of losses by their weights in `config.loss`."""
        return jnp.asarray(sum(self.config.loss[name] * value for name, value in losses.items()))

    def apply_gradients(self, model: optimization.ModelState, gradients: Tree, step: jax.Array):
        """Returns the model state after one optimizer step, and metrics."""
        model, norm = optimization.apply_gradients(
            model, gradients, self.optimizer, self.config.optimizer.ema_decay, step
        )
        return model, {"gradient_norm": norm}

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, state: State, frozen: Tree, batch: Batch) -> tuple[Metrics, Any]:
        """Returns the metrics of a batch, and the outputs `[B, ...]` that `summaries` shows.

        One program computes both, so that no second one is compiled for the samples.
        """
        raise NotImplementedError

    def eval_step(self, state: State, frozen: Tree, batch: Batch) -> Metrics:
        """Returns the metrics of a batch, see `aggregate`."""
        return self.evaluate(state, frozen, batch)[0]

    def aggregate(self, totals: dict, num_batches: int) -> dict:
        """Returns evaluation metrics from the sums of `eval_step` over `num_batches` batches."""
        return {name: value / num_batches for name, value in totals.items()}

    def warnings(self, scores: dict[str, float]) -> list[str]:
        """Returns messages about evaluation metrics that show a failure."""
        return []

    def summaries(self, state: State, frozen: Tree, batch: Batch, outputs: Any = None) -> Summaries:
        """Returns samples of the first examples of a batch.

        Args:
          outputs: the outputs of `evaluate` for this batch; by default they are computed.
        """
        return {}

    def next_command(self, run: str | os.PathLike) -> str:
        """Returns the command that usually follows this training; words in capitals are placeholders."""
        names = {
            "run": str(run),
            "data": self.config.data.sources,
            "tokenizer": self.config.tokenizer or "TOKENIZER_RUN",
            "vocoder": self.config.vocoder or "VOCODER_RUN",
        }
        return self.NEXT_COMMAND.format(**{name: shlex.quote(value) for name, value in names.items()})


def example_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """Returns the random key of each example, `[B]`, by its global index."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
