"""DAC and EnCodec of transformers: encode and decode."""

import functools

import torch

from peers.measuring import RATE_HZ, decaying_tones, millions, time_and_emit

SECONDS = 5
ENCODEC_RATE_HZ, ENCODEC_KBPS = 24_000, 6.0


def dac(verb: str) -> None:
    """Measures `encode` or `decode` of DacModel."""
    from transformers import DacConfig, DacModel

    torch.manual_seed(0)
    model = DacModel(DacConfig(sampling_rate=RATE_HZ)).eval()
    audio = decaying_tones(1, SECONDS * RATE_HZ, RATE_HZ)
    audio = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % 512))
    with torch.inference_mode():
        codes = model.encode(audio).audio_codes
        calls = {
            "encode": functools.partial(model.encode, audio),
            "decode": functools.partial(model.decode, audio_codes=codes),
        }
        time_and_emit(
            f"dac_hf_{verb}", "x realtime", calls[verb], amount=SECONDS, repeats=5, audio_s=SECONDS,
            codes=list(codes.shape), params_M=millions(model), impl="transformers DacModel (weight norm folded)",
        )  # fmt: skip


def encodec(verb: str) -> None:
    """Measures `encode` or `decode` of EncodecModel."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig()).eval()
    for layer in model.quantizer.layers:  # the codebooks start at zero
        layer.codebook.embed.normal_()
    audio = decaying_tones(1, SECONDS * ENCODEC_RATE_HZ, ENCODEC_RATE_HZ)
    with torch.inference_mode():
        coded = model.encode(audio, bandwidth=ENCODEC_KBPS)
        calls = {
            "encode": functools.partial(model.encode, audio, bandwidth=ENCODEC_KBPS),
            "decode": functools.partial(model.decode, coded.audio_codes, coded.audio_scales),
        }
        time_and_emit(
            f"encodec_{verb}", "x realtime", calls[verb], amount=SECONDS, repeats=11, audio_s=SECONDS,
            kbps=ENCODEC_KBPS, codes=list(coded.audio_codes.shape), params_M=millions(model),
            impl="transformers EncodecModel",
        )  # fmt: skip


MEASUREMENTS = {
    "dac_hf_encode": functools.partial(dac, "encode"),
    "dac_hf_decode": functools.partial(dac, "decode"),
    "encodec_encode": functools.partial(encodec, "encode"),
    "encodec_decode": functools.partial(encodec, "decode"),
}
