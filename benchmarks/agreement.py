"""Agreement with published implementations at full size: their random weights through `bandtok import`.

    PEER/bin/python benchmarks/agreement.py make dac FOLDER        # with PyTorch and descript-audio-codec
    python benchmarks/agreement.py compare dac FOLDER              # with this package
    PEER/bin/python benchmarks/agreement.py make vocos FOLDER      # with PyTorch, torchaudio and vocos
    python benchmarks/agreement.py compare vocos FOLDER

`make` needs the packages of `peers/descript_dac.py` and `tests/golden/make_vocos.py`. Each model is one JSON object.

The row of a DAC has `ties`, the number of codes whose two nearest entries are within TIE of each other (squared
distance on the unit sphere, in float64). It has the number of columns with another code, the number of these in which
the first other code is a tie, and their largest gap. The audio is decoded from the published codes, and its largest
difference is shown.

The row of a Vocos has the largest differences of the log-mel in nats, and of the audio from the published log-mel, for
the whole file at once and in the chunks of a codec.
"""

import json
import pathlib
import sys

import numpy as np

SECONDS, TIE = 4, 1e-5
LOW_RATE = dict(encoder_rates=[2, 4, 5, 8], decoder_rates=[8, 5, 4, 2])
DACS = {
    "44.1 kHz, 8 kbps": dict(sample_rate=44100, n_codebooks=9),
    "44.1 kHz, 16 kbps": dict(sample_rate=44100, n_codebooks=18, latent_dim=128),
    "24 kHz": dict(sample_rate=24000, n_codebooks=32, **LOW_RATE),
    "16 kHz": dict(sample_rate=16000, n_codebooks=12, **LOW_RATE),
}
VOCOS = dict(
    sample_rate=24000, n_fft=1024, hop_length=256, n_mels=100, dim=512, intermediate_dim=1536, num_layers=8
)  # of vocos-mel-24khz
PADDINGS = ("center", "same")


def make_dac(folder: str) -> None:
    """Writes weights, codes and audio of each DAC."""
    from peers.measuring import decaying_tones
    from peers.stand_ins import allow_missing

    allow_missing()
    import dac
    import torch

    for number, (name, settings) in enumerate(DACS.items()):
        torch.manual_seed(number)
        model = dac.DAC(**settings).eval()
        rate = settings["sample_rate"]
        with torch.no_grad():
            for key, parameter in model.named_parameters():  # fresh ones are all alike
                if key.endswith("alpha"):
                    parameter.uniform_(0.5, 2.0)
                elif key.endswith("bias"):
                    parameter.uniform_(-0.1, 0.1)
            audio = decaying_tones(1, SECONDS * rate + 77, rate)
            give_codebooks(model.quantizer, model.encoder(model.preprocess(audio, rate)))
            codes = model.encode(model.preprocess(audio, rate))[1]
            decoded = model.decode(model.quantizer.from_codes(codes)[0])
        target = pathlib.Path(folder) / str(number)
        target.mkdir(parents=True, exist_ok=True)
        model.save(target / "weights.pth", package=False)
        np.savez(target / "reference.npz", audio=audio[0, 0], codes=codes[0].T, decoded=decoded[0, 0])


def give_codebooks(quantizer, latents) -> None:
    """Fills the codebooks with jittered latents of each level, centred as after training."""
    import torch

    residual = latents
    for level in quantizer.quantizers:
        level.in_proj.bias.sub_(level.in_proj(residual)[0].mean(1))
        projected = level.in_proj(residual)[0].T
        chosen = torch.randint(len(projected), (level.codebook_size,))
        noise = torch.randn(level.codebook_size, projected.shape[1])
        level.codebook.weight.copy_(projected[chosen] + 0.1 * projected.std(0) * noise)
        residual = residual - level(residual)[0]


