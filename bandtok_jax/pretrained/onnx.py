"""Programs in ONNX, which hold their weights: converted by jax2onnx, run by ONNX Runtime.

The programs compute Fourier transforms as matrix products, because ONNX has no complex numbers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import importlib.metadata
import logging
from typing import Any

import jax
from jax.extend.core import jaxpr_as_fun

from bandtok_jax.runtime import extras
from bandtok_jax.runtime.target_platform import made_for

Program = Callable[..., Sequence[Any]]
PAGE = "browser/index.html"  # encodes and decodes a file by the programs beside it
RANDOM = False  # jax2onnx writes RandomUniform for numbers from a key, and ONNX Runtime draws other ones
INPUTS, OUTPUT = ("window", "valid_range"), "outputs"
NEXT = "next_"  # prefix of an output that is an array of the next state
OPSET = 23  # the version of the operators: the default of jax2onnx 0.13
ONLY_ERRORS = 3  # severity of a message, of ONNX Runtime


def check_packages() -> None:
    """Raises ImportError where jax2onnx or ONNX Runtime is not installed."""
    for module in ("jax2onnx", "onnxruntime"):
        extras.require(module, "the format ONNX")


def metadata() -> dict[str, Any]:
    """Returns the entries of programs.json that only this format has."""
    return {"opset": OPSET, "inputs": INPUTS, "output": OUTPUT, "writer": _versions()}


def write(run: Callable[..., Any], inputs: Mapping[str, jax.ShapeDtypeStruct]) -> bytes:
    """Returns the content of the file of a function.

    Args:
      run: maps `INPUTS` and the arrays of a state to the outputs, and to those of the next state.
      inputs: shapes of the inputs by their names.

    Raises:
      ValueError: jax2onnx cannot convert the function with this version of JAX.
    """
    with _without_warnings(), made_for("onnx"):
        import jax2onnx
        from jax2onnx.plugins import plugin_system

        # JAX 0.10 has primitives for both, and jax2onnx 0.13 and 0.17 convert the functions of these names alone.
        plugin_system.import_all_plugins()
        for name in ("stack", "unstack"):
            plugin_system.PLUGIN_REGISTRY.setdefault(name, plugin_system.PLUGIN_REGISTRY[f"jax.numpy.{name}"])
        # A program that is traced already: while jax2onnx traces one, it replaces functions of JAX by its own.
        shapes, names = list(inputs.values()), list(inputs)
        traced = jaxpr_as_fun(jax.make_jaxpr(run)(*shapes))
        try:
            model = jax2onnx.to_onnx(
                lambda *arrays: tuple(traced(*arrays)),
                shapes,
                opset=OPSET,
                input_names=names,
                output_names=[OUTPUT, *(NEXT + name for name in names[len(INPUTS) :])],
            )
        except Exception as error:  # of any type, because jax2onnx uses internals of JAX
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(
                f"{_versions()} cannot convert the program ({message}): {extras.command('onnx')}"
            ) from error
        # Runtimes infer the shapes of intermediate arrays. Some of those that jax2onnx 0.13 states are wrong.
        del model.graph.value_info[:]
        return model.SerializeToString()


def read(artifact: bytes) -> Program:
    """Returns the program of a file, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ONLY_ERRORS
    # ONNX Runtime in browsers refuses a file whose shapes contradict each other. By default this one only warns.
    options.add_session_config_entry("session.strict_shape_type_inference", "1")
    session = onnxruntime.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays)))


def _versions() -> str:
    return f"jax2onnx {importlib.metadata.version('jax2onnx')} with jax {jax.__version__}"


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides warnings of the converter about its plug-ins for other libraries and about shapes that it does not know."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
