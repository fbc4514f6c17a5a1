"""Model FLOPs: what a training step must compute, whatever the machine and however the compiler does it.

Matrix products and convolutions are counted in the traced step, a multiplication and an addition each; Fourier
transforms as fast ones (2.5 n log2 n of n real samples). Loops count as often as they run. Element by element
operations do not count, nor does what is computed a second time to save memory: the count is the same with and without
`model.remat`, `model.scan_layers` and micro-batches. Causal attention counts the blocks of the square that XLA's own
path touches (`layers.attention`): 56 % of it for long sequences.
"""

import math

import jax
from jax.extend import core
from jax.interpreters import partial_eval
import numpy as np

from bandtok_jax import tasks
from bandtok_jax.runtime.target_platform import made_for


def training_flops(task, batch_size: int, *, again: bool = False, **phase) -> float:
    """Model FLOPs of one step on the whole batch, all players together.

    Args:
      batch_size: over all devices and micro-batches.
      again: also what `model.remat` computes a second time, which is no model FLOP but takes its time.
      phase: as `task.phase(step)` says; each phase of a game has a count of its own.
    """
    model = task.config.model
    changes = {"attention": "xla", "remat": model.remat and again} if "attention" in model else {}
    jaxpr = traced_step(task, batch_size, phase, **changes)
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return count(needed)


def traced_step(task, batch_size: int, phase: dict[str, bool], **changes):
    """The jaxpr of a training step as GPUs compute it, without micro-batches and with other values in config.model.

    On CPUs and TPUs spectra are computed in other ways, with more arithmetic.
    """
    config = task.config.copy_and_resolve_references()
    with config.unlocked():
        config.batch_size, config.optimizer.accumulation_steps = batch_size, 1
        config.model.update(changes)
    task = tasks.create(config.lock(), task.read_components)
    state = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    step = lambda state, frozen, batch: task.train_step(state, frozen, batch, jax.random.key(0), **phase)
    with made_for("gpu"):
        return jax.make_jaxpr(step)(state, task.frozen_spec(), task.batch_spec()).jaxpr


def count(jaxpr) -> float:
    """FLOPs of matrix products, convolutions and Fourier transforms in a jaxpr, those of its inner jaxprs included.

    Raises:
      ValueError: there is a loop that nobody knows the length of, or a kernel that nobody can look into.
    """
    return float(sum(_count_equation(equation) for equation in jaxpr.eqns))


def _count_equation(equation) -> float:
    name, parameters = equation.primitive.name, equation.params
    inputs, output = [x.aval for x in equation.invars], equation.outvars[0].aval if equation.outvars else None
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
        raise ValueError("the step calls a hand-written kernel, whose FLOPs cannot be counted: name another in config")
    inner = [count(body) for body in bodies(equation)]
    if not any(inner):
        return 0.0
    if name == "while":
        raise ValueError(f"the step has a loop of unknown length with matrix products in it: {equation.source_info}")
    if name == "cond":
        return max(inner)
    return sum(inner) * (parameters["length"] if name == "scan" else 1)


def bodies(equation):
    """The jaxprs among the parameters of an equation."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _count_convolution(inputs, output, parameters) -> float:
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


def convolution_flops(batch: int, features: int, outputs: int, groups: int, axes) -> float:
    """FLOPs of a convolution.

    Args:
      batch, features: of the image; outputs: features of the result; groups: of features and of the batch, multiplied.
      axes: the arguments of `products` for each axis.
    """
    return 2.0 * batch * features * outputs * math.prod(products(*axis) for axis in axes) / groups


def products(
    image: int, kernel: int, output: int, stride: int = 1, before: int = 0, image_step: int = 1, kernel_step: int = 1
) -> int:
    """How many pairs of a sample and a filter tap meet along one axis of a convolution: padding and gaps are no work.

    Args:
      image, kernel, output: lengths; before: padding in front.
      image_step, kernel_step: distance of neighbouring samples and taps (dilation).
    """
    place = np.arange(output)[:, None] * stride - before + np.arange(kernel)[None, :] * kernel_step
    inside = (place >= 0) & (place <= (image - 1) * image_step)
    return int((inside & (place % image_step == 0)).sum())