def compare_dac(folder: str) -> None:
    """Prints a row for each DAC of `make_dac`."""
    import jax

    from bandtok_jax.codecs.registry import assemble
    from bandtok_jax.pretrained import import_dac

    for number, name in enumerate(DACS):
        source = pathlib.Path(folder) / str(number)
        stage = import_dac.read_official(str(source / "weights.pth"), parity=True)
        codec = assemble({"tokenizer": stage})
        reference = np.load(source / "reference.npz")
        codes = codec.encode(reference["audio"], codec.sample_rate_hz)
        decoded = codec.decode(reference["codes"])
        parameters = stage.weights["parameters"]
        latents = jax.jit(lambda p, x: stage.network.apply(p, {}, x, method="latents"))
        gaps = tie_gaps(parameters["quantizer"], latents(parameters, reference["audio"][None])[0], reference["codes"])
        # Levels after the first other code have another residual, so they are not comparable.
        first = np.cumsum(codes != reference["codes"], axis=1) == 1
        first &= codes != reference["codes"]
        length = len(reference["decoded"])
        row = {
            "name": name,
            "parameters_M": round(sum(leaf.size for leaf in jax.tree.leaves(parameters)) / 1e6, 2),
            "codes": int(codes.size),
            "codes_in_use": int(len(np.unique(codes))),
            "ties": int((gaps < TIE).sum()),
            "columns_that_differ": int(first.sum()),
            "of_these_ties": int((gaps[first] < TIE).sum()),
            "largest_gap_of_these": float(gaps[first].max(initial=0.0)),
            "largest_audio_difference": float(np.abs(decoded[:length] - reference["decoded"]).max()),
            "audio_peak": float(np.abs(reference["decoded"]).max()),
            "seconds": SECONDS,
        }
        print(json.dumps(row), flush=True)


def tie_gaps(quantizer: dict, latents: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns the gap between the two smallest distances, float64 `[T, F]`, with the residuals of these codes."""
    residual, gaps = np.asarray(latents, np.float64), []
    for number in range(codes.shape[1]):
        level = quantizer["levels"][str(number)]
        into, out = (
            {key: np.asarray(value, np.float64) for key, value in level[n].items()}
            for n in ("project_in", "project_out")
        )
        vectors = np.asarray(level["vectors"], np.float64)
        distances = 2 - 2 * _unit(residual @ _weight(into) + into["bias"]) @ _unit(vectors).T
        nearest = np.partition(distances, 1, axis=-1)
        gaps.append(nearest[:, 1] - nearest[:, 0])
        residual = residual - (vectors[codes[:, number]] @ _weight(out) + out["bias"])
    return np.stack(gaps, axis=-1)


def _weight(layer: dict) -> np.ndarray:
    """Returns the kernel of a weight-normalised layer."""
    return layer["kernel"][0] * layer["gain"] / np.linalg.norm(layer["kernel"][0], axis=0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make_vocos(folder: str) -> None:
    """Writes weights, log-mel and audio of each Vocos."""
    from peers.measuring import decaying_tones
    import torch

    sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests" / "golden"))
    import make_vocos as golden

    for padding in PADDINGS:
        torch.manual_seed(0)
        target = pathlib.Path(folder) / padding
        model = golden.make(target, golden.settings(padding, **VOCOS))
        audio = decaying_tones(1, SECONDS * VOCOS["sample_rate"] + 77, VOCOS["sample_rate"])[0]
        log_mel = model.feature_extractor(audio)
        decoded = model.decode(log_mel)[0]
        np.savez(target / "reference.npz", audio=audio[0], log_mel=log_mel[0].T, decoded=decoded)


def compare_vocos(folder: str) -> None:
    """Prints a row for each Vocos of `make_vocos`."""
    import jax

    from bandtok_jax.audio.spectral import log_mel
    from bandtok_jax.codecs import component
    from bandtok_jax.codecs.mel import MelCodec
    from bandtok_jax.config.load import load_config
    from bandtok_jax.pretrained import import_vocos

    for padding in PADDINGS:
        source = pathlib.Path(folder) / padding
        vocoder = import_vocos.read_vocos(str(source))
        reference = np.load(source / "reference.npz")
        expected = reference["decoded"]
        config = load_config("bandtok:tiny_24khz", {"mel.padding": padding})
        codec = MelCodec(component.init_random(config, jax.random.key(0)), vocoder)
        parameters = vocoder.weights["parameters"]
        whole = jax.jit(vocoder.network.apply)(parameters, {}, reference["log_mel"][None])[0]
        row = {
            "name": f"Vocos, 24 kHz, padding {padding}",
            "parameters_M": round(sum(leaf.size for leaf in jax.tree.leaves(parameters)) / 1e6, 2),
            "largest_log_mel_difference": _difference(log_mel(reference["audio"], vocoder.mel), reference["log_mel"]),
            "largest_audio_difference": _difference(whole, expected),
            "in_chunks": _difference(codec.vocode(reference["log_mel"]), expected),
            "audio_peak": float(np.abs(expected).max()),
            "seconds": SECONDS,
        }
        print(json.dumps(row), flush=True)


def _difference(values: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference, up to the length of `expected`."""
    return float(np.abs(values[: len(expected)] - expected).max())


if __name__ == "__main__":
    programs = {
        ("make", "dac"): make_dac,
        ("compare", "dac"): compare_dac,
        ("make", "vocos"): make_vocos,
        ("compare", "vocos"): compare_vocos,
    }
    programs[sys.argv[1], sys.argv[2]](sys.argv[3])
