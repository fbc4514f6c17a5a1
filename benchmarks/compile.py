"""Seconds to compile the programs of the first step of a training, one after the other and in threads.

    python benchmarks/compile.py [bandtok:small] [--adversarial]

`--adversarial` adds the losses of the discriminator. They are compiled with a forward pass for each network and each of
real and fake, and with the one forward pass of training. The number of convolutions is the same on every device.
"""

import argparse
from collections.abc import Callable
import functools
import re
import threading
import time

import jax
from timing import emit

from bandtok_jax import tasks
from bandtok_jax.config.load import load_config
from bandtok_jax.losses import adversarial
from bandtok_jax.tasks.adversarial import AdversarialTask
from bandtok_jax.training import sharding
from bandtok_jax.training.program import Program

SMALL_BATCH = 2  # programs have the same size for any batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["bandtok:small"], metavar="CONFIG")
    parser.add_argument("--adversarial", action="store_true", help="also the losses of the discriminator")
    flags = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    for name in flags.configs:
        config = load_config(name, {"batch_size": str(SMALL_BATCH)})
        program = Program(tasks.create(config), sharding.create_mesh(config.mesh), config.seed)
        with jax.set_mesh(program.mesh):
            _first_step(name, program)
            if flags.adversarial:
                _adversarial(name, program.task)


def _emit(name: str, unit: str, value: float, **fields: object) -> None:
    """Prints a row of one number."""
    emit(name, unit, value, value, value, **fields)


def _first_step(name: str, program: Program) -> None:
    """Compiles the programs of the first step one after the other, and then at once in threads."""
    task = program.task
    arguments = program.targets(), task.frozen_spec(), task.batch_spec()
    start = time.perf_counter()
    lowered = {
        "init": jax.jit(program.draw_state, out_shardings=program.layout).lower(),
        "train_step": program.train_step(**task.phase(0)).lower(*arguments),
        "evaluate": program.evaluate().lower(*arguments),
    }
    _emit(f"{name}: trace", "s", time.perf_counter() - start)

    def compile(kind: str) -> None:
        fast = kind == "init" and jax.default_backend() == "cpu"
        lowered[kind].compile(compiler_options={"xla_backend_optimization_level": 1} if fast else {})

    in_turn = 0.0
    for kind, program_text in lowered.items():
        seconds = _seconds(functools.partial(compile, kind))
        in_turn += seconds
        lines = [line for line in program_text.as_text().splitlines() if "stablehlo.convolution" in line]
        # A GPU chooses an algorithm for each distinct one.
        distinct = len({re.sub(r"%[\w#:]+", "", line.strip()) for line in lines})
        _emit(f"{name}: {kind}", "s", seconds, convolutions=len(lines), distinct=distinct)

    def compile_all() -> None:
        threads = [threading.Thread(target=compile, args=(kind,)) for kind in lowered]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    at_once = _seconds(compile_all)
    _emit(f"{name}: all in turn", "s", in_turn)
    _emit(f"{name}: all at once", "s", at_once)
    _emit(f"{name}: at once / in turn", "ratio", at_once / in_turn)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _adversarial(name: str, task: AdversarialTask) -> None:
    """Prints convolutions and seconds of the adversarial losses and their gradients, apart and in one forward pass."""
    settings = task.config.loss
    parameters = task.discriminator.shapes()[0]
    real = jax.eval_shape(task.target, task.batch_spec())

    def discriminate(parameters, output):
        return task.discriminator.apply(parameters, {}, output)

    def generator_loss(fake, parameters, real):
        (logits, features), (_, real_features) = discriminate(parameters, fake), discriminate(parameters, real)
        matching = adversarial.feature_matching(real_features, features, settings.feature_average)
        loss = adversarial.generator_loss(logits, settings.adversarial_kind)
        return settings.adversarial * loss + settings.feature_matching * matching

    def discriminator_loss(parameters, fake, real):
        logits = [discriminate(parameters, output)[0] for output in (real, fake)]
        return adversarial.discriminator_loss(*logits, settings.adversarial_kind)

    def apart(parameters, real, fake):
        return (
            jax.value_and_grad(generator_loss)(fake, parameters, real),
            jax.value_and_grad(discriminator_loss)(parameters, fake, real),
        )

    def one_pass(parameters, real, fake):
        state = {"parameters": parameters, "buffers": {}}
        losses, output_vjp, loss, gradients = task.discriminate(state, real, fake)
        return losses, output_vjp(task._weights(losses)), loss, gradients

    cpu_seconds = {}
    for label, step in (("apart", apart), ("one pass", one_pass)):
        lowered = jax.jit(step).lower(parameters, real, real)
        start = time.process_time()
        text = lowered.compile().as_text()
        cpu_seconds[label] = time.process_time() - start
        count = text.count(" convolution(") + len(re.findall(r'target="__onednn\$conv', text))
        _emit(f"{name}: {label}", "s of CPU", cpu_seconds[label], convolutions=count)
    _emit(f"{name}: one pass / apart", "ratio", cpu_seconds["one pass"] / cpu_seconds["apart"])


if __name__ == "__main__":
    main()
