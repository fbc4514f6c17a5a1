"""Agreement with published programs at full size: their random weights through `bandtok import`.

    PEER/bin/python benchmarks/agreement.py make dac FOLDER        # with PyTorch and descript-audio-codec
    python benchmarks/agreement.py compare dac FOLDER              # with this package
    PEER/bin/python benchmarks/agreement.py make vocos FOLDER      # with PyTorch, torchaudio and vocos
    python benchmarks/agreement.py compare vocos FOLDER

`make` needs what `peers_torch.py` and `tests/golden/make_vocos.py` need for them. One JSON object a line and model.

DAC: `ties`, how many codes have their two nearest entries within TIE of each other (squared distance on the unit
sphere), judged in float64; in how many columns a code differs, in how many of these the first that does is a tie, and
the largest gap among them; the largest difference of the sound decoded from the published codes.

Vocos: the largest difference of the log-mel (nats), and of the sound from the published log-mel, of the whole file at
once and in the chunks of a codec.
"""

import json
import pathlib
import sys

import numpy as np

SECONDS, TIE = 4, 1e-5
LOW = dict(encoder_rates=[2, 4, 5, 8], decoder_rates=[8, 5, 4, 2])
DACS = {
    "44.1 kHz, 8 kbps": dict(sample_rate=44100, n_codebooks=9),
    "44.1 kHz, 16 kbps": dict(sample_rate=44100, n_codebooks=18, latent_dim=128),
    "24 kHz": dict(sample_rate=24000, n_codebooks=32, **LOW),
    "16 kHz": dict(sample_rate=16000, n_codebooks=12, **LOW),
}
VOCOS = dict(
    sample_rate=24000, n_fft=1024, hop_length=256, n_mels=100, dim=512, intermediate_dim=1536, num_layers=8
)  # of vocos-mel-24khz
PADDINGS = ("center", "same")


def make_dac(folder):
    from peers_torch import allow_missing, test_signal

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
            audio = test_signal(1, SECONDS * rate + 77, rate)
            give_codebooks(model.quantizer, model.encoder(model.preprocess(audio, rate)))
            codes = model.encode(model.preprocess(audio, rate))[1]
            sound = model.decode(model.quantizer.from_codes(codes)[0])
        target = pathlib.Path(folder) / str(number)
        target.mkdir(parents=True, exist_ok=True)
        model.save(target / "weights.pth", package=False)
        np.savez(target / "reference.npz", audio=audio[0, 0], codes=codes[0].T, sound=sound[0, 0])


def give_codebooks(quantizer, latents):
    """Centres what there is to quantize, as training does, and fills the codebooks with it, jittered."""
    import torch

    residual = latents
    for level in quantizer.quantizers:
        level.in_proj.bias.sub_(level.in_proj(residual)[0].mean(1))
        found = level.in_proj(residual)[0].T
        chosen = torch.randint(len(found), (level.codebook_size,))
        level.codebook.weight.copy_(
            found[chosen] + 0.1 * found.std(0) * torch.randn(level.codebook_size, found.shape[1])
        )
        residual = residual - level(residual)[0]


def compare_dac(folder):
    import jax

    from bandtok_jax.pretrained import import_dac, model_folder

    for number, name in enumerate(DACS):
        source = pathlib.Path(folder) / str(number)
        stage = import_dac.read_official(str(source / "weights.pth"), parity=True)
        codec = model_folder.join({"tokenizer": stage})
        reference = np.load(source / "reference.npz")
        codes = codec.encode(reference["audio"], codec.sample_rate_hz)
        sound = codec.decode(reference["codes"])
        parameters = stage.weights["parameters"]
        latents = jax.jit(lambda p, x: stage.network.apply(p, {}, x, method="latents"))
        gaps = tie_gaps(parameters["quantizer"], latents(parameters, reference["audio"][None])[0], reference["codes"])
        # A level that differs hands another residual on: what comes after it says nothing.
        first = np.cumsum(codes != reference["codes"], axis=1) == 1
        first &= codes != reference["codes"]
        length = len(reference["sound"])
        row = {
            "name": name,
            "parameters_M": round(sum(leaf.size for leaf in jax.tree.leaves(parameters)) / 1e6, 2),
            "codes": int(codes.size),
            "codes_in_use": int(len(np.unique(codes))),
            "ties": int((gaps < TIE).sum()),
            "columns_that_differ": int(first.sum()),
            "of_these_ties": int((gaps[first] < TIE).sum()),
            "largest_gap_of_these": float(gaps[first].max(initial=0.0)),
            "largest_sound_difference": float(np.abs(sound[:length] - reference["sound"]).max()),
            "sound_peak": float(np.abs(reference["sound"]).max()),
            "seconds": SECONDS,
        }
        print(json.dumps(row), flush=True)


