"""Model FLOPs: the arithmetic of a training step, independent of the device and the compiler.

The count is that of the traced step. Matrix products and convolutions count with 2 for a multiplication and an
addition, Fourier transforms with 2.5 n log2 n of n real samples. Loops count as often as they run. Elementwise
operations and rematerialisation do not count, so the count is the same with and without `model.remat`,
`model.scan_layers` and micro-batches. Causal attention counts the blocks of the square that XLA's own path touches
(`layers.attention`), which is 56 % of it for long sequences.
"""

from collections.abc import Iterable, Iterator, Sequence
import math
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval
import numpy as np

from bandtok_jax import tasks
from bandtok_jax.models.token_losses import kept_logits
from bandtok_jax.runtime.target_platform import made_for
from bandtok_jax.tasks.task import Task


def training_flops(task: Task, batch_size: int, *, rematerialised: bool = False, **phase: bool) -> float:
    """Returns the model FLOPs of one step on the whole batch, all networks together.

    Args:
      batch_size: over all devices and micro-batches.
      rematerialised: also counts operations that `model.remat` computes twice; they take time but are no model FLOPs.
      phase: from `task.phase(step)`; each phase has its own count.
    """
    model = task.config.model
    changes = {"attention": "xla", "remat": model.remat and rematerialised} if "attention" in model else {}
    with kept_logits(not rematerialised):
        jaxpr = trace_step(task, batch_size, phase, **changes)
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return count_flops(needed)


def trace_step(task: Task, batch_size: int, phase: dict[str, bool], **changes: Any) -> core.Jaxpr:
    """Returns the jaxpr of a training step on GPUs, without micro-batches and with other values in config.model.

    On CPUs and TPUs spectra are computed in other ways, with more arithmetic.
    """
    config = task.config.copy_and_resolve_references()
    with config.unlocked():
        config.batch_size, config.optimizer.accumulation_steps = batch_size, 1
        config.model.update(changes)
    task = tasks.create(config.lock(), task.read_components)
    state = jax.eval_shape(lambda: task.init(jax.random.key(0)))

    def step(state: Any, frozen: Any, batch: Any) -> Any:
        return task.train_step(state, frozen, batch, jax.random.key(0), **phase)

    with made_for("gpu"):
        return jax.make_jaxpr(step)(state, task.frozen_spec(), task.batch_spec()).jaxpr


def count_flops(jaxpr: core.Jaxpr) -> float:
    """Returns the FLOPs of matrix products, convolutions and Fourier transforms in a jaxpr and its inner jaxprs.

    Raises:
      ValueError: the step has a loop of unknown length or a hand-written kernel.
    """
    return float(sum(_count_equation(equation) for equation in jaxpr.eqns))


def _count_equation(equation: core.JaxprEqn) -> float:
    """Returns the FLOPs of one equation of a jaxpr."""
    name, parameters = equation.primitive.name, equation.params
    inputs: list[Any] = [variable.aval for variable in equation.invars]
    output: Any = equation.outvars[0].aval if equation.outvars else None
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return 2.0 * output.size * math.prod(inputs[0].shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        return _count_convolution(inputs, output, parameters)
    if name == "fft":
        sizes = parameters["fft_lengths"]
        real = 1 if "RFFT" in str(parameters["fft_type"]) else 2
        transforms = max(inputs[0].size, output.size) / math.prod(sizes)
        return 2.5 * real * transforms * math.prod(sizes) * math.log2(math.prod(sizes))
    if name == "pallas_call":
        raise ValueError(
            "the FLOPs of a hand-written kernel cannot be counted: choose another implementation in config"
        )
    inner = [count_flops(body) for body in inner_jaxprs(equation)]
    if not any(inner):
        return 0.0
    if name == "while":
        raise ValueError(f"the step has a loop of unknown length with matrix products in it: {equation.source_info}")
    if name == "cond":
        return max(inner)
    return sum(inner) * (parameters["length"] if name == "scan" else 1)


def inner_jaxprs(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """Yields the jaxprs among the parameters of an equation."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _count_convolution(inputs: Sequence[Any], output: Any, parameters: dict[str, Any]) -> float:
    """Returns the FLOPs of a convolution of a jaxpr."""
    numbers, padding = parameters["dimension_numbers"], parameters["padding"]
    image, kernel = inputs[0].shape, inputs[1].shape
    axes = zip(
        (image[axis] for axis in numbers.lhs_spec[2:]),
        (kernel[axis] for axis in numbers.rhs_spec[2:]),
        (output.shape[axis] for axis in numbers.out_spec[2:]),
        parameters["window_strides"],
        (before for before, _ in padding),
        parameters["lhs_dilation"],
        parameters["rhs_dilation"],
    )
    batch, features = image[numbers.lhs_spec[0]], image[numbers.lhs_spec[1]]
    groups = parameters["feature_group_count"] * parameters["batch_group_count"]
    return convolution_flops(batch, features, output.shape[numbers.out_spec[1]], groups, axes)


def convolution_flops(
    batch: int, features: int, output_features: int, groups: int, axes: Iterable[Sequence[int]]
) -> float:
    """Returns the FLOPs of a convolution.

    Args:
      batch, features: sizes of the image.
      groups: number of feature groups times number of batch groups.
      axes: the arguments of `multiply_count` for each spatial axis.
    """
    return 2.0 * batch * features * output_features * math.prod(multiply_count(*axis) for axis in axes) / groups


def multiply_count(
    image: int, kernel: int, output: int, stride: int = 1, padding: int = 0, image_step: int = 1, kernel_step: int = 1
) -> int:
    """Returns the number of pairs of a sample and a filter tap along one axis of a convolution.

    Samples of the padding and of gaps do not count.

    Args:
      image, kernel, output: lengths.
      padding: number of zeros before the first sample.
      image_step, kernel_step: distance of neighbouring samples and taps (dilation).
    """
    position = np.arange(output)[:, None] * stride - padding + np.arange(kernel)[None, :] * kernel_step
    inside = (position >= 0) & (position <= (image - 1) * image_step)
    return int((inside & (position % image_step == 0)).sum())
