"""The report of `bandtok evaluate bound`: how far an error of quantization moves log-mel and waveform.

Letters: S samples; z latents, e their code vectors.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.evaluation.metrics import lipschitz
from bandtok_jax.evaluation.metrics.latent_path import LatentPath
from bandtok_jax.evaluation.report import aggregate
from bandtok_jax.plotting import plots
from bandtok_jax.runtime import storage
from bandtok_jax.runtime.progress import progress_bar
from bandtok_jax.version import VERSION

OURS = "The constants are ours, because those of MelTok's theorem are not public."
MEANING = {
    "constants": OURS,
    "parts": "constant: by layers (spectral norms by power iteration, a residual block is 1 plus its branch; norms and "
    "attention have local constants only); local: largest singular value of the Jacobian at real inputs",
    "by_layers": "product of the constants of the parts: a bound, but for the local constants in it",
    "by_blocks": "product of the local constants of the blocks",
    "local": "largest singular value of the Jacobian of latents to log-mel (mel_local), log-mel to waveform "
    "(vocoder_local), and latents to waveform (waveform_local); the larger one of those at z and at e",
    "ratio": "norm of the difference of the outputs for e and z, by the norm of e - z",
    "floor": "norm of the difference of the output for z and the original: the error without quantization",
    "norms": "Euclidean, of whole clips; log-mel in nats",
}
ENDINGS = (".png", ".svg")
STEP_CLIPS = 2  # for the local constants of parts; our choice


def measure(path: LatentPath, clips: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    """Returns the constants of a codec and the measurements of each clip.

    Args:
      path: the functions of the codec.
      clips: name -> audio `[S]` at the codec's rate.
      name: name of the codec, for the progress bar.
    """
    with jax.default_matmul_precision("highest"):
        with progress_bar(total=len(clips), unit="clip", desc=name) as bar:
            starts: dict[Callable, jax.Array] = {}
            lines = []
            for label, audio in clips.items():
                lines.append({"clip": label, **_clip(path, jnp.asarray(audio)[None], starts)})
                bar.update(1)
        networks = _networks(path, jnp.stack(list(clips.values())[:STEP_CLIPS]))
    keys = [key for key in lines[0] if key != "clip"]
    return {
        "clip_seconds": path.clip_samples / path.sample_rate_hz,
        "networks": networks,
        "median": {key: float(np.median([line[key] for line in lines])) for key in keys},
        "largest": {key: max(line[key] for line in lines) for key in keys},
        "clips": lines,
    }


def _clip(path: LatentPath, audio: jax.Array, starts: dict[Callable, jax.Array]) -> dict[str, float]:
    """Returns the measurements of a clip `[1, S]`.

    Args:
      starts: function -> vector with which its power iteration starts, replaced by the last one.
    """
    latents, vectors, original = path.programs["quantize"](path.weights, audio)
    decode, vocode = path.programs["decode"], path.programs["vocode"]
    mels = [decode(path.weights, point) for point in (latents, vectors)]
    waveforms = [vocode(path.weights, mel) for mel in mels]
    error, moved_mel, moved = (_norm(after - before) for before, after in ((latents, vectors), mels, waveforms))
    reference = audio[:, : waveforms[0].shape[1]]
    result = {
        "quantization_error": error,
        "mel_error": moved_mel,
        "waveform_error": moved,
        "mel_ratio": moved_mel / error,
        "waveform_ratio": moved / error,
    }
    for key, function, points in (
        ("mel_local", path.decode, (latents, vectors)),
        ("vocoder_local", path.vocode, mels),
        ("waveform_local", path.waveform, (latents, vectors)),
    ):
        result[key] = max(_local(path, function, point, starts) for point in points)
    return result | {
        "mel_floor": _norm(mels[0] - original),
        "waveform_floor": _norm(waveforms[0] - reference),
        "latent_norm": _norm(latents),
        "original_norm": _norm(reference),
    }


def _local(path: LatentPath, function: Callable, point: jax.Array, starts: dict[Callable, jax.Array]) -> float:
    products = lipschitz.compiled_products(function)
    values, starts[function] = lipschitz.largest_singular_value(
        lambda vector: products(path.weights, point, vector),
        starts.get(function, lipschitz.random_start(point)),
        lipschitz.JACOBIAN_ITERATIONS,
        lipschitz.JACOBIAN_TOLERANCE,
    )
    return float(values[0])


def _norm(x: jax.Array) -> float:
    return float(lipschitz.norms(x)[0])


def _networks(path: LatentPath, clips: jax.Array) -> dict[str, Any]:
    """Returns the parts of each network and the products of their constants; clips are `[B, S]`."""
    latents, _, _ = path.programs["quantize"](path.weights, clips)
    inputs, result = (latents, path.programs["decode"](path.weights, latents)), {}
    for (network, steps), x in zip(path.steps().items(), inputs):
        if steps:
            parts, _ = lipschitz.constants_of(steps, x)
            result[network] = {
                "by_layers": lipschitz.product(parts),
                "by_blocks": lipschitz.product(parts, attribute="local"),
                "everywhere": all(part.everywhere for part in parts),
                "parts": [dataclasses.asdict(part) for part in parts],
            }
    return result


def write(output: str, systems: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Writes bound.json, bound.csv (clips), bound_parts.csv and the figure `bound` to a folder.

    Args:
      output: folder of the report.
      systems: name -> result of `measure`.
      settings: data and systems, for bound.json.
    """
    os.makedirs(output, exist_ok=True)
    content = {"version": VERSION, "meaning": MEANING, **settings, "systems": systems}
    storage.write_text(os.path.join(output, "bound.json"), json.dumps(content, indent=1) + "\n")
    clips = [{"system": name, **line} for name, result in systems.items() for line in result["clips"]]
    aggregate.write_csv(os.path.join(output, "bound.csv"), clips)
    aggregate.write_csv(os.path.join(output, "bound_parts.csv"), part_lines(systems))
    panels = {
        label: {
            name: (
                [(line["quantization_error"], line[f"{kind}_error"]) for line in result["clips"]],
                result["largest"][f"{kind}_local"],
            )
            for name, result in systems.items()
        }
        for kind, label in (("mel", "error of the log-mel (nats)"), ("waveform", "error of the waveform"))
    }
    for ending in ENDINGS:
        plots.bounds(os.path.join(output, "bound" + ending), panels)


def part_lines(systems: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines of bound_parts.csv."""
    return [
        {"system": name, "network": network, **part}
        for name, result in systems.items()
        for network, constants in result["networks"].items()
        for part in constants["parts"]
    ]


def result_lines(systems: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """Returns the lines to print."""
    lines = []
    for name, result in systems.items():
        median, largest = result["median"], result["largest"]
        lines.append(f"{name}: {len(result['clips'])} clips of {result['clip_seconds']:.2f} s")
        for key, label in (("mel", "log-mel"), ("waveform", "waveform")):
            lines.append(
                f"  latents to {label}: ratio {median[f'{key}_ratio']:.3g} (largest {largest[f'{key}_ratio']:.3g}), "
                f"local constant {median[f'{key}_local']:.3g} (largest {largest[f'{key}_local']:.3g}), "
                f"error {median[f'{key}_error']:.3g}, without quantization {median[f'{key}_floor']:.3g}"
            )
        lines.append(f"  log-mel to waveform: local constant {median['vocoder_local']:.3g}")
        for network, constants in result["networks"].items():
            lines.append(
                f"  {network}: product of the layers {constants['by_layers']:.2e}, of local constants of the blocks "
                f"{constants['by_blocks']:.2e}"
            )
    return [*lines, OURS]