def tie_gaps(quantizer, latents, codes):
    """How much farther the second nearest entry is than the nearest, float64 `[T, F]`, along the given codes."""
    residual, gaps = np.asarray(latents, np.float64), []
    for number in range(codes.shape[1]):
        level = quantizer["levels"][str(number)]
        into, out = (
            {key: np.asarray(value, np.float64) for key, value in level[n].items()}
            for n in ("project_in", "project_out")
        )
        weight = lambda layer: layer["kernel"][0] * layer["gain"] / np.linalg.norm(layer["kernel"][0], axis=0)
        unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
        vectors = np.asarray(level["vectors"], np.float64)
        distances = 2 - 2 * unit(residual @ weight(into) + into["bias"]) @ unit(vectors).T
        nearest = np.partition(distances, 1, axis=-1)
        gaps.append(nearest[:, 1] - nearest[:, 0])
        residual = residual - (vectors[codes[:, number]] @ weight(out) + out["bias"])
    return np.stack(gaps, axis=-1)


def make_vocos(folder):
    from peers_torch import test_signal
    import torch

    sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests" / "golden"))
    import make_vocos as golden

    for padding in PADDINGS:
        torch.manual_seed(0)
        target = pathlib.Path(folder) / padding
        model = golden.make(target, golden.settings(padding, **VOCOS))
        audio = test_signal(1, SECONDS * VOCOS["sample_rate"] + 77, VOCOS["sample_rate"])[0]
        log_mel = model.feature_extractor(audio)
        sound = model.decode(log_mel)[0]
        np.savez(target / "reference.npz", audio=audio[0], log_mel=log_mel[0].T, sound=sound)


def compare_vocos(folder):
    import jax

    from bandtok_jax.audio.spectral import log_mel
    from bandtok_jax.codecs import component
    from bandtok_jax.codecs.mel import MelCodec
    from bandtok_jax.config import experiment
    from bandtok_jax.pretrained import import_vocos

    for padding in PADDINGS:
        source = pathlib.Path(folder) / padding
        vocoder = import_vocos.read(str(source))
        reference = np.load(source / "reference.npz")
        expected = reference["sound"]
        config = experiment.load_config("bandtok:tiny_24khz", {"mel.padding": padding})
        codec = MelCodec(component.fresh(config, jax.random.key(0)), vocoder)
        parameters = vocoder.weights["parameters"]
        whole = jax.jit(vocoder.network.apply)(parameters, {}, reference["log_mel"][None])[0]
        difference = lambda found, expected: float(np.abs(found[: len(expected)] - expected).max())
        row = {
            "name": f"Vocos, 24 kHz, padding {padding}",
            "parameters_M": round(sum(leaf.size for leaf in jax.tree.leaves(parameters)) / 1e6, 2),
            "largest_log_mel_difference": difference(log_mel(reference["audio"], vocoder.mel), reference["log_mel"]),
            "largest_sound_difference": difference(whole, expected),
            "in_chunks": difference(codec.vocode(reference["log_mel"]), expected),
            "sound_peak": float(np.abs(expected).max()),
            "seconds": SECONDS,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    programs = {
        ("make", "dac"): make_dac,
        ("compare", "dac"): compare_dac,
        ("make", "vocos"): make_vocos,
        ("compare", "vocos"): compare_vocos,
    }
    programs[sys.argv[1], sys.argv[2]](sys.argv[3])
