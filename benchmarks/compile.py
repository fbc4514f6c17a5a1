"""Seconds to compile what the first step of a training needs, one program after the other and as the training does it.

python benchmarks/compile.py [bandtok:small] [--adversarial]

`--adversarial` adds the losses of the discriminator: run by itself for the real and the fake mel in the losses of both
players, beside one forward pass that serves all. (The number of convolutions holds for every device.)
"""

import re
import sys
import threading
import time

import jax
from timing import emit, spread

from bandtok_jax import tasks
from bandtok_jax.config.load import load_config
from bandtok_jax.losses import adversarial
from bandtok_jax.training import sharding
from bandtok_jax.training.program import Program

SMALL_BATCH = 2  # what is compiled is as large for any batch


def main():
    names = [name for name in sys.argv[1:] if not name.startswith("--")]
    jax.config.update("jax_enable_compilation_cache", False)
    for name in names or ["bandtok:small"]:
        config = load_config(name, {"batch_size": str(SMALL_BATCH)})
        program = Program(tasks.create(config), sharding.create_mesh(config.mesh), config.seed)
        with jax.set_mesh(program.mesh):
            _first_step(name, program)
            if "--adversarial" in sys.argv:
                _adversarial(name, program.task)


def _first_step(name: str, program: Program) -> None:
    """The programs of the first step: one after the other, and the large ones in threads beside the others."""
    task = program.task
    arguments = program.targets(), task.frozen_spec(), task.batch_spec()
    lower = {
        "init": lambda: jax.jit(program._init, out_shardings=program.layout).lower(),
        "train_step": lambda: program.train_step(**task.phase(0)).lower(*arguments),
        "evaluate": lambda: program.evaluate().lower(*arguments),
    }
    begun, lowered = time.perf_counter(), {}
    for kind, make in lower.items():
        lowered[kind] = make()
    emit(f"{name}: trace", "s", **spread([time.perf_counter() - begun]))
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}
    compile = lambda kind: lowered[kind].compile(compiler_options=options if kind == "init" else {})
    seconds = {}
    for kind, program_text in lowered.items():
        begun = time.perf_counter()
        compile(kind)
        seconds[kind] = time.perf_counter() - begun
        emit(f"{name}: {kind}", "s", **spread([seconds[kind]]), convolutions=_convolutions(program_text))
    threads = [threading.Thread(target=compile, args=(kind,)) for kind in lowered]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = time.perf_counter() - begun
    emit(f"{name}: all in turn", "s", **spread([sum(seconds.values())]))
    emit(f"{name}: all at once", "s", **spread([together]))
    emit(f"{name}: at once / in turn", "ratio", **spread([together / sum(seconds.values())]))


def _adversarial(name: str, task) -> None:
    """Convolutions and seconds of the adversarial losses and their gradients, apart and in one forward pass."""
    weights, kind = task.config.loss, task.config.loss.adversarial_kind
    parameters = task.discriminator.shapes()[0]
    real = jax.eval_shape(task.original, task.batch_spec())
    judge = lambda parameters, output: task.discriminator.apply(parameters, {}, output)

    def generator_loss(fake, parameters, real):
        (logits, features), (_, real_features) = judge(parameters, fake), judge(parameters, real)
        matching = adversarial.feature_matching(real_features, features, task._feature_average)
        return weights.adversarial * adversarial.generator_loss(logits, kind) + weights.feature_matching * matching

    def discriminator_loss(parameters, fake, real):
        return adversarial.discriminator_loss(judge(parameters, real)[0], judge(parameters, fake)[0], kind)

    def apart(parameters, real, fake):
        return (
            jax.value_and_grad(generator_loss)(fake, parameters, real),
            jax.value_and_grad(discriminator_loss)(parameters, fake, real),
        )

    def once(parameters, real, fake):
        terms, push, loss, gradients = task._discriminate({"parameters": parameters, "buffers": {}}, real, fake)
        return terms, push(task._weights(terms)), loss, gradients

    found = {}
    for label, step in (("apart", apart), ("one pass", once)):
        lowered = jax.jit(step).lower(parameters, real, real)
        begun = time.process_time()
        compiled = lowered.compile()
        found[label] = time.process_time() - begun
        count = compiled.as_text().count(" convolution(") + len(
            re.findall(r'target="__onednn\$conv', compiled.as_text())
        )
        emit(f"{name}: {label}", "s of CPU", **spread([found[label]]), convolutions=count)
    emit(f"{name}: one pass / apart", "ratio", **spread([found["one pass"] / found["apart"]]))


def _convolutions(lowered) -> int:
    return lowered.as_text().count("stablehlo.convolution")


if __name__ == "__main__":
    main()
